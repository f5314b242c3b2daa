/*
 * As tarefas no PostgreSQL: a tabela, as três primeiras e os quatro comandos.
 */

import type { database } from '../common/database';

/** Os estados de uma tarefa. */
export const states = ['pending', 'in_progress', 'completed'] as const;

/** Uma tarefa, como a API a mostra. */
export type task = {
  id: number;
  title: string;
  description: string | null;
  status: (typeof states)[number];
  created_at: string;
  updated_at: string;
};

/** O que se pode mudar numa tarefa. */
export type changes = {
  [name in 'title' | 'description' | 'status']?: task[name] | undefined;
};

/** Maior id que a coluna guarda. */
export const max_id = 2 ** 31 - 1;

/** A tabela e as três primeiras, uma vez só, com quantas cópias subirem juntas. */
const schema = `
  DO $$ BEGIN
    PERFORM pg_advisory_xact_lock(5000);
    IF to_regclass('tasks') IS NOT NULL THEN RETURN; END IF;
    CREATE TABLE tasks (
      id serial PRIMARY KEY,
      title text NOT NULL,
      description text,
      status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'in_progress', 'completed')),
      created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
      updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    INSERT INTO tasks (title, description, status) VALUES
      ('Read the manual', 'How a task reaches a worker', 'completed'),
      ('Write a worker', 'A fetch handler is enough', 'in_progress'),
      ('Put it behind the proxy', 'No port of its own', 'pending');
  END $$`;

/** As colunas, com os instantes já no formato da API. */
const columns = `id, title, description, status,
  to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS created_at,
  to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS updated_at`;

/**
 * Prepara a tabela.
 * @param database o banco
 */
export async function prepare_tasks(database: database): Promise<void> {
  await database.query(schema);
}

/**
 * Lê todas as tarefas, da mais nova para a mais velha.
 * @param database o banco
 * @returns as tarefas
 */
export function all_tasks(database: database): Promise<task[]> {
  return database.query(`SELECT ${columns} FROM tasks ORDER BY tasks.created_at DESC, id DESC`);
}

/**
 * Lê uma tarefa.
 * @param database o banco
 * @param id o número dela
 * @returns a tarefa; undefined se não há
 */
export async function one_task(database: database, id: number): Promise<task | undefined> {
  return (await database.query<task>(`SELECT ${columns} FROM tasks WHERE id = $1`, [id]))[0];
}

/**
 * Cria uma tarefa.
 * @param database o banco
 * @param fields o título e o que mais se souber
 * @returns a tarefa criada
 */
export async function create_task(
  database: database,
  { title, description = null, status = 'pending' }: changes,
): Promise<task | undefined> {
  const sql = `INSERT INTO tasks (title, description, status) VALUES ($1, $2, $3)
    RETURNING ${columns}`;
  return (await database.query<task>(sql, [title, description, status]))[0];
}

/**
 * Muda uma tarefa.
 * @param database o banco
 * @param id o número dela
 * @param changes só o que muda
 * @returns a tarefa mudada; undefined se não há
 */
export async function update_task(
  database: database,
  id: number,
  changes: changes,
): Promise<task | undefined> {
  const names = Object.keys(changes);
  const sets = names.map((name, index) => `${name} = $${index + 2}`);
  const sql = `UPDATE tasks SET ${sets.join(', ')}, updated_at = clock_timestamp()
    WHERE id = $1 RETURNING ${columns}`;
  return (await database.query<task>(sql, [id, ...Object.values(changes)]))[0];
}

/**
 * Apaga uma tarefa.
 * @param database o banco
 * @param id o número dela
 * @returns a tarefa apagada; undefined se não havia
 */
export async function delete_task(database: database, id: number): Promise<task | undefined> {
  return (
    await database.query<task>(`DELETE FROM tasks WHERE id = $1 RETURNING ${columns}`, [id])
  )[0];
}
