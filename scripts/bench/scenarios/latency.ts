/*
 * Demora de uma linha, do RPUSH do worker ao socket do cliente, com muitos fluxos em ritmo calmo.
 * Os pisos: o mesmo worker com um cliente em BLPOP, sem HTTP; um node:http que escreve no mesmo
 * ritmo, sem Redis; e um proxy feito à mão, que só sabe acordar e enviar uma linha.
 */

import { type bench_context, run_rounds, type scenario, type trial } from '../context';
import { peer_notes, start_nchan, start_webdis } from '../peers';
import {
  type bench_redis,
  type processes,
  type role,
  type server,
  start_bench_proxy,
  start_bench_redis,
  start_bench_worker,
  start_role,
  with_costs,
} from '../processes';

/** Linhas por segundo em todos os fluxos juntos. */
export const total_rate = 1000;

/** O proxy que guarda o que envia, mas não por muito tempo: cada volta encheria mais o Redis. */
export const replay_args = ['--replay', '10'];

/** O começo de cada fluxo não conta. */
const warm_s = 1;

/** Prazo para as últimas linhas chegarem, depois de enviadas. */
const finish_limit_ms = 15_000;

/** O que os clientes devolvem. Demoras em ms; `last_at`, de `clock`. */
type latency_figures = Record<'p50' | 'p90' | 'p99' | 'max' | 'samples', number> & {
  last_at?: number;
  swapped?: number;
};

/** Quantos fluxos, o ritmo de cada um em ms, e as voltas: quantas linhas cada um recebe. */
export type latency_load = { streams: number; pace_ms: number; rounds: number; skip: number };

/** Os processos que todos dividem: quem dá as linhas pelo Redis e quem abre os fluxos. */
export type latency_scene = { redis: bench_redis; worker: role; client: role };

/** O que se mede: os processos que contam, como os fluxos abrem, recebem as linhas e acabam. */
export type latency_subject = {
  processes: processes;
  open: (load: latency_load) => Promise<unknown>;
  pace: (load: latency_load) => Promise<unknown>;
  finish: (load: latency_load) => Promise<latency_figures>;
};

/** Decide a carga de `streams` fluxos, por `seconds` segundos além do aquecimento, e a devolve. */
function make_load(streams: number, seconds: number): latency_load {
  const pace_ms = (streams * 1000) / total_rate;
  const skip = Math.max(1, Math.round((warm_s * 1000) / pace_ms));
  const rounds = skip + Math.max(1, Math.ceil((seconds * 1000) / pace_ms));
  return { streams, pace_ms, rounds, skip };
}

/** Monta o pedido que abre um fluxo no caminho `path`. */
export function stream_request(path: string): string {
  return `GET ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n`;
}

/**
 * Monta o que mede um servidor HTTP.
 * @param path o caminho de um fluxo; "{stream}" vira o número dele
 * @param ends se as respostas acabam sozinhas depois da última linha
 * @param wait_head se os cabeçalhos devem ter chegado antes da primeira linha
 */
function http_subject(
  client: role,
  { port }: Pick<server, 'port'>,
  path: string,
  ends: boolean,
  wait_head = true,
): Pick<latency_subject, 'open' | 'finish'> {
  const request = stream_request(path);
  return {
    open: ({ streams, rounds, skip }) =>
      client.call('open', { port, request, streams, lines_each: rounds, skip, wait_head }),
    finish: ({ streams, rounds }) =>
      client.call('finish', {
        lines: streams * rounds,
        lines_each: rounds,
        endings: ends ? streams : 0,
        limit_ms: finish_limit_ms,
      }),
  };
}

/** Monta o que mede um proxy; `wait_head` como em http_subject. */
export function proxy_subject(
  { redis, worker, client }: latency_scene,
  proxy: Omit<server, 'program'>,
  wait_head = false,
): latency_subject {
  const { open, finish } = http_subject(client, proxy, '/latency', true, wait_head);
  return {
    processes: { server: proxy, redis, worker, client },
    open: async (load) => {
      await worker.call('set_mode', { mode: 'hold' });
      await open(load);
      await worker.call('wait_tasks', { count: load.streams });
    },
    pace: (load) => worker.call('pace', load),
    finish: async (load) => {
      await worker.call('finish_tasks');
      return finish(load);
    },
  };
}

