/*
 * Volume: com PAUSE 0, um resultado grande que já está pronto no Redis. Os pisos: um cliente que o
 * retira com LPOP em lotes, sem HTTP; e um node:http que escreve as mesmas linhas, sem Redis.
 */

import type { local_redis } from '../../dev/local';
import { type bench_context, run_rounds, type scenario, type trial, warm_round } from '../context';
import { start_nchan, start_webdis } from '../peers';
import {
  cpu_costs,
  type role,
  type server,
  start_bench_proxy,
  start_bench_redis,
  start_role,
  with_cpu,
} from '../processes';
import { clock_per_ms } from '../roles/role';
import { stream_request } from './latency';

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

/** Os processos da prova. */
export type bulk_scene = { worker: role; client: role; pids: Record<string, number> };

/**
 * Dá o nome de um caso.
 * @param streams quantos fluxos
 * @returns por exemplo "20 fluxos"
 */
function case_title(streams: number): string {
  return streams === 1 ? '1 fluxo' : `${streams} fluxos`;
}

/**
 * Dá o nome da lista modelo.
 * @param lines quantas linhas ela tem
 * @returns nome da chave
 */
export function seed_name(lines: number): string {
  return `seed_${lines}`;
}

/** O que faz das mesmas linhas uma resposta RAW, e o nome do modelo dela. */
const raw_head = 'RAW 200 {"Content-Type": "application/x-ndjson"}';
const raw_name = (lines: number) => `${seed_name(lines)}_raw`;

/**
 * Mede um servidor que despeja linhas, e divide os gastos por elas.
 * @param pids os processos cujo gasto interessa
 * @param lines quantas linhas no total
 * @param action devolve os segundos que levou
 * @returns linhas por segundo, e o processador gasto
 */
async function measure_rate(
  pids: Record<string, number>,
  lines: number,
  action: () => Promise<number>,
): Promise<Record<string, number>> {
  const { result: seconds, wall_s, cpu_s } = await with_cpu(pids, action);
  return { rate: lines / seconds, seconds, ...cpu_costs(cpu_s, wall_s, lines) };
}

/**
 * Mede o proxy.
 * @param scene os papéis
 * @param proxy o proxy, com PAUSE 0
 * @param streams quantos fluxos
 * @param lines_each quantas linhas em cada um
 * @param name a lista modelo
 * @returns linhas por segundo, e o processador gasto
 */
export async function measure_proxy_bulk(
  scene: bulk_scene,
  proxy: server,
  streams: number,
  lines_each: number,
  name = seed_name(lines_each),
): Promise<Record<string, number>> {
  const { worker, client, pids } = scene;
  await worker.call('set_mode', { mode: 'fill' });
  await worker.call('preload', { name, lists: streams });
  const all = { ...pids, server: proxy.pid, worker: worker.pid, client: client.pid };
  return measure_rate(all, streams * lines_each, () =>
    client.call('run', { port: proxy.port, streams, lines_each }),
  );
}

/**
 * Mede o cliente cru.
 * @param scene os papéis
 * @param raw o papel que retira as listas
 * @param lists quantas listas
 * @param lines_each quantas linhas em cada uma
 * @param count linhas por LPOP
 * @returns linhas por segundo, e o processador gasto
 */
async function measure_raw(
  scene: bulk_scene,
  raw: role,
  lists: number,
  lines_each: number,
  count: number,
): Promise<Record<string, number>> {
  await scene.worker.call('preload', { name: seed_name(lines_each), lists });
  const pids = { ...scene.pids, client: raw.pid };
  return measure_rate(pids, lists * lines_each, () =>
    raw.call('run', { lists, lines_each, count }),
  );
}

/**
 * Monta o que se mede com um número de fluxos.
 * @param scene os papéis
 * @param servers o proxy, o cliente cru e o piso HTTP
 * @param streams quantos fluxos
 * @param lines_each quantas linhas em cada um
 * @returns o que medir
 */
function bulk_trials(
  scene: bulk_scene,
  servers: { proxy: server; raw: role; floor: role; floor_port: number },
  streams: number,
  lines_each: number,
): trial[] {
  const { proxy, raw, floor, floor_port } = servers;
  const case_name = case_title(streams);
  const proxy_trial: trial = {
    case_name,
    variant: 'json-proxy',
    run: () => measure_proxy_bulk(scene, proxy, streams, lines_each),
  };
  const bytes_trial: trial = {
    case_name,
    variant: 'json-proxy raw',
    run: () => measure_proxy_bulk(scene, proxy, streams, lines_each, raw_name(lines_each)),
  };
  const raw_trials = raw_counts.map((count) => ({
    case_name,
    variant: `piso lpop ${count}`,
    run: () => measure_raw(scene, raw, streams, lines_each, count),
  }));
  const http_trial: trial = {
    case_name,
    variant: 'piso http',
    run: async () => {
      await floor.call('prepare', { lines: lines_each });
      const pids = { server: floor.pid, client: scene.client.pid };
      const where = { port: floor_port, streams, lines_each };
      return measure_rate(pids, streams * lines_each, () => scene.client.call('run', where));
    },
  };
  return [proxy_trial, bytes_trial, ...raw_trials, http_trial];
}

