/*
 * O programa task-list: um worker do proxy que ouve em 5000.
 *
 * O banco é o PostgreSQL de DB_HOST, DB_PORT, DB_NAME, DB_USER e DB_PASSWORD; sem DB_HOST, um
 * PGlite na pasta DATA_FOLDER. O cache é o Redis do proxy, salvo se CACHE_SERVER diz outro.
 */

import { type database, once_up, open_pglite, open_postgres } from '../common/database';
import { type log, make_log } from '../common/log';
import {
  integer_setting,
  load_env_file,
  redis_setting,
  secret_setting,
  text_setting,
} from '../common/settings';
import { run_system, serve_app, with_redis } from '../common/system';
import { make_app } from './app';
import { prepare_tasks } from './store';

/** Prazo de um comando, em milissegundos: menos que o HEAD_WAIT do proxy, para haver resposta. */
const query_limit_ms = 8000;

/**
 * Abre o banco que as configurações pedem.
 * @param log o log
 * @returns o banco
 */
async function open_database(log: log): Promise<database> {
  const host = text_setting('DB_HOST', '');
  if (!host) return open_pglite(text_setting('DATA_FOLDER', 'data/task-list'), log);
  const config = {
    host,
    port: integer_setting('DB_PORT', 5432, 1, 65_535),
    database: text_setting('DB_NAME', 'tasks_db'),
    user: text_setting('DB_USER', 'admin'),
    password: secret_setting('DB_PASSWORD', ''),
  };
  return open_postgres(config, query_limit_ms, log);
}

/** Sobe o sistema e o serve até a ordem de parar. */
async function main(): Promise<void> {
  load_env_file();
  const where = redis_setting();
  const log = make_log();
  const at = { ...where, redis: text_setting('CACHE_SERVER', where.redis), log };
  const database = await open_database(log);
  try {
    await once_up(log, () => prepare_tasks(database));
    log.info('o banco está pronto', { kind: database.kind });
    await with_redis(at, async (redis) => {
      const cache = { redis, log, dirty: new Set<string>() };
      await serve_app(make_app({ database, cache, log }), { ...where, log });
    });
  } finally {
    await database.close();
  }
}

run_system('task-list', main);
