/*
 * Um FLUSHALL que cai entre a pergunta do proxy e a resposta do Redis, com um worker que de nada
 * sabe e segue até o fim: o que se perdeu não pode parecer sucesso.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  brisk,
  end_of,
  open_stream,
  start_proxy,
  start_redis,
  start_worker,
  until,
} from './harness';

/** Entre uma linha e a consulta seguinte há tempo para o FLUSHALL entrar na fila. */
const unhurried = [...brisk, '-P', '1000'];

test('FLUSHALL com uma consulta a caminho, e um worker que segue: linha de erro', async () => {
  const redis = await start_redis();
  const proxy = await start_proxy(redis, unhurried);
  const worker = await start_worker(redis);
  const { client: db } = worker;
  const admin = db.duplicate().on('error', () => {});
  await admin.connect();
  const stream = open_stream(proxy);
  const task = await worker.next();
  await db.rPush(task.task_list, ['1', '2']);
  assert.equal(await stream.next(), '1');
  await admin.sendCommand(['CLIENT', 'PAUSE', '60000', 'WRITE']);
  const wiped = db.multi().flushAll().rPush(task.task_list, ['3', '4']).exec();
  const waiting = async (count: number) =>
    Number(/^blocked_clients:(\d+)/m.exec(await admin.info('clients'))?.[1]) === count;
  await until('FLUSHALL na fila', () => waiting(1));
  await until('consulta na fila, atrás dele', () => waiting(2));
  await admin.sendCommand(['CLIENT', 'UNPAUSE']);
  await wiped;
  admin.destroy();
  const rest = await stream.rest();
  assert.equal(rest.at(-1), '{"error": "redis lost"}');
  assert.equal((await end_of(proxy, task)).ending, 'redis_lost');
});
