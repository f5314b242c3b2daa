/*
 * O agendador: todo dia à 01:00 de São Paulo chama as quatro sincronizações, pelo proxy, e registra
 * o que cada uma respondeu em Logs/Rota_Produtos/Julho/15/15_07_2024_01h00_Rota_Produtos.log.
 *
 *   npx tsx monitor.ts          espera a hora, e fica rodando
 *   npx tsx monitor.ts --now    chama agora, e sai com 1 se alguma não veio inteira
 *
 * PROXY_URL: onde está o proxy. API_KEY: a chave dele, se pede uma. LOGS_FOLDER: onde fica Logs.
 */

import { appendFileSync as append_file, mkdirSync as make_dir } from 'node:fs';
import path from 'node:path';
import { parseArgs as parse_args } from 'node:util';
import { Cron as cron } from 'croner';
import { local_time, make_log } from '../common/log';
import { load_env_file, secret_setting, text_setting } from '../common/settings';
import { run_system } from '../common/system';
import { log_file_of, time_zone } from './log_files';

/** Todo dia à 01:00. */
const schedule = '0 1 * * *';

/** As rotas chamadas, uma de cada vez: acrescente ou retire linhas. */
const routes = [
  { path: '/filiais/sincronizar', name: 'Rota_Filial' },
  { path: '/produtos/sincronizar', name: 'Rota_Produtos' },
  { path: '/clientes/sincronizar', name: 'Rota_Clientes' },
  { path: '/vendas/sincronizar', name: 'Rota_Vendas' },
];

const log = make_log();

/**
 * Separa em linhas o corpo de uma resposta, conforme chega.
 * @param body o corpo
 * @yields as linhas; a última pode não estar inteira
 */
async function* lines_of(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  let rest = '';
  for await (const text of body.pipeThrough(
    new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>,
  )) {
    const lines = (rest + text).split('\n');
    rest = lines.pop() ?? '';
    yield* lines;
  }
  if (rest) yield rest;
}

/**
 * Chama uma rota e registra o que ela responde.
 * @param url endereço da rota
 * @param headers cabeçalhos
 * @param say registra uma linha
 * @throws Error se a resposta não veio inteira: só a linha final diz que veio
 */
async function call_route(
  url: string,
  headers: Record<string, string>,
  say: (line: string) => void,
): Promise<void> {
  const response = await fetch(url, { method: 'POST', headers });
  say(`HTTP ${response.status}`);
  let last = '';
  for await (const line of response.body ? lines_of(response.body) : []) {
    say(line);
    last = line;
  }
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  if (!last.startsWith('{"done":true')) throw new Error('a resposta acabou sem a linha final');
}

/**
 * Chama todas as rotas.
 * @param base endereço do proxy
 * @param key a chave do proxy; vazia se ele não pede
 * @param folder onde fica a pasta Logs
 * @returns quantas não vieram inteiras
 */
async function call_routes(base: string, key: string, folder: string): Promise<number> {
  let failed = 0;
  const started_at = new Date();
  for (const route of routes) {
    const file = path.join(folder, log_file_of(route.name, started_at));
    make_dir(path.dirname(file), { recursive: true });
    const say = (line: string) => append_file(file, `${local_time(new Date())} ${line}\n`);
    say(`chamando ${route.path}`);
    try {
      await call_route(base + route.path, key ? { 'X-API-KEY': key } : {}, say);
      say('terminou');
      log.info('a rota terminou', { route: route.name, file });
    } catch (error) {
      failed += 1;
      const { message, cause } = error as Error;
      const reason = cause ? `${message}: ${(cause as Error).message}` : message;
      say(`ERRO: ${reason}`);
      log.error('a rota falhou', { route: route.name, file, error: reason });
    }
  }
  return failed;
}

/** Espera a hora, ou chama já. */
async function main(): Promise<void> {
  const { values } = parse_args({ options: { now: { type: 'boolean', default: false } } });
  load_env_file();
  const base = text_setting('PROXY_URL', 'http://127.0.0.1:8000').replace(/\/+$/, '');
  const key = secret_setting('API_KEY', '');
  const folder = text_setting('LOGS_FOLDER', '.');
  const call = () => call_routes(base, key, folder);
  if (values.now) {
    process.exitCode = (await call()) > 0 ? 1 : 0;
    return;
  }
  const job = new cron(schedule, { timezone: time_zone, protect: true }, async () => {
    await call();
  });
  const stopped = new Promise<void>((resolve) => {
    process.once('SIGTERM', resolve).once('SIGINT', resolve);
  });
  log.info('agendador iniciado: aguardando a hora', { next: job.nextRun()?.toISOString() });
  await stopped;
  job.stop();
}

if (require.main === module) run_system('monitor', main);
