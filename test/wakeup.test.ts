/*
 * Os avisos do Redis (CLIENT TRACKING): o sono de um fluxo acaba quando a lista ou a tarefa muda.
 * Com INTERVAL de dez minutos, uma linha só chega a tempo se o aviso a trouxer.
 */

import assert from 'node:assert/strict';
import http from 'node:http';
import net from 'node:net';
import { before, describe } from 'node:test';
import {
  begin,
  connect_redis,
  end_of,
  fetch_all,
  type local_redis,
  on_stop,
  open_socket,
  open_stream,
  type proxy,
  see_tombstone,
  served,
  start_proxy,
  start_redis,
  start_scene,
  start_worker,
  task_named,
  test,
  tests_at_once,
  until,
  type worker,
} from './harness';

/** Consultas tão raras que nenhuma acontece dentro do teste. */
const rare_polls = ['-i', '600000', '-P', '1', '--wakeup', 'on'];

let redis: local_redis;

before(async () => {
  redis = await start_redis();
});

/**
 * Sobe um intermediário que pode estragar o pedido de avisos por prefixo.
 * @param port a porta do Redis
 * @returns `server`, na forma de REDIS_SERVER; `spoil`: corta as conexões, e as próximas terão o
 *   pedido estragado ou não
 */
async function start_spoiler(port: number) {
  const state = { spoiled: false, sockets: new Set<net.Socket>() };
  const relay = net.createServer((inner) => {
    const outer = net.connect(port, '127.0.0.1');
    const change = (text: string) => (state.spoiled ? text.replace('BCAST', 'BXAST') : text);
    inner.on('data', (chunk) => outer.write(change(chunk.toString('latin1')), 'latin1'));
    outer.on('data', (chunk) => inner.write(chunk));
    inner.on('error', () => {}).on('close', () => outer.destroy());
    outer.on('error', () => {}).on('close', () => inner.destroy());
    state.sockets.add(inner);
  });
  await new Promise<void>((resolve) => relay.listen(0, '127.0.0.1', resolve));
  on_stop(async () => relay.close());
  const spoil = (spoiled: boolean) => {
    state.spoiled = spoiled;
    for (const socket of state.sockets) socket.destroy();
  };
  return { server: `127.0.0.1:${(relay.address() as net.AddressInfo).port}/1`, spoil };
}

/**
 * Abre um fluxo e espera que ele esteja dormindo: a primeira linha chegou e a pausa dela passou.
 * @param proxy o proxy
 * @param worker o worker
 * @returns o fluxo e a tarefa
 */
function open_idle(proxy: proxy, worker: worker) {
  return begin(proxy, worker, ['primeira']);
}

