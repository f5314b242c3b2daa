/*
 * As formas de REDIS_SERVER que o manual nomeia: todo kit aceita todas.
 */

import { connect_redis, start_redis, temp_dir } from '../harness';

/** Uma forma: REDIS_SERVER, REDIS_PASSWORD, e onde o worker diz que escuta. */
type server_form = [server: string, secret: string, where: string];

/**
 * Sobe um Redis com senha, num socket e em IPv6 também.
 * @returns `own`: o Redis; `forms`: como se chega a ele
 */
export async function start_locked_redis() {
  const socket = `${temp_dir()}/redis.sock`;
  const secret = 'c@%: x';
  const own = await start_redis(['--requirepass', secret, '--unixsocket', socket]);
  await (await connect_redis(own, 1, secret)).configSet('bind', '127.0.0.1 ::1');
  const { port } = own;
  const password = 'c%40%25%3a%20x';
  const forms: server_form[] = [
    [`127.0.0.1:${port}/1`, secret, `127.0.0.1:${port}/1`],
    [`[::1]:${port}/1`, secret, `[::1]:${port}/1`],
    [`redis://:${password}@[::1]:${port}/2`, '', `[::1]:${port}/2`],
    [`redis://default:${password}@127.0.0.1:${port}`, '', `127.0.0.1:${port}/0`],
    [`redis://default:errada@127.0.0.1:${port}/1`, secret, `127.0.0.1:${port}/1`],
    [`${socket}?db=1`, secret, `unix:${socket}?db=1`],
    [`unix:${socket}`, secret, `unix:${socket}?db=0`],
    [`unix://default:${password}@${socket}?db=3`, '', `unix:${socket}?db=3`],
  ];
  return { own, forms };
}
