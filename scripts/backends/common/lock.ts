/*
 * Uma pasta de dados para uma cópia só por vez. A trava é do sistema operacional (a de um arquivo
 * do SQLite): quem a tem e morre, por qualquer sinal, a solta; não há trava velha a remover.
 */

import { mkdirSync as make_dir } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import sqlite from 'libsql';
import type { log } from './log';

/** De quanto em quanto tempo quem espera tenta de novo, em milissegundos. */
const retry_ms = 200;

/**
 * Espera até ser a única cópia a usar uma pasta.
 * @param folder a pasta, feita se falta
 * @param log quem ouve que se está esperando
 * @returns solta a pasta
 */
export async function lock_folder(folder: string, log: log): Promise<() => void> {
  make_dir(folder, { recursive: true });
  const lock = new sqlite(path.join(folder, 'lock.db'), { timeout: 0 });
  for (let attempt = 1; ; attempt += 1) {
    try {
      lock.exec('BEGIN EXCLUSIVE');
      return () => lock.close();
    } catch (error) {
      if ((error as { code?: string }).code !== 'SQLITE_BUSY') throw error;
    }
    if (attempt === 1) log.info('outra cópia usa a pasta de dados: esperando a vez', { folder });
    await sleep(retry_ms);
  }
}
