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
 *   Um texto vai como está, bytes também; o resto, em JSON. Por isso um texto pode ser tudo o que o
 *   contrato do proxy permite: a cabeça (é o que head() escreve), '' como sinal de vida num passo
 *   demorado. O gerador só continua com a linha já no Redis, e com menos de `backlog` por ler.
 *
 * OU UM PEDAÇO DE QUALQUER RESPOSTA HTTP
 *   Se o primeiro yield é o de raw(), os outros chegam ao cliente byte por byte: sse() escreve um
 *   evento inteiro, e quem já tem uma função de Request a Response usa adapters.ts.
 *
 * COMO UMA TAREFA TERMINA
 *   o gerador acabou    a chave da tarefa é apagada, e o proxy fecha a resposta
 *   o gerador lançou    antes disso, uma linha {"error": "<a mensagem>"}, que o cliente lê; depois
 *                       de raw(), HTTP ABORT, e o cliente vê a conexão cortada
 *   o cliente saiu      `signal` aborta, e o próximo yield não volta: rodam os finally
 *   SIGTERM ou SIGINT   nada novo começa; o que roda tem `grace` ms, e depois termina com erro
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
import { isIPv6 as is_ipv6 } from 'node:net';
import { hostname } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import * as redis_library from 'redis';

const { createClient: create_client } = redis_library;

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

/** As opções que o worker divide com o proxy, na forma de parseArgs e com os padrões dele. */
export const proxy_flags = {
  redis: { type: 'string', short: 'R', default: env.REDIS_SERVER || '127.0.0.1:6379/1' },
  secret: { type: 'string', short: 'S', default: env.REDIS_PASSWORD ?? '' },
  channel: { type: 'string', short: 'C', default: env.REDIS_CHANNEL || 'ndjson_jobs' },
  prefix: { type: 'string', short: 'X', default: env.REDIS_PREFIX || 'ndjson_task_' },
  'list-prefix': { type: 'string', short: 'L' }, // a tarefa diz qual é a sua lista
} as const;

