/*
 * O que os testes usam: o programa de verdade, montado num arquivo só e posto numa pasta vazia; um
 * redis-server de verdade; clientes HTTP que esperam acontecimentos, sempre com prazo.
 * Quem importa este arquivo tem tudo o que subiu desfeito no fim (after).
 */

import assert from 'node:assert/strict';
import http from 'node:http';
import https from 'node:https';
import net from 'node:net';
import { availableParallelism as available_parallelism } from 'node:os';
import path from 'node:path';
import { after, test as node_test, type TestContext } from 'node:test';
import { createClient as create_client } from 'redis';
import { load_settings, type task_record } from '../json-proxy';
import { build_program, code_cache_variable, program_variable } from '../scripts/dev/build';
import {
  delay,
  find_output,
  has_failed,
  is_lasting,
  type local_program,
  type local_redis,
  on_stop,
  outside_scope,
  patience_ms,
  start_redis as run_redis,
  run_scope,
  start_program,
  stir,
  stop_all,
  temp_dir,
  until,
} from '../scripts/dev/local';

export type { local_program, local_redis } from '../scripts/dev/local';
export {
  closed_port,
  delay,
  free_port,
  on_stop,
  patience_ms,
  start_program,
  stir,
  temp_dir,
  until,
} from '../scripts/dev/local';

after(() => stop_all());

/** Prazo de um teste inteiro, que faz várias esperas. */
const test_limit_ms = 5 * patience_ms;

/** Quanto se espera que um proxy usado se aquiete; um que não se aquieta só não é aproveitado. */
const settle_limit_ms = 1000;

/** Testes de um arquivo ao mesmo tempo: quase só esperam, mas mais disputariam os processadores. */
export const tests_at_once = Math.min(2 * available_parallelism(), 8);

/** O REDIS_TTL de um proxy que não recebe outro, em segundos. */
export const default_ttl_s = 600;

/** Consultas frequentes, linhas sem pausa, parada que não espera por ninguém. */
export const brisk = ['-i', '20', '-P', '0', '--grace', '0'];

/** Uma parada que daria um minuto aos fluxos: o teste que a espera desistiria antes. */
export const long_grace = ['--grace', '600000'];

/** A última linha de um fluxo que a parada cortou. */
export const goodbye = '{"error": "server shutting down"}';

/** Mais do que os buffers de uma conexão local guardam: com isto pendente, o socket está cheio. */
export const clog = { lines: 40, bytes: 1_000_000 };

/** O proxy no ar. `host` só se os clientes o alcançam por outro endereço que não 127.0.0.1. */
export type proxy = local_program & { port: number; url: string; host?: string };

/** Um cliente do Redis nos testes. */
export type redis_client = Awaited<ReturnType<typeof connect_redis>>;

/** Um worker que ouve o canal. */
export type worker = Awaited<ReturnType<typeof start_worker>>;

/** Um proxy, o canal só dele e o worker que o ouve. */
export type scene = Awaited<ReturnType<typeof start_scene>>;

/** O bastante de uma tarefa para achá-la no Redis e no log. */
export type task_names = Pick<task_record, 'uuid' | 'task_key' | 'task_list'>;

/** Uma resposta inteira. */
export type http_reply = { status: number; headers: http.IncomingHttpHeaders; body: string };

/** O que um pedido pode levar. Com `ca`, o certificado em que confia, ele vai por HTTPS. */
export type http_options = {
  method?: string;
  path?: string;
  headers?: http.OutgoingHttpHeaders;
  body?: string | Buffer;
  agent?: http.Agent;
  ca?: string;
};

/** As opções de um teste do Node, o que ele dá ao corpo, e o corpo. */
type test_options = { skip?: boolean | string; concurrency?: number; timeout?: number };
type test_context = TestContext;
type test_body = (context: test_context) => void | Promise<void>;

/** O que um teste deixou no ar, pronto para o próximo que peça um igual. */
const spares = new Map<string, unknown[]>();

/** As portas dos Redis que duram mais que um teste. */
const lasting_redis = new Set<number>();

let built: Promise<string> | undefined;
let scenes = 0;

