/*
 * As tarefas num stream (REDIS_STREAM): o que o proxy faz, e o kit em TypeScript. O kit em Python
 * está em extra/durable.test.ts.
 */

import assert from 'node:assert/strict';
import { writeFileSync as write_file } from 'node:fs';
import path from 'node:path';
import { before, describe } from 'node:test';
import { serve, type settings } from '../scripts/worker/worker';
import {
  channel,
  durable,
  durable_scenes,
  type kit_options,
  late_s,
  see_empty,
  soon_s,
  stream,
} from './durable_scenes';
import {
  begin,
  brisk,
  connect_redis,
  delay,
  exit_of,
  fetch_all,
  type local_redis,
  on_stop,
  open_stream,
  run_proxy,
  start_program,
  start_proxy,
  start_redis,
  start_scene,
  start_worker,
  temp_dir,
  test,
  until,
  usage_error_of,
} from './harness';
import { make_answer } from './kit_worker';
import { parse_metrics, start_metered } from './metrics_helpers';

const root = path.join(__dirname, '..');

let redis: local_redis;

process.setMaxListeners(0); // cada worker do kit ouve os sinais deste processo

before(async () => {
  redis = await start_redis();
});

/** Põe um worker num processo, que se pode matar; devolve o programa. */
async function spawn({ server, channel, stream, name, takeover, gates }: kit_options) {
  const args = ['--import', 'tsx', 'test/kit_worker.ts'];
  const worker = start_program(
    process.execPath,
    args,
    {
      REDIS_SERVER: server,
      REDIS_CHANNEL: channel,
      REDIS_STREAM: stream,
      NAME: name,
      TAKEOVER: String(takeover),
      GATES: gates,
    },
    root,
  );
  await worker.wait_for(/ouvindo/);
  return worker;
}

/** Põe um worker neste processo; devolve como mandá-lo parar. */
async function start({ server, gates, ...options }: kit_options & Partial<settings>) {
  const order = new AbortController();
  const log: string[] = [];
  const say = (text: string) => log.push(text);
  const given = { ...options, redis: server, grace: 0, stop: order.signal, log: say };
  const done = serve(make_answer(gates, options.name, say), given);
  const stop = () => {
    order.abort();
    return done;
  };
  on_stop(stop);
  await until('worker de pé', () => log.some((text) => text.startsWith('ouvindo ')));
  return { stop };
}

durable_scenes('o kit em TypeScript', { tasks: 10, spawn, start }, () => redis);

