/*
 * Hears of tasks, takes those that are meant, and ends each when its execution has ended.
 */

import { randomUUID } from 'node:crypto';
import {
  type IDataObject,
  type INodeExecutionData,
  type IRun,
  type ITriggerFunctions,
  NodeOperationError,
} from 'n8n-workflow';
import {
  type Entry,
  leaveEntry,
  makeGroup,
  type Queue,
  stateOf,
  takeLeft,
  takeNew,
  takeoverMs,
  uuidOf,
} from '../../shared/queue';
import {
  connectInTime,
  createConnection,
  placeOf,
  type RedisConnection,
  type RedisCredential,
  withConnection,
} from '../../shared/redis';
import { claimTask, endTask, renewTask, type Task } from '../../shared/task';
import { type Filter, matchRequest, parseTask, type StoredTask, toItem } from './request';

/** What the user chose. */
export type Settings = {
  credential: RedisCredential;
  channel: string;
  filter: Filter;
  limit: number;
  signsOfLife: boolean;
  errorText: string;
  /** The stream from which tasks come, if not from the channel. */
  stream: string;
};

/** A task that is meant, and not yet claimed; and its entry in a stream, if it came from one. */
type Call = { stored: StoredTask; params: Record<string, string>; entry: Entry | undefined };

/** How many tasks are taken from a stream at a time, where there is no limit. */
const readAtOnce = 100;

/** After a stream refused something, and while there is no room. */
const pauseMs = 1000;

/** How often claims are renewed. */
const renewMs = 5000;

/** How many databases of a server are searched for a task that the credential's does not have. */
const searchedDatabases = 16;

/** How long n8n waits for executions when it stops, in ms, less what the last words need. */
const lastWordsMs = Number(process.env.N8N_GRACEFUL_SHUTDOWN_TIMEOUT ?? 30) * 1000 - 2000;

/** The listeners of this process: those of manual executions take what the others would. */
const listeners = new Set<Listener>();

/** Gives every execution that still runs when n8n is about to leave them an end. */
function onTermination(): void {
  const end = () => {
    for (const listener of listeners) listener.abandon('n8n is stopping');
  };
  setTimeout(end, Math.max(lastWordsMs, 0)).unref();
}
process.once('SIGTERM', onTermination).once('SIGINT', onTermination);

export class Listener {
  readonly id: string;

  readonly isManual: boolean;

  private readonly queue: Queue | undefined;

  private readonly channel: RedisConnection;

  /** Tasks that wait for room, unclaimed. */
  private readonly waiting: Call[] = [];

  /** Tasks that were left to a manual execution. */
  private readonly yielded: Call[] = [];

  /** Tasks whose executions run. */
  private readonly running = new Set<Task>();

  /** Tasks whose executions sleep, in n8n's database. */
  private readonly sleeping = new Set<Task>();

  private readonly renewing: NodeJS.Timeout;

  /** Whether tasks are taken; not after a manual execution has one, or when told to stop. */
  private isOpen = true;

  /** Whether the database of the credential has ever had a task. */
  private hasFound = false;

  private claiming = 0;

  constructor(
    private readonly context: ITriggerFunctions,
    private readonly settings: Settings,
  ) {
    const [workflowId, nodeId] = [context.getWorkflow().id, context.getNode().id];
    this.id = `${workflowId}/${nodeId}`;
    this.isManual = context.getMode() === 'manual';
    // the editor hears the channel, where tasks of a stream are announced too
    const isQueued = settings.stream !== '' && !this.isManual;
    if (isQueued) this.queue = { stream: settings.stream, group: `n8n_${workflowId}_${nodeId}` };
    this.channel = createConnection(settings.credential, this.log);
    this.renewing = setInterval(() => void this.renew(), renewMs);
    this.renewing.unref();
    listeners.add(this);
  }

  private readonly log = (text: string): void => {
    const { name } = this.context.getNode();
    this.context.logger.warn(`${name} ("${this.context.getWorkflow().name}"): ${text}`);
  };

  /**
   * Begins to listen.
   * @throws Error if Redis refuses, or does not answer while somebody is there to be told
   */
  async open(): Promise<void> {
    const { credential, channel } = this.settings;
    const listen = async (connected: Promise<unknown>) => {
      await connected;
      if (this.queue) void this.readQueue(this.queue);
      else await this.channel.subscribe(channel, (taskKey) => void this.hear(taskKey));
      const source = this.queue ? `stream ${this.queue.stream}` : channel;
      this.log(`listening to ${source} on Redis ${placeOf(credential)}`);
    };
    if (['init', 'leadershipChange'].includes(this.context.getActivationMode())) {
      const listening = listen(this.channel.connect()).catch((error) => this.fail(error.message));
      const patience = new Promise((resolve) => setTimeout(resolve, 1000).unref());
      await Promise.race([listening, patience]);
    } else {
      await listen(connectInTime(this.channel, credential)).catch((error) => {
        this.close();
        throw error;
      });
    }
  }

  /** Stops listening. What runs goes on, and ends as it would have ended. */
  close(): void {
    this.isOpen = false;
    this.waiting.length = 0;
    this.handBack();
    if (this.channel.isOpen) this.channel.destroy();
    this.forget();
  }

