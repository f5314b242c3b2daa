/*
 * Os pisos com HTTP: o que um servidor node:http sem nada mais consegue. O caminho do pedido diz o
 * que se quer dele: /hold fica aberto, /bulk despeja as linhas preparadas, /task grava e anuncia no
 * Redis o que o proxy gravaria e anunciaria, e responde uma linha.
 */

import { randomUUID as random_uuid } from 'node:crypto';
import http from 'node:http';
import type { AddressInfo as address_info } from 'node:net';
import { createClient as create_client } from 'redis';
import { make_line, run_pace } from './lines';
import { clock, serve_role } from './role';

/** O que se escreve por vez, como o proxy. */
const write_slice_bytes = 64 * 1024;

/** TTL da tarefa, em segundos: o padrão do proxy. */
const task_ttl_s = 600;

/** Cria o cliente do Redis da porta `port`, banco `database`, ainda sem conectar. */
function make_redis(port: number, database: number) {
  const client = create_client({
    socket: { host: '127.0.0.1', port },
    database,
    RESP: 2,
    commandOptions: { timeout: 0 }, // sem o prazo da biblioteca, que custa
  });
  client.on('error', (error) => {
    throw error;
  });
  return client;
}

const state = {
  held: [] as http.ServerResponse[],
  bulk: Buffer.alloc(0),
  bulk_lines: 0,
  redis: undefined as ReturnType<typeof make_redis> | undefined,
  channel: '',
};

/** Despeja as linhas preparadas, respeitando quem lê devagar. */
async function send_bulk(response: http.ServerResponse): Promise<void> {
  for (let at = 0; at < state.bulk.length; at += write_slice_bytes) {
    if (response.write(state.bulk.subarray(at, at + write_slice_bytes))) continue;
    await new Promise((resolve) => response.once('drain', resolve));
  }
  response.end();
}

/** Monta uma tarefa do tamanho da que o proxy grava. */
function make_task(request: http.IncomingMessage, body: Buffer) {
  const uuid = random_uuid();
  const task_key = `ndjson_task_${uuid}`;
  const task_list = `ndjson_list_${uuid}`;
  const json = JSON.stringify({
    task_name: uuid,
    uuid,
    task_key,
    task_list,
    request_time: Date.now() / 1000,
    method: request.method,
    url: request.url,
    remote_address: request.socket.remoteAddress,
    headers: request.headers,
    body: body.toString('utf8'),
  });
  return { task_key, task_list, json };
}

/** Atende uma tarefa: lê o corpo; SET, PUBLISH e um LPOP numa ida e volta; uma linha. */
async function serve_task(
  request: http.IncomingMessage,
  response: http.ServerResponse,
): Promise<void> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk);
  const { task_key, task_list, json } = make_task(request, Buffer.concat(chunks));
  const { redis } = state;
  if (!redis) throw new Error('sem Redis');
  await Promise.all([
    redis.set(task_key, json, { expiration: { type: 'EX', value: task_ttl_s } }),
    redis.publish(state.channel, task_key),
    redis.lPop(task_list),
  ]);
  response.writeHead(200, { 'Content-Type': 'application/x-ndjson' });
  response.write(`${make_line(0, 0)}\n`);
  response.end();
}

/** Atende um pedido. */
function handle(request: http.IncomingMessage, response: http.ServerResponse): void {
  if (request.url === '/task') {
    void serve_task(request, response);
    return;
  }
  response.writeHead(200, { 'Content-Type': 'application/x-ndjson' });
  if (request.url === '/bulk') {
    void send_bulk(response);
    return;
  }
  response.flushHeaders();
  const { held } = state;
  held.push(response);
  response.once('close', () => {
    const index = held.indexOf(response);
    if (index >= 0) held.splice(index, 1);
  });
}

/** Abre uma porta, e a devolve. */
function listen(): Promise<number> {
  const server = http.createServer(handle);
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve((server.address() as address_info).port));
  });
}

/** Conecta ao Redis, para a prova de tarefas. */
async function connect(where: { port: number; database: number; channel: string }): Promise<void> {
  state.redis = make_redis(where.port, where.database);
  state.channel = where.channel;
  await state.redis.connect();
}

/** Prepara as linhas de /bulk. */
function prepare(args: { lines: number }): void {
  if (state.bulk_lines === args.lines) return;
  const lines = Array.from({ length: args.lines }, (_, line) => `${make_line(0, line)}\n`);
  state.bulk = Buffer.from(lines.join(''), 'latin1');
  state.bulk_lines = args.lines;
}

/** Escreve linhas nas respostas abertas, no ritmo pedido, e as encerra. */
async function pace(args: { streams: number; pace_ms: number; rounds: number }): Promise<void> {
  const responses = state.held.slice();
  if (responses.length !== args.streams) throw new Error(`${responses.length} respostas abertas`);
  await run_pace(args.streams, args.pace_ms, args.rounds, (stream, round) => {
    responses[stream]?.write(`${make_line(clock(), round)}\n`);
  });
  for (const response of responses) response.end();
}

/** Escreve uma linha em algumas das respostas abertas, e as encerra. */
function poke(args: { count: number }): void {
  for (const response of state.held.slice(0, args.count))
    response.end(`${make_line(clock(), 0)}\n`);
}

serve_role({ listen, connect, prepare, pace, poke });
