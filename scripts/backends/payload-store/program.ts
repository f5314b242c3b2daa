/*
 * O programa payload-store, um worker do proxy: main.ts o roda, e app_server.ts com o proxy junto.
 */

import { existsSync as file_exists } from 'node:fs';
import path from 'node:path';
import { make_log, rotating_file } from '../common/log';
import { load_env_file, redis_setting, secret_setting, text_setting } from '../common/settings';
import { serve_app, with_redis } from '../common/system';
import { make_app } from './app';

/** Por onde se vê que se está num contêiner: um do Docker, ou um do Podman. */
const container_marks = ['/.dockerenv', '/run/.containerenv'];

/**
 * Escolhe a pasta do log.
 * @returns a de LOG_FOLDER; num contêiner /log; senão log, na pasta corrente
 */
function log_folder(): string {
  return text_setting('LOG_FOLDER', container_marks.some(file_exists) ? '/log' : 'log');
}

/** Sobe o sistema e o serve até a ordem de parar. */
export async function main(): Promise<void> {
  load_env_file();
  const where = redis_setting();
  const api_key = secret_setting('API_SECRET_KEY');
  const log = make_log(rotating_file(path.join(log_folder(), 'server.log')));
  const connection = { ...where, log };
  await with_redis(connection, (redis) => serve_app(make_app({ redis, api_key, log }), connection));
}
