/*
 * Peças que a demonstração, o modo de desenvolvimento e os testes compartilham: um redis-server só
 * deles, numa porta livre, e programas filhos cuja saída se pode esperar. Tudo o que sobe aqui
 * desce em stop_all, na ordem inversa.
 */

import { type ChildProcess as child_process, spawn } from 'node:child_process';
import { mkdtempSync as make_temp_dir, rmSync as remove } from 'node:fs';
import net from 'node:net';
import { tmpdir as temp_root } from 'node:os';
import path from 'node:path';
import { settings_table } from '../../json-proxy';

/** Prazo para um programa ficar pronto, folgado para máquinas carregadas. */
const ready_limit_ms = 20_000;

/** Prazo para um programa sair depois do sinal, antes do SIGKILL. */
const exit_limit_ms = 15_000;

/** Tentativas de subir o Redis: entre escolher a porta livre e usá-la, outro pode tomá-la. */
const redis_attempts = 5;

/** Código de saída de um Ctrl-C. */
const interrupt_exit_code = 130;

const stop_actions: (() => Promise<unknown>)[] = [];

/** Um programa filho, com a saída acumulada. */
export type local_program = {
  process: child_process;
  stdout: () => string;
  stderr: () => string;
  wait_for: (pattern: RegExp, ms?: number) => Promise<RegExpExecArray>;
  exited: Promise<number>;
  stop: (signal?: NodeJS.Signals) => Promise<number>;
};

/** Um redis-server próprio. `server` tem a forma de REDIS_SERVER, no banco 1. */
export type local_redis = local_program & { port: number; dir: string; server: string };

/**
 * Espera um prazo.
 * @param ms milissegundos
 */
export function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/**
 * Espera uma condição, conferindo-a de poucos em poucos milissegundos.
 * @param what o que se espera, para a mensagem de erro
 * @param condition devolve algo verdadeiro quando acontece
 * @param ms prazo
 * @returns o que a condição devolveu
 * @throws Error se o prazo se esgotar
 */
export async function until<result>(
  what: string,
  condition: () => result | Promise<result>,
  ms = 10_000,
): Promise<NonNullable<result>> {
  const deadline = performance.now() + ms;
  for (;;) {
    const found = await condition();
    if (found) return found as NonNullable<result>;
    if (performance.now() > deadline) throw new Error(`não aconteceu em ${ms} ms: ${what}`);
    await delay(5);
  }
}

/**
 * Acha uma porta TCP livre em 127.0.0.1.
 * @returns o número da porta
 */
export function free_port(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = net.createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as net.AddressInfo;
      server.close(() => resolve(port));
    });
  });
}

/**
 * Guarda o que deve ser desfeito por stop_all.
 * @param action desfaz algo; não deve lançar
 */
export function on_stop(action: () => Promise<unknown>): void {
  stop_actions.push(action);
}

/**
 * Desfaz tudo o que subiu, do último ao primeiro.
 */
export async function stop_all(): Promise<void> {
  for (let action = stop_actions.pop(); action; action = stop_actions.pop()) await action();
}

/**
 * Tira do ambiente as configurações do proxy: o que sobe daqui em diante é como o padrão, e não
 * como o proxy que o usuário já tenha configurado nesta máquina.
 */
export function forget_settings(): void {
  for (const { name } of settings_table) delete process.env[name];
}

/**
 * Roda um programa até o fim, ou até um Ctrl-C, e sai depois de desfazer tudo o que ele subiu.
 * @param main o programa; devolve o código de saída
 */
export function run_to_exit(main: () => Promise<number>): void {
  const leave = async (code: number) => {
    await stop_all();
    process.exit(code);
  };
  process.once('uncaughtException', (error) => {
    console.error(error);
    void leave(1);
  });
  for (const signal of ['SIGINT', 'SIGTERM']) {
    process.once(signal, () => leave(interrupt_exit_code));
  }
  void main().then(leave);
}

/**
 * Cria um diretório temporário que stop_all remove.
 * @returns o caminho
 */
