/*
 * O kit do worker, num arquivo só, que precisa só do pacote "redis": copie-o para o seu projeto.
 *
 *   import { head, serve } from './worker';
 *
 *   serve(async function* (task, signal) {
 *     yield head(200, { 'X-Model': 'demo' });                  // opcional, antes de tudo
 *     for await (const token of ask_model(task.body, signal)) yield { token };
 *   });
 *
 * CADA yield É UMA LINHA
 *   Um texto vai como está; o resto, em JSON. Por isso um texto pode ser tudo o que o contrato do
 *   proxy permite: a cabeça (é o que head() escreve), '' como sinal de vida num passo demorado.
 *   O gerador só continua com a linha já no Redis, e com menos de `backlog` linhas por ler.
 *
 * COMO UMA TAREFA TERMINA
 *   o gerador acabou    a chave da tarefa é apagada, e o proxy fecha a resposta
 *   o gerador lançou    antes disso, uma linha {"error": "<a mensagem>"}, que o cliente lê
 *   o cliente saiu      `signal` aborta, e o próximo yield não volta: rodam os finally
 *   SIGTERM ou SIGINT   nada novo começa; o que roda tem `grace` ms, e depois uma linha de erro
 *
 * VÁRIAS TAREFAS, VÁRIOS WORKERS
 *   Cada um atende até `tasks` ao mesmo tempo, e reserva a tarefa antes de lê-la: só um a atende.
 *   As que passam do limite esperam sem reserva, e o primeiro worker com lugar as toma.
 *
 * QUANDO O REDIS CAI
 *   As conexões se refazem sozinhas, e o que ainda não saiu espera por elas. De uma linha que
 *   estava a caminho não se sabe se chegou: a tarefa termina com um erro, e não com uma linha
 *   repetida ou faltando. O que foi anunciado enquanto isso não é anunciado de novo.
 */

import { readFileSync as read_file } from 'node:fs';
import { hostname } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { createClient as create_client } from 'redis';

/** A tarefa, como o proxy a guarda. `request_time` em segundos desde 1970, com fração. */
export type task = {
  task_name: string;
  uuid: string;
  task_key: string;
  task_list: string;
  request_time: number;
  method: string;
  url: string;
  remote_address: string;
  headers: Record<string, string>;
  body: string;
  body_encoding?: 'base64';
};

/** Quem responde: um gerador. `signal` aborta quando ninguém espera mais pela resposta. */
export type handler = (task: task, signal: AbortSignal) => AsyncIterable<unknown>;

const { env } = process;

/**
 * Lê a senha do ambiente, como o proxy.
 * @returns a de REDIS_PASSWORD, a do arquivo de REDIS_PASSWORD_FILE, ou vazio
 * @throws Error se o arquivo não se lê
 */
function read_secret(): string {
  if (env.REDIS_PASSWORD || !env.REDIS_PASSWORD_FILE) return env.REDIS_PASSWORD ?? '';
  return read_file(env.REDIS_PASSWORD_FILE, 'utf8').replace(/\r?\n$/, '');
}

/** As opções que o worker divide com o proxy, na forma de parseArgs e com os padrões dele. */
export const proxy_flags = {
  redis: { type: 'string', short: 'R', default: env.REDIS_SERVER || '127.0.0.1:6379/1' },
  secret: { type: 'string', short: 'S', default: read_secret() },
  channel: { type: 'string', short: 'C', default: env.REDIS_CHANNEL || 'ndjson_jobs' },
  prefix: { type: 'string', short: 'X', default: env.REDIS_PREFIX || 'ndjson_task_' },
  'list-prefix': { type: 'string', short: 'L', default: '' }, // a tarefa diz qual é a sua lista
} as const;

const default_settings = {
  /** Nas formas de REDIS_SERVER: host:porta/banco, redis://, rediss://, /caminho.sock?db=1. */
  redis: proxy_flags.redis.default,
  /** Senha do Redis; vence a da URL. */
  secret: proxy_flags.secret.default,
  /** Canal em que as tarefas são anunciadas. */
  channel: proxy_flags.channel.default,
  /** Começo da chave da tarefa; as outras, de outra instalação, são deixadas. */
  prefix: proxy_flags.prefix.default,
  /** Tarefas ao mesmo tempo. */
  tasks: 10,
  /** O que se escreve na reserva. */
  name: `${hostname()}:${process.pid}`,
  /** Vida da reserva, em segundos; é renovada enquanto a tarefa roda. */
  claim_ttl: 600,
  /** Linhas que podem esperar pelo proxy numa lista. */
  backlog: 1000,
  /** Tempo das tarefas que rodam quando vem a ordem de parar, em milissegundos. */
  grace: 10_000,
  /** Outra ordem de parar, além dos sinais. */
  stop: undefined as AbortSignal | undefined,
  /** Quem recebe as notícias do worker, uma linha por vez. */
  log: (text: string): void => console.log(`worker: ${text}`),
};

