/*
 * O relator dos testes: uma linha por arquivo (ou por teste, se são poucos os arquivos), o que foi
 * pulado e por quê, e as falhas, com as linhas do fonte, nenhuma maior que uma tela.
 */

import { readFileSync as read_file } from 'node:fs';
import { SourceMap as source_map } from 'node:module';
import path from 'node:path';
import type { TestEvent as test_event } from 'node:test/reporters';
import { inspect } from 'node:util';

/** O maior que uma falha ocupa: linhas, e colunas de cada uma. */
const max_lines = 40;
const max_columns = 200;

/** Por onde run-tests diz que quer uma linha por teste. */
export const each_test_variable = 'JSON_PROXY_EACH_TEST';

/** O que se sabe de um arquivo de testes. */
type file_state = { ms: number; passed: number; failed: number; skipped: number };

/** O que o executor diz de um teste que acabou. */
type result = Extract<test_event, { type: 'test:pass' | 'test:fail' }>;

const files = new Map<string, file_state>();
const failures: string[] = [];
const skips = new Map<string, string[]>();

/**
 * Corta um texto para que caiba numa tela.
 * @param text o texto
 * @param lines quantas linhas, no máximo
 * @returns o texto, com o que falta contado
 */
export function fit(text: string, lines = max_lines): string {
  const all = text.trimEnd().split('\n');
  const left = all.length - lines + 1;
  const kept = left > 1 ? [...all.slice(0, lines - 1), `… mais ${left} linhas`] : all;
  const narrow = (line: string) =>
    line.length > max_columns ? `${line.slice(0, max_columns)}… (${line.length} colunas)` : line;
  return kept.map(narrow).join('\n');
}

/**
 * Dá o nome curto de um arquivo de testes.
 * @param file o arquivo montado: ".../03-endings.test.js"
 * @returns "endings"
 */
function short_name(file: string): string {
  return path.basename(file).replace(/^\d+-|\.test\.\w+$/g, '');
}

/**
 * Troca, numa pilha, as posições no arquivo montado pelas do fonte.
 * @param stack a pilha
 * @returns a pilha, sem o que é do Node e das bibliotecas, se resta algo
 */
function in_source(stack: string): string {
  const maps = new Map<string, source_map>();
  const named = stack.replace(
    /(\/[^\s():]+\.test\.js):(\d+):(\d+)/g,
    (where, file, line, column) => {
      const map = maps.get(file) ?? new source_map(JSON.parse(read_file(`${file}.map`, 'utf8')));
      maps.set(file, map);
      const entry = map.findEntry(Number(line) - 1, Number(column) - 1);
      if (!('originalSource' in entry)) return where;
      const source = path.resolve(path.dirname(file), entry.originalSource);
      return `${path.relative('', source)}:${entry.originalLine + 1}:${entry.originalColumn + 1}`;
    },
  );
  const ours = named.replace(/\n +at (?:.*node_modules|.*\(?node:|async Promise\.all).*/g, '');
  return /\n +at /.test(ours) ? ours : named; // se nada é nosso, a pilha inteira é a pista
}

/**
 * Conta um teste que acabou.
 * @param event o que o executor disse
 * @param name o nome do arquivo
 * @param state o que se sabe dele
 * @returns a linha a escrever, ou nada
 */
function count({ type, data }: result, name: string, state: file_state): string {
  const { details, nesting, skip } = data;
  const is_file = nesting === 0 && path.isAbsolute(data.name);
  const error = type === 'test:fail' ? (details as { error: Error }).error : undefined;
  const is_sum = /^\d+ subtests? failed$/.test(error?.message ?? '') || (is_file && state.failed);
  if (error && !is_sum) {
    state.failed += 1;
    const cause = error.cause instanceof Error ? error.cause : error;
    const shown = inspect(cause, { depth: 4, maxStringLength: 2000, maxArrayLength: 20 });
    // o erro de uma resposta do Redis não traz pilha, e nela estaria o texto
    const text = shown.includes(cause.message) ? shown : `${cause.message}\n${shown}`;
    failures.push(fit(`✖ ${name}: ${is_file ? 'o arquivo' : data.name}\n${in_source(text)}`));
  }
  if (is_file || (details as { type?: string }).type === 'suite') return '';
  if (skip !== undefined && skip !== false) {
    state.skipped += 1;
    const why = typeof skip === 'string' ? skip : 'sem motivo dado';
    skips.set(why, [...(skips.get(why) ?? []), `${name}: ${data.name}`]);
  } else if (!error) state.passed += 1;
  if (!process.env[each_test_variable]) return '';
  const mark = error ? '✖' : skip ? '-' : '✔';
  const title = data.name.replaceAll('\n', ' ');
  return fit(`  ${mark} ${title} (${Math.round(details.duration_ms)} ms)`);
}

/**
 * Resume um arquivo, ou a soma de todos.
 * @param name o nome
 * @param state o que se contou
 * @returns a linha
 */
function sum_line(name: string, { ms, passed, failed, skipped }: file_state): string {
  const parts = [`${passed} testes`];
  if (failed) parts.push(`${failed} ${failed === 1 ? 'falhou' : 'falharam'}`);
  if (skipped) parts.push(`${skipped} pulados`);
  return `${failed ? '✖' : '✔'} ${name}: ${parts.join(', ')}, ${(ms / 1000).toFixed(1)} s`;
}

/**
 * Escreve o fim: as falhas, os pulados com o motivo, e a soma.
 * @returns o texto
 */
function closing(): string {
  const sum = { ms: performance.now(), passed: 0, failed: 0, skipped: 0 };
  for (const { passed, failed, skipped } of files.values()) {
    sum.passed += passed;
    sum.failed += failed;
    sum.skipped += skipped;
  }
  const pulled = [...skips].map(([why, names]) => `- pulados (${why}): ${names.join('; ')}`);
  const texts = [...failures.map((text) => `\n${text}\n`), ...pulled.map((text) => fit(text))];
  return [...texts, sum_line('total', sum)].join('\n');
}

/**
 * O relator, na forma que o executor do Node pede. O que acontece em cada arquivo é dito
 * junto.
 * @param source o que o executor diz
 * @returns o que escrever
 */
export default async function* report(source: AsyncIterable<test_event>): AsyncGenerator<string> {
  let current: string | undefined;
  for await (const event of source) {
    const file = event.data && 'file' in event.data ? event.data.file : undefined;
    if (!file) continue;
    const name = short_name(file);
    const state = files.get(name) ?? { ms: 0, passed: 0, failed: 0, skipped: 0 };
    files.set(name, state);
    const is_file = event.data && 'name' in event.data && event.data.name === file;
    if (event.type === 'test:complete' && is_file) state.ms = event.data.details.duration_ms;
    if (event.type === 'test:stdout' || event.type === 'test:stderr') {
      yield `${fit(event.data.message)}\n`;
    }
    if (event.type !== 'test:pass' && event.type !== 'test:fail') continue;
    const before = current === undefined || current === name ? undefined : files.get(current);
    if (before) yield `${sum_line(current ?? '', before)}\n`;
    current = name;
    const line = count(event, name, state);
    if (line) yield `${line}\n`;
  }
  const last = files.get(current ?? '');
  if (last) yield `${sum_line(current ?? '', last)}\n`;
  yield `${closing()}\n`;
}
