/*
 * Os workers: falam direto com o Redis, sem passar pelo intermediário, e cumprem o plano do fluxo
 * que a tarefa nomeia. Um Redis que cai com um RPUSH a caminho não diz se o atendeu; para que
 * nenhuma linha seja empurrada duas vezes, cada passo é um script que anota numa chave até onde já
 * foi, e repeti-lo não faz nada.
 */

import type { task_record } from '../../json-proxy';
import { delay } from '../dev/local';
import { close_side, fail, type ledger, type work_record } from './ledger';
import { body_bytes, plan_work, pushed_text, type request_plan, type work_plan } from './plan';
import { connect, insist, type redis_client, task_stream } from './redis';

/** Quem atende as tarefas. `busy`: quantas tarefas ainda estão sendo atendidas. */
export type crew = { busy: () => number };

/** O que um worker precisa saber do resto da prova. */
export type crew_context = {
  seed: number;
  book: ledger;
  request_of: (stream: number) => request_plan | undefined;
};

/** Como um passo acabou. */
type step_reply = 'done' | 'gone' | 'lost';

/** Vida da chave de progresso: bem mais que a de qualquer fluxo. */
const progress_ttl_s = 120;

/** Elementos em branco são sinais de vida: o proxy os engole. */
const blank_every_steps = 4;

/**
 * Empurra e anota num ato só. KEYS: lista, tarefa, progresso. ARGV: passo de antes, passo deste, se
 * é teimoso, o fim ("del" ou nada), elementos. Um progresso que sumiu é um Redis que perdeu os
 * dados; o teimoso, como quase todo worker de verdade, nem percebe.
 */
const step_script = `
  local at = redis.call('get', KEYS[3])
  if at == false and ARGV[3] == '1' then at = ARGV[1] end
  if at == ARGV[2] then return 'done' end
  if at ~= ARGV[1] then return 'lost' end
  if ARGV[3] == '0' and redis.call('exists', KEYS[2]) == 0 then return 'gone' end
  redis.call('set', KEYS[3], ARGV[2], 'EX', '${progress_ttl_s}')
  if #ARGV > 4 then redis.call('rpush', KEYS[1], unpack(ARGV, 5)) end
  if ARGV[4] == 'del' then redis.call('del', KEYS[2]) end
  return 'done'`;

/**
 * Dá os passos de um plano do fluxo `stream`, na ordem: espera em ms, elementos, quantos deles são
 * linhas, e se o fim vai neste.
 */
function* work_steps(stream: number, plan: work_plan) {
  const { steps, sizes, ending, ends_together } = plan;
  const closing = ending === 'eof' ? ['EOF'] : [];
  let index = 0;
  if (plan.head.text) yield { wait_ms: 0, elements: [plan.head.text], lines: 0, ends: false };
  for (const [at, { wait_ms, count }] of steps.entries()) {
    const elements = at % blank_every_steps === 1 ? ['  '] : [];
    for (const size of sizes.slice(index, index + count)) {
      elements.push(pushed_text(stream, index, size));
      index += 1;
    }
    const ends = ends_together && ending !== 'silence' && at === steps.length - 1;
    if (ends) elements.push(...closing);
    yield { wait_ms, elements, lines: count, ends };
    if (ends) return;
  }
  if (ending !== 'silence') yield { wait_ms: 1, elements: closing, lines: 0, ends: true };
}

/** Confere se o corpo do fluxo `stream` chegou como o cliente o mandou. */
function check_body(context: crew_context, stream: number, task: task_record): void {
  const request = context.request_of(stream);
  const given = Buffer.from(task.body, task.body_encoding ?? 'utf8');
  const is_whole = request && request.leave?.when !== 'half_sent';
  if (is_whole && given.equals(body_bytes(request.body))) return;
  const what = is_whole ? 'corpo danificado' : 'tarefa que ninguém pediu por inteiro';
  fail(context.book, `fluxo ${stream}: ${what} (${task.uuid})`);
}

