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
 * COM UM STREAM (`stream`, o REDIS_STREAM do proxy)
 *   As tarefas vêm dele, e não do canal: esperam enquanto nenhum worker está de pé. A de um worker
 *   que sumiu passa, depois de `takeover` segundos, a outro do mesmo `group`: desde o começo se ele
 *   nada tinha empurrado; se tinha, o cliente lê um erro (depois de raw(), a conexão é cortada). O
 *   que só estava parado e volta tarde demais nada mais empurra.
 *
 * QUANDO O REDIS CAI
 *   As conexões se refazem sozinhas, e o que ainda não saiu espera por elas. De uma linha que
 *   estava a caminho não se sabe se chegou: a tarefa termina com um erro, e não com uma linha
 *   repetida ou faltando. O que foi anunciado enquanto isso não é anunciado de novo.
 */

import { randomUUID as random_uuid } from 'node:crypto';
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
  stream: { type: 'string', default: env.REDIS_STREAM ?? '' },
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
  /** O stream de onde vêm as tarefas, em vez do canal; vazio, vêm do canal. */
  stream: proxy_flags.stream.default,
  /** O grupo que as divide. */
  group: 'ndjson_workers',
  /** Segundos sem sinal de vida até que outro worker do grupo tome a tarefa. */
  takeover: 15,
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
 * Uma tarefa por atender: a chave; de um stream, também o id e, se um worker que sumiu já a tinha,
 * a reserva que deixou, ou vazio.
 */
type call = { task_key: string; entry?: string; left?: string };

/**
 * Uma tarefa em andamento. `task` falta até que a reserva seja nossa; `controller` aborta quando
 * ninguém espera mais, e `watch` quando ela acaba; `framing` falta até o primeiro elemento que diz
 * algo; `sizes` são os bytes dos últimos elementos empurrados; `is_left`, se é a parada que a
 * acaba.
 */
type job = {
  call: call;
  task?: task;
  controller: AbortController;
  watch: AbortController;
  framing?: 'lines' | 'raw';
  sizes: number[];
  is_left: boolean;
};

/**
 * O que as funções dividem. `listener` ouve o canal, ou espera pelo stream; `holder` é o que a
 * reserva diz, neste último caso só deste processo; `waiting` são as tarefas que ainda não têm
 * lugar; `tell_room` avisa que há um; `reading` é a leitura do stream; `renewing`, a troca em curso
 * da conexão; `has_found`, se alguma tarefa já foi achada neste banco.
 */
