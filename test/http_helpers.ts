/*
 * O que os testes do contrato HTTP têm em comum: ler respostas byte a byte numa conexão crua, achar
 * a tarefa de cada pedido pela URL, e conferir o que toda resposta e todo erro devem ter.
 */

import assert from 'node:assert/strict';
import type { task_record } from '../json-proxy';
import {
  fetch_all,
  type http_reply,
  open_socket,
  patience_ms,
  type proxy,
  start_worker,
  until,
} from './harness';

/** Uma resposta lida do socket; `names` são os nomes dos cabeçalhos como vieram. */
export type raw_reply = {
  version: string;
  status: number;
  headers: Record<string, string>;
  names: string[];
  body: string;
};

/** O que as conferências precisam de uma resposta, crua ou do cliente do Node. */
type any_reply = Pick<http_reply, 'status' | 'body'> & { headers: object };

/** O worker dos testes, com as tarefas achadas pela URL. */
export type task_desk = Awaited<ReturnType<typeof start_desk>>;

export const author = 'Patrick Brandao <patrickbrandao@gmail.com>';

/** Número do marco que `created` publica, para que nenhum se confunda com outro. */
let marker_number = 0;

/**
 * Lê um corpo em pedaços (chunked).
 * @param text o que vem depois dos cabeçalhos
 * @returns o corpo e o que sobra; undefined se ainda falta algo
 * @throws AssertionError se um pedaço não termina onde disse
 */
function take_chunked(text: string): { body: string; rest: string } | undefined {
  let body = '';
  for (let at = 0; ; ) {
    const line_end = text.indexOf('\r\n', at);
    if (line_end < 0) return undefined;
    const size = Number.parseInt(text.slice(at, line_end), 16);
    const start = line_end + 2;
    if (text.length < start + size + 2) return undefined;
    assert.equal(text.slice(start + size, start + size + 2), '\r\n', 'pedaço mal terminado');
    body += text.slice(start, start + size);
    at = start + size + 2;
    if (size === 0) return { body, rest: text.slice(at) };
  }
}

/**
 * Lê a primeira resposta de um texto.
 * @param text bytes recebidos, em latin1
 * @param is_closed se a conexão já fechou (o corpo sem tamanho vai até ali)
 * @param has_body false na resposta a um HEAD
 * @returns a resposta e o que sobra; undefined se ela ainda não está inteira
 */
export function take_reply(text: string, is_closed: boolean, has_body: boolean) {
  const head_end = text.indexOf('\r\n\r\n');
  if (head_end < 0) return undefined;
  const [status_line = '', ...fields] = text.slice(0, head_end).split('\r\n');
  const pairs = fields.map((field) => field.split(/: (.*)/s, 2) as [string, string]);
  const headers = Object.fromEntries(pairs.map(([name, value]) => [name.toLowerCase(), value]));
  const [, version = '', digits = ''] = /^(HTTP\/1\.\d) (\d{3}) /.exec(status_line) ?? [];
  const reply = { version, status: Number(digits), headers, names: pairs.map(([name]) => name) };
  const after_head = text.slice(head_end + 4);
  if (!has_body || reply.status < 200 || reply.status === 204) {
    return { reply: { ...reply, body: '' }, rest: after_head };
  }
  if (headers['transfer-encoding'] === 'chunked') {
    const taken = take_chunked(after_head);
    return taken && { reply: { ...reply, body: taken.body }, rest: taken.rest };
  }
  if (headers['content-length'] === undefined) {
    return is_closed ? { reply: { ...reply, body: after_head }, rest: '' } : undefined;
  }
  const size = Number(headers['content-length']);
  if (after_head.length < size) return undefined;
  return { reply: { ...reply, body: after_head.slice(0, size) }, rest: after_head.slice(size) };
}

/**
 * Abre uma conexão crua que entende as respostas.
 * @param proxy o proxy
 * @param text o que enviar logo ao abrir
 * @returns o que `open_socket` dá, e: `reply`, que espera a próxima resposta inteira; `leftover`, o
 *   que chegou e ainda não foi lido como resposta
 */
