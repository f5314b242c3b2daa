/*
 * Um worker de exemplo, feito com o kit (worker.ts): responde cinco linhas com pausas e termina.
 *
 *   tsx scripts/worker/examples/worker-example.ts            atende uma tarefa e sai
 *   tsx scripts/worker/examples/worker-example.ts --loop     atende para sempre
 *
 * As opções e variáveis do Redis são as do proxy: -R REDIS_SERVER, -S REDIS_PASSWORD,
 * -C REDIS_CHANNEL, -X REDIS_PREFIX, -L REDIS_LIST_PREFIX. O gêmeo em Python é worker_example.py.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs as parse_args } from 'node:util';
import { proxy_flags, serve } from '../worker';

/**
 * Lê as opções; uma que não vale termina o programa com uma linha e o código 2.
 * @returns as opções
 */
function read_flags() {
  try {
    const { values } = parse_args({
      options: {
        ...proxy_flags,
        pause: { type: 'string', default: '400' },
        loop: { type: 'boolean', default: false },
      },
    });
    if (/^\d+$/.test(values.pause)) return values;
    throw new Error(`--pause: '${values.pause}' não é um tempo em ms`);
  } catch (error) {
    console.error(`worker-example: ${(error as Error).message.split('\n')[0]}`);
    return process.exit(2);
  }
}

const values = read_flags();

/** Quantas linhas cada tarefa recebe. */
const line_count = 5;

/** Sem --loop, a primeira tarefa é a última, mesmo que o cliente desista dela. */
const last = new AbortController();
const limits = values.loop ? {} : { tasks: 1, stop: last.signal };

void serve(
  async function* (task, signal) {
    try {
      for (let n = 1; n <= line_count; n += 1) {
        yield { n, of: line_count, url: task.url, body: task.body };
        await sleep(Number(values.pause), undefined, { signal });
      }
    } finally {
      last.abort();
    }
  },
  { ...values, ...limits },
);
