/*
 * O log dos sistemas: em cor no console, e num arquivo se houver pasta. O arquivo é escrito na
 * hora, sem fila: um kill -9 não perde linhas. Segredo nenhum passa por aqui: quem chama escolhe os
 * campos um a um, e nunca cabeçalhos nem corpos.
 */

import {
  appendFileSync as append_file,
  existsSync as file_exists,
  statSync as file_stats,
  mkdirSync as make_dir,
  renameSync as move_file,
} from 'node:fs';
import path from 'node:path';

/** Os níveis, do menos grave, com a cor de cada um no console. */
const level_colors = { debug: 90, info: 32, warn: 33, error: 31 } as const;

export type level = keyof typeof level_colors;

/** Um registro: o que se diz, e os campos. */
export type entry = { at: Date; level: level; message: string; fields: Record<string, unknown> };

/** Para onde vai cada registro, além do console. */
export type sink = (entry: entry) => void;

/** Um log pronto para uso. */
export type log = Record<level, (message: string, fields?: Record<string, unknown>) => void>;

/** Tamanho em que um arquivo dá lugar a outro, em bytes, e quantos antigos ficam. */
const rotation = { bytes: 5_000_000, kept: 5 };

/** Se o console mostra cores: num terminal, ou se pedem. */
const is_colored =
  Boolean(process.env.FORCE_COLOR) || (process.stdout.isTTY && !process.env.NO_COLOR);

/** O fuso do log, GMT-3 o ano inteiro: quanto somar ao UTC, em milissegundos. */
const zone_ms = -3 * 3_600_000;

/**
 * Escreve um instante em GMT-3.
 * @param at o instante
 * @returns por exemplo "2026-07-15 01:00:00 GMT-3"
 */
export function local_time(at: Date): string {
  const text = new Date(at.getTime() + zone_ms).toISOString();
  return `${text.slice(0, 19).replace('T', ' ')} GMT-3`;
}

/**
 * Escreve um registro numa linha.
 * @param entry o registro
 * @returns a linha, sem a quebra: quebras de linha de quem pediu não viram linhas do log
 */
function text_line({ at, level, message, fields }: entry): string {
  const pairs = Object.entries(fields).map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  const text = [local_time(at), level.toUpperCase().padEnd(5), message, ...pairs].join(' ');
  return text.replace(/[\x00-\x1f\x7f]+/g, ' ');
}

/**
 * Abre um arquivo que dá lugar a outro quando cresce: server.log, server.log.1, …
 * @param file caminho do arquivo; a pasta é feita se falta
 * @returns quem escreve nele
 * @throws Error se não se pode escrever ali
 */
export function rotating_file(file: string): sink {
  make_dir(path.dirname(file), { recursive: true });
  append_file(file, '');
  return (entry) => {
    append_file(file, `${text_line(entry)}\n`);
    if (file_stats(file).size < rotation.bytes) return;
    for (let n = rotation.kept - 1; n >= 0; n -= 1) {
      const from = n === 0 ? file : `${file}.${n}`;
      if (file_exists(from)) move_file(from, `${file}.${n + 1}`);
    }
  };
}

/**
 * Abre um arquivo de JSON por dia: nome-2026-07-15.json.
 * @param folder a pasta, feita se falta
 * @param name começo do nome
 * @returns quem escreve neles
 * @throws Error se não se pode escrever ali
 */
export function daily_json(folder: string, name: string): sink {
  make_dir(folder, { recursive: true });
  return ({ at, level, message, fields }) => {
    const day = local_time(at).slice(0, 10);
    const line = JSON.stringify({ at: at.toISOString(), level, message, ...fields });
    append_file(path.join(folder, `${name}-${day}.json`), `${line}\n`);
  };
}

/**
 * Faz um log.
 * @param sinks para onde mais vai cada registro; o que falhar é dito no console, e o resto segue
 * @returns o log
 */
export function make_log(...sinks: sink[]): log {
  const say = ({ level, ...rest }: entry) => {
    const line = text_line({ level, ...rest });
    const text = is_colored ? `\x1b[${level_colors[level]}m${line}\x1b[0m` : line;
    console.log(text);
  };
  const write =
    (level: level) =>
    (message: string, fields: Record<string, unknown> = {}) => {
      const entry = { at: new Date(), level, message, fields };
      say(entry);
      for (const sink of sinks) {
        try {
          sink(entry);
        } catch (error) {
          say({ ...entry, level: 'error', message: 'o arquivo de log falhou', fields: { error } });
        }
      }
    };
  return { debug: write('debug'), info: write('info'), warn: write('warn'), error: write('error') };
}
