/*
 * O worker em shell (scripts/worker/worker.sh), só com o redis-cli, contra o proxy e o Redis de
 * verdade.
 */

import assert from 'node:assert/strict';
import { writeFileSync as write_file } from 'node:fs';
import path from 'node:path';
import { before, describe } from 'node:test';
import {
  brisk,
  fetch_all,
  type local_redis,
  next_names,
  open_stream,
  type scene,
  see_listeners,
  see_tombstone,
  start_program,
  start_proxy,
  start_redis,
  start_scene,
  temp_dir,
  test,
  until,
} from '../harness';

const root = path.join(__dirname, '../..');

let redis: local_redis;

before(async () => {
  redis = await start_redis();
});

/**
 * Põe o worker em shell no canal de uma cena, e espera que mais um o ouça.
 * @param where a cena
 * @param command o comando, em shell
 * @returns o programa
 */
async function start_shell(where: scene, command: string) {
  const { db, channel } = where;
  const before = Number((await db.pubSubNumSub(channel))[channel]);
  const env = { REDIS_SERVER: redis.server, REDIS_CHANNEL: channel };
  const program = start_program('sh', ['scripts/worker/worker.sh', 'sh', '-c', command], env, root);
  await see_listeners(db, channel, before + 1);
  return program;
}

describe('o worker em shell', { concurrency: true }, () => {
  test('cada linha do comando é uma da resposta; se ele falha, a última é um erro', async () => {
    const scene = await start_scene(redis, brisk);
    const echo = await start_shell(scene, 'cat; echo " 1 \\"a\\" * "; echo; echo ç');
    const reply = await fetch_all(scene.proxy, { body: 'a\nb' });
    const [text = '', ...lines] = reply.body.split('\n');
    assert.equal(JSON.parse(text).body, 'a\nb');
    assert.deepEqual(lines, [' 1 "a" * ', 'ç', '']);
    const { uuid } = await next_names(scene);
    assert.deepEqual(await scene.db.keys(`*${uuid}`), []);
    assert.equal(await echo.stop('SIGTERM'), 0);
    const fail = await start_shell(scene, 'echo 1; exit 3');
    assert.equal((await fetch_all(scene.proxy)).body, '1\n{"error": "exit status 3"}\n');
    assert.equal(await fail.stop('SIGINT'), 0);
    assert.equal(echo.stderr() + fail.stderr(), '');
    await see_listeners(scene.db, scene.channel, 1);
  });

  test('o cliente sai e o comando para; com SIGTERM a tarefa termina antes', async () => {
    const scene = await start_scene(redis, brisk);
    const file = path.join(temp_dir(), 'solta');
    const forever = 'while echo n; do sleep 0.01; done';
    const held = `echo 1; until [ -e ${file} ]; do sleep 0.01; done; echo 2`;
    const command = `case $(cat) in *'"/forever"'*) ${forever} ;; *) ${held} ;; esac`;
    const worker = await start_shell(scene, command);
    const left = open_stream(scene.proxy, { path: '/forever' });
    assert.equal(await left.next(), 'n');
    const gone = await next_names(scene);
    left.leave();
    const stream = open_stream(scene.proxy);
    assert.equal(await stream.next(), '1');
    const exit = worker.stop('SIGTERM');
    write_file(file, '');
    assert.deepEqual(await stream.rest(), ['2']);
    assert.equal(await exit, 0);
    assert.equal(worker.stderr(), '');
    await see_tombstone(scene.db, gone);
  });

  test('dois num canal: cada tarefa é atendida por um só', async () => {
    const scene = await start_scene(redis, brisk);
    for (const name of ['ana', 'rui']) await start_shell(scene, `echo ${name}; echo fim`);
    const replies = Array.from({ length: 10 }, () => fetch_all(scene.proxy));
    for (const { body } of await Promise.all(replies)) assert.match(body, /^(ana|rui)\nfim\n$/);
  });

  test('fala com o Redis por socket e com senha, e volta a ouvir quando ele volta', async () => {
    const socket = `${temp_dir()}/redis.sock`;
    const locks = ['--requirepass', 'certa', '--unixsocket', socket];
    const own = await start_redis(locks);
    const proxy = await start_proxy(own, ['-S', 'certa', '--failfast', 'on', ...brisk]);
    const see_answer = () =>
      until('resposta', async () => (await fetch_all(proxy)).body === 'ok\n', 25_000);
    for (const server of [`redis://${own.server}`, `unix:${socket}?db=1`]) {
      const env = { REDIS_SERVER: server, REDIS_PASSWORD: 'certa' };
      const worker = start_program('sh', ['scripts/worker/worker.sh', 'echo', 'ok'], env, root);
      await see_answer();
      if (server.startsWith('redis:')) await worker.stop();
    }
    await own.stop();
    await start_redis(locks, { port: own.port, dir: own.dir });
    await see_answer();
  });

  test('sem comando diz o uso', async () => {
    const worker = start_program('sh', ['scripts/worker/worker.sh'], {}, root);
    assert.equal(await worker.exited, 2);
    assert.match(worker.stderr(), /^uso: sh scripts\/worker\/worker\.sh comando/);
  });
});