/** O que se pode mudar em serve(). */
export type settings = typeof default_settings;

/** Uma tarefa em andamento; `task` falta até que a reserva seja nossa. */
type job = { task?: task; controller: AbortController };

/** O que as funções dividem. `waiting` são chaves anunciadas que ainda não têm lugar. */
type worker = {
  redis: ReturnType<typeof make_client>;
  handler: handler;
  settings: settings;
  waiting: string[];
  jobs: Map<job, Promise<void>>;
};

/** Começo da chave da reserva, fixo no contrato. */
const claim_prefix = 'ndjson_claim_';

/** De quanto em quanto tempo se pergunta se ainda há cliente, e se renova a reserva. */
const watch_ms = 1000;

/** De quanto em quanto tempo se olha uma lista cheia. */
const backlog_ms = 20;

/** De quanto em quanto tempo se repete o que um Redis que ainda carrega os dados recusou. */
const loading_ms = 100;

/** Quanto a parada espera, depois de `grace`, pelos geradores que ouvem o signal. */
const last_ms = 1000;

/** Uma conexão que não diz nada, nem responde ao PING, é trocada. */
const silence = { pingInterval: 10_000, socketTimeout: 30_000 };

/** Empurra só se alguém ainda espera: nada é escrito numa lista que ninguém mais apagaria. */
const push_script = `
  if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
  return redis.call('RPUSH', KEYS[2], ARGV[1])`;

/**
 * Escreve a cabeça da resposta, que deve ser o primeiro yield e vir em até 1 s do pedido.
 * @param status de 200 a 599, menos 204, 205 e 304
 * @param headers cabeçalhos a mais; uma lista repete o cabeçalho
 * @returns o elemento: 'HTTP 404 {"X-Reason":"no such order"}'
 */
export function head(status: number, headers: Record<string, unknown> = {}): string {
  return `HTTP ${status} ${JSON.stringify(headers)}`;
}

/**
 * Dá a forma de URL a um endereço do Redis.
 * @param server uma das formas de REDIS_SERVER
 * @param secret senha; se não for vazia, vence a da URL
 * @returns por exemplo "redis://:senha@127.0.0.1:6379/1" ou "unix:///run/redis.sock?db=1"
 */
export function redis_url(server: string, secret: string): string {
  const path = server.replace(/^unix:(?=\/(?!\/))/, '');
  const scheme = path.startsWith('/') ? 'unix://' : 'redis://';
  const url = path.includes('://') ? path : scheme + path;
  if (!secret) return url;
  const password = encodeURIComponent(secret);
  return url.replace(/^(\w+:\/\/)(?:([^:@/]*)(?::.*)?@)?/, `$1$2:${password}@`);
}

/**
 * Faz um cliente do Redis, ainda sem conectar, que se reconecta para sempre.
 * @param settings o endereço, a senha e para quem contar as quedas, uma vez cada
 * @returns o cliente
 */
function make_client({ redis, secret, log }: settings) {
  let told = '';
  const client = create_client({
    RESP: 2, // todo Redis o fala, e todo clone dele
    url: redis_url(redis, secret),
    pingInterval: silence.pingInterval,
    commandOptions: { timeout: 0 }, // o que espera pela conexão espera o quanto for
    socket: {
      socketTimeout: silence.socketTimeout,
      reconnectStrategy: (retries) => Math.min(50 * 2 ** retries, 2000),
    },
  });
  client.on('error', (error) => {
    const reason = error.message || error.code;
    if (reason !== told) log(`sem Redis: ${reason}`);
    told = reason;
  });
  client.on('ready', () => {
    if (told) log('o Redis voltou');
    told = '';
  });
  return client;
}

