/*
 * Um worker de exemplo: ouve o canal, lê a tarefa, responde cinco linhas com pausas e termina.
 *
 *   tsx scripts/worker-example.ts            atende uma tarefa e sai
 *   tsx scripts/worker-example.ts --loop     atende para sempre
 *
 * As opções e variáveis do Redis são as do proxy: -R REDIS_SERVER, -S REDIS_PASSWORD,
 * -C REDIS_CHANNEL, -X REDIS_PREFIX, -L REDIS_LIST_PREFIX. O gêmeo em Python é worker_example.py.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs as parse_args } from 'node:util';
import { createClient as create_client } from 'redis';
import { parse_redis_server, type task_record } from '../json-proxy';

const { env } = process;
const { values } = parse_args({
  options: {
    redis: { type: 'string', short: 'R', default: env.REDIS_SERVER || '127.0.0.1:6379/1' },
    secret: { type: 'string', short: 'S', default: env.REDIS_PASSWORD || '' },
    channel: { type: 'string', short: 'C', default: env.REDIS_CHANNEL || 'ndjson_jobs' },
    prefix: { type: 'string', short: 'X', default: env.REDIS_PREFIX || 'ndjson_task_' },
    'list-prefix': { type: 'string', short: 'L', default: env.REDIS_LIST_PREFIX || 'ndjson_list_' },
    pause: { type: 'string', default: '400' },
    loop: { type: 'boolean', default: false },
  },
});

/** Quantas linhas cada tarefa recebe. */
const line_count = 5;

const { host, port, tls, socket_path, database, username, password } = parse_redis_server(
  values.redis,
);
const where = socket_path ? { path: socket_path } : { host, port };
const client = create_client({
  socket: tls ? { ...where, tls: true } : where,
  database,
  ...(username && { username }),
  password: values.secret || password,
});

/**
 * Atende uma tarefa: uma linha por vez, e o DEL da tarefa no fim.
 * @param task_key a chave anunciada no canal
 */
async function serve(task_key: string): Promise<void> {
  if (!task_key.startsWith(values.prefix)) return; // de outra instalação no mesmo canal
  const task_list = values['list-prefix'] + task_key.slice(values.prefix.length);
  const text = await client.get(task_key);
  if (text === null) return; // o cliente já desistiu
  const task: task_record = JSON.parse(text);
  for (let n = 1; n <= line_count; n += 1) {
    if (!(await client.exists(task_key))) return; // cancelada: o cliente foi embora
    const line = { n, of: line_count, url: task.url, body: task.body };
    await client.rPush(task_list, JSON.stringify(line)); // a tarefa também a diz: task.task_list
    await sleep(Number(values.pause));
  }
  await client.del(task_key); // terminou: o proxy esvazia a lista e fecha a resposta
}

/**
 * Assina o canal e atende o que chega.
 */
async function main(): Promise<void> {
  client.on('error', (error) => console.error(`worker: ${error.message || error.code}`));
  await client.connect();
  const subscriber = await client
    .duplicate()
    .on('error', () => {})
    .connect();
  await subscriber.subscribe(values.channel, async (task_key) => {
    console.log(`worker: ${task_key}`);
    await serve(task_key).catch((error) => console.error(`worker: ${error.message}`));
    if (!values.loop) process.exit(0);
  });
  console.log(`worker: ouvindo ${values.channel}`);
}

void main();
