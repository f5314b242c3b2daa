/*
 * Os processos de uma prova: como sobem, como se fala com eles, e quanto gastam. Tudo o que sobe
 * aqui desce em stop_running, ao fim de cada prova, e no mais tardar quando o programa sai.
 */

import { type ChildProcess as child_process, fork, spawnSync as run } from 'node:child_process';
import {
  readdirSync as list_dir,
  readFileSync as read_file,
  writeFileSync as write_file,
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

/** O Redis de uma prova. */
export type bench_redis = local_redis & { pid: number };

/** Processos cujo gasto se mede, por nome: "server", "redis", "worker", "client". */
export type processes = Record<string, { pid: number }>;

const running: { stop: () => Promise<unknown> }[] = [];
let roles_dir = '';

/** Diz se os gastos dos processos podem ser lidos: só no Linux. */
export function can_read_processes(): boolean {
  return process.platform === 'linux';
}

/** Dá o que o comando `command`, com os `args`, escreve; vazio se ele não existe. */
export function command_output(command: string, ...args: string[]): string {
  const { stdout, stderr, error } = run(command, args, { encoding: 'utf8' });
  return error ? '' : `${stdout}${stderr}`.trim();
}

/** Para tudo o que subiu desde a última vez, do último ao primeiro, sem esperar por despedidas. */
export async function stop_running(): Promise<void> {
  for (let item = running.pop(); item; item = running.pop()) await item.stop();
}

/** Guarda um programa que stop_running deve matar. */
export function keep_running(program: local_program, signal: NodeJS.Signals = 'SIGKILL'): void {
  running.push({ stop: () => program.stop(signal) });
}

/**
 * Monta os papéis, cada um num arquivo só, para que subam depressa e sem nada a mais na memória:
 * nas mesmas condições do programa medido.
 */
export async function build_roles(): Promise<void> {
  const source = path.join(__dirname, 'roles');
  roles_dir = temp_dir();
  await build({
    entryPoints: list_dir(source).map((name) => path.join(source, name)),
    outdir: roles_dir,
    bundle: true,
    platform: 'node',
    format: 'cjs',
    target: 'node20',
    logLevel: 'warning',
  });
}

/** Mata um papel e espera que ele saia. */
async function kill_role(child: child_process): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const closed = new Promise((resolve) => child.once('close', resolve));
  child.kill('SIGKILL');
  await closed;
}

/** Sobe o papel `name`, um arquivo de roles/, e o devolve; uma chamada falha se ele morrer. */
export function start_role(name: string): role {
  const child = fork(path.join(roles_dir, `${name}.js`), [], {
    execArgv: [],
    stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
  });
  const waiting = new Map<number, (result: unknown, error?: Error) => void>();
  let stderr = '';
  let calls = 0;
  let death: Error | undefined;
  child.stderr?.setEncoding('utf8').on('data', (text) => {
    stderr += text;
  });
  child.on('message', (message: { id: number; result: unknown; error?: string }) => {
    const { id, result, error } = message;
    waiting.get(id)?.(result, error === undefined ? undefined : new Error(`${name}: ${error}`));
  });
  child.once('close', (code) => {
    death = new Error(`o processo ${name} saiu com ${code}:\n${stderr}`);
    for (const settle of waiting.values()) settle(undefined, death);
  });
  child.on('error', () => {}); // uma chamada a quem acaba de morrer; o close diz por quê
  running.push({ stop: () => kill_role(child) });
  const call = <result>(method: string, args: object = {}) =>
    new Promise<result>((resolve, reject) => {
      if (death) throw death;
      const id = ++calls;
      const give_up = () => reject(new Error(`${name}.${method}: sem resposta\n${stderr}`));
      const timer = setTimeout(give_up, call_limit_ms);
      waiting.set(id, (result, error) => {
        waiting.delete(id);
        clearTimeout(timer);
        if (error) reject(error);
        else resolve(result as result);
      });
      child.send({ id, name: method, args });
    });
  return { pid: child.pid ?? 0, call };
}

/** Sobe o Redis de uma prova, e o devolve. */
export async function start_bench_redis(): Promise<bench_redis> {
  // sem limite, para que nenhum assinante seja cortado por receber depressa demais
  const redis = await start_redis(['--client-output-buffer-limit', 'pubsub 0 0 0']);
  keep_running(redis);
  return { ...redis, pid: redis.process.pid ?? 0 };
}

/** Liga ao Redis um papel que fale com ele. */
export function join_redis(role: role, { port }: bench_redis): Promise<void> {
  return role.call('connect', { port, database: 1, channel: 'ndjson_jobs' });
}

/** Sobe o worker das provas, já ligado ao Redis, e o devolve. */
export async function start_bench_worker(redis: bench_redis): Promise<role> {
  const worker = start_role('worker');
  await join_redis(worker, redis);
  return worker;
}

/**
 * Sobe o proxy diante de um Redis, com a saída num arquivo, como num serviço, e espera que atenda.
 * @param program caminho de json-proxy.js
 * @param args opções a mais
 * @returns o proxy
 */
