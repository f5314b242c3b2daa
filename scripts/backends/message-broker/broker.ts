/*
 * As operações, com o papel que cada uma exige: o REST e o GraphQL só as chamam.
 */

import { randomUUID as random_uuid } from 'node:crypto';
import { EventEmitter as event_emitter, once } from 'node:events';
import { http_error } from '../common/web';
import {
  add_message,
  add_queue,
  count_held,
  has_message,
  list_queues,
  type message,
  type queue,
  remove_queue,
  settle_message,
  type store,
  take_message,
} from './store';
import { need_role, type user } from './users';

/** De quanto em quanto tempo um fluxo procura o que outra cópia publicou, em milissegundos. */
const look_ms = 250;

/** O que se exige do nome de uma fila. */
const queue_name = /^[\w.-]{1,100}$/;

/** Tamanho máximo do conteúdo de uma mensagem, em caracteres. */
export const max_content = 1_000_000;

/** Com que se confirma ou recusa uma mensagem. */
export type settlement = { queue: string; id: number; receipt: string };

/** O que as operações dividem. `news`: quando algo foi publicado, devolvido ou confirmado aqui. */
export type broker = { store: store; lease_ms: number; news: event_emitter };

/**
 * Faz o broker.
 * @param store o banco
 * @param lease_ms quanto um consumidor tem para confirmar, em milissegundos
 * @returns o broker
 */
export function make_broker(store: store, lease_ms: number): broker {
  return { store, lease_ms, news: new event_emitter().setMaxListeners(0) };
}

/**
 * Lista as filas.
 * @param broker o broker
 * @param user quem pede: lê
 * @returns as filas, com as contas
 */
export function queues(broker: broker, user: user): queue[] {
  need_role(user, 'read');
  return list_queues(broker.store);
}

/**
 * Dá uma fila.
 * @param broker o broker
 * @param user quem pede: lê
 * @param name o nome
 * @returns a fila, com as contas
 * @throws http_error 404 se não há
 */
export function queue_details(broker: broker, user: user, name: string): queue {
  need_role(user, 'read');
  const [queue] = list_queues(broker.store, name);
  if (!queue) throw new http_error(404, `no queue ${name}`);
  return queue;
}

/**
 * Cria uma fila.
 * @param broker o broker
 * @param user quem pede: administra
 * @param name o nome
 * @returns a fila
 * @throws http_error 400 se o nome não serve; 409 se já há
 */
export function create_queue(broker: broker, user: user, name: string): queue {
  need_role(user, 'admin');
  if (!queue_name.test(name)) {
    throw new http_error(400, 'name: 1 to 100 letters, digits, "_", "." or "-"');
  }
  if (!add_queue(broker.store, name)) throw new http_error(409, `the queue ${name} already exists`);
  return queue_details(broker, user, name);
}

/**
 * Apaga uma fila e o que há nela.
 * @param broker o broker
 * @param user quem pede: administra
 * @param name o nome
 * @returns true
 * @throws http_error 404 se não há
 */
export function delete_queue(broker: broker, user: user, name: string): boolean {
  need_role(user, 'admin');
  if (!remove_queue(broker.store, name)) throw new http_error(404, `no queue ${name}`);
  return true;
}

/**
 * Publica uma mensagem.
 * @param broker o broker
 * @param user quem pede: escreve
 * @param queue nome da fila
 * @param content o conteúdo
 * @returns a mensagem, pendente
 * @throws http_error 400 se é longa demais; 404 se não há a fila
 */
export function publish(broker: broker, user: user, queue: string, content: string): message {
  need_role(user, 'write');
  if (content.length > max_content) {
    throw new http_error(400, `content: at most ${max_content} characters`);
  }
  const message = add_message(broker.store, queue, content);
  if (!message) throw new http_error(404, `no queue ${queue}`);
  broker.news.emit('news');
  return message;
}

/**
 * Consome a mensagem pendente mais antiga.
 * @param broker o broker
 * @param user quem pede: escreve
 * @param queue nome da fila
 * @param consumer quem a terá em mãos
 * @returns a mensagem, em processamento, com o recibo; undefined se não há pendentes
 * @throws http_error 404 se não há a fila
 */
export function consume(
  broker: broker,
  user: user,
  queue: string,
  consumer: string = random_uuid(),
): message | undefined {
  need_role(user, 'write');
  const message = take_message(broker.store, queue, consumer, broker.lease_ms);
  if (!message) queue_details(broker, user, queue);
  return message;
}

/**
 * Confirma ou recusa uma mensagem.
 * @param broker o broker
 * @param user quem pede: escreve
 * @param settlement a mensagem e o recibo
 * @param status o novo estado
 * @returns a mensagem
 * @throws http_error 404 se não há; 409 se o recibo não vale, ou não vale mais
 */
export function settle(
  broker: broker,
  user: user,
  settlement: settlement,
  status: message['status'],
): message {
  need_role(user, 'write');
  const { queue, id } = settlement;
  const message = settle_message(broker.store, settlement, status);
  if (message) broker.news.emit('news');
  if (message) return message;
  if (!has_message(broker.store, queue, id)) throw new http_error(404, `no message ${id}`);
  throw new http_error(409, 'the receipt is not, or no longer, that of this message');
}

/**
 * Espera que algo aconteça nesta cópia, ou a hora de ver o que houve nas outras.
 * @param broker o broker
 * @param signal encerra a espera
 */
async function next_news({ news }: broker, signal: AbortSignal): Promise<void> {
  const limit = AbortSignal.any([signal, AbortSignal.timeout(look_ms)]);
  await once(news, 'news', { signal: limit }).catch(() => {});
}

/**
 * Entrega as mensagens de uma fila conforme chegam.
 * @param broker o broker
 * @param user quem pede: escreve
 * @param queue nome da fila
 * @param options `prefetch`: quantas o consumidor pode ter por confirmar; `limit`: quantas ao todo
 * @param signal aborta quando ele sai; o que tinha em mãos volta à fila depois do prazo
 * @yields as mensagens
 * @throws http_error se a fila é apagada no meio
 */
export async function* deliver(
  broker: broker,
  user: user,
  queue: string,
  { prefetch, limit = Number.POSITIVE_INFINITY }: { prefetch: number; limit?: number | undefined },
  signal: AbortSignal,
): AsyncGenerator<message> {
  const consumer = random_uuid();
  for (let sent = 0; sent < limit && !signal.aborted; ) {
    const has_room = count_held(broker.store, consumer) < prefetch;
    const message = has_room ? consume(broker, user, queue, consumer) : undefined;
    if (message) {
      sent += 1;
      yield message;
    } else await next_news(broker, signal);
  }
}
