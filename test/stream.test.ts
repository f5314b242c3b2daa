import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fetch_all, open_stream, start_proxy, start_redis, start_worker } from './harness';

test('uma linha vai do worker ao cliente e o DEL termina o fluxo sem deixar chaves', async () => {
  const redis = await start_redis();
  const proxy = await start_proxy(redis);
  const worker = await start_worker(redis);
  const stream = open_stream(proxy, { path: '/a', body: 'oi' });
  const task = await worker.next();
  await worker.client.rPush(task.task_list, '{"n":1}');
  assert.equal(await stream.next(), '{"n":1}');
  await worker.client.del(task.task_key);
  assert.deepEqual(await stream.rest(), []);
  assert.deepEqual(await worker.client.keys('*'), []);
  assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
  assert.equal(await proxy.stop(), 0);
});
