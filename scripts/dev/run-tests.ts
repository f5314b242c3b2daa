/*
 * Roda os arquivos *.test.ts de uma pasta com o executor do Node, tantos ao mesmo tempo quantos os
 * núcleos comportam. O programa e os testes são montados uma vez só, de modo que nenhum processo
 * traduza TypeScript; com a pasta test inteira, os tipos e o estilo são conferidos ao lado.
 *
 *   tsx scripts/dev/run-tests.ts test            os testes do programa
 *   tsx scripts/dev/run-tests.ts test http tls   só os arquivos com "http" ou "tls" no nome
 */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  readdirSync as list_dir,
  mkdirSync as make_dir,
  readFileSync as read_file,
  rmSync as remove,
} from 'node:fs';
import { availableParallelism as available_parallelism } from 'node:os';
import path from 'node:path';
import { build, type Plugin } from 'esbuild';
import { build_program, code_cache_variable, program_variable } from './build';
import { forget_settings, run_scope, start_program, start_redis } from './local';
import { each_test_variable, fit } from './test-reporter';

const root = path.join(__dirname, '..', '..');

/** Um arquivo quase só espera: com um além dos núcleos nenhum núcleo fica parado. */
const files_at_once = available_parallelism() + 1;

/** Com até tantos arquivos, o relator escreve uma linha por teste. */
const few_files = 3;

/** Onde fica o que se monta: dentro do projeto, para que `require` ache os pacotes. */
const workshop = path.join(root, 'node_modules', '.cache', 'json-proxy', String(process.pid));

/** Como um processo do Node usa as caches do código. */
const code_cache = path.join(workshop, 'code-cache.js');
const with_cache = ['--require', code_cache];

/** O que é conferido ao lado dos testes: nome e comando. */
const checks = [
  ['tipos', 'tsc', []],
  ['linter', 'biome', ['check', '--error-on-warnings', '.']],
] as const;

/** Os que mais demoram começam primeiro, para que nenhum fique sozinho no fim. */
const slow_first = ['http_timeout', 'faults', 'workers', 'stream', 'worker_kit', 'endings'];

