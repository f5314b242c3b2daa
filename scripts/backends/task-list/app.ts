/*
 * task-list: uma lista de tarefas no PostgreSQL, com um cache no Redis.
 */

import { type Context as context, Hono as hono } from 'hono';
import { z } from 'zod';
import type { database } from '../common/database';
import type { log } from '../common/log';
import { type app, type bindings, http_error, prepare_app, read_body } from '../common/web';
import {
  type cache,
  cache_key,
  cache_stats,
  clear_cache,
  find_cached,
  is_cache_up,
  store_cached,
  write_through,
} from './cache';
import {
  all_tasks,
  create_task,
  delete_task,
  max_id,
  one_task,
  states,
  type task,
  update_task,
} from './store';

/** O que há, para quem chega. */
const routes = {
  'GET /': 'what there is',
  'GET /health': 'state of the API, the database and the cache',
  'GET /tasks': 'all tasks, newest first',
  'GET /tasks/:id': 'one task',
  'POST /tasks': 'create: {"title", "description"?, "status"?}',
  'PUT /tasks/:id': 'change the fields given',
  'DELETE /tasks/:id': 'remove',
  'GET /cache/stats': 'statistics of the cache',
  'POST /cache/clear': 'empty the cache',
};

/** Quanto /health espera pelo banco, em milissegundos. */
const health_patience_ms = 3000;

/** Texto que o PostgreSQL guarda: tudo, menos o NUL. */
const text = z.string().regex(/^[^\0]*$/, 'no NUL characters');

const new_task = z.strictObject({
  title: text.trim().min(1).max(200),
  description: text.max(10_000).nullable().optional(),
  status: z.enum(states).optional(),
});

const task_changes = new_task
  .partial()
  .refine((changes) => Object.keys(changes).length > 0, 'give at least one field to change');

/** De que a API precisa. */
export type parts = { database: database; cache: cache; log: log };

/**
 * Lê o número da tarefa no caminho.
 * @param c o pedido
 * @returns o número
 * @throws http_error 400 se não é um inteiro; 404 se nenhuma tarefa o poderia ter
 */
function read_id(c: context): number {
  const text = c.req.param('id') ?? '';
  if (!/^\d+$/.test(text)) throw new http_error(400, 'the id of a task is an integer');
  const id = Number(text);
  if (id < 1 || id > max_id) throw new http_error(404, `no task ${text}`);
  return id;
}

/**
 * Recusa uma tarefa que não há.
 * @param task o que o banco devolveu
 * @param id o número pedido
 * @returns a tarefa
 * @throws http_error 404
 */
function found(task: task | undefined, id: number): task {
  if (!task) throw new http_error(404, `no task ${id}`);
  return task;
}

/**
 * Diz se o banco responde a tempo.
 * @param database o banco
 * @returns se responde
 */
async function is_database_up(database: database): Promise<boolean> {
  const late = new Promise<boolean>((resolve) => {
    setTimeout(resolve, health_patience_ms, false).unref();
  });
  const asked = database.query('SELECT 1').then(
    () => true,
    () => false,
  );
  return Promise.race([asked, late]);
}

/**
 * Responde do cache, ou do banco, guardando no cache o que leu.
 * @param parts o banco, o cache e o log
 * @param key a chave no cache
 * @param read lê do banco
 * @returns o valor e de onde veio
 */
async function read_through<value>({ cache }: parts, key: string, read: () => Promise<value>) {
  const { text, version } = await find_cached(cache, key);
  if (text !== null) return { source: 'cache', value: JSON.parse(text) as value };
  const value = await read();
  await store_cached(cache, key, JSON.stringify(value), version);
  return { source: 'database', value };
}

/**
 * Acrescenta as rotas das tarefas.
 * @param app a API
 * @param parts o banco, o cache e o log
 */
function add_task_routes(app: app, parts: parts): void {
  const { database, cache } = parts;
  app.get('/tasks', async (c) => {
    const { source, value } = await read_through(parts, cache_key(), () => all_tasks(database));
    return c.json({ source, count: value.length, tasks: value });
  });
  app.get('/tasks/:id', async (c) => {
    const id = read_id(c);
    const read = async () => found(await one_task(database, id), id);
    const { source, value } = await read_through(parts, cache_key(id), read);
    return c.json({ source, task: value });
  });
  app.post('/tasks', async (c) => {
    const fields = await read_body(c, new_task);
    const task = await write_through(cache, undefined, () => create_task(database, fields));
    return c.json({ message: 'Task created successfully', task }, 201);
  });
  app.put('/tasks/:id', async (c) => {
    const id = read_id(c);
    const changes = await read_body(c, task_changes);
    const task = await write_through(cache, id, () => update_task(database, id, changes));
    return c.json({ message: 'Task updated successfully', task: found(task, id) });
  });
  app.delete('/tasks/:id', async (c) => {
    const id = read_id(c);
    const task = await write_through(cache, id, () => delete_task(database, id));
    return c.json({ message: 'Task deleted successfully', task: found(task, id) });
  });
}

/**
 * Faz a API.
 * @param parts o banco, o cache e o log
 * @returns a API
 */
export function make_app(parts: parts): app {
  const { database, cache, log } = parts;
  const app = prepare_app(new hono<bindings>(), log);
  app.get('/', (c) => c.json({ name: 'task-list', database: database.kind, routes }));

  app.get('/health', async (c) => {
    const say = (is_up: boolean) => (is_up ? 'healthy' : 'unhealthy');
    const up = await Promise.all([is_database_up(database), is_cache_up(cache)]);
    const [in_database, in_cache] = up.map(say);
    const health = { api: 'healthy', database: in_database, cache: in_cache };
    return c.json(health, up.every(Boolean) ? 200 : 503);
  });

  add_task_routes(app, parts);

  app.get('/cache/stats', async (c) => {
    const stats = await cache_stats(cache);
    if (!stats) throw new http_error(503, 'the cache is unavailable');
    return c.json(stats);
  });
  app.post('/cache/clear', async (c) => {
    const removed = await clear_cache(cache);
    if (removed === undefined) throw new http_error(503, 'the cache is unavailable');
    return c.json({ message: 'Cache cleared successfully', removed });
  });
  return app;
}
