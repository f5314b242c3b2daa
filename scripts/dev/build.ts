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

const root = path.join(__dirname, '..', '..');

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
    target: 'node20',
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
