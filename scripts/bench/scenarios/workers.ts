/*
 * Mais de um processo: as provas de tarefas e de volume com WORKERS 1 e 2, e quanto cada processo
 * gastou, para que se veja o que é o limite: o proxy, o Redis, quem gera a carga ou a máquina.
 */

import { type bench_context, run_rounds, type scenario, type trial } from '../context';
import {
  command_output,
  start_bench_proxy,
  start_bench_redis,
  start_bench_worker,
  start_role,
} from '../processes';
import { measure_proxy, seed_list } from './bulk';
import { measure_tasks } from './tasks';

const worker_counts = [1, 2];
const bulk_streams = 20;

/** Roda a prova. */
async function run(context: bench_context): Promise<void> {
  const { program, plan } = context;
  if (!command_output(process.execPath, program, '--help').includes('--workers')) {
    context.note('workers: pulada, este programa não conhece --workers');
    return;
  }
  const redis = await start_bench_redis();
  const worker = await start_bench_worker(redis);
  const task_scene = { redis, worker, client: start_role('task_client') };
  const bulk_scene = { redis, worker, client: start_role('bulk_client') };
  const lines_each = Math.floor(plan.bulk_lines / bulk_streams);
  await seed_list(worker, lines_each);
  const task_trials: trial[] = [];
  const bulk_trials: trial[] = [];
  for (const count of worker_counts) {
    const variant = `WORKERS ${count}`;
    const proxy = await start_bench_proxy(program, redis, ['-w', String(count)]);
    const fast = await start_bench_proxy(program, redis, ['-w', String(count), '-P', '0']);
    const measure = () => measure_tasks(task_scene, proxy, plan.seconds);
    task_trials.push({ case_name: 'tarefas', variant, run: measure });
    const pour = () => measure_proxy(bulk_scene, fast)(bulk_streams, lines_each);
    bulk_trials.push({ case_name: `volume, ${bulk_streams} fluxos`, variant, run: pour });
  }
  await run_rounds(context, 'workers', [...task_trials, ...bulk_trials], bulk_trials);
}

/** A prova. */
export const workers: scenario = {
  name: 'workers',
  estimate: (plan) =>
    5 + plan.rounds * 2 * (plan.seconds + 1.2) + (plan.rounds + 1) * (plan.bulk_lines / 1e6) * 5,
  run,
};
