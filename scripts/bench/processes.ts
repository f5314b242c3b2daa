/*
 * Os processos de uma prova: como sobem, como se fala com eles, e quanto gastam. Tudo o que sobe
 * aqui desce em stop_running, ao fim de cada prova, e no mais tardar quando o programa sai.
 */

import { type ChildProcess as child_process, fork } from 'node:child_process';
import {
  closeSync as close_file,
  readdirSync as list_dir,
  openSync as open_file,
  readFileSync as read_file,
} from 'node:fs';
import path from 'node:path';
import { build } from 'esbuild';
import { createClient as create_client } from 'redis';
import {
  type local_program,
  type local_redis,
  on_stop,
  start_program,
  start_redis,
  temp_dir,
  until,
} from '../dev/local';

/** Prazo de uma chamada a um papel: folgado, porque só uma falha o esgota. */
const call_limit_ms = 120_000;

/** Prazo para o proxy ou um concorrente ficar pronto. */
const ready_limit_ms = 20_000;

/** Tiques por segundo em /proc/PID/stat; o Linux fixa esse valor para os programas. */
const ticks_per_second = 100;

/** Um processo que faz uma parte de uma prova e obedece ao principal. */
export type role = {
  pid: number;
  call: <result>(name: string, args?: object) => Promise<result>;
};

/** Um servidor medido. `pid` é o do processo principal dele. */
export type server = { pid: number; port: number; program: local_program };

const running: { stop: () => Promise<unknown> }[] = [];

/**
 * Diz se os gastos dos processos podem ser lidos: só no Linux.
 * @returns true se há /proc
 */
export function can_read_processes(): boolean {
  return process.platform === 'linux';
}

/**
 * Para tudo o que subiu desde a última vez, do último ao primeiro, sem esperar por despedidas.
 */
export async function stop_running(): Promise<void> {
  for (let item = running.pop(); item; item = running.pop()) await item.stop();
}

/**
 * Guarda um programa que stop_running deve matar.
 * @param program o programa
 * @param signal como matá-lo
 */
export function keep_running(program: local_program, signal: NodeJS.Signals = 'SIGKILL'): void {
  running.push({ stop: () => program.stop(signal) });
}

/**
 * Monta os papéis, cada um num arquivo só, para que subam depressa e sem nada a mais na memória:
 * nas mesmas condições do programa medido.
 * @returns o diretório onde ficaram
 */
export async function build_roles(): Promise<string> {
  const source = path.join(__dirname, 'roles');
  const outdir = temp_dir();
  await build({
    entryPoints: list_dir(source).map((name) => path.join(source, name)),
    outdir,
    bundle: true,
    platform: 'node',
    format: 'cjs',
    target: 'node20',
    logLevel: 'warning',
  });
  return outdir;
}

/**
 * Sobe um papel.
 * @param roles_dir o diretório dado por build_roles
 * @param name nome do arquivo, sem extensão
 * @returns o papel; uma chamada falha se ele falhar ou morrer
 */
export function start_role(roles_dir: string, name: string): role {
  const child = fork(path.join(roles_dir, `${name}.js`), [], {
    execArgv: [],
    stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
  });
  const waiting = new Map<
    number,
    { resolve: (value: never) => void; reject: (e: Error) => void }
  >();
  let stderr = '';
  let calls = 0;
  let death: Error | undefined;
  child.stderr?.setEncoding('utf8').on('data', (text) => {
    stderr += text;
  });
  child.on('message', (message: { id: number; result: never; error?: string }) => {
    const call = waiting.get(message.id);
    waiting.delete(message.id);
    if (message.error === undefined) call?.resolve(message.result);
    else call?.reject(new Error(`${name}: ${message.error}`));
  });
  child.once('close', (code) => {
    death = new Error(`o processo ${name} saiu com ${code}:\n${stderr}`);
    for (const call of waiting.values()) call.reject(death);
  });
  child.on('error', () => {}); // uma chamada a quem acaba de morrer; o close diz por quê
  running.push({ stop: () => kill_role(child) });
  const call = <result>(method: string, args: object = {}) =>
    new Promise<result>((resolve, reject) => {
      if (death) throw death;
      const id = ++calls;
      const give_up = () => reject(new Error(`${name}.${method}: sem resposta\n${stderr}`));
      const timer = setTimeout(give_up, call_limit_ms);
      const settle =
        <value>(then: (value: value) => void) =>
        (value: value) => {
          clearTimeout(timer);
          then(value);
        };
      waiting.set(id, { resolve: settle(resolve), reject: settle(reject) });
      child.send({ id, name: method, args });
    });
  return { pid: child.pid ?? 0, call };
}

