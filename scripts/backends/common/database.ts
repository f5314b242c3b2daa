/*
 * O PostgreSQL dos sistemas: o servidor, por uma URL, ou o PGlite, que roda dentro do processo. Os
 * dois falam o mesmo SQL, e daqui para fora não se vê qual é.
 */

import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { PGlite as pglite } from '@electric-sql/pglite';
import { DatabaseError as database_error, Pool as pool, type PoolConfig as pool_config } from 'pg';
import { lock_folder } from './lock';
import type { log } from './log';
import { http_error } from './web';

/** Um banco aberto. */
export type database = {
  kind: 'PostgreSQL' | 'PGlite';
  query: <row>(sql: string, values?: unknown[]) => Promise<row[]>;
  close: () => Promise<void>;
};

/** Prazo para conectar, em milissegundos: um banco que não responde é um erro, e não uma espera. */
const connect_ms = 3000;

/** De quanto em quanto tempo se procura um banco que ainda não subiu, em milissegundos. */
const retry_ms = 500;

/** Conexões ao mesmo tempo; uma tarefa usa uma, por poucos milissegundos. */
const pool_size = 5;

/** Os erros do PostgreSQL que são falta dele, e não do comando: conexão, recursos, parada. */
const absence_codes = /^(?:08|53|57)/;

/**
 * Separa a falta do banco dos erros do comando.
 * @param error o erro da biblioteca pg
 * @param log quem ouve o motivo da falta
 * @returns o erro a lançar
 */
function explain_error(error: Error, log: log): Error {
  if (error instanceof database_error && !absence_codes.test(error.code ?? '')) return error;
  log.warn('sem PostgreSQL', { error: error.message || String(error) });
  return new http_error(503, 'the database is unavailable');
}

/**
 * Abre um servidor PostgreSQL; as conexões se refazem sozinhas.
 * @param config onde ele está, na forma da biblioteca pg
 * @param limit_ms prazo de um comando, em milissegundos
 * @param log quem ouve as quedas
 * @returns o banco, que só conecta no primeiro comando
 */
export function open_postgres(config: pool_config, limit_ms: number, log: log): database {
  const limits = { query_timeout: limit_ms, statement_timeout: limit_ms };
  const basics = { max: pool_size, connectionTimeoutMillis: connect_ms };
  const connections = new pool({ ...basics, ...limits, ...config });
  connections.on('error', (error) => log.warn('o PostgreSQL caiu', { error: error.message }));
  return {
    kind: 'PostgreSQL',
    query: async (sql, values) => {
      const asked = connections.query(sql, values);
      const { rows } = await asked.catch((error) => {
        throw explain_error(error, log);
      });
      return rows;
    },
    close: () => connections.end(),
  };
}

/**
 * Abre o PGlite.
 * @param folder a pasta dos dados, de uma cópia por vez: espera a vez; vazio os deixa na memória
 * @param log quem ouve que se espera
 * @returns o banco
 */
export async function open_pglite(folder: string, log: log): Promise<database> {
  const unlock = folder ? await lock_folder(folder, log) : () => {};
  const engine = await (folder ? pglite.create(path.join(folder, 'pglite')) : pglite.create());
  return {
    kind: 'PGlite',
    query: async <row>(sql: string, values?: unknown[]) => {
      return (await engine.query<row>(sql, values)).rows;
    },
    close: async () => {
      await engine.close();
      unlock();
    },
  };
}

/**
 * Repete o primeiro trabalho de um banco até que ele esteja no ar.
 * @param log quem ouve que se espera
 * @param work o trabalho
 * @throws o que não for falta do banco
 */
export async function once_up(log: log, work: () => Promise<void>): Promise<void> {
  for (;;) {
    try {
      await work();
      return;
    } catch (error) {
      if (!(error instanceof http_error)) throw error;
    }
    log.info('esperando o banco');
    await sleep(retry_ms);
  }
}
