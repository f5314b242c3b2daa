/*
 * O cerco: estranhos sem chave que fazem ao proxy o que ninguém de boa-fé faria, e, ao lado deles,
 * um cliente comum, que não deve notar. A memória é a maior que o sistema viu o processo usar.
 */

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync as read_file } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { on_stop } from '../../scripts/dev/local';
import {
  connect_redis,
  fetch_all,
  free_port,
  type local_redis,
  program_file,
  type proxy,
  start_proxy,
  start_redis,
  until,
} from '../harness';
import { raw_request } from '../http_helpers';

/** Pedidos enfileirados sem esperar por nenhuma resposta, e quantas vezes seguidas. */
const flood = { requests: 200_000, times: 10 };

/** Corpos mandados ao mesmo tempo, a um processo que não os poderia ter todos em memória. */
const crowd = { bodies: 100, bytes: 10_000_000, heap_mb: 256 };

/** Pedidos com que um log que ninguém lê enche, com caminhos longos. */
const unread_requests = 20_000;

/** De quanto em quanto tempo o cliente comum pergunta. */
const ask_every_ms = 100;

/** O que o cliente comum pode esperar: sem o cuidado que se prova, passa de um minuto. */
const most_wait_ms = 5000;

let redis: local_redis;

before(async () => {
  redis = await start_redis();
});

/**
 * Lê a maior memória residente que um processo já teve.
 * @returns megabytes
 */
function peak_mb({ process: { pid } }: { process: { pid?: number | undefined } }): number {
  const status = read_file(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) / 1024;
}

/**
 * Faz de cliente comum enquanto dura um cerco: um /ping por vez, numa conexão nova.
 * @param proxy o proxy
 * @param siege o cerco
 * @returns a maior espera, em ms
 */
async function longest_wait(proxy: proxy, siege: Promise<unknown>): Promise<number> {
  let is_over = false;
  let longest = 0;
  void siege.finally(() => {
    is_over = true;
  });
  while (!is_over) {
    const asked_at = performance.now();
    assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
    longest = Math.max(longest, performance.now() - asked_at);
    await sleep(ask_every_ms);
  }
  return longest;
}

/**
 * Enfileira pedidos numa conexão até que ela caia.
 * @param proxy o proxy
 * @param text os pedidos
 */
async function pour(proxy: proxy, text: string): Promise<void> {
  const socket = net.connect(proxy.port, '127.0.0.1');
  socket.on('error', () => {});
  socket.resume();
  socket.end(text);
  await new Promise((resolve) => socket.once('close', resolve));
}

test(`${flood.requests} pedidos enfileirados, ${flood.times} vezes`, async (t) => {
  const proxy = await start_proxy(redis, ['--api-key', 'chave']);
  await fetch_all(proxy, { path: '/ping' });
  const before_mb = peak_mb(proxy);
  const text = raw_request('GET /ping').repeat(flood.requests);
  const siege = async () => {
    for (let time = 0; time < flood.times; time += 1) await pour(proxy, text);
  };
  const wait_ms = await longest_wait(proxy, siege());
  const grown_mb = peak_mb(proxy) - before_mb;
  t.diagnostic(`espera de até ${Math.round(wait_ms)} ms`);
  t.diagnostic(`memória: ${Math.round(before_mb)} MB, e mais ${Math.round(grown_mb)} MB`);
  assert.ok(wait_ms < most_wait_ms, `um cliente comum esperou ${wait_ms} ms`);
  assert.ok(grown_mb < 50, `a memória cresceu ${grown_mb} MB`);
  assert.match(proxy.stderr(), / pipeline_cut address=127\.0\.0\.1 waiting=64\n/);
});

/**
 * Manda um corpo e diz o que aconteceu.
 * @param proxy o proxy
 * @param body o corpo
 * @returns o status, ou o erro da conexão
 */
