/*
 * Monta json-proxy.js: um arquivo só, com a biblioteca redis dentro, que roda numa pasta vazia.
 *
 *   npm run build
 */

import { chmodSync as change_mode, statSync as file_stats } from 'node:fs';
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
 * Monta o programa.
 * @param outfile caminho do arquivo a escrever
 */
export async function build_program(outfile: string): Promise<void> {
  await build({
    entryPoints: [path.join(root, 'json-proxy.ts')],
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

/** Dá o programa `given`, ou um montado na hora numa pasta vazia, que stop_all remove. */
export async function built_program(given?: string): Promise<string> {
  const file = path.resolve(given ?? path.join(temp_dir(), 'json-proxy.js'));
  if (!given) await build_program(file);
  return file;
}

/** Monta json-proxy.js na raiz do projeto e diz o tamanho. */
async function main(): Promise<void> {
  const outfile = path.join(root, 'json-proxy.js');
  await build_program(outfile);
  const kilobytes = Math.round(file_stats(outfile).size / 1024);
  console.log(`json-proxy.js: ${kilobytes} kB; rode com: node json-proxy.js --help`);
}

if (require.main === module) void main();
