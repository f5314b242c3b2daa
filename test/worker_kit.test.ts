/*
 * O kit do worker (scripts/worker/worker.ts) contra o proxy e o Redis de verdade. Quase todo
 * gerador mora aqui, para que o teste decida quando ele anda; os sinais são provados num processo à
 * parte. Os gêmeos em Python e em shell estão em test/extra.
 */

import assert from 'node:assert/strict';
import {
  copyFileSync as copy_file,
  mkdirSync as make_dir,
  writeFileSync as write_file,
} from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { before, describe } from 'node:test';
import { type handler, head, redis_place, serve, type settings } from '../scripts/worker/worker';
import {
  brisk,
  check_tombstone,
  closed_port,
  connect_redis,
  delay,
  end_of,
  exit_of,
  fetch_all,
  freeze_redis,
  type local_redis,
  next_names,
  on_stop,
  open_stream,
  type scene,
  see_listeners,
  see_tombstone,
  start_program,
  start_redis,
  start_scene,
  temp_dir,
  test,
  tests_at_once,
  until,
} from './harness';

const root = path.join(__dirname, '..');

let redis: local_redis;

process.setMaxListeners(0); // cada worker do kit ouve os sinais deste processo

before(async () => {
  redis = await start_redis();
});

/**
 * Faz uma porta que o gerador espera e o teste abre.
 * @returns `passed`: cumprida quando aberta; `open`: abre
 */
function make_gate() {
  let open = () => {};
  const passed = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { passed, open };
}

/**
 * Espera que alguém aborte.
 * @param signal o sinal
 */
function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve()));
}

/**
 * Põe um worker do kit no canal de uma cena, e espera que ele o ouça.
 * @param where o canal
 * @param handler quem responde
 * @param options o que muda dos padrões
 * @returns `log`: o que ele contou; `stop`: manda parar e espera que pare
 */
async function start_kit(
  where: Pick<scene, 'channel'>,
  handler: handler,
  options: Partial<settings> = {},
) {
  const order = new AbortController();
  const log: string[] = [];
  const done = serve(handler, {
    redis: redis.server,
    channel: where.channel,
    grace: 0,
    stop: order.signal,
    log: (text) => log.push(text),
    ...options,
  });
  const stop = () => {
    order.abort();
    return done;
  };
  on_stop(stop);
  await until('worker no canal', () =>
    log.some((text) => text.startsWith(`ouvindo ${where.channel} em `)),
  );
  return { log, stop };
}

/**
 * Põe o worker de exemplo, noutro processo, no canal de uma cena, e espera que ele o ouça.
 * @param where o canal
 * @param args argumentos a mais
 * @returns o programa
 */
async function start_example(where: Pick<scene, 'channel'>, args: string[]) {
  const basics = [
    '--import',
    'tsx',
    'scripts/worker/examples/worker-example.ts',
    '--loop',
    '-R',
    redis.server,
  ];
  const options = [...basics, '-C', where.channel, ...args];
  const program = start_program(process.execPath, options, {}, root);
  await program.wait_for(/ouvindo/);
  return program;
}

