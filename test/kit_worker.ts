/*
 * Um worker feito com o kit, que faz o que o caminho do pedido manda. Uma porta é um arquivo na
 * pasta GATES, que o teste cria quando o gerador deve seguir. Sozinho num processo, os testes podem
 * matá-lo ou congelá-lo. O gêmeo em Python é extra/kit_worker.py.
 */

import { existsSync as exists } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type handler, raw, serve } from '../scripts/worker/worker';

/**
 * Faz o gerador.
 * @param gates a pasta das portas
 * @param name a última linha de cada resposta
 * @param say quem ouve o fim de cada uma
 * @returns o gerador
 */
export function make_answer(gates: string, name: string, say: (text: string) => void): handler {
  return async function* ({ url }, signal) {
    const wait_gate = async (gate: string) => {
      while (!exists(path.join(gates, gate)) && !signal.aborted) await sleep(5);
    };
    try {
      if (url.startsWith('/late')) {
        await wait_gate(url.slice(1));
        yield { n: 1 };
      } else if (url === '/hold') {
        yield { n: 1 };
        await wait_gate('hold');
        yield { n: 2 };
      } else if (url === '/raw-hold') {
        yield raw(200, { 'Content-Type': 'text/event-stream' });
        yield 'data: 1\n\n';
        await wait_gate('hold');
      }
      yield name;
    } finally {
      say(`finally ${url}`);
    }
  };
}

if (require.main === module) {
  const { GATES: gates = '', NAME: name = 'fim', TAKEOVER: takeover } = process.env;
  const options = takeover ? { name, takeover: Number(takeover) } : { name };
  void serve(make_answer(gates, name, console.log), options);
}
