/*
 * O programa message-broker: um worker do proxy que ouve em 8777, com HTTPS.
 *
 *   APP_ENV           development (o padrão) ou production, que exige os dois segredos
 *   JWT_SECRET_KEY    assina os tokens; em desenvolvimento, um que fica no banco
 *   ADMIN_PASSWORD    senha do primeiro usuário, admin; em desenvolvimento, admin
 *   DATA_FOLDER, LOG_FOLDER   onde ficam o banco e os logs
 *   LEASE_S           quanto um consumidor tem para confirmar, em segundos
 *   RATE_LIMIT        pedidos de um cliente, como 300/60; off desliga
 */

import { daily_json, make_log } from '../common/log';
import {
  integer_setting,
  load_env_file,
  rate_setting,
  redis_setting,
  secret_setting,
  setting_error,
  text_setting,
} from '../common/settings';
import { run_system, serve_app, with_redis } from '../common/system';
import { make_app } from './app';
import { make_broker } from './broker';
import { make_counters } from './stats';
import { open_store } from './store';
import { ensure_admin, shared_secret } from './users';

/** Menor segredo que se aceita, em caracteres. */
const min_secret = 32;

/**
 * Lê em que ambiente se roda.
 * @returns se é o de desenvolvimento
 * @throws setting_error se não é um dos dois
 */
function read_environment(): boolean {
  const text = text_setting('APP_ENV', 'development');
  if (text === 'development' || text === 'production') return text === 'development';
  throw new setting_error(`APP_ENV inválido: ${text}; aceito: development ou production`);
}

/**
 * Lê os segredos, obrigatórios em produção.
 * @param is_development se se está em desenvolvimento
 * @returns o dos tokens, que pode ser vazio em desenvolvimento, e a senha do primeiro usuário
 * @throws setting_error se falta um, ou é curto
 */
function read_secrets(is_development: boolean) {
  const secret = secret_setting('JWT_SECRET_KEY', is_development ? '' : undefined);
  if (secret && secret.length < min_secret) {
    throw new setting_error(`JWT_SECRET_KEY: ao menos ${min_secret} caracteres`);
  }
  return {
    secret,
    password: secret_setting('ADMIN_PASSWORD', is_development ? 'admin' : undefined),
  };
}

/** Sobe o sistema e o serve até a ordem de parar. */
async function main(): Promise<void> {
  load_env_file();
  const where = redis_setting();
  const is_development = read_environment();
  const secrets = read_secrets(is_development);
  const lease_ms = integer_setting('LEASE_S', 60, 1, 86_400) * 1000;
  const rate = rate_setting('RATE_LIMIT', '300/60');
  const data = text_setting('DATA_FOLDER', 'data/message-broker');
  const logs = text_setting('LOG_FOLDER', 'log');
  const log = make_log(daily_json(logs, 'message-broker'));
  const store = open_store(data);
  if (await ensure_admin(store, secrets.password)) log.info('o usuário admin foi criado');
  const secret = secrets.secret || shared_secret(store);
  const broker = make_broker(store, lease_ms);
  const shared = { broker, counters: make_counters(), secret, rate, is_development, log };
  await with_redis({ ...where, log }, async (redis) => {
    const app = make_app({ ...shared, redis, folders: { data, logs } });
    await serve_app(app, { ...where, log });
  }).finally(() => store.close());
}

run_system('message-broker', main);