describe('o proxy', () => {
  test('a tarefa vai ao stream e ao canal, e sai dele quando acaba, lida ou não', async () => {
    const proxy = await start_proxy(redis, [...durable.slice(0, -1), '500']);
    const worker = await start_worker(redis, channel);
    const { client: db } = worker;
    const stream_of = async () => {
      const entries = await db.xRange(stream, '-', '+');
      return entries?.map((entry) => ({ ...entry?.message }));
    };
    const left = open_stream(proxy);
    const { task_key } = await worker.next();
    assert.deepEqual(await stream_of(), [{ task_key }]);
    left.leave();
    await until('cliente que saiu', async () => (await db.xLen(stream)) === 0);
    const ended = fetch_all(proxy);
    const { task_list } = await worker.next();
    await db.rPush(task_list, ['1', 'EOF']);
    assert.equal((await ended).body, '1\n');
    await until('fim de um worker do canal', async () => (await db.xLen(stream)) === 0);
    assert.doesNotMatch(proxy.stderr(), /no_worker/);
    const { body } = await fetch_all(proxy);
    assert.equal(body, '{"error": "timeout"}\n');
    await proxy.wait_for(/ no_worker task=\S+ hint="ninguém a tomou do stream ndjson_tasks;/);
    assert.equal(await db.xLen(stream), 0);
  });

  test('uma chave que não é um stream, ou sem o direito de escrever nela: nada fica', async () => {
    const own = await start_redis();
    const db = await connect_redis(own);
    await db.set(stream, 'x');
    const refused = await run_proxy(['-p', '0', '-R', own.server, '--stream', stream]);
    assert.equal(await exit_of(refused), 1);
    assert.match(refused.stderr(), / fatal .*a chave de REDIS_STREAM já existe e não é um stream/);
    await db.del(stream);
    await db.aclSetUser('proxy', ['on', '>x', '~*', '&*', '+@all']);
    const server = own.server.replace(/^/, 'redis://proxy:x@');
    const proxy = await start_proxy({ server }, durable);
    await db.set(stream, 'x');
    const wrong = await fetch_all(proxy);
    assert.deepEqual([wrong.status, wrong.body], [503, '{"error": "redis refused a command"}\n']);
    await proxy.wait_for(/ create_failed task=\S+ reason="WRONGTYPE /);
    await until('tarefa desfeita', async () => (await db.keys('ndjson_task_*')).length === 0);
    await db.del(stream);
    await db.aclSetUser('proxy', ['-xadd']);
    const denied = await fetch_all(proxy);
    assert.deepEqual([denied.status, denied.body], [503, '{"error": "redis denied access"}\n']);
    await proxy.wait_for(/ create_failed task=\S+ reason="NOPERM .*xadd/);
    assert.deepEqual(await db.keys('ndjson_task*'), []);
  });

  test('as métricas dizem quantas esperam, e quantas um worker tem em mãos', async () => {
    const own = await start_redis();
    const proxy = await start_metered(own, durable);
    const db = await connect_redis(own);
    await db.xGroupCreate(stream, 'parado', '0', { MKSTREAM: true }); // não conta: nada lê
    const states = async () => {
      const page = parse_metrics((await fetch_all(proxy.metrics, { path: '/metrics' })).body);
      return ['waiting', 'active'].map((state) =>
        page.get(`json_proxy_queue_tasks{state="${state}"}`),
      );
    };
    const see = (waiting: number, active: number) =>
      until(`${waiting} à espera, ${active} em mãos`, async () => {
        return String(await states()) === String([waiting, active]);
      });
    const held = [1, 2, 3].map(() => open_stream(proxy, { path: '/hold' }));
    await see(3, 0);
    const gates = temp_dir();
    const given = { server: own.server, channel, stream, takeover: late_s, gates };
    await start({ ...given, name: 'ana', tasks: 2 });
    await see(1, 2);
    write_file(path.join(gates, 'hold'), '');
    for (const line of held) await line.rest();
    await see(0, 0);
  });

  test('dois grupos: cada tarefa é atendida por um só', async () => {
    const proxy = await start_proxy(redis, durable);
    const db = await connect_redis(redis);
    const given = { server: redis.server, channel, stream, takeover: soon_s, gates: temp_dir() };
    await start({ ...given, name: 'ana' });
    await start({ ...given, name: 'rui', group: 'outros' });
    const replies = Array.from({ length: 40 }, () => fetch_all(proxy));
    for (const { body } of await Promise.all(replies)) assert.match(body, /^(ana|rui)\n$/);
    await see_empty(db);
    await db.xGroupDestroy(stream, 'outros');
  });

  test('numa parada, a tarefa de que nada foi empurrado passa a outro worker', async () => {
    const proxy = await start_proxy(redis, durable);
    const db = await connect_redis(redis);
    const gates = temp_dir();
    const given = { server: redis.server, channel, stream, takeover: late_s, gates };
    const { stop } = await start({ ...given, name: 'ana' });
    const [late, hold] = ['/late', '/hold'].map((path) => open_stream(proxy, { path }));
    await hold?.next();
    await until('duas reservas', async () => (await db.keys('ndjson_claim_*')).length === 2);
    await stop();
    assert.deepEqual(await hold?.rest(), ['{"error":"worker stopping"}']);
    await start({ ...given, name: 'rui' });
    write_file(path.join(gates, 'late'), '');
    assert.deepEqual(await late?.rest(), ['{"n":1}', 'rui']);
    await see_empty(db);
  });

  test('um Redis calado mais que takeover: espera-se antes de tomar a de outro', async () => {
    const own = await start_redis();
    const proxy = await start_proxy(own, durable);
    const db = await connect_redis(own);
    const given = { server: own.server, channel, stream, gates: temp_dir() };
    const frozen = await spawn({ ...given, name: 'ana', takeover: late_s });
    const late = open_stream(proxy, { path: '/late' });
    const has = (name: string) =>
      until(`reserva de ${name}`, async () => {
        const [claim = ''] = await db.keys('ndjson_claim_*');
        return (await db.get(claim))?.startsWith(`ndjson_workers ${name} `);
      });
    await has('ana');
    await start({ ...given, name: 'rui', takeover: soon_s });
    for (const { process: child } of [frozen, own]) child.kill('SIGSTOP');
    await delay(1250 * soon_s);
    own.process.kill('SIGCONT');
    const back_at = performance.now();
    await has('rui');
    assert.ok(performance.now() - back_at > 900 * soon_s);
    frozen.process.kill('SIGCONT');
    write_file(path.join(given.gates, 'late'), '');
    assert.deepEqual(await late.rest(), ['{"n":1}', 'rui']);
  });

  test('FAILFAST, que recusa o que deve esperar, não combina com REDIS_STREAM', () => {
    const line = usage_error_of(['--failfast', 'on', '--stream', stream]);
    assert.match(line, /FAILFAST e REDIS_STREAM dados ao mesmo tempo; aceito: só um deles/);
  });

  test('sem REDIS_STREAM o Redis nada ouve de streams', async () => {
    const own = await start_redis();
    const { proxy, worker, db } = await start_scene(own, brisk);
    const { stream, task } = await begin(proxy, worker, ['1']);
    await db.rPush(task.task_list, 'EOF');
    await stream.rest();
    assert.doesNotMatch(await db.info('commandstats'), /cmdstat_x/);
  });
});

test('opções do kit que não servem são recusadas', async () => {
  const none = async function* () {};
  await assert.rejects(serve(none, { takeover: 1 }), /takeover: 1; ao menos 2 s/);
  await assert.rejects(serve(none, { group: 'a b' }), /group: "a b"; sem espaços/);
  const own = await start_redis();
  const log: string[] = [];
  await (await connect_redis(own)).set(stream, 'x');
  await serve(none, { redis: own.server, stream, log: (text) => log.push(text) });
  assert.match(log.join('\n'), /^127\.0\.0\.1:\d+\/1: WRONGTYPE [^\n]+$/);
  assert.equal(process.exitCode, 1);
  process.exitCode = undefined;
});
