/*
 * Um cluster: cada processo do proxy se liga a um mestre, e as chaves das suas tarefas ficam todas
 * nele. Morre um mestre, mudam-se slots com fluxos abertos: o que não pode seguir acaba com erro, e
 * nada que não está inteiro acaba como se estivesse.
 */

import assert from 'node:assert/strict';
import { describe } from 'node:test';
import { createCluster as create_cluster } from 'redis';
import { key_slot, type task_record } from '../../json-proxy';
import {
  brisk,
  connect_redis,
  on_stop,
  open_stream,
  type proxy,
  start_proxy,
  test,
  until,
} from '../harness';
import { type cluster_node, type cluster_scene, run_cli, start_cluster } from './cluster_helpers';

/** Quantos fluxos, repartidos por três processos. */
const crowd = 60;

/** Consultas tão raras que nenhuma acontece dentro do teste: só os avisos trazem as linhas. */
const by_news = [...brisk, '-i', '600000', '-t', '120000', '--workers', '3', '--rate', '9999/60'];

const lost_line = '{"error": "redis lost"}';

const moved_line = '{"error": "redis refused a command"}';

/** Um cliente do cluster inteiro. */
type cluster_client = Awaited<ReturnType<typeof connect_cluster>>;

/** Um fluxo aberto, com o slot das chaves dele. */
type opened = { stream: ReturnType<typeof open_stream>; task: task_record; slot: number };

/**
 * Conecta um cliente a um cluster.
 * @param scene o cluster
 * @returns o cliente
 */
async function connect_cluster({ nodes }: cluster_scene) {
  const places = nodes.map(({ port }) => ({ socket: { host: '127.0.0.1', port } }));
  const client = create_cluster({ RESP: 2, rootNodes: places });
  client.on('error', () => {}).on('node-error', () => {});
  await client.connect();
  on_stop(async () => client.isOpen && client.destroy());
  return client;
}

/**
 * Sobe um cluster, um proxy de três processos, e quem ouve o canal num nó qualquer.
 * @returns o cluster, o proxy, um cliente, e como abrir fluxos
 */
async function start_scene() {
  const scene = await start_cluster();
  const [proxy, db] = [await start_proxy(scene, by_news), await connect_cluster(scene)];
  await until('os três processos', () => proxy.stdout().match(/ process_ready /g)?.length === 3);
  const keys: string[] = [];
  const subscriber = await connect_redis(scene.nodes.at(-1) ?? { port: 0 }, 0);
  await subscriber.subscribe('ndjson_jobs', (task_key) => void keys.push(task_key));
  const open_one = async (): Promise<opened> => {
    const stream = open_stream(proxy);
    const task_key = await until('tarefa anunciada', () => keys.shift());
    const task = JSON.parse((await db.get(task_key)) ?? '');
    return { stream, task, slot: key_slot(task.uuid) };
  };
  const streams: opened[] = [];
  for (let n = 0; n < crowd; n += 1) streams.push(await open_one());
  return { ...scene, proxy, db, streams, open_one };
}

/**
 * Diz se um nó guarda um slot.
 * @param node o nó
 * @param slot o slot
 * @returns true se é um dos dele
 */
function holds(node: cluster_node, slot: number): boolean {
  return node.slots.split(' ').some((range) => {
    const [from = -1, to = from] = range.split('-').map(Number);
    return from <= slot && slot <= to;
  });
}

/**
 * Espera o fim de um fluxo no log, que tem vários processos.
 * @param proxy o proxy
 * @param task a tarefa
 * @returns o fim
 */
async function ending_of(proxy: proxy, { uuid }: task_record): Promise<string> {
  const [, ending = ''] = await proxy.wait_for(new RegExp(` end task=${uuid} ending=(\\w+) `));
  return ending;
}

/**
 * Empurra linhas em fluxos, apaga as tarefas, e confere que tudo chegou e que acabaram bem.
 * @param proxy o proxy
 * @param db o cluster
 * @param streams os fluxos
 */
