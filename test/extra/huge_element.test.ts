/*
 * Um elemento enorme com quebras de linha: quanto os outros esperam enquanto ele passa, e quanta
 * memória o proxy chega a ter. Os limites são folgados; os números, e os de um programa anterior:
 * [JSON_PROXY_PROGRAM=…] node --import tsx --test test/extra/huge_element.test.ts
 */

import assert from 'node:assert/strict';
import { readFileSync as read_file } from 'node:fs';
import { before, describe, test, type TestContext as test_context } from 'node:test';
import {
  brisk,
  delay,
  end_of,
  fetch_all,
  type local_redis,
  start_program,
  start_redis,
  start_scene,
} from '../harness';

const megabyte = 1024 * 1024;
const element_bytes = 200 * megabyte;

/** O que se espera no máximo: de uma resposta a /ping, e da memória do proxy. */
const most = { wait_ms: 2500, memory_bytes: 700 * megabyte };

/** Elementos: a linha que se repete neles, e quantas linhas o cliente recebe. */
const cases: Record<string, { line: string; is_json: boolean }> = {
  'linhas JSON de 100 bytes': { line: `{"n":1,"text":"${'x'.repeat(83)}"}\n`, is_json: true },
  'linhas de texto de 100 bytes': { line: `${'palavra '.repeat(12)}fim\n`, is_json: false },
};

let redis: local_redis;

before(async () => {
  redis = await start_redis();
});

/**
 * Lê a maior memória residente que um processo já teve.
 * @param pid o processo
 * @returns bytes
 */
function peak_memory(pid: number | undefined): number {
  const status = read_file(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024;
}

/**
 * Mede um elemento.
 * @param context o teste, que anota os números
 * @param line a linha que se repete nele
 * @returns a maior espera por /ping, a memória, e o que o log diz do fim
 */
async function measure(context: test_context, line: string) {
  const { proxy, worker, db } = await start_scene(redis, brisk);
  const element = Buffer.alloc(element_bytes, line);
  await db.rPush('enorme', element.subarray(0, element_bytes - (element_bytes % line.length)));
  const curl = start_program('curl', ['-sS', '-o', '/dev/null', proxy.url]);
  const task = await worker.next();
  const waits: number[] = [];
  const pinging = { on: true };
  const ping = async () => {
    while (pinging.on) {
      const asked_at = performance.now();
      await fetch_all(proxy, { path: '/ping' });
      waits.push(performance.now() - asked_at);
      await delay(10);
    }
  };
  const pings = ping();
  await delay(200);
  const began_at = performance.now();
  await db.multi().rename('enorme', task.task_list).del(task.task_key).exec();
  const code = await curl.exited;
  const took_ms = performance.now() - began_at;
  pinging.on = false;
  await pings;
  const end = await end_of(proxy, task);
  const memory = peak_memory(proxy.process.pid);
  const wait_ms = Math.max(...waits);
  context.diagnostic(
    `${Math.round(took_ms)} ms; os outros esperaram ${Math.round(wait_ms)} ms; ` +
      `${Math.round(memory / megabyte)} MB`,
  );
  await proxy.stop();
  return { code, end, wait_ms, memory };
}

describe('um elemento de 200 MB com quebras', () => {
  for (const [title, { line, is_json }] of Object.entries(cases)) {
    test(title, async (context) => {
      const { code, end, wait_ms, memory } = await measure(context, line);
      assert.equal(code, 0);
      const lines = Math.floor(element_bytes / line.length);
      assert.deepEqual([end.ending, end.lines], ['done', String(is_json ? lines : 1)]);
      assert.equal(Number(end.bytes), lines * line.length);
      assert.ok(wait_ms < most.wait_ms, `${wait_ms} ms`);
      assert.ok(memory < most.memory_bytes, `${memory} bytes`);
    });
  }
});
