/*
 * O proxy e o payload-store num programa só, bin/app_server: este processo sobe os dois, cada um no
 * seu, e para se um deles parar. `npm run build:app_server` o monta; fora do binário ele não sobe.
 */

import { type ChildProcess as child_process, spawn } from 'node:child_process';
import { load_env_file, redis_setting, secret_setting } from '../common/settings';
import { run_system } from '../common/system';
import { main } from './program';

/** Por onde cada processo sabe o que ele é. */
const part_variable = 'APP_SERVER_PART';

/** A porta do sistema, salvo se HTTP_PORT diz outra. */
const default_port = '8890';

/**
 * Sobe uma das partes, com a saída desta.
 * @param part a parte
 * @param env o ambiente
 * @returns o processo, e a espera pela saída dele
 */
function start_part(part: 'proxy' | 'system', env: NodeJS.ProcessEnv) {
  const args = process.execPath === __filename ? [] : [__filename];
  const child = spawn(process.execPath, args, {
    env: { ...env, [part_variable]: part },
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'], // pelo canal a parte sabe que este morreu
    detached: true, // um Ctrl-C chega só a este processo, que para as partes na ordem certa
  });
  const exited = new Promise<void>((resolve) => {
    child.once('exit', resolve).once('error', resolve);
  });
  return { child, exited };
}

/**
 * Para uma parte, se ela ainda roda.
 * @param part o processo e a espera
 */
async function stop_part({ child, exited }: { child: child_process; exited: Promise<void> }) {
  child.kill('SIGTERM');
  await exited;
}

/** Sobe as duas partes; com SIGTERM para primeiro o proxy, que termina o que está em curso. */
async function supervise(): Promise<void> {
  load_env_file();
  secret_setting('API_SECRET_KEY');
  const { redis, secret } = redis_setting();
  const { HTTP_PORT = default_port } = process.env;
  const where = { REDIS_SERVER: redis, REDIS_PASSWORD: secret, REDIS_PASSWORD_FILE: '' };
  const env = { ...process.env, HTTP_PORT, ...where };
  const proxy = start_part('proxy', env);
  const system = start_part('system', env);
  const ordered = new Promise<'ordered'>((resolve) => {
    for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => resolve('ordered'));
  });
  const end = await Promise.race([ordered, proxy.exited, system.exited]);
  await stop_part(proxy);
  await stop_part(system);
  if (end !== 'ordered') process.exitCode = proxy.child.exitCode || system.child.exitCode || 1;
}

const { [part_variable]: part } = process.env;
if (part) process.once('disconnect', () => process.kill(process.pid, 'SIGTERM'));
if (part === 'proxy') require('../../../json-proxy');
else run_system('app_server', part === 'system' ? main : supervise);