describe('avisos', () => {
  test('uma linha, o DEL e o EOF acordam o fluxo sem esperar INTERVAL', async () => {
    const { proxy, worker, db } = await start_scene(redis, rare_polls);
    assert.match(proxy.stdout(), / wakeup mode=tracking\n/);
    const { stream, task } = await open_idle(proxy, worker);
    for (const line of ['a', 'b', 'c']) {
      await db.rPush(task.task_list, line);
      assert.equal(await stream.next(), line);
    }
    await db.del(task.task_key);
    assert.deepEqual(await stream.rest(), []);
    const other = await open_idle(proxy, worker);
    await db.rPush(other.task.task_list, 'EOF');
    assert.deepEqual(await other.stream.rest(), []);
  });

  test('mil linhas, cada uma empurrada quando a anterior chega: nenhuma fica presa', async () => {
    const { proxy, worker, db } = await start_scene(redis, [...rare_polls, '-P', '0']);
    const { stream, task } = await open_idle(proxy, worker);
    for (let n = 0; n < 1000; n += 1) {
      await db.rPush(task.task_list, String(n));
      assert.equal(await stream.next(), String(n));
    }
    await db.del(task.task_key);
    assert.deepEqual(await stream.rest(), []);
  });

  test('muitos fluxos ao mesmo tempo, cada um com as suas linhas', async () => {
    const { proxy, worker, db } = await start_scene(redis, rare_polls);
    const run_one = async (path: string) => {
      const stream = open_stream(proxy, { path });
      const { task_list, task_key, url } = await worker.next();
      for (let n = 0; n < 20; n += 1) await db.rPush(task_list, `${url} ${n}`);
      await db.del(task_key);
      return stream.rest();
    };
    const paths = Array.from({ length: 50 }, (_, n) => `/${n}`);
    const results = await Promise.all(paths.map(run_one));
    const expected = paths.map((path) => Array.from({ length: 20 }, (_, n) => `${path} ${n}`));
    assert.deepEqual(results, expected);
  });

  test('a renovação do TTL não desarma o aviso', async () => {
    const { proxy, worker, db } = await start_scene(redis, [...rare_polls, '--ttl', '1']);
    const { stream, task } = await open_idle(proxy, worker);
    for (let round = 0; round < 2; round += 1) {
      const before_ms = await db.pTTL(task.task_key);
      await until('renovação', async () => (await db.pTTL(task.task_key)) > before_ms);
      await db.rPush(task.task_list, `volta ${round}`);
      assert.equal(await stream.next(), `volta ${round}`);
    }
    await db.del(task.task_key);
    assert.deepEqual(await stream.rest(), []);
  });

  test('uma renovação na mesma volta do Redis não esconde a linha', async () => {
    const own = await start_redis(['--enable-debug-command', 'yes']);
    const { proxy, worker, db } = await start_scene(own, [
      ...rare_polls,
      '-t',
      '90000',
      '--ttl',
      '2',
    ]);
    const idle = await Promise.all(Array.from({ length: 5 }, () => open_stream(proxy)));
    const tasks = [];
    for (const _ of idle) tasks.push(await worker.next());
    const sleeper = await connect_redis(own);
    // dorme mais que o intervalo das renovações: ao acordar, o Redis atende tudo de uma vez
    const asleep = sleeper.sendCommand(['DEBUG', 'SLEEP', '1.2']);
    await Promise.all(tasks.map((task) => db.rPush(task.task_list, task.uuid)));
    await asleep;
    const lines = await Promise.all(idle.map((stream) => stream.next()));
    assert.deepEqual(lines.toSorted(), tasks.map(({ uuid }) => uuid).toSorted());
    for (const stream of idle) stream.leave();
  });

  test('depois de uma reconexão o aviso vale de novo', async () => {
    const own = await start_redis();
    const { proxy, worker, db } = await start_scene(own, rare_polls);
    const { stream, task } = await open_idle(proxy, worker);
    const killer = await connect_redis(own);
    for (let round = 0; round < 3; round += 1) {
      const clients = await killer.sendCommand(['CLIENT', 'LIST']);
      const [, id = ''] = /^id=(\d+) .*resp=3/m.exec(String(clients)) ?? [];
      await killer.sendCommand(['CLIENT', 'KILL', 'ID', id]);
      const ups = new RegExp(`(?: redis_up [\\s\\S]*){${round + 1}}`);
      await proxy.wait_for(ups);
      await db.rPush(task.task_list, `volta ${round}`);
      assert.equal(await stream.next(), `volta ${round}`);
    }
    await db.del(task.task_key);
    assert.deepEqual(await stream.rest(), []);
  });

  test('recusado numa reconexão, o aviso dá lugar às consultas, e volta quando puder', async () => {
    const own = await start_redis();
    const relay = await start_spoiler(own.port);
    const proxy = await start_proxy(relay, ['-i', '5', '--wakeup', 'on']);
    const worker = await start_worker(own);
    const { stream, task } = await open_idle(proxy, worker);
    for (const [spoiled, logged] of [
      [true, / redis_up [\s\S]* wakeup mode=polling reason="ERR syntax error"\n/],
      [false, / mode=polling [\s\S]* wakeup mode=tracking\n/],
    ] as const) {
      relay.spoil(spoiled);
      await proxy.wait_for(logged);
      await worker.client.rPush(task.task_list, `${spoiled}`);
      assert.equal(await stream.next(), `${spoiled}`);
    }
    await worker.client.del(task.task_key);
    assert.deepEqual(await stream.rest(), []);
  });

  test('o Redis não guarda nada dos avisos de uma tarefa que acabou', async () => {
    const own = await start_redis();
    const { proxy, worker, db } = await start_scene(own, rare_polls);
    for (const last of ['EOF', 'fica']) {
      const { stream, task } = await open_idle(proxy, worker);
      await db.multi().rPush(task.task_list, last).del(task.task_key).exec();
      assert.deepEqual(await stream.rest(), last === 'EOF' ? [] : [last]);
    }
    const { stream, task } = await open_idle(proxy, worker);
    stream.leave();
    await see_tombstone(db, task);
    assert.match(await db.info('stats'), /^tracking_total_keys:0\r?$/m);
    assert.match(await db.info('stats'), /^tracking_total_prefixes:2\r?$/m);
  });

  test('cada proxy só ouve das suas tarefas', async () => {
    const { proxy, worker, db } = await start_scene(redis, rare_polls);
    const { proxy: other, worker: its_worker } = await start_scene(redis, rare_polls);
    const heads = [];
    for (const [at, who] of [
      [proxy, worker],
      [proxy, worker],
      [other, its_worker],
    ] as const) {
      const { stream, task } = await open_idle(at, who);
      await db.del(task.task_key);
      assert.deepEqual(await stream.rest(), []);
      heads.push(task.uuid);
    }
    const [first = '', second = '', third = ''] = heads;
    assert.equal(first.slice(0, 2), second.slice(0, 2));
    assert.notEqual(first.slice(2, 8), second.slice(2, 8));
    // um vizinho que tenha o mesmo começo é ouvido, e nada do que é dele muda
    const { stream, task } = await open_idle(proxy, worker);
    const neighbor = task_named(`${first.slice(0, 2)}${third.slice(2)}`);
    await db.set(neighbor.task_key, '{}');
    await db.rPush(neighbor.task_list, 'dele');
    await db.rPush(task.task_list, ['nossa', 'EOF']);
    assert.deepEqual(await stream.rest(), ['nossa']);
    assert.deepEqual(await db.lRange(neighbor.task_list, 0, -1), ['dele']);
    assert.equal(await db.ttl(neighbor.task_key), -1);
    assert.equal(proxy.stderr(), '');
  });

  test('uma linha por vez custa uma consulta: dois comandos', async () => {
    const { proxy, worker, db } = await start_scene(redis, rare_polls);
    const { stream, task } = await open_idle(proxy, worker);
    const before_it = [await served(db, 'lpop'), await served(db, 'exists')];
    const lines = 50;
    for (let n = 0; n < lines; n += 1) {
      await db.rPush(task.task_list, String(n));
      assert.equal(await stream.next(), String(n));
    }
    const after_it = [await served(db, 'lpop'), await served(db, 'exists')];
    for (const [index, count] of after_it.entries()) {
      const calls = count - (before_it[index] ?? 0);
      assert.ok(calls >= lines && calls <= lines * 1.2, `${calls} em ${lines} linhas`);
    }
    await db.del(task.task_key);
    assert.deepEqual(await stream.rest(), []);
  });

  test('sob carga uma tarefa nova não espera por um PING', async () => {
    const { proxy, worker, db } = await start_scene(redis, rare_polls);
    await worker.subscriber.unsubscribe();
    const end_task = (key: string) => db.rPush(key.replace('_task_', '_list_'), 'EOF');
    await worker.subscriber.pSubscribe('jobs_*', end_task);
    const pings_before = await served(db, 'ping');
    const agent = new http.Agent({ keepAlive: true, maxSockets: 20 });
    const tasks = 400;
    await Promise.all(Array.from({ length: tasks }, () => fetch_all(proxy, { agent })));
    agent.destroy();
    const pings = (await served(db, 'ping')) - pings_before;
    assert.ok(pings < tasks, `${pings} PINGs em ${tasks} tarefas`);
  });

  test('FLUSHALL não passa por sucesso', async () => {
    const { proxy, worker, db } = await start_scene(redis, rare_polls);
    const { stream } = await open_idle(proxy, worker);
    await db.flushAll();
    assert.deepEqual(await stream.rest(), ['{"error": "redis lost"}']);
    await proxy.wait_for(/ ending=redis_lost /);
  });

  test('FLUSHALL com uma consulta a caminho, e um worker que segue: também não', async () => {
    const { proxy, worker, db } = await start_scene(redis, [...rare_polls, '-P', '1000']);
    const admin = await connect_redis(redis);
    const stream = open_stream(proxy);
    const task = await worker.next();
    await db.rPush(task.task_list, ['1', '2']);
    assert.equal(await stream.next(), '1'); // a pausa dá tempo ao FLUSHALL de entrar na fila
    await admin.sendCommand(['CLIENT', 'PAUSE', '60000', 'WRITE']);
    const wiped = db.multi().flushAll().rPush(task.task_list, ['3', '4']).exec();
    const blocked = async (count: number) =>
      Number(/^blocked_clients:(\d+)/m.exec(await admin.info('clients'))?.[1]) === count;
    await until('FLUSHALL na fila', () => blocked(1));
    await until('consulta na fila, atrás dele', () => blocked(2));
    await admin.sendCommand(['CLIENT', 'UNPAUSE']);
    await wiped;
    assert.equal((await stream.rest()).at(-1), '{"error": "redis lost"}');
    assert.equal((await end_of(proxy, task)).ending, 'redis_lost');
  });

  test('FLUSHALL enquanto a última linha ainda sai não desfaz o sucesso', async () => {
    const { proxy, worker, db } = await start_scene(redis, rare_polls);
    const client = await open_socket(proxy.port);
    client.send('GET / HTTP/1.1\r\nHost: a\r\n\r\n');
    const task = await worker.next();
    const hold = (text: string) => {
      if (text.includes('xxx')) client.socket.off('data', hold).pause();
    };
    client.socket.on('data', hold);
    const last = 'x'.repeat(12_000_000);
    await db.multi().rPush(task.task_list, last).del(task.task_key).exec();
    await until('o começo da linha', () => client.text().includes('xxx'));
    await db.flushAll();
    client.socket.resume();
    await until('fim da resposta', () => client.text().endsWith('\r\n0\r\n\r\n'), 30_000);
    assert.equal((await end_of(proxy, task)).ending, 'done');
    assert.doesNotMatch(client.text().slice(-200), /redis lost/);
  });

  test('FLUSHALL no meio de fluxos que correm também não', async () => {
    const { proxy, worker, db } = await start_scene(redis, [...rare_polls, '-P', '0']);
    const lines = Array.from({ length: 20_000 }, (_, n) => String(n));
    const streams = Array.from({ length: 40 }, () => open_stream(proxy));
    const tasks = [];
    for (const _ of streams) tasks.push(await worker.next());
    await Promise.all(tasks.map(({ task_list }) => db.rPush(task_list, lines)));
    await streams[0]?.next();
    await db.flushAll();
    const endings = await Promise.all(streams.map((stream) => stream.rest()));
    for (const received of endings) {
      const is_whole = received.length === lines.length; // tudo já tinha saído antes
      assert.ok(is_whole || received.at(-1) === '{"error": "redis lost"}', received.at(-1));
    }
    const endings_logged = () => `${proxy.stdout()}${proxy.stderr()}`.match(/ ending=\w+/g) ?? [];
    await until('fins', () => endings_logged().length === streams.length);
    assert.ok(endings_logged().every((ending) => ending === ' ending=redis_lost'));
  });

  test('um fluxo parado quase não consulta; com WAKEUP off consulta a cada INTERVAL', async () => {
    const args = ['-i', '10', '-t', '1500', '--wakeup'];
    const { proxy, db } = await start_scene(redis, [...args, 'on']);
    const before_it = await served(db, 'lpop');
    assert.equal((await fetch_all(proxy)).body, '{"error": "timeout"}\n');
    const polls = (await served(db, 'lpop')) - before_it;
    assert.ok(polls <= 4, `${polls} consultas com avisos`);
    const { proxy: other } = await start_scene(redis, ['-i', '10', '--wakeup', 'off']);
    open_stream(other);
    const many = async () => (await served(db, 'lpop')) - before_it - polls >= 20;
    await until('vinte consultas sem avisos', many);
  });
});