/** Cumpre o plano do fluxo `stream`. */
async function work(
  client: redis_client,
  context: crew_context,
  stream: number,
  task: task_record,
): Promise<void> {
  const plan = plan_work(context.seed, stream, context.book.maxtime_ms);
  const record: work_record = { uuid: task.uuid, confirmed: [], has_ended: false, is_over: false };
  context.book.works.set(stream, record);
  const progress = `stress_${task.uuid}`;
  await insist(() =>
    client.set(progress, '0', { expiration: { type: 'EX', value: progress_ttl_s } }),
  );
  let step = 0;
  for (const { wait_ms, elements, lines, ends } of work_steps(stream, plan)) {
    if (wait_ms > 0) await delay(wait_ms);
    record.has_ended = ends;
    const marks = [String(step), String(step + 1), plan.stubborn ? '1' : '0'];
    const ending = ends && plan.ending === 'del' ? 'del' : '';
    const reply = await insist(() =>
      client.eval(step_script, {
        keys: [task.task_list, task.task_key, progress],
        arguments: [...marks, ending, ...elements],
      }),
    );
    if ((reply as step_reply) !== 'done') {
      record.has_ended = false;
      return;
    }
    step += 1;
    const now = performance.now();
    for (let line = 0; line < lines; line += 1) record.confirmed.push(now);
  }
}

/** O grupo que lê o stream, e quanto espera por uma tarefa. */
const group = 'stress';
const read = { COUNT: 100, BLOCK: 500 };

/** Uma entrada do stream; sem tarefa, se já foi apagada dele. */
type entry = { id: string; message: Record<string, string> | null };

/**
 * Lê do stream as tarefas, em vez de as ouvir do canal. Depois de um erro lê de novo as que já lhe
 * tinham sido dadas, e refaz o grupo que se perdeu com os dados.
 * @param client a conexão em que se espera
 * @param db a outra
 * @param serve atende uma tarefa
 */
async function read_stream(
  client: redis_client,
  db: redis_client,
  serve: (task_key: string) => Promise<void>,
): Promise<void> {
  const begun = new Set<string>();
  const take = async ({ id, message }: entry) => {
    const task_key = message?.task_key ?? id;
    if (begun.has(task_key)) return;
    begun.add(task_key);
    if (message) await serve(task_key);
    await insist(() => db.multi().xAck(task_stream, group, id).xDel(task_stream, id).exec());
  };
  for (let from = '0'; client.isOpen; ) {
    try {
      const where = { key: task_stream, id: from };
      const found = (await client.xReadGroup(group, 'crew', where, read)) as unknown;
      from = '>';
      const streams = (found ?? []) as { messages: entry[] }[];
      for (const entry of streams.flatMap(({ messages }) => messages)) void take(entry);
    } catch {
      from = '0';
      await delay(read.BLOCK / 10);
      await client.xGroupCreate(task_stream, group, '0', { MKSTREAM: true }).catch(() => {});
    }
  }
}

/**
 * Põe os workers no ar, no Redis da porta `port`, e os devolve. Leem o stream, se `has_stream`;
 * senão, ouvem o canal.
 */
export async function start_crew(
  port: number,
  context: crew_context,
  has_stream: boolean,
): Promise<crew> {
  const client = await connect(port);
  const subscriber = await connect(port);
  let busy = 0;
  const serve = async (task_key: string) => {
    const text = await insist(() => client.get(task_key));
    if (text === null) return; // o cliente já foi recusado ou saiu
    const task: task_record = JSON.parse(text);
    const stream = Number(/^\/s\/(\d+)$/.exec(task.url)?.[1]);
    if (context.book.works.has(stream)) {
      fail(context.book, `fluxo ${stream}: anunciado duas vezes (${task.uuid})`);
    }
    check_body(context, stream, task);
    await work(client, context, stream, task);
    close_side(context.book, stream);
  };
  const begin = (task_key: string) => {
    busy += 1;
    const end = () => {
      busy -= 1;
    };
    const broke = (error: Error) => {
      fail(context.book, `worker: ${error.stack}`);
      end();
    };
    return serve(task_key).then(end, broke);
  };
  if (has_stream) void read_stream(subscriber, client, begin);
  else await subscriber.subscribe('ndjson_jobs', (task_key) => void begin(task_key));
  return { busy: () => busy };
}
