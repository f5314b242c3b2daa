/*
 * As conexões da prova com o Redis, que cai de propósito: reconectam para sempre, e quem as usa
 * insiste.
 */

import { createClient as create_client } from 'redis';
import { delay, on_stop } from '../dev/local';

/** O REDIS_STREAM da prova, se ela o usa. */
export const task_stream = 'ndjson_tasks';

/** Uma conexão. */
export type redis_client = Awaited<ReturnType<typeof connect>>;

/** Entre tentativas de um comando que o Redis não atendeu. */
const retry_ms = 50;

/** Conecta à porta `port`, no banco 1, e devolve o cliente. */
export async function connect(port: number) {
  const client = create_client({
    RESP: 2,
    database: 1,
    disableOfflineQueue: true,
    commandOptions: { timeout: 0 }, // a biblioteca desiste em 5 s
    socket: { host: '127.0.0.1', port, reconnectStrategy: retry_ms },
  });
  client.on('error', () => {});
  await client.connect();
  on_stop(async () => client.destroy());
  return client;
}

/** Insiste num comando, que repetir não faz mal, até que o Redis o atenda; devolve a resposta. */
export async function insist<result>(action: () => Promise<result>): Promise<result> {
  for (;;) {
    try {
      return await action();
    } catch {
      await delay(retry_ms);
    }
  }
}
