/*
 * As filas e as mensagens, num SQLite em modo WAL: o que foi confirmado está no disco (synchronous
 * FULL), e um kill -9 não o perde. Várias cópias usam o mesmo arquivo: cada passo é um comando só.
 */

import { mkdirSync as make_dir } from 'node:fs';
import path from 'node:path';
import sqlite from 'libsql';

/** Os estados de uma mensagem. */
export const states = ['pending', 'processing', 'processed', 'failed'] as const;

/** Quantas mensagens há em cada estado. */
export type counts = Record<(typeof states)[number] | 'total', number>;

/** Uma fila. */
export type queue = { name: string; created_at: string; messages: counts };

/** Uma mensagem. `receipt` só enquanto alguém a processa: com ele se confirma ou recusa. */
export type message = {
  id: number;
  queue: string;
  content: string;
  status: (typeof states)[number];
  deliveries: number;
  receipt: string | null;
  created_at: string;
  updated_at: string;
};

/** Um usuário, como está guardado. */
export type user_record = { name: string; password: string; role: string };

/** O que as funções dividem. */
export type store = InstanceType<typeof sqlite>;

/** Quanto um comando espera por outra cópia que escreve, em milissegundos. */
const busy_ms = 5000;

const schema = `
  CREATE TABLE IF NOT EXISTS queues (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, created_at TEXT NOT NULL);
  CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue_id INTEGER NOT NULL REFERENCES queues (id) ON DELETE CASCADE,
    content TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending',
    deliveries INTEGER NOT NULL DEFAULT 0,
    receipt TEXT, consumer TEXT, lease_until INTEGER,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
  CREATE INDEX IF NOT EXISTS messages_by_state ON messages (queue_id, status, id);
  CREATE INDEX IF NOT EXISTS messages_by_lease ON messages (lease_until)
    WHERE lease_until IS NOT NULL;
  CREATE TABLE IF NOT EXISTS users (
    name TEXT PRIMARY KEY, password TEXT NOT NULL, role TEXT NOT NULL);
  CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value TEXT NOT NULL)`;

const message_columns = `id, (SELECT name FROM queues WHERE queues.id = queue_id) AS queue, content,
  status, deliveries, receipt, created_at, updated_at`;

/** Agora, como o SQLite o guarda. */
const now = `strftime('%Y-%m-%dT%H:%M:%fZ', 'now')`;

/**
 * Abre o arquivo, feito se falta.
 * @param folder a pasta dele
 * @returns o banco
 */
export function open_store(folder: string): store {
  make_dir(folder, { recursive: true });
  const store = new sqlite(path.join(folder, 'broker.db'), { timeout: busy_ms });
  for (const line of ['journal_mode = WAL', 'synchronous = FULL', 'foreign_keys = ON']) {
    store.pragma(line);
  }
  store.exec(schema);
  return store;
}

/**
 * Roda um comando.
 * @param store o banco
 * @param sql o comando
 * @param values os valores, na ordem
 * @returns as linhas
 */
export function query<row>(store: store, sql: string, ...values: unknown[]): row[] {
  return store.prepare(sql).all(...values) as row[];
}

/**
 * Conta as mensagens por estado.
 * @param store o banco
 * @param queue nome da fila; sem ele, todas
 * @returns as contas
 */
export function count_messages(store: store, queue?: string): counts {
  const where =
    queue === undefined ? '' : 'WHERE queue_id = (SELECT id FROM queues WHERE name = ?)';
  const sql = `SELECT status, count(*) AS n FROM messages ${where} GROUP BY status`;
  const values = queue === undefined ? [] : [queue];
  const found = query<{ status: keyof counts; n: number }>(store, sql, ...values);
  const counts = { total: 0, pending: 0, processing: 0, processed: 0, failed: 0 };
  for (const { status, n } of found) {
    counts[status] += n;
    counts.total += n;
  }
  return counts;
}

/**
 * Lista as filas, ou dá uma.
 * @param store o banco
 * @param name nome da fila; sem ele, todas
 * @returns as filas, por nome
 */
export function list_queues(store: store, name?: string): queue[] {
  const where = name === undefined ? '' : 'WHERE name = ?';
  const sql = `SELECT name, created_at FROM queues ${where} ORDER BY name`;
  const found = query<Omit<queue, 'messages'>>(store, sql, ...(name === undefined ? [] : [name]));
  return found.map((queue) => ({ ...queue, messages: count_messages(store, queue.name) }));
}