export async function start_bench_proxy(
  program: string,
  redis: bench_redis,
  args: string[] = [],
): Promise<server> {
  const log = path.join(temp_dir(), 'log');
  write_file(log, '');
  const basics = [program, '-p', '0', '--host', '127.0.0.1', '-R', redis.server];
  // nada do ambiente de quem roda as provas muda as configurações do programa
  const script = 'log=$1; shift; exec env -i PATH="$PATH" "$@" >"$log" 2>&1';
  const argv = ['-c', script, 'sh', log, process.execPath, ...basics, ...args];
  const proxy = start_program('sh', argv);
  keep_running(proxy);
  const port = await until(
    'o proxy dizer a porta',
    () => {
      const text = read_file(log, 'utf8');
      const found = / listen url=\S+:(\d+)\n/.exec(text);
      if (!found && proxy.process.exitCode !== null) throw new Error(`o proxy não subiu\n${text}`);
      return Number(found?.[1]);
    },
    ready_limit_ms,
  );
  return { pid: proxy.process.pid ?? 0, port, program: proxy };
}

/** Dá um processo, pelo `pid`, e os descendentes dele. */
function process_family(pid: number): number[] {
  const children = read_file(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
  return [pid, ...children.split(' ').filter(Boolean).map(Number).flatMap(process_family)];
}

/** Lê os segundos de processador já gastos pelo processo `pid`, com a maior precisão que houver. */
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

/** Lê os segundos que a máquina inteira já passou trabalhando, somados os núcleos. */
function machine_seconds(): number {
  const [, text = ''] = /^cpu +(.*)/.exec(read_file('/proc/stat', 'utf8')) ?? [];
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = text.split(' ').map(Number);
  return (user + nice + system + irq + softirq) / ticks_per_second;
}

/** Lê o tempo gasto por cada processo e os descendentes dele; NaN fora do Linux. */
function read_seconds(processes: processes): Record<string, number> {
  const names = Object.entries(processes);
  if (!can_read_processes()) return Object.fromEntries(names.map(([name]) => [name, Number.NaN]));
  const spent = names.map(([name, { pid }]) => {
    const seconds = process_family(pid).reduce((sum, member) => sum + process_seconds(member), 0);
    return [name, seconds] as const;
  });
  const ours = spent.reduce((sum, [, seconds]) => sum + seconds, 0);
  return { ...Object.fromEntries(spent), others: machine_seconds() - ours };
}

/**
 * Mede o processador gasto enquanto algo acontece.
 * @returns o que ele devolveu, quanto durou em segundos, e os segundos de cada processo; em
 *   `others`, os de todos os outros da máquina, que deviam estar parados
 */
export async function with_cpu<result>(
  processes: processes,
  action: () => Promise<result>,
): Promise<{ result: result; wall_s: number; cpu_s: Record<string, number> }> {
  const before = read_seconds(processes);
  const started_at = performance.now();
  const result = await action();
  const wall_s = (performance.now() - started_at) / 1000;
  const spent = Object.entries(read_seconds(processes));
  const cpu_s = Object.fromEntries(spent.map(([name, s]) => [name, s - (before[name] ?? 0)]));
  return { result, wall_s, cpu_s };
}

/**
 * Mede o processador gasto enquanto algo acontece, e o reparte pelas linhas ou tarefas.
 * @param units diz quantas foram, pelo que a ação devolveu
 * @returns o que ela devolveu e, por processo, microssegundos por unidade e fração de um núcleo
 */
export async function with_costs<result>(
  processes: processes,
  units: (result: result) => number,
  action: () => Promise<result>,
): Promise<{ result: result; costs: Record<string, number> }> {
  const { result, wall_s, cpu_s } = await with_cpu(processes, action);
  const costs = Object.entries(cpu_s).flatMap(([name, spent]) => [
    [`${name}_cpu_us`, (spent * 1e6) / units(result)],
    [`${name}_cpu_share`, spent / wall_s],
  ]);
  return { result, costs: Object.fromEntries(costs) };
}

/**
 * Lê a memória do processo `pid` e de seus descendentes.
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
  const sum = (file: string, field: string) =>
    process_family(pid).reduce((total, member) => total + read(member, file, field), 0);
  return { rss: sum('status', 'VmRSS'), pss: sum('smaps_rollup', 'Pss') };
}

/** Lê quantos bytes os dados de um Redis ocupam (used_memory); NaN sem Redis. */
export async function redis_memory(redis: bench_redis | undefined): Promise<number> {
  if (!redis) return Number.NaN;
  const client = create_client({
    url: `redis://${redis.server}`,
    commandOptions: { timeout: 0 }, // a biblioteca desiste em 5 s
  });
  await client.on('error', () => {}).connect();
  const info = await client.info('memory');
  await client.close();
  return Number(/^used_memory:(\d+)/m.exec(info)?.[1]);
}

on_stop(stop_running);
