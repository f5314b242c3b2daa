/*
 * Volume: com PAUSE 0, um resultado grande que já está pronto no Redis. Os pisos: um cliente que o
 * retira com LPOP em lotes, sem HTTP; e um node:http que escreve as mesmas linhas, sem Redis.
 */

import { type bench_context, run_rounds, type scenario, type trial } from '../context';
import { start_nchan, start_webdis } from '../peers';
import {
  type bench_redis,
  join_redis,
  type processes,
  type role,
  type server,
  start_bench_proxy,
  start_bench_redis,
  start_bench_worker,
  start_role,
  with_costs,
} from '../processes';
import { clock_per_ms } from '../roles/role';
import { replay_args, stream_request } from './latency';

/** Em quantos fluxos as linhas são repartidas, em cada caso. */
const stream_cases = [1, 20];

/** Os concorrentes são bem mais lentos; a taxa se vê com menos linhas. */
const peer_fraction = { webdis: 1 / 10, nchan: 1 / 40 };

/** O nchan perde linhas além de 32.768 num canal no mesmo segundo. */
const peer_most_lines = { webdis: Infinity, nchan: 30_000 };

/** Prazo para as linhas de um concorrente chegarem. */
const peer_limit_ms = 60_000;

/** Linhas por LPOP do cliente cru: o melhor deles é o piso. */
const raw_counts = [128, 512, 1024];

/** O que interessa do fim dos fluxos de um concorrente. `last_at`, de `clock`. */
type finish_figures = { last_at: number; swapped: number };

/** Os processos que todos dividem. */
export type bulk_scene = { redis: bench_redis; worker: role; client: role };

/** Mede um servidor, dados o número de fluxos e o de linhas em cada um. */
type bulk_measure = (streams: number, lines_each: number) => ReturnType<trial['run']>;

/** Um concorrente: o caminho de cada fluxo, quem envia as linhas e quem mais trabalha. */
type bulk_peer = {
  variant: keyof typeof peer_fraction;
  server: server;
  path: string;
  sender: role;
  others: processes;
};

/** O que faz das mesmas linhas uma resposta RAW. */
const raw_head = 'RAW 200 {"Content-Type": "application/x-ndjson"}';

/** Dá o nome da lista modelo de `lines` linhas, ou da que é RAW. */
function seed_name(lines: number, is_raw = false): string {
  return `seed_${lines}${is_raw ? '_raw' : ''}`;
}

/** Enche a lista modelo de `lines` linhas, de que `fill_lists` tira cópias. */
export function seed_list(worker: role, lines: number): Promise<void> {
  return worker.call('seed', { name: seed_name(lines), lines });
}

/** Prepara `lists` listas de `lines` linhas, ou de RAW. */
function fill_lists(worker: role, lists: number, lines: number, is_raw = false): Promise<void> {
  return worker.call('preload', { name: seed_name(lines, is_raw), lists });
}

/**
 * Mede um servidor que despeja `lines` linhas, e divide os gastos por elas.
 * @param action devolve os segundos que levou
 * @returns linhas por segundo, e o processador gasto
 */
async function measure_rate(
  processes: processes,
  lines: number,
  action: () => Promise<number>,
): Promise<Record<string, number>> {
  const { result: seconds, costs } = await with_costs(processes, () => lines, action);
  return { rate: lines / seconds, seconds, ...costs };
}

/** Monta a medida de um proxy, com PAUSE 0, em linhas ou em RAW. */
export function measure_proxy(
  { redis, worker, client }: bulk_scene,
  proxy: server,
  is_raw = false,
): bulk_measure {
  return async (streams, lines_each) => {
    await worker.call('set_mode', { mode: 'fill' });
    await fill_lists(worker, streams, lines_each, is_raw);
    return measure_rate({ redis, server: proxy, worker, client }, streams * lines_each, () =>
      client.call('run', { port: proxy.port, streams, lines_each }),
    );
  };
}

/** Monta a medida do cliente cru, que retira `count` linhas por LPOP. */
function measure_raw({ redis, worker }: bulk_scene, raw: role, count: number): bulk_measure {
  return async (lists, lines_each) => {
    await fill_lists(worker, lists, lines_each);
    return measure_rate({ redis, client: raw }, lists * lines_each, () =>
      raw.call('run', { lists, lines_each, count }),
    );
  };
}

/** Monta a medida do piso com HTTP, na porta `port`. */
function measure_floor({ client }: bulk_scene, floor: role, port: number): bulk_measure {
  return async (streams, lines_each) => {
    await floor.call('prepare', { lines: lines_each });
    return measure_rate({ server: floor, client }, streams * lines_each, () =>
      client.call('run', { port, streams, lines_each }),
    );
  };
}

