/*
 * A task of json-proxy, and what may be done with it: claim it, push to its list, renew its claim,
 * end it. Each is one script, so that nothing is written for a client that has left, or by somebody
 * whose task another has taken.
 *
 * The claim says who serves the task, and after that how the answer began: "" (nothing was sent
 * yet), "lines", "raw" or, of raw, "events". That is how nodes in different processes know, and how
 * the trigger knows what an error must look like. A "!" behind it: a model has failed, and nothing
 * was sent after that.
 */

import type { RedisConnection } from './redis';

/** A task, as the trigger gives it on to the other nodes. */
export type Task = {
  uuid: string;
  key: string;
  list: string;
  /** What our claim begins with. */
  holder: string;
  /** Where it came from, if not from the channel: the stream, the group, the entry. */
  queue?: { stream: string; group: string; entry: string };
};

/** How the elements of a push are meant. */
export type Kind = 'line' | 'head' | 'raw';

/** How a push went: sent, or nobody waits for the answer any more. */
export type Pushed = 'sent' | 'gone';

/** What a claim's key begins with. */
export const claimPrefix = 'ndjson_claim_';

/** The life of a claim; it is renewed while the task runs. */
export const claimMs = 600_000;

/** Elements, and bytes, that may wait for the proxy in a list. */
const backlog = { elements: 1000, bytes: 4 * 1024 * 1024 };

/** How often a full list is looked at. */
const backlogMs = 20;

/** What goes in one push. */
const batch = { elements: 100, bytes: 256 * 1024 };

/**
 * What every script begins with. KEYS: task, list, claim and, of a queue, the stream. ARGV: holder,
 * life of the claim in ms, group, entry; what follows is the script's own.
 */
const scriptStart = `
  local isQueued = #KEYS == 4
  local holder = redis.call('GET', KEYS[3])
  local leftMs = redis.call('PTTL', KEYS[1])
  local isWanted = leftMs ~= -2
  local lifeMs = tonumber(ARGV[2])
  if isQueued then lifeMs = math.max(lifeMs, leftMs + 1000) end
  local isOurs = not isQueued
  if holder then isOurs = holder:sub(1, #ARGV[1]) == ARGV[1] end
  local state = holder and isOurs and holder:sub(#ARGV[1] + 1) or ''
  local isBroken = state:sub(-1) == '!'
  if isBroken then state = state:sub(1, -2) end
  local function keep()
    local mark = isBroken and '!' or ''
    redis.call('SET', KEYS[3], ARGV[1] .. state .. mark, 'PX', lifeMs)
  end
  local function rawState(head) return head:find('event-stream', 1, true) and 'events' or 'raw' end
  local function isRaw() return state == 'raw' or state == 'events' end`;

/** Leaves the stream without the task, which is over. */
const scriptForget = `
  if isQueued then
    redis.pcall('XACK', KEYS[4], ARGV[3], ARGV[4])
    redis.call('XDEL', KEYS[4], ARGV[4])
  end`;

/**
 * Claims a task that nobody has, or whose claim is the one that a dead worker left, with the state
 * of its answer: gives its JSON, or nothing.
 */
const claimScript = `${scriptStart}
  if not isWanted then ${scriptForget}
    return false
  end
  if (holder or '') ~= ARGV[5] then return false end
  redis.call('SET', KEYS[3], ARGV[1] .. ARGV[6], 'PX', lifeMs)
  return redis.call('GET', KEYS[1])`;

/**
 * Pushes elements: gives the length of the list, or what speaks against it. In a raw answer a line
 * ends in a line break, and a chunk that happens to be the word that cuts goes in two.
 */
const pushScript = `${scriptStart}
  local kind, firstHead = ARGV[5], ARGV[6]
  if not isWanted or not isOurs then return 'gone' end
  if kind == 'head' and state ~= '' then return 'late' end
  if kind == 'raw' and state == 'lines' then return 'lines' end
  local elements = {}
  if kind == 'raw' and state == '' then
    table.insert(elements, firstHead)
    state = rawState(firstHead)
  end
  local wasRaw = isRaw()
  for index = 7, #ARGV do
    local element = ARGV[index]
    if element ~= '' and state == '' then
      state = kind == 'head' and element:sub(1, 3) == 'RAW' and rawState(element) or 'lines'
    end
    isBroken = isBroken and element == ''
    if kind == 'line' and wasRaw and element ~= '' then element = element .. '\\n' end
    if kind == 'raw' and element == 'HTTP ABORT' then
      table.insert(elements, 'HTTP')
      element = ' ABORT'
    end
    table.insert(elements, element)
  end
  -- after another write a Redis without memory would not refuse this one any more
  local length = redis.call('RPUSH', KEYS[2], unpack(elements))
  if holder then keep() end
  return length`;

/** Renews the claim: gives 1 while somebody waits for our answer. "1" asks for a sign of life. */
const renewScript = `${scriptStart}
  if not isWanted or not isOurs then return 0 end
  if holder then keep() end
  if isQueued then redis.pcall('XCLAIM', KEYS[4], ARGV[3], ARGV[5], 0, ARGV[4], 'JUSTID') end
  if ARGV[6] == '1' and redis.call('EXISTS', KEYS[2]) == 0 then redis.call('RPUSH', KEYS[2], '') end
  return 1`;

/** Notes that a model has failed: unless something is sent after that, the answer is an error. */
const breakScript = `${scriptStart}
  isBroken = true
  if isWanted and isOurs and holder then keep() end`;

