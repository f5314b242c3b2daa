/*
 * O custo com o número de fluxos: o mesmo total de linhas por segundo repartido por cada vez mais
 * fluxos abertos. Um custo por linha que não cresce é o que permite somar fluxos sem contas novas.
 */

import { type bench_context, rest, run_rounds, type scenario } from '../context';
import {
  can_read_processes,
  start_bench_proxy,
  start_bench_redis,
  start_bench_worker,
  start_role,
} from '../processes';
import { measure_latency, proxy_subject, total_rate } from './latency';

/** Uma medição dura ao menos uma volta do maior número de fluxos. */
const round_s = 5;

/** Roda a prova. */
async function run(context: bench_context): Promise<void> {
  if (!can_read_processes()) {
    context.note('growth: pulada, só o Linux mostra o gasto dos processos');
    return;
  }
  const { program, plan } = context;
  const redis = await start_bench_redis();
  const scene = {
    redis,
    worker: await start_bench_worker(redis),
    client: start_role('stream_client'),
  };
  // com a pausa padrão, poucos fluxos não dariam conta de tantas linhas
  const proxy = await start_bench_proxy(program, redis, ['-P', '0']);
  const subject = proxy_subject(scene, proxy, true);
  const trials = plan.growth_streams.map((streams) => ({
    case_name: `${streams} fluxos`,
    variant: 'json-proxy',
    run: async () => {
      const pace_ms = (streams * 1000) / total_rate;
      const rounds = Math.ceil((round_s * 1000) / pace_ms);
      const values = await measure_latency(subject, { streams, pace_ms, rounds, skip: 0 });
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
