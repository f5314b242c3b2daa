/*
 * Monta bin/json-proxy: o programa e o Node num executável só (single executable application).
 *
 *   npm run build:binary
 *   npm run build:binary -- --out caminho/json-proxy
 */

import { execFileSync as run } from 'node:child_process';
import {
  mkdirSync as make_dir,
  readFileSync as read_file,
  rmSync as remove,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import { parseArgs as parse_args } from 'node:util';
import { build_program } from './build';
import { embed_program } from './elf';
import { stop_all, temp_dir } from './local';

const default_binary = path.join(__dirname, '..', '..', 'bin', 'json-proxy');

/**
 * Prepara o programa na forma que um Node leva dentro de si.
 * @returns os bytes
 */
async function prepare_program(): Promise<Buffer> {
  const dir = temp_dir();
  const [main, output] = [path.join(dir, 'json-proxy.js'), path.join(dir, 'program.blob')];
  await build_program(main);
  const config = path.join(dir, 'sea.json');
  const options = { main, output, disableExperimentalSEAWarning: true };
  write_file(config, JSON.stringify(options));
  run(process.execPath, ['--experimental-sea-config', config], { stdio: 'pipe' });
  return read_file(output);
}

/**
 * Monta o executável com o Node que roda este script.
 * @param outfile caminho do arquivo a escrever
 * @returns o tamanho em bytes
 * @throws Error se este Node não serve
 */
export async function build_binary(outfile: string): Promise<number> {
  const binary = embed_program(read_file(process.execPath), await prepare_program());
  make_dir(path.dirname(outfile), { recursive: true });
  remove(outfile, { force: true }); // um executável que está rodando não se sobrescreve
  write_file(outfile, binary, { mode: 0o755 });
  return binary.length;
}

/**
 * Monta o executável e diz o tamanho.
 * @returns o código de saída
 */
async function main(): Promise<number> {
  const { values } = parse_args({ options: { out: { type: 'string' } } });
  const outfile = path.resolve(values.out ?? default_binary);
  try {
    const megabytes = Math.round((await build_binary(outfile)) / 1e6);
    console.log(`${outfile}: ${megabytes} MB; rode com: ${outfile} --help`);
    return 0;
  } catch (error) {
    console.error(`o binário não foi montado: ${(error as Error).message}`);
    return 1;
  } finally {
    await stop_all();
  }
}

if (require.main === module) {
  void main().then((code) => {
    process.exitCode = code;
  });
}