/**
 * Ends a task, with an error if there is one, in the form of the answer: gives 1 if somebody still
 * waited. Events have theirs, which OpenAI's clients read; the cut is for all others.
 */
const endScript = `${scriptStart}
  if isWanted and not isOurs then return 0 end
  if isWanted and (ARGV[5] == 'failed' or isBroken) then
    if state == 'events' then redis.call('RPUSH', KEYS[2], ARGV[7]) end
    redis.call('RPUSH', KEYS[2], isRaw() and 'HTTP ABORT' or ARGV[6])
  end
  ${scriptForget}
  return redis.call('DEL', KEYS[1])`;

/** Gives the answer of a `script` that is run on a task. */
function run(client: RedisConnection, script: string, task: Task, rest: (string | Buffer)[]) {
  const { queue } = task;
  const claim = claimPrefix + task.uuid;
  const keys = [task.key, task.list, claim, ...(queue ? [queue.stream] : [])];
  const start = [task.holder, String(claimMs), queue?.group ?? '', queue?.entry ?? ''];
  return client.eval(script, { keys, arguments: [...start, ...rest] as string[] });
}

/** Says if a value is a task, as the trigger gives it on. */
export function isTask(value: unknown): value is Task {
  const names = ['uuid', 'key', 'list', 'holder'];
  const fields = value as Record<string, unknown> | null | undefined;
  return names.every((name) => typeof fields?.[name] === 'string');
}

/**
 * Claims a task.
 * @param client the connection
 * @param task the task, with the claim that is to be ours
 * @param left the claim that a dead worker left, if any
 * @param state how the answer of that one had begun
 * @returns its JSON; null if it is somebody else's, or gone
 */
export async function claimTask(
  client: RedisConnection,
  task: Task,
  left = '',
  state = '',
): Promise<string | null> {
  const text = await run(client, claimScript, task, [left, state]);
  return text === null ? null : String(text);
}

/** Gives, in groups of which each is one push, the elements of a long push. */
function* batchesOf(elements: (string | Buffer)[]): Generator<(string | Buffer)[]> {
  let [group, bytes]: [(string | Buffer)[], number] = [[], 0];
  for (const element of elements) {
    const size = Buffer.byteLength(element);
    if (group.length >= batch.elements || (group.length > 0 && bytes + size > batch.bytes)) {
      yield group;
      [group, bytes] = [[], 0];
    }
    group.push(element);
    bytes += size;
  }
  if (group.length > 0) yield group;
}

/**
 * Waits until the proxy has taken what waits in a list, if that is much.
 * @param client the connection
 * @param task the task
 * @param length how many elements wait
 * @param size how big each is, about, in bytes
 */
async function awaitRoom(client: RedisConnection, task: Task, length: number, size: number) {
  let left = length;
  while (left > 1 && (left >= backlog.elements || left * size > backlog.bytes)) {
    await new Promise((resolve) => setTimeout(resolve, backlogMs));
    left = (await client.exists(task.key)) === 1 ? await client.lLen(task.list) : 0;
  }
}

/**
 * Pushes elements, in order, and waits while too many of them wait for the proxy.
 * @param client the connection
 * @param task the task
 * @param kind lines, the head of the answer, or bytes of a raw answer
 * @param elements what to push
 * @param firstHead for bytes: the head that goes before them if nothing was sent yet
 * @returns whether somebody still waits for them
 * @throws Error if the answer has begun in a way that does not allow them
 */
export async function pushElements(
  client: RedisConnection,
  task: Task,
  kind: Kind,
  elements: (string | Buffer)[],
  firstHead = 'RAW 200 {}',
): Promise<Pushed> {
  for (const group of batchesOf(elements)) {
    const answer = await run(client, pushScript, task, [kind, firstHead, ...group]);
    if (answer === 'gone') return 'gone';
    if (answer === 'late') throw new Error('The head must come before anything else is sent');
    if (answer === 'lines') throw new Error('The answer began with lines: no raw bytes can follow');
    const bytes = group.reduce((sum, element) => sum + Buffer.byteLength(element), 0);
    await awaitRoom(client, task, Number(answer), bytes / group.length);
  }
  return 'sent';
}

/**
 * Renews the claim of a task.
 * @param client the connection
 * @param task the task
 * @param isAlive whether to tell the proxy that the answer is still being made
 * @returns whether somebody still waits for our answer
 */
export async function renewTask(client: RedisConnection, task: Task, isAlive: boolean) {
  return (await run(client, renewScript, task, ['n8n', isAlive ? '1' : ''])) === 1;
}

/** Notes that a model has failed, for the case that nothing is sent after that. */
export async function breakTask(client: RedisConnection, task: Task): Promise<void> {
  await run(client, breakScript, task, []);
}

/** Says if somebody still waits for the answer of a task. */
export async function isWanted(client: RedisConnection, task: Task): Promise<boolean> {
  return (await client.exists(task.key)) === 1;
}

/**
 * Ends a task: nothing more reaches the client. May be repeated when a reply was lost.
 * @param client the connection
 * @param task the task
 * @param error what the client is told, as {"error": …}; empty if the answer is complete
 * @returns whether somebody still waited for it
 */
export async function endTask(client: RedisConnection, task: Task, error = ''): Promise<boolean> {
  const message = error || 'a model failed, and nothing was sent after that';
  const event = `data: ${JSON.stringify({ error: { message, type: 'server_error' } })}\n\n`;
  const last = [error && 'failed', JSON.stringify({ error: message }), event];
  const end = () => run(client, endScript, task, last);
  return (await end().catch(end)) === 1;
}
