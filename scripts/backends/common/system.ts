/*
 * A vida de um sistema: começa, atende pelo proxy, e com SIGTERM para depois do que está em curso.
 */

import { serve_fetch } from '../../worker/adapters';
import { make_client } from '../../worker/worker';
import type { log } from './log';
import { setting_error } from './settings';
import type { bindings } from './web';

/** Onde está o Redis do proxy, e quem ouve as notícias. */
export type connection = { redis: string; secret: string; log: log };

/** Pedidos ao mesmo tempo; quase todos só esperam, e um fluxo ocupa o seu lugar por horas. */
const tasks = 200;

/** Uma API, de qualquer biblioteca que siga o fetch. */
type app = { fetch: (request: Request, env: bindings['Bindings']) => Response | Promise<Response> };

/** O mesmo código de saída do proxy para uma configuração que não serve. */
const usage_exit_code = 2;

/**
 * Conecta um cliente ao Redis, que se reconecta sozinho, e o fecha no fim.
 * @param connection o Redis e o log
 * @param use o que se faz com ele
 */
export async function with_redis(
  { redis, secret, log }: connection,
  use: (client: ReturnType<typeof make_client>) => Promise<void>,
): Promise<void> {
  const client = make_client({ redis, secret, log: (text) => log.warn(text) });
  client.connect().catch(() => {}); // só falha se o fecham antes
  await use(client).finally(() => client.destroy());
}

/**
 * Atende os pedidos que chegam pelo proxy, até a ordem de parar.
 * @param app a API
 * @param connection o Redis e o log
 */
export async function serve_app(app: app, { log, ...where }: connection): Promise<void> {
  const options = { ...where, tasks, log: (text: string) => log.info(`worker: ${text}`) };
  await serve_fetch((request, task) => app.fetch(request, { task }), options);
}

/**
 * Roda o programa de um sistema e sai com o código certo: 2 se uma configuração não serve.
 * @param name nome do sistema
 * @param main o programa
 */
export function run_system(name: string, main: () => Promise<void>): void {
  main().then(
    () => process.exit(process.exitCode),
    (error) => {
      const is_usage = error instanceof setting_error;
      console.error(`${name}: ${is_usage ? error.message : error.stack}`);
      process.exit(is_usage ? usage_exit_code : 1);
    },
  );
}
