/*
 * REPLAY: um cliente que cai volta, a qualquer proxy, e segue de onde estava; outro vê a mesma
 * resposta desde o começo; e depois de REPLAY segundos sem ninguém não fica nada.
 */

import assert from 'node:assert/strict';
import { before, describe } from 'node:test';
import {
  begin,
  brisk,
  end_of,
  fetch_all,
  type local_redis,
  open_stream,
  type proxy,
  type redis_client,
  start_cutter,
  start_proxy,
  start_redis,
  start_scene,
  start_worker,
  type task_names,
  test,
  tests_at_once,
  until,
} from './harness';

/** Guarda por mais tempo do que dura o teste. */
const long_replay = [...brisk, '--replay', '300'];

/** Guarda por tão pouco que o teste espera o fim. */
const short_replay = [...brisk, '--replay', '1'];

const events = { accept: 'text/event-stream' };

let redis: local_redis;

before(async () => {
  redis = await start_redis();
});

/** Devolve os cabeçalhos de quem volta a `task` com `lines` linhas. */
function back_to(task: Pick<task_names, 'uuid'>, lines: number | string) {
  return { 'last-event-id': `${task.uuid}:${lines}` };
}

/** Devolve o que resta de `task` a quem volta a `proxy` com `lines` linhas. */
async function rest_of(proxy: proxy, task: Pick<task_names, 'uuid'>, lines: number) {
  const { status, body } = await fetch_all(proxy, { headers: back_to(task, lines) });
  assert.equal(status, 200, body);
  return body.split('\n').slice(0, -1);
}

/** Devolve os números de `from` a `to`, como linhas. */
function numbers(from: number, to: number): string[] {
  return Array.from({ length: to - from + 1 }, (_, index) => String(from + index));
}

/** Confere em `db` que tudo o que há de `task` expira em até `limit_s`. */
async function check_expiring(db: redis_client, task: task_names, limit_s: number): Promise<void> {
  const keys = await db.keys(`*${task.uuid}`);
  for (const key of keys) {
    const ttl = await db.pTTL(key);
    assert.ok(ttl > 0 && ttl <= limit_s * 1000, `${key}: ${ttl} ms`);
  }
}