/**
 * Declara um teste, como o do Node. O que sobe nele desce quando ele acaba.
 * @param title o nome
 * @param options as opções do Node, ou já o corpo
 * @param body o corpo
 */
export function test(title: string, options: test_options | test_body, body?: test_body): void {
  const [given, run] = typeof options === 'function' ? [{}, options] : [options, body];
  const scoped = (context: test_context) => run_scope(async () => run?.(context));
  void node_test(title, { timeout: test_limit_ms, ...given }, scoped);
}

/**
 * Sobe um redis-server vazio.
 * @param given o que `start_redis` de local.ts recebe
 * @returns o servidor, já aceitando conexões
 */
export async function start_redis(...given: Parameters<typeof run_redis>): Promise<local_redis> {
  const redis = await run_redis(...given);
  if (is_lasting()) lasting_redis.add(redis.port);
  return redis;
}

/**
 * Aproveita o que outro teste já não usa ou, se não há, faz um que durará.
 * @param key o que distingue um do outro
 * @param make faz um
 * @param is_fit diz, no fim do teste, se ele ainda serve a outro
 * @param end desfaz um que não serve mais
 * @returns um, só deste teste enquanto ele corre
 */
async function borrow<thing>(
  key: string,
  make: () => Promise<thing>,
  is_fit: (used: thing) => Promise<boolean>,
  end: (used: thing) => Promise<unknown>,
): Promise<thing> {
  const idle = (spares.get(key) ?? []) as thing[];
  spares.set(key, idle);
  const taken = idle.pop() ?? (await outside_scope(make));
  on_stop(async () => {
    if (!has_failed() && (await is_fit(taken).catch(() => false))) idle.push(taken);
    else await end(taken);
  });
  return taken;
}

/**
 * Monta o programa numa pasta sem mais nada, salvo se quem roda os testes já o montou.
 * @returns o caminho de json-proxy.js
 */
export function program_file(): Promise<string> {
  built ??= (async () => {
    const ready = process.env[program_variable];
    if (ready) return ready;
    const outfile = path.join(temp_dir(), 'json-proxy.js');
    await build_program(outfile);
    return outfile;
  })();
  return built;
}

/**
 * Roda o programa com argumentos quaisquer, sem esperar que fique pronto.
 * @param args argumentos
 * @param env variáveis de ambiente a mais
 * @param launcher comando que o põe a rodar noutro lugar: ['ip', 'netns', 'exec', 'nome']
 * @returns o programa filho
 */
export async function run_proxy(
  args: string[],
  env: NodeJS.ProcessEnv = {},
  launcher: string[] = [],
): Promise<local_program> {
  const file = await program_file();
  const cache = process.env[code_cache_variable];
  const node = [process.execPath, ...(cache ? ['--require', cache] : []), file];
  const [command = '', ...rest] = [...launcher, ...node, ...args];
  return start_program(command, rest, env, path.dirname(file));
}

/**
 * Sobe um proxy e espera que atenda.
 * @param args argumentos
 * @param env variáveis de ambiente a mais
 * @param launcher comando que o põe a rodar noutro lugar
 * @returns o proxy
 */
async function launch_proxy(
  args: string[],
  env?: NodeJS.ProcessEnv,
  launcher?: string[],
): Promise<proxy> {
  const program = await run_proxy(args, env, launcher);
  const [, url = '', port = ''] = await program.wait_for(/ listen url=(https?:\/\/\S+?:(\d+))\n/);
  return { ...program, url, port: Number(port) };
}

/**
 * Diz se um proxy ainda está de pé e sem nenhum fluxo, para que outro teste o use.
 * @param proxy o proxy
 * @returns false se ele parou ou vai parar
 */
async function is_reusable({ process: child, stdout, stderr }: proxy): Promise<boolean> {
  const is_gone = () => child.exitCode !== null || child.signalCode !== null || child.killed;
  const is_quiet = () => {
    const begun = stdout().match(/ (?:task|replay) task=/g)?.length ?? 0;
    return begun === (`${stdout()}${stderr()}`.match(/ end task=/g)?.length ?? 0);
  };
  await until('fim dos fluxos', () => is_gone() || is_quiet(), settle_limit_ms);
  return !is_gone();
}

