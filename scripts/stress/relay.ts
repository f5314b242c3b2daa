/*
 * O intermediário TCP entre o proxy e o Redis. É ele que corta e cala conexões, e é por isso que a
 * conta fecha: ele sabe, byte a byte, o que o Redis respondeu e o proxy não recebeu. Depois de um
 * corte a conexão com o Redis fica aberta até que ele responda a tudo o que já lhe foi entregue;
 * as linhas dessas respostas, que o Redis já tirou das listas, são as perdidas.
 */

import net from 'node:net';
import { delay, on_stop } from '../dev/local';
import { make_reader } from '../dev/resp';

/** Uma retirada sem resposta: de que tarefa, e de quantas linhas no máximo. */
type pop = { uuid: string; count: number };

/** Uma conexão do proxy com o Redis. */
type link = {
  /** A conexão do proxy, e a do Redis. */
  near: net.Socket;
  far: net.Socket;
  /** Os comandos sem resposta, na ordem; só das retiradas se guarda algo. */
  asked: (pop | undefined)[];
  /** Se já não passa nada; e quanto da próxima resposta com linhas ainda passa, de 0 a 1. */
  is_severed: boolean;
  cut_share: number | undefined;
  sever: (closes: boolean) => void;
};

/** O intermediário no ar. */
export type relay = {
  /** O endereço dele, na forma de REDIS_SERVER. */
  server: string;
  /** Corta as conexões de agora, deixando passar uma fração de 0 a 1 da resposta em curso. */
  cut: (share: number) => Promise<void>;
  /** Cala as conexões de agora sem as fechar; as novas, não. */
  mute: () => void;
  /** Conexões inteiras, cortadas que ainda esperam pelo Redis, e quantas já houve. */
  counts: () => { open: number; owed: number; opened: number };
  /** Linhas em respostas que o proxy não recebeu, por fluxo. */
  lost: Map<number, Set<number>>;
  /** Quantas linhas o Redis pode ter tirado antes de morrer sem responder, por tarefa. */
  doubts: Map<string, number>;
};

/** Um corte espera uma resposta com linhas para cair no meio dela, mas não mais que isto. */
const cut_patience_ms = 150;

const token_pattern = /^\{"s":"@(\d+):(\d+)@/;
const token_start = '{"s":"@';
const uuid_length = 36;

/** Dá a retirada que um comando é, se é um LPOP. */
function pop_of(command: unknown): pop | undefined {
  const [name = '', key = '', count = '1'] = command as string[];
  if (name.toUpperCase() !== 'LPOP') return undefined;
  return { uuid: key.slice(-uuid_length), count: Number(count) };
}

/** Passa um pedaço adiante, sem ler mais do que o outro lado aceita. */
function pass(from: net.Socket, to: net.Socket, chunk: Buffer): void {
  if (to.write(chunk)) return;
  from.pause();
  to.once('drain', () => from.resume());
}

/** Anota em `lost` as linhas de uma resposta que o proxy não recebeu. */
function note_lost(lost: relay['lost'], reply: unknown): void {
  for (const text of [reply].flat()) {
    const [, stream, index] = token_pattern.exec(String(text)) ?? [];
    if (index === undefined) continue;
    const indexes = lost.get(Number(stream)) ?? new Set();
    lost.set(Number(stream), indexes.add(Number(index)));
  }
}

/** Liga uma conexão do proxy ao Redis da porta `port`, e devolve a ligação. */
function join(near: net.Socket, port: number, book: Pick<relay, 'lost' | 'doubts'>): link {
  const far = net.connect(port, '127.0.0.1');
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
  const read_commands = make_reader((command) => link.asked.push(pop_of(command)));
  const read_replies = make_reader((reply) => {
    const pop = link.asked.shift();
    if (pop && link.is_severed) note_lost(book.lost, reply);
  });
  near.on('data', (chunk: Buffer) => {
    if (link.is_severed) return;
    read_commands(chunk);
    pass(near, far, chunk);
  });
  far.on('data', (chunk: Buffer) => {
    if (!link.is_severed) {
      const cuts = link.cut_share !== undefined && chunk.includes(token_start);
      const passed = chunk.subarray(
        0,
        Math.floor(chunk.length * (cuts ? (link.cut_share ?? 1) : 1)),
      );
      read_replies(passed);
      pass(far, near, passed);
      if (!cuts) return;
      link.sever(true);
      read_replies(chunk.subarray(passed.length));
    } else read_replies(chunk);
    if (link.asked.length === 0) far.destroy();
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

/** Sobe o intermediário diante do Redis da porta `port`, e o devolve. */
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
    await delay(cut_patience_ms);
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
