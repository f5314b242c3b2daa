/*
 * O Redis que morre e é substituído pela réplica, por ordem dos sentinels. O que importa: nada que
 * não está inteiro acaba como se estivesse. O que o primário não chegou a passar à réplica está
 * perdido, e o fluxo que o pode ter perdido acaba com erro; os outros seguem.
 */

import assert from 'node:assert/strict';
import path from 'node:path';
import {
  type begin,
  brisk,
  connect_redis,
  end_of,
  fetch_all,
  type local_redis,
  open_stream,
  type proxy,
  type redis_client,
  start_program,
  start_proxy,
  start_worker,
  temp_dir,
  test,
  until,
  type worker,
} from '../harness';
import { type sentinel_scene, start_sentinels } from './sentinel_helpers';

/** Quantos fluxos de cada espécie; são cinco. */
const crowd = 10;

/** O que se promete entre a escolha do primário e o primeiro pedido atendido. */
const promised_ms = 3000;

/** Uma pausa entre linhas que deixa algumas na lista quando o primário morre. */
const paused = ['-P', '5000', '--grace', '0'];

const lost_line = '{"error": "redis lost"}';

/** Mais do que cabe nos buffers da conexão com a réplica: o que vier atrás não sai da memória. */
const flood = 'x'.repeat(32 * 1024 * 1024);

const kit = path.join(__dirname, '../../scripts/worker');

/** Um fluxo aberto. */
type opened = Awaited<ReturnType<typeof begin>>;

/**
 * Abre fluxos, todos com as mesmas linhas.
 * @param proxy o proxy
 * @param worker o worker
 * @param pushed as linhas que o worker empurra em cada um
 * @param seen as que o cliente já deve ter
 * @returns os fluxos
 */
async function open_many(proxy: proxy, worker: worker, pushed: string[] = [], seen = pushed) {
  const streams: opened[] = [];
  for (let n = 0; n < crowd; n += 1) {
    const stream = open_stream(proxy);
    const task = await worker.next();
    if (pushed.length > 0) await worker.client.rPush(task.task_list, pushed);
    for (const line of seen) assert.equal(await stream.next(), line);
    streams.push({ stream, task });
  }
  return streams;
}

/**
 * Espera que cada proxy tenha olhado, depois de agora, até onde vai a história do primário.
 * @param redis o primário
 * @param count quantos proxies
 */
async function see_looks(redis: local_redis, count: number): Promise<void> {
  const monitor = await connect_redis(redis);
  const askers = new Set<string>();
  await monitor.monitor((line) => {
    const [, asker = ''] = / \[1 (\S+)\] "INFO"$/.exec(String(line)) ?? [];
    if (asker) askers.add(asker);
  });
  await until('olhadas dos proxies', () => askers.size === count);
}

/**
 * Impede que a réplica receba o que se escrever daqui em diante no primário.
 * @param scene os servidores
 * @param db o primário
 */
async function hold_replica({ second }: sentinel_scene, db: redis_client): Promise<void> {
  second.process.kill('SIGSTOP');
  await db.set('enchente', flood);
}

/**
 * Mata o primário, e espera que a réplica, que volta a andar, tome o lugar dele.
 * @param scene os servidores
 * @returns um cliente do primário novo, onde um worker responde "nova" a cada pedido
 */
async function fail_over({ first, second, moved_from }: sentinel_scene): Promise<redis_client> {
  first.process.kill('SIGKILL');
  second.process.kill('SIGCONT');
  await moved_from(first.port);
  const [db, subscriber] = [await connect_redis(second), await connect_redis(second)];
  await subscriber.subscribe('ndjson_jobs', (task_key) => {
    void db.rPush(task_key.replace('task', 'list'), ['nova', 'EOF']);
  });
  return db;
}

/**
 * Confere que fluxos acabaram com a linha de erro, e não como se estivessem inteiros.
 * @param proxy o proxy deles
 * @param streams os fluxos
 */
