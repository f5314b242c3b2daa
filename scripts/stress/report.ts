/*
 * O relatório: uma tabela só, sempre com as mesmas linhas, na mesma ordem.
 */

import type { ledger } from './ledger';
import type { stress_options } from './options';
import type { leaks } from './settle';

/** O que se conclui da prova, além do livro. `seconds`: quanto as falhas duraram de fato. */
export type findings = {
  seconds: number;
  in_cut_replies: number;
  in_doubt: number;
  leaks: leaks;
};

const name_width = 36;

/** Junta a `value` os separadores de milhar: "1.234.567". */
function show(value: number): string {
  return Math.round(value)
    .toString()
    .replace(/\B(?=(\d{3})+$)/g, '.');
}

/** Dá as linhas recuadas das contagens, da maior para a menor. */
function sorted_rows(counts: Map<string, number>): [string, string][] {
  const rows = [...counts].sort(([, a], [, b]) => b - a);
  return rows.map(([name, count]) => [`  ${name}`, show(count)]);
}

/** Monta a tabela. */
export function text_report(options: stress_options, book: ledger, findings: findings): string {
  const { totals, endings, faults } = book;
  const { leaks, in_cut_replies, in_doubt, seconds } = findings;
  const by_kind = new Map<string, number>();
  for (const { kind } of faults) by_kind.set(kind, (by_kind.get(kind) ?? 0) + 1);
  const stalls = by_kind.get('stall') ?? 0;
  by_kind.delete('stall');
  const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1).replace('.', ',');
  const rows: [string, string][] = [
    ['semente', String(options.seed)],
    ['segundos', show(seconds)],
    ['visitas', show(totals.visits)],
    ['fluxos', show(totals.streams)],
    ['voltas a um fluxo cortado', show(totals.comebacks)],
    ...sorted_rows(endings),
    ['linhas', show(totals.lines)],
    ['megabytes', megabytes(totals.bytes)],
    ['falhas provocadas', show(faults.length - stalls)],
    ...sorted_rows(by_kind),
    ['pausas da máquina', show(stalls)],
    ['linhas em respostas cortadas', show(in_cut_replies)],
    ['linhas em dúvida', show(in_doubt)],
    ['linhas apagadas com os dados', show(totals.wiped)],
    ['cortados por FLUSHALL, sem avisos', show(totals.cut_short)],
    ['linhas perdidas', show(totals.lost)],
    ['linhas repetidas', show(totals.doubled)],
    ['linhas fora de ordem', show(totals.reordered)],
    ['chaves que ficaram', show(leaks.keys)],
    ['sockets que ficaram', show(leaks.sockets)],
    ['temporizadores que ficaram', show(leaks.timers)],
    [
      'memória antes e depois, MB',
      [leaks.heap_before, leaks.heap_after].map(megabytes).join(' → '),
    ],
    ['violações', show(book.failure_count)],
  ];
  return rows.map(([name, value]) => `${name.padEnd(name_width)}${value}\n`).join('');
}
