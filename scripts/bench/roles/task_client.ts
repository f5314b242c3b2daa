/*
 * O cliente da prova de tarefas: algumas conexões que fazem um pedido depois do outro, em laço
 * fechado, e conferem que cada resposta traz exatamente uma linha.
 */

import type { Socket as net_socket } from 'node:net';
import { summarize } from './lines';
import { connect_local } from './resp';
import { clock, clock_per_ms, serve_role } from './role';

const last_chunk = '\r\n0\r\n\r\n';
const line_mark = '{"s":"@';

/** Demoras que cabem numa medição. */
const max_samples = 2_000_000;

/** Uma medição em andamento. Instantes de `clock`. */
type measurement = {
  request: Buffer;
  from: number;
  until: number;
  samples: Float64Array;
  kept: number;
  total: number;
};

/**
 * Confere uma resposta inteira.
 * @throws Error se não é 200 ou não tem exatamente uma linha
 */
function check_response(text: string): void {
  const first = text.indexOf(line_mark);
  const is_single = first > 0 && text.indexOf(line_mark, first + 1) < 0;
  if (!is_single || !text.startsWith('HTTP/1.1 200 ')) {
    throw new Error(`resposta inesperada:\n${text}`);
  }
}

/**
 * Faz pedidos numa conexão até o fim da medição.
 * @returns resolve depois da última resposta
 */
function loop_requests(socket: net_socket, work: measurement): Promise<void> {
  return new Promise((resolve, reject) => {
    let text = '';
    let sent_at = clock();
    socket.once('close', () => reject(new Error(`conexão fechada no meio:\n${text}`)));
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString('latin1');
      if (!text.endsWith(last_chunk)) return;
      check_response(text);
      text = '';
      const received_at = clock();
      work.total += 1;
      if (received_at >= work.from && received_at < work.until) {
        work.samples[work.kept++] = (received_at - sent_at) / clock_per_ms;
      }
      sent_at = received_at;
      if (received_at < work.until) socket.write(work.request);
      else resolve();
    });
    socket.write(work.request);
  });
}

/**
 * Mede.
 * @param args porta, pedido HTTP inteiro, conexões, e segundos de aquecimento e de medição
 * @returns respostas por segundo, demoras em ms, e o total de respostas com o aquecimento
 */
async function run(args: {
  port: number;
  request: string;
  connections: number;
  warm_s: number;
  seconds: number;
}) {
  const from = clock() + args.warm_s * 1000 * clock_per_ms;
  const work: measurement = {
    request: Buffer.from(args.request),
    from,
    until: from + args.seconds * 1000 * clock_per_ms,
    samples: new Float64Array(max_samples),
    kept: 0,
    total: 0,
  };
  const sockets = await Promise.all(
    Array.from({ length: args.connections }, () => connect_local(args.port)),
  );
  await Promise.all(sockets.map((socket) => loop_requests(socket, work)));
  for (const socket of sockets) socket.removeAllListeners('close').destroy();
  const figures = summarize(work.samples.subarray(0, work.kept));
  return { ...figures, rate: work.kept / args.seconds, total: work.total };
}

serve_role({ run });
