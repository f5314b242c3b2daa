/*
 * O que os testes dos sistemas dividem: um sistema atrás do proxy, um PostgreSQL de verdade, e um
 * intermediário que segura o que um sistema manda.
 */

import assert from 'node:assert/strict';
import { execFileSync as run } from 'node:child_process';
import { readdirSync as list_dir } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { on_stop } from '../../scripts/dev/local';
import {
  exit_of,
  fetch_all,
  free_port,
  type http_options,
  type http_reply,
  type local_program,
  type local_redis,
  type proxy,
  start_program,
  temp_dir,
  until,
} from '../harness';

/** Prazo para um sistema ficar pronto, ou uma resposta vir: só para que um teste não pare. */
export const long_patience_ms = 120_000;

/** Um PostgreSQL próprio. `sql` roda um comando e dá a saída; `psql` são os argumentos dele. */
export type postgres = local_program & {
  port: number;
  dir: string;
  psql: string[];
  sql: (text: string) => string;
};

/**
 * Sobe uma cópia de um sistema.
 * @param name pasta do sistema
 * @param redis o Redis do proxy
 * @param env variáveis de ambiente a mais
 * @returns o programa, que pode não estar pronto
 */
export function spawn_system(
  name: string,
  redis: Pick<local_redis, 'server'>,
  env: NodeJS.ProcessEnv = {},
): local_program {
  const file = path.resolve('scripts/backends', name, 'main.ts');
  const where = { REDIS_SERVER: redis.server, ...env };
  return start_program(process.execPath, ['--import', 'tsx', file], where);
}

/**
 * Sobe uma cópia de um sistema e espera que ouça.
 * @param name pasta do sistema
 * @param redis o Redis do proxy
 * @param env variáveis de ambiente a mais
 * @returns o programa
 */
export async function start_system(
  name: string,
  redis: Pick<local_redis, 'server'>,
  env: NodeJS.ProcessEnv = {},
): Promise<local_program> {
  const program = spawn_system(name, redis, env);
  await program.wait_for(/ouvindo/, long_patience_ms);
  return program;
}

/**
 * Roda um programa de um sistema até o fim.
 * @param file o programa, a partir de scripts/backends
 * @param args argumentos
 * @param env variáveis de ambiente a mais
 * @returns o código de saída e o que ele escreveu
 */
export async function run_backend(file: string, args: string[], env: NodeJS.ProcessEnv = {}) {
  const full_path = path.resolve('scripts/backends', file);
  const cwd = process.cwd();
  const program = start_program(
    process.execPath,
    ['--import', 'tsx', full_path, ...args],
    env,
    cwd,
  );
  const code = await exit_of(program, long_patience_ms);
  return { code, output: program.stdout() + program.stderr() };
}

/**
 * Faz um pedido com corpo e resposta em JSON.
 * @param proxy o proxy
 * @param target método e caminho: "POST /tasks"
 * @param body o corpo; um texto vai como está
 * @param options cabeçalhos, e o certificado em que se confia
 * @returns o status, os cabeçalhos e o valor da resposta; o texto, se não é JSON
 */
export async function ask(
  proxy: Pick<proxy, 'port' | 'host'>,
  target: string,
  body?: unknown,
  options: Pick<http_options, 'headers' | 'ca'> = {},
) {
  const [method = '', route = ''] = target.split(' ');
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  const headers = { 'Content-Type': 'application/json', ...options.headers };
  const given = text === undefined ? options : { ...options, headers, body: text };
  const reply = await fetch_all(proxy, { method, path: route, ...given });
  const is_json = /json/.test(reply.headers['content-type'] ?? '') && !/\n./.test(reply.body);
  return { ...reply, value: is_json ? JSON.parse(reply.body) : reply.body };
}

/**
 * Espera o fim de um pedido cujo sistema morreu, que o cliente deve perceber: a conexão cortada, um
 * status de erro ou, se os cabeçalhos já tinham saído, a linha de MAXTIME.
 * @param asked o pedido
 */
export async function sees_failure(asked: Promise<http_reply>): Promise<void> {
  const reply = await asked.catch((error: Error) => error);
  if (reply instanceof Error || reply.status >= 500) return;
  assert.equal(reply.body, '{"error": "timeout"}\n');
}

/**
 * Acha um programa do PostgreSQL, que no Debian não fica no PATH.
 * @param name o nome
 * @returns o caminho; só o nome se não está na pasta do Debian
 */
