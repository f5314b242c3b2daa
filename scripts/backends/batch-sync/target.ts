/*
 * O envio de um lote à API de destino, com novas tentativas, e um destino de mentira para quem não
 * tem o verdadeiro.
 */

import http from 'node:http';
import type { AddressInfo as address } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** Um lote pronto para o destino. `id` é o mesmo em toda tentativa: não se grava duas vezes. */
export type batch = { id: string; entity: string; number: number; records: unknown[] };

/** Como se envia. `pause_ms` é a primeira pausa; cada uma é o dobro da anterior. */
export type delivery = { url: string; attempts: number; pause_ms: number; timeout_ms: number };

/** O que foi de um lote. `error` falta se ele foi aceito. */
export type outcome = { attempts: number; error?: string };

/** Maior pausa entre tentativas, também a pedido do destino, em milissegundos. */
const longest_pause_ms = 60_000;

/** O que o destino de mentira responde a cada tentativa de um lote: {"produtos": {"2": [503]}}. */
export type failures = Record<string, Record<string, number[]>>;

/**
 * Tenta enviar um lote uma vez.
 * @param delivery como se envia
 * @param batch o lote
 * @param signal interrompe
 * @returns o erro, e se vale tentar de novo; undefined se o lote foi aceito
 */
async function send_once({ url, timeout_ms }: delivery, batch: batch, signal: AbortSignal) {
  const { id, entity, records } = batch;
  try {
    const response = await fetch(`${url}/${entity}`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', 'Idempotency-Key': id },
      body: JSON.stringify(records),
      signal: AbortSignal.any([signal, AbortSignal.timeout(timeout_ms)]),
    });
    await response.body?.cancel();
    if (response.ok) return undefined;
    const { status, headers } = response;
    const may_pass = status === 429 || status >= 500;
    const wait_ms = Number(headers.get('Retry-After')) * 1000 || 0;
    return { error: `HTTP ${status}`, may_pass, wait_ms };
  } catch (error) {
    const { message, cause } = error as Error;
    const reason = (cause as Error | undefined)?.message || message;
    return { error: reason, may_pass: !signal.aborted, wait_ms: 0 };
  }
}

/**
 * Envia um lote, e de novo, com pausas crescentes, se o destino está ocupado ou fora do ar.
 * @param delivery como se envia
 * @param batch o lote
 * @param signal interrompe a espera
 * @returns o que foi dele
 */
export async function send_batch(
  delivery: delivery,
  batch: batch,
  signal: AbortSignal,
): Promise<outcome> {
  for (let attempt = 1; ; attempt += 1) {
    const failure = await send_once(delivery, batch, signal);
    if (!failure) return { attempts: attempt };
    const { error, may_pass, wait_ms } = failure;
    if (!may_pass || attempt >= delivery.attempts) return { attempts: attempt, error };
    const pause = Math.max(delivery.pause_ms * 2 ** (attempt - 1), wait_ms);
    await sleep(Math.min(pause, longest_pause_ms), undefined, { signal }).catch(() => {});
  }
}

/**
 * Sobe um destino de mentira em 127.0.0.1, que conta o que recebe e falha quando lhe dizem.
 * @param failures o que responder, por entidade, lote e tentativa; depois da lista, aceita
 * @returns o endereço, e o que o para
 */
export async function start_stand_in(failures: failures) {
  const tried = new Map<string, number>();
  const server = http.createServer((request, response) => {
    const id = String(request.headers['idempotency-key']);
    const [entity = '', , number = ''] = id.split(':');
    const attempt = tried.get(id) ?? 0;
    tried.set(id, attempt + 1);
    request.resume().once('end', () => {
      response.writeHead(failures[entity]?.[number]?.[attempt] ?? 200).end();
      if (response.statusCode === 200) tried.delete(id);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  server.unref();
  const url = `http://127.0.0.1:${(server.address() as address).port}`;
  return { url, stop: () => server.closeAllConnections() };
}
