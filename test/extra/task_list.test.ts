/*
 * task-list atrás do proxy, no PGlite e num PostgreSQL de verdade: as rotas, o cache, as quedas.
 */

import assert from 'node:assert/strict';
import path from 'node:path';
import { before, describe, test } from 'node:test';
import {
  brisk,
  connect_redis,
  exit_of,
  type local_program,
  type local_redis,
  type proxy,
  type redis_client,
  served,
  start_proxy,
  start_redis,
  temp_dir,
  until,
} from '../harness';
import {
  ask,
  hold_row,
  long_patience_ms,
  type postgres,
  sees_failure,
  sees_waiter,
  spawn_system,
  start_postgres,
  start_relay,
  start_system,
} from './backends_helpers';

/** Um sistema no ar, com um Redis e um proxy só dele. */
type scene = { redis: local_redis; front: proxy; db: redis_client };

/**
 * Sobe um Redis e um proxy.
 * @returns os dois, e um cliente do Redis
 */
async function start_scene(): Promise<scene> {
  const redis = await start_redis();
  const front = await start_proxy(redis, [...brisk, '--grace', '5000', '-t', '8000']);
  return { redis, front, db: await connect_redis(redis) };
}

/**
 * Confere que as rotas fazem o que dizem, da lista inicial a uma tarefa apagada.
 * @param front o proxy
 */