export async function open_talk(proxy: Pick<proxy, 'port'>, text: string | Buffer = '') {
  const raw = await open_socket(proxy.port);
  let consumed = 0;
  if (text.length > 0) raw.send(text);
  const leftover = () => raw.text().slice(consumed);
  const reply = async (has_body = true, ms = patience_ms): Promise<raw_reply> => {
    const taken = await until(
      () => `resposta inteira; chegou: ${raw.text().slice(-500)}`,
      () => take_reply(leftover(), raw.socket.destroyed, has_body),
      ms,
    );
    consumed = raw.text().length - taken.rest.length;
    return taken.reply;
  };
  return { ...raw, leftover, reply };
}

/**
 * Escreve um pedido cru.
 * @param first_line por exemplo "GET /a" ou "GET /a HTTP/1.0"
 * @param headers linhas de cabeçalho; HTTP/1.1 ganha um Host
 * @param body corpo; se não for vazio, ganha Content-Length
 * @returns o texto do pedido
 */
export function raw_request(first_line: string, headers: string[] = [], body = ''): string {
  const old = first_line.endsWith(' HTTP/1.0');
  const lines = [old ? first_line : `${first_line} HTTP/1.1`, ...(old ? [] : ['Host: proxy.test'])];
  if (body !== '') lines.push(`Content-Length: ${Buffer.byteLength(body)}`);
  return `${[...lines, ...headers].join('\r\n')}\r\n\r\n${body}`;
}

/**
 * Assina o canal e acha tarefas pela URL.
 * @param redis o Redis
 * @param proxy o proxy, para as barreiras de `created`
 * @param channel canal
 * @returns `task`: espera a tarefa de uma URL; `finish`: empurra linhas e apaga a tarefa;
 *   `created`:
 *   as chaves anunciadas até agora, com a certeza de que nada mais está a caminho; `client`
 */
export async function start_desk(
  redis: Parameters<typeof start_worker>[0],
  proxy: Pick<proxy, 'port'>,
  channel = 'ndjson_jobs',
) {
  const { client, pending } = await start_worker(redis, channel);
  const announced: string[] = [];
  const tasks = new Map<string, task_record>();
  const collect = async () => {
    const fresh = pending.splice(0);
    announced.push(...fresh);
    for (const key of fresh) {
      const text = key.startsWith('marco ') ? null : await client.get(key);
      if (text !== null) tasks.set(JSON.parse(text).url, JSON.parse(text));
    }
  };
  const task = (url: string): Promise<task_record> =>
    until(`tarefa de ${url}`, async () => {
      await collect();
      const found = tasks.get(url);
      tasks.delete(url);
      return found;
    });
  const finish = async (of: task_record, lines: string[] = []): Promise<void> => {
    if (lines.length > 0) await client.rPush(of.task_list, lines);
    await client.del(of.task_key);
  };
  const created = async (): Promise<string[]> => {
    // O PING do segundo /ping vai, na mesma conexão, atrás de tudo o que o proxy ia pedir ao Redis.
    for (let round = 0; round < 2; round += 1) {
      assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
    }
    marker_number += 1;
    const marker = `marco ${marker_number}`;
    await client.publish(channel, marker);
    await until('marco no canal', async () => {
      await collect();
      return announced.includes(marker);
    });
    return announced.filter((key) => !key.startsWith('marco '));
  };
  return { client, task, finish, created };
}

/**
 * Confere os cabeçalhos que toda resposta leva.
 * @param reply a resposta
 * @param servername valor esperado de Server
 */
export function assert_identity(reply: any_reply, servername = 'py-ndjson-proxy'): void {
  const headers = reply.headers as Record<string, unknown>;
  assert.equal(headers.server, servername);
  assert.equal(headers['x-author'], author);
}

/**
 * Confere uma resposta de erro inteira.
 * @param reply a resposta
 * @param status status esperado
 * @param message texto esperado do campo "error"
 * @param servername valor esperado de Server
 */
export function assert_error(
  reply: any_reply,
  status: number,
  message: string,
  servername?: string,
): void {
  const headers = reply.headers as Record<string, unknown>;
  assert.equal(reply.status, status);
  assert_identity(reply, servername);
  assert.equal(headers['content-type'], 'application/json');
  assert.equal(reply.body, `{"error": ${JSON.stringify(message)}}\n`);
}
