/*
 * Demora de uma linha, do RPUSH do worker ao socket do cliente, com muitos fluxos em ritmo calmo.
 * Os pisos: o mesmo worker com um cliente em BLPOP, sem HTTP; e um node:http que escreve no mesmo
 * ritmo, sem Redis.
 */

import type { local_redis } from '../../dev/local';
import { type bench_context, run_rounds, type scenario, type trial } from '../context';
import { peer_notes, start_nchan, start_webdis } from '../peers';
import {
  cpu_costs,
  type role,
  type server,
  start_bench_proxy,
  start_bench_redis,
  start_role,
  with_cpu,
} from '../processes';

/** Linhas por segundo em todos os fluxos juntos. */
export const total_rate = 1000;

/** O começo de cada fluxo não conta. */
const warm_s = 1;

/** Prazo para as últimas linhas chegarem, depois de enviadas. */
const finish_limit_ms = 15_000;

/** O que os clientes devolvem. Demoras em ms; `last_at`, de `clock`. */
export type latency_figures = Record<'p50' | 'p90' | 'p99' | 'max' | 'samples', number> & {
  last_at?: number;
  swapped?: number;
};

/** Quantos fluxos, o ritmo de cada um em ms, e as voltas: quantas linhas cada um recebe. */
export type latency_load = { streams: number; pace_ms: number; rounds: number; skip: number };

/** Os processos da prova. */
type latency_scene = {
  redis: local_redis;
  worker: role;
  client: role;
  blpop: role;
  floor: role;
  floor_port: number;
  poster: role;
};

/**
 * Decide a carga: o total de linhas por segundo é sempre o mesmo.
 * @param streams quantos fluxos
 * @param seconds duração da medição, sem o aquecimento
 * @returns a carga
 */
export function make_load(streams: number, seconds: number): latency_load {
  const pace_ms = (streams * 1000) / total_rate;
  const skip = Math.max(1, Math.round((warm_s * 1000) / pace_ms));
  const rounds = skip + Math.max(1, Math.ceil((seconds * 1000) / pace_ms));
  return { streams, pace_ms, rounds, skip };
}

/**
 * Monta o pedido que abre um fluxo.
 * @param path o caminho
 * @returns o pedido HTTP inteiro
 */
export function stream_request(path: string): string {
  return `GET ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n`;
}

/**
 * Abre os fluxos de uma carga.
 * @param client quem os abre
 * @param port a porta do servidor
 * @param path o caminho; "{stream}" vira o número do fluxo
 * @param load a carga
 * @param wait_head se os cabeçalhos das respostas devem ser esperados
 */
async function open_streams(
  client: role,
  port: number,
  path: string,
  load: latency_load,
  wait_head: boolean,
): Promise<void> {
  const { streams, rounds, skip } = load;
  const wanted = { streams, lines_each: rounds, skip, wait_head };
  await client.call('open', { port, request: stream_request(path), ...wanted });
}

/**
 * Espera o fim dos fluxos de uma carga, e confere que cada um recebeu todas as linhas, em ordem.
 * @param client quem os abriu
 * @param load a carga
 * @param endings quantas respostas devem chegar ao fim
 * @returns demoras em ms
 */
async function finish_streams(
  client: role,
  load: latency_load,
  endings: number,
): Promise<Record<string, number>> {
  const { streams, rounds } = load;
  const wanted = { lines: streams * rounds, lines_each: rounds, endings };
  const figures = await client.call<latency_figures>('finish', {
    ...wanted,
    limit_ms: finish_limit_ms,
  });
  const { last_at: _, swapped: __, ...delays } = figures;
  return delays;
}

/**
 * Mede um proxy.
 * @param scene Redis, worker e cliente
 * @param proxy o proxy
 * @param load a carga
 * @param wait_head se os cabeçalhos devem ter chegado antes da primeira linha
 * @returns demoras em ms e processador por linha
 */
export async function measure_proxy_latency(
  scene: Pick<latency_scene, 'redis' | 'worker' | 'client'>,
  proxy: server,
  load: latency_load,
  wait_head = false,
): Promise<Record<string, number>> {
  const { worker, client, redis } = scene;
  const { streams } = load;
  await worker.call('set_mode', { mode: 'hold' });
  await open_streams(client, proxy.port, '/latency', load, wait_head);
  await worker.call('wait_tasks', { count: streams });
  const tools = { worker: worker.pid, client: client.pid };
  const pids = { server: proxy.pid, redis: redis.process.pid ?? 0, ...tools };
  const { cpu_s, wall_s } = await with_cpu(pids, () => worker.call('pace', load));
  await worker.call('finish_tasks');
  return {
    ...(await finish_streams(client, load, streams)),
    ...cpu_costs(cpu_s, wall_s, load.streams * load.rounds),
  };
}

/**
 * Mede o piso sem HTTP.
 * @param scene os processos
 * @param load a carga
 * @returns demoras em ms e processador por linha
 */
async function measure_blpop(scene: latency_scene, load: latency_load) {
  const { redis, worker, blpop } = scene;
  const { streams, rounds, skip } = load;
  const prefix = 'blpop_';
  const where = { port: redis.port, database: 1, prefix };
  await worker.call('set_mode', { mode: 'hold' });
  await blpop.call('open', { ...where, streams, lines_each: rounds, skip });
  const tools = { worker: worker.pid, client: blpop.pid };
  const pids = { redis: redis.process.pid ?? 0, ...tools };
  const { cpu_s, wall_s } = await with_cpu(pids, () => worker.call('pace', { ...load, prefix }));
  const limits = { lines_each: rounds, limit_ms: finish_limit_ms };
  const figures = await blpop.call<latency_figures>('finish', limits);
  return { ...figures, ...cpu_costs(cpu_s, wall_s, load.streams * load.rounds) };
}

