/*
 * The connection to Redis, from n8n's own credential.
 */

import { createClient, type RedisClientOptions } from '@redis/client';

/** The credential type, which is n8n's own. */
export const credentialType = 'redis';

/** What it holds. */
export type RedisCredential = {
  host: string;
  port: number;
  database?: number;
  user?: string;
  password?: string;
  ssl?: boolean;
  disableTlsVerification?: boolean;
};

/** A connection. */
export type RedisConnection = ReturnType<typeof createConnection>;

/** How long a connection may say nothing, not even answer a PING, before it is made anew. */
const silence = { pingInterval: 10_000, socketTimeout: 30_000 };

/** Replies that time does not heal: a password, a user or a database that does not exist. */
const refused = /^(WRONGPASS|NOAUTH|NOPERM|ERR (AUTH|invalid|Client sent AUTH|DB index))/;

/** Gives the server and the database of a credential, as "127.0.0.1:6379/1". */
export function placeOf({ host, port, database }: RedisCredential): string {
  return `${host}:${port}/${database ?? 0}`;
}

/** Gives what the Redis client wants to know of a credential. */
function clientOptions(credential: RedisCredential): RedisClientOptions {
  const { host, port, database, user, password, ssl, disableTlsVerification } = credential;
  const place = { host, port, connectTimeout: 10_000, socketTimeout: silence.socketTimeout };
  const secure = { tls: true as const, rejectUnauthorized: !disableTlsVerification };
  return {
    ...(database !== undefined && { database }),
    ...(user && { username: user }),
    ...(password && { password }),
    pingInterval: silence.pingInterval,
    socket: ssl ? { ...place, ...secure } : place,
  };
}

/**
 * Makes a connection that comes back for ever, unless the first one is refused for something that
 * time does not heal.
 * @param credential n8n's Redis credential
 * @param log hears, once each, that Redis went and that it came back
 * @returns the client, not yet connected
 */
export function createConnection(credential: RedisCredential, log: (text: string) => void) {
  let [told, wasReady] = ['', false];
  const options = clientOptions(credential);
  const client = createClient({
    RESP: 2,
    ...options,
    commandOptions: { timeout: 0 },
    socket: {
      ...options.socket,
      reconnectStrategy: (retries: number, cause: Error) =>
        !wasReady && refused.test(cause.message) ? cause : Math.min(50 * 2 ** retries, 2000),
    } as NonNullable<RedisClientOptions['socket']>,
  });
  client.on('error', (error: Error & { code?: string }) => {
    const reason = error.message || error.code || String(error);
    if (reason !== told) log(`Redis ${placeOf(credential)} is gone: ${reason}`);
    told = reason;
  });
  client.on('ready', () => {
    wasReady = true;
    if (told) log(`Redis ${placeOf(credential)} is back`);
    told = '';
  });
  return client;
}