/**
 * Mata um papel e espera que ele saia.
 * @param child o processo
 */
async function kill_role(child: child_process): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const closed = new Promise((resolve) => child.once('close', resolve));
  child.kill('SIGKILL');
  await closed;
}

/**
 * Sobe o Redis de uma prova.
 * @returns o servidor
 */
export async function start_bench_redis(): Promise<local_redis> {
  // sem limite, para que nenhum assinante seja cortado por receber depressa demais
  const redis = await start_redis(['--client-output-buffer-limit', 'pubsub 0 0 0']);
  keep_running(redis);
  return redis;
}

/**
 * Sobe um servidor com a saída num arquivo, como num serviço, e espera que ele diga a porta.
 * @param argv o executável e os argumentos
 * @param ready acha a porta na saída, no primeiro grupo
 * @returns o servidor
 */
export async function start_server(argv: string[], ready: RegExp): Promise<server> {
  const log = path.join(temp_dir(), 'log');
  close_file(open_file(log, 'w'));
  // nada do ambiente de quem roda as provas muda as configurações do programa
  const script = 'log=$1; shift; exec env -i PATH="$PATH" "$@" >"$log" 2>&1';
  const program = start_program('sh', ['-c', script, 'sh', log, ...argv]);
  keep_running(program);
  const port = await until(
    `${ready} na saída de ${argv.join(' ')}`,
    () => {
      const found = ready.exec(read_file(log, 'utf8'));
      if (found) return Number(found[1]);
      if (program.process.exitCode === null) return null;
      throw new Error(`não subiu: ${argv.join(' ')}\n${read_file(log, 'utf8')}`);
    },
    ready_limit_ms,
  );
  return { pid: program.process.pid ?? 0, port, program };
}

/**
 * Sobe o proxy.
 * @param program caminho de json-proxy.js
 * @param redis o Redis dele
 * @param args opções a mais
 * @returns o proxy
 */
export function start_bench_proxy(
  program: string,
  redis: local_redis,
  args: string[] = [],
): Promise<server> {
  const basics = [program, '-p', '0', '--host', '127.0.0.1', '-R', redis.server];
  return start_server([process.execPath, ...basics, ...args], / listen url=\S+:(\d+)\n/);
}

/**
 * Dá um processo e os descendentes dele.
 * @param pid o processo
 * @returns os números, a começar pelo dele
 */