describe('uma tarefa', { concurrency: tests_at_once }, () => {
  test('cada yield chega na sua vez, e no fim não sobra nada no Redis', async () => {
    const scene = await start_scene(redis, brisk);
    const gates = [make_gate(), make_gate(), make_gate()];
    let yielded = 0;
    await start_kit(scene, async function* (task) {
      for (const { passed } of gates) {
        await passed;
        yielded += 1;
        yield { n: yielded, body: task.body };
      }
      yield ' um texto vai como está ';
    });
    const stream = open_stream(scene.proxy, { body: 'olá' });
    const task = await next_names(scene);
    for (const [index, { open }] of gates.entries()) {
      assert.equal(yielded, index);
      open();
      assert.equal(await stream.next(), `{"n":${index + 1},"body":"olá"}`);
    }
    assert.deepEqual(await stream.rest(), [' um texto vai como está ']);
    const { ending, lines } = await end_of(scene.proxy, task);
    assert.deepEqual({ ending, lines }, { ending: 'done', lines: '4' });
    assert.deepEqual(await scene.db.keys(`*${task.uuid}`), []);
  });

  test('head() escolhe o status e os cabeçalhos', async () => {
    const scene = await start_scene(redis, brisk);
    await start_kit(scene, async function* () {
      yield head(404, { 'Content-Type': 'application/json', 'X-Reason': 'no such order' });
      yield { error: 'not found' };
    });
    let reply = await fetch_all(scene.proxy);
    // numa máquina carregada a primeira cabeça pode passar de 1 s
    for (let n = 1; n < 10 && reply.status === 200; n += 1) reply = await fetch_all(scene.proxy);
    assert.equal(reply.status, 404);
    assert.equal(reply.headers['content-type'], 'application/json');
    assert.equal(reply.headers['x-reason'], 'no such order');
    assert.equal(reply.body, '{"error":"not found"}\n');
  });

  test('uma exceção vira uma linha de erro, e a resposta termina', async () => {
    const scene = await start_scene(redis, brisk);
    const circular: Record<string, unknown> = {};
    circular.self = circular;
    const values: Record<string, unknown> = {
      '/circular': circular,
      '/bigint': 1n,
      '/undefined': undefined,
      '/function': () => {},
    };
    const ended: string[] = [];
    const { log } = await start_kit(scene, async function* (task) {
      try {
        yield { n: 1 };
        if (task.url === '/throw') throw new Error('acabou o "papel"\n');
        if (task.url === '/text') throw 'um texto';
        if (task.url === '/empty') throw new TypeError();
        yield values[task.url];
      } finally {
        ended.push(task.url);
      }
    });
    const expected: Record<string, RegExp> = {
      '/throw': /^acabou o "papel"\n$/,
      '/text': /^um texto$/,
      '/empty': /^TypeError$/,
      '/circular': /circular structure/,
      '/bigint': /BigInt/,
      '/undefined': /^a line cannot be made of undefined$/,
      '/function': /^a line cannot be made of function$/,
    };
    for (const [url, message] of Object.entries(expected)) {
      const reply = await fetch_all(scene.proxy, { path: url });
      const [first, second = '', ...rest] = reply.body.split('\n');
      assert.deepEqual([first, rest], ['{"n":1}', ['']], url);
      assert.match(JSON.parse(second).error, message);
      const task = await next_names(scene);
      assert.equal((await end_of(scene.proxy, task)).ending, 'done');
      assert.deepEqual(await scene.db.keys(`*${task.uuid}`), [], url);
      assert.equal(ended.pop(), url);
      assert.match(log.at(-1) ?? '', new RegExp(`^${task.uuid} falhou: `));
    }
  });

  test('o cliente sai: o signal aborta, os finally rodam, e só fica o que expira', async () => {
    const scene = await start_scene(redis, brisk);
    const reached: string[] = [];
    const { log } = await start_kit(scene, async function* (task, signal) {
      try {
        yield { n: 1 };
        if (task.url === '/waits') await aborted(signal);
        for (;;) {
          yield { n: 2 };
          await delay(5);
        }
      } finally {
        reached.push(task.url);
      }
    });
    for (const url of ['/waits', '/yields']) {
      const stream = open_stream(scene.proxy, { path: url });
      assert.equal(await stream.next(), '{"n":1}');
      const task = await next_names(scene);
      assert.deepEqual(reached, []);
      stream.leave();
      await until('finally', () => reached.pop() === url);
      await until('fim no log do worker', () => log.at(-1) === `${task.uuid} interrompida`);
      await see_tombstone(scene.db, task);
    }
  });

  test('o gerador espera por um cliente lento, e para se ele sai', async () => {
    const scene = await start_scene(redis, ['--grace', '0', '-P', '60000']);
    let [yielded, ended] = [0, false];
    const forever: handler = async function* () {
      try {
        for (;;) yield { n: ++yielded };
      } finally {
        ended = true;
      }
    };
    await start_kit(scene, forever, { backlog: 3 });
    const stream = open_stream(scene.proxy);
    assert.equal(await stream.next(), '{"n":1}'); // a outra só sai daqui a um minuto
    const task = await next_names(scene);
    await until('lista cheia', async () => (await scene.db.lLen(task.task_list)) === 3);
    await delay(200); // dez olhadas na lista cheia
    assert.equal(yielded, 4);
    assert.equal(await scene.db.lLen(task.task_list), 3);
    stream.leave();
    await until('finally', () => ended);
    await until('limpeza', async () => !(await scene.db.exists(task.task_key)));
    await check_tombstone(scene.db, task);
  });

  test('a reserva leva o nome do worker e é renovada enquanto a tarefa roda', async () => {
    const scene = await start_scene(redis, brisk);
    const gate = make_gate();
    const slow: handler = async function* () {
      await gate.passed;
      yield { n: 1 };
    };
    await start_kit(scene, slow, { name: 'ana', claim_ttl: 5 });
    const stream = open_stream(scene.proxy);
    const { uuid } = await next_names(scene);
    const claim = `ndjson_claim_${uuid}`;
    await until('reserva', async () => (await scene.db.get(claim)) === 'ana');
    let left = await scene.db.pTTL(claim);
    assert.ok(left > 0 && left <= 5000, `TTL ${left}`);
    await until('renovação', async () => {
      const before = left;
      left = await scene.db.pTTL(claim);
      return left > before;
    });
    gate.open();
    assert.deepEqual(await stream.rest(), ['{"n":1}']);
  });
});