/**
 * Manda um comando, e de novo enquanto um Redis que acaba de subir o recusa porque ainda carrega os
 * dados: ele não o executou, e repeti-lo não dobra nada.
 * @param command manda o comando
 * @returns a resposta
 * @throws o que o Redis responder, ou a queda da conexão
 */
async function once_loaded<result>(command: () => Promise<result>): Promise<result> {
  for (;;) {
    try {
      return await command();
    } catch (error) {
      if (!(error as Error).message.startsWith('LOADING ')) throw error;
      await sleep(loading_ms);
    }
  }
}

/**
 * Reserva uma tarefa para este worker e a lê.
 * @param worker o worker
 * @param task_key a chave anunciada
 * @returns a tarefa; undefined se é de outro worker ou se o cliente já desistiu
 */
async function claim_task(worker: worker, task_key: string): Promise<task | undefined> {
  const { redis, settings } = worker;
  const claim = claim_prefix + task_key.slice(settings.prefix.length);
  const expiration = { type: 'EX', value: settings.claim_ttl } as const;
  const options = { condition: 'NX', expiration } as const;
  const claimed = await once_loaded(() => redis.set(claim, settings.name, options));
  if (claimed === null) return undefined;
  const text = await redis.get(task_key);
  if (text !== null) return JSON.parse(text);
  await redis.del(claim);
  return undefined;
}

/**
 * Confere, de tempos em tempos, se ainda há quem espere, e renova a reserva.
 * @param worker o worker
 * @param task a tarefa
 * @param controller aborta quando não há; e, abortado, encerra a conferência
 */
async function watch_task(worker: worker, task: task, controller: AbortController): Promise<void> {
  const { redis, settings } = worker;
  const { signal } = controller;
  while (!signal.aborted) {
    await sleep(watch_ms, undefined, { signal }).catch(() => {});
    const asked = [
      redis.exists(task.task_key),
      redis.expire(claim_prefix + task.uuid, settings.claim_ttl),
    ];
    const [exists] = await Promise.all(asked).catch(() => [1]); // sem resposta, nada se sabe
    if (!exists) controller.abort();
  }
}

/**
 * Dá a linha de um valor.
 * @param value o que o gerador entregou
 * @returns um texto como está, ou o JSON do resto
 * @throws TypeError se o valor não tem JSON
 */
function to_line(value: unknown): string {
  const line = typeof value === 'string' ? value : JSON.stringify(value);
  if (line === undefined) throw new TypeError(`a line cannot be made of ${typeof value}`);
  return line;
}

/**
 * Empurra uma linha e espera, se preciso, que o proxy leve as que se acumularam.
 * @param worker o worker
 * @param task a tarefa
 * @param line a linha
 * @param signal encerra a espera
 * @returns se ainda havia quem a esperasse
 */
async function push_line(worker: worker, task: task, line: string, signal?: AbortSignal) {
  const { redis, settings } = worker;
  const keys = [task.task_key, task.task_list];
  const push = () => redis.eval(push_script, { keys, arguments: [line] });
  let length = Number(await once_loaded(push));
  const is_wanted = length > 0;
  while (signal && length >= settings.backlog && !signal.aborted) {
    await sleep(backlog_ms);
    length = await redis.lLen(task.task_list);
  }
  return is_wanted;
}

/**
 * Empurra o que o gerador entrega, até o fim dele ou a saída do cliente.
 * @param worker o worker
 * @param task a tarefa
 * @param controller abortado se o cliente saiu
 * @throws o que o gerador lançar; o erro de uma linha que não tem JSON, ou que o Redis não aceitou
 */
async function answer_task(worker: worker, task: task, controller: AbortController): Promise<void> {
  const { signal } = controller;
  // sair do laço, por return ou por exceção, chama return() do gerador: os finally rodam
  for await (const value of worker.handler(task, signal)) {
    if (await push_line(worker, task, to_line(value), signal)) continue;
    controller.abort();
    return;
  }
}

/**
 * Termina uma tarefa: depois disso nada mais chega ao cliente.
 * @param worker o worker
 * @param task a tarefa
 * @param error mensagem da última linha; vazio se não houve erro
 * @throws ErrorReply se o Redis a recusa: sem ela e sem o DEL o cliente lê o erro de MAXTIME, mas
 *   só com o DEL uma resposta incompleta passaria por inteira
 */
