/*
 * O mínimo do protocolo do Redis para os papéis que não podem pesar: comandos escritos direto no
 * socket, e respostas de uma linha só contadas, não entendidas.
 */

import net from 'node:net';

const line_feed = 0x0a;
const minus_sign = 0x2d;

/**
 * Escreve um comando como o Redis o lê.
 * @param words o comando e os argumentos, em ASCII
 * @returns o texto a enviar
 */
export function encode(...words: string[]): string {
  return `*${words.length}\r\n${words.map((word) => `$${word.length}\r\n${word}\r\n`).join('')}`;
}

/**
 * Abre uma conexão TCP local.
 * @param port a porta em 127.0.0.1
 * @returns o socket, conectado e sem o atraso de Nagle
 */
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

/** Uma conexão em que só vão comandos cuja resposta cabe numa linha. */
export type line_link = {
  socket: net.Socket;
  send: (text: string, replies: number) => void;
  settled: () => Promise<void>;
};

/**
 * Abre uma conexão com o Redis para comandos de resposta simples (RPUSH, DEL, PUBLISH, RENAME…).
 * Um erro do Redis derruba o processo: nenhuma prova vale com um comando recusado.
 * @param port a porta do Redis
 * @param database o banco
 * @returns a conexão; `send` diz quantas respostas virão, `settled` espera por todas
 */
export async function connect_lines(port: number, database: number): Promise<line_link> {
  const socket = await connect_local(port);
  let missing = 0;
  let previous = line_feed;
  let when_settled = () => {};
  socket.on('data', (chunk: Buffer) => {
    for (const byte of chunk) {
      if (previous === line_feed && byte === minus_sign) throw new Error(String(chunk));
      if (byte === line_feed) missing -= 1;
      previous = byte;
    }
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
  return { socket, send, settled };
}