describe('várias tarefas e vários workers', { concurrency: tests_at_once }, () => {
  test('dois workers num canal: cada tarefa é atendida por um só', async () => {
    const scene = await start_scene(redis, brisk);
    const served: string[] = [];
    const gate = make_gate();
    const answer = (name: string): handler =>
      async function* (task) {
        served.push(task.uuid);
        yield name;
        if (task.url === '/hold') await gate.passed;
        yield 'fim';
      };
    await start_kit(scene, answer('ana'), { tasks: 1 });
    await start_kit(scene, answer('rui'), { tasks: 1 });
    const held = [1, 2].map(() => open_stream(scene.proxy, { path: '/hold' }));
    const names = await Promise.all(held.map((stream) => stream.next()));
    assert.deepEqual(names.sort(), ['ana', 'rui']); // a segunda não esperou pela primeira
    const quick = Array.from({ length: 40 }, () => fetch_all(scene.proxy));
    gate.open();
    for (const { body } of await Promise.all(quick)) assert.match(body, /^(ana|rui)\nfim\n$/);
    for (const stream of held) assert.deepEqual(await stream.rest(), ['fim']);
    assert.equal(served.length, 42);
    assert.equal(new Set(served).size, 42);
  });

  test('acima do limite esperam sem reserva, e a que perdeu o cliente é deixada', async () => {
    const scene = await start_scene(redis, brisk);
    const running = new Map<string, ReturnType<typeof make_gate>>();
    const begun: string[] = [];
    const held: handler = async function* (task) {
      const gate = make_gate();
      running.set(task.url, gate);
      begun.push(task.url);
      await gate.passed;
      yield task.url;
      running.delete(task.url);
    };
    const { log } = await start_kit(scene, held, { tasks: 2 });
    const open = async (url: string) => {
      const stream = open_stream(scene.proxy, { path: url });
      return { url, stream, task: await next_names(scene) };
    };
    const [a, b, c, d] = [await open('/a'), await open('/b'), await open('/c'), await open('/d')];
    await until('duas em andamento', () => running.size === 2);
    for (const { task } of [c, d]) {
      assert.equal(await scene.db.exists(`ndjson_claim_${task.uuid}`), 0);
    }
    c.stream.leave();
    await until('tarefa desfeita', async () => !(await scene.db.exists(c.task.task_key)));
    running.get('/a')?.open();
    assert.deepEqual(await a.stream.rest(), ['/a']);
    await until('a vez de /d', () => running.has('/d'));
    assert.deepEqual(begun, ['/a', '/b', '/d']);
    for (const url of ['/b', '/d']) running.get(url)?.open();
    for (const { url, stream } of [b, d]) assert.deepEqual(await stream.rest(), [url]);
    await see_tombstone(scene.db, c.task);
    assert.ok(log.every((text) => !text.includes(c.task.uuid)));
  });

  test('uma chave de outra instalação no mesmo canal é deixada', async () => {
    const scene = await start_scene(redis, [...brisk, '-X', 'pedido:']);
    const begun: string[] = [];
    const note: handler = async function* (task) {
      begun.push(task.task_key);
      yield 'lida';
    };
    await start_kit(scene, note, { prefix: 'pedido:' });
    await scene.db.set('alheia:1', '{}');
    await scene.db.publish(scene.channel, 'alheia:1');
    assert.equal((await fetch_all(scene.proxy)).body, 'lida\n');
    assert.match(begun.join(), /^pedido:[^,]+$/);
    assert.equal(await scene.db.del('alheia:1'), 1);
  });

  test('tasks que não é ao menos 1 é recusado', async () => {
    const none: handler = async function* () {};
    await assert.rejects(serve(none, { tasks: 0 }), /tasks: 0; ao menos 1/);
  });
});

