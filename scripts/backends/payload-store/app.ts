/*
 * payload-store: guarda a entrada e a saída de um processamento, por uuid, durante 30 dias.
 *
 *   POST /save_input?uuid=     o corpo, JSON, é a entrada
 *   POST /save_output?uuid=    o corpo, JSON, é a saída
 *   GET  /get_payload?uuid=    {"input": …, "output": …}
 *
 * O JSON é guardado e devolvido como veio, sem passar por um número do JavaScript: um inteiro de 20
 * dígitos sai com os 20.
 */

import { createHash as create_hash, timingSafeEqual as equal_in_time } from 'node:crypto';
import { type Context as context, Hono as hono, type MiddlewareHandler as middleware } from 'hono';
import type { make_client } from '../../worker/worker';
import type { log } from '../common/log';
import { type app, type bindings, http_error, prepare_app, read_json } from '../common/web';

/** Vida do que foi salvo, em segundos, contada do último save. */
export const payload_ttl = 30 * 24 * 3600;

/** Começo das chaves no Redis. */
const key_prefix = 'payload_';

/** Tamanho máximo de um uuid, que não precisa ser um UUID: "abc123" serve. */
const max_uuid = 200;

/** De que a API precisa. */
export type parts = { redis: ReturnType<typeof make_client>; api_key: string; log: log };

/**
 * Resume um texto, para que a comparação de dois leve o mesmo tempo com qualquer tamanho.
 * @param text o texto
 * @returns o resumo
 */
function digest(text: string): Buffer {
  return create_hash('sha256').update(text).digest();
}

/**
 * Exige a chave em X-API-KEY.
 * @param api_key a chave
 * @returns o passo
 */
function require_key(api_key: string): middleware {
  const expected = digest(api_key);
  return async (c, next) => {
    const given = c.req.header('X-API-KEY') ?? '';
    if (!equal_in_time(digest(given), expected)) {
      throw new http_error(401, 'X-API-KEY is missing or wrong');
    }
    await next();
  };
}

/**
 * Lê o uuid da consulta.
 * @param c o pedido
 * @returns o uuid
 * @throws http_error 400 se falta ou é longo demais
 */
function read_uuid(c: context): string {
  const uuid = c.req.query('uuid')?.trim();
  if (!uuid) throw new http_error(400, 'the parameter uuid is required');
  if (uuid.length > max_uuid) throw new http_error(400, `uuid: at most ${max_uuid} characters`);
  return uuid;
}

/**
 * Faz a API.
 * @param parts o Redis, a chave e o log
 * @returns a API
 */
export function make_app({ redis, api_key, log }: parts): app {
  const app = prepare_app(new hono<bindings>(), log);
  app.use(require_key(api_key));

  const save = (field: 'input' | 'output') => async (c: context) => {
    const uuid = read_uuid(c);
    const { text } = await read_json(c);
    const key = key_prefix + uuid;
    await redis.multi().hSet(key, field, text).expire(key, payload_ttl).exec();
    log.info('salvo', { uuid, field, bytes: text.length });
    return c.json({ status: 'ok', uuid, saved: field });
  };
  app.post('/save_input', save('input'));
  app.post('/save_output', save('output'));

  app.get('/get_payload', async (c) => {
    const uuid = read_uuid(c);
    const [input, output] = await redis.hmGet(key_prefix + uuid, ['input', 'output']);
    if (input == null && output == null) throw new http_error(404, 'nothing under this uuid');
    const body = `{"input": ${input ?? 'null'}, "output": ${output ?? 'null'}}`;
    return c.body(body, 200, { 'Content-Type': 'application/json' });
  });
  return app;
}
