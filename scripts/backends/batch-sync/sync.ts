/*
 * A sincronização de uma entidade: um lote por vez, lido, traduzido e enviado antes de se ler o
 * próximo. A memória é a de um lote, com mil linhas ou com um milhão.
 */

import { mkdirSync as make_dir, writeFileSync as write_file } from 'node:fs';
import path from 'node:path';
import type { log } from '../common/log';
import type { entity, row } from './entities';
import type { source } from './source';
import { type batch, type delivery, send_batch } from './target';

/** Linhas por lote. */
const batch_rows = 1000;

/** De que uma sincronização precisa. `folder`: onde ficam os lotes que não foram aceitos. */
export type sync_parts = { source: source; delivery: delivery; folder: string; log: log };

/** A linha de um lote. `total`: linhas lidas até aqui, com as dele. */
export type progress = {
  batch: number;
  rows: number;
  total: number;
  ms: number;
  attempts: number;
  error?: string;
  file?: string;
};

/** A última linha. Sem ela, a resposta não está inteira. */
export type summary = {
  done: true;
  entity: string;
  batches: number;
  rows: number;
  sent: number;
  failed: number;
  ms: number;
};

/**
 * Guarda um lote que o destino não aceitou.
 * @param folder a pasta, feita se falta
 * @param batch o lote
 * @param error o motivo
 * @returns o arquivo
 */
function keep_batch(folder: string, batch: batch, error: string): string {
  make_dir(folder, { recursive: true });
  const file = path.join(folder, `${batch.id.replaceAll(':', '_')}.json`);
  write_file(file, JSON.stringify({ error, ...batch }));
  return file;
}

/**
 * Sincroniza uma entidade.
 * @param parts a origem, o destino, a pasta e o log
 * @param entity a entidade
 * @param signal interrompe entre um lote e outro, e nas pausas
 * @yields o progresso de cada lote, e no fim o resumo
 * @throws o erro da origem, ou a interrupção; o que já foi enviado fica enviado
 */
export async function* synchronize(
  { source, delivery, folder, log }: sync_parts,
  entity: entity,
  signal: AbortSignal,
): AsyncGenerator<progress | summary> {
  const started_at = performance.now();
  const run = new Date().toISOString().replace(/\D/g, '').slice(0, 17);
  const sum = { batches: 0, rows: 0, sent: 0, failed: 0 };
  let key: row[string] | undefined;
  for (;;) {
    const batch_at = performance.now();
    const rows = await source.after(entity, key, batch_rows);
    if (rows.length === 0) break;
    key = rows.at(-1)?.[entity.key];
    sum.batches += 1;
    const number = sum.batches;
    const id = `${entity.name}:${run}:${number}`;
    const batch = { id, entity: entity.name, number, records: rows.map(entity.translate) };
    const { attempts, error } = await send_batch(delivery, batch, signal);
    sum.rows += rows.length;
    sum[error ? 'failed' : 'sent'] += rows.length;
    const kept = error && { error, file: keep_batch(folder, batch, error) };
    const ms = Math.round(performance.now() - batch_at);
    const line = { batch: number, rows: rows.length, total: sum.rows, ms, attempts, ...kept };
    log[error ? 'warn' : 'info'](`lote de ${entity.name}`, line);
    yield line;
    signal.throwIfAborted();
  }
  const ms = Math.round(performance.now() - started_at);
  yield { done: true, entity: entity.name, ...sum, ms };
}
