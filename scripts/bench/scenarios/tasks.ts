/*
 * Tarefas de uma linha: 50 conexões fazem um pedido depois do outro, e o worker responde uma linha
 * e encerra. O piso é um node:http que faz no Redis o mesmo SET e PUBLISH e um LPOP.
 */

import { type bench_context, run_rounds, type scenario } from '../context';
import {
  cpu_costs,
  type role,
  start_bench_proxy,
  start_bench_redis,
  start_role,
  with_cpu,
} from '../processes';

const connections = 50;
const warm_s = 1;
const body = '{"question": "uma pergunta curta, de cinquenta b."}';

/** O que o cliente de tarefas devolve. Demoras em ms. */
type task_figures = { p50: number; p90: number; p99: number; max: number; rate: number } & {
  total: number;
};

/** O que uma medição precisa: os papéis, e os processos cujo gasto interessa. */
export type task_scene = { worker: role; client: role; pids: Record<string, number> };

/**
 * Mede as tarefas de um servidor.
 * @param scene os papéis e os processos
 * @param port a porta do servidor
 * @param server_pid o processo do servidor
 * @param seconds duração da medição
 * @returns pedidos por segundo, demoras em ms, e o processador gasto
 */
export async function measure_tasks(
  scene: task_scene,
  port: number,
  server_pid: number,
  seconds: number,
): Promise<Record<string, number>> {
  const start = `POST /task HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\n`;
  const type = 'Content-Type: application/json\r\n';
  const request = `${start}${type}Content-Length: ${body.length}\r\n\r\n${body}`;
  await scene.worker.call('set_mode', { mode: 'reply' });
  const pids = { ...scene.pids, server: server_pid };
  const { result, wall_s, cpu_s } = await with_cpu(pids, () =>
    scene.client.call<task_figures>('run', { port, request, connections, warm_s, seconds }),
  );
  const { total, ...figures } = result;
  return { ...figures, total, ...cpu_costs(cpu_s, wall_s, total) };
}

/**
 * Roda a prova.
 * @param context o contexto das provas
 */
async function run(context: bench_context): Promise<void> {
  const { roles_dir, plan, program } = context;
  const redis = await start_bench_redis();
  const where = { port: redis.port, database: 1, channel: 'ndjson_jobs' };
  const worker = start_role(roles_dir, 'worker');
  const client = start_role(roles_dir, 'task_client');
  const floor = start_role(roles_dir, 'floor_server');
  await worker.call('connect', where);
  await floor.call('connect', where);
  const floor_port = await floor.call<number>('listen');
  const proxy = await start_bench_proxy(program, redis);
  const pids = { redis: redis.process.pid ?? 0, worker: worker.pid, client: client.pid };
  const scene = { worker, client, pids };
  const case_name = `${connections} conexões`;
  await run_rounds(context, 'tasks', [
    {
      case_name,
      variant: 'json-proxy',
      run: () => measure_tasks(scene, proxy.port, proxy.pid, plan.seconds),
    },
    {
      case_name,
      variant: 'piso http+redis',
      run: () => measure_tasks(scene, floor_port, floor.pid, plan.seconds),
    },
  ]);
}

/** A prova. */
export const tasks: scenario = {
  name: 'tasks',
  estimate: (plan) => 2 + plan.rounds * 2 * (plan.seconds + warm_s + 0.2),
  run,
};
