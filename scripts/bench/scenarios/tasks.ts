/*
 * Tarefas de uma linha: 50 conexões fazem um pedido depois do outro, e o worker responde uma linha
 * e encerra. O piso é um node:http que faz no Redis o mesmo SET e PUBLISH e um LPOP.
 */

import { type bench_context, run_rounds, type scenario } from '../context';
import {
  type bench_redis,
  join_redis,
  type role,
  start_bench_proxy,
  start_bench_redis,
  start_bench_worker,
  start_role,
  with_costs,
} from '../processes';

const connections = 50;
const warm_s = 1;
const body = '{"question": "uma pergunta curta, de cinquenta b."}';

/** O que o cliente de tarefas devolve. Demoras em ms. */
type task_figures = Record<'p50' | 'p90' | 'p99' | 'max' | 'rate' | 'total', number>;

/** Os processos que todos dividem. */
export type task_scene = { redis: bench_redis; worker: role; client: role };

/**
 * Mede as tarefas de um servidor, por `seconds` segundos.
 * @returns pedidos por segundo, demoras em ms, e o processador gasto
 */
export async function measure_tasks(
  { redis, worker, client }: task_scene,
  server: { pid: number; port: number },
  seconds: number,
): Promise<Record<string, number>> {
  const { port } = server;
  const start = `POST /task HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\n`;
  const type = 'Content-Type: application/json\r\n';
  const request = `${start}${type}Content-Length: ${body.length}\r\n\r\n${body}`;
  await worker.call('set_mode', { mode: 'reply' });
  const { result, costs } = await with_costs(
    { redis, worker, client, server },
    ({ total }) => total,
    () => client.call<task_figures>('run', { port, request, connections, warm_s, seconds }),
  );
  return { ...result, ...costs };
}

/** Roda a prova. */
async function run(context: bench_context): Promise<void> {
  const { plan, program } = context;
  const redis = await start_bench_redis();
  const worker = await start_bench_worker(redis);
  const scene = { redis, worker, client: start_role('task_client') };
  const { pid, call } = start_role('floor_server');
  await join_redis({ pid, call }, redis);
  const servers = {
    'json-proxy': await start_bench_proxy(program, redis),
    'piso http+redis': { pid, port: await call<number>('listen') },
  };
  const trials = Object.entries(servers).map(([variant, server]) => ({
    case_name: `${connections} conexões`,
    variant,
    run: () => measure_tasks(scene, server, plan.seconds),
  }));
  await run_rounds(context, 'tasks', trials);
}

/** A prova. */
export const tasks: scenario = {
  name: 'tasks',
  estimate: (plan) => 2 + plan.rounds * 2 * (plan.seconds + warm_s + 0.2),
  run,
};