function postgres_program(name: string): string {
  const root = '/usr/lib/postgresql';
  const [version] = run('sh', ['-c', `ls ${root} 2>/dev/null || true`], { encoding: 'utf8' })
    .split('\n')
    .filter(Boolean)
    .sort((a, b) => Number(b) - Number(a));
  return version && list_dir(`${root}/${version}/bin`).includes(name)
    ? `${root}/${version}/bin/${name}`
    : name;
}

/**
 * Sobe um PostgreSQL numa porta livre; ele não roda como root.
 * @param where porta e pasta de um que já existiu, para subi-lo de novo; sem isto, um vazio
 * @returns o servidor, já aceitando conexões
 */
export async function start_postgres(where?: Pick<postgres, 'port' | 'dir'>): Promise<postgres> {
  const { dir, port } = where ?? { dir: temp_dir(), port: await free_port() };
  const is_root = process.getuid?.() === 0;
  const as_user = is_root
    ? ['setpriv', '--reuid=postgres', '--regid=postgres', '--init-groups']
    : [];
  const data = path.join(dir, 'data');
  if (!where) {
    if (is_root) run('chown', ['postgres', dir]);
    const basics = ['-D', data, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--no-sync'];
    const [init = '', ...init_args] = [...as_user, postgres_program('initdb'), ...basics];
    run(init, init_args, { stdio: 'pipe', cwd: dir });
  }
  const options = ['-D', data, '-p', String(port), '-k', dir, '-c', 'listen_addresses=127.0.0.1'];
  const server = [...as_user, postgres_program('postgres'), ...options, '-c', 'fsync=off'];
  const [command = '', ...args] = server;
  const program = start_program(command, args, { LC_ALL: 'C' }, dir);
  await program.wait_for(/ready to accept connections/, long_patience_ms);
  const place = ['-h', '127.0.0.1', '-p', String(port), '-U', 'postgres', '-d', 'postgres'];
  const psql = [...place, '-X', '-A', '-t', '-q', '-v', 'ON_ERROR_STOP=1'];
  const sql = (text: string) => run('psql', [...psql, '-c', text], { encoding: 'utf8' }).trim();
  return { ...program, port, dir, psql, sql };
}

/**
 * Toma uma linha de uma tabela, como outro cliente que a mudasse: quem a quiser mudar espera.
 * @param postgres o servidor
 * @param row o que se toma: "tasks WHERE id = 1"
 * @returns solta a linha
 */
export async function hold_row({ psql, sql }: postgres, row: string): Promise<() => void> {
  const name = `holder_${Math.random().toString(36).slice(2)}`;
  const steps = ['BEGIN', `SELECT 1 FROM ${row} FOR UPDATE`, 'SELECT pg_sleep(600)'];
  start_program('psql', [...psql, ...steps.flatMap((step) => ['-c', step])], { PGAPPNAME: name });
  const holders = `pg_stat_activity WHERE application_name = '${name}'`;
  const is_held = `SELECT count(*) FROM ${holders} AND query LIKE '%pg_sleep%'`;
  await until('a linha tomada', () => sql(is_held) === '1', long_patience_ms);
  return () => sql(`SELECT pg_terminate_backend(pid) FROM ${holders}`);
}

/**
 * Espera que um comando esteja parado à espera de uma linha tomada.
 * @param postgres o servidor
 */
export async function sees_waiter({ sql }: postgres): Promise<void> {
  const waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
  await until('um comando à espera', () => sql(waiting) === '1', long_patience_ms);
}

/**
 * Põe um intermediário diante de um Redis, que deixa de passar o que o sistema manda a partir de
 * onde aparece um texto: o sistema fica no meio de um pedido.
 * @param redis o Redis
 * @returns `server`: onde o sistema o alcança; `hold`: o texto a esperar; `held`: espera por ele;
 *   `release`: passa o que ficou, e tudo o que vier
 */
export async function start_relay(redis: Pick<local_redis, 'port'>) {
  let marker = '';
  let waiting: (() => void)[] = [];
  const server = net.createServer((near) => {
    const far = net.connect(redis.port, '127.0.0.1');
    far.pipe(near);
    near.on('data', (chunk) => {
      const is_held = marker !== '' && chunk.includes(marker);
      if (is_held) waiting.push(() => far.write(chunk));
      else far.write(chunk);
    });
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      one.on('error', () => {}).once('close', () => other.destroy());
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  on_stop(async () => server.close());
  const { port } = server.address() as net.AddressInfo;
  return {
    server: `127.0.0.1:${port}/1`,
    hold: (text: string) => {
      marker = text;
    },
    held: () => until('o sistema no meio do pedido', () => waiting.length > 0, long_patience_ms),
    release: () => {
      marker = '';
      for (const pass of waiting) pass();
      waiting = [];
    },
  };
}