describe('a parada', { concurrency: tests_at_once }, () => {
  test('com a ordem de parar, o que roda termina; o que espera e o que chega ficam', async () => {
    const scene = await start_scene(redis, brisk);
    const gate = make_gate();
    const held: handler = async function* (task) {
      yield task.url;
      await gate.passed;
      yield 'fim';
    };
    const { stop } = await start_kit(scene, held, { tasks: 1, grace: 60_000 });
    const running = open_stream(scene.proxy, { path: '/runs' });
    assert.equal(await running.next(), '/runs');
    const { uuid } = await next_names(scene);
    const waiting = open_stream(scene.proxy);
    const tasks = [await next_names(scene)];
    const stopped = stop();
    await see_listeners(scene.db, scene.channel, 1);
    const late = open_stream(scene.proxy);
    tasks.push(await next_names(scene));
    gate.open();
    assert.deepEqual(await running.rest(), ['fim']);
    await stopped;
    assert.deepEqual(await scene.db.keys(`*${uuid}`), []);
    for (const task of tasks) {
      assert.deepEqual(await scene.db.keys(`*${task.uuid}`), [task.task_key]); // e sem reserva
    }
    for (const stream of [waiting, late]) stream.leave();
  });

  test('SIGTERM no meio de uma tarefa: ela termina, e o código é 0', async () => {
    const scene = await start_scene(redis, brisk);
    const worker = await start_example(scene, ['--pause', '200']);
    const stream = open_stream(scene.proxy);
    assert.match((await stream.next()) ?? '', /"n":1,/);
    worker.process.kill('SIGTERM');
    const task = await next_names(scene);
    assert.equal((await stream.rest()).length, 4);
    assert.equal((await end_of(scene.proxy, task)).ending, 'done');
    assert.equal(await exit_of(worker), 0);
    assert.equal(worker.stderr(), '');
  });

  test('um segundo sinal mata na hora', async () => {
    const scene = await start_scene(redis, brisk);
    const worker = await start_example(scene, ['--pause', '60000']);
    await see_listeners(scene.db, scene.channel, 2);
    const stream = open_stream(scene.proxy);
    await stream.next();
    worker.process.kill('SIGINT');
    await see_listeners(scene.db, scene.channel, 1);
    worker.process.kill('SIGTERM');
    assert.equal(await exit_of(worker), 128);
    assert.equal(worker.process.signalCode, 'SIGTERM');
    stream.leave();
  });

  test('o que não termina em `grace` ouve o signal, e o cliente lê uma linha de erro', async () => {
    const scene = await start_scene(redis, brisk);
    const ended: string[] = [];
    const { stop } = await start_kit(scene, async function* (task, signal) {
      try {
        yield task.url;
        if (task.url === '/deaf') await new Promise(() => {});
        await aborted(signal);
      } finally {
        ended.push(task.url);
      }
    });
    const streams = ['/listens', '/deaf'].map((url) => open_stream(scene.proxy, { path: url }));
    for (const stream of streams) await stream.next();
    await stop(); // nem o gerador surdo a segura
    for (const stream of streams) {
      assert.deepEqual(await stream.rest(), ['{"error":"worker stopping"}']);
    }
    for (const _ of streams) {
      const task = await next_names(scene);
      await end_of(scene.proxy, task);
      assert.deepEqual(await scene.db.keys(`*${task.uuid}`), []);
    }
    assert.deepEqual(ended, ['/listens']);
  });
});

