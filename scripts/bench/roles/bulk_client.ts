/*
 * O cliente da prova de volume: recebe respostas enormes por node:http e só conta. Toda linha tem o
 * mesmo tamanho, então os bytes dizem quantas vieram; e no começo de cada pedaço se confere se a
 * linha que está ali é a que devia estar.
 */

import http from 'node:http';
import { line_bytes, read_order } from './lines';
import { clock, clock_per_ms, serve_role } from './role';

/** Uma linha e a sua quebra. */
const stride = line_bytes + 1;

/**
 * Confere que a linha que começa num pedaço, com `offset` bytes antes dele, é a que devia estar
 * ali.
 */
function check_place(chunk: Buffer, offset: number): void {
  const line = Math.ceil(offset / stride);
  const at = line * stride - offset;
  if (at + line_bytes > chunk.length) return;
  const order = read_order(chunk, at);
  if (order !== line) throw new Error(`no lugar da linha ${line} veio a ${order}`);
}

/**
 * Recebe um fluxo inteiro da porta `port`; lança se o status não é 200 ou se não vieram `lines`
 * linhas.
 */
function receive(port: number, lines: number, agent: http.Agent): Promise<void> {
  return new Promise((resolve, reject) => {
    const where = { port, host: '127.0.0.1', method: 'POST', path: '/bulk', agent };
    const request = http.request(where, (response) => {
      let bytes = 0;
      response.on('data', (chunk: Buffer) => {
        check_place(chunk, bytes);
        bytes += chunk.length;
      });
      response.once('error', reject);
      response.once('end', () => {
        const ok = response.statusCode === 200 && bytes === lines * stride;
        if (ok) resolve();
        else reject(new Error(`${response.statusCode}: ${bytes} bytes, não ${lines * stride}`));
      });
    });
    request.once('error', reject);
    request.end();
  });
}

/**
 * Mede todos os fluxos de uma vez, do primeiro pedido ao fim da última resposta; devolve segundos.
 */
async function run(args: { port: number; streams: number; lines_each: number }): Promise<number> {
  const agent = new http.Agent({ keepAlive: false, maxSockets: args.streams });
  const started_at = clock();
  await Promise.all(
    Array.from({ length: args.streams }, () => receive(args.port, args.lines_each, agent)),
  );
  return (clock() - started_at) / clock_per_ms / 1000;
}

serve_role({ run });