  /** Lets go of a listener that is closed and has no task any more. */
  private forget(): void {
    if (this.isOpen || this.running.size > 0 || this.sleeping.size > 0) return;
    clearInterval(this.renewing);
    listeners.delete(this);
  }

  /** Ends, with an error, everything that runs. */
  abandon(reason: string): void {
    this.isOpen = false;
    for (const task of this.running) void this.end(task, reason);
  }

  private redis<Result>(work: (client: RedisConnection) => Promise<Result>): Promise<Result> {
    return withConnection(this.settings.credential, work);
  }

  /** Tells the user why requests cannot be answered. */
  private fail(reason: string): void {
    this.log(reason);
    const error = new NodeOperationError(this.context.getNode(), reason);
    if (this.isManual) {
      this.close();
      this.context.emitError(error);
    } else if (this.context.saveFailedExecution) {
      this.context.saveFailedExecution(error);
    } else this.context.emitError(error);
  }

  /** Takes a task that was announced or, with an entry, that a stream has. */
  private async hear(taskKey: string, entry?: Entry): Promise<void> {
    try {
      const text = await this.redis((client) => client.get(taskKey));
      if (text === null) return await this.miss(taskKey, entry);
      const stored = parseTask(text);
      if (!stored) return;
      this.hasFound = true;
      const params = matchRequest(this.settings.filter, stored);
      if (!params) return await this.leave(entry);
      const call = { stored, params, entry };
      if (this.yields()) this.yielded.push(call);
      else this.waiting.push(call);
      await this.serveWaiting();
      this.handBack();
    } catch (error) {
      this.log(`task ${taskKey} was left: ${(error as Error).message}`);
    }
  }

  /** Cares for a task that is not there: its client has left, or it is in another database. */
  private async miss(taskKey: string, entry?: Entry): Promise<void> {
    if (entry) {
      const task = this.taskOf({ uuid: uuidOf(taskKey), key: taskKey, list: taskKey }, entry);
      await this.redis((client) => claimTask(client, task)); // takes it out of the stream
    } else if (!this.hasFound) await this.searchTask(taskKey);
  }

  /** Leaves a task of a stream to others. */
  private async leave(entry: Entry | undefined): Promise<void> {
    const { queue } = this;
    if (queue && entry) await this.redis((client) => leaveEntry(client, queue, entry));
  }

  /** Gives a task as ours, with a claim of its own. */
  private taskOf(names: Pick<Task, 'uuid' | 'key' | 'list'>, entry: Entry | undefined): Task {
    const { queue } = this;
    const holder = `${queue?.group ?? 'n8n'} n8n ${randomUUID()} `;
    return { ...names, holder, ...(queue && entry && { queue: { ...queue, entry: entry.id } }) };
  }

  /** Takes tasks from the stream: new ones and, now and then, those that somebody left behind. */
  private async readQueue(queue: Queue): Promise<void> {
    let lookAt = 0;
    while (this.isOpen) {
      const room = Math.min(this.room(), readAtOnce);
      try {
        if (room <= 0) {
          await new Promise((resolve) => setTimeout(resolve, pauseMs).unref());
          continue;
        }
        const isLook = performance.now() >= lookAt;
        const entries = isLook
          ? await this.redis((client) => takeLeft(client, queue, room))
          : await takeNew(this.channel, queue, room);
        if (isLook && entries.length === 0) lookAt = performance.now() + takeoverMs / 3;
        const own = new Set([...this.running, ...this.sleeping].map((task) => task.queue?.entry));
        const others = entries.filter(({ id }) => !own.has(id)); // we were only late
        await Promise.all(others.map((entry) => this.hear(entry.taskKey, entry)));
      } catch (error) {
        const { message } = error as Error;
        lookAt = performance.now() + takeoverMs; // the others could give no sign of life either
        const repair = () => this.redis((client) => makeGroup(client, queue));
        if (message.startsWith('NOGROUP ')) await repair().catch(() => {});
        else if (this.isOpen) {
          this.log(`stream ${queue.stream}: ${message}`);
          await new Promise((resolve) => setTimeout(resolve, pauseMs).unref());
        }
      }
    }
  }

  /** Gives the listeners of the same trigger: in the editor, or of the published workflow. */
  private twins(): Listener[] {
    return [...listeners].filter((other) => other.id === this.id && other !== this);
  }

  /** Says if a manual execution of the same workflow waits for a task. */
  private yields(): boolean {
    return !this.isManual && this.twins().some((other) => other.isManual && other.isOpen);
  }

  /** Gives what was left to this manual execution, and was not taken by it, back. */
  private handBack(): void {
    if (!this.isManual) return;
    for (const other of this.twins().filter(({ isManual }) => !isManual)) {
      other.waiting.push(...other.yielded.splice(0));
      void other.serveWaiting().catch((error) => other.log(error.message));
    }
  }