describe('o Redis', { concurrency: tests_at_once }, () => {
  test('conexões derrubadas se refazem, e a tarefa segue', async () => {
    const own = await start_redis();
    const scene = await start_scene(own, brisk);
    const gate = make_gate();
    const handler: handler = async function* (task) {
      yield 'antes';
      if (task.url === '/hold') await gate.passed;
      yield 'depois';
    };
    const { log } = await start_kit(scene, handler, { redis: own.server });
    const stream = open_stream(scene.proxy, { path: '/hold' });
    assert.equal(await stream.next(), 'antes');
    const admin = await connect_redis(own);
    for (const type of ['pubsub', 'normal']) {
      await admin.sendCommand(['CLIENT', 'KILL', 'TYPE', type, 'SKIPME', 'yes']);
    }
    await until('queda e volta', () => log.includes('o Redis voltou'));
    gate.open();
    assert.deepEqual(await stream.rest(), ['depois']);
    await see_listeners(admin, scene.channel, 2);
    assert.equal((await fetch_all(scene.proxy)).body, 'antes\ndepois\n');
  });

  test('um Redis que volta sem nada: a tarefa de antes para, a próxima é atendida', async () => {
    const own = await start_redis();
    const scene = await start_scene(own, brisk);
    let ended = 0;
    const handler: handler = async function* (task, signal) {
      try {
        yield task.url;
        if (task.url === '/hold') await aborted(signal);
      } finally {
        ended += 1;
      }
    };
    const { log } = await start_kit(scene, handler, { redis: own.server });
    const stream = open_stream(scene.proxy, { path: '/hold' });
    assert.equal(await stream.next(), '/hold');
    await own.stop();
    await until('queda no log', () => log.some((text) => text.startsWith('sem Redis: ')));
    const again = await start_redis([], { port: own.port, dir: own.dir });
    assert.deepEqual(await stream.rest(), ['{"error": "redis lost"}']);
    await until('finally', () => ended === 1);
    await see_listeners(await connect_redis(again), scene.channel, 2);
    await until('proxy de volta', async () => {
      return (await fetch_all(scene.proxy, { path: '/ping' })).status === 200;
    });
    assert.equal((await fetch_all(scene.proxy, { path: '/next' })).body, '/next\n');
  });

  /**
   * Um Redis que não perde nada morre e volta no meio de uma resposta.
   * @param dies_first se já morreu quando a linha do meio é entregue; senão, está congelado
   * @returns as linhas do cliente depois da primeira
   */
  const revive_redis = async (dies_first: boolean) => {
    // ao voltar leva 1 s a carregar os dados, e a cada mil recusa o que lhe pedem, com LOADING
    const slow_load = ['--key-load-delay', '200', '--appendonly', 'yes'];
    const durable = [...slow_load, '--appendfsync', 'always'];
    const own = await start_redis(durable);
    const scene = await start_scene(own, brisk);
    await Promise.all(Array.from({ length: 5000 }, (_, n) => scene.db.set(`outra:${n}`, 'x')));
    const gate = make_gate();
    const handler: handler = async function* () {
      yield 'antes';
      await gate.passed;
      yield 'no meio';
      yield 'depois';
    };
    const { log } = await start_kit(scene, handler, { redis: own.server });
    const stream = open_stream(scene.proxy);
    assert.equal(await stream.next(), 'antes');
    const see_death = () =>
      until('queda no log', () => log.some((text) => text.startsWith('sem Redis: ')));
    await freeze_redis(own);
    if (dies_first) {
      await own.stop('SIGKILL');
      await see_death();
    }
    gate.open();
    await delay(50); // a linha sai deste mesmo processo: muitas voltas do laço de eventos
    await own.stop('SIGKILL');
    await see_death();
    await start_redis(durable, { port: own.port, dir: own.dir });
    // se o worker termina antes que o proxy volte, o proxy acrescenta a queixa dele
    return (await stream.rest()).filter((line) => line !== '{"error": "redis lost"}');
  };

  test('a linha que ainda não saiu espera pela volta do Redis', async () => {
    assert.deepEqual(await revive_redis(true), ['no meio', 'depois']);
  });

  test('da linha a caminho de um Redis que morre não se sabe: a resposta é um erro', async () => {
    const [line = '', ...rest] = await revive_redis(false);
    assert.match(
      line,
      /^\{"error":"(Socket closed unexpectedly|(read|write) (ECONNRESET|EPIPE))"\}$/,
    );
    assert.deepEqual(rest, []);
  });

  test('um Redis sem memória: uma resposta incompleta não passa por inteira', async () => {
    const own = await start_redis();
    const scene = await start_scene(own, brisk);
    const gate = make_gate();
    const handler: handler = async function* () {
      yield 'antes';
      await gate.passed;
      yield 'depois';
    };
    const { log } = await start_kit(scene, handler, { redis: own.server });
    const stream = open_stream(scene.proxy);
    assert.equal(await stream.next(), 'antes');
    const task = await next_names(scene);
    await scene.db.configSet('maxmemory', '1');
    gate.open();
    await until('recusa no log', () => log.some((text) => /^tarefa deixada: .*OOM/.test(text)));
    assert.equal(await scene.db.exists(task.task_key), 1); // o cliente lerá o erro de MAXTIME
    stream.leave();
  });

  test('sem Redis o worker tenta para sempre, e obedece à ordem de parar', async () => {
    const log: string[] = [];
    const order = new AbortController();
    const done = serve(async function* () {}, {
      redis: `127.0.0.1:${await closed_port()}`,
      stop: order.signal,
      log: (text) => log.push(text),
    });
    await until('queixa', () => log.some((text) => /^sem Redis: .*ECONNREFUSED/.test(text)));
    order.abort();
    await done;
    assert.equal(log.length, 1);
  });

  test('o endereço vem em todas as formas de REDIS_SERVER, e a senha dada vence', async () => {
    const socket = `${temp_dir()}/redis.sock`;
    const locked = await start_redis(['--requirepass', 'c@rta:1', '--unixsocket', socket]);
    const servers = [
      `127.0.0.1:${locked.port}/1`,
      `redis://:errada@127.0.0.1:${locked.port}/1`,
      `redis://default@127.0.0.1:${locked.port}`,
      `${socket}?db=1`,
      `unix:${socket}?db=1`,
      `unix://default:errada@${socket}`,
    ];
    for (const server of servers) {
      const options = { redis: server, secret: 'c@rta:1' };
      const { stop } = await start_kit({ channel: 'canal' }, async function* () {}, options);
      await stop();
    }
    assert.equal(redis_place('[::1]:6380/2', '').where, '[::1]:6380/2');
    assert.deepEqual(redis_place('rediss://h', 'x').socket, { host: 'h', port: 6379, tls: true });
    const file = path.join(temp_dir(), 'senha');
    write_file(file, 'c@rta:1\n');
    const args = [
      '--import',
      'tsx',
      'scripts/worker/examples/worker-example.ts',
      '-R',
      locked.server,
    ];
    const env = { REDIS_PASSWORD_FILE: file };
    const worker = start_program(process.execPath, args, env, root);
    await worker.wait_for(/ouvindo ndjson_jobs/);
    assert.equal(await worker.stop('SIGINT'), 0);
  });
});