/**
 * Um proxy que outros testes já usaram, como se fosse novo: dele só se veem as linhas da subida e
 * as que vierem daqui em diante.
 * @param proxy o proxy
 * @returns a vista dele
 */
function fresh_view(proxy: proxy): proxy {
  const [boot = ''] =
    /^(?:\S+ (?:start|wakeup|metrics|process_ready|listen) .*\n)*/.exec(proxy.stdout()) ?? [];
  const [out_mark, err_mark] = [proxy.stdout().length, proxy.stderr().length];
  const stdout = () => boot + proxy.stdout().slice(Math.max(out_mark, boot.length));
  const stderr = () => proxy.stderr().slice(err_mark);
  const state: { exit_code?: number } = {};
  void proxy.exited.then((exit_code) => Object.assign(state, { exit_code }));
  const wait_for = (pattern: RegExp, ms = patience_ms) =>
    until(
      `${pattern} na saída do proxy`,
      () => find_output(pattern, { stdout: stdout(), stderr: stderr(), ...state }),
      ms,
    );
  return { ...proxy, stdout, stderr, wait_for };
}

/**
 * Dá um proxy numa porta livre, ligado a um Redis, já a atender. Se o Redis é o de todo o arquivo,
 * o proxy pode ser um que outro teste deixou.
 * @param redis o Redis
 * @param args argumentos a mais; os últimos vencem
 * @param env variáveis de ambiente a mais
 * @param launcher comando que o põe a rodar noutro lugar
 * @returns o proxy
 */
export async function start_proxy(
  redis: Pick<local_redis, 'server'> & { port?: number },
  args: string[] = [],
  env?: NodeJS.ProcessEnv,
  launcher?: string[],
): Promise<proxy> {
  const all = ['-p', '0', '--host', '127.0.0.1', '-R', redis.server, ...args];
  const is_own = is_lasting() || env || launcher || !lasting_redis.has(redis.port ?? 0);
  if (is_own) return launch_proxy(all, env, launcher);
  const end = (used: proxy) => used.stop();
  return fresh_view(await borrow(all.join(' '), () => launch_proxy(all), is_reusable, end));
}

/**
 * Conecta um cliente ao Redis, no banco 1, fechado no fim dos testes.
 * @param redis o Redis
 * @param database número do banco
 * @param password senha, se ele tem uma
 * @returns o cliente
 */
export async function connect_redis(redis: Pick<local_redis, 'port'>, database = 1, password = '') {
  const client = create_client({
    RESP: 2,
    socket: { host: '127.0.0.1', port: redis.port },
    database,
    password,
    commandOptions: { timeout: 0 }, // a biblioteca desiste em 5 s
  });
  client.on('error', () => {}); // testes derrubam o Redis de propósito
  await client.connect();
  on_stop(async () => client.isOpen && client.destroy());
  return client;
}

/**
 * Assina o canal, como um worker, e entrega as tarefas que chegam.
 * @param redis o Redis
 * @param channel canal
 * @param database banco em que as tarefas são lidas
 * @returns `next`: espera a próxima tarefa; `client`: cliente para escrever linhas
 */
export async function start_worker(
  redis: Pick<local_redis, 'port'>,
  channel = 'ndjson_jobs',
  database = 1,
) {
  const client = await connect_redis(redis, database);
  const subscriber = await connect_redis(redis, database);
  const keys: string[] = [];
  await subscriber.subscribe(channel, (task_key) => {
    keys.push(task_key);
    stir();
  });
  const next = async (ms = patience_ms): Promise<task_record> => {
    const task_key = await until('tarefa anunciada', () => keys.shift(), ms);
    const text = await client.get(task_key);
    if (text === null) throw new Error(`a tarefa ${task_key} foi anunciada e não existe`);
    return JSON.parse(text);
  };
  return { next, client, subscriber, pending: keys };
}

