/*
 * Peças que a demonstração, o modo de desenvolvimento e os testes compartilham: um redis-server só
 * deles, numa porta livre, e programas filhos cuja saída se pode esperar. Tudo o que sobe aqui
 * desce em stop_all, na ordem inversa.
 */

import { AsyncLocalStorage as async_storage } from 'node:async_hooks';
import { type ChildProcess as child_process, spawn } from 'node:child_process';
import { randomInt as random_int } from 'node:crypto';
import { mkdtempSync as make_temp_dir, rmSync as remove } from 'node:fs';
import net from 'node:net';
import { tmpdir as temp_root } from 'node:os';
import path from 'node:path';
import { settings_table } from '../../json-proxy';

/** Prazo de uma espera: só uma rede de segurança, que nenhuma máquina lenta deve alcançar. */
export const patience_ms = 60_000;

/** Prazo para um programa sair depois do sinal, antes do SIGKILL. */
const exit_limit_ms = 30_000;

/** Uma condição que consulta alguém (uma promessa) é conferida cada vez mais devagar, até isto. */
const first_poll_ms = 5;
const last_poll_ms = 40;

/** As demais, quando algo acontece (`stir`); e nesta batida, pelo que não avisa. */
const beat_ms = 25;

/** Tentativas de subir o Redis: entre escolher a porta livre e usá-la, outro pode tomá-la. */
const redis_attempts = 5;

/** Código de saída de um Ctrl-C. */
const interrupt_exit_code = 130;

/** O que desfazer, do último ao primeiro. */
type stop_actions = (() => Promise<unknown>)[];

const process_actions: stop_actions = [];

/** O que pertence só a um trecho (um teste), e acaba com ele; e se ele falhou. */
const scopes = new async_storage<{ actions: stop_actions; failed: boolean }>();

/** Quem espera que algo aconteça. */
const waiting = new Set<() => void>();
let is_stirring = false;

/** O que um programa escreveu até agora, e o código com que saiu. */
export type program_output = { stdout: string; stderr: string; exit_code?: number };

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
 * Avisa quem espera em `until` que algo aconteceu: as condições são conferidas logo, uma vez por
 * volta do laço de eventos.
 */
export function stir(): void {
  if (is_stirring) return;
  is_stirring = true;
  setImmediate(() => {
    is_stirring = false;
    for (const wake of waiting) wake();
  });
}

/**
 * Dorme até que algo aconteça, ou até a batida seguinte.
 */
function stirred(): Promise<void> {
  return new Promise((resolve) => {
    const wake = () => {
      waiting.delete(wake);
      clearTimeout(timer);
      resolve();
    };
    const timer = setTimeout(wake, beat_ms);
    waiting.add(wake);
  });
}

/**
 * Espera uma condição. Uma que responde na hora é conferida a cada acontecimento; uma que consulta
 * alguém, de tempos em tempos.
 * @param what o que se espera, para a mensagem de erro; uma função o diz no fim do prazo
 * @param condition devolve algo verdadeiro quando acontece
 * @param ms prazo
 * @returns o que a condição devolveu
 * @throws Error se o prazo se esgotar
 */
export async function until<result>(
  what: string | (() => string),
  condition: () => result | Promise<result>,
  ms = patience_ms,
): Promise<NonNullable<result>> {
  const deadline = performance.now() + ms;
  for (let poll_ms = first_poll_ms; ; poll_ms = Math.min(poll_ms * 1.5, last_poll_ms)) {
    const asked = condition();
    const found = asked instanceof Promise ? await asked : asked;
    if (found) return found as NonNullable<result>;
    if (performance.now() > deadline) {
      const missing = typeof what === 'string' ? what : what();
      throw new Error(`não aconteceu em ${ms} ms: ${missing}`);
    }
    await (asked instanceof Promise ? delay(poll_ms) : stirred());
  }
}

