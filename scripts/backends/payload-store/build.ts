/*
 * Monta bin/app_server: o proxy, o payload-store e o Node num executável só.
 *
 *   npm run build:app_server
 *   npm run build:app_server -- --out caminho/app_server
 *   npm run build:app_server -- --js caminho/app_server.js     só o programa, sem o Node
 */

import path from 'node:path';
import { parseArgs as parse_args } from 'node:util';
import { build_binary } from '../../dev/binary';
import { bundle_program } from '../../dev/build';
import { run_to_exit } from '../../dev/local';

const default_binary = path.join(__dirname, '..', '..', '..', 'bin', 'app_server');

/**
 * Junta o proxy e o sistema num arquivo.
 * @param outfile caminho do arquivo a escrever
 */
function bundle(outfile: string): Promise<void> {
  return bundle_program(path.join(__dirname, 'app_server.ts'), outfile);
}

/**
 * Monta o que se pede.
 * @returns o código de saída
 */
async function main(): Promise<number> {
  const { values } = parse_args({ options: { out: { type: 'string' }, js: { type: 'string' } } });
  if (values.js) {
    await bundle(path.resolve(values.js));
    console.log(`${values.js}: rode com: node ${values.js}`);
    return 0;
  }
  const outfile = path.resolve(values.out ?? default_binary);
  const megabytes = Math.round((await build_binary(outfile, process.execPath, bundle)) / 1e6);
  console.log(`${outfile}: ${megabytes} MB; rode com: API_SECRET_KEY=… ${outfile}`);
  return 0;
}

run_to_exit(main);