async function finish_task(worker: worker, task: task, error = ''): Promise<void> {
  const say = () => push_line(worker, task, JSON.stringify({ error }));
  const finish = () => once_loaded(() => worker.redis.del(task.task_key));
  if (error) await say().catch(say); // o que se perdeu com a conexão pode ser repetido
  await finish().catch(finish);
}

/**
 * Atende uma tarefa, se ela for nossa.
 * @param worker o worker
 * @param job a tarefa em andamento
 * @param task_key a chave anunciada
 */
async function run_task(worker: worker, job: job, task_key: string): Promise<void> {
  const task = await claim_task(worker, task_key);
  if (!task) return;
  job.task = task;
  const { controller } = job;
  void watch_task(worker, task, controller);
  let [failure, ending] = ['', 'terminou'];
  await answer_task(worker, task, controller).catch((error) => {
    failure = error?.message || String(error);
    ending = `falhou: ${error?.stack ?? error}`;
  });
  const is_over = controller.signal.aborted;
  worker.settings.log(`${task.uuid} ${is_over ? 'interrompida' : ending}`);
  controller.abort();
  await finish_task(worker, task, is_over ? '' : failure);
}

/**
 * Começa as tarefas que esperam, enquanto há lugar; cada uma que termina chama as próximas.
 * @param worker o worker
 */
function start_waiting(worker: worker): void {
  const { jobs, waiting, settings } = worker;
  while (jobs.size < settings.tasks && waiting.length > 0) {
    const job: job = { controller: new AbortController() };
    const running = run_task(worker, job, waiting.shift() ?? '')
      .catch((error) => settings.log(`tarefa deixada: ${error.message}`))
      .finally(() => {
        jobs.delete(job);
        start_waiting(worker);
      });
    jobs.set(job, running);
  }
}

/**
 * Espera a ordem de parar: SIGTERM, SIGINT ou `stop`. Um segundo sinal mata na hora.
 * @param stop a ordem que não vem por sinal
 */
function stop_ordered(stop?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const obey = () => {
      process.off('SIGTERM', obey).off('SIGINT', obey);
      resolve();
    };
    process.on('SIGTERM', obey).on('SIGINT', obey);
    stop?.addEventListener('abort', obey);
    if (stop?.aborted) obey();
  });
}

/**
 * Dá às tarefas que rodam o tempo de terminar, e termina as que não o fizerem.
 * @param worker o worker, que já não ouve o canal
 */
async function finish_jobs(worker: worker): Promise<void> {
  const { jobs, waiting, settings } = worker;
  waiting.length = 0; // sem reserva, são dos outros workers
  const at_most = (ms: number) => sleep(ms, undefined, { ref: false });
  await Promise.race([Promise.allSettled(jobs.values()), at_most(settings.grace)]);
  const endings = [...jobs].map(async ([{ task, controller }, running]) => {
    const said = task && finish_task(worker, task, 'worker stopping');
    controller.abort();
    await Promise.allSettled([said, running]);
  });
  await Promise.race([Promise.all(endings), at_most(last_ms)]);
}

/**
 * Ouve o canal e atende as tarefas, até a ordem de parar.
 * @param handler quem responde: um gerador assíncrono
 * @param options o que muda dos padrões; os do Redis vêm das variáveis do proxy
 * @returns uma promessa cumprida quando tudo parou
 * @throws RangeError se `tasks` não é ao menos 1; ErrorReply se o Redis recusa a assinatura
 */
export async function serve(handler: handler, options: Partial<settings> = {}): Promise<void> {
  const settings = { ...default_settings, ...options };
  if (!(settings.tasks >= 1)) throw new RangeError(`tasks: ${settings.tasks}; ao menos 1`);
  const redis = make_client(settings);
  const listener = make_client({ ...settings, log: () => {} });
  const worker: worker = { redis, handler, settings, waiting: [], jobs: new Map() };
  const stopped = stop_ordered(settings.stop);
  for (const client of [redis, listener]) client.connect().catch(() => {}); // só se não há parada
  const listening = listener.subscribe(settings.channel, (task_key) => {
    if (task_key.startsWith(settings.prefix)) worker.waiting.push(task_key);
    start_waiting(worker);
  });
  try {
    const heard = listening.then(() => settings.log(`ouvindo ${settings.channel}`));
    await Promise.race([stopped, heard.then(() => stopped)]);
    listener.destroy();
    await finish_jobs(worker);
  } finally {
    for (const client of [redis, listener]) if (client.isOpen) client.destroy();
  }
}