/**
 * Sobe um proxy com um canal só dele e um worker que o ouve.
 * @param where o Redis
 * @param args argumentos a mais para o proxy
 * @returns o proxy, o worker, um cliente do Redis e o canal
 */
async function make_scene(where: Pick<local_redis, 'server' | 'port'>, args: string[]) {
  scenes += 1;
  const channel = `jobs_${scenes}`;
  const basics = ['-p', '0', '--host', '127.0.0.1', '-R', where.server, '-C', channel];
  const [proxy, worker] = await Promise.all([
    launch_proxy([...basics, ...args]),
    start_worker(where, channel),
  ]);
  return { proxy, worker, db: worker.client, channel };
}

/**
 * Diz se uma cena está como nova, para que outro teste a use.
 * @param used a cena
 * @returns false se o proxy parou ou o worker já não ouve o canal
 */
async function is_scene_reusable(used: Awaited<ReturnType<typeof make_scene>>): Promise<boolean> {
  const { proxy, worker, db, channel } = used;
  if (!(await is_reusable(proxy))) return false;
  const listeners = await db.pubSubNumSub(channel);
  await worker.subscriber.ping(); // vem atrás de todo anúncio que estivesse a caminho
  worker.pending.splice(0);
  return Number(listeners[channel]) === 1;
}

/**
 * Desfaz uma cena.
 * @param used a cena
 */
async function end_scene({ proxy, worker }: Awaited<ReturnType<typeof make_scene>>): Promise<void> {
  for (const client of [worker.client, worker.subscriber]) if (client.isOpen) client.destroy();
  await proxy.stop();
}

/**
 * Dá um proxy com um canal só dele e um worker que o ouve. Se o Redis é o de todo o arquivo, a cena
 * pode ser uma que outro teste deixou.
 * @param where o Redis
 * @param args argumentos a mais para o proxy
 * @returns o proxy, o worker, um cliente do Redis e o canal
 */
export async function start_scene(
  where: Pick<local_redis, 'server' | 'port'>,
  args: string[] = [],
) {
  if (is_lasting() || !lasting_redis.has(where.port)) return make_scene(where, args);
  const key = `cena ${where.server} ${args.join(' ')}`;
  const scene = await borrow(key, () => make_scene(where, args), is_scene_reusable, end_scene);
  return { ...scene, proxy: fresh_view(scene.proxy) };
}

/**
 * Faz um pedido e devolve a resposta assim que os cabeçalhos chegam.
 * @param proxy o proxy
 * @param options método, caminho, cabeçalhos e corpo
 * @returns `arrived`: a resposta; `request`: para desistir dela
 */
function send_request(proxy: Pick<proxy, 'port' | 'host'>, options: http_options) {
  const { method = options.body === undefined ? 'GET' : 'POST', headers = {}, body } = options;
  const { ca, agent = false } = options;
  const request = (ca ? https : http).request({
    host: proxy.host ?? '127.0.0.1',
    port: proxy.port,
    path: options.path ?? '/',
    method,
    headers,
    agent,
    ...(ca && { ca }),
  });
  const arrived = new Promise<http.IncomingMessage>((resolve, reject) => {
    request.once('response', resolve);
    request.once('error', reject);
  });
  arrived.catch(() => {}); // quem abandona o pedido não espera por ele
  request.end(body);
  return { request, arrived };
}

/**
 * Faz um pedido e lê a resposta inteira.
 * @param proxy o proxy
 * @param options método, caminho, cabeçalhos e corpo
 * @returns status, cabeçalhos e corpo em texto
 */
export async function fetch_all(
  proxy: Pick<proxy, 'port' | 'host'>,
  options: http_options = {},
): Promise<http_reply> {
  const response = await send_request(proxy, options).arrived;
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk);
  const body = Buffer.concat(chunks).toString('utf8');
  return { status: response.statusCode ?? 0, headers: response.headers, body };
}

/**
 * Abre um fluxo e o lê linha a linha.
 * @param proxy o proxy
 * @param options método, caminho, cabeçalhos e corpo
 * @returns `head`: espera os cabeçalhos; `next`: espera a próxima linha, undefined no fim; `rest`:
 *   espera o fim e devolve as linhas que faltavam; `arrivals`: instante de cada linha;
 *   `pause`/`resume`: o cliente para e volta a ler; `leave`: o cliente vai embora
 */
