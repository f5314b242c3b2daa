/*
 * O cliente de muitos fluxos HTTP abertos ao mesmo tempo (demora e ociosidade): sockets crus, e das
 * respostas só interessam o status, os carimbos e o fim.
 */

import type { Socket as net_socket } from 'node:net';
import { make_meter, type meter } from './lines';
import { connect_local } from './resp';
import { in_groups, serve_role } from './role';

/** Conexões abertas de cada vez: menos que a fila de espera de um servidor. */
const opening_at_once = 100;

/** O pedaço vazio que encerra uma resposta em pedaços; nenhuma linha das provas acaba assim. */
const last_chunk = Buffer.from('\r\n0\r\n\r\n');

/** Uma resposta em andamento. `head` é o que já veio antes do fim dos cabeçalhos. */
type open_stream = { socket: net_socket; head: string | undefined; tail: Buffer; ended: boolean };

const state = {
  streams: [] as open_stream[],
  meter: undefined as meter | undefined,
  failure: undefined as Error | undefined,
};

/**
 * Separa o que já é corpo do que chegou antes; undefined se os cabeçalhos ainda não acabaram. Lança
 * se o status não é 200.
 */
function take_head(stream: open_stream, chunk: Buffer): Buffer | undefined {
  const text = (stream.head ?? '') + chunk.toString('latin1');
  const end = text.indexOf('\r\n\r\n');
  stream.head = text;
  if (end < 0) return undefined;
  if (!text.startsWith('HTTP/1.1 200 ')) throw new Error(`resposta inesperada: ${text}`);
  stream.head = undefined;
  return Buffer.from(text.slice(end + 2), 'latin1'); // a quebra fica, para achar um fim imediato
}

/**
 * Recebe um pedaço da resposta do fluxo `index`; lança se o status ou as linhas não são os
 * esperados.
 */
function take_chunk(stream: open_stream, index: number, chunk: Buffer, counter: meter): void {
  const body = stream.head === undefined ? chunk : take_head(stream, chunk);
  if (!body) return;
  counter.feed(index, body);
  const tail = body.length >= last_chunk.length ? body : Buffer.concat([stream.tail, body]);
  stream.tail = tail.subarray(-last_chunk.length);
  if (stream.tail.equals(last_chunk)) stream.ended = true;
}

/** Abre o fluxo `index`; devolve, quando conectou, o que espera os cabeçalhos da resposta. */
async function open_stream_at(
  index: number,
  args: { port: number; request: string },
  counter: meter,
): Promise<{ opened: Promise<void> }> {
  const socket = await connect_local(args.port);
  const stream: open_stream = { socket, head: '', tail: Buffer.alloc(0), ended: false };
  state.streams[index] = stream;
  const opened = new Promise<void>((resolve) => {
    socket.on('data', (chunk: Buffer) => {
      try {
        take_chunk(stream, index, chunk, counter);
      } catch (error) {
        state.failure ??= error as Error;
      }
      if (stream.head === undefined || state.failure) resolve();
    });
    socket.once('close', () => {
      if (!stream.ended) state.failure ??= new Error(`o servidor fechou o fluxo ${index}`);
      resolve();
    });
  });
  socket.on('error', () => {}); // o close conta
  socket.write(args.request.replaceAll('{stream}', String(index)));
  return { opened };
}

/** Fecha todos os fluxos. */
function close_streams(): void {
  for (const { socket } of state.streams.splice(0)) socket.removeAllListeners('close').destroy();
}

/**
 * Abre os fluxos.
 * @param args porta; pedido HTTP inteiro, com "{stream}" no lugar do número do fluxo; o que
 *   make_meter quer; se os cabeçalhos das respostas devem ser esperados
 */
async function open(args: {
  port: number;
  request: string;
  streams: number;
  lines_each: number;
  skip: number;
  wait_head?: boolean;
  any_order?: boolean;
}): Promise<void> {
  const counter = make_meter(args.streams, args.lines_each, args.skip, args.any_order);
  const heads: Promise<void>[] = [];
  state.meter = counter;
  state.failure = undefined;
  close_streams();
  await in_groups(args.streams, opening_at_once, async (index) => {
    const { opened } = await open_stream_at(index, args, counter);
    heads.push(opened);
  });
  if (args.wait_head) await Promise.all(heads);
}

/**
 * Espera as linhas, e o fim das respostas se elas têm fim.
 * @param wanted quantas linhas e quantos fins, e o prazo em ms
 * @throws Error se não chegam a tempo, ou o primeiro erro de um fluxo
 */
async function wait_lines(
  counter: meter,
  wanted: { lines: number; endings: number; limit_ms: number },
): Promise<void> {
  const { lines, endings, limit_ms } = wanted;
  const ended = () => state.streams.reduce((sum, stream) => sum + Number(stream.ended), 0);
  const deadline = performance.now() + limit_ms;
  while (!state.failure && (counter.received() < lines || ended() < endings)) {
    if (performance.now() > deadline) {
      const seen = `${counter.received()} de ${lines} linhas e ${ended()} de ${endings} fins`;
      throw new Error(`só vieram ${seen}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  if (state.failure) throw state.failure;
  if (counter.received() > lines) throw new Error(`sobram linhas: ${counter.received()}`);
}

/**
 * Espera o que falta, confere e fecha tudo.
 * @param args quantas linhas no total, quantas em cada fluxo (omitido: não se confere por fluxo),
 *   quantas respostas devem chegar ao fim, e o prazo em ms
 * @returns as demoras, em ms, o instante em que chegou a última coisa, de `clock`, e quantas linhas
 *   vieram fora de ordem
 */
async function finish(args: {
  lines: number;
  lines_each?: number;
  endings: number;
  limit_ms: number;
}) {
  const { meter: counter } = state;
  if (!counter) throw new Error('nada foi aberto');
  try {
    await wait_lines(counter, args);
    if (args.lines_each !== undefined) counter.check(args.lines_each);
  } finally {
    close_streams();
  }
  return { ...counter.summary(), last_at: counter.last_at(), swapped: counter.swapped() };
}

serve_role({ open, finish });
