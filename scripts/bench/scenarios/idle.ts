/*
 * Fluxos ociosos: abertos todos ao mesmo tempo, com um worker calado. Quanta memória cada um ocupa
 * e quanto processador gastam só por existir. O piso é um node:http que segura respostas abertas.
 */

import { type bench_context, rest, type scenario } from '../context';
import { open_files_limit } from '../machine';
import { start_nchan } from '../peers';
import {
  type bench_redis,
  can_read_processes,
  memory_bytes,
  redis_memory,
  type role,
  start_bench_proxy,
  start_bench_redis,
  start_bench_worker,
  start_role,
  stop_running,
  with_cpu,
} from '../processes';
import { stream_request } from './latency';

/** Longo o bastante para que nenhum fluxo acabe durante a prova. */
const maxtime_ms = '600000';

/** Fluxos sorteados que devem receber uma linha no fim: nenhum dorme para sempre. */
const poked_streams = 100;

const poke_limit_ms = 30_000;

/** Descritores que um processo usa além dos fluxos, com folga. */
const spare_files = 100;

/** 1 kB = 1000 bytes. */
const bytes_per_kb = 1000;

/** Um servidor com fluxos ociosos. */
type idle_subject = {
  variant: string;
  port: number;
  pid: number;
  redis?: bench_redis;
  client: role;
  /** O caminho que abre um fluxo, e se ele acaba depois da linha. */
  path: string;
  endings: boolean;
  /** Dá sinal de vida a alguns fluxos. */
  poke: (count: number) => Promise<unknown>;
};

/** O que o proxy e o piso têm em comum. */
const ending_stream = { path: '/hold', endings: true };

/** A memória de um servidor e a do Redis dele, em bytes. */
type idle_memory = { rss: number; pss: number; redis: number };

/** Abre `streams` fluxos, e espera os cabeçalhos de todos. */
async function open_streams(subject: idle_subject, streams: number): Promise<void> {
  const { client, port, path } = subject;
  const wanted = { streams, lines_each: 1, skip: 0, wait_head: true };
  await client.call('open', { port, request: stream_request(path), ...wanted });
}

/** Dá uma linha a `count` dos fluxos, espera que ela chegue a cada um, e fecha todos. */
async function close_streams(
  { client, poke, endings }: idle_subject,
  count: number,
): Promise<void> {
  await poke(count);
  const wanted = { lines: count, endings: endings ? count : 0, limit_ms: poke_limit_ms };
  await client.call('finish', wanted);
}

/** Sobe um proxy e o que ele precisa, e devolve o que se mede. */
async function start_proxy_subject({ program }: bench_context): Promise<idle_subject> {
  const redis = await start_bench_redis();
  const worker = await start_bench_worker(redis);
  const client = start_role('stream_client');
  const { port, pid } = await start_bench_proxy(program, redis, ['-t', maxtime_ms]);
  const poke = (count: number) => worker.call('poke', { count });
  return { ...ending_stream, variant: 'json-proxy', port, pid, redis, client, poke };
}

/** Sobe o piso, e devolve o que se mede. */
async function start_floor_subject(): Promise<idle_subject> {
  const client = start_role('stream_client');
  const floor = start_role('floor_server');
  const port = await floor.call<number>('listen');
  const poke = (count: number) => floor.call('poke', { count });
  return { ...ending_stream, variant: 'piso http', port, pid: floor.pid, client, poke };
}

/** Sobe o nchan, que terá `streams` fluxos, e devolve o que se mede. */
async function start_nchan_subject(streams: number): Promise<idle_subject> {
  const client = start_role('stream_client');
  const poster = start_role('post_worker');
  const { port, pid } = await start_nchan();
  await poster.call('connect', { port, lanes: 1, path: '/pub/' });
  // o primeiro pedido é o de um fluxo só, e o sorteio não pode sair dele
  const poke = (count: number) =>
    poster.call('poke', { streams: count === 1 ? 1 : streams, count });
  return { variant: 'nchan', path: '/sub/{stream}', endings: false, port, pid, client, poke };
}

