/*
 * Experimenta as três rotas, com o que está no ambiente ou no .env.
 *
 *   npx tsx client.ts
 *
 * API_SECRET_KEY; SERVER_URL, que é http://127.0.0.1:8890 se falta; UUID, que é um novo se falta.
 */

import { deepStrictEqual as assert_equal } from 'node:assert';
import { randomUUID as random_uuid } from 'node:crypto';
import { load_env_file, secret_setting, text_setting } from '../common/settings';
import { run_system } from '../common/system';

const input = { usuario: 'Maria', valor: 120 };
const output = { status: 'ok', tempo: 3.2 };

/**
 * Faz um pedido e mostra a resposta.
 * @param url o endereço
 * @param key a chave
 * @param body o corpo, que o torna um POST; sem ele é um GET
 * @returns o valor da resposta
 * @throws Error se o status não é 200
 */
async function ask(url: URL, key: string, body?: unknown): Promise<unknown> {
  const headers = { 'X-API-KEY': key, 'Content-Type': 'application/json' };
  const post = { method: 'POST', headers, body: JSON.stringify(body) };
  const response = await fetch(url, body === undefined ? { headers } : post);
  const text = await response.text();
  console.log(`${body === undefined ? 'GET' : 'POST'} ${url.pathname}: ${response.status} ${text}`);
  if (response.status !== 200) throw new Error(`${url.pathname}: HTTP ${response.status}`);
  return JSON.parse(text);
}

/** Salva uma entrada e uma saída, e confere que voltam. */
async function main(): Promise<void> {
  load_env_file();
  const key = secret_setting('API_SECRET_KEY');
  const base = text_setting('SERVER_URL', 'http://127.0.0.1:8890');
  const uuid = text_setting('UUID', random_uuid());
  const route = (name: string) => new URL(`/${name}?uuid=${encodeURIComponent(uuid)}`, base);
  await ask(route('save_input'), key, input);
  await ask(route('save_output'), key, output);
  assert_equal(await ask(route('get_payload'), key), { input, output });
}

run_system('client', main);