/** Faz cada fonte, num arquivo montado, saber onde estava, e que não é o programa principal. */
const as_before: Plugin = {
  name: 'as_before',
  setup(builder) {
    builder.onLoad({ filter: /\.ts$/ }, ({ path: file }) => {
      if (file.includes('node_modules')) return undefined;
      const place = `const __dirname = ${JSON.stringify(path.dirname(file))};`;
      const source = read_file(file, 'utf8').replace(/^#!.*/, '');
      const code = source.replaceAll('require.main === module', 'false');
      return { contents: `${source.includes('__dirname') ? place : ''}${code}`, loader: 'ts' };
    });
  },
};

/**
 * Monta os testes e o relator em JavaScript, cada um num arquivo só, ao lado do cliente do Redis.
 * @param files os testes
 * @returns os arquivos montados, na ordem em que devem começar
 */
async function build_tests(files: string[]): Promise<string[]> {
  const rank = (file: string) => {
    const at = slow_first.indexOf(path.basename(file, '.test.ts'));
    return at < 0 ? slow_first.length : at;
  };
  const sorted = files.toSorted((a, b) => rank(a) - rank(b));
  const named = sorted.map((file, index) => {
    const order = String(index).padStart(2, '0');
    return { in: file, out: `${order}-${path.basename(file, '.ts')}` };
  });
  const common = {
    bundle: true,
    platform: 'node',
    format: 'cjs',
    target: 'node20',
    outdir: workshop,
    logLevel: 'warning',
  } as const;
  await Promise.all([
    build({ ...common, entryPoints: [{ in: '@redis/client', out: 'redis' }] }),
    build({ ...common, entryPoints: [path.join(__dirname, 'code-cache.ts')] }),
    build({
      ...common,
      entryPoints: [path.join(__dirname, 'test-reporter.ts')],
      format: 'esm',
      outExtension: { '.js': '.mjs' },
    }),
    build({
      ...common,
      entryPoints: named,
      alias: { redis: './redis.js' },
      external: ['./redis.js', 'esbuild'],
      plugins: [as_before],
      sourcemap: true,
      sourcesContent: false,
    }),
  ]);
  return named.map(({ out }) => path.join(workshop, `${out}.js`));
}

/** Com ela no ambiente, um processo grava a cache do código que rodou. */
const recording = { JSON_PROXY_RECORD: '1' };

/** Grava a cache do cliente do Redis montado em `file`. */
async function record_client(file: string): Promise<void> {
  await start_program(process.execPath, [...with_cache, file], recording).exited;
}

/** Grava a cache do programa montado em `file`: o V8 só guarda as funções que já rodaram. */
async function record_program(file: string): Promise<void> {
  await run_scope(async () => {
    const { server } = await start_redis();
    const args = [...with_cache, file, '-p', '0', '-R', server, '-t', '1'];
    const program = start_program(process.execPath, args, recording);
    const [, url = ''] = await program.wait_for(/ listen url=(\S+)/);
    await (await fetch(url)).text();
    await program.stop();
  });
}

/**
 * Roda um comando do node_modules, calado se dá certo.
 * @param name o que ele confere
 * @param command o comando
 * @param args argumentos
 * @returns o código de saída
 */
async function check(name: string, command: string, args: readonly string[]): Promise<number> {
  const file = path.join(root, 'node_modules', '.bin', command);
  const child = spawn(file, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
  const chunks: Buffer[] = [];
  for (const output of [child.stdout, child.stderr]) output.on('data', (part) => chunks.push(part));
  const [code] = await once(child, 'close');
  if (code === 0) console.log(`✔ ${name}`);
  else console.log(`✖ ${name}\n${fit(Buffer.concat(chunks).toString())}`);
  return code ?? 1;
}

/**
 * Roda os testes já montados.
 * @param files os arquivos montados
 * @param program o programa montado
 * @returns o código de saída
 */
async function run_built(files: string[], program: string): Promise<number> {
  const each = files.length <= few_files ? { [each_test_variable]: '1' } : {};
  const built = { [program_variable]: program, [code_cache_variable]: code_cache };
  const env = { ...process.env, ...each, ...built };
  const reporter = path.join(workshop, 'test-reporter.mjs');
  const options = [...with_cache, '--test', `--test-concurrency=${files_at_once}`];
  const args = [...options, `--test-reporter=${reporter}`, ...files];
  const [code] = await once(spawn(process.execPath, args, { stdio: 'inherit', env }), 'close');
  return code ?? 1;
}

/**
 * Monta o programa e os testes, e roda tudo.
 * @param argv a pasta, e o que os nomes dos arquivos devem conter
 * @returns o código de saída
 */
async function main([folder = 'test', ...filters]: string[]): Promise<number> {
  const is_wanted = (name: string) =>
    filters.length === 0 || filters.some((filter) => name.includes(filter));
  const files = list_dir(folder)
    .filter((name) => name.endsWith('.test.ts') && is_wanted(name))
    .map((name) => path.join(folder, name));
  if (files.length === 0) {
    console.error(`nenhum teste em ${folder} com "${filters.join('" ou "')}" no nome`);
    return 1;
  }
  const is_whole = folder === 'test' && filters.length === 0;
  const checking = is_whole
    ? checks.map(([name, command, args]) => check(name, command, args))
    : [];
  make_dir(workshop, { recursive: true });
  const program = path.join(workshop, 'program', 'json-proxy.js');
  const [built] = await Promise.all([build_tests(files), build_program(program)]);
  await Promise.all([record_program(program), record_client(path.join(workshop, 'redis.js'))]);
  const codes = await Promise.all([run_built(built, program), ...checking]);
  return codes.find((code) => code !== 0) ?? 0;
}

forget_settings();
void main(process.argv.slice(2))
  .finally(() => remove(workshop, { recursive: true, force: true }))
  .then((code) => process.exit(code));
