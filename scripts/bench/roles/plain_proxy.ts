/*
 * O piso de uma linha solta: um proxy feito à mão, com os mesmos comandos e os mesmos avisos do
 * Redis que o nosso, e sem nada do que o faz servir: nem fins, nem prazos, nem cliente lento, nem
 * reconexão.
 */

import { randomUUID as random_uuid } from 'node:crypto';
import http from 'node:http';
import type { AddressInfo as address_info } from 'node:net';
import { createClient as create_client } from 'redis';
import { serve_role } from './role';

/** Por quanto tempo se dorme sem aviso: o da consulta de proteção do proxy. */
const safety_poll_ms = 60_000;

/** TTL da tarefa, em segundos: o padrão do proxy. */
const task_ttl_s = 600;

const uuid_length = 36;

/** Quem dorme à espera de um aviso, pelo UUID da tarefa. */
const sleepers = new Map<string, () => void>();

/** Cria o cliente do Redis da porta `port`, banco `database`, conectado e avisado das mudanças. */
async function connect_redis(port: number, database: number) {
  const socket = { host: '127.0.0.1', port };
  const options = { RESP: 3, emitInvalidate: true, commandOptions: { timeout: 0 } } as const;
  const client = create_client({ socket, database, ...options });
  client.on('error', (error) => {
    throw error;
  });
  client.on('invalidate', (key) => sleepers.get(String(key).slice(-uuid_length))?.());
  await client.connect();
  const prefixes = ['PREFIX', 'ndjson_task_', 'PREFIX', 'ndjson_list_'];
  await client.sendCommand(['CLIENT', 'TRACKING', 'OFF']);
  await client.sendCommand(['CLIENT', 'TRACKING', 'ON', 'BCAST', ...prefixes, 'NOLOOP']);
  return client;
}

/** Guarda uma tarefa, a anuncia em `channel` e envia cada linha assim que o Redis avisa. */
async function serve(
  redis: Awaited<ReturnType<typeof connect_redis>>,
  channel: string,
  response: http.ServerResponse,
): Promise<void> {
  const uuid = random_uuid();
  const [task_key, task_list] = [`ndjson_task_${uuid}`, `ndjson_list_${uuid}`];
  let has_news = false;
  let wake = () => {};
  sleepers.set(uuid, () => {
    has_news = true;
    wake();
  });
  const task = JSON.stringify({ uuid, task_key, task_list });
  const expiration = { type: 'EX', value: task_ttl_s } as const;
  await redis.multi().set(task_key, task, { expiration }).publish(channel, task_key).exec();
  response.writeHead(200, { 'Content-Type': 'application/x-ndjson' });
  for (let left = 1; left > 0; ) {
    has_news = false;
    const [line, count] = await Promise.all([
      redis.lPop(task_list),
      redis.exists([task_list, task_key]),
    ]);
    if (line !== null) response.write(`${line}\n`);
    left = count;
    const has_more = line !== null && left === 2;
    if (has_more || has_news || left === 0) continue;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, safety_poll_ms);
      wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
  sleepers.delete(uuid);
  response.end();
}

/** Abre uma porta, e a devolve. */
async function listen(where: { port: number; database: number; channel: string }): Promise<number> {
  const redis = await connect_redis(where.port, where.database);
  const server = http.createServer((_, response) => void serve(redis, where.channel, response));
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve((server.address() as address_info).port));
  });
}

serve_role({ listen });
