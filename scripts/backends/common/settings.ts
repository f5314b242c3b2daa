/*
 * As configurações dos sistemas: do ambiente, ou de um `.env` na pasta de onde se roda, que perde
 * para o ambiente. Um valor que não serve impede o sistema de começar.
 */

import { existsSync as file_exists, readFileSync as read_file } from 'node:fs';

/** Configuração que falta ou não serve: a mensagem é a linha que o usuário lê. */
export class setting_error extends Error {}

/** Lê o `.env` da pasta corrente, se há um. */
export function load_env_file(): void {
  if (file_exists('.env')) process.loadEnvFile('.env');
}

/**
 * Lê um texto; o vazio conta como ausente.
 * @param name nome da variável
 * @param fallback o que vale sem ela; sem isto, ela é obrigatória
 * @returns o texto
 * @throws setting_error se falta
 */
export function text_setting(name: string, fallback?: string): string {
  const text = process.env[name] || fallback;
  if (text === undefined) throw new setting_error(`falta ${name}, no ambiente ou no .env`);
  return text;
}

/**
 * Lê um inteiro.
 * @param name nome da variável
 * @param fallback o que vale sem ela
 * @param min menor valor aceito
 * @param max maior valor aceito
 * @returns o número
 * @throws setting_error se não é um inteiro entre os dois
 */
export function integer_setting(name: string, fallback: number, min: number, max: number): number {
  const text = text_setting(name, String(fallback));
  const value = Number(text);
  if (/^\d+$/.test(text) && value >= min && value <= max) return value;
  throw new setting_error(`${name} inválido: ${JSON.stringify(text)}; aceito: ${min} a ${max}`);
}

/**
 * Lê uma taxa.
 * @param name nome da variável
 * @param fallback o que vale sem ela, na mesma forma; vazio desliga
 * @returns pedidos por tantos segundos; undefined se desligada
 * @throws setting_error se não tem a forma 60/60
 */
export function rate_setting(name: string, fallback: string) {
  const text = text_setting(name, fallback);
  if (text === '' || text === 'off') return undefined;
  const [, limit = 0, seconds = 0] = (/^([1-9]\d{0,6})\/([1-9]\d{0,4})$/.exec(text) ?? []).map(
    Number,
  );
  if (limit) return { limit, seconds };
  throw new setting_error(
    `${name} inválido: ${JSON.stringify(text)}; aceito: pedidos/segundos, como 60/60, ou off`,
  );
}

/**
 * Lê um segredo, pelo valor ou de um arquivo, como o proxy.
 * @param name nome da variável; com _FILE, a do arquivo
 * @param fallback o que vale sem as duas; sem isto, uma é obrigatória
 * @returns o segredo
 * @throws setting_error se falta, ou o arquivo não se lê
 */
export function secret_setting(name: string, fallback?: string): string {
  const file = text_setting(`${name}_FILE`, '');
  if (process.env[name] || !file) return text_setting(name, fallback);
  try {
    return read_file(file, 'utf8').replace(/\r?\n$/, '');
  } catch (error) {
    throw new setting_error(`${name}_FILE: ${(error as Error).message}`);
  }
}

/**
 * Dá o Redis do proxy, que é também o do sistema.
 * @returns o endereço, numa das formas de REDIS_SERVER, e a senha, que pode ser vazia
 */
export function redis_setting(): { redis: string; secret: string } {
  const secret = secret_setting('REDIS_PASSWORD', '');
  const server = text_setting('REDIS_SERVER', text_setting('REDIS_HOST', '127.0.0.1'));
  if (/[:/]/.test(server)) return { redis: server, secret };
  return { redis: `${server}:${integer_setting('REDIS_PORT', 6379, 1, 65_535)}/1`, secret };
}