/**
 * Cria uma fila.
 * @param store o banco
 * @param name o nome
 * @returns se foi criada; false se já havia
 */
export function add_queue(store: store, name: string): boolean {
  const sql = `INSERT INTO queues (name, created_at) VALUES (?, ${now})
    ON CONFLICT DO NOTHING RETURNING id`;
  return query(store, sql, name).length > 0;
}

/**
 * Apaga uma fila e as mensagens dela.
 * @param store o banco
 * @param name o nome
 * @returns se havia
 */
export function remove_queue(store: store, name: string): boolean {
  return query(store, 'DELETE FROM queues WHERE name = ? RETURNING id', name).length > 0;
}

/**
 * Publica uma mensagem, que está no disco quando isto volta.
 * @param store o banco
 * @param queue nome da fila
 * @param content o conteúdo
 * @returns a mensagem; undefined se não há a fila
 */
export function add_message(store: store, queue: string, content: string): message | undefined {
  const sql = `INSERT INTO messages (queue_id, content, created_at, updated_at)
    SELECT id, ?, ${now}, ${now} FROM queues WHERE name = ? RETURNING ${message_columns}`;
  return query<message>(store, sql, content, queue)[0];
}

/**
 * Devolve à fila o que ficou com consumidores que não voltaram a tempo.
 * @param store o banco
 */
function expire_leases(store: store): void {
  const sql = `UPDATE messages SET status = 'pending', receipt = NULL, consumer = NULL,
    lease_until = NULL, updated_at = ${now} WHERE lease_until < ?`;
  query(store, sql, Date.now());
}

/**
 * Entrega a mensagem pendente mais antiga, que passa a ser só deste consumidor.
 * @param store o banco
 * @param queue nome da fila
 * @param consumer quem consome, para contar o que tem em mãos
 * @param lease_ms quanto ele tem para confirmar, em milissegundos
 * @returns a mensagem; undefined se não há pendentes
 */
export function take_message(
  store: store,
  queue: string,
  consumer: string,
  lease_ms: number,
): message | undefined {
  expire_leases(store);
  const sql = `UPDATE messages SET status = 'processing', deliveries = deliveries + 1,
      receipt = lower(hex(randomblob(16))), consumer = ?, lease_until = ?, updated_at = ${now}
    WHERE id = (
      SELECT id FROM messages WHERE status = 'pending'
        AND queue_id = (SELECT id FROM queues WHERE name = ?) ORDER BY id LIMIT 1)
    RETURNING ${message_columns}`;
  return query<message>(store, sql, consumer, Date.now() + lease_ms, queue)[0];
}

/**
 * Conta as mensagens que um consumidor tem em mãos.
 * @param store o banco
 * @param consumer o consumidor
 * @returns quantas
 */
export function count_held(store: store, consumer: string): number {
  const sql = `SELECT count(*) AS n FROM messages WHERE lease_until IS NOT NULL AND consumer = ?`;
  return query<{ n: number }>(store, sql, consumer)[0]?.n ?? 0;
}

/**
 * Encerra o processamento de uma mensagem, se ela ainda é de quem tem o recibo.
 * @param store o banco
 * @param message fila, número e recibo
 * @param status o novo estado
 * @returns a mensagem; undefined se não é
 */
export function settle_message(
  store: store,
  { queue, id, receipt }: { queue: string; id: number; receipt: string },
  status: message['status'],
): message | undefined {
  const sql = `UPDATE messages SET status = ?, receipt = NULL, consumer = NULL,
      lease_until = NULL, updated_at = ${now}
    WHERE id = ? AND receipt = ? AND queue_id = (SELECT id FROM queues WHERE name = ?)
    RETURNING ${message_columns}`;
  return query<message>(store, sql, status, id, receipt, queue)[0];
}

/**
 * Diz se uma mensagem existe.
 * @param store o banco
 * @param queue nome da fila
 * @param id número da mensagem
 * @returns se existe
 */
export function has_message(store: store, queue: string, id: number): boolean {
  const sql = `SELECT 1 FROM messages JOIN queues ON queues.id = queue_id
    WHERE messages.id = ? AND name = ?`;
  return query(store, sql, id, queue).length > 0;
}
