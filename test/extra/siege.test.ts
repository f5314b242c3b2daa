/*
 * O cerco: estranhos sem chave que fazem ao proxy o que ninguém de boa-fé faria, e, ao lado deles,
 * um cliente comum, que não deve notar. A memória é a maior que o sistema viu o processo usar.
 */

import assert from 'node:assert/strict';
import { readFileSync as read_file } from 'node:fs';
import net from 'node:net';
import { before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fetch_all, type local_redis, type proxy, start_proxy, start_redis } from '../harness';
import { raw_request } from '../http_helpers';

/** Pedidos enfileirados sem esperar por nenhuma resposta, e quantas vezes seguidas. */
const flood = { requests: 200_000, times: 10 };

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
 * @param proxy o proxy
 * @returns megabytes
 */
function peak_mb(proxy: proxy): number {
  const status = read_file(`/proc/${proxy.process.pid}/status`, 'utf8');
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