async function check_lost(proxy: proxy, streams: opened[]): Promise<void> {
  for (const { stream, task } of streams) {
    assert.equal((await stream.rest()).at(-1), lost_line);
    assert.equal((await end_of(proxy, task)).ending, 'redis_lost');
  }
}

/**
 * Confere que fluxos que nada perderam seguem no primário novo até o fim.
 * @param proxy o proxy deles
 * @param streams os fluxos
 * @param db o primário novo
 */
async function check_going_on(proxy: proxy, streams: opened[], db: redis_client): Promise<void> {
  for (const { stream, task } of streams) {
    await db.rPush(task.task_list, ['depois 1', 'depois 2']);
    await db.del(task.task_key);
    assert.deepEqual(await stream.rest(), ['depois 1', 'depois 2']);
    assert.equal((await end_of(proxy, task)).ending, 'done');
  }
}

test('morre com 50 fluxos: seguem os que podem, os outros acabam com erro', async (context) => {
  const scene = await start_sentinels();
  const [proxy, slow] = await Promise.all([
    start_proxy(scene, [...brisk, '-t', '120000']),
    start_proxy(scene, [...paused, '-C', 'devagar', '-t', '120000']),
  ]);
  const worker = await start_worker(scene.first);
  const slow_worker = await start_worker(scene.first, 'devagar');
  const { client: db } = worker;

  const silent = await open_many(proxy, worker);
  const begun = await open_many(proxy, worker, ['antes']);
  const held = await open_many(slow, slow_worker, ['1'], ['1']);
  await see_looks(scene.first, 2);
  await hold_replica(scene, db);
  const fresh = await open_many(proxy, worker); // a réplica nem sabe deles
  const fed = begun.splice(crowd / 2);
  for (const { task } of fed) await db.rPush(task.task_list, 'só no que morre');
  for (const { stream } of fed) assert.equal(await stream.next(), 'só no que morre');
  for (const { task } of held) await db.rPush(task.task_list, ['2', '3']); // nem o cliente os viu

  const next = await fail_over(scene);
  const elected_at = performance.now();
  await until('pedido atendido', async () => (await fetch_all(proxy)).body === 'nova\n');
  const ms = Math.round(performance.now() - elected_at);
  context.diagnostic(`da eleição ao primeiro pedido atendido: ${ms} ms`);
  assert.ok(ms < promised_ms, `${ms} ms`);

  await check_lost(proxy, [...fresh, ...fed]);
  await check_lost(slow, held);
  await check_going_on(proxy, [...silent, ...begun], next);
  assert.match(proxy.stdout(), / primary redis=127\.0\.0\.1:\d+\n/);
});

test('trava, e depois morre: o proxy segue para o novo, e um worker em Python também', async () => {
  const scene = await start_sentinels();
  const proxy = await start_proxy(scene, [...brisk, '-t', '120000']);
  const env = { PYTHONPATH: kit, GATES: temp_dir(), REDIS_SERVER: scene.server };
  const worker = start_program('/usr/bin/python3', [path.join(__dirname, 'kit_worker.py')], env);
  await worker.wait_for(/ouvindo ndjson_jobs em sentinel:/);
  const ask = async () => (await fetch_all(proxy, { path: '/head' })).status;
  assert.equal(await ask(), 404);
  scene.first.process.kill('SIGSTOP');
  await scene.moved_from(scene.first.port);
  const ping = () => fetch_all(proxy, { path: '/ping' });
  await until('o proxy no primário novo', async () => (await ping()).status === 200);
  scene.first.process.kill('SIGKILL'); // a redis-py não nota um Redis que só se cala
  await until('o worker no novo', () => worker.stdout().match(/ouvindo/g)?.length === 2);
  assert.equal(await ask(), 404);
  assert.match(proxy.stderr(), / redis_down redis=sentinel:\S+ reason=/);
});
