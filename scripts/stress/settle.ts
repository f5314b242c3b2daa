/*
 * O fim da prova: tudo acaba, o que expira expira, e o que resta é vazamento.
 */

import { delay, until } from '../dev/local';
import { type probe_reading, take_probe } from '../dev/probe';
import { fail } from './ledger';
import { insist, task_stream } from './redis';
import { dismiss_proxy, type scene } from './scene';
import type { crew } from './worker';

/** O que sobrou quando nada devia sobrar, e a memória do proxy antes e depois, em bytes. */
export type leaks = {
  keys: number;
  sockets: number;
  timers: number;
  heap_before: number;
  heap_after: number;
};

/** Prazo para os workers acabarem o que começaram e o Redis responder ao que deve. */
const drain_limit_ms = 60_000;

/** O que expira leva até dois TTL: a varredura que dá o TTL, e ele. Além disso, a margem. */
const expiry_margin_ms = 15_000;

/** Prazo para os sockets e temporizadores de quem já saiu sumirem. */
const rest_limit_ms = 20_000;

const poll_ms = 300;

/** Quanto a memória do proxy pode variar entre duas medições em repouso. */
const heap_slack_bytes = 8 * 1024 * 1024;

/** Tipos de recurso do Node que são sockets; os temporizadores têm um só. */
const socket_pattern = /Socket|TCP|Pipe/;

/** Dá quantos recursos há com esses nomes. */
function count_resources({ resources }: probe_reading, pattern: RegExp): number {
  const found = Object.entries(resources).filter(([name]) => pattern.test(name));
  return found.reduce((sum, [, count]) => sum + count, 0);
}

/**
 * Espera que nenhuma chave do proxy reste no Redis, salvo as listas que a varredura já condenou,
 * com um TTL dela; devolve quantas restaram depois do prazo.
 */
async function leaked_keys({ book, admin, settings }: scene): Promise<number> {
  const deadline = performance.now() + 2 * settings.ttl_s * 1000 + expiry_margin_ms;
  for (;;) {
    const found = await insist(() => admin.keys('ndjson_*'));
    const ttls = await insist(() => Promise.all(found.map((key) => admin.ttl(key))));
    const is_doomed = (key: string, ttl = -1) => key.startsWith('ndjson_list_') && ttl > 0;
    const queued = await insist(() => admin.xLen(task_stream)); // vazio, o stream fica
    const is_kept = (key: string) => key === task_stream && queued === 0;
    const keys = found.filter((key, index) => !is_kept(key) && !is_doomed(key, ttls[index]));
    if (keys.length === 0) return 0;
    if (performance.now() > deadline) {
      fail(book, `${keys.length} chaves restaram no Redis: ${keys.slice(0, 3)}`);
      return keys.length;
    }
    await delay(poll_ms);
  }
}

/**
 * Espera que os recursos do proxy voltem aos de antes do primeiro pedido; devolve quantos sockets e
 * temporizadores restaram, e a última leitura.
 */
async function leaked_resources({ book, proxy, relay }: scene, before: probe_reading) {
  const deadline = performance.now() + rest_limit_ms;
  for (;;) {
    const after = await take_probe(proxy);
    const extra = (pattern: RegExp) =>
      Math.max(0, count_resources(after, pattern) - count_resources(before, pattern));
    const links = Math.max(0, relay.counts().open - 1);
    const [sockets, timers] = [extra(socket_pattern) + links, extra(/Timeout|Immediate/)];
    const is_over = performance.now() > deadline;
    if (sockets + timers > 0 && is_over) {
      fail(book, `o proxy reteve recursos: ${JSON.stringify(after.resources)}`);
    }
    if (sockets + timers === 0 || is_over) return { sockets, timers, after };
    await delay(poll_ms);
  }
}

/**
 * Espera que tudo acabe e confere que nada ficou; devolve o que ficou.
 * @param idle a leitura do proxy antes do primeiro pedido
 * @param warm a leitura dele depois do aquecimento
 */
export async function settle(
  scene: scene,
  crew: crew,
  idle: probe_reading,
  warm: probe_reading,
): Promise<leaks> {
  const { book, relay, departures } = scene;
  await until('fim dos workers', () => crew.busy() === 0, drain_limit_ms);
  await until('respostas devidas pelo Redis', () => relay.counts().owed === 0, drain_limit_ms);
  await Promise.all(departures);
  const keys = await leaked_keys(scene);
  const { sockets, timers, after } = await leaked_resources(scene, idle);
  const [heap_before, heap_after] = [warm.heap_bytes, after.heap_bytes];
  if (heap_after > heap_before + heap_slack_bytes) {
    fail(book, `a memória do proxy passou de ${heap_before} a ${heap_after} bytes`);
  }
  await dismiss_proxy(scene);
  return { keys, sockets, timers, heap_before, heap_after };
}
