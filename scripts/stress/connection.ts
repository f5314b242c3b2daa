/*
 * Uma conexão HTTP/1.1 crua: manda os bytes que quiser, vários pedidos de uma vez se for o caso, e
 * lê as respostas na ordem, pedaço a pedaço, tão devagar quanto se queira.
 */

import net from 'node:net';

/** O que se faz com uma resposta enquanto ela chega. */
export type response_events = {
  has_body: boolean;
  on_head: (status: number, headers: Map<string, string>) => void;
  on_body: (piece: Buffer) => void;
};

/** Como uma resposta acabou: inteira; cortada no meio; ou nem o primeiro byte dela veio. */
export type response_end = 'complete' | 'broken' | 'nothing';

/** Uma conexão aberta. */
export type connection = {
  send: (data: string | Buffer) => void;
  receive: (events: response_events) => Promise<response_end>;
  nap: (ms: number) => void;
  leave: () => void;
};

const head_end = '\r\n\r\n';

/**
 * Lê a cabeça de uma resposta.
 * @param text da linha de status ao último cabeçalho
 * @returns o status e os cabeçalhos, de nomes em minúsculas
 * @throws Error se não é HTTP
 */
function read_head(text: string) {
  const [first = '', ...lines] = text.split('\r\n');
  const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(first)?.[1]);
  if (!status) throw new Error(`resposta que não é HTTP: ${JSON.stringify(first.slice(0, 80))}`);
  const headers = lines.map((line) => {
    const at = line.indexOf(':');
    return [line.slice(0, at).toLowerCase(), line.slice(at + 1).trim()] as const;
  });
  return { status, headers: new Map(headers) };
}

/**
 * Cria o leitor do corpo de uma resposta.
 * @returns função que recebe bytes e devolve o que sobrou, se a resposta acabou neles
 */
function body_reader(headers: Map<string, string>, events: response_events) {
  const is_chunked = headers.get('transfer-encoding') === 'chunked';
  let left = is_chunked || !events.has_body ? 0 : Number(headers.get('content-length') ?? 0);
  let is_last = !is_chunked || !events.has_body;
  let line = '';
  return (bytes: Buffer): Buffer | undefined => {
    let rest = bytes;
    for (;;) {
      if (left > 0) {
        const piece = rest.subarray(0, left);
        if (piece.length > 0) events.on_body(piece);
        left -= piece.length;
        rest = rest.subarray(piece.length);
        if (left > 0) return undefined;
      }
      if (is_last && (!is_chunked || line === '\r\n' || !events.has_body)) return rest;
      const end = rest.indexOf('\n') + 1;
      line += rest.toString('latin1', 0, end || rest.length);
      if (end === 0) return undefined;
      rest = rest.subarray(end);
      if (is_last) continue;
      if (line !== '\r\n') {
        left = Number.parseInt(line, 16);
        is_last = left === 0;
        if (!/^[\da-f]+\r\n$/i.test(line)) throw new Error(`pedaço malformado: ${line}`);
      }
      line = '';
    }
  };
}

/** Cria o leitor de uma resposta, que devolve o mesmo que o do corpo, e lança se não é HTTP. */
function response_reader(events: response_events) {
  let head = Buffer.alloc(0);
  let read_body: ReturnType<typeof body_reader> | undefined;
  return (bytes: Buffer): Buffer | undefined => {
    if (read_body) return read_body(bytes);
    head = Buffer.concat([head, bytes]);
    const end = head.indexOf(head_end);
    if (end < 0) return undefined;
    const { status, headers } = read_head(head.toString('latin1', 0, end));
    events.on_head(status, headers);
    read_body = body_reader(headers, events);
    return read_body(head.subarray(end + head_end.length));
  };
}

/** Abre uma conexão com a porta `port` de 127.0.0.1, e a devolve; lança se ninguém atende. */
export async function open_connection(port: number): Promise<connection> {
  const socket = net.connect(port, '127.0.0.1');
  await new Promise<void>((resolve, reject) => {
    socket.once('connect', resolve);
    socket.once('error', reject);
  });
  let waiting: Buffer[] = [];
  let has_bytes = false;
  let is_closed = false;
  let feed = (bytes: Buffer) => void waiting.push(bytes);
  let give_up = () => {};
  socket.on('error', () => {});
  socket.on('data', (bytes: Buffer) => feed(bytes));
  socket.once('close', () => {
    is_closed = true;
    give_up();
  });
  const receive = (events: response_events) =>
    new Promise<response_end>((resolve, reject) => {
      const read = response_reader(events);
      has_bytes = false;
      give_up = () => resolve(has_bytes ? 'broken' : 'nothing');
      feed = (bytes) => {
        has_bytes = true;
        try {
          const rest = read(bytes);
          if (rest === undefined) return;
          feed = (more) => void waiting.push(more);
          if (rest.length > 0) waiting.push(rest);
          resolve('complete');
        } catch (error) {
          reject(error);
        }
      };
      const early = waiting;
      waiting = [];
      for (const bytes of early) feed(bytes);
      if (is_closed) give_up();
    });
  return {
    send: (data) => void socket.write(data),
    receive,
    nap: (ms) => {
      socket.pause();
      setTimeout(() => socket.resume(), ms);
    },
    leave: () => void socket.destroy(),
  };
}