  /**
   * Looks for a task, of which this database knows nothing, in the others of the server: channels
   * are common to them, keys are not.
   */
  private async searchTask(taskKey: string): Promise<void> {
    const { credential } = this.settings;
    const client = createConnection(credential, () => {});
    let found: number | undefined;
    try {
      await connectInTime(client, credential);
      for (let database = 0; database < searchedDatabases && found === undefined; database += 1) {
        await client.select(database);
        if ((await client.exists(taskKey)) === 1) found = database;
      }
    } catch {
      // fewer databases, or no right to look into them
    } finally {
      if (client.isOpen) client.destroy();
    }
    const own = credential.database ?? 0;
    if (found === undefined || found === own || this.hasFound) return;
    this.fail(
      `The request is in database ${found} of Redis, and the credential says ${own}: set its Database Number to ${found}`,
    );
  }

  /** Says how many tasks more may be served now. */
  private room(): number {
    const limit = this.isManual ? 1 : this.settings.limit;
    const free = limit < 0 ? Number.POSITIVE_INFINITY : limit - this.running.size - this.claiming;
    return this.isOpen ? free : 0;
  }

  private async serveWaiting(): Promise<void> {
    while (this.room() > 0) {
      const call = this.waiting.shift();
      if (!call) return;
      this.claiming += 1;
      try {
        await this.serve(call);
      } finally {
        this.claiming -= 1;
      }
    }
  }

  private async serve({ stored, params, entry }: Call): Promise<void> {
    const { uuid, task_key: key, task_list: list } = stored;
    const task = this.taskOf({ uuid, key, list }, entry);
    const left = entry?.holder ?? '';
    const state = stateOf(this.queue?.group ?? '', left);
    if (state === undefined) return; // somebody else's, of another kind
    const claimed = await this.redis((client) => claimTask(client, task, left, state));
    if (claimed === null) return await this.leave(entry);
    if (state !== '') {
      this.log(`the n8n that was answering task ${uuid} is gone`);
      await this.end(task, 'worker lost'); // what the client has must not come twice
      return;
    }
    this.running.add(task);
    if (this.isManual) this.isOpen = false;
    try {
      const keep = (...file: Parameters<typeof this.context.helpers.prepareBinaryData>) =>
        this.context.helpers.prepareBinaryData(...file);
      const item = await toItem(stored, params, task, keep);
      if (this.isManual) await this.tellOfOthers(item);
      this.start(task, item);
    } catch (error) {
      const { message } = error as Error;
      this.log(`task ${task.uuid} could not be given on: ${message}`);
      await this.end(task, message);
    }
  }

  /** Says, in the item of a manual execution, who else listens to the channel. */
  private async tellOfOthers(item: INodeExecutionData): Promise<void> {
    const { channel } = this.settings;
    const isPublished = this.twins().some((other) => !other.isManual);
    const counts = await this.redis((client) => client.pubSubNumSub(channel)).catch(() => ({}));
    const others = Number((counts as IDataObject)[channel] ?? 1) - 1;
    item.json.test = {
      isPublished,
      otherListeners: Math.max(others, 0),
      ...(others > 0 && {
        note: isPublished
          ? 'The published workflow listens too: it left this request to the editor, and takes the next one.'
          : 'Others listen to this channel too: a request may go to them instead.',
      }),
    };
  }

  private start(task: Task, item: INodeExecutionData): void {
    const done = this.context.helpers.createDeferredPromise<IRun>();
    void done.promise.then(
      (run) => this.finish(task, run),
      (error) => this.end(task, error?.message || 'The execution failed'),
    );
    this.context.emit([[item]], undefined, done);
  }

  /** Ends a task as its execution ended; one that sleeps has not. */
  private async finish(task: Task, run: IRun | undefined): Promise<void> {
    if (run?.waitTill || run?.data?.waitTill || run?.status === 'waiting') {
      this.running.delete(task);
      this.sleeping.add(task);
      this.log(
        `the execution of task ${task.uuid} sleeps (a Wait of more than 65 s, or for an event): when it goes on, a JSON Proxy Line must end the answer`,
      );
      await this.serveWaiting();
      return;
    }
    const error = run?.data?.resultData?.error;
    const isComplete = run?.status === 'success' || (!run?.status && run?.finished === true);
    const reason = error?.message || (isComplete ? '' : 'The execution did not end well');
    await this.end(task, reason);
  }

  private async end(task: Task, reason: string): Promise<void> {
    const error = reason && (this.settings.errorText || reason);
    try {
      await this.redis((client) => endTask(client, task, error));
    } catch (failure) {
      this.log(`task ${task.uuid} could not be ended: ${(failure as Error).message}`);
    }
    this.running.delete(task);
    this.forget();
    await this.serveWaiting().catch((failure) => this.log(failure.message));
  }

  private async renew(): Promise<void> {
    const { signsOfLife } = this.settings;
    for (const task of [...this.running, ...this.sleeping]) {
      const isAlive = signsOfLife && this.running.has(task);
      const renewed = this.redis((client) => renewTask(client, task, isAlive));
      const isWanted = await renewed.catch(() => true); // without an answer nothing is known
      if (!isWanted) this.sleeping.delete(task);
    }
    this.forget();
  }
}
