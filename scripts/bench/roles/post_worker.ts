/*
 * O worker dos concorrentes que recebem por HTTP: um POST por linha, em conexões mantidas abertas e
 * sem esperar a resposta do anterior.
 */

import { make_line, run_pace } from './lines';
import { connect_local } from './resp';
import { clock, serve_role } from './role';

/** O começo de uma resposta de sucesso: 201 Created ou 202 Accepted. */
const success = 'HTTP/1.1 20';

/** Respostas que se deixa em falta por conexão: o bastante para que ela nunca espere. */
const max_missing = 2000;

/** Linhas que se escreve por vez quando há pressa. */
const burst_lines = 50;

/** Uma conexão e quantas respostas faltam nela. */
type post_lane = { post: (stream: number, lines: string[]) => void; missing: () => number };

const state = { lanes: [] as post_lane[], path: '' };

/**
 * Abre uma conexão de POSTs com a porta `port`, e a devolve. Uma resposta que não é de sucesso
 * derruba o processo.
 */
async function open_lane(port: number): Promise<post_lane> {
  const socket = await connect_local(port);
  let missing = 0;
  let text = '';
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString('latin1');
    const parts = text.split(success);
    missing -= parts.length - 1;
    text = (parts.at(-1) ?? '').slice(-success.length);
    const failed = /HTTP\/1\.1 [3-5].*/.exec(parts.join('\n'));
    if (failed) throw new Error(failed[0]);
  });
  socket.once('close', () => {
    throw new Error('o servidor fechou a conexão dos POSTs');
  });
  const post = (stream: number, lines: string[]) => {
    missing += lines.length;
    const start = `POST ${state.path}${stream} HTTP/1.1\r\nHost: localhost\r\nContent-Length: `;
    const requests = lines.map((line) => `${start}${line.length}\r\n\r\n${line}`);
    socket.write(requests.join(''), 'latin1');
  };
  return { post, missing: () => missing };
}

/** Abre as conexões; ao caminho se junta o número do fluxo. */
async function connect(args: { port: number; lanes: number; path: string }): Promise<void> {
  state.path = args.path;
  state.lanes = await Promise.all(Array.from({ length: args.lanes }, () => open_lane(args.port)));
}

/** Dá a conexão de `stream`: sempre a mesma, para que as linhas dele não troquem de ordem. */
function lane_of(stream: number): post_lane {
  const lane = state.lanes[stream % state.lanes.length];
  if (!lane) throw new Error('sem conexão: falta a chamada "connect"');
  return lane;
}

/** Espera que faltem no máximo `most` respostas numa conexão. */
async function drain(lane: post_lane, most: number): Promise<void> {
  while (lane.missing() > most) await new Promise((resolve) => setImmediate(resolve));
}

/** Envia linhas no ritmo pedido. */
async function pace(args: { streams: number; pace_ms: number; rounds: number }): Promise<void> {
  await run_pace(args.streams, args.pace_ms, args.rounds, (stream, round) => {
    lane_of(stream).post(stream, [make_line(clock(), round)]);
  });
  for (const lane of state.lanes) await drain(lane, 0);
}

/** Envia linhas o mais depressa que o servidor aceita; devolve o instante do começo, de `clock`. */
async function burst(args: { streams: number; lines_each: number }): Promise<number> {
  const started_at = clock();
  await Promise.all(
    Array.from({ length: args.streams }, async (_, stream) => {
      const lane = lane_of(stream);
      for (let first = 0; first < args.lines_each; first += burst_lines) {
        const size = Math.min(burst_lines, args.lines_each - first);
        const lines = Array.from({ length: size }, (_, offset) => make_line(0, first + offset));
        lane.post(stream, lines);
        if (lane.missing() >= max_missing) await drain(lane, max_missing / 2);
      }
    }),
  );
  for (const lane of state.lanes) await drain(lane, 0);
  return started_at;
}

/** Envia uma linha a alguns dos fluxos. */
async function poke(args: { streams: number; count: number }): Promise<void> {
  const step = Math.max(1, Math.floor(args.streams / args.count));
  for (let index = 0; index < args.count; index += 1) {
    lane_of(index).post(index * step, [make_line(clock(), 0)]);
  }
  for (const lane of state.lanes) await drain(lane, 0);
}

serve_role({ connect, pace, burst, poke });