describe('quem volta', { concurrency: tests_at_once }, () => {
  test('a outro processo a cada corte vê cada linha uma vez, em ordem, e o fim', async () => {
    const { proxy, worker, db } = await start_scene(redis, long_replay);
    const others = await Promise.all([1, 2].map(() => start_proxy(redis, long_replay)));
    const proxies = [proxy, ...others];
    const first = open_stream(proxy);
    const task = await worker.next();
    const seen: string[] = [];
    let stream = first;
    for (let round = 1; round <= 6; round += 1) {
      await db.rPush(task.task_list, numbers(round * 10 - 9, round * 10));
      for (let n = 0; n < 7; n += 1) seen.push((await stream.next()) ?? 'fim');
      stream.leave();
      const next = proxies[round % proxies.length] ?? proxy;
      stream = open_stream(next, { headers: back_to(task, seen.length) });
    }
    await db.rPush(task.task_list, ['61']);
    await db.del(task.task_key);
    assert.deepEqual([...seen, ...(await stream.rest())], numbers(1, 61));
    await until('fim da limpeza', async () => (await db.exists(task.task_list)) === 0);
    assert.deepEqual(await db.keys(`*${task.uuid}`), [`ndjson_sent_${task.uuid}`]);
    await check_expiring(db, task, 300);
  });

  test('uma página aberta no meio vê tudo desde o começo, aqui e em outro processo', async () => {
    const { proxy, worker, db } = await start_scene(redis, long_replay);
    const other = await start_proxy(redis, long_replay);
    const { stream, task } = await begin(proxy, worker, ['1', '2']);
    const late = [proxy, other].map((where) =>
      open_stream(where, { headers: { ...events, ...back_to(task, 0) } }),
    );
    const reloaded = open_stream(other, {
      headers: events,
      path: `/?lastEventId=${task.uuid}:1`,
    });
    const event = (n: number) => [`id: ${task.uuid}:${n}`, `data: ${n}`, ''];
    for (const viewer of late) {
      for (const line of [...event(1), ...event(2)]) assert.equal(await viewer.next(), line);
    }
    for (const n of [3, 4, 5]) {
      await db.rPush(task.task_list, String(n));
      assert.equal(await stream.next(), String(n));
      for (const viewer of late) {
        for (const line of event(n)) assert.equal(await viewer.next(), line);
      }
    }
    await db.rPush(task.task_list, 'EOF');
    const end = [`id: ${task.uuid}`, 'event: end', 'data: {"ending": "done"}', ''];
    assert.deepEqual(await stream.rest(), []);
    for (const viewer of late) assert.deepEqual(await viewer.rest(), end);
    const all = [2, 3, 4, 5].flatMap(event);
    assert.deepEqual(await reloaded.rest(), [...all, ...end]);
  });

  test('depois do fim: tudo, a última linha também, e 204 a quem viu o fim', async () => {
    const { proxy, worker, db } = await start_scene(redis, [...long_replay, '-t', '300']);
    const { stream, task } = await begin(proxy, worker, ['1']);
    const last = '{"error": "timeout"}';
    assert.deepEqual(await stream.rest(), [last]);
    assert.equal((await end_of(proxy, task)).ending, 'timeout');
    assert.deepEqual(await rest_of(proxy, task, 0), ['1', last]);
    assert.deepEqual(await rest_of(proxy, task, 1), [last]);
    assert.deepEqual(await rest_of(proxy, task, 2), []);
    const beyond = await fetch_all(proxy, { headers: back_to(task, 3) });
    assert.equal(beyond.status, 410);
    const event = await fetch_all(proxy, { headers: { ...events, ...back_to(task, 1) } });
    const end = 'event: end\ndata: {"ending": "timeout"}\n\n';
    assert.equal(event.body, `id: ${task.uuid}\ndata: ${last}\n\n${end}`);
    const over = await fetch_all(proxy, { headers: { ...events, 'last-event-id': task.uuid } });
    assert.equal(over.status, 204);
    assert.deepEqual(await db.lRange(task.task_list, 0, -1), ['EOF']);
  });

  test('ninguém volta: o worker ouve o cancelamento, e nada fica', async () => {
    const { proxy, worker, db } = await start_scene(redis, short_replay);
    const { stream, task } = await begin(proxy, worker, ['1']);
    stream.leave();
    await end_of(proxy, task);
    assert.equal(await db.exists(task.task_key), 1);
    await db.rPush(task.task_list, 'tarde');
    await check_expiring(db, task, 1);
    await until('cancelamento', async () => (await db.exists(task.task_key)) === 0);
    await until('nada', async () => (await db.keys(`*${task.uuid}`)).length === 0);
    const gone = await fetch_all(proxy, { headers: back_to(task, 1) });
    const text = '{"error": "the answer is not kept, or not from that line on"}\n';
    assert.deepEqual([gone.status, gone.body], [410, text]);
    const event = await fetch_all(proxy, { headers: { ...events, ...back_to(task, 1) } });
    assert.deepEqual([event.status, event.body], [204, '']);
  });

  test('quem volta renova tudo, e quem sai não encurta a vida de quem fica', async () => {
    const { proxy, worker, db } = await start_scene(redis, short_replay);
    const { stream, task } = await begin(proxy, worker, ['1']);
    const viewer = open_stream(proxy, { headers: back_to(task, 1) });
    await viewer.head();
    stream.leave();
    await end_of(proxy, task);
    let before = Infinity;
    await until('renovação', async () => {
      const ttl = await db.pTTL(task.task_key);
      const is_renewed = ttl > before;
      before = ttl;
      return is_renewed;
    });
    await db.rPush(task.task_list, ['2', 'EOF']);
    assert.deepEqual(await viewer.rest(), ['2']);
  });

  test('a cabeça, a atrasada e RAW são as mesmas', async () => {
    const { proxy, worker, db } = await start_scene(redis, long_replay);
    const first = open_stream(proxy);
    const task = await worker.next();
    await db.rPush(task.task_list, ['', 'HTTP 404 {"X-Cor": "azul"}', '1\n2\n3', 'a\nb', '4']);
    for (const line of ['1', '2', '3', 'a b', '4']) assert.equal(await first.next(), line);
    first.leave();
    for (const n of [0, 2, 4, 5]) {
      const reader = open_stream(proxy, { headers: back_to(task, n) });
      const { statusCode: status, headers } = await reader.head();
      assert.deepEqual([status, headers['x-cor']], [404, 'azul']);
      for (const line of ['1', '2', '3', 'a b', '4'].slice(n))
        assert.equal(await reader.next(), line);
      reader.leave();
    }
    const raw = open_stream(proxy);
    const raw_task = await worker.next();
    await db.rPush(raw_task.task_list, ['RAW 200 {"Content-Type": "text/css"}', 'a{\n', '}\n']);
    for (const line of ['a{', '}']) assert.equal(await raw.next(), line);
    raw.leave();
    await db.del(raw_task.task_key);
    const whole = await fetch_all(proxy, { headers: back_to(raw_task, 0) });
    assert.deepEqual([whole.headers['content-type'], whole.body], ['text/css', 'a{\n}\n']);
    assert.equal((await fetch_all(proxy, { headers: back_to(raw_task, 1) })).status, 410);
  });

  test('a cabeça que chegou tarde é linha para todos', async () => {
    const { proxy, worker, db } = await start_scene(redis, [...long_replay, '--head-wait', '0']);
    const first = open_stream(proxy);
    const task = await worker.next();
    await first.head();
    await db.rPush(task.task_list, ['HTTP 404', '1']);
    for (const line of ['HTTP 404', '1']) assert.equal(await first.next(), line);
    const calm = await start_proxy(redis, long_replay);
    const second = open_stream(calm, { headers: back_to(task, 0) });
    assert.equal((await second.head()).statusCode, 200);
    for (const line of ['HTTP 404', '1']) assert.equal(await second.next(), line);
    await db.rPush(task.task_list, 'EOF');
    assert.deepEqual([await first.rest(), await second.rest()], [[], []]);
  });

  test('um lugar malformado é 400; o id de outro, ou sem REPLAY, é uma tarefa nova', async () => {
    const { proxy, worker, db } = await start_scene(redis, long_replay);
    const off = await start_scene(redis, brisk);
    const uuid = '6b1f2f4e-6d0e-4a35-9b0c-1f2f4e6d0e4a';
    for (const bad of ['', 'x', '-1', '1.5', '1'.repeat(16)]) {
      const reply = await fetch_all(proxy, { headers: back_to({ uuid }, bad) });
      assert.equal(reply.status, 400, bad);
    }
    for (const id of ['42', `urn:uuid:${uuid}`, uuid, `${uuid}7:1`]) {
      const reply = fetch_all(proxy, { headers: { 'last-event-id': id } });
      await db.rPush((await worker.next()).task_list, ['nova', 'EOF']);
      assert.equal((await reply).body, 'nova\n');
    }
    const reply = fetch_all(off.proxy, { headers: back_to({ uuid }, 1) });
    await db.rPush((await off.worker.next()).task_list, ['nova', 'EOF']);
    assert.equal((await reply).body, 'nova\n');
  });

  test('API_KEY e RATE valem para quem volta', async () => {
    const guards = [...long_replay, '--api-key', 'segredo', '--rate', '2/86400'];
    const { proxy, worker, db } = await start_scene(redis, guards);
    const headers = { 'x-api-key': 'segredo' };
    const first = open_stream(proxy, { headers });
    const task = await worker.next();
    await db.rPush(task.task_list, ['1', 'EOF']);
    assert.deepEqual(await first.rest(), ['1']);
    const place = back_to(task, 0);
    assert.equal((await fetch_all(proxy, { headers: { ...headers, ...place } })).body, '1\n');
    const replies = [{ ...headers, ...place }, place].map((all) =>
      fetch_all(proxy, { headers: all }),
    );
    assert.deepEqual(
      (await Promise.all(replies)).map(({ status }) => status),
      [429, 429],
    );
  });

  test('sem memória no Redis os fluxos esperam, e nada falta', async () => {
    const own = await start_redis();
    const { proxy, worker, db } = await start_scene(own, [...long_replay, '-t', '600000']);
    const { stream, task } = await begin(proxy, worker, ['1']);
    const full = ['CONFIG', 'SET', 'maxmemory', '1'];
    await db.multi().rPush(task.task_list, ['2', '3']).addCommand(full).exec();
    await until('recusa', async () => /errorstat_OOM/.test(await db.info('errorstats')));
    await db.configSet('maxmemory', '0');
    for (const line of ['2', '3']) assert.equal(await stream.next(), line);
    await db.del(task.task_key);
    assert.deepEqual(await stream.rest(), []);
    assert.equal((await end_of(proxy, task)).ending, 'done');
  });

  test('uma resposta enorme: o que se guarda tem limite, e o que se foi é 410', async () => {
    const { proxy, worker, db } = await start_scene(redis, long_replay);
    const reader = open_stream(proxy);
    const task = await worker.next();
    await db.rPush(task.task_list, 'HTTP 201');
    const line = (n: number) => `${n} `.padEnd(100_000, 'x');
    for (let n = 1; n <= 400; n += 1) {
      await db.rPush(task.task_list, line(n));
      assert.equal(await reader.next(), line(n));
    }
    const bytes = Number(await db.memoryUsage(`ndjson_sent_${task.uuid}`, { SAMPLES: 0 }));
    assert.ok(bytes > 14 * 2 ** 20 && bytes < 19 * 2 ** 20, `${bytes} bytes`);
    for (const n of [0, 100, 200]) {
      const reply = await fetch_all(proxy, { headers: back_to(task, n) });
      assert.equal(reply.status, 410, String(n));
    }
    await db.rPush(task.task_list, 'EOF');
    const { status, body } = await fetch_all(proxy, { headers: back_to(task, 300) });
    assert.equal(status, 201);
    assert.deepEqual(
      body.split('\n').slice(0, -1),
      numbers(301, 400).map((n) => line(Number(n))),
    );
  });
});