async function finish(proxy: proxy, db: cluster_client, streams: opened[]): Promise<void> {
  for (const { stream, task } of streams) {
    await db.rPush(task.task_list, ['1', '2']);
    await db.del(task.task_key);
    assert.deepEqual(await stream.rest(), ['1', '2']);
    assert.equal(await ending_of(proxy, task), 'done');
    const { task_key, task_list } = task;
    assert.equal(await db.exists([task_key, task_list]), 0);
  }
}

describe('um cluster de três mestres', { concurrency: 1 }, () => {
  test('fluxos em todos os mestres, e os avisos trazem as linhas de todos', async () => {
    const { proxy, db, streams, look } = await start_scene();
    const masters = (await look()).filter(({ is_master }) => is_master);
    for (const master of masters) {
      const of_it = streams.filter(({ slot }) => holds(master, slot));
      assert.ok(of_it.length >= crowd / 6, `${master.slots}: ${of_it.length}`);
      const spread = new Set(of_it.map(({ slot }) => slot));
      assert.ok(spread.size > of_it.length / 2);
    }
    assert.match(streams[0]?.task.task_key ?? '', /^ndjson_task_\{[0-9a-f-]{36}\}$/);
    assert.equal(proxy.stdout().match(/ wakeup mode=tracking worker=/g)?.length, 3);
    await finish(proxy, db, streams);
    assert.equal(proxy.stderr(), '');
  });

  test('um mestre morre: a réplica o substitui, e os outros nada notam', async () => {
    const { proxy, db, streams, look, open_one } = await start_scene();
    const old = (await look()).find((node) => holds(node, streams[0]?.slot ?? 0));
    assert.ok(old);
    const hit = streams.filter(({ slot }) => holds(old, slot));
    const spared = streams.filter(({ slot }) => !holds(old, slot));
    const [busy = [], idle = []] = [hit.slice(0, 5), hit.slice(5)];
    const pushed = busy.map(() => [] as string[]);
    const push = async (text: string) => {
      for (const [n, { task }] of busy.entries()) {
        const done = await db.rPush(task.task_list, text).catch(() => 0);
        if (done > 0) pushed[n]?.push(text);
      }
    };
    for (let n = 0; n < 20; n += 1) await push(`antes ${n}`);
    old.process.kill('SIGKILL');
    await finish(proxy, db, spared); // com o outro ainda fora
    await until('outro mestre', async () => {
      return (await look()).some((node) => node.port !== old.port && node.slots === old.slots);
    });
    await push('depois');
    for (const [n, { stream, task }] of busy.entries()) {
      await db.del(task.task_key);
      const lines = await stream.rest();
      const is_whole = JSON.stringify(lines) === JSON.stringify(pushed[n]);
      assert.ok(is_whole || lines.at(-1) === lost_line, `${lines}`);
      assert.equal(await ending_of(proxy, task), is_whole ? 'done' : 'redis_lost');
    }
    await finish(proxy, db, idle);
    await finish(proxy, db, [await open_one(), await open_one(), await open_one()]);
  });

  test('slots mudam de mestre com fluxos abertos: os deles acabam com erro', async () => {
    const { proxy, db, streams, look, open_one } = await start_scene();
    const [from, to] = (await look()).filter(({ is_master }) => is_master);
    assert.ok(from && to);
    const asked = ['--cluster-slots', '2000', '--cluster-yes'];
    const nodes = ['--cluster-from', from.id, '--cluster-to', to.id];
    await run_cli(['--cluster', 'reshard', `127.0.0.1:${from.port}`, ...nodes, ...asked]);
    const after = (await look()).find(({ id }) => id === from.id);
    const moved = streams.filter(({ slot }) => holds(from, slot) && after && !holds(after, slot));
    assert.ok(moved.length > 0);
    await finish(
      proxy,
      db,
      streams.filter((stream) => !moved.includes(stream)),
    );
    for (const { stream, task } of moved) {
      await db.rPush(task.task_list, 'tarde');
      assert.deepEqual(await stream.rest(), [moved_line]);
      assert.equal(await ending_of(proxy, task), 'failed');
    }
    const fresh: opened[] = [];
    for (let n = 0; n < crowd; n += 1) fresh.push(await open_one());
    await finish(proxy, db, fresh);
  });
});
