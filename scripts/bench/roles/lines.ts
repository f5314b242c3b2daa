/*
 * As linhas que as provas usam: sempre do mesmo tamanho, com um carimbo que diz quando a linha foi
 * enviada e a ordem dela no fluxo. O carimbo se acha por uma arroba, sem entender JSON, e resiste
 * às aspas escapadas de quem embrulha a linha.
 */

import { clock, clock_per_ms } from './role';

/** Bytes de uma linha, sem a quebra. */
export const line_bytes = 100;

const at_sign = 0x40;
const clock_digits = 16;
const order_digits = 8;

/** "@", instante, ":", ordem e "@". */
const stamp_bytes = clock_digits + order_digits + 3;

/** Onde a ordem começa dentro de uma linha. */
const order_offset = '{"s":"@'.length + clock_digits + 1;

/**
 * Monta uma linha de line_bytes bytes, sem a quebra.
 * @param sent_at instante do envio, de `clock`; 0 se não interessa
 * @param order a ordem da linha no fluxo, desde 0
 */
export function make_line(sent_at: number, order: number): string {
  const moment = String(sent_at).padStart(clock_digits, '0');
  const head = `{"s":"@${moment}:${String(order).padStart(order_digits, '0')}@","p":"`;
  return `${head.padEnd(line_bytes - 2, 'x')}"}`;
}

/** Lê `count` dígitos a partir de `from`, sem criar textos. */
function read_digits(data: Buffer, from: number, count: number): number {
  let value = 0;
  for (let at = from; at < from + count; at += 1) value = value * 10 + (data[at] ?? 0) - 48;
  return value;
}

/** Lê a ordem da linha inteira que começa em `from`. */
export function read_order(data: Buffer, from: number): number {
  return read_digits(data, from + order_offset, order_digits);
}

/** Dá percentis e quantidade das demoras, que são ordenadas no lugar. */
export function summarize(samples: Float64Array) {
  samples.sort();
  const at = (share: number) => samples[Math.ceil(share * samples.length) - 1] ?? Number.NaN;
  return { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1), samples: samples.length };
}

/** Um medidor de demoras de muitos fluxos. */
export type meter = {
  feed: (stream: number, chunk: Buffer) => void;
  received: () => number;
  last_at: () => number;
  swapped: () => number;
  check: (lines_each: number) => void;
  summary: () => ReturnType<typeof summarize>;
};

/**
 * Cria um medidor: acha os carimbos no que chega, confere a ordem e guarda a demora.
 * @param streams quantos fluxos
 * @param lines_each quantas linhas cada um receberá
 * @param skip quantas linhas do começo de cada fluxo não contam na demora
 * @param any_order se linhas fora de ordem são só contadas, em vez de um erro
 * @returns o medidor; `feed` lança se uma linha troca de lugar, e `check` se falta ou sobra
 */
export function make_meter(
  streams: number,
  lines_each: number,
  skip: number,
  any_order = false,
): meter {
  const samples = new Float64Array(streams * Math.max(0, lines_each - skip));
  const counts = new Uint32Array(streams);
  const sums = new Float64Array(streams);
  let swapped = 0;
  const carried = new Map<number, Buffer>();
  let kept = 0;
  let received = 0;
  let received_at = 0;
  const feed = (stream: number, chunk: Buffer) => {
    received_at = clock();
    const before = carried.get(stream);
    const data = before ? Buffer.concat([before, chunk]) : chunk;
    if (before) carried.delete(stream);
    for (let at = data.indexOf(at_sign); at >= 0; at = data.indexOf(at_sign, at + stamp_bytes)) {
      if (at + stamp_bytes > data.length) {
        carried.set(stream, data.subarray(at));
        return;
      }
      const order = read_digits(data, at + clock_digits + 2, order_digits);
      const expected = counts[stream] ?? 0;
      if (order !== expected && !any_order) {
        throw new Error(`fluxo ${stream}: veio ${order}, não ${expected}`);
      }
      swapped += Number(order !== expected);
      counts[stream] = expected + 1;
      sums[stream] = (sums[stream] ?? 0) + order;
      received += 1;
      if (order < skip) continue;
      samples[kept++] = (received_at - read_digits(data, at + 1, clock_digits)) / clock_per_ms;
    }
  };
  const check = (wanted: number) => {
    const right_sum = (wanted * (wanted - 1)) / 2; // uma a mais e outra a menos não se compensam
    const wrong = counts.findIndex((count, at) => count !== wanted || sums[at] !== right_sum);
    if (wrong < 0) return;
    throw new Error(`fluxo ${wrong}: ${counts[wrong]} linhas, não ${wanted}, ou repetidas`);
  };
  const summary = () => summarize(samples.subarray(0, kept));
  return {
    feed,
    received: () => received,
    last_at: () => received_at,
    swapped: () => swapped,
    check,
    summary,
  };
}

/**
 * Chama `send`, no ritmo pedido, com os fluxos igualmente espaçados dentro de cada volta.
 * @param streams quantos fluxos
 * @param pace_ms duração de uma volta, em que cada fluxo tem a sua vez
 * @param rounds quantas voltas
 */
export function run_pace(
  streams: number,
  pace_ms: number,
  rounds: number,
  send: (stream: number, round: number) => void,
): Promise<void> {
  const total = streams * rounds;
  const gap_ms = pace_ms / streams;
  const started_at = performance.now();
  let next = 0;
  return new Promise((resolve) => {
    const tick = () => {
      const due = Math.floor((performance.now() - started_at) / gap_ms) + 1;
      for (; next < Math.min(due, total); next += 1) {
        send(next % streams, Math.floor(next / streams));
      }
      if (next < total) return;
      clearInterval(timer);
      resolve();
    };
    const timer = setInterval(tick, 1);
  });
}
