/*
 * O piso sem HTTP da prova de demora: uma conexão com o Redis por fluxo, cada uma em BLPOP sem fim.
 */

import type { Socket as net_socket } from 'node:net';
import { make_meter, type meter } from './lines';
import { connect_local, encode } from './resp';
import { in_groups, serve_role } from './role';

/** Conexões abertas de cada vez. */
const opening_at_once = 100;

const state = { sockets: [] as net_socket[], meter: undefined as meter | undefined };

/** Abre os fluxos: o fluxo n espera linhas na lista `prefix` + n. */
async function open(args: {
  port: number;
  database: number;
  prefix: string;
  streams: number;
  lines_each: number;
  skip: number;
}): Promise<void> {
  const counter = make_meter(args.streams, args.lines_each, args.skip);
  state.meter = counter;
  await in_groups(args.streams, opening_at_once, async (stream) => {
    const socket = await connect_local(args.port);
    state.sockets.push(socket);
    const selected = new Promise((resolve) => socket.once('data', resolve));
    socket.write(encode('SELECT', String(args.database)));
    await selected;
    const request = Buffer.from(encode('BLPOP', `${args.prefix}${stream}`, '0'));
    let lines = 0;
    socket.on('data', (chunk: Buffer) => {
      const before = counter.received();
      counter.feed(stream, chunk);
      lines += counter.received() - before;
      if (chunk[chunk.length - 1] === 0x0a && lines < args.lines_each) socket.write(request);
    });
    socket.write(request);
  });
}

/** Espera as linhas que faltam, confere, fecha os fluxos e devolve as demoras, em ms. */
async function finish(args: { lines_each: number; limit_ms: number }) {
  const { meter: counter, sockets } = state;
  if (!counter) throw new Error('nada foi aberto');
  const deadline = performance.now() + args.limit_ms;
  while (counter.received() < sockets.length * args.lines_each && performance.now() < deadline) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  counter.check(args.lines_each);
  for (const socket of sockets.splice(0)) socket.destroy();
  return counter.summary();
}

serve_role({ open, finish });