/**
 * Monta a medida de um concorrente: todos os fluxos já abertos, as linhas o mais depressa que ele
 * aceita, só uma fração das dos outros.
 */
function measure_peer(peer: bulk_peer, watcher: role): bulk_measure {
  const { variant, server, path, sender, others } = peer;
  return async (streams, all_lines_each) => {
    const share = Math.min(
      all_lines_each * streams * peer_fraction[variant],
      peer_most_lines[variant],
    );
    const lines_each = Math.max(1, Math.floor(share / streams));
    const lines = streams * lines_each;
    const request = stream_request(path);
    // o webdis inverte a ordem do que chega junto: as linhas trocadas são contadas, não um erro
    const wanted = { streams, lines_each, skip: 0, any_order: variant === 'webdis' };
    await watcher.call('open', { port: server.port, request, wait_head: true, ...wanted });
    let out_of_order = 0;
    const processes = { ...others, server, client: watcher, worker: sender };
    const rate = await measure_rate(processes, lines, async () => {
      const load = { streams, lines_each, prefix: 'bulk_' };
      const started_at = await sender.call<number>('burst', load);
      const ends = { lines, lines_each, endings: 0, limit_ms: peer_limit_ms };
      const { last_at, swapped } = await watcher.call<finish_figures>('finish', ends);
      out_of_order = swapped;
      return (last_at - started_at) / clock_per_ms / 1000;
    });
    return { ...rate, out_of_order };
  };
}

/** Sobe os concorrentes instalados, e os devolve. O worker publica para o webdis. */
async function start_peers(
  { peers }: bench_context,
  { redis, worker }: bulk_scene,
): Promise<bulk_peer[]> {
  const found: bulk_peer[] = [];
  if (peers.webdis) {
    const server = await start_webdis(redis);
    const path = '/SUBSCRIBE/bulk_{stream}';
    found.push({ variant: 'webdis', server, path, sender: worker, others: { redis } });
  }
  if (peers.nchan) {
    const server = await start_nchan();
    const sender = start_role('post_worker');
    const lanes = Math.max(...stream_cases);
    await sender.call('connect', { port: server.port, lanes, path: '/pub/' });
    found.push({ variant: 'nchan', server, path: '/sub/{stream}', sender, others: {} });
  }
  return found;
}

/** Roda a prova. */
async function run(context: bench_context): Promise<void> {
  const { plan, program } = context;
  const redis = await start_bench_redis();
  const worker = await start_bench_worker(redis);
  const scene = { redis, worker, client: start_role('bulk_client') };
  const raw = start_role('raw_pop');
  const floor = start_role('floor_server');
  await join_redis(raw, redis);
  const floor_port = await floor.call<number>('listen');
  const proxy = await start_bench_proxy(program, redis, ['-P', '0']);
  const keeper = await start_bench_proxy(program, redis, ['-P', '0', ...replay_args]);
  const peers = await start_peers(context, scene);
  const watcher = start_role('stream_client');
  const measures: [variant: string, measure: bulk_measure, is_peer?: boolean][] = [
    ['json-proxy', measure_proxy(scene, proxy)],
    ['json-proxy raw', measure_proxy(scene, proxy, true)],
    ['json-proxy replay', measure_proxy(scene, keeper)],
    ...raw_counts.map((count): [string, bulk_measure] => [
      `piso lpop ${count}`,
      measure_raw(scene, raw, count),
    ]),
    ['piso http', measure_floor(scene, floor, floor_port)],
    ...peers.map((peer): [string, bulk_measure, boolean] => [
      peer.variant,
      measure_peer(peer, watcher),
      true,
    ]),
  ];
  const trials: trial[] = [];
  for (const streams of stream_cases) {
    const lines_each = Math.floor(plan.bulk_lines / streams);
    await seed_list(worker, lines_each);
    const raw_seed = { name: seed_name(lines_each, true), lines: lines_each, head: raw_head };
    await worker.call('seed', raw_seed);
    const case_name = streams === 1 ? '1 fluxo' : `${streams} fluxos`;
    for (const [variant, measure, is_peer = false] of measures) {
      trials.push({ case_name, variant, is_peer, run: () => measure(streams, lines_each) });
    }
  }
  await run_rounds(context, 'bulk', trials, trials);
}

/** A prova. */
export const bulk: scenario = {
  name: 'bulk',
  estimate: (plan) =>
    4 + (plan.rounds + 1) * (plan.bulk_lines / 1e6) * stream_cases.length * (plan.peers ? 6 : 5),
  run,
};
