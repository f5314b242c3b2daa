/*
 * O custo com o número de fluxos: o mesmo total de linhas por segundo repartido por cada vez mais
 * fluxos abertos. Um custo por linha que não cresce é o que permite somar fluxos sem contas novas.
 */

import { type bench_context, rest, run_rounds, type scenario } from '../context';
import { can_read_processes, start_bench_proxy, start_bench_redis, start_role } from '../processes';
import { type latency_load, measure_proxy_latency, total_rate } from './latency';

/** Uma medição dura ao menos uma volta do maior número de fluxos. */
const round_s = 5;

/**
 * Decide a carga de um número de fluxos.
 * @param streams quantos fluxos
 * @returns a carga
 */
function growth_load(streams: number): latency_load {
  const pace_ms = (streams * 1000) / total_rate;
  return { streams, pace_ms, rounds: Math.ceil((round_s * 1000) / pace_ms), skip: 0 };
}

/**
 * Roda a prova.
 * @param context o contexto das provas
 */
async function run(context: bench_context): Promise<void> {
  if (!can_read_processes()) {
    context.note('growth: pulada, só o Linux mostra o gasto dos processos');
    return;
  }
  const { program, roles_dir, plan } = context;
  const redis = await start_bench_redis();
  const worker = start_role(roles_dir, 'worker');
  const client = start_role(roles_dir, 'stream_client');
  await worker.call('connect', { port: redis.port, database: 1, channel: 'ndjson_jobs' });
  // com a pausa padrão, poucos fluxos não dariam conta de tantas linhas
  const proxy = await start_bench_proxy(program, redis, ['-P', '0']);
  const scene = { redis, worker, client };
  const trials = plan.growth_streams.map((streams) => ({
    case_name: `${streams} fluxos`,
    variant: 'json-proxy',
    run: async () => {
      const values = await measure_proxy_latency(scene, proxy, growth_load(streams), true);
      await rest(1); // o fim de milhares de fluxos não pode pesar na medição seguinte
      return values;
    },
  }));
  await run_rounds(context, 'growth', trials);
}

/** A prova. */
export const growth: scenario = {
  name: 'growth',
  estimate: (plan) => 2 + plan.rounds * plan.growth_streams.length * (round_s + 4),
  run,
};