async function check_routes(front: proxy): Promise<void> {
  assert.deepEqual((await ask(front, 'GET /health')).value, {
    ...{ api: 'healthy', database: 'healthy', cache: 'healthy' },
  });
  const first = await ask(front, 'GET /tasks');
  assert.equal(first.value.source, 'database');
  assert.equal(first.value.count, 3);
  const again = await ask(front, 'GET /tasks');
  assert.deepEqual(again.value, { ...first.value, source: 'cache' });
  const made = await ask(front, 'POST /tasks', { title: ' Escrever ', description: 'ã 🎉' });
  assert.equal(made.status, 201);
  assert.equal(made.value.message, 'Task created successfully');
  const { task } = made.value;
  assert.deepEqual([task.title, task.description, task.status], ['Escrever', 'ã 🎉', 'pending']);
  assert.match(task.created_at, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
  const all = await ask(front, 'GET /tasks');
  assert.deepEqual([all.value.source, all.value.count], ['database', 4]);
  assert.deepEqual(all.value.tasks[0], task, 'a mais nova vem primeiro');
  const route = `/tasks/${task.id}`;
  assert.deepEqual((await ask(front, `GET ${route}`)).value, { source: 'database', task });
  assert.deepEqual((await ask(front, `GET ${route}`)).value, { source: 'cache', task });
  const changed = await ask(front, `PUT ${route}`, { status: 'completed', description: null });
  assert.equal(changed.value.task.status, 'completed');
  assert.equal(changed.value.task.title, 'Escrever');
  const read = await ask(front, `GET ${route}`);
  assert.deepEqual(read.value, { source: 'database', task: changed.value.task });
  assert.equal((await ask(front, `DELETE ${route}`)).status, 200);
  assert.equal((await ask(front, `GET ${route}`)).status, 404);
  assert.equal((await ask(front, 'GET /tasks')).value.count, 3);
}

describe('task-list no PostgreSQL', () => {
  let where: scene;
  let database: postgres;
  let system: local_program;
  let env: NodeJS.ProcessEnv;

  before(async () => {
    [where, database] = await Promise.all([start_scene(), start_postgres()]);
    const place = { DB_HOST: '127.0.0.1', DB_PORT: String(database.port) };
    env = { ...place, DB_NAME: 'postgres', DB_USER: 'postgres' };
    system = await start_system('task-list', where.redis, env);
  });

  test('as rotas, e de onde vem cada resposta', () => check_routes(where.front));

  test('recusa com um erro que diz o motivo', async () => {
    const { front } = where;
    const cases: [string, unknown, number, RegExp][] = [
      ['POST /tasks', {}, 400, /^title: /],
      ['POST /tasks', { title: '  ' }, 400, /^title: /],
      ['POST /tasks', { title: 'x'.repeat(201) }, 400, /^title: /],
      ['POST /tasks', { title: 'a\0b' }, 400, /^title: .*NUL/],
      ['POST /tasks', { title: 'a', status: 'done' }, 400, /^status: /],
      ['POST /tasks', { title: 'a', colour: 'red' }, 400, /colour/],
      ['POST /tasks', '{"title": ', 400, /JSON/],
      ['POST /tasks', '["title"]', 400, /object/],
      ['PUT /tasks/1', {}, 400, /at least one field/],
      ['PUT /tasks/999', { title: 'a' }, 404, /no task 999/],
      ['DELETE /tasks/999', undefined, 404, /no task 999/],
      ['GET /tasks/one', undefined, 400, /integer/],
      ['GET /tasks/99999999999999', undefined, 404, /no task/],
      ['PATCH /tasks/1', {}, 404, /no such route/],
    ];
    for (const [target, body, status, reason] of cases) {
      const reply = await ask(front, target, body);
      assert.equal(reply.status, status, `${target} ${JSON.stringify(body)}: ${reply.body}`);
      assert.match(reply.value.error, reason, target);
    }
    assert.equal((await ask(front, 'GET /tasks')).value.count, 3);
  });

  test('o cache: as chaves, o prazo, as estatísticas, e limpar só o que é dele', async () => {
    const { front, db } = where;
    await ask(front, 'POST /cache/clear');
    await db.set('of_another', '1');
    await ask(front, 'GET /tasks');
    await ask(front, 'GET /tasks/1');
    for (const key of ['all_tasks', 'task_1']) {
      const ttl = await db.ttl(key);
      assert.ok(ttl > 0 && ttl <= 60, `${key}: ${ttl}`);
    }
    const stats = await ask(front, 'GET /cache/stats');
    assert.ok(stats.value.keyspace_hits >= 0 && stats.value.connected_clients > 0);
    assert.deepEqual((await ask(front, 'POST /cache/clear')).value, {
      ...{ message: 'Cache cleared successfully', removed: 2 },
    });
    assert.deepEqual(await db.exists(['all_tasks', 'task_1', 'of_another']), 1);
    for (const said of ['cache miss', 'cache hit', 'cache set']) {
      assert.ok(system.stdout().includes(said), `o log não diz "${said}"`);
    }
  });

  test('um kill -9 no meio de uma escrita é um erro no cliente, e outra cópia segue', async () => {
    const { front, redis } = where;
    const heir = await start_system('task-list', redis, env);
    const release = await hold_row(database, 'tasks WHERE id = 1');
    heir.process.kill('SIGSTOP'); // a outra cópia não disputa este pedido
    const asked = ask(front, 'PUT /tasks/1', { title: 'never' });
    await sees_waiter(database);
    await system.stop('SIGKILL');
    heir.process.kill('SIGCONT');
    await sees_failure(asked);
    release();
    system = heir;
    const next = await ask(front, 'PUT /tasks/1', { title: 'after' });
    assert.equal(next.value.task.title, 'after');
    assert.equal((await ask(front, 'GET /tasks/1')).value.task.title, 'after');
  });

  test('com SIGTERM a escrita em curso termina, e o programa sai com 0', async () => {
    const { front } = where;
    const release = await hold_row(database, 'tasks WHERE id = 2');
    const asked = ask(front, 'PUT /tasks/2', { title: 'the last' });
    await sees_waiter(database);
    system.process.kill('SIGTERM');
    release();
    const reply = await asked;
    assert.deepEqual([reply.status, reply.value.task.title], [200, 'the last']);
    assert.equal(await exit_of(system, long_patience_ms), 0);
    system = await start_system('task-list', where.redis, env);
    assert.equal((await ask(front, 'GET /tasks/2')).value.task.title, 'the last');
  });

  test('sem o banco é 503, e ele volta sem que se reinicie nada', async () => {
    const { front } = where;
    await database.stop('SIGINT');
    const health = await ask(front, 'GET /health');
    assert.deepEqual([health.status, health.value.database], [503, 'unhealthy']);
    const refused = await ask(front, 'POST /tasks', { title: 'lost' });
    assert.deepEqual([refused.status, refused.value.error], [503, 'the database is unavailable']);
    database = await start_postgres(database);
    assert.equal((await ask(front, 'GET /health')).status, 200);
    assert.equal((await ask(front, 'GET /tasks')).value.count, 3);
  });
});

describe('o cache do task-list, num Redis à parte', () => {
  let where: scene;
  let cache: local_redis;
  let db: redis_client;
  let copies: { late: local_program; prompt: local_program };
  let relay: Awaited<ReturnType<typeof start_relay>>;

  before(async () => {
    const [own, postgres, apart] = await Promise.all([
      start_scene(),
      start_postgres(),
      start_redis(),
    ]);
    [where, cache] = [own, apart];
    [db, relay] = await Promise.all([connect_redis(cache), start_relay(cache)]);
    const env = { DB_HOST: '127.0.0.1', DB_PORT: String(postgres.port), DB_USER: 'postgres' };
    const start = (server: string) => {
      const more = { DB_NAME: 'postgres', CACHE_SERVER: server };
      return start_system('task-list', own.redis, { ...env, ...more });
    };
    const [late, prompt] = await Promise.all([start(relay.server), start(cache.server)]);
    copies = { late, prompt };
  });

  test('quem leu do banco antes de uma escrita não guarda mais o que leu', async () => {
    const { front } = where;
    const { late, prompt } = copies;
    prompt.process.kill('SIGSTOP');
    relay.hold('EVAL'); // o que a cópia lenta leu fica a caminho do cache
    const old = await ask(front, 'GET /tasks/1');
    assert.equal(old.value.source, 'database');
    await relay.held();
    prompt.process.kill('SIGCONT');
    late.process.kill('SIGSTOP');
    assert.equal((await ask(front, 'PUT /tasks/1', { title: 'new' })).status, 200);
    const stores = await served(db, 'eval');
    relay.release();
    await until('o valor velho no cache', async () => (await served(db, 'eval')) > stores);
    assert.equal((await ask(front, 'GET /tasks/1')).value.task.title, 'new');
    late.process.kill('SIGCONT');
  });

  test('fora do ar ele deixa tudo mais lento, e nunca errado', async () => {
    const { front } = where;
    const { late, prompt } = copies;
    await late.stop();
    await ask(front, 'GET /tasks/3');
    assert.equal((await ask(front, 'GET /tasks/3')).value.source, 'cache');
    cache.process.kill('SIGSTOP'); // o que ele guarda continua lá
    const written = await ask(front, 'PUT /tasks/3', { title: 'without a cache' });
    assert.equal(written.status, 200);
    const read = await ask(front, 'GET /tasks/3');
    assert.deepEqual([read.value.source, read.value.task.title], ['database', 'without a cache']);
    const health = await ask(front, 'GET /health');
    assert.deepEqual([health.status, health.value.cache], [503, 'unhealthy']);
    assert.equal((await ask(front, 'GET /cache/stats')).status, 503);
    assert.equal((await ask(front, 'POST /cache/clear')).status, 503);
    cache.process.kill('SIGCONT');
    const sources = new Set<string>();
    await until('o cache de volta', async () => {
      const { value } = await ask(front, 'GET /tasks/3');
      assert.equal(value.task.title, 'without a cache');
      sources.add(value.source);
      return sources.has('cache');
    });
    assert.equal(prompt.process.exitCode, null);
  });
});

describe('task-list no PGlite', () => {
  let where: scene;

  before(async () => {
    where = await start_scene();
  });

  test('as mesmas rotas; uma cópia por pasta: a outra segue quando ela morre', async () => {
    const { front, redis } = where;
    const env = { DATA_FOLDER: path.join(temp_dir(), 'data') };
    const first = await start_system('task-list', redis, env);
    await check_routes(front);
    await ask(front, 'POST /tasks', { title: 'kept' });
    const heir = spawn_system('task-list', redis, env);
    await heir.wait_for(/outra cópia usa a pasta de dados/, long_patience_ms);
    await first.stop('SIGKILL');
    await heir.wait_for(/ouvindo/, long_patience_ms);
    const { value } = await ask(front, 'GET /tasks');
    assert.equal(value.tasks[0].title, 'kept');
  });
});
