/*
 * O intermediário TCP entre o proxy e o Redis. É ele que corta e cala conexões, e é por isso que a
 * conta fecha: ele sabe, byte a byte, o que o Redis respondeu e o proxy não recebeu. Depois de um
 * corte a conexão com o Redis fica aberta até que ele responda a tudo o que já lhe foi entregue;
 * as linhas dessas respostas, que o Redis já tirou das listas, são as perdidas.
 */

import net from 'node:net';
import { on_stop } from '../dev/local';
import { make_scanner } from './resp';

/** Uma retirada sem resposta: de que tarefa, e de quantas linhas no máximo. */
type pop = { uuid: string; count: number };

/** Uma conexão do proxy (near) e a dela com o Redis (far); `asked`, os comandos sem resposta. */
type link = {
  near: net.Socket;
  far: net.Socket;
  asked: (pop | undefined)[];
  is_severed: boolean;
  cut_share: number | undefined;
  sever: (closes: boolean) => void;
};

/** O intermediário no ar. */
export type relay = {
  server: string;
  cut: (share: number) => Promise<void>;
  mute: () => void;
  counts: () => { open: number; owed: number; opened: number };
  lost: Map<number, Set<number>>;
  doubts: Map<string, number>;
};

/** Um corte espera uma resposta com linhas para cair no meio dela, mas não mais que isto. */
const cut_patience_ms = 150;

const token_pattern = /^\{"s":"@(\d+):(\d+)@/;
const token_start = '{"s":"@';
const uuid_length = 36;

/**
 * Entende um comando.
 * @param texts o comando e os argumentos
 * @returns a retirada, se é um LPOP
 */
function pop_of([name = '', key = '', count = '1']: string[]): pop | undefined {
  if (name.toUpperCase() !== 'LPOP') return undefined;
  return { uuid: key.slice(-uuid_length), count: Number(count) };
}

/**
 * Passa adiante o que chega de um lado, sem ler mais do que o outro aceita.
 * @param from de onde veio
 * @param to para onde vai
 * @param chunk os bytes
 */
function pass(from: net.Socket, to: net.Socket, chunk: Buffer): void {
  if (to.write(chunk)) return;
  from.pause();
  to.once('drain', () => from.resume());
}

/**
 * Anota as linhas de uma resposta que o proxy não recebeu.
 * @param lost linhas perdidas, por fluxo
 * @param texts o começo de cada elemento
 */
function note_lost(lost: relay['lost'], texts: string[]): void {
  for (const text of texts) {
    const [, stream, index] = token_pattern.exec(text) ?? [];
    if (index === undefined) continue;
    const indexes = lost.get(Number(stream)) ?? new Set();
    lost.set(Number(stream), indexes.add(Number(index)));
  }
}

/**
 * Liga uma conexão do proxy ao Redis.
 * @param near a conexão do proxy
 * @param port porta do Redis
 * @param book onde anotar perdas e dúvidas
 * @returns a ligação
 */
function join(near: net.Socket, port: number, book: Pick<relay, 'lost' | 'doubts'>): link {
  const far = net.connect(port, '127.0.0.1');
  let passed = 0; // quanto do pedaço de agora segue para o proxy
  const link: link = {
    near,
    far,
    asked: [],
    is_severed: false,
    cut_share: undefined,
    sever: (closes) => {
      link.is_severed = true;
      if (closes) near.end();
      near.resume();
      far.resume();
      if (link.asked.length === 0) far.destroy();
    },
  };
  const scan_commands = make_scanner(({ texts }) => link.asked.push(pop_of(texts)));
  const scan_replies = make_scanner(({ type, texts }, end) => {
    if (type === '>') return; // um aviso, que ninguém pediu
    const pop = link.asked.shift();
    if (pop && end > passed) note_lost(book.lost, texts);
  });
  near.on('data', (chunk: Buffer) => {
    if (link.is_severed) return;
    scan_commands(chunk);
    pass(near, far, chunk);
  });
  far.on('data', (chunk: Buffer) => {
    const cuts = link.cut_share !== undefined && !link.is_severed && chunk.includes(token_start);
    passed = link.is_severed ? 0 : Math.floor(chunk.length * (cuts ? (link.cut_share ?? 1) : 1));
    scan_replies(chunk);
    if (!link.is_severed) pass(far, near, chunk.subarray(0, passed));
    if (cuts || link.is_severed) link.sever(cuts);
  });
  near.once('close', () => link.sever(false));
  far.once('close', () => {
    for (const { uuid, count } of link.asked.filter((pop) => pop !== undefined)) {
      book.doubts.set(uuid, (book.doubts.get(uuid) ?? 0) + count);
    }
    link.asked = [];
    if (!link.is_severed) link.sever(true);
  });
  for (const socket of [near, far]) socket.on('error', () => {});
  return link;
}

/**
 * Sobe o intermediário.
 * @param port porta do Redis
 * @returns o intermediário. `server`: o endereço dele, na forma de REDIS_SERVER; `cut`: corta as
 *   conexões de agora, deixando passar uma fração de 0 a 1 da resposta em curso; `mute`: as de
 *   agora se calam sem fechar, as novas não; `counts`: conexões inteiras, cortadas que ainda
 *   esperam pelo Redis, e quantas já houve; `lost`: linhas em respostas que o proxy não recebeu,
 *   por fluxo; `doubts`: quantas o Redis pode ter tirado antes de morrer sem responder, por tarefa
 */
export async function start_relay(port: number): Promise<relay> {
  const links = new Set<link>();
  const book = { lost: new Map<number, Set<number>>(), doubts: new Map<string, number>() };
  let opened = 0;
  const server = net.createServer((near) => {
    const link = join(near, port, book);
    opened += 1;
    links.add(link);
    link.far.once('close', () => links.delete(link));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  on_stop(async () => {
    server.close();
    for (const { near, far } of links) for (const socket of [near, far]) socket.destroy();
  });
  const whole = () => [...links].filter(({ is_severed }) => !is_severed);
  const cut = async (share: number) => {
    const targets = whole();
    for (const link of targets) link.cut_share = share;
    await new Promise((resolve) => setTimeout(resolve, cut_patience_ms));
    for (const link of targets) if (!link.is_severed) link.sever(true);
  };
  return {
    server: `127.0.0.1:${(server.address() as net.AddressInfo).port}/1`,
    cut,
    mute: () => {
      for (const link of whole()) link.sever(false);
    },
    counts: () => {
      const open = whole().length;
      return { open, owed: links.size - open, opened };
    },
    ...book,
  };
}
