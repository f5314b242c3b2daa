/*
 * Os arquivos de log, lidos pela API. Só se abre um nome que a própria lista mostra: nenhum caminho
 * sai da pasta.
 */

import { createReadStream as open_file } from 'node:fs';
import { stat as file_stats, readdir as list_dir } from 'node:fs/promises';
import path from 'node:path';
import { createInterface as read_lines } from 'node:readline';
import { http_error } from '../common/web';

/** Maior número de linhas numa resposta. */
export const max_lines = 1000;

/** O nome de um arquivo de log. */
const file_name = /^message-broker-\d{4}-\d\d-\d\d\.json$/;

/** O que se pede de um arquivo: linhas de `start` a `end`, a partir de 1, ou as `tail` últimas. */
export type log_query = {
  start?: number | undefined;
  end?: number | undefined;
  tail?: number | undefined;
  search?: string | undefined;
};

/**
 * Lista os arquivos.
 * @param folder a pasta
 * @returns nome e tamanho de cada um, do mais novo para o mais velho
 */
export async function list_logs(folder: string) {
  const names = (await list_dir(folder))
    .filter((name) => file_name.test(name))
    .sort()
    .reverse();
  return Promise.all(
    names.map(async (name) => {
      const { size, mtime } = await file_stats(path.join(folder, name));
      return { name, bytes: size, modified_at: mtime.toISOString() };
    }),
  );
}

/**
 * Lê uma linha.
 * @param line o número dela
 * @param text o texto
 * @returns o número, e o registro ou, se a escrita foi cortada, o texto
 */
function read_entry(line: number, text: string) {
  try {
    return { line, ...JSON.parse(text) };
  } catch {
    return { line, text };
  }
}

/**
 * Lê um arquivo, linha a linha, sem guardar mais do que se responde.
 * @param folder a pasta
 * @param file nome do arquivo
 * @param query o que se pede; com `search`, contam só as linhas que o contêm
 * @returns as linhas, e quantas havia
 * @throws http_error 404 se não é um arquivo da lista
 */
export async function read_log(folder: string, file: string, query: log_query) {
  const { start = 1, end = Number.POSITIVE_INFINITY, tail, search } = query;
  const known = await list_logs(folder);
  if (!known.some(({ name }) => name === file)) throw new http_error(404, `no log file ${file}`);
  const wanted = search?.toLowerCase();
  const kept: { line: number; text: string }[] = [];
  let [line, matches] = [0, 0];
  const input = open_file(path.join(folder, file));
  for await (const text of read_lines({ input, crlfDelay: Number.POSITIVE_INFINITY })) {
    line += 1;
    if (wanted && !text.toLowerCase().includes(wanted)) continue;
    matches += 1;
    const is_in = tail !== undefined || (matches >= start && matches <= end);
    if (!is_in || (tail === undefined && kept.length >= max_lines)) continue;
    kept.push({ line, text });
    if (tail !== undefined && kept.length > tail) kept.shift();
  }
  return {
    file,
    total: line,
    matches,
    lines: kept.map(({ line, text }) => read_entry(line, text)),
  };
}
