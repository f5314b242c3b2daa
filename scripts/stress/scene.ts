/*
 * A cena: o Redis, o intermediário, o proxy e as sondas, todos de verdade, cada um podendo cair e
 * voltar na mesma porta.
 */

import { rmSync as remove } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { built_program } from '../dev/build';
import {
  delay,
  type local_program,
  type local_redis,
  on_stop,
  start_program,
  start_redis,
  temp_dir,
} from '../dev/local';
import { probe_env } from '../dev/probe';
import { fail, type ledger } from './ledger';
import type { stress_options } from './options';
import { roll } from './random';
import { connect, type redis_client, task_stream } from './redis';
import { type relay, start_relay } from './relay';

/** A cena. `redis` e `proxy` são os de agora; `departures`, as saídas que ainda se esperam. */
export type scene = {
  book: ledger;
  redis: local_redis;
  relay: relay;
  proxy: local_program;
  port: number;
  settings: proxy_settings;
  admin: redis_client;
  departures: Promise<void>[];
  start_proxy: () => Promise<void>;
};

/** O que se pede ao proxy; `args` já na forma da linha de comando. */
export type proxy_settings = { maxtime_ms: number; ttl_s: number; args: string[] };

/** Um Redis que, mesmo morto com SIGKILL, volta com tudo o que confirmou. */
const durable = ['--appendonly', 'yes', '--appendfsync', 'always'];

/**
 * Portas que o Linux não dá a conexões de saída: quem tenta conectar a um servidor caído não acaba,
 * por azar, ligado a si mesmo, nem toma a porta dele.
 */
const steady_ports = { from: 15_000, to: 32_000 };

/** Tentativas de subir algo numa porta que outro pode estar soltando. */
const start_attempts = 20;
const start_retry_ms = 200;

/** O que um proxy são nunca escreve em stderr. */
const unsound_pattern = /^.*(?:\bat \S+ \(|request_error|stream_error|fatal|Warning).*$/m;

/** Prazo para o proxy sair depois de um SIGTERM, além de GRACE. */
const exit_margin_ms = 10_000;

/** GRACE nas provas: alguns fluxos acabam dentro dele, outros não. */
const grace_ms = 800;

/** Dá uma porta livre fora da faixa das conexões de saída. */
async function steady_port(): Promise<number> {
  for (;;) {
    const { from, to } = steady_ports;
    const port = from + Math.floor(Math.random() * (to - from));
    const is_free = await new Promise<boolean>((resolve) => {
      const server = net.createServer();
      server.once('error', () => resolve(false));
      server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
    });
    if (is_free) return port;
  }
}

/** Dá as configurações do proxy: curtas, e algumas sorteadas. */
export function choose_settings(options: stress_options): proxy_settings {
  const dice = roll(options.seed, 'proxy', 0);
  const clamp = (value: number, min: number, max: number) =>
    Math.round(Math.min(Math.max(value, min), max));
  const maxtime_ms = clamp(options.seconds * 100, 1000, 5000);
  const ttl_s = clamp(options.seconds / 4, 2, 15);
  const values: Record<string, string | number> = {
    '-i': 20,
    '-P': dice.pick([0, 0, 1]),
    '-t': maxtime_ms,
    '--ttl': ttl_s,
    '--grace': grace_ms,
    '--heartbeat': dice.pick([0, 300]),
    '--wakeup': options.wakeup ? 'on' : 'off',
    '--replay': options.replay ? ttl_s : 0,
    '--stream': options.stream ? task_stream : '',
  };
  return { maxtime_ms, ttl_s, args: Object.entries(values).flat().map(String) };
}

/** Confere o que um proxy escreveu e o `code` com que saiu; undefined se foi morto. */
function check_departed(book: ledger, proxy: local_program, code?: number): void {
  const [unsound] = unsound_pattern.exec(proxy.stderr()) ?? [];
  if (unsound) fail(book, `o proxy escreveu: ${unsound}`);
  if (code) fail(book, `o proxy saiu com ${code}`);
}

/** Manda o proxy parar, espera que saia e confere que é com 0. */
export async function dismiss_proxy({ book, proxy }: scene): Promise<void> {
  proxy.process.kill('SIGTERM');
  const limit = delay(grace_ms + exit_margin_ms).then(() => 'não saiu' as const);
  const code = await Promise.race([proxy.exited, limit]);
  if (code === 'não saiu') fail(book, 'o proxy não saiu depois do SIGTERM');
  check_departed(book, proxy, Number(code) || 0);
  await proxy.stop('SIGKILL');
}

/** Mata o proxy com SIGKILL. */
export async function kill_proxy({ book, proxy }: scene): Promise<void> {
  await proxy.stop('SIGKILL');
  check_departed(book, proxy);
}

/** Insiste em subir algo cuja porta outro pode estar soltando; devolve o que subiu. */
async function start_again<result>(start: () => Promise<result>): Promise<result> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await start();
    } catch (error) {
      if (attempt >= start_attempts) throw error;
      await delay(start_retry_ms);
    }
  }
}

/**
 * Para o Redis e, `down_ms` milissegundos depois, o sobe na mesma porta, com os dados se
 * `keeps_data`.
 */
export async function restart_redis(
  scene: scene,
  signal: NodeJS.Signals,
  down_ms: number,
  keeps_data: boolean,
): Promise<void> {
  const { port, dir } = scene.redis;
  await scene.redis.stop(signal);
  if (!keeps_data) remove(path.join(dir, 'appendonlydir'), { recursive: true, force: true });
  await delay(down_ms);
  scene.redis = await start_again(() => start_redis(durable, { port, dir }));
}

/** Monta a cena e espera que o proxy atenda. */
export async function set_scene(
  options: stress_options,
  settings: proxy_settings,
  book: ledger,
): Promise<scene> {
  const file = await built_program(options.program);
  const [env, port, redis_port] = [await probe_env(), await steady_port(), await steady_port()];
  const dir = temp_dir();
  const redis = await start_redis(durable, { port: redis_port, dir });
  const relay = await start_relay(redis.port);
  const where = ['-p', String(port), '--host', '127.0.0.1', '-R', relay.server];
  const start = async () => {
    const proxy = start_program(process.execPath, [file, ...where, ...settings.args], env, dir);
    await proxy.wait_for(/ listen url=\S+\n/);
    return proxy;
  };
  const scene: scene = {
    book,
    redis,
    relay,
    proxy: await start(),
    port,
    settings,
    admin: await connect(redis.port),
    departures: [],
    start_proxy: async () => {
      scene.proxy = await start_again(start);
    },
  };
  on_stop(async () => void scene.redis.process.kill('SIGCONT')); // congelado, não obedeceria
  return scene;
}
