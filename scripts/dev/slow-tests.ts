/*
 * Roda `npm test` onde tudo demora: ao lado de oito laços que ocupam os processadores, com meio
 * núcleo, e com as chamadas ao sistema mais caras. Nada nos testes deve depender da pressa da
 * máquina; isto o prova.
 *
 *   npm run test:slow            cinco vezes ao lado dos laços, e uma de cada um dos outros modos
 *   npm run test:slow -- 1       uma vez ao lado dos laços
 */

import { type ChildProcess as child_process, spawnSync as run, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync as exists,
  mkdirSync as make_dir,
  readFileSync as read_file,
  rmdirSync as remove_dir,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import { on_stop, run_to_exit, temp_dir } from './local';

const busy_loops = 8;
const default_rounds = 5;

/** Um grupo em que os processos têm meio núcleo: meio período de cada um. */
const period_us = 100_000;
const quota_us = period_us / 2;

/** Depois disto uma rodada está travada, e não lenta. */
const round_limit_ms = 40 * 60_000;

/** O que uma rodada mostrou. */
type outcome = { name: string; failures: string; seconds: number; started: number };

/** Como se roda um modo: o que vem antes do npm, e o que preparar. */
type mode = { name: string; launcher: string[]; prepare?: () => void };

/**
 * Faz o arquivo que, carregado em cada processo do Node, conta os que ele inicia.
 * @param dir onde
 * @returns o arquivo a carregar e o da conta, um byte por processo
 */
function make_counter(dir: string) {
  const [hook, tally] = [path.join(dir, 'count.cjs'), path.join(dir, 'tally')];
  const code = `const { appendFileSync } = require('node:fs');
    const children = require('node:child_process');
    const note = (own) => function (...given) {
      appendFileSync(${JSON.stringify(tally)}, '.');
      return own.apply(this, given);
    };
    const { prototype } = children.ChildProcess;
    prototype.spawn = note(prototype.spawn);
    children.spawnSync = note(children.spawnSync);
    children.execFileSync = note(children.execFileSync);\n`;
  write_file(hook, code);
  write_file(tally, '');
  return { hook, tally };
}

/**
 * Faz um grupo de processos com meio núcleo, do cgroup v2 ou do v1, se isto é permitido aqui.
 * @returns o arquivo em que se escreve o número de um processo para o pôr no grupo
 */
function make_half_core(): string | undefined {
  const name = `json-proxy-${process.pid}`;
  const kinds = [
    ['/sys/fs/cgroup', 'cpu.max', `${quota_us} ${period_us}`, 'cgroup.procs'],
    ['/sys/fs/cgroup/cpu', 'cpu.cfs_quota_us', String(quota_us), 'tasks'],
  ] as const;
  for (const [root, file, value, members] of kinds) {
    const dir = path.join(root, name);
    try {
      make_dir(dir);
      on_stop(async () => remove_dir(dir));
      // só num cgroup de verdade o arquivo já está lá: num tmpfs escrever faria um, que nada limita
      write_file(path.join(dir, file), value, { flag: 'r+' });
      return path.join(dir, members);
    } catch {
      // este não serve; o outro talvez
    }
  }
  return undefined;
}

/**
 * Ocupa os processadores até o fim do programa.
 * @returns como os parar
 */
function start_busy_loops(): () => void {
  const loops: child_process[] = [];
  for (let n = 0; n < busy_loops; n += 1) {
    loops.push(spawn(process.execPath, ['-e', 'for (;;);'], { stdio: 'ignore' }));
  }
  const stop = () => {
    for (const loop of loops.splice(0)) loop.kill('SIGKILL');
  };
  on_stop(async () => stop());
  return stop;
}

/**
 * Roda `npm test` uma vez.
 * @param mode o modo
 * @param dir onde guardar o que ele escreve
 * @returns o que mostrou
 */
async function run_round({ name, launcher }: mode, dir: string): Promise<outcome> {
  const { hook, tally } = make_counter(dir);
  const own = process.env.NODE_OPTIONS ?? '';
  const env = { ...process.env, NODE_OPTIONS: `${own} --require ${hook}`.trim() };
  const [command = '', ...rest] = [...launcher, 'npm', 'test'];
  const started_at = performance.now();
  const child = spawn(command, rest, { env, stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  const kill = () => process.kill(-(child.pid ?? 0), 'SIGKILL');
  const timer = setTimeout(kill, round_limit_ms);
  const chunks: Buffer[] = [];
  for (const output of [child.stdout, child.stderr]) output.on('data', (part) => chunks.push(part));
  const [code] = await once(child, 'close');
  clearTimeout(timer);
  const text = Buffer.concat(chunks).toString();
  const counted = /total: \d+ testes(?:, (\d+) falh(?:ou|aram))?/.exec(text);
  if (code !== 0) console.log(text.slice(text.indexOf('\n\n')));
  return {
    name,
    failures: counted ? (counted[1] ?? (code === 0 ? '0' : 'tipos ou estilo')) : 'não terminou',
    seconds: Math.round((performance.now() - started_at) / 1000),
    started: read_file(tally).length,
  };
}

/**
 * Diz os modos que esta máquina permite, e porque faltam os outros.
 * @param rounds quantas vezes ao lado dos laços
 * @param dir pasta temporária
 * @returns os modos
 */
function choose_modes(rounds: number, dir: string): mode[] {
  const modes: mode[] = [{ name: 'máquina quieta', launcher: [] }];
  for (let n = 1; n <= rounds; n += 1) {
    modes.push({ name: `ao lado de ${busy_loops} laços, ${n}ª vez`, launcher: [] });
  }
  const members = make_half_core();
  if (members) {
    const enter = `echo $$ >${members} && exec "$@"`;
    modes.push({ name: 'com meio núcleo', launcher: ['sh', '-c', enter, 'sh'] });
  } else console.log('- sem cgroup em que se possa escrever: meio núcleo não é provado (é root?)');
  const calls = path.join(dir, 'calls');
  const traced = ['strace', '-f', '-c', '-o', calls];
  if (run('strace', ['-V']).status === 0)
    modes.push({ name: 'sob strace -f -c', launcher: traced });
  else console.log('- sem strace: chamadas caras ao sistema não são provadas');
  return modes;
}

/**
 * Roda todos os modos e escreve a tabela.
 * @returns 0 se nada falhou
 */
async function main(): Promise<number> {
  const rounds = Number(process.argv[2] ?? default_rounds);
  if (!Number.isInteger(rounds) || rounds < 0) {
    console.error('npm run test:slow -- N, em que N diz quantas vezes ao lado dos laços');
    return 2;
  }
  const dir = temp_dir();
  const outcomes: outcome[] = [];
  for (const mode of choose_modes(rounds, dir)) {
    const stop = mode.name.includes('laços') ? start_busy_loops() : () => {};
    const outcome = await run_round(mode, dir);
    stop();
    outcomes.push(outcome);
    const { name, failures, seconds, started } = outcome;
    console.log(`${name}: ${failures} falhas, ${seconds} s, ${started} processos iniciados`);
  }
  console.table(outcomes);
  return outcomes.every(({ failures }) => failures === '0') ? 0 : 1;
}

if (!exists('package.json')) process.chdir(path.join(__dirname, '..', '..'));
run_to_exit(main);