describe('quem não sabe que caiu', { concurrency: tests_at_once }, () => {
  test('a conexão com o Redis cortada 60 vezes sob carga: nenhuma linha falta', async () => {
    const cutter = await start_cutter(redis.port);
    const args = [...long_replay, '-C', 'jobs_cut'];
    const proxy = await start_proxy({ server: `127.0.0.1:${cutter.port}/1` }, args);
    const worker = await start_worker(redis, 'jobs_cut');
    const streams = Array.from({ length: 10 }, () => open_stream(proxy));
    const tasks = await Promise.all(streams.map(() => worker.next()));
    let pushed = 0;
    for (let cuts = 0; cuts < 60; cuts += 1) {
      const links = cutter.links();
      for (let burst = 0; burst < 5; burst += 1) {
        const lines = numbers(pushed + 1, pushed + 40);
        await Promise.all(tasks.map(({ task_list }) => worker.client.rPush(task_list, lines)));
        pushed += 40;
      }
      cutter.cut();
      await until('nova conexão', () => cutter.links() > links);
    }
    await Promise.all(tasks.map(({ task_key }) => worker.client.del(task_key)));
    for (const stream of streams) assert.deepEqual(await stream.rest(), numbers(1, pushed));
    assert.doesNotMatch(proxy.stderr(), /poll_lost/);
  });

  test('o proxy para ou morre: o cliente vê um corte, e segue em outro', async () => {
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      const { proxy, worker, db } = await start_scene(redis, [...long_replay, '-t', '60000']);
      const heir = await start_proxy(redis, long_replay);
      const { stream, task } = await begin(proxy, worker, ['1', '2']);
      proxy.process.kill(signal);
      await assert.rejects(stream.rest());
      await db.rPush(task.task_list, ['3', 'EOF']);
      assert.deepEqual(await rest_of(heir, task, 2), ['3']);
    }
  });
});