function post(proxy: proxy, body: Buffer): Promise<number | string> {
  return new Promise((resolve) => {
    const request = http.request({ port: proxy.port, method: 'POST', agent: false });
    request.once('error', ({ message }) => resolve(message));
    request.once('response', (response) => {
      response.resume();
      response.once('close', () => resolve(response.statusCode ?? 0));
    });
    request.end(body);
  });
}

test(`${crowd.bodies} corpos de ${crowd.bytes} bytes de uma vez`, async (t) => {
  const env = { NODE_OPTIONS: `--max-old-space-size=${crowd.heap_mb}` };
  const proxy = await start_proxy(redis, ['-t', '1'], env);
  await fetch_all(proxy, { path: '/ping' });
  const before_mb = peak_mb(proxy);
  const body = Buffer.alloc(crowd.bytes, 'é"');
  const posting = Promise.all(Array.from({ length: crowd.bodies }, () => post(proxy, body)));
  const wait_ms = await longest_wait(proxy, posting);
  const grown_mb = peak_mb(proxy) - before_mb;
  const counts = new Map<number | string, number>();
  for (const how of await posting) counts.set(how, (counts.get(how) ?? 0) + 1);
  t.diagnostic(`respostas: ${JSON.stringify([...counts])}`);
  t.diagnostic(`espera de até ${Math.round(wait_ms)} ms; mais ${Math.round(grown_mb)} MB`);
  assert.ok((counts.get(200) ?? 0) > 0 && (counts.get(503) ?? 0) > 0);
  assert.ok(wait_ms < most_wait_ms, `um cliente comum esperou ${wait_ms} ms`);
  assert.ok(grown_mb < 3 * crowd.heap_mb, `a memória cresceu ${grown_mb} MB`);
  assert.equal(await post(proxy, body), 200, 'o lugar dos corpos não voltou');
});

test('um corpo de zeros não fica seis vezes maior no Redis', async (t) => {
  const proxy = await start_proxy(redis, ['-t', '60000']);
  const db = await connect_redis(redis);
  await db.flushDb();
  void post(proxy, Buffer.alloc(crowd.bytes));
  const [key = ''] = await until('tarefa', async () => {
    const keys = await db.keys('ndjson_task_*');
    return keys.length > 0 ? keys : undefined;
  });
  const bytes = await db.strLen(key);
  t.diagnostic(`${crowd.bytes} bytes viraram ${bytes}`);
  assert.ok(bytes < 1.4 * crowd.bytes);
});

test('um log que ninguém lê', async (t) => {
  const port = await free_port();
  const args = ['-p', String(port), '--host', '127.0.0.1', '-R', redis.server, '-t', '1'];
  const child = spawn(process.execPath, [await program_file(), ...args, '-C', 'ninguem']);
  on_stop(async () => {
    child.kill('SIGKILL');
  });
  const at = { port };
  const ping = () => fetch_all(at, { path: '/ping' }).catch(() => undefined);
  await until('proxy no ar', async () => (await ping())?.status === 200);
  const before_mb = peak_mb({ process: child });
  const agent = new http.Agent({ keepAlive: true, maxSockets: 32 });
  const path = `/${'x'.repeat(290)}`;
  let left = unread_requests;
  const lane = async () => {
    for (; left > 0; left -= 1) await fetch_all(at, { path, agent });
  };
  await Promise.all(Array.from({ length: 32 }, lane));
  agent.destroy();
  t.diagnostic(`mais ${Math.round(peak_mb({ process: child }) - before_mb)} MB`);
  let [seen, dropped] = [0, 0];
  const count = (text: string) => {
    seen += text.match(/\n/g)?.length ?? 0;
    for (const [, lines] of text.matchAll(/ log_dropped lines=(\d+)\n/g)) dropped += Number(lines);
  };
  child.stdout.setEncoding('utf8').on('data', count);
  child.stderr.setEncoding('utf8').on('data', count);
  await until('linhas descartadas', () => dropped > unread_requests);
  assert.equal((await ping())?.body, 'pong');
  t.diagnostic(`${seen} linhas lidas, ${dropped} contadas`);
});
