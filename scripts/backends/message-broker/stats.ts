/*
 * O que /stats conta: desta cópia, os pedidos e os erros; do banco, as filas; da máquina, o uso.
 */

import { statfs as file_system_stats } from 'node:fs/promises';
import os from 'node:os';
import type { MiddlewareHandler as middleware } from 'hono';
import { matchedRoutes as matched_routes } from 'hono/route';
import type { bindings } from '../common/web';
import { count_messages, list_queues, type store } from './store';

/** O que esta cópia conta. */
export type counters = {
  started_at: Date;
  total: number;
  by_route: Record<string, Record<string, number>>;
  by_status: Record<string, number>;
  last_error: { message: string; at: Date } | undefined;
};

/**
 * Começa a contar.
 * @returns os contadores
 */
export function make_counters(): counters {
  return { started_at: new Date(), total: 0, by_route: {}, by_status: {}, last_error: undefined };
}

/**
 * Conta cada pedido e diz na resposta quanto ele levou, em X-Process-Time, em segundos.
 * @param counters os contadores
 * @returns o passo
 */
export function count_requests(counters: counters): middleware<bindings> {
  return async (c, next) => {
    const started_at = performance.now();
    await next();
    const { status } = c.res;
    // os passos comuns, em "/*", também contam como rotas
    const paths = matched_routes(c).map(({ path }) => path);
    const route = paths.findLast((path) => !path.includes('*')) ?? 'unknown';
    counters.total += 1;
    counters.by_route[route] ??= {};
    const methods = counters.by_route[route];
    methods[c.req.method] = (methods[c.req.method] ?? 0) + 1;
    counters.by_status[status] = (counters.by_status[status] ?? 0) + 1;
    if (c.error && status >= 500)
      counters.last_error = { message: c.error.message, at: new Date() };
    c.header('X-Process-Time', ((performance.now() - started_at) / 1000).toFixed(6));
  };
}

/**
 * Escreve uma duração em palavras.
 * @param seconds segundos
 * @returns por exemplo "1 day, 2 hours, 0 minutes, 5 seconds"
 */
export function in_words(seconds: number): string {
  const units = [
    ['day', Math.floor(seconds / 86_400)],
    ['hour', Math.floor(seconds / 3600) % 24],
    ['minute', Math.floor(seconds / 60) % 60],
    ['second', Math.floor(seconds) % 60],
  ] as const;
  const first = units.findIndex(([, count]) => count > 0);
  const shown = first < 0 ? units.slice(-1) : units.slice(first);
  return shown.map(([name, count]) => `${count} ${name}${count === 1 ? '' : 's'}`).join(', ');
}

/**
 * Mede a máquina.
 * @param folder uma pasta do disco a medir
 * @returns processador, memória e disco, em bytes
 */
async function system_stats(folder: string) {
  const disk = await file_system_stats(folder);
  const { user, system } = process.cpuUsage();
  return {
    cpu: {
      cores: os.cpus().length,
      load_average: os.loadavg(),
      process_ms: (user + system) / 1000,
    },
    memory: { total: os.totalmem(), free: os.freemem(), process: process.memoryUsage().rss },
    disk: { total: disk.blocks * disk.bsize, free: disk.bavail * disk.bsize },
    platform: `${os.type()} ${os.release()}`,
  };
}

/**
 * Faz a resposta de /stats.
 * @param counters os contadores
 * @param store o banco
 * @param folder a pasta do banco
 * @returns a resposta
 */
export async function read_stats(counters: counters, store: store, folder: string) {
  const uptime_seconds = Math.floor((Date.now() - counters.started_at.getTime()) / 1000);
  const messages = count_messages(store);
  return {
    start_time: counters.started_at.toISOString(),
    uptime_seconds,
    uptime_human: in_words(uptime_seconds),
    requests_total: counters.total,
    requests_by_route: counters.by_route,
    requests_by_status: counters.by_status,
    queues_total: list_queues(store).length,
    messages_total: messages.total,
    messages_pending: messages.pending,
    messages_processing: messages.processing,
    messages_processed: messages.processed,
    messages_failed: messages.failed,
    last_error: counters.last_error?.message ?? null,
    last_error_timestamp: counters.last_error?.at.toISOString() ?? null,
    system: await system_stats(folder),
    broker_specific: {
      framework: 'Hono, GraphQL Yoga',
      database: 'SQLite (libsql), WAL',
      authentication: 'JWT (HS256), access and refresh tokens',
      copy: `${os.hostname()}:${process.pid}`,
      node: process.version,
    },
  };
}
