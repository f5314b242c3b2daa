/*
 * Mais de um processo: as provas de tarefas e de volume com WORKERS 1 e 2, e quanto cada processo
 * gastou, para que se veja o que é o limite: o proxy, o Redis, quem gera a carga ou a máquina.
 */

import { type bench_context, run_rounds, type scenario, type trial, warm_round } from '../context';
import { command_output } from '../peers';
import { start_bench_proxy, start_bench_redis, start_role } from '../processes';
import { measure_proxy_bulk, seed_name } from './bulk';
import { measure_tasks } from './tasks';

const worker_counts = [1, 2];
const bulk_streams = 20;

/**
 * Roda a prova, se o programa conhece WORKERS.
 * @param context o contexto das provas
 */
async function run(context: bench_context): Promise<void> {
  const { program, roles_dir, plan } = context;
  if (!command_output(process.execPath, [program, '--help']).includes('--workers')) {
    context.note('workers: pulada, este programa não conhece --workers');
    return;
  }
  const redis = await start_bench_redis();
  const worker = start_role(roles_dir, 'worker');
  const task_client = start_role(roles_dir, 'task_client');
  const bulk_client = start_role(roles_dir, 'bulk_client');
  await worker.call('connect', { port: redis.port, database: 1, channel: 'ndjson_jobs' });
  const pids = { redis: redis.process.pid ?? 0, worker: worker.pid };
  const task_scene = { worker, client: task_client, pids: { ...pids, client: task_client.pid } };
  const bulk_scene = { worker, client: bulk_client, pids };
  const lines_each = Math.floor(plan.bulk_lines / bulk_streams);
  await worker.call('seed', { name: seed_name(lines_each), lines: lines_each });
  const task_trials: trial[] = [];
  const bulk_trials: trial[] = [];
  for (const count of worker_counts) {
    const variant = `WORKERS ${count}`;
    const proxy = await start_bench_proxy(program, redis, ['-w', String(count)]);
    const fast = await start_bench_proxy(program, redis, ['-w', String(count), '-P', '0']);
    const measure = () => measure_tasks(task_scene, proxy.port, proxy.pid, plan.seconds);
    task_trials.push({ case_name: 'tarefas', variant, run: measure });
    const pour = () => measure_proxy_bulk(bulk_scene, fast, bulk_streams, lines_each);
    bulk_trials.push({ case_name: `volume, ${bulk_streams} fluxos`, variant, run: pour });
  }
  await warm_round(context, 'workers', bulk_trials);
  await run_rounds(context, 'workers', [...task_trials, ...bulk_trials]);
}

/** A prova. */
export const workers: scenario = {
  name: 'workers',
  estimate: (plan) =>
    5 + plan.rounds * 2 * (plan.seconds + 1.2) + (plan.rounds + 1) * (plan.bulk_lines / 1e6) * 5,
  run,
};
