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
  type redis_client,
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
import { start_locked_redis } from './kit_forms';

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

/**
 * Conta os SET que um Redis recusou.
 * @param db cliente do Redis
 * @returns quantos
 */
async function refused_sets(db: redis_client): Promise<number> {
  const info = await db.info('commandstats');
  return Number(/^cmdstat_set:.*rejected_calls=(\d+)/m.exec(info)?.[1] ?? 0);
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

  test('uma linha sem quebra no fim, ou enorme, chega inteira; o erro vem noutra', async () => {
    const scene = await start_scene(redis, brisk);
    const huge = 'x'.repeat(300_000);
    const write_huge = 'head -c 300000 /dev/zero | tr "\\0" x';
    const table: [string, string][] = [
      [`printf %s '{"answer":42}'`, '{"answer":42}\n'],
      ['printf "1\\n2"; exit 4', '1\n2\n{"error": "exit status 4"}\n'],
      ['exit 5', '{"error": "exit status 5"}\n'],
      [`${write_huge}; echo; echo fim`, `${huge}\nfim\n`],
      ['kill -9 $$', '{"error": "exit status 137"}\n'],
    ];
    for (const [command, body] of table) {
      const worker = await start_shell(scene, command);
      assert.equal((await fetch_all(scene.proxy)).body, body);
      assert.equal(await worker.stop('SIGTERM'), 0);
      assert.equal(worker.stderr(), command.includes('kill') ? 'Killed\n' : '');
      await see_listeners(scene.db, scene.channel, 1);
    }
  });

  test('depois de RAW tudo vai byte por byte, aos poucos; uma falha corta a conexão', async () => {
    const scene = await start_scene(redis, brisk);
    const dir = temp_dir();
    const wait = (name: string) => `until [ -e ${dir}/${name} ]; do sleep 0.01; done`;
    const head = `echo 'RAW 201 {"X-A": "b"}'`;
    const bytes = `printf 'a\\0\\377\\r\\n'; ${wait('1')}; printf 'HTTP ABORT'; ${wait('2')}`;
    const command = `${head}; ${bytes}; [ ! -e ${dir}/fail ]`;
    const worker = await start_shell(scene, command);
    const open = (name: string) => write_file(path.join(dir, name), '');
    const reply = await fetch(scene.proxy.url);
    assert.deepEqual([reply.status, reply.headers.get('x-a')], [201, 'b']);
    const reader = reply.body?.getReader();
    for (const [name, text] of [
      ['1', 'a\0\xff\r\n'],
      ['2', 'HTTP ABORT'],
    ] as const) {
      const part = Buffer.from((await reader?.read())?.value ?? []);
      assert.equal(part.toString('latin1'), text);
      open(name);
    }
    assert.equal((await reader?.read())?.done, true);
    open('fail');
    const cut = fetch(scene.proxy.url).then((found) => found.text());
    await assert.rejects(cut, /terminated/);
    assert.equal(await worker.stop('SIGTERM'), 0);
    assert.equal(worker.stderr(), '');
  });

  test('as formas de REDIS_SERVER servem; o que não serve o termina com uma linha', async () => {
    const { own, forms } = await start_locked_redis();
    const start = (server: string, secret: string) => {
      const env = { REDIS_SERVER: server, REDIS_PASSWORD: secret };
      return start_program('sh', ['scripts/worker/worker.sh', 'true'], env, root);
    };
    for (const [server, secret, where] of forms) {
      const worker = start(server, secret);
      await worker.wait_for(/\n/);
      assert.equal(worker.stdout(), `worker: ouvindo ndjson_jobs em ${where}\n`, server);
      await worker.stop();
    }
    const bad: [string, string, RegExp][] = [
      [own.server, 'errada', /127\.0\.0\.1:\d+\/1: .*WRONGPASS/],
      [own.server, '', /127\.0\.0\.1:\d+\/1: .*NOAUTH/],
      [`127.0.0.1:${own.port}/99`, 'c@%: x', /\/99: .*DB index is out of range/],
      ['http://h/1', '', /aceito host:porta/],
      ['h/1?db=2', '', /aceito host:porta/],
      ['redis://u:%zz@h', '', /aceito host:porta/],
    ];
    for (const [server, secret, line] of bad) {
      const worker = start(server, secret);
      assert.equal(await worker.exited, 1, server);
      assert.match(worker.stdout(), line);
      assert.match(worker.stdout(), /^worker: [^\n]+\n$/);
    }
  });

  test('diz que as tarefas anunciadas não estão nesse banco', async () => {
    const scene = await start_scene(redis, brisk);
    const other = redis.server.replace(/1$/, '0');
    const env = { REDIS_SERVER: other, REDIS_CHANNEL: scene.channel };
    const worker = start_program('sh', ['scripts/worker/worker.sh', 'true'], env, root);
    await worker.wait_for(/ouvindo/);
    const stream = open_stream(scene.proxy);
    const { task_key } = await next_names(scene);
    await worker.wait_for(new RegExp(`worker: ${task_key} não está em ${other}: é outro banco\\?`));
    stream.leave();
  });

  test('um Redis rebaixado: a reserva é tentada de novo', async () => {
    const own = await start_redis();
    const scene = await start_scene(own, brisk);
    const env = { REDIS_SERVER: own.server, REDIS_CHANNEL: scene.channel };
    const worker = start_program('sh', ['scripts/worker/worker.sh', 'echo', 'ok'], env, root);
    await worker.wait_for(/ouvindo/);
    await scene.db.set('ndjson_task_a', '{}');
    await scene.db.sendCommand(['REPLICAOF', '127.0.0.1', '1']);
    await scene.db.publish(scene.channel, 'ndjson_task_a');
    await until('recusa', async () => (await refused_sets(scene.db)) > 0);
    await scene.db.sendCommand(['REPLICAOF', 'NO', 'ONE']);
    await until('resposta', async () => (await scene.db.lLen('ndjson_list_a')) === 1);
  });

  test('sem comando diz o uso', async () => {
    const worker = start_program('sh', ['scripts/worker/worker.sh'], {}, root);
    assert.equal(await worker.exited, 2);
    assert.match(worker.stderr(), /^uso: sh scripts\/worker\/worker\.sh comando/);
  });
});
