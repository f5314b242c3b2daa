/*
 * Roda os arquivos *.test.ts de uma pasta com o executor do Node, alguns ao mesmo tempo.
 *
 *   tsx scripts/dev/run-tests.ts test            os testes do programa
 *   tsx scripts/dev/run-tests.ts test http       só os arquivos cujo nome contém "http"
 */

import { spawnSync as run } from 'node:child_process';
import { readdirSync as list_dir } from 'node:fs';
import path from 'node:path';
import { build_program, program_variable } from './build';
import { forget_settings, stop_all, temp_dir } from './local';

/** Quase todos os testes esperam por rede e relógio: mais arquivos que núcleos encurta a espera. */
const files_at_once = 4;

const [folder = 'test', filter = ''] = process.argv.slice(2);
const files = list_dir(folder)
  .filter((name) => name.endsWith('.test.ts') && name.includes(filter))
  .map((name) => path.join(folder, name));

if (files.length === 0) {
  console.error(`nenhum teste em ${folder} com "${filter}" no nome`);
  process.exit(1);
}

/**
 * Monta o programa uma vez para todos os arquivos, e os roda.
 * @returns o código de saída
 */
async function run_all(): Promise<number> {
  const program = path.join(temp_dir(), 'json-proxy.js');
  await build_program(program);
  const options = ['--import', 'tsx', '--test', `--test-concurrency=${files_at_once}`];
  const reporter = ['--test-reporter', 'spec'];
  const env = { ...process.env, [program_variable]: program };
  const args = [...options, ...reporter, ...files];
  const { status } = run(process.execPath, args, { stdio: 'inherit', env });
  await stop_all();
  return status ?? 1;
}

forget_settings();
void run_all().then((code) => process.exit(code));