export function open_stream(proxy: Pick<proxy, 'port' | 'host'>, options: http_options = {}) {
  const { request, arrived } = send_request(proxy, options);
  const lines: string[] = [];
  const arrivals: number[] = [];
  const state = { tail: '', ended: false, error: undefined as Error | undefined };
  const read = async () => {
    const response = await arrived;
    response.setEncoding('utf8');
    response.on('data', (text: string) => {
      stir();
      const parts = (state.tail + text).split('\n');
      state.tail = parts.pop() ?? '';
      lines.push(...parts);
      arrivals.push(...parts.map(() => performance.now()));
    });
    response.once('end', () => {
      state.ended = true;
      stir();
    });
    response.once('error', (error) => {
      state.error = error;
      stir();
    });
    return response;
  };
  const head = read();
  head.catch((error) => {
    state.error = error;
    stir();
  });
  on_stop(async () => request.destroy());
  const next = async (ms = patience_ms): Promise<string | undefined> => {
    await until('linha ou fim', () => lines.length > 0 || state.ended || state.error, ms);
    if (lines.length === 0 && state.error) throw state.error;
    return lines.shift();
  };
  const rest = async (ms = patience_ms): Promise<string[]> => {
    await until('fim da resposta', () => state.ended || state.error, ms);
    if (state.error) throw state.error;
    if (state.tail !== '') throw new Error(`linha sem fim: ${state.tail.slice(0, 80)}`);
    return lines.splice(0);
  };
  return {
    head: () => head,
    next,
    rest,
    arrivals,
    pause: async () => (await head).pause(),
    resume: async () => (await head).resume(),
    leave: () => request.destroy(),
  };
}

/**
 * Abre um socket cru, para falar HTTP byte a byte.
 * @param port porta do proxy
 * @param host endereço do proxy
 * @returns `send`; `text`: tudo o que chegou; `wait_for`: espera um padrão; `closed`: espera o
 *   fechamento; `destroy`: fecha na hora
 */
export async function open_socket(port: number, host = '127.0.0.1') {
  const socket = net.connect(port, host);
  let received = '';
  let is_closed = false;
  socket.setEncoding('latin1').on('data', (text) => {
    received += text;
    stir();
  });
  socket.on('error', () => {});
  socket.once('close', () => {
    is_closed = true;
    stir();
  });
  on_stop(async () => socket.destroy());
  await new Promise<void>((resolve) => socket.once('connect', () => resolve()));
  return {
    socket,
    send: (text: string | Buffer) => socket.write(text),
    text: () => received,
    wait_for: (pattern: RegExp, ms = patience_ms) =>
      until(
        () => `${pattern} no socket; chegou: ${received.slice(-2000)}`,
        () => pattern.exec(received),
        ms,
      ),
    closed: (ms = patience_ms) => until('fechamento da conexão', () => is_closed, ms),
    destroy: () => socket.destroy(),
  };
}

/**
 * Abre um fluxo e espera por ele no worker.
 * @param proxy o proxy
 * @param worker o worker
 * @param lines linhas a empurrar e a ver chegar, uma a uma
 * @returns o fluxo e a tarefa
 */
export async function begin(proxy: proxy, worker: worker, lines: string[] = []) {
  const stream = open_stream(proxy);
  const task = await worker.next();
  for (const line of lines) {
    await worker.client.rPush(task.task_list, line);
    assert.equal(await stream.next(), line);
  }
  return { stream, task };
}

/**
 * Dá os nomes das chaves de uma tarefa.
 * @param uuid UUID da tarefa
 * @returns o UUID e os nomes, com os prefixos padrão
 */
export function task_named(uuid: string): task_names {
  return { uuid, task_key: `ndjson_task_${uuid}`, task_list: `ndjson_list_${uuid}` };
}

/**
 * Espera a linha "end" de um fluxo, que tem todos os campos, na ordem do manual.
 * @param proxy o proxy
 * @param task a tarefa
 * @returns os campos da linha, por nome, como estão no log
 */