/** Lê a memória do que se mede. */
async function read_memory(subject: idle_subject): Promise<idle_memory> {
  return { ...memory_bytes(subject.pid), redis: await redis_memory(subject.redis) };
}

/**
 * Dá a diferença de memória por fluxo.
 * @param streams quantos
 */
function memory_per_stream(
  before: idle_memory,
  after: idle_memory,
  streams: number,
): Record<string, number> {
  const each = (field: keyof idle_memory) =>
    (after[field] - before[field]) / streams / bytes_per_kb;
  return { rss_kb: each('rss'), pss_kb: each('pss'), redis_kb: each('redis') };
}

/**
 * Mede todos ao mesmo tempo, cada um no seu processo: parados, não se atrapalham, e uma espera vale
 * por todas. Descansa, lê a memória e o processador, e confere que os fluxos estão vivos.
 * @param subjects o que se mede, já aquecido
 * @param streams quantos fluxos em cada um
 * @returns por variante: kB por fluxo, e processador em fração de um núcleo
 */
async function measure_idle(
  context: bench_context,
  subjects: idle_subject[],
  streams: number,
): Promise<Record<string, Record<string, number>>> {
  const { plan } = context;
  const empty = await Promise.all(subjects.map(read_memory));
  for (const subject of subjects) await open_streams(subject, streams);
  await rest(plan.idle_rest_s);
  const full = await Promise.all(subjects.map(read_memory));
  const processes = Object.fromEntries(
    subjects.flatMap(({ variant, pid, redis }) => [
      [variant, { pid }],
      ...(redis ? [[`${variant} redis`, redis]] : []),
    ]),
  );
  const { wall_s, cpu_s } = await with_cpu(processes, () => rest(plan.idle_cpu_s));
  for (const subject of subjects) await close_streams(subject, Math.min(poked_streams, streams));
  const share = (name: string) => (cpu_s[name] ?? Number.NaN) / wall_s;
  const results = subjects.map(({ variant }, index) => {
    const [before, after] = [empty[index], full[index]] as [idle_memory, idle_memory];
    const values = {
      ...memory_per_stream(before, after, streams),
      server_cpu: share(variant),
      redis_cpu: share(`${variant} redis`),
      others_cpu_share: share('others'),
      empty_mb: before.rss / bytes_per_kb ** 2,
    };
    return [variant, values] as const;
  });
  return Object.fromEntries(results);
}

/** Roda a prova, uma vez para cada número de fluxos, sempre com processos novos. */
async function run(context: bench_context): Promise<void> {
  if (!can_read_processes()) {
    context.note('idle: pulada, só o Linux mostra o gasto dos processos');
    return;
  }
  for (const streams of context.plan.idle_streams) {
    const case_name = `${streams} fluxos`;
    if (streams + spare_files > open_files_limit()) {
      context.note(
        `idle: ${case_name} pulados, faltam descritores: ulimit -n é ${open_files_limit()}, ` +
          `são precisos ${streams + spare_files}`,
      );
      continue;
    }
    context.step(`idle: ${case_name}`);
    const subjects = [await start_proxy_subject(context), await start_floor_subject()];
    if (context.peers.nchan) subjects.push(await start_nchan_subject(streams));
    for (const subject of subjects) {
      // um primeiro pedido, que não conta: a memória que ele traz é do programa, não dos fluxos
      await open_streams(subject, 1);
      await close_streams(subject, 1);
    }
    const results = await measure_idle(context, subjects, streams);
    for (const [variant, values] of Object.entries(results)) {
      context.record({ scenario: 'idle', case_name, variant, round: 1, values });
    }
    await stop_running();
  }
}

/** A prova. */
export const idle: scenario = {
  name: 'idle',
  estimate: (plan) => {
    const each = plan.idle_rest_s + plan.idle_cpu_s + 3;
    return plan.idle_streams.reduce((sum, streams) => sum + each + streams / 1500, 0);
  },
  run,
};