/** Monta o que mede o piso sem HTTP. */
function blpop_subject({ redis, worker }: latency_scene): latency_subject {
  const blpop = start_role('blpop_client');
  const prefix = 'blpop_';
  const where = { port: redis.port, database: 1, prefix };
  return {
    processes: { redis, worker, client: blpop },
    open: ({ streams, rounds, skip }) =>
      blpop.call('open', { ...where, streams, lines_each: rounds, skip }),
    pace: (load) => worker.call('pace', { ...load, prefix }),
    finish: ({ rounds }) => blpop.call('finish', { lines_each: rounds, limit_ms: finish_limit_ms }),
  };
}

/** Monta o que mede o piso com HTTP, sem Redis. */
async function floor_subject({ client }: latency_scene): Promise<latency_subject> {
  const floor = start_role('floor_server');
  const port = await floor.call<number>('listen');
  return {
    processes: { server: floor, client },
    ...http_subject(client, { port }, '/hold', true),
    pace: (load) => floor.call('pace', load),
  };
}

/** Monta o que mede o webdis: o worker publica, cada fluxo é um SUBSCRIBE. */
async function webdis_subject({ redis, worker, client }: latency_scene): Promise<latency_subject> {
  const webdis = await start_webdis(redis);
  const prefix = 'webdis_';
  return {
    processes: { server: webdis, redis, worker, client },
    ...http_subject(client, webdis, `/SUBSCRIBE/${prefix}{stream}`, false),
    pace: (load) => worker.call('pace', { ...load, command: 'PUBLISH', prefix }),
  };
}

/** Monta o que mede o nchan: um POST por linha, cada fluxo é um assinante. */
async function nchan_subject({ client }: latency_scene): Promise<latency_subject> {
  const nchan = await start_nchan();
  const poster = start_role('post_worker');
  await poster.call('connect', { port: nchan.port, lanes: 1, path: '/pub/' });
  return {
    processes: { server: nchan, worker: poster, client },
    ...http_subject(client, nchan, '/sub/{stream}', false),
    pace: (load) => poster.call('pace', load),
  };
}

/**
 * Mede uma vez: abre os fluxos, dá as linhas, e confere que cada fluxo recebeu todas, em ordem.
 * @returns demoras em ms e processador por linha
 */
export async function measure_latency(
  { processes, open, pace, finish }: latency_subject,
  load: latency_load,
): Promise<Record<string, number>> {
  await open(load);
  const lines = () => load.streams * load.rounds;
  const { costs } = await with_costs(processes, lines, () => pace(load));
  const { last_at: _, swapped: __, ...delays } = await finish(load);
  return { ...delays, ...costs };
}

/** Roda a prova. */
async function run(context: bench_context): Promise<void> {
  const { plan, program, peers } = context;
  const redis = await start_bench_redis();
  const worker = await start_bench_worker(redis);
  const scene = { redis, worker, client: start_role('stream_client') };
  const polling = await start_bench_proxy(program, redis, ['--wakeup', 'off']);
  const first: [string, latency_subject] = [
    'json-proxy',
    proxy_subject(scene, await start_bench_proxy(program, redis)),
  ];
  const others: [string, latency_subject][] = [
    ['piso blpop', blpop_subject(scene)],
    ['piso http', await floor_subject(scene)],
  ];
  if (peers.webdis) others.push(['webdis', await webdis_subject(scene)]);
  if (peers.nchan) others.push(['nchan', await nchan_subject(scene)]);
  const plain = start_role('plain_proxy');
  const where = { port: redis.port, database: 1, channel: 'ndjson_jobs' };
  const by_hand = { pid: plain.pid, port: await plain.call<number>('listen', where) };
  const hand: typeof first = ['piso à mão', proxy_subject(scene, by_hand)];
  const slow: typeof first = ['json-proxy, wakeup off', proxy_subject(scene, polling)];
  const keeper = await start_bench_proxy(program, redis, replay_args);
  const kept: typeof first = ['json-proxy replay', proxy_subject(scene, keeper)];
  const trials = plan.latency_streams.flatMap((streams, index) => {
    const load = make_load(streams, plan.seconds);
    const variants = index === 0 ? [first, hand, slow, kept, ...others] : [first, ...others];
    return variants.map(([variant, subject]): trial => {
      const run = () => measure_latency(subject, load);
      return { case_name: `${streams} fluxos`, variant, is_peer: variant in peer_notes, run };
    });
  });
  await run_rounds(context, 'latency', trials);
}

/** A prova. */
export const latency: scenario = {
  name: 'latency',
  estimate: (plan) => {
    const runs = plan.latency_streams.length * (plan.peers ? 5 : 3) + 2;
    return 2 + plan.rounds * runs * (plan.seconds + warm_s + 0.5);
  },
  run,
};