const default_settings = {
  /** Nas formas de REDIS_SERVER: host:porta/banco, redis://, rediss://, /caminho.sock?db=1. */
  redis: proxy_flags.redis.default,
  /** Senha do Redis; vence a da URL. Vazia, a do arquivo de REDIS_PASSWORD_FILE, se houver. */
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
  /** Elementos que podem esperar pelo proxy numa lista. */
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

/** De que uma conexão precisa. */
type client_settings = Pick<settings, 'redis' | 'secret' | 'log'>;

/** O que vai numa lista. */
type element = string | Buffer;

/** Uma conexão com o Redis. */
type client = ReturnType<typeof make_client>;

/**
 * Uma tarefa em andamento. `task` falta até que a reserva seja nossa; `controller` aborta quando
 * ninguém espera mais, e `watch` quando ela acaba; `framing` falta até o primeiro elemento que diz
 * algo; `sizes` são os bytes dos últimos elementos empurrados.
 */
type job = {
  task?: task;
  controller: AbortController;
  watch: AbortController;
  framing?: 'lines' | 'raw';
  sizes: number[];
};

/**
 * O que as funções dividem. `waiting` são chaves anunciadas que ainda não têm lugar; `renewing`, a
 * troca em curso da conexão; `has_found`, se alguma tarefa já foi achada neste banco.
 */
type worker = {
  redis: client;
  handler: handler;
  settings: settings;
  where: string;
  waiting: string[];
  jobs: Map<job, Promise<void>>;
  renewing?: Promise<void> | undefined;
  has_found: boolean;
};

/** Começo da chave da reserva, fixo no contrato. */
const claim_prefix = 'ndjson_claim_';

/** O elemento que corta a conexão do cliente, para que ele saiba que falta o resto. */
const abort_element = 'HTTP ABORT';

/** De quanto em quanto tempo se pergunta se ainda há cliente, e se renova a reserva. */
const watch_ms = 1000;

/** De quanto em quanto tempo se olha uma lista cheia. */
const backlog_ms = 20;

/** Bytes que podem esperar pelo proxy numa lista, por menos que sejam os elementos. */
const max_backlog_bytes = 4 * 1024 * 1024;

/** De quanto em quanto tempo se repete o que um Redis que ainda carrega os dados recusou. */
const loading_ms = 100;

/** O menor tempo entre duas trocas de conexão, e por quanto tempo elas se tentam. */
const renewal = { pause_ms: 1000, limit_ms: 15_000 };

/** Respostas de um Redis que já não é o que atende: o comando não foi executado. */
const wrong_server = /(^|-)(READONLY|MOVED|CLUSTERDOWN|MASTERDOWN) /;

/** Respostas que não melhoram com o tempo: senha, usuário ou banco que não existem. */
const refused = /^(WRONGPASS|NOAUTH|NOPERM|ERR (AUTH|invalid|Client sent AUTH|DB index))/;

/** Quanto a parada espera, depois de `grace`, pelos geradores que ouvem o signal. */
const last_ms = 1000;

/** Uma conexão que não diz nada, nem responde ao PING, é trocada. */
const silence = { pingInterval: 10_000, socketTimeout: 30_000 };

/** Empurra só se alguém ainda espera: nada é escrito numa lista que ninguém mais apagaria. */
const push_script = `
  if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
  return redis.call('RPUSH', KEYS[2], unpack(ARGV))`;

/**
 * Escreve a cabeça da resposta, que deve ser o primeiro yield.
 * @param status de 200 a 599
 * @param headers cabeçalhos a mais; uma lista repete o cabeçalho
 * @returns o elemento: 'HTTP 404 {"X-Reason":"no such order"}'
 */
export function head(status: number, headers: Record<string, unknown> = {}): string {
  return `HTTP ${status} ${JSON.stringify(headers)}`;
}

/**
 * Escreve a cabeça de uma resposta que vai ao cliente byte por byte: o primeiro yield.
 * @param status de 200 a 599
 * @param headers os cabeçalhos; uma lista repete o cabeçalho
 * @returns o elemento: 'RAW 200 {"Content-Type":"text/event-stream"}'
 */
export function raw(status: number, headers: Record<string, unknown> = {}): string {
  return `RAW ${status} ${JSON.stringify(headers)}`;
}

/**
 * Escreve um evento inteiro (server-sent event), para uma resposta começada por raw().
 * @param data um texto, de uma ou mais linhas; o resto, em JSON
 * @param fields nome do evento, id, e ms que o cliente espera para reconectar
 * @returns por exemplo 'event: token\ndata: {"a":1}\n\n'
 * @throws TypeError se um campo tem quebra de linha, que começaria outro
 */
export function sse(
  data: unknown,
  fields: { event?: string; id?: string | number; retry?: number } = {},
): string {
  const lines = (typeof data === 'string' ? data : JSON.stringify(data)).split(/\r\n|\r|\n/);
  const names = ['event', 'id', 'retry'] as const;
  const given = names.filter((name) => fields[name] !== undefined);
  const broken = given.find((name) => /[\r\n]/.test(String(fields[name])));
  if (broken) throw new TypeError(`sse: a line break in ${broken}`);
  const before = given.map((name) => `${name}: ${fields[name]}\n`);
  return `${before.join('')}${lines.map((line) => `data: ${line}\n`).join('')}\n`;
}

/**
 * Separa um endereço do Redis, como o proxy.
 * @param server uma das formas de REDIS_SERVER
 * @param secret senha; se não for vazia, vence a da URL
 * @returns o que createClient pede; e `where`, o endereço sem senha: "127.0.0.1:6379/1"
 * @throws Error com as formas aceitas
 */
export function redis_place(server: string, secret: string) {
  const userinfo = '(?:(?<username>[^:@/]*)(?::(?<password>.*))?@)?';
  const place = '(?<host>\\[[0-9a-f:.]+\\]|[\\w.-]+)(?::(?<port>\\d+))?(?:/(?<database>\\d*))?';
  const forms = [
    new RegExp(`^(?:(?<scheme>rediss?)://${userinfo})?${place}$`, 'i'),
    new RegExp(`^(?:unix:(?://${userinfo})?)?(?<path>/[^?]*[^?/])(?:\\?db=(?<database>\\d+))?$`),
  ];
  const parts = forms.map((form) => form.exec(server)?.groups).find(Boolean);
  const host = parts?.host?.replace(/^\[(.*)\]$/, '$1') ?? '';
  const port = Number(parts?.port ?? 6379);
  const is_bad_host = !parts || (parts.host !== host && !parts.path && !is_ipv6(host));
  if (is_bad_host || port < 1 || port > 65_535) {
    throw new Error(
      'redis: aceito host:porta/banco, redis://, rediss:// ou /caminho.sock?db=1, porta até 65535',
    );
  }
  const database = Number(parts.database || 0);
  const tls = parts.scheme?.toLowerCase() === 'rediss';
  const { path = '' } = parts;
  const shown = host.includes(':') ? `[${host}]` : host;
  return {
    where: path ? `unix:${path}?db=${database}` : `${shown}:${port}/${database}`,
    socket: path ? { path } : tls ? { host, port, tls: true as const } : { host, port },
    database,
    ...(parts.username && { username: decodeURIComponent(parts.username) }),
    password: secret || decodeURIComponent(parts.password ?? ''),
  };
}

/**
 * Faz um cliente do Redis, ainda sem conectar, que se reconecta para sempre, salvo se a primeira
 * conexão é recusada por algo que o tempo não muda.
 * @param settings o endereço, a senha e para quem contar as quedas, uma vez cada
 * @returns o cliente
 */
export function make_client({ redis, secret, log }: client_settings) {
  let [told, was_ready] = ['', false];
  const { where: _, socket, ...identity } = redis_place(redis, secret);
  const client = create_client({
    RESP: 2, // todo Redis o fala, e todo clone dele
    ...identity,
    pingInterval: silence.pingInterval,
    commandOptions: { timeout: 0 }, // o que espera pela conexão espera o quanto for
    socket: {
      ...socket,
      socketTimeout: silence.socketTimeout,
      reconnectStrategy: (retries, cause) =>
        !was_ready && refused.test(cause.message) ? cause : Math.min(50 * 2 ** retries, 2000),
    },
  });
  client.on('error', (error) => {
    const reason = error.message || error.code;
    if (reason !== told && (was_ready || !refused.test(reason))) log(`sem Redis: ${reason}`);
    told = reason;
  });
  client.on('ready', () => {
    was_ready = true;
    if (told) log('o Redis voltou');
    told = '';
  });
  return client;
}

/**
 * Troca a conexão por outra, para a qual o nome do servidor é resolvido de novo. O canal fica: um
 * Redis rebaixado continua a repetir o que se publica no que tomou o lugar dele.
 * @param worker o worker
 * @returns uma promessa cumprida com a conexão nova já pronta, e não antes de um tempo
 */
function renew_client(worker: worker): Promise<void> {
  const renew = async () => {
    const old = worker.redis;
    worker.settings.log('este Redis não aceita escritas: outra conexão');
    worker.redis = make_client(worker.settings);
    await Promise.all([worker.redis.connect(), sleep(renewal.pause_ms)]);
    old.close().catch(() => {}); // o que ele ainda responde, responde
  };
  worker.renewing ??= renew().finally(() => {
    worker.renewing = undefined;
  });
  return worker.renewing;
}

/**
 * Manda um comando, e de novo enquanto o Redis o recusa sem o executar: porque ainda carrega os
 * dados, ou porque já não é ele que atende. Repeti-lo não dobra nada.
 * @param worker o worker
 * @param command manda o comando pela conexão que recebe
 * @returns a resposta
 * @throws o que o Redis responder, ou a queda da conexão
 */
async function insist<result>(
  worker: worker,
  command: (redis: client) => Promise<result>,
): Promise<result> {
  const deadline = performance.now() + renewal.limit_ms;
  for (;;) {
    try {
      return await command(worker.redis);
    } catch (error) {
      const { message } = error as Error;
      if (message.startsWith('LOADING ')) await sleep(loading_ms);
      else if (!wrong_server.test(message) || performance.now() > deadline) throw error;
      else await renew_client(worker);
    }
  }
}

/**
 * Entende o JSON de uma tarefa.
 * @param text o JSON
 * @returns a tarefa
 * @throws Error se não é JSON, ou se falta nela o que o worker usa
 */
function parse_task(text: string): task {
  const task = JSON.parse(text);
  const names = ['uuid', 'task_key', 'task_list'];
  const missing = names.find((name) => typeof task?.[name] !== 'string');
  if (missing) throw new Error(`a tarefa não tem ${missing}`);
  return task;
}

/**
 * Reserva uma tarefa para este worker e a lê. Enquanto nenhuma foi achada, a que falta é notícia:
 * o canal é comum a todos os bancos de um Redis, e as chaves não.
 * @param worker o worker
 * @param task_key a chave anunciada
 * @returns a tarefa; undefined se é de outro worker ou se o cliente já desistiu
 */
async function claim_task(worker: worker, task_key: string): Promise<task | undefined> {
  const { settings } = worker;
  const claim = claim_prefix + task_key.slice(settings.prefix.length);
  const expiration = { type: 'EX', value: settings.claim_ttl } as const;
  const options = { condition: 'NX', expiration } as const;
  const claimed = await insist(worker, (redis) => redis.set(claim, settings.name, options));
  if (claimed === null) return undefined;
  const text = await insist(worker, (redis) => redis.get(task_key));
  if (text === null) {
    if (!worker.has_found) settings.log(`${task_key} não está em ${worker.where}: é outro banco?`);
    await insist(worker, (redis) => redis.del(claim));
    return undefined;
  }
  worker.has_found = true;
  return parse_task(text);
}

/**
 * Confere, de tempos em tempos, se ainda há quem espere, e renova a reserva.
 * @param worker o worker
 * @param task a tarefa
 * @param job a tarefa em andamento
 */
async function watch_task(worker: worker, task: task, job: job): Promise<void> {
  const { signal } = job.watch;
  for (;;) {
    await sleep(watch_ms, undefined, { signal }).catch(() => {});
    if (signal.aborted) return;
    const asked = [
      worker.redis.exists(task.task_key),
      worker.redis.expire(claim_prefix + task.uuid, worker.settings.claim_ttl),
    ];
    const [exists] = await Promise.all(asked).catch(() => [1]); // sem resposta, nada se sabe
    if (!exists) job.controller.abort();
  }
}

/**
 * Dá o elemento de um valor.
 * @param value o que o gerador entregou
 * @returns textos e bytes como estão, ou o JSON do resto
 * @throws TypeError se o valor não tem JSON
 */
function to_element(value: unknown): element {
  if (typeof value === 'string') return value;
  if (value instanceof Uint8Array) {
    return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
  }
  const line = JSON.stringify(value);
  if (line === undefined) throw new TypeError(`a line cannot be made of ${typeof value}`);
  return line;
}

/**
 * Empurra um elemento. O primeiro que diz algo decide se a resposta é de linhas ou de bytes; nesta,
 * um pedaço que por acaso é o elemento que corta a conexão vai em dois.
 * @param worker o worker
 * @param job a tarefa em andamento
 * @param value o elemento
 * @returns quantos esperam pelo proxy; 0 se ninguém espera mais pela resposta
 */
async function push_element(worker: worker, job: job, value: element): Promise<number> {
  const { task, sizes } = job;
  if (!task) return 0;
  if (value.length > 0) {
    job.framing ??= typeof value === 'string' && /^\s*RAW\b/.test(value) ? 'raw' : 'lines';
  }
  const is_split = job.framing === 'raw' && value.toString() === abort_element;
  const parts = is_split ? ['HTTP', ' ABORT'] : [value];
  const keys = [task.task_key, task.task_list];
  const push = (redis: client) => redis.eval(push_script, { keys, arguments: parts as string[] });
  const length = Number(await insist(worker, push));
  sizes.push(...parts.map((part) => part.length));
  return length;
}

/**
 * Espera que o proxy leve o que se acumulou numa lista, se for muito.
 * @param worker o worker
 * @param job a tarefa em andamento
 * @param length quantos elementos ela tem
 */
async function await_room(worker: worker, job: job, length: number): Promise<void> {
  const { sizes, controller, task } = job;
  for (let left = length; task && !controller.signal.aborted; ) {
    sizes.splice(0, sizes.length - left);
    const bytes = sizes.reduce((sum, size) => sum + size, 0);
    if (left < worker.settings.backlog && bytes < max_backlog_bytes) return;
    await sleep(backlog_ms);
    left = await insist(worker, (redis) => redis.lLen(task.task_list));
  }
}

/**
 * Dá os valores de uma resposta. Quem devolve em vez de entregar ouve isso: seria uma resposta
 * vazia, e pareceria inteira.
 * @param answer o que a função do worker deu
 * @returns os valores, um a um
 * @throws TypeError se algo foi devolvido; o que o gerador lançar
 */
async function* values_of(answer: AsyncIterable<unknown>): AsyncGenerator<unknown> {
  const told = 'the handler must yield its answer, not return it';
  const is_iterable = answer !== null && typeof answer === 'object';
  if (!is_iterable || !(Symbol.asyncIterator in answer || Symbol.iterator in answer)) {
    throw new TypeError(told);
  }
  const returned: unknown = yield* answer;
  if (returned !== undefined) throw new TypeError(told);
}

/**
 * Empurra o que o gerador entrega, até o fim dele ou a saída do cliente.
 * @param worker o worker
 * @param task a tarefa
 * @param job a tarefa em andamento
 * @throws o que o gerador lançar; o erro de uma linha que não tem JSON, ou que o Redis não aceitou
 */
async function answer_task(worker: worker, task: task, job: job): Promise<void> {
  const { controller } = job;
  // sair do laço, por return ou por exceção, chama return() do gerador: os finally rodam
  for await (const value of values_of(await worker.handler(task, controller.signal))) {
    const length = await push_element(worker, job, to_element(value));
    if (length > 0) await await_room(worker, job, length);
    else return controller.abort();
  }
}

/**
 * Termina uma tarefa: depois disso nada mais chega ao cliente.
 * @param worker o worker
 * @param task a tarefa
 * @param job a tarefa em andamento
 * @param error mensagem da última linha; vazio se não houve erro
 * @throws ErrorReply se o Redis a recusa: sem ela e sem o DEL o cliente lê o erro de MAXTIME, mas
 *   só com o DEL uma resposta incompleta passaria por inteira
 */
async function finish_task(worker: worker, task: task, job: job, error = ''): Promise<void> {
  const keys = [task.task_key, task.task_list];
  const last = job.framing === 'raw' ? abort_element : JSON.stringify({ error });
  const say = () => insist(worker, (redis) => redis.eval(push_script, { keys, arguments: [last] }));
  const finish = () => insist(worker, (redis) => redis.del(task.task_key));
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
  void watch_task(worker, task, job);
  let [failure, ending] = ['', 'terminou'];
  await answer_task(worker, task, job).catch((error) => {
    failure = error?.message || String(error);
    ending = `falhou: ${error?.stack ?? error}`;
  });
  const is_over = job.controller.signal.aborted;
  worker.settings.log(`${task.uuid} ${is_over ? 'interrompida' : ending}`);
  job.watch.abort();
  await finish_task(worker, task, job, is_over ? '' : failure);
}

/**
 * Começa as tarefas que esperam, enquanto há lugar; cada uma que termina chama as próximas.
 * @param worker o worker
 */
function start_waiting(worker: worker): void {
  const { jobs, waiting, settings } = worker;
  while (jobs.size < settings.tasks && waiting.length > 0) {
    const job: job = { controller: new AbortController(), watch: new AbortController(), sizes: [] };
    const running = run_task(worker, job, waiting.shift() ?? '')
      .catch((error) => settings.log(`tarefa deixada: ${error.message}`))
      .finally(() => {
        job.watch.abort();
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
  const endings = [...jobs].map(async ([job, running]) => {
    const said = job.task && finish_task(worker, job.task, job, 'worker stopping');
    job.controller.abort();
    job.watch.abort();
    await Promise.allSettled([said, running]);
  });
  await Promise.race([Promise.all(endings), at_most(last_ms)]);
}

/**
 * Conecta, ouve o canal e atende as tarefas, até a ordem de parar.
 * @param handler quem responde
 * @param settings todas as configurações
 * @throws Error se o endereço, a senha, o banco ou o canal não servem
 */
async function run_worker(handler: handler, settings: settings): Promise<void> {
  if (!('DEFAULT_RESP' in redis_library))
    throw new Error('o pacote redis deve ser o 6: npm install redis@6');
  const { where } = redis_place(settings.redis, settings.secret);
  const redis = make_client(settings);
  const listener = make_client({ ...settings, log: () => {} });
  const worker: worker = {
    ...{ redis, handler, settings, where },
    ...{ waiting: [], jobs: new Map(), has_found: false },
  };
  const stopped = stop_ordered(settings.stop);
  const listen = async () => {
    await Promise.all([redis.connect(), listener.connect()]);
    await listener.subscribe(settings.channel, (task_key) => {
      if (task_key.startsWith(settings.prefix)) worker.waiting.push(task_key);
      start_waiting(worker);
    });
    settings.log(`ouvindo ${settings.channel} em ${where}`);
  };
  const listening = listen().catch((error) => {
    throw new Error(`${where}: ${error.message}`);
  });
  listening.catch(() => {}); // com a ordem de parar, ninguém mais espera por ela
  try {
    await Promise.race([stopped, listening.then(() => stopped)]);
    listener.destroy();
    await finish_jobs(worker);
  } finally {
    for (const client of [worker.redis, redis, listener]) if (client.isOpen) client.destroy();
  }
}

/**
 * Lê a senha do ambiente, como o proxy.
 * @returns a do arquivo de REDIS_PASSWORD_FILE, ou vazio
 * @throws Error se o arquivo não se lê
 */
function read_secret(): string {
  if (!env.REDIS_PASSWORD_FILE) return '';
  return read_file(env.REDIS_PASSWORD_FILE, 'utf8').replace(/\r?\n$/, '');
}

/**
 * Ouve o canal e atende as tarefas, até a ordem de parar. Um endereço, uma senha ou um banco que
 * não servem terminam o worker com uma linha e o código de saída 1.
 * @param handler quem responde: um gerador assíncrono
 * @param options o que muda dos padrões; os do Redis vêm das variáveis do proxy
 * @returns uma promessa cumprida quando tudo parou
 * @throws RangeError se `tasks` não é ao menos 1
 */
export async function serve(handler: handler, options: Partial<settings> = {}): Promise<void> {
  const settings = { ...default_settings, ...options };
  if (!(settings.tasks >= 1)) throw new RangeError(`tasks: ${settings.tasks}; ao menos 1`);
  try {
    const secret = settings.secret || read_secret();
    await run_worker(handler, { ...settings, secret });
  } catch (error) {
    settings.log((error as Error).message);
    process.exitCode = 1;
  }
}