/**
 * Mede o piso com HTTP, sem Redis.
 * @param scene os processos
 * @param load a carga
 * @returns demoras em ms e processador por linha
 */
async function measure_http(scene: latency_scene, load: latency_load) {
  const { client, floor, floor_port } = scene;
  await open_streams(client, floor_port, '/hold', load, true);
  const pids = { server: floor.pid, client: client.pid };
  const { cpu_s, wall_s } = await with_cpu(pids, () => floor.call('pace', load));
  return {
    ...(await finish_streams(client, load, load.streams)),
    ...cpu_costs(cpu_s, wall_s, load.streams * load.rounds),
  };
}

/**
 * Mede o webdis: o worker publica, cada fluxo é um SUBSCRIBE.
 * @param scene os processos
 * @param webdis o servidor
 * @param load a carga
 * @returns demoras em ms e processador por linha
 */
async function measure_webdis(scene: latency_scene, webdis: server, load: latency_load) {
  const { client, worker, redis } = scene;
  const prefix = 'webdis_';
  await open_streams(client, webdis.port, `/SUBSCRIBE/${prefix}{stream}`, load, true);
  const tools = { worker: worker.pid, client: client.pid };
  const pids = { server: webdis.pid, redis: redis.process.pid ?? 0, ...tools };
  const publish = { ...load, command: 'PUBLISH', prefix };
  const { cpu_s, wall_s } = await with_cpu(pids, () => worker.call('pace', publish));
  return {
    ...(await finish_streams(client, load, 0)),
    ...cpu_costs(cpu_s, wall_s, load.streams * load.rounds),
  };
}

/**
 * Mede o nchan: um POST por linha, cada fluxo é um assinante.
 * @param scene os processos
 * @param nchan o servidor
 * @param load a carga
 * @returns demoras em ms e processador por linha
 */
async function measure_nchan(scene: latency_scene, nchan: server, load: latency_load) {
  const { client, poster } = scene;
  await open_streams(client, nchan.port, '/sub/{stream}', load, true);
  const pids = { server: nchan.pid, worker: poster.pid, client: client.pid };
  const { cpu_s, wall_s } = await with_cpu(pids, () => poster.call('pace', load));
  return {
    ...(await finish_streams(client, load, 0)),
    ...cpu_costs(cpu_s, wall_s, load.streams * load.rounds),
  };
}

/**
 * Sobe os papéis da prova.
 * @param context o contexto das provas
 * @returns os processos
 */
async function make_scene(context: bench_context): Promise<latency_scene> {
  const { roles_dir } = context;
  const redis = await start_bench_redis();
  const worker = start_role(roles_dir, 'worker');
  const client = start_role(roles_dir, 'stream_client');
  const blpop = start_role(roles_dir, 'blpop_client');
  const floor = start_role(roles_dir, 'floor_server');
  await worker.call('connect', { port: redis.port, database: 1, channel: 'ndjson_jobs' });
  const floor_port = await floor.call<number>('listen');
  const poster = start_role(roles_dir, 'post_worker');
  return { redis, worker, client, blpop, floor, floor_port, poster };
}

/**
 * Roda a prova.
 * @param context o contexto das provas
 */
async function run(context: bench_context): Promise<void> {
  const { plan, program, peers } = context;
  const scene = await make_scene(context);
  const proxy = await start_bench_proxy(program, scene.redis);
  const polling = await start_bench_proxy(program, scene.redis, ['--wakeup', 'off']);
  const measured: [string, (load: latency_load) => ReturnType<trial['run']>][] = [
    ['json-proxy', (load) => measure_proxy_latency(scene, proxy, load)],
    ['piso blpop', (load) => measure_blpop(scene, load)],
    ['piso http', (load) => measure_http(scene, load)],
  ];
  if (peers.webdis) {
    const webdis = await start_webdis(scene.redis);
    measured.push(['webdis', (load) => measure_webdis(scene, webdis, load)]);
  }
  if (peers.nchan) {
    const nchan = await start_nchan();
    await scene.poster.call('connect', { port: nchan.port, lanes: 1, path: '/pub/' });
    measured.push(['nchan', (load) => measure_nchan(scene, nchan, load)]);
  }
  const slow: (typeof measured)[number] = [
    'json-proxy, wakeup off',
    (load) => measure_proxy_latency(scene, polling, load),
  ];
  const trials = plan.latency_streams.flatMap((streams, index) => {
    const load = make_load(streams, plan.seconds);
    const case_name = `${streams} fluxos`;
    const variants = index === 0 ? measured.toSpliced(1, 0, slow) : measured;
    return variants.map(([variant, measure]): trial => {
      const is_peer = variant in peer_notes;
      return { case_name, variant, is_peer, run: () => measure(load) };
    });
  });
  await run_rounds(context, 'latency', trials);
}

/** A prova. */
export const latency: scenario = {
  name: 'latency',
  estimate: (plan) => {
    const runs = plan.latency_streams.length * (plan.peers ? 5 : 3) + 1;
    return 2 + plan.rounds * runs * (plan.seconds + warm_s + 0.5);
  },
  run,
};
