/*
 * O worker de exemplo em Python, com a redis-py do Debian, contra o proxy de verdade.
 */

import assert from 'node:assert/strict';
import { fetch_all, start_program, start_proxy, start_redis, temp_dir, test } from '../harness';

const python = '/usr/bin/python3';
const worker_file = 'scripts/worker/examples/worker_example.py';

test('atende uma tarefa e sai; em --loop atende várias', async () => {
  const redis = await start_redis();
  const proxy = await start_proxy(redis);
  const once = start_program(python, [worker_file, '-R', redis.server, '--pause', '5']);
  await once.wait_for(/ouvindo ndjson_jobs/);
  const reply = await fetch_all(proxy, { path: '/a?b', body: 'olá' });
  const lines = reply.body.trimEnd().split('\n');
  assert.equal(lines.length, 5);
  assert.deepEqual(JSON.parse(lines[4] ?? ''), { n: 5, of: 5, url: '/a?b', body: 'olá' });
  assert.equal(await once.exited, 0, once.stderr());
  const env = { REDIS_SERVER: redis.server };
  const loop = start_program(python, [worker_file, '--loop', '--pause', '1'], env);
  await loop.wait_for(/ouvindo/);
  for (const path of ['/1', '/2', '/3']) {
    const { body } = await fetch_all(proxy, { path });
    assert.equal(body.trimEnd().split('\n').length, 5);
  }
  await loop.stop();
});

test('aceita as formas de REDIS_SERVER, e REDIS_PASSWORD vence a senha da URL', async () => {
  const socket = `${temp_dir()}/redis.sock`;
  const redis = await start_redis(['--requirepass', 'certa', '--unixsocket', socket]);
  const servers = [
    `127.0.0.1:${redis.port}/1`,
    `redis://:errada@127.0.0.1:${redis.port}/1`,
    `${socket}?db=1`,
    `unix:${socket}?db=1`,
    `unix://${socket}?db=1`,
  ];
  const names = ['-C', 'canal', '-X', 'pedido:', '-L', 'linhas:'];
  const proxy = await start_proxy(redis, ['-S', 'certa', ...names]);
  for (const server of servers) {
    const worker = start_program(python, [worker_file, '-R', server, '--pause', '1', ...names], {
      REDIS_PASSWORD: 'certa',
    });
    await worker.wait_for(/ouvindo/);
    const { body } = await fetch_all(proxy);
    assert.equal(body.trimEnd().split('\n').length, 5, server);
    assert.equal(await worker.exited, 0, worker.stderr());
  }
});
