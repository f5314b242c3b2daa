/*
 * O programa batch-sync: um worker do proxy que ouve em 8000.
 *
 *   SOURCE_URL    o PostgreSQL de origem; sem ela, um PGlite com SAMPLE_ROWS linhas inventadas
 *   TARGET_URL    a API de destino; sem ela, um destino de mentira, que falha como diz TARGET_FAILS
 *   SYNC_RATE     limite dos GET por cliente, como 30/60; desligado sem ela
 */

import { make_log } from '../common/log';
import {
  integer_setting,
  load_env_file,
  rate_setting,
  redis_setting,
  setting_error,
  text_setting,
} from '../common/settings';
import { run_system, serve_app, with_redis } from '../common/system';
import { make_app } from './app';
import { open_source } from './source';
import { type failures, start_stand_in } from './target';

/**
 * Lê o que o destino de mentira deve recusar.
 * @returns por exemplo {"produtos": {"2": [503, 429]}}
 * @throws setting_error se não é JSON
 */
function read_failures(): failures {
  try {
    return JSON.parse(text_setting('TARGET_FAILS', '{}'));
  } catch {
    throw new setting_error('TARGET_FAILS inválido; aceito: {"produtos": {"2": [503, 429]}}');
  }
}

/**
 * Lê como se envia ao destino.
 * @returns as tentativas e os prazos; `url` vazia pede o destino de mentira
 */
function read_delivery() {
  return {
    url: text_setting('TARGET_URL', '').replace(/\/+$/, ''),
    attempts: integer_setting('ATTEMPTS', 5, 1, 20),
    pause_ms: integer_setting('PAUSE_MS', 500, 1, 60_000),
    timeout_ms: integer_setting('TIMEOUT_MS', 30_000, 1, 600_000),
  };
}

/** Sobe o sistema e o serve até a ordem de parar. */
async function main(): Promise<void> {
  load_env_file();
  const connection = { ...redis_setting(), log: make_log() };
  const rate = rate_setting('SYNC_RATE', 'off');
  const folder = text_setting('FAILED_FOLDER', 'data/batch-sync/failed');
  const delivery = read_delivery();
  if (!delivery.url) delivery.url = (await start_stand_in(read_failures())).url;
  const { log } = connection;
  const rows = integer_setting('SAMPLE_ROWS', 2500, 0, 10_000_000);
  const source = await open_source(text_setting('SOURCE_URL', ''), rows, log);
  log.info('a origem está pronta', { kind: source.kind });
  try {
    await with_redis(connection, async (redis) => {
      const app = make_app({ source, delivery, folder, redis, rate, log });
      await serve_app(app, connection);
    });
  } finally {
    await source.close();
  }
}

run_system('batch-sync', main);
