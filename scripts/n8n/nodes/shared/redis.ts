/*
 * The connections to Redis, from n8n's own credential. The nodes of a process that use the same
 * credential share one, which closes when nobody has used it for a while.
 */

import { createClient } from '@redis/client';

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

/** Who hears that Redis went and came. */
export type Log = (text: string) => void;

/** How long a connection may say nothing, not even answer a PING, before it is made anew. */
const silence = { pingInterval: 10_000, socketTimeout: 30_000 };

/** How long a first connection may take. */
const connectMs = 10_000;

/** How long a connection that nobody uses stays open. */
const idleMs = 30_000;

/** Replies that time does not heal: a password, a user or a database that does not exist. */
const refused = /^(WRONGPASS|NOAUTH|NOPERM|ERR (AUTH|invalid|Client sent AUTH|DB index))/;

/** Gives the server and the database of a credential, as "127.0.0.1:6379/1". */
export function placeOf({ host, port, database }: RedisCredential): string {
  return `${host}:${port}/${database ?? 0}`;
}

/**
 * Makes a connection that comes back for ever, unless the first one is refused for something that
 * time does not heal.
 * @param credential n8n's Redis credential
 * @param log hears, once each, that Redis went and that it came back
 * @returns the client, not yet connected
 */
export function createConnection(credential: RedisCredential, log: Log) {
  const { host, port, database, user, password, ssl, disableTlsVerification } = credential;
  let [told, wasReady] = ['', false];
  const secure = { tls: true as const, rejectUnauthorized: !disableTlsVerification };
  const client = createClient({
    RESP: 2, // every Redis speaks it, and every clone of it
    ...(database !== undefined && { database: Number(database) }),
    ...(user && { username: user }),
    ...(password && { password }),
    pingInterval: silence.pingInterval,
    commandOptions: { timeout: 0 }, // what waits for the connection waits as long as it takes
    socket: {
      ...{ host, port: Number(port), connectTimeout: connectMs },
      ...(ssl && secure),
      socketTimeout: silence.socketTimeout,
      reconnectStrategy: (retries: number, cause: Error) =>
        !wasReady && refused.test(cause.message) ? cause : Math.min(50 * 2 ** retries, 2000),
    },
  });
  client.on('error', (error: Error & { code?: string }) => {
    const reason = error.message || error.code || String(error);
    if (told === '') log(`Redis ${placeOf(credential)} is gone: ${reason}`);
    told = reason;
  });
  client.on('ready', () => {
    wasReady = true;
    if (told) log(`Redis ${placeOf(credential)} is back`);
    told = '';
  });
  return client;
}

/**
 * Connects for the first time.
 * @param client the connection
 * @param credential where it goes
 * @throws Error if the server refuses, or does not answer in time; the connection is closed then
 */
export async function connectInTime(client: RedisConnection, credential: RedisCredential) {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    const error = new Error(`Redis ${placeOf(credential)} does not answer`);
    timer = setTimeout(() => reject(error), connectMs);
  });
  const connecting = Promise.race([client.connect(), late]);
  await connecting.finally(() => {
    clearTimeout(timer);
    if (client.isOpen && !client.isReady) client.destroy();
  });
}

/** A shared connection: how many use it, and when it closes if nobody does. */
type Shared = {
  client: RedisConnection;
  opened: Promise<void>;
  users: number;
  closing?: NodeJS.Timeout;
};

const shared = new Map<string, Shared>();

/**
 * Does something with the connection that the nodes share.
 * @param credential n8n's Redis credential
 * @param work what to do; the connection stays open at least until it is done
 * @param log hears that Redis went and came, if this is the first to use the connection
 * @returns what the work gives
 * @throws Error if there is no connection, or what the work throws
 */
export async function withConnection<Result>(
  credential: RedisCredential,
  work: (client: RedisConnection) => Promise<Result>,
  log: Log = () => {},
): Promise<Result> {
  const key = JSON.stringify(credential);
  let entry = shared.get(key);
  if (!entry?.client.isOpen) {
    const client = createConnection(credential, log);
    entry = { client, opened: connectInTime(client, credential), users: 0 };
    entry.opened.catch(() => {}); // whoever waits for it hears of it
    shared.set(key, entry);
  }
  const { client, opened } = entry;
  entry.users += 1;
  clearTimeout(entry.closing);
  try {
    await opened;
    return await work(client);
  } finally {
    entry.users -= 1;
    if (entry.users === 0) entry.closing = setTimeout(closeShared, idleMs, key, entry).unref();
  }
}

/** Closes a shared connection, known by `key`, that nobody uses any more. */
function closeShared(key: string, entry: Shared): void {
  if (shared.get(key) === entry) shared.delete(key);
  if (entry.client.isOpen) entry.client.destroy();
}