function process_family(pid: number): number[] {
  const children = read_file(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
  return [pid, ...children.split(' ').filter(Boolean).map(Number).flatMap(process_family)];
}

/**
 * Lê o tempo de processador já gasto por um processo, com a maior precisão que houver.
 * @param pid o processo
 * @returns segundos
 */
function process_seconds(pid: number): number {
  try {
    const threads = list_dir(`/proc/${pid}/task`);
    const spent = threads.map((thread) => {
      const [nanoseconds] = read_file(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ');
      return Number(nanoseconds);
    });
    return spent.reduce((sum, count) => sum + count, 0) / 1e9;
  } catch {
    // o nome do programa, entre parênteses, pode ter espaços
    const [, text = ''] = /^.*\) (.*)/.exec(read_file(`/proc/${pid}/stat`, 'utf8')) ?? [];
    const fields = text.split(' ').map(Number);
    return ((fields[11] ?? 0) + (fields[12] ?? 0)) / ticks_per_second;
  }
}

/**
 * Lê o tempo de processador já gasto por um processo e seus descendentes.
 * @param pid o processo
 * @returns segundos; NaN fora do Linux
 */
export function cpu_seconds(pid: number): number {
  if (!can_read_processes()) return Number.NaN;
  return process_family(pid).reduce((sum, member) => sum + process_seconds(member), 0);
}

/**
 * Lê o tempo que a máquina inteira já passou trabalhando.
 * @returns segundos, somados os núcleos
 */
function machine_seconds(): number {
  const [, text = ''] = /^cpu +(.*)/.exec(read_file('/proc/stat', 'utf8')) ?? [];
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = text.split(' ').map(Number);
  return (user + nice + system + irq + softirq) / ticks_per_second;
}

/**
 * Lê o tempo gasto por cada processo, e o que os demais gastaram, em `others`.
 * @param pids processos, por nome
 * @returns segundos por nome
 */
function read_seconds(pids: Record<string, number>): Record<string, number> {
  const spent = Object.entries(pids).map(([name, pid]) => [name, cpu_seconds(pid)] as const);
  if (!can_read_processes()) return Object.fromEntries(spent);
  const ours = spent.reduce((sum, [, seconds]) => sum + seconds, 0);
  return { ...Object.fromEntries(spent), others: machine_seconds() - ours };
}

/**
 * Mede o processador gasto enquanto algo acontece.
 * @param pids processos, por nome
 * @param action o que acontece
 * @returns o que ele devolveu, quanto durou em segundos, e os segundos de cada processo; em
 *   `others`, os de todos os outros da máquina, que deviam estar parados
 */
export async function with_cpu<result>(
  pids: Record<string, number>,
  action: () => Promise<result>,
): Promise<{ result: result; wall_s: number; cpu_s: Record<string, number> }> {
  const before = read_seconds(pids);
  const started_at = performance.now();
  const result = await action();
  const wall_s = (performance.now() - started_at) / 1000;
  const spent = Object.entries(read_seconds(pids));
  const cpu_s = Object.fromEntries(spent.map(([name, s]) => [name, s - (before[name] ?? 0)]));
  return { result, wall_s, cpu_s };
}

/**
 * Reparte o processador gasto.
 * @param cpu_s segundos por processo
 * @param wall_s duração, em segundos
 * @param units quantas linhas ou tarefas
 * @returns por processo, microssegundos por unidade e fração de um núcleo
 */
export function cpu_costs(
  cpu_s: Record<string, number>,
  wall_s: number,
  units: number,
): Record<string, number> {
  const costs = Object.entries(cpu_s).flatMap(([name, spent]) => [
    [`${name}_cpu_us`, (spent * 1e6) / units],
    [`${name}_cpu_share`, spent / wall_s],
  ]);
  return Object.fromEntries(costs);
}

/**
 * Lê a memória de um processo e seus descendentes.
 * @param pid o processo
 * @returns bytes residentes, e bytes proporcionais (NaN onde não se pode lê-los)
 */
export function memory_bytes(pid: number): { rss: number; pss: number } {
  const read = (member: number, file: string, field: string) => {
    try {
      const text = read_file(`/proc/${member}/${file}`, 'utf8');
      return 1024 * Number(new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(text)?.[1]);
    } catch {
      return Number.NaN;
    }
  };
  const family = can_read_processes() ? process_family(pid) : [pid];
  const sum = (file: string, field: string) =>
    family.reduce((total, member) => total + read(member, file, field), 0);
  return { rss: sum('status', 'VmRSS'), pss: sum('smaps_rollup', 'Pss') };
}

/**
 * Pergunta a um Redis quanta memória os dados dele ocupam (used_memory).
 * @param redis o servidor, ou undefined
 * @returns bytes; NaN sem servidor
 */
export async function redis_memory(redis: local_redis | undefined): Promise<number> {
  if (!redis) return Number.NaN;
  const client = create_client({ url: `redis://${redis.server}` });
  await client.on('error', () => {}).connect();
  const info = await client.info('memory');
  await client.close();
  return Number(/^used_memory:(\d+)/m.exec(info)?.[1]);
}

on_stop(stop_running);