export function temp_dir(): string {
  const dir = make_temp_dir(path.join(temp_root(), 'json-proxy-'));
  on_stop(async () => remove(dir, { recursive: true, force: true }));
  return dir;
}

/**
 * Sobe um programa filho.
 * @param command o executável
 * @param args argumentos
 * @param env variáveis de ambiente a mais; undefined retira a variável
 * @param cwd diretório de trabalho
 * @param detached fora do grupo do terminal, para que um Ctrl-C não chegue a ele
 * @returns o programa; ele desce em stop_all
 */
export function start_program(
  command: string,
  args: string[],
  env: NodeJS.ProcessEnv = {},
  cwd = process.cwd(),
  detached = false,
): local_program {
  const child = spawn(command, args, {
    cwd,
    detached,
    // JOURNAL_STREAM herdada descreve a saída de outro processo
    env: { ...process.env, JOURNAL_STREAM: undefined, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const output = { stdout: '', stderr: '' };
  child.stdout.setEncoding('utf8').on('data', (text) => {
    output.stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text) => {
    output.stderr += text;
  });
  const exited = new Promise<number>((resolve) => {
    child.once('error', (error) => {
      output.stderr += `${error.message}\n`;
      resolve(127);
    });
    child.once('close', (code, signal) => resolve(code ?? (signal ? 128 : 1)));
  });
  const program: local_program = {
    process: child,
    stdout: () => output.stdout,
    stderr: () => output.stderr,
    exited,
    wait_for: (pattern, ms = ready_limit_ms) =>
      until(`${pattern} na saída de ${command}`, () => find_output(pattern, child, output), ms),
    stop: (signal = 'SIGTERM') => stop_program(child, exited, signal),
  };
  on_stop(() => program.stop());
  return program;
}

/**
 * Procura um padrão na saída de um programa.
 * @param pattern o que se procura
 * @param child o processo
 * @param output o que já saiu
 * @returns o achado, ou null
 * @throws Error se o programa saiu sem escrever o que se procura
 */
function find_output(
  pattern: RegExp,
  child: child_process,
  output: { stdout: string; stderr: string },
): RegExpExecArray | null {
  const found = pattern.exec(output.stdout) ?? pattern.exec(output.stderr);
  if (found || child.exitCode === null) return found;
  throw new Error(`saiu com ${child.exitCode} sem ${pattern}:\n${output.stdout}${output.stderr}`);
}

/**
 * Para um programa, com SIGKILL se ele não obedecer.
 * @param child o processo
 * @param exited a saída dele
 * @param signal o primeiro sinal
 * @returns o código de saída; 128 se morreu por sinal
 */
async function stop_program(
  child: child_process,
  exited: Promise<number>,
  signal: NodeJS.Signals,
): Promise<number> {
  if (child.exitCode === null && child.signalCode === null) child.kill(signal);
  const timer = setTimeout(() => child.kill('SIGKILL'), exit_limit_ms);
  try {
    return await exited;
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Sobe um redis-server vazio, sem persistência, numa porta livre de 127.0.0.1.
 * @param args opções a mais, na forma do redis-server: ['--requirepass', 'x']
 * @param where porta e diretório de um que já existiu, para subi-lo de novo; e se fica fora do
 *   grupo do terminal
 * @returns o servidor, já aceitando conexões
 */
export async function start_redis(
  args: string[] = [],
  where: { port?: number; dir?: string; detached?: boolean } = {},
): Promise<local_redis> {
  const dir = where.dir ?? temp_dir();
  for (let attempt = 1; ; attempt += 1) {
    const port = where.port ?? (await free_port());
    const basics = ['--port', String(port), '--bind', '127.0.0.1', '--dir', dir, '--save', ''];
    const options = [...basics, '--daemonize', 'no', ...args];
    const program = start_program('redis-server', options, {}, dir, where.detached);
    try {
      await program.wait_for(/Ready to accept connections/);
      return { ...program, port, dir, server: `127.0.0.1:${port}/1` };
    } catch (error) {
      if (attempt >= redis_attempts) throw error;
    }
  }
}
