/*
 * The stream in which tasks wait while nobody is there to serve them: the proxy's REDIS_STREAM.
 * Each trigger reads it as a group of its own, for each has its own filter; the claim decides which
 * of them serves a task.
 */

import type { RedisConnection } from './redis';
import { claimPrefix } from './task';

/** A stream, and the group that reads it. */
export type Queue = { stream: string; group: string };

/** A task of a stream; `holder` is the claim of whoever had it and gives no sign of life. */
export type Entry = { id: string; taskKey: string; holder?: string };

/** The consumer of a group; after a restart it finds its own tasks again. */
export const consumer = 'n8n';

/** After how long, in ms, without a sign of life a task is another's to take. */
export const takeoverMs = 15_000;

/** How long, in ms, a read waits for a task. */
const readMs = 2000;

/** The length of a uuid, with which the key of a task ends. */
const uuidLength = 36;

/** Takes the tasks whose worker gives no sign of life; those that are over leave the group. */
const leftScript = `
  local found = {}
  local idle = {'IDLE', ARGV[3], '-', '+', ARGV[4]}
  for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], unpack(idle))) do
    local id = row[1]
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'JUSTID')
    local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
    if entry then
      local taskKey = entry[2][2]
      local holder = redis.call('GET', ARGV[5] .. taskKey:sub(-ARGV[6]))
      table.insert(found, {id, taskKey, holder or ''})
    else
      redis.call('XACK', KEYS[1], ARGV[1], id)
    end
  end
  return found`;

/** Gives the uuid in the key of a task, as `taskKey` of a stream names it. */
export function uuidOf(taskKey: string): string {
  return taskKey.slice(-uuidLength);
}

/**
 * Waits for new tasks, for a while.
 * @param reader a connection that serves for nothing else
 * @param queue the stream
 * @param count how many, at most
 * @returns the tasks; none if none came
 */
export async function takeNew(reader: RedisConnection, queue: Queue, count: number) {
  const { stream, group } = queue;
  const options = { COUNT: count, BLOCK: readMs };
  const found = await reader.xReadGroup(group, consumer, { key: stream, id: '>' }, options);
  const streams = (found ?? []) as {
    messages: { id: string; message: Record<string, string> }[];
  }[];
  const messages = streams.flatMap((one) => one.messages);
  return messages.map(({ id, message }): Entry => ({ id, taskKey: message.task_key ?? '' }));
}

/** Gives up to `count` tasks that somebody has left behind, and which are ours from now on. */
export async function takeLeft(client: RedisConnection, queue: Queue, count: number) {
  const { stream, group } = queue;
  const limits = [takeoverMs, count].map(String);
  const given = [group, consumer, ...limits, claimPrefix, String(uuidLength)];
  const found = await client.eval(leftScript, { keys: [stream], arguments: given });
  return (found as [string, string, string][]).map(
    ([id, taskKey, holder]): Entry => ({ id, taskKey, holder }),
  );
}

/** Leaves a task of the stream to the other groups. */
export async function leaveEntry(client: RedisConnection, queue: Queue, entry: Entry) {
  await client.xAck(queue.stream, queue.group, entry.id);
}

/** Makes the group, from the beginning of the stream, and the stream, if they are not there. */
export async function makeGroup(client: RedisConnection, { stream, group }: Queue): Promise<void> {
  try {
    await client.xGroupCreate(stream, group, '0', { MKSTREAM: true });
  } catch (error) {
    if (!(error as Error).message.startsWith('BUSYGROUP ')) await Promise.reject(error);
  }
}

/** Says how an answer had begun, by the claim `holder` of the `group`: nothing, lines, raw. */
export function stateOf(group: string, holder: string): string | undefined {
  if (holder === '') return '';
  return holder.startsWith(`${group} `) ? holder.split(' ').at(-1) : undefined;
}