/**
 * Acha uma porta TCP livre em 127.0.0.1, abaixo das que o sistema dá a quem pede qualquer uma (no
 * Linux, de 32768 em diante): entre achá-la e usá-la, ninguém mais a recebe por sorteio.
 * @param first a primeira que serve
 * @param end a primeira que já não serve
 * @returns o número da porta
 */
export function free_port(first = 10_000, end = 32_768): Promise<number> {
  return new Promise((resolve) => {
    const port = random_int(first, end);
    const server = net.createServer();
    server.once('error', () => resolve(free_port(first, end))); // está em uso
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(port)));
  });
}

/**
 * Acha uma porta de 127.0.0.1 em que ninguém escuta nem vai escutar: free_port não a dá.
 * @returns o número da porta
 */
export function closed_port(): Promise<number> {
  return free_port(1_024, 10_000);
}

/**
 * Guarda o que deve ser desfeito no fim do trecho em que se está, ou por stop_all.
 * @param action desfaz algo; não deve lançar
 */
export function on_stop(action: () => Promise<unknown>): void {
  (scopes.getStore()?.actions ?? process_actions).push(action);
}

/**
 * Desfaz o que subiu, do último ao primeiro.
 * @param actions o que desfazer; se não é dado, tudo o que o processo subiu fora de um trecho
 */
export async function stop_all(actions = process_actions): Promise<void> {
  for (let action = actions.pop(); action; action = actions.pop()) await action();
}

/**
 * Roda um trecho, e no fim, bom ou mau, desfaz o que subiu nele.
 * @param part o trecho
 * @returns o que ele devolve
 */
export async function run_scope<result>(part: () => Promise<result>): Promise<result> {
  const scope = { actions: [], failed: true };
  return scopes.run(scope, async () => {
    try {
      const result = await part();
      scope.failed = false;
      return result;
    } finally {
      await stop_all(scope.actions);
    }
  });
}

/**
 * Diz se o trecho que está a ser desfeito acabou mal.
 * @returns true se ele lançou algo
 */
export function has_failed(): boolean {
  return scopes.getStore()?.failed ?? false;
}

/**
 * Faz algo como se fora de qualquer trecho: o que sobe assim dura até stop_all.
 * @param part o que fazer
 * @returns o que ele devolve
 */
export function outside_scope<result>(part: () => result): result {
  return scopes.exit(part);
}

/**
 * Diz se o que subisse agora duraria além do trecho em que se está.
 * @returns true fora de qualquer trecho
 */
export function is_lasting(): boolean {
  return scopes.getStore() === undefined;
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
  const output: program_output = { stdout: '', stderr: '' };
  child.stdout.setEncoding('utf8').on('data', (text) => {
    output.stdout += text;
    stir();
  });
  child.stderr.setEncoding('utf8').on('data', (text) => {
    output.stderr += text;
    stir();
  });
  const exited = new Promise<number>((resolve) => {
    const close = (code: number) => {
      output.exit_code = code;
      resolve(code);
      stir();
    };
    child.once('error', (error) => {
      output.stderr += `${error.message}\n`;
      close(127);
    });
    child.once('close', (code, signal) => close(code ?? (signal ? 128 : 1)));
  });
  const program: local_program = {
    process: child,
    stdout: () => output.stdout,
    stderr: () => output.stderr,
    exited,
    wait_for: (pattern, ms = patience_ms) =>
      until(`${pattern} na saída de ${command}`, () => find_output(pattern, output), ms),
    stop: (signal = 'SIGTERM') => stop_program(child, exited, signal),
  };
  on_stop(() => program.stop());
  return program;
}

/**
 * Procura um padrão na saída de um programa.
 * @param pattern o que se procura
 * @param output o que já saiu
 * @returns o achado, ou null
 * @throws Error se o programa saiu sem escrever o que se procura
 */
export function find_output(pattern: RegExp, output: program_output): RegExpExecArray | null {
  const found = pattern.exec(output.stdout) ?? pattern.exec(output.stderr);
  if (found || output.exit_code === undefined) return found;
  throw new Error(`saiu com ${output.exit_code} sem ${pattern}:\n${output.stdout}${output.stderr}`);
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
