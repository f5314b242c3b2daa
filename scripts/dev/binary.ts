/*
 * Monta bin/json-proxy: o programa e o Node num executável só (single executable application).
 *
 *   npm run build:binary
 *   npm run build:binary -- --out caminho/json-proxy
 */

import { execFileSync as run, spawnSync as try_run } from 'node:child_process';
import {
  chmodSync as change_mode,
  copyFileSync as copy_file,
  statSync as file_stats,
  mkdirSync as make_dir,
  renameSync as rename,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import { parseArgs as parse_args } from 'node:util';
import { build_program } from './build';
import { stop_all, temp_dir } from './local';

const default_binary = path.join(__dirname, '..', '..', 'bin', 'json-proxy');

/** O que o Node troca em si mesmo para saber que leva um programa, e o nome com que o procura. */
const fuse = 'NODE_SEA_FUSE_fce680ab2cc467b6e072b8b5df1996b2';
const resource = 'NODE_SEA_BLOB';

/** O comando é o que o manual do Node indica; os avisos dele só interessam se ele falha. */
const postject = require.resolve('postject/dist/cli.js');

/**
 * Monta o executável.
 * @param outfile caminho do arquivo a escrever
 * @param node o Node que vai dentro: um de nodejs.org, do 20 em diante
 * @param bundle monta o programa num arquivo; sem isto, o proxy
 * @throws Error se este Node não serve
 */
export async function build_binary(
  outfile: string,
  node = process.execPath,
  bundle = build_program,
): Promise<number> {
  const dir = temp_dir();
  const [main, output] = [path.join(dir, 'program.js'), path.join(dir, 'program.blob')];
  await bundle(main);
  const [config, binary] = [path.join(dir, 'sea.json'), path.join(dir, 'program')];
  write_file(config, JSON.stringify({ main, output, disableExperimentalSEAWarning: true }));
  run(process.execPath, ['--experimental-sea-config', config], { stdio: 'pipe' });
  copy_file(node, binary);
  change_mode(binary, 0o755);
  const injection = [postject, binary, resource, output, '--sentinel-fuse', fuse];
  const { status, stdout } = try_run(process.execPath, injection, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`este Node não serve, use um de nodejs.org: ${stdout.trim()}`);
  make_dir(path.dirname(outfile), { recursive: true });
  copy_file(binary, `${outfile}.new`);
  rename(`${outfile}.new`, outfile); // um executável que está rodando não se sobrescreve
  return file_stats(outfile).size;
}

/** Monta o executável, diz o tamanho e devolve o código de saída. */
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