/**
 * Serve um worker até que ele termine sozinho.
 * @param options o que muda dos padrões
 * @param answer quem responde
 * @returns o que ele contou, e o código de saída que deixou
 */
async function serve_to_end(options: Partial<settings>, answer: handler = async function* () {}) {
  const log: string[] = [];
  await serve(answer, { redis: redis.server, log: (text) => log.push(text), ...options });
  const { exitCode: code } = process;
  process.exitCode = undefined;
  return { log, code };
}

describe('o que o worker diz', { concurrency: tests_at_once }, () => {
  test('um endereço, uma senha ou um banco que não servem o terminam com uma linha', async () => {
    const locked = await start_redis(['--requirepass', 'certa']);
    const open = redis.server.replace(/\/1$/, '');
    const table: [Partial<settings>, RegExp][] = [
      [{ redis: locked.server }, /^127\.0\.0\.1:\d+\/1: NOAUTH /],
      [{ redis: `127.0.0.1:${locked.port}` }, /^127\.0\.0\.1:\d+\/0: NOAUTH /],
      [{ redis: locked.server, secret: 'errada' }, /^127\.0\.0\.1:\d+\/1: WRONGPASS /],
      [{ redis: `${open}/99` }, /^127\.0\.0\.1:\d+\/99: ERR DB index is out of range/],
      [{ redis: redis.server, secret: 'x' }, /^127\.0\.0\.1:\d+\/1: ERR AUTH /],
      [{ redis: 'http://h/1' }, /^redis: aceito host:porta/],
      [{ redis: 'h:70000/1' }, /^redis: aceito host:porta/],
      [{ redis: '[::z]:1/1' }, /^redis: aceito host:porta/],
      [{ redis: 'h/1?db=2' }, /^redis: aceito host:porta/],
      [{ redis: 'redis://u:%zz@h' }, /malformed/],
    ];
    for (const [options, line] of table) {
      const { log, code } = await serve_to_end(options);
      assert.equal(log.length, 1, log.join('\n'));
      assert.match(log[0] ?? '', line);
      assert.equal(code, 1);
    }
  });

  test('diz onde ouve, e que as tarefas anunciadas não estão nesse banco', async () => {
    const scene = await start_scene(redis, brisk);
    const other = redis.server.replace(/1$/, '0');
    const { log } = await start_kit(scene, async function* () {}, { redis: other });
    assert.deepEqual(log, [`ouvindo ${scene.channel} em ${other}`]);
    const stream = open_stream(scene.proxy);
    const { task_key } = await next_names(scene);
    await until('queixa', () => log.length > 1);
    assert.equal(log[1], `${task_key} não está em ${other}: é outro banco?`);
    stream.leave();
  });

  test('quem devolve em vez de entregar ouve isso, e o cliente também', async () => {
    const scene = await start_scene(redis, brisk);
    const answers: Record<string, () => unknown> = {
      '/value': () => ({ n: 1 }),
      '/promise': async () => ({ n: 1 }),
      '/text': () => 'abc',
      '/nothing': () => undefined,
      '/generator': async function* () {
        yield { n: 1 };
        return { n: 2 };
      },
    };
    const { log } = await start_kit(scene, (task) => answers[task.url]?.() as never);
    const said = '{"error":"the handler must yield its answer, not return it"}\n';
    for (const url of Object.keys(answers)) {
      const { body } = await fetch_all(scene.proxy, { path: url });
      assert.equal(body, url === '/generator' ? `{"n":1}\n${said}` : said, url);
      assert.match(log.at(-1) ?? '', /falhou: TypeError: the handler must yield/);
    }
  });

  test('uma função que falha antes de dar o gerador não derruba o worker', async () => {
    const scene = await start_scene(redis, brisk);
    const fails: Record<string, () => never> = {
      '/throws': () => {
        throw new Error('acabou');
      },
      '/rejects': () => Promise.reject(new Error('acabou')) as never,
    };
    await start_kit(scene, (task) => fails[task.url]?.() as never);
    for (const path of Object.keys(fails)) {
      assert.equal((await fetch_all(scene.proxy, { path })).body, '{"error":"acabou"}\n');
    }
  });

  test('uma mensagem que não serve é deixada, e a próxima é atendida', async () => {
    const scene = await start_scene(redis, brisk);
    const { log } = await start_kit(scene, async function* () {
      yield 'ok';
    });
    const bad: (string | Buffer)[] = ['', 'não é JSON', 'null', '7', '{"uuid":"x"}', '[]'];
    bad.push('{"uuid":1,"task_key":"a","task_list":"b"}', Buffer.from([0xff, 0xfe]));
    for (const [n, text] of bad.entries()) {
      await scene.db.set(`ndjson_task_bad${n}`, text);
      await scene.db.publish(scene.channel, `ndjson_task_bad${n}`);
    }
    await scene.db.lPush('ndjson_task_list', 'x');
    await scene.db.publish(scene.channel, 'ndjson_task_list');
    await scene.db.publish(scene.channel, Buffer.from([0xff, 0x00]));
    assert.equal((await fetch_all(scene.proxy)).body, 'ok\n');
    await until('queixas', () => {
      return log.filter((text) => text.startsWith('tarefa deixada: ')).length === bad.length + 1;
    });
  });

  test('um redis de outra versão é recusado', async () => {
    const dir = temp_dir();
    const fake = path.join(dir, 'node_modules/redis');
    make_dir(fake, { recursive: true });
    write_file(path.join(fake, 'index.js'), 'exports.createClient = () => {}; // como o 4\n');
    copy_file(path.join(root, 'scripts/worker/worker.ts'), path.join(dir, 'worker.ts'));
    write_file(
      path.join(dir, 'answer.ts'),
      "import { serve } from './worker';\nserve(async function* () {});\n",
    );
    const args = ['--import', path.join(root, 'node_modules/tsx/dist/loader.mjs'), 'answer.ts'];
    const worker = start_program(process.execPath, args, {}, dir);
    assert.equal(await exit_of(worker), 1);
    assert.equal(worker.stdout(), 'worker: o pacote redis deve ser o 6: npm install redis@6\n');
    assert.equal(worker.stderr(), '');
  });

  test('o worker de exemplo recusa uma opção com uma linha', async () => {
    const table: [string[], RegExp][] = [
      [['--porta', '1'], /^worker-example: Unknown option '--porta'/],
      [['--pause', 'x'], /^worker-example: --pause: 'x' não é um tempo em ms/],
    ];
    for (const [flags, line] of table) {
      const args = ['--import', 'tsx', 'scripts/worker/examples/worker-example.ts', ...flags];
      const worker = start_program(process.execPath, args, {}, root);
      assert.equal(await exit_of(worker), 2);
      assert.match(worker.stderr(), line);
      assert.match(worker.stderr(), /^[^\n]+\n$/);
    }
  });
});