export async function end_of(
  proxy: Pick<proxy, 'wait_for'>,
  task: Pick<task_names, 'uuid'>,
): Promise<Record<string, string>> {
  const fields = 'ending=\\w+ status=\\d+ lines=\\d+ bytes=\\d+ ms=\\d+(?: reason=\\S.*)?';
  const [line] = await proxy.wait_for(new RegExp(` end task=${task.uuid} ${fields}(?=\\n)`));
  return Object.fromEntries([...line.matchAll(/(\w+)=("[^"]*"|\S+)/g)].map((m) => [m[1], m[2]]));
}

/**
 * Espera que um programa saia sozinho.
 * @param program o programa
 * @param ms prazo
 * @returns o código de saída
 */
export async function exit_of(
  program: Pick<local_program, 'exited'>,
  ms = patience_ms,
): Promise<number> {
  let exit: { code: number } | undefined;
  void program.exited.then((code) => {
    exit = { code };
    stir();
  });
  return (await until('saída do programa', () => exit, ms)).code;
}

/**
 * Lê, como o programa, opções que ele deve recusar numa linha só. Que ele a escreva e saia com 2 é
 * conferido na subida.
 * @param args argumentos
 * @param env variáveis de ambiente
 * @returns a linha
 */
export function usage_error_of(args: string[], env: NodeJS.ProcessEnv = {}): string {
  try {
    load_settings(args, env);
  } catch (error) {
    assert.equal((error as Error).constructor.name, 'usage_error');
    return `json-proxy: ${(error as Error).message}\n`;
  }
  return assert.fail(`aceitos: ${JSON.stringify([args, env])}`);
}

/**
 * Confere, sem esperar, que de uma tarefa interrompida só fica a lista com EOF, que expira.
 * @param db cliente do Redis
 * @param task a tarefa
 * @param elements o que a lista deve ter
 */
export async function check_tombstone(
  db: redis_client,
  task: Pick<task_names, 'uuid' | 'task_list'>,
  elements = ['EOF'],
): Promise<void> {
  assert.deepEqual(await db.keys(`*${task.uuid}`), [task.task_list]);
  assert.deepEqual(await db.lRange(task.task_list, 0, -1), elements);
  const ttl = await db.ttl(task.task_list);
  assert.ok(ttl > 0 && ttl <= default_ttl_s, `TTL ${ttl}`);
}

/**
 * Espera a limpeza de uma tarefa que um worker ainda pode estar escrevendo e confere o que fica: só
 * uma lista com EOF, que expira, e que ninguém mais consulta; a linha atrasada expira com ela.
 * @param db cliente do Redis
 * @param task a tarefa
 */
export async function see_tombstone(db: redis_client, task: task_names): Promise<void> {
  const { task_key, task_list } = task;
  await until('lista com TTL e sem tarefa', async () => {
    return (await db.ttl(task_list)) > 0 && (await db.exists(task_key)) === 0;
  });
  await check_tombstone(db, task);
  await db.rPush(task_list, 'linha atrasada');
  await delay(100); // vários INTERVAL: um laço esquecido retiraria o EOF
  await check_tombstone(db, task, ['EOF', 'linha atrasada']);
}

/**
 * Empurra, num comando só, mais linhas do que cabem numa conexão cujo cliente não lê.
 * @param db cliente do Redis
 * @param task a tarefa
 */
export async function push_clog(
  db: redis_client,
  task: Pick<task_names, 'task_list'>,
): Promise<void> {
  await db.rPush(task.task_list, Array<string>(clog.lines).fill('x'.repeat(clog.bytes)));
}

/**
 * Empurra linhas que o cliente não lê, até o proxy parar de retirá-las porque o socket encheu: o
 * PING de um /ping vai, na mesma conexão, atrás da retirada que estivesse a caminho.
 * @param db cliente do Redis
 * @param task a tarefa
 * @param proxy o proxy, ou como fazer um pedido a ele
 * @param ca o certificado dele, se atende por HTTPS
 */
export async function clog_reader(
  db: redis_client,
  task: Pick<task_names, 'task_list'>,
  proxy: Pick<proxy, 'port' | 'host'>,
  ca?: string,
): Promise<void> {
  await push_clog(db, task);
  let before = clog.lines;
  await until('socket cheio', async () => {
    for (let n = 0; n < 3; n += 1) {
      await fetch_all(proxy, { path: '/ping', ...(ca && { ca }) });
    }
    const left = await db.lLen(task.task_list);
    const is_stuck = left < clog.lines && left === before;
    before = left;
    return is_stuck;
  });
}

/**
 * Prova algo com limites de tempo cada vez mais afastados: o que vale numa máquina lenta com um
 * limite longo vale numa rápida com um curto, e o que é falso o é com todos.
 * @param limits_ms os limites
 * @param body a prova, com um deles
 * @throws o que ela lança com o último
 */
export async function at_some_pace(
  limits_ms: number[],
  body: (limit_ms: number) => Promise<void>,
): Promise<void> {
  const last = limits_ms.at(-1);
  for (const limit_ms of limits_ms) {
    try {
      await run_scope(() => body(limit_ms));
      return;
    } catch (error) {
      if (limit_ms === last) throw error;
    }
  }
}

/**
 * Conta os comandos de um tipo que o Redis já atendeu.
 * @param db cliente do Redis
 * @param command nome do comando, em minúsculas
 * @returns o total desde que o Redis subiu
 */
export async function served(db: redis_client, command: string): Promise<number> {
  const info = await db.info('commandstats');
  return Number(new RegExp(`^cmdstat_${command}:calls=(\\d+)`, 'm').exec(info)?.[1] ?? 0);
}

/**
 * Espera a próxima tarefa anunciada numa cena, que já pode ter terminado.
 * @param where a cena
 * @returns os nomes dela
 */
export async function next_names(
  where: Awaited<ReturnType<typeof start_scene>>,
): Promise<task_names> {
  const task_key = await until('tarefa anunciada', () => where.worker.pending.shift());
  return task_named(task_key.slice('ndjson_task_'.length));
}

/**
 * Espera que o canal tenha tantos ouvintes; o worker da cena é um deles.
 * @param db cliente do Redis
 * @param channel o canal
 * @param count quantos
 */
export async function see_listeners(
  db: redis_client,
  channel: string,
  count: number,
): Promise<void> {
  await until(`${count} ouvintes`, async () => {
    return Number((await db.pubSubNumSub(channel))[channel]) === count;
  });
}

/** Muito mais que o tempo em que uma resposta do Redis dispensa o PING antes de uma tarefa. */
export const stale_answer_ms = 50;

/**
 * Congela um Redis e espera que a última resposta dele envelheça para o proxy.
 * @param redis o Redis; SIGCONT o descongela
 */
export async function freeze_redis(redis: Pick<local_redis, 'process'>): Promise<void> {
  redis.process.kill('SIGSTOP');
  await delay(stale_answer_ms);
}

/**
 * Põe um intermediário TCP na frente de uma porta.
 * @param port a porta
 * @returns a porta dele; `cut`: corta todas as conexões, com o que estiver a caminho, e manda as
 *   próximas a uma porta; `links`: quantas já passaram por ele
 */
export async function start_cutter(port: number) {
  const sockets = new Set<net.Socket>();
  const state = { links: 0, port };
  const relay = net.createServer((near) => {
    const far = net.connect(state.port, '127.0.0.1');
    state.links += 1;
    for (const socket of [near, far]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.once('close', () => {
        sockets.delete(socket);
        near.destroy();
        far.destroy();
      });
    }
    near.pipe(far);
    far.pipe(near);
  });
  await new Promise<void>((resolve) => relay.listen(0, '127.0.0.1', resolve));
  const cut = (next_port = port) => {
    state.port = next_port;
    for (const socket of sockets) socket.destroy();
  };
  on_stop(async () => {
    relay.close();
    cut();
  });
  return { port: (relay.address() as net.AddressInfo).port, cut, links: () => state.links };
}