describe('onde o servidor recusa', { concurrency: tests_at_once }, () => {
  const no_tracking = ['ana', 'on', '>senha', '~*', '&*', '+@all', '-client|tracking'];
  for (const [what, options, reason] of [
    ['o CLIENT TRACKING', ['--user', ...no_tracking], /reason="NOPERM .*"/],
    ['o HELLO', ['--rename-command', 'HELLO', ''], /reason="ERR unknown command/],
  ] as const) {
    test(`sem ${what}, consulta a cada INTERVAL e diz por quê`, async () => {
      const own = await start_redis([...options]);
      const user = options[0] === '--user' ? 'ana:senha@' : '';
      const server = `redis://${user}127.0.0.1:${own.port}/1`;
      const proxy = await start_proxy({ server }, ['-i', '5']);
      assert.match(proxy.stdout(), / wakeup mode=polling /);
      assert.match(proxy.stdout(), reason);
      const worker = await start_worker(own);
      const { stream, task } = await open_idle(proxy, worker);
      await worker.client.rPush(task.task_list, ['x', 'EOF']);
      assert.deepEqual(await stream.rest(), ['x']);
      assert.equal(proxy.stderr(), '');
    });
  }

  test('um servidor que desliga ao ouvir HELLO é servido sem ele', async () => {
    const own = await start_redis();
    const gate = net.createServer((client) => {
      const upstream = net.connect(own.port, '127.0.0.1');
      const drop = () => [client, upstream].map((socket) => socket.destroy());
      for (const socket of [client, upstream]) socket.on('error', drop).on('close', drop);
      upstream.pipe(client);
      client.on('data', (bytes) => (bytes.includes('HELLO') ? drop() : upstream.write(bytes)));
    });
    await new Promise<void>((resolve) => gate.listen(0, '127.0.0.1', resolve));
    on_stop(async () => gate.close());
    const { port } = gate.address() as net.AddressInfo;
    const proxy = await start_proxy({ server: `127.0.0.1:${port}/1` }, ['-i', '5']);
    assert.match(proxy.stdout(), / wakeup mode=polling reason="Socket closed unexpectedly"\n/);
    const worker = await start_worker(own);
    const { stream, task } = await open_idle(proxy, worker);
    await worker.client.rPush(task.task_list, ['x', 'EOF']);
    assert.deepEqual(await stream.rest(), ['x']);
    assert.equal(proxy.stderr(), '');
  });

  test('um Redis que não conhece HELLO ecoa a senha no erro; o log não', async () => {
    const options = ['--rename-command', 'HELLO', '', '--requirepass', 'hunter2'];
    const proxy = await start_proxy(await start_redis(options), ['-S', 'hunter2']);
    assert.match(proxy.stdout(), / wakeup mode=polling reason="ERR unknown command 'HELLO'"\n/);
    assert.doesNotMatch(`${proxy.stdout()}${proxy.stderr()}`, /hunter2/);
    assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
  });

  test('WAKEUP off não pede avisos', async () => {
    const own = await start_redis();
    const proxy = await start_proxy(own, ['--wakeup', 'off']);
    assert.match(proxy.stdout(), / wakeup mode=polling reason="WAKEUP off"\n/);
    const db = await connect_redis(own);
    const stats = await db.info('commandstats');
    assert.doesNotMatch(stats, /cmdstat_client\|tracking|cmdstat_hello/);
  });
});