/**
 * Faz um nome que aponta para um Redis, e que se pode apontar para outro: só as conexões novas vão
 * para lá.
 * @param port a porta do primeiro
 * @returns a porta do nome; `point_to`: muda para onde ele aponta
 */
async function start_name(port: number) {
  let target = port;
  const server = net.createServer((inner) => {
    const outer = net.connect(target, '127.0.0.1');
    inner.pipe(outer).pipe(inner);
    for (const socket of [inner, outer]) socket.on('error', () => {});
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  on_stop(async () => server.close());
  const { port: own } = server.address() as net.AddressInfo;
  const point_to = (next: number) => {
    target = next;
  };
  return { port: own, point_to };
}

test('um Redis rebaixado: a conexão é trocada, e a tarefa é atendida no novo', async () => {
  const [old, next] = [await start_redis(), await start_redis()];
  const name = await start_name(old.port);
  const scene = await start_scene(next, brisk);
  const gate = make_gate();
  const handler: handler = async function* () {
    yield 'antes';
    await gate.passed;
    yield 'depois';
  };
  const server = `127.0.0.1:${name.port}/1`;
  const { log } = await start_kit(scene, handler, { redis: server });
  const admin = await connect_redis(old);
  await admin.sendCommand(['REPLICAOF', '127.0.0.1', String(next.port)]);
  await until('réplica em dia', async () => (await admin.info('replication')).includes(':up\r\n'));
  const stream = open_stream(scene.proxy); // o rebaixado repete o anúncio do novo
  await until('recusa', () => log.some((text) => text.includes('não aceita escritas')));
  name.point_to(next.port);
  assert.equal(await stream.next(), 'antes');
  gate.open();
  assert.deepEqual(await stream.rest(), ['depois']);
});
