/*
 * O mínimo do protocolo do Redis para os papéis que não podem pesar: comandos escritos direto no
 * socket, e respostas que só se contam.
 */

import net from 'node:net';
import { make_reader } from '../../dev/resp';

/** Monta o texto de um comando, com `words` em ASCII, como o Redis o lê. */
export function encode(...words: string[]): string {
  return `*${words.length}\r\n${words.map((word) => `$${word.length}\r\n${word}\r\n`).join('')}`;
}

/** Abre uma conexão com a porta `port` desta máquina, sem o atraso de Nagle, e a devolve. */
export function connect_local(port: number): Promise<net.Socket> {
  return new Promise((resolve, reject) => {
    const socket = net.connect({ port, host: '127.0.0.1', noDelay: true });
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject);
      resolve(socket);
    });
  });
}

/** Uma conexão de que só se espera que todo comando seja atendido. */
export type line_link = {
  /** Manda comandos, e diz quantas respostas virão. */
  send: (text: string, replies: number) => void;
  /** Espera por todas elas. */
  settled: () => Promise<void>;
};

/**
 * Abre uma conexão com o Redis da porta `port`, no banco `database`, e a devolve. Um erro do Redis
 * derruba o processo: nenhuma prova vale com um comando recusado.
 */
export async function connect_lines(port: number, database: number): Promise<line_link> {
  const socket = await connect_local(port);
  let missing = 0;
  let when_settled = () => {};
  const read = make_reader((reply) => {
    if (reply instanceof Error) throw reply;
    missing -= 1;
  });
  socket.on('data', (chunk: Buffer) => {
    read(chunk);
    if (missing === 0) when_settled();
  });
  const send = (text: string, replies: number) => {
    missing += replies;
    socket.write(text, 'latin1');
  };
  const settled = () =>
    new Promise<void>((resolve) => {
      when_settled = resolve;
      if (missing === 0) resolve();
    });
  send(encode('SELECT', String(database)), 1);
  await settled();
  return { send, settled };
}
