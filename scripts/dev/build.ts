/*
 * Monta json-proxy.js: um arquivo só, com a biblioteca redis dentro, que roda numa pasta vazia. Com
 * --kit também o kit do worker, na pasta kit/: é a entrada ndjson-proxy/worker do pacote.
 *
 *   npm run build
 */

import { execFileSync as run } from 'node:child_process';
import {
  chmodSync as change_mode,
  statSync as file_stats,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import { build } from 'esbuild';
import { temp_dir } from './local';

/** Por onde quem roda os testes diz onde está o programa que eles devem usar. */
export const program_variable = 'JSON_PROXY_PROGRAM';

/** E o que carregar antes dele, para que suba depressa: ver code-cache.ts. */
export const code_cache_variable = 'JSON_PROXY_CODE_CACHE';

const root = path.join(__dirname, '..', '..');

/**
 * As primeiras linhas do programa: um Node velho demais é recusado. Por isso o alvo é um em que o
 * arquivo inteiro ainda é entendido. Um ainda mais velho tropeça no `??` e mostra esta mesma linha.
 */
const version_check = `"use strict";
if (parseInt(process.versions.node) < (null ?? 20)) { \
console.error("json-proxy: precisa do Node 20 ou mais novo; este é o " + process.version); \
process.exit(2); }`;

/**
 * Monta um programa e tudo o que ele usa num arquivo só.
 * @param entry o fonte
 * @param outfile caminho do arquivo a escrever
 */
export async function bundle_program(entry: string, outfile: string): Promise<void> {
  await build({
    entryPoints: [entry],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'cjs',
    target: 'node14.21',
    banner: { js: version_check },
    alias: { redis: '@redis/client' }, // sem os módulos (busca, JSON, séries…), que o proxy não usa
    legalComments: 'inline',
    logLevel: 'warning',
  });
  change_mode(outfile, 0o755);
}

/**
 * Monta o proxy.
 * @param outfile caminho do arquivo a escrever
 */
export function build_program(outfile: string): Promise<void> {
  return bundle_program(path.join(root, 'json-proxy.ts'), outfile);
}

/** Dá o programa `given`, ou um montado na hora numa pasta vazia, que stop_all remove. */
export async function built_program(given?: string): Promise<string> {
  const file = path.resolve(given ?? path.join(temp_dir(), 'json-proxy.js'));
  if (!given) await build_program(file);
  return file;
}

/**
 * Monta o kit do worker, com os tipos. Para quem usa ESM há um arquivo que só repassa: uma cópia
 * a mais seria outro kit no mesmo processo.
 * @param folder a pasta a encher
 */
async function build_kit(folder: string): Promise<void> {
  const entry = path.join(root, 'scripts', 'worker', 'index.ts');
  await build({
    entryPoints: [entry],
    outfile: path.join(folder, 'index.js'),
    bundle: true,
    platform: 'node',
    format: 'cjs',
    target: 'node20',
    packages: 'external',
    logLevel: 'warning',
  });
  const language = '--target es2022 --lib es2023 --module nodenext --types node --strict';
  const kind = '--ignoreConfig --declaration --emitDeclarationOnly --skipLibCheck';
  const flags = `${kind} ${language}`.split(' ');
  const tsc = path.join(root, 'node_modules', '.bin', 'tsc');
  run(tsc, [...flags, '--outDir', folder, entry], { cwd: root, stdio: 'inherit' });
  for (const name of ['index.mjs', 'index.d.mts']) {
    write_file(path.join(folder, name), "export * from './index.js';\n");
  }
}

/**
 * Monta json-proxy.js na raiz do projeto e diz o tamanho; com --kit, também o kit.
 */
async function main(): Promise<void> {
  const outfile = path.join(root, 'json-proxy.js');
  await build_program(outfile);
  const kilobytes = Math.round(file_stats(outfile).size / 1024);
  console.log(`json-proxy.js: ${kilobytes} kB; rode com: node json-proxy.js --help`);
  if (process.argv.includes('--kit')) await build_kit(path.join(root, 'kit'));
}

if (require.main === module) void main();
