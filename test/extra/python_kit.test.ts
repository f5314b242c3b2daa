/*
 * O kit do worker em Python (scripts/worker/worker.py), com a redis-py do Debian, contra o proxy
 * e o Redis de verdade. O worker é kit_worker.py; o teste abre as portas dele criando arquivos.
 */

import assert from 'node:assert/strict';
import { writeFileSync as write_file } from 'node:fs';
import path from 'node:path';
import { before, describe } from 'node:test';
import {
  brisk,
  check_tombstone,
  connect_redis,
  delay,
  end_of,
  exit_of,
  fetch_all,
  type local_redis,
  next_names,
  open_stream,
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

/** O Python do sistema; outro, por exemplo com uma redis-py mais nova, pela variável PYTHON. */
const python = process.env.PYTHON || '/usr/bin/python3';

const kit = path.join(__dirname, '../../scripts/worker');

let redis: local_redis;

before(async () => {
  redis = await start_redis();
});

/**
 * Põe um worker do kit num canal, e espera que ele o ouça.
 * @param channel o canal
 * @param env variáveis a mais; NAME é a última linha de cada resposta
 * @param file o worker
 * @returns o programa; `open`: abre uma porta
 */
async function start_kit(channel: string, env: NodeJS.ProcessEnv = {}, file = 'kit_worker.py') {
  const gates = temp_dir();
  const all = {
    PYTHONPATH: kit,
    GATES: gates,
    REDIS_SERVER: redis.server,
    REDIS_CHANNEL: channel,
    ...env,
  };
  const program = start_program(python, [path.join(__dirname, file)], all);
  await program.wait_for(new RegExp(`ouvindo ${channel}`));
  return { ...program, open: (name: string) => write_file(path.join(gates, name), '') };
}

describe('o kit em Python', { concurrency: true }, () => {
  test('cada yield chega na sua vez, head() escolhe o status, e nada sobra', async () => {
    const scene = await start_scene(redis, brisk);
    const worker = await start_kit(scene.channel);
    const stream = open_stream(scene.proxy, { path: '/gates', body: 'olá' });
    const task = await next_names(scene);
    for (const n of [1, 2, 3]) {
      assert.equal(await scene.db.exists(task.task_list), 0);
      worker.open(String(n));
      assert.deepEqual(JSON.parse((await stream.next()) ?? ''), { n, body: 'olá' });
    }
    assert.deepEqual(await stream.rest(), [' um texto vai como está ', 'fim']);
    assert.equal((await end_of(scene.proxy, task)).ending, 'done');
    assert.deepEqual(await scene.db.keys(`*${task.uuid}`), []);
    const ask = () => fetch_all(scene.proxy, { path: '/head' });
    let reply = await ask();
    // numa máquina carregada a primeira cabeça pode passar de 1 s
    for (let n = 1; n < 10 && reply.status === 200; n += 1) reply = await ask();
    assert.equal(reply.status, 404);
    assert.equal(reply.headers['x-reason'], 'no such order');
    assert.equal(worker.stderr(), '');
  });

  test('uma exceção vira uma linha de erro, e a resposta termina', async () => {
    const scene = await start_scene(redis, brisk);
    const worker = await start_kit(scene.channel);
    const expected: Record<string, RegExp> = {
      '/raise': /^acabou o "papel"\n$/,
      '/circular': /Circular reference/,
      '/object': /not JSON serializable/,
      '/nan': /not JSON compliant/,
      '/exit': /^saiu$/,
      '/interrupt': /^KeyboardInterrupt$/,
      '/cancel': /^CancelledError$/,
      '/return': /^the handler must yield its answer, not return it$/,
    };
    for (const [url, message] of Object.entries(expected)) {
      const { body } = await fetch_all(scene.proxy, { path: url });
      const [first, second = '', ...rest] = body.split('\n');
      assert.deepEqual([first, rest], ['{"n": 1}', ['']], url);
      assert.match(JSON.parse(second).error, message);
      await worker.wait_for(new RegExp(`finally ${url}\n`));
      const task = await next_names(scene);
      assert.equal((await end_of(scene.proxy, task)).ending, 'done');
      assert.deepEqual(await scene.db.keys(`*${task.uuid}`), []);
    }
    assert.match(worker.stderr(), /RuntimeError: acabou/);
    const { body } = await fetch_all(scene.proxy, { path: '/value' });
    assert.equal(body, '{"error": "the handler must yield its answer, not return it"}\n');
  });

  test('o cliente sai: gone() diz, o próximo yield não volta, e só fica o que expira', async () => {
    const scene = await start_scene(redis, brisk);
    const worker = await start_kit(scene.channel);
    for (const url of ['/gone', '/forever']) {
      const stream = open_stream(scene.proxy, { path: url });
      await stream.next();
      stream.leave();
      await worker.wait_for(new RegExp(`finally ${url}\n`));
      await see_tombstone(scene.db, await next_names(scene));
    }
    assert.equal(worker.stderr(), '');
  });

  test('o gerador espera por um cliente lento', async () => {
    const scene = await start_scene(redis, ['--grace', '0', '-P', '60000']);
    const worker = await start_kit(scene.channel, { BACKLOG: '3' });
    const stream = open_stream(scene.proxy, { path: '/forever' });
    await stream.next(); // a outra só sai daqui a um minuto
    const task = await next_names(scene);
    await until('lista cheia', async () => (await scene.db.lLen(task.task_list)) === 3);
    await delay(200); // dez olhadas na lista cheia
    assert.equal(worker.stdout().match(/^yield/gm)?.length, 4);
    stream.leave();
    await worker.wait_for(/finally/);
    await until('limpeza', async () => !(await scene.db.exists(task.task_key)));
    await check_tombstone(scene.db, task);
  });

  test('dois workers num canal: cada tarefa é atendida por um só', async () => {
    const scene = await start_scene(redis, brisk);
    const workers = await Promise.all(
      ['ana', 'rui'].map((name) => start_kit(scene.channel, { NAME: name })),
    );
    const held = [1, 2].map(() => open_stream(scene.proxy, { path: '/hold' }));
    for (const stream of held) assert.equal(await stream.next(), '{"n": 1}');
    const waiting = open_stream(scene.proxy);
    const names = [await next_names(scene), await next_names(scene), await next_names(scene)];
    assert.equal(await scene.db.exists(`ndjson_claim_${names[2]?.uuid}`), 0);
    for (const worker of workers) worker.open('hold');
    const ends = await Promise.all(held.map((stream) => stream.rest()));
    assert.deepEqual(ends.map(([, name]) => name).sort(), ['ana', 'rui']);
    assert.equal((await waiting.rest()).length, 1);
    const replies = Array.from({ length: 20 }, () => fetch_all(scene.proxy));
    for (const { body } of await Promise.all(replies)) assert.match(body, /^(ana|rui)\n$/);
  });

  test('SIGTERM: a tarefa termina e o código é 0; depois de grace, uma linha de erro', async () => {
    const scene = await start_scene(redis, brisk);
    const ends = {
      '10000': ['{"n": 2}', 'fim'],
      '0': ['{"n": 2}', '{"error": "worker stopping"}'],
    };
    for (const [grace, rest] of Object.entries(ends)) {
      const worker = await start_kit(scene.channel, { GRACE: grace });
      const stream = open_stream(scene.proxy, { path: '/hold' });
      await stream.next();
      worker.process.kill('SIGTERM');
      worker.open('hold');
      assert.deepEqual(await stream.rest(), rest);
      assert.equal(await exit_of(worker), 0);
      assert.equal(worker.stderr(), '');
      const task = await next_names(scene);
      assert.equal((await end_of(scene.proxy, task)).ending, 'done');
      assert.deepEqual(await scene.db.keys(`*${task.uuid}`), []);
    }
  });

  test('um Redis que volta sem nada: a tarefa de antes para, a próxima é atendida', async () => {
    const own = await start_redis();
    const proxy = await start_proxy(own, brisk);
    const worker = await start_kit('ndjson_jobs', { REDIS_SERVER: own.server });
    const stream = open_stream(proxy, { path: '/hold' });
    await stream.next();
    await own.stop();
    worker.open('hold');
    await worker.wait_for(/sem Redis: /);
    const again = await start_redis([], { port: own.port, dir: own.dir });
    assert.deepEqual(await stream.rest(), ['{"error": "redis lost"}']);
    await worker.wait_for(/finally/);
    await worker.wait_for(/(ouvindo[\s\S]*){2}/);
    await until('proxy de volta', async () => {
      return (await fetch_all(proxy, { path: '/ping' })).status === 200;
    });
    assert.equal((await fetch_all(proxy)).body, 'fim\n');
    const db = await connect_redis(again);
    assert.equal((await db.pubSubNumSub('ndjson_jobs')).ndjson_jobs, 1);
  });

  test('bytes são linhas; depois de raw() tudo vai byte por byte, e um erro corta', async () => {
    const scene = await start_scene(redis, brisk);
    await start_kit(scene.channel);
    assert.equal((await fetch_all(scene.proxy, { path: '/bytes' })).body, '{"ç":1}\nfim\n');
    const reply = await fetch(`${scene.proxy.url}/raw`);
    assert.deepEqual([reply.status, reply.headers.get('x-two')], [418, 'a, b']);
    const text = Buffer.from(await reply.arrayBuffer()).toString('latin1');
    const event = 'event: e\nid: 7\ndata: b\ndata: c\n\n';
    assert.equal(text, ` a\r\n\0\xff{"n": 1}HTTP ABORT${event}`);
    const cut = fetch(`${scene.proxy.url}/raw-raise`).then((found) => found.text());
    await assert.rejects(cut, /terminated/);
  });

  test('uma mensagem que não serve é deixada, e a próxima é atendida', async () => {
    const scene = await start_scene(redis, brisk);
    const worker = await start_kit(scene.channel);
    const bad: (string | Buffer)[] = [
      'não é JSON',
      'null',
      '7',
      '{"uuid":"x"}',
      '['.repeat(99_999),
    ];
    bad.push('{"uuid":1,"task_key":"a","task_list":"b"}', Buffer.from([0xff, 0xfe]));
    for (const [n, text] of bad.entries()) {
      await scene.db.set(`ndjson_task_bad${n}`, text);
      await scene.db.publish(scene.channel, `ndjson_task_bad${n}`);
    }
    await scene.db.publish(scene.channel, Buffer.from([0xff, 0x00]));
    await scene.db.publish(scene.channel, Buffer.from('ndjson_task_\xff', 'latin1'));
    assert.equal((await fetch_all(scene.proxy)).body, 'fim\n');
    assert.equal(worker.stdout().match(/tarefa deixada: /g)?.length, bad.length + 1);
    assert.equal(worker.stderr(), '');
  });

  test('as formas de REDIS_SERVER servem; o que não serve o termina com uma linha', async () => {
    const { own, forms } = await start_locked_redis();
    for (const [server, secret, where] of forms) {
      const worker = await start_kit('c', { REDIS_SERVER: server, REDIS_PASSWORD: secret });
      await worker.wait_for(/\n/);
      assert.equal(worker.stdout(), `worker: ouvindo c em ${where}\n`, server);
      await worker.stop();
    }
    const bad: [string, string, RegExp][] = [
      [own.server, 'errada', /127\.0\.0\.1:\d+\/1: .*invalid/],
      [own.server, '', /127\.0\.0\.1:\d+\/1: Authentication required/],
      [redis.server, 'x', /127\.0\.0\.1:\d+\/1: .*AUTH/],
      [redis.server.replace(/1$/, '99'), '', /\/99: DB index is out of range/],
      ['http://h/1', '', /aceito host:porta/],
      ['h:70000/1', '', /aceito host:porta/],
      ['h/1?db=2', '', /aceito host:porta/],
    ];
    for (const [server, secret, line] of bad) {
      const env = { PYTHONPATH: kit, REDIS_SERVER: server, REDIS_PASSWORD: secret };
      const worker = start_program(python, [path.join(__dirname, 'kit_worker.py')], env);
      assert.equal(await exit_of(worker), 1, server);
      assert.match(worker.stdout(), line);
      assert.match(worker.stdout() + worker.stderr(), /^worker: [^\n]+\n$/);
    }
  });

  test('diz que as tarefas anunciadas não estão nesse banco', async () => {
    const scene = await start_scene(redis, brisk);
    const other = redis.server.replace(/1$/, '0');
    const worker = await start_kit(scene.channel, { REDIS_SERVER: other });
    const stream = open_stream(scene.proxy);
    const { task_key } = await next_names(scene);
    await worker.wait_for(new RegExp(`worker: ${task_key} não está em ${other}: é outro banco\\?`));
    stream.leave();
  });

  test('um Redis rebaixado: a escrita é tentada de novo, por outra conexão', async () => {
    const own = await start_redis();
    const scene = await start_scene(own, brisk);
    const worker = await start_kit(scene.channel, { REDIS_SERVER: own.server });
    await scene.db.sendCommand(['REPLICAOF', '127.0.0.1', '1']);
    await scene.db.publish(scene.channel, 'ndjson_task_a');
    await worker.wait_for(/não aceita escritas/);
    await scene.db.sendCommand(['REPLICAOF', 'NO', 'ONE']);
    await worker.wait_for(/ndjson_task_a não está em/);
  });
});

describe('serve_wsgi', { concurrency: true }, () => {
  test('o pedido chega inteiro ao Flask, e a resposta dele ao cliente', async () => {
    const scene = await start_scene(redis, brisk);
    await start_kit(scene.channel, {}, 'kit_flask.py');
    const url = `http://127.0.0.1:${scene.proxy.port}/echo/%C3%A7?q=%C3%A7`;
    const body = Buffer.from([0, 255]);
    const reply = await fetch(url, { method: 'PUT', headers: { 'X-A': 'b' }, body });
    assert.equal(reply.status, 201);
    assert.deepEqual(reply.headers.getSetCookie(), ['a=1; Path=/', 'b=2; Path=/']);
    const seen = `PUT|http://127.0.0.1:${scene.proxy.port}/echo/ç?q=ç|127.0.0.1|b|ç`;
    const expected = Buffer.concat([Buffer.from(seen), body]);
    assert.deepEqual(Buffer.from(await reply.arrayBuffer()), expected);
    const ask = (name: string) => fetch_all(scene.proxy, { path: name });
    assert.equal((await ask('/nada')).status, 404);
    const [written, empty] = [await ask('/write'), await ask('/empty')];
    assert.deepEqual([written.body, written.headers['x-a']], ['um dois', 'b']);
    assert.deepEqual([empty.status, empty.body, empty.headers.etag], [204, '', '1']);
  });

  test('aos poucos; uma falha antes é um 500, depois corta; quem sai para o gerador', async () => {
    const scene = await start_scene(redis, brisk);
    const worker = await start_kit(scene.channel, {}, 'kit_flask.py');
    for (const name of ['/fail', '/early', '/twice']) {
      const reply = await fetch_all(scene.proxy, { path: name });
      assert.equal(reply.status, 500, name);
      assert.doesNotMatch(reply.body, /segredo/);
    }
    for (const ending of ['well', 'fail']) {
      worker.open(`${ending}1`);
      const reply = await fetch(`${scene.proxy.url}/pieces/${ending}`);
      assert.equal(reply.headers.get('content-type'), 'text/event-stream; charset=utf-8');
      const reader = reply.body?.getReader();
      for (const n of [1, 2, 3]) {
        const part = Buffer.from((await reader?.read())?.value ?? []).toString();
        assert.equal(part, `data: ${n}\n\n`);
        worker.open(`${ending}${n + 1}`);
      }
      if (ending === 'well') assert.equal((await reader?.read())?.done, true);
      else await assert.rejects(reader?.read() ?? Promise.resolve(), /terminated/);
    }
    const leaving = new AbortController();
    worker.open('left1');
    const { signal } = leaving;
    const reply = await fetch(`${scene.proxy.url}/pieces/left`, { signal });
    await reply.body?.getReader().read();
    leaving.abort();
    await worker.wait_for(/finally left/);
  });
});