/**
 * Monta o que se mede de um concorrente: todos os fluxos já abertos, as linhas o mais depressa que
 * ele aceita.
 * @param variant o nome dele
 * @param peer o servidor, e o caminho em que "{stream}" vira o número do fluxo
 * @param roles quem abre os fluxos e quem envia as linhas
 * @param total quantas linhas na prova inteira; as dele são uma fração
 * @param streams quantos fluxos
 * @returns o que medir
 */
function peer_trial(
  variant: keyof typeof peer_fraction,
  peer: { server: server; path: string },
  roles: { watcher: role; sender: role; pids: Record<string, number> },
  total: number,
  streams: number,
): trial {
  const { watcher, sender, pids } = roles;
  const { port, pid } = peer.server;
  const share = Math.min(total * peer_fraction[variant], peer_most_lines[variant]);
  const lines_each = Math.max(1, Math.floor(share / streams));
  // o webdis inverte a ordem do que chega junto: as linhas fora do lugar são contadas, não um erro
  const wanted = { streams, lines_each, skip: 0, any_order: variant === 'webdis' };
  let out_of_order = 0;
  const all = { ...pids, server: pid, client: watcher.pid, worker: sender.pid };
  const deliver = async () => {
    const load = { streams, lines_each, prefix: 'bulk_' };
    const started_at = await sender.call<number>('burst', load);
    const lines = { lines: streams * lines_each, lines_each, endings: 0, limit_ms: peer_limit_ms };
    const { last_at, swapped } = await watcher.call<finish_figures>('finish', lines);
    out_of_order = swapped;
    return (last_at - started_at) / clock_per_ms / 1000;
  };
  const run = async () => {
    const request = stream_request(peer.path);
    await watcher.call('open', { port, request, wait_head: true, ...wanted });
    return { ...(await measure_rate(all, streams * lines_each, deliver)), out_of_order };
  };
  return { case_name: case_title(streams), variant, is_peer: true, run };
}

/**
 * Monta o que se mede dos concorrentes instalados.
 * @param context o contexto das provas
 * @param redis o Redis da prova
 * @param worker quem publica para o webdis
 * @returns dá o que medir com um número de fluxos
 */
async function start_peers(
  context: bench_context,
  redis: local_redis,
  worker: role,
): Promise<(streams: number) => trial[]> {
  const { peers, roles_dir, plan } = context;
  const watcher = start_role(roles_dir, 'stream_client');
  const makers: ((streams: number) => trial)[] = [];
  if (peers.webdis) {
    const peer = { server: await start_webdis(redis), path: '/SUBSCRIBE/bulk_{stream}' };
    const roles = { watcher, sender: worker, pids: { redis: redis.process.pid ?? 0 } };
    makers.push((streams) => peer_trial('webdis', peer, roles, plan.bulk_lines, streams));
  }
  if (peers.nchan) {
    const peer = { server: await start_nchan(), path: '/sub/{stream}' };
    const sender = start_role(roles_dir, 'post_worker');
    const lanes = Math.max(...stream_cases);
    await sender.call('connect', { port: peer.server.port, lanes, path: '/pub/' });
    const roles = { watcher, sender, pids: {} };
    makers.push((streams) => peer_trial('nchan', peer, roles, plan.bulk_lines, streams));
  }
  return (streams) => makers.map((make) => make(streams));
}

/**
 * Roda a prova.
 * @param context o contexto das provas
 */
async function run(context: bench_context): Promise<void> {
  const { plan, program, roles_dir } = context;
  const redis = await start_bench_redis();
  const worker = start_role(roles_dir, 'worker');
  const client = start_role(roles_dir, 'bulk_client');
  const raw = start_role(roles_dir, 'raw_pop');
  const floor = start_role(roles_dir, 'floor_server');
  const where = { port: redis.port, database: 1, channel: 'ndjson_jobs' };
  await worker.call('connect', where);
  await raw.call('connect', where);
  const floor_port = await floor.call<number>('listen');
  const proxy = await start_bench_proxy(program, redis, ['-P', '0']);
  const scene = { worker, client, pids: { redis: redis.process.pid ?? 0 } };
  const servers = { proxy, raw, floor, floor_port };
  const peer_trials = await start_peers(context, redis, worker);
  const trials: trial[] = [];
  for (const streams of stream_cases) {
    const lines = Math.floor(plan.bulk_lines / streams);
    await worker.call('seed', { name: seed_name(lines), lines });
    await worker.call('seed', { name: raw_name(lines), lines, head: raw_head });
    trials.push(...bulk_trials(scene, servers, streams, lines), ...peer_trials(streams));
  }
  await warm_round(context, 'bulk', trials);
  await run_rounds(context, 'bulk', trials);
}

/** A prova. */
export const bulk: scenario = {
  name: 'bulk',
  estimate: (plan) =>
    4 + (plan.rounds + 1) * (plan.bulk_lines / 1e6) * stream_cases.length * (plan.peers ? 5 : 4),
  run,
};
