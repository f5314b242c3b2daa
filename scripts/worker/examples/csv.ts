/*
 * Um arquivo que se baixa enquanto é feito: o navegador mostra o progresso, e uma falha no meio é
 * um download que falhou, e não um arquivo cortado.
 *
 *   npx tsx scripts/worker/examples/csv.ts
 *   curl -OJ 'http://127.0.0.1:8771/orders.csv?rows=1000'
 */

import { serve_fetch, stream_response } from '../adapters';

/** Dá uma linha de CSV: `fields`, com aspas onde fazem falta. */
function csv_row(fields: unknown[]): string {
  const quote = (text: string) => (/[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
  return `${fields.map((field) => quote(String(field))).join(',')}\r\n`;
}

/** Devolve os pedidos de mentira, `count` deles: ponha a sua consulta no lugar. */
export async function* read_orders(count: number): AsyncGenerator<unknown[]> {
  for (let n = 1; n <= count; n += 1) yield [n, `Customer "${n}", Inc.`, (n * 1.25).toFixed(2)];
}

/** Devolve o arquivo, com um cabeçalho antes de `rows`. */
export async function* csv_parts(rows: AsyncIterable<unknown[]>): AsyncGenerator<string> {
  yield csv_row(['id', 'customer', 'total']);
  for await (const row of rows) yield csv_row(row);
}

/** Dá a resposta que o navegador guarda num arquivo. */
export function csv_response(rows: AsyncIterable<unknown[]>): Response {
  const response = stream_response(csv_parts(rows), 'text/csv; charset=utf-8');
  response.headers.set('Content-Disposition', 'attachment; filename="orders.csv"');
  return response;
}

if (require.main === module) {
  void serve_fetch((request) => {
    const rows = Number(new URL(request.url).searchParams.get('rows') ?? 1000);
    return csv_response(read_orders(rows));
  });
}