type worker = {
  redis: client;
  listener: client;
  handler: handler;
  settings: settings;
  where: string;
  holder: string;
  waiting: call[];
  tell_room: () => void;
  reading?: Promise<void>;
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

/** Quanto se espera por uma tarefa do stream, até olhar se veio a ordem de parar. */
const read_ms = 500;

/** Depois de algo que o stream recusou. */
const refused_ms = 1000;

/*
 * Os scripts de uma tarefa. As chaves são a dela, a da lista, a da reserva e, se ela veio de um, o
 * stream; os argumentos, a reserva deste worker, a vida dela em segundos e, com um stream, o grupo,
 * o consumidor e o id. Com um stream só quem tem a reserva escreve: quem esteve parado pode tê-la
 * perdido. Ela dura o que a tarefa durar, e acaba no que já foi empurrado: nada, "lines" ou "raw".
 */
const script_start = `
  local is_queued = #KEYS == 4
  local holder = is_queued and redis.call('GET', KEYS[3])
  local is_wanted = redis.call('EXISTS', KEYS[1]) == 1
  local life = ARGV[2]
  if is_queued then life = math.max(life, redis.call('TTL', KEYS[1]) + 1) end
  local is_ours = not is_queued or (holder and holder:sub(1, #ARGV[1]) == ARGV[1])`;

/** Deixa o stream sem a tarefa, que acabou. */
const script_forget = `
  if is_queued then
    redis.pcall('XACK', KEYS[4], ARGV[3], ARGV[5])
    redis.call('XDEL', KEYS[4], ARGV[5])
  end`;

/**
 * Reserva uma tarefa e a lê: devolve o JSON, 0 se ela não existe, 1 se é de outro. A que um worker
 * que sumiu já tinha (o sexto argumento) vem com a reserva dele: se ela ainda é esta, e do grupo, a
 * tarefa é de quem a tomar; a de um worker de outra espécie dura enquanto a tarefa durar.
 */
const claim_script = `${script_start}
  local is_left = ARGV[6] == 'left'
  holder = redis.call('GET', KEYS[3])
  if not is_wanted then ${script_forget}
    redis.call('DEL', KEYS[3]) -- uma escrita: um Redis rebaixado, que não tem a tarefa, a recusa
    return 0
  end
  if is_left and holder and holder:sub(1, #ARGV[3] + 1) ~= ARGV[3] .. ' ' then
    redis.call('EXPIRE', KEYS[3], life)
    return 1
  end
  if (holder or '') ~= ARGV[7] then return 1 end
  redis.call('SET', KEYS[3], ARGV[1], 'EX', life)
  return redis.call('GET', KEYS[1])`;

/** Empurra só se alguém ainda espera: nada é escrito numa lista que ninguém mais apagaria. */
const push_script = `${script_start}
  if not is_wanted or not is_ours then return 0 end
  -- depois de outra escrita, um Redis sem memória já não a recusaria
  local length = redis.call('RPUSH', KEYS[2], unpack(ARGV, 7))
  redis.call('EXPIRE', KEYS[3], life)
  if is_queued then redis.call('SET', KEYS[3], ARGV[1] .. ARGV[6], 'KEEPTTL') end
  return length`;

/** Dá sinal de vida: devolve se alguém ainda espera pela resposta deste worker. */
const renew_script = `${script_start}
  if not is_wanted or not is_ours then return 0 end
  redis.call('EXPIRE', KEYS[3], life)
  if is_queued then redis.pcall('XCLAIM', KEYS[4], ARGV[3], ARGV[4], 0, ARGV[5], 'JUSTID') end
  return 1`;

/** Termina a tarefa, salvo se outro worker a tomou. */
const finish_script = `${script_start}
  if is_wanted and not is_ours then return 0 end
  ${script_forget}
  return redis.call('DEL', KEYS[1])`;

/** Devolve ao grupo, se nada foi empurrado, uma tarefa que outro worker pode já tomar. */
const release_script = `${script_start}
  if holder == ARGV[1] then redis.call('SET', KEYS[3], ARGV[3] .. ' ', 'EX', life) end
  if holder and holder ~= ARGV[1] then return 0 end
  local long_ago = 86400000
  redis.pcall('XCLAIM', KEYS[4], ARGV[3], ARGV[4], 0, ARGV[5], 'IDLE', long_ago, 'JUSTID')
  return 1`;

/**
 * Toma as tarefas cujo worker não dá sinal, com a reserva de cada uma, e acaba com as que já não
 * estão no stream. Um XAUTOCLAIM não serve: antes do Redis 7 não diz o id destas.
 */
const left_script = `
  local found = {}
  local idle = {'IDLE', ARGV[3], '-', '+', ARGV[4]}
  for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], unpack(idle))) do
    local id = row[1]
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'JUSTID')
    local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
    if entry then
      local task_key = entry[2][2]
      local holder = redis.call('GET', ARGV[5] .. task_key:sub(ARGV[6] + 1))
      table.insert(found, {id, task_key, holder or ''})
    else
      redis.call('XACK', KEYS[1], ARGV[1], id)
    end
  end
  return found`;

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
    const { redis: old, listener, settings } = worker;
    settings.log('este Redis não aceita escritas: outra conexão');
    worker.redis = make_client(settings);
    if (settings.stream) worker.listener = make_client({ ...settings, log: () => {} });
    const opening = [worker.redis, worker.listener].filter((client) => !client.isOpen);
    await Promise.all([...opening.map((client) => client.connect()), sleep(renewal.pause_ms)]);
    old.close().catch(() => {}); // o que ele ainda responde, responde
    if (listener !== worker.listener) listener.destroy();
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
 * Roda um script de uma tarefa.
 * @param worker o worker
 * @param script o script
 * @param call a tarefa
 * @param rest os argumentos além dos que todos recebem
 * @param task a tarefa, se já lida
 * @returns o que ele devolve
 * @throws o que o Redis responder, ou a queda da conexão
 */
function run_script(
  worker: worker,
  script: string,
  call: call,
  rest: element[] = [],
  task?: task,
): Promise<unknown> {
  const { stream, group, name, prefix, claim_ttl } = worker.settings;
  const { task_key, entry } = call;
  const claim = claim_prefix + task_key.slice(prefix.length);
  const keys = [task_key, task?.task_list ?? claim, claim, ...(entry ? [stream] : [])];
  const given = [worker.holder, String(claim_ttl), group, name, entry ?? '', ...rest] as string[];
  return insist(worker, (redis) => redis.eval(script, { keys, arguments: given }));
}

/**
 * Reserva uma tarefa para este worker e a lê. Enquanto nenhuma foi achada, a que falta é notícia:
 * o canal é comum a todos os bancos de um Redis, e as chaves não.
 * @param worker o worker
 * @param call a tarefa
 * @returns a tarefa; undefined se é de outro worker ou se o cliente já desistiu
 */
async function claim_task(worker: worker, call: call): Promise<task | undefined> {
  const { task_key, entry, left = '' } = call;
  const { settings, where, has_found } = worker;
  const found = await run_script(worker, claim_script, call, [
    call.left === undefined ? 'new' : 'left',
    left,
  ]);
  if (found === 0 && !has_found && !entry)
    settings.log(`${task_key} não está em ${where}: é outro banco?`);
  if (typeof found === 'number') return undefined;
  worker.has_found = true;
  return parse_task(String(found));
}

/**
 * Confere, de tempos em tempos, se ainda há quem espere, e dá sinal de vida.
 * @param worker o worker
 * @param job a tarefa em andamento
 */
async function watch_task(worker: worker, job: job): Promise<void> {
  const { signal } = job.watch;
  for (;;) {
    await sleep(watch_ms, undefined, { signal }).catch(() => {});
    if (signal.aborted) return;
    const renewed = run_script(worker, renew_script, job.call);
    const is_wanted = await renewed.catch(() => 1); // sem resposta, nada se sabe
    if (is_wanted === 0) job.controller.abort();
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
  const { task, sizes, controller } = job;
  if (!task || controller.signal.aborted) return 0;
  if (value.length > 0) {
    job.framing ??= typeof value === 'string' && /^\s*RAW\b/.test(value) ? 'raw' : 'lines';
  }
  const is_split = job.framing === 'raw' && value.toString() === abort_element;
  const parts = is_split ? ['HTTP', ' ABORT'] : [value];
  const given = [job.framing ?? 'lines', ...parts];
  const length = Number(await run_script(worker, push_script, job.call, given, task));
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
  const { call, framing = 'lines' } = job;
  const last = framing === 'raw' ? abort_element : JSON.stringify({ error });
  const say = () => run_script(worker, push_script, call, [framing, last], task);
  const finish = () => run_script(worker, finish_script, call);
  if (error) await say().catch(say); // o que se perdeu com a conexão pode ser repetido
  await finish().catch(finish);
}

/**
 * Atende uma tarefa, se ela for nossa. Da que um worker que sumiu já respondia só se diz o fim: o
 * que ele empurrou não se repete.
 * @param worker o worker
 * @param job a tarefa em andamento
 */
async function run_task(worker: worker, job: job): Promise<void> {
  const task = await claim_task(worker, job.call);
  if (!task) return;
  const { log } = worker.settings;
  const framing = job.call.left?.split(' ').at(-1); // o que o outro deixou pela metade
  if (framing) {
    job.framing = framing as 'lines' | 'raw';
    log(`${task.uuid} ficou pela metade: o worker dela sumiu`);
    await finish_task(worker, task, job, 'worker lost');
    return;
  }
  job.task = task;
  void watch_task(worker, job);
  let [failure, ending] = ['', 'terminou'];
  await answer_task(worker, task, job).catch((error) => {
    failure = error?.message || String(error);
    ending = `falhou: ${error?.stack ?? error}`;
  });
  const is_over = job.controller.signal.aborted;
  log(`${task.uuid} ${is_over ? 'interrompida' : ending}`);
  job.watch.abort();
  // interrompida pela parada, só ela a acaba, e com erro: acabada aqui, a parte passaria pelo todo
  if (!job.is_left) await finish_task(worker, task, job, is_over ? '' : failure);
}

/**
 * Começa as tarefas que esperam, enquanto há lugar; cada uma que termina chama as próximas.
 * @param worker o worker
 */
function start_waiting(worker: worker): void {
  const { jobs, waiting, settings } = worker;
  while (jobs.size < settings.tasks) {
    const call = waiting.shift();
    if (!call) return;
    const [controller, watch] = [new AbortController(), new AbortController()];
    const job: job = { call, controller, watch, sizes: [], is_left: false };
    const running = run_task(worker, job)
      .catch((error) => settings.log(`tarefa deixada: ${error.message}`))
      .finally(() => {
        job.watch.abort();
        jobs.delete(job);
        start_waiting(worker);
        worker.tell_room();
      });
    jobs.set(job, running);
  }
}

/**
 * Devolve ao grupo uma tarefa de que nada foi empurrado.
 * @param worker o worker
 * @param call a tarefa
 * @returns false se não é de um stream, ou se o cliente já leu parte da resposta
 */
async function release_task(worker: worker, call: call): Promise<boolean> {
  return call.entry !== undefined && (await run_script(worker, release_script, call)) === 1;
}

/** Uma entrada do stream. */
type entry = { id: string; message: Record<string, string> };

/**
 * Toma do stream tarefas novas ou, quando é hora, as de workers que sumiram.
 * @param worker o worker
 * @param room quantas
 * @param is_look se são estas
 * @returns as tarefas
 * @throws o que o Redis responder, ou a queda da conexão
 */
async function take_entries(worker: worker, room: number, is_look: boolean): Promise<call[]> {
  const { stream, group, name, takeover, prefix } = worker.settings;
  if (is_look) {
    const limits = [Math.round(takeover * 1000), room].map(String);
    const given = [group, name, ...limits, claim_prefix, String(prefix.length)];
    const look = (redis: client) => redis.eval(left_script, { keys: [stream], arguments: given });
    const found = (await insist(worker, look)) as [string, string, string][];
    const own = new Set([...worker.jobs.keys()].map(({ call }) => call.entry));
    const others = found.filter(([entry]) => !own.has(entry)); // das nossas só nos atrasámos
    return others.map(([entry, task_key, left]) => ({ task_key, entry, left }));
  }
  const options = { COUNT: room, BLOCK: read_ms };
  const read = () => worker.listener.xReadGroup(group, name, { key: stream, id: '>' }, options);
  const found = (await insist(worker, read)) as { messages: entry[] }[] | null;
  const entries = found?.flatMap(({ messages }) => messages) ?? [];
  return entries.map(({ id, message }) => ({ task_key: message.task_key ?? '', entry: id }));
}

/**
 * Faz o grupo, a partir do começo do stream, e o stream, se não existem.
 * @param worker o worker
 * @throws o que o Redis responder, salvo que o grupo já existe
 */
async function make_group(worker: worker): Promise<void> {
  const { stream, group } = worker.settings;
  const make = () => worker.redis.xGroupCreate(stream, group, '0', { MKSTREAM: true });
  await insist(worker, make).catch((error) => {
    if (!error.message.startsWith('BUSYGROUP ')) throw error;
  });
}

/**
 * Atende as tarefas do stream, até a ordem de parar. Se o Redis esteve calado, os outros também não
 * deram sinal: o que se achou deles é deixado, e antes de tomar o que for espera-se que o deem.
 * @param worker o worker
 * @param stop a ordem
 */
async function read_stream(worker: worker, stop: AbortSignal): Promise<void> {
  const { settings, jobs, waiting } = worker;
  const takeover_ms = settings.takeover * 1000;
  let [look_at, heard_at] = [0, performance.now()];
  while (!stop.aborted) {
    const room = settings.tasks - jobs.size;
    const is_look = performance.now() >= look_at;
    try {
      if (room === 0) {
        await new Promise<void>((resolve) => Object.assign(worker, { tell_room: resolve }));
        heard_at = performance.now();
        continue;
      }
      const calls = await take_entries(worker, room, is_look);
      const was_silent = performance.now() - heard_at > takeover_ms / 2;
      heard_at = performance.now();
      if (was_silent) look_at = heard_at + takeover_ms;
      else if (is_look && calls.length === 0) look_at = heard_at + takeover_ms / 3;
      if (was_silent && is_look) continue;
      if (stop.aborted) await Promise.all(calls.map((call) => release_task(worker, call)));
      else waiting.push(...calls.filter(({ task_key }) => task_key.startsWith(settings.prefix)));
      start_waiting(worker);
    } catch (error) {
      const { message } = error as Error;
      if (stop.aborted) return;
      const repair = async () => {
        if (!message.startsWith('NOGROUP ')) throw error;
        await make_group(worker);
      };
      await repair().catch(({ message }) => {
        settings.log(`stream ${settings.stream}: ${message}`);
        return sleep(refused_ms);
      });
    }
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
 * Dá às tarefas que rodam o tempo de terminar. Das que não o fizerem, as de um stream de que nada
 * foi empurrado passam a outro worker; as demais terminam com erro.
 * @param worker o worker, que já não toma tarefas
 */
async function finish_jobs(worker: worker): Promise<void> {
  const { jobs, waiting, settings } = worker;
  waiting.length = 0; // sem reserva, são dos outros workers
  const at_most = (ms: number) => sleep(ms, undefined, { ref: false });
  await Promise.race([Promise.allSettled(jobs.values()), at_most(settings.grace)]);
  const leave = async (job: job) => {
    if (!job.task || (await release_task(worker, job.call))) return;
    await finish_task(worker, job.task, job, 'worker stopping');
  };
  const endings = [...jobs].map(async ([job, running]) => {
    job.is_left = true;
    const left = leave(job);
    job.controller.abort();
    job.watch.abort();
    await Promise.allSettled([left, running]);
  });
  await Promise.race([Promise.all(endings), at_most(last_ms)]);
}

/**
 * Ouve o canal, ou espera pelo stream, e atende as tarefas.
 * @param worker o worker, ainda por conectar
 * @param stop a ordem de parar
 * @returns uma promessa cumprida quando ele já ouve
 * @throws Error se o endereço, a senha, o banco, o canal ou o stream não servem
 */
async function listen(worker: worker, stop: AbortSignal): Promise<void> {
  const { redis, listener, settings, where } = worker;
  const { stream, channel, prefix, log } = settings;
  try {
    await Promise.all([redis.connect(), listener.connect()]);
    if (stream) await make_group(worker);
    else {
      await listener.subscribe(channel, (task_key) => {
        if (task_key.startsWith(prefix)) worker.waiting.push({ task_key });
        start_waiting(worker);
      });
    }
  } catch (error) {
    throw new Error(`${where}: ${(error as Error).message}`);
  }
  log(`ouvindo ${stream || channel} em ${where}`);
  if (stream) worker.reading = read_stream(worker, stop);
}

/**
 * Conecta, ouve o canal e atende as tarefas, até a ordem de parar.
 * @param handler quem responde
 * @param settings todas as configurações
 * @throws Error se o endereço, a senha, o banco, o canal ou o stream não servem
 */
async function run_worker(handler: handler, settings: settings): Promise<void> {
  if (!('DEFAULT_RESP' in redis_library))
    throw new Error('o pacote redis deve ser o 6: npm install redis@6');
  const { where } = redis_place(settings.redis, settings.secret);
  const { stream, group, name } = settings;
  const redis = make_client(settings);
  const listener = make_client({ ...settings, log: () => {} });
  const worker: worker = {
    ...{ redis, listener, handler, settings, where },
    holder: stream ? `${group} ${name} ${random_uuid()} ` : name,
    ...{ waiting: [], tell_room: () => {}, jobs: new Map(), has_found: false },
  };
  const stop = new AbortController();
  const stopped = stop_ordered(settings.stop);
  const listening = listen(worker, stop.signal);
  listening.catch(() => {}); // com a ordem de parar, ninguém mais espera por ela
  try {
    await Promise.race([stopped, listening.then(() => stopped)]);
    stop.abort();
    worker.tell_room();
    const last_read = sleep(2 * read_ms, undefined, { ref: false });
    // o que o stream já dava ainda se pode devolver
    if (worker.reading) await Promise.race([worker.reading, last_read]);
    worker.listener.destroy();
    await finish_jobs(worker);
  } finally {
    const clients = new Set([redis, listener, worker.redis, worker.listener]);
    for (const client of clients) if (client.isOpen) client.destroy();
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
 * @throws RangeError se `tasks`, `takeover` ou `group` não servem
 */
export async function serve(handler: handler, options: Partial<settings> = {}): Promise<void> {
  const settings = { ...default_settings, ...options };
  const { tasks, takeover, group } = settings;
  if (!(tasks >= 1)) throw new RangeError(`tasks: ${tasks}; ao menos 1`);
  if (!(takeover >= 2)) throw new RangeError(`takeover: ${takeover}; ao menos 2 s`);
  if (!/^\S+$/.test(group)) throw new RangeError(`group: ${JSON.stringify(group)}; sem espaços`);
  try {
    const secret = settings.secret || read_secret();
    await run_worker(handler, { ...settings, secret });
  } catch (error) {
    settings.log((error as Error).message);
    process.exitCode = 1;
  }
}
