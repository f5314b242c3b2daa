/*
 * Os clientes: cada visita é uma conexão, com um ou mais pedidos, e cada resposta é conferida
 * enquanto chega. Um fluxo que passa do prazo sem uma linha é um cliente preso, e isso é falha.
 */

import { delay } from '../dev/local';
import {
  type connection,
  open_connection,
  type response_end,
  type response_events,
} from './connection';
import {
  fail,
  type fault_kind,
  is_explained,
  judge_stream,
  type ledger,
  link_faults,
  make_checker,
  type outcome,
} from './ledger';
import { body_bytes, plan_work, type request_plan, type visit_plan } from './plan';

/** O que os clientes precisam saber do resto da prova. */
export type client_context = { seed: number; port: number; book: ledger };

/** Além de MAXTIME, quanto um fluxo calado pode demorar a acabar, numa máquina carregada. */
const hang_margin_ms = 12_000;

/** De quanto em quanto tempo se procuram clientes presos. */
const watch_ms = 500;

/** Quem não foi atendido espera um pouco, como faria um cliente de verdade. */
const refused_pause_ms = 200;

/** Os status a partir deste são recusas do proxy; nenhuma cabeça os pede. */
const refusal_status = 500;

const keepalive_line = '{"type":"keepalive"}';

/** O que vale como resposta aos pedidos que não viram fluxo, por status. */
const plain_rules: Record<string, Record<number, fault_kind[] | 'always'>> = {
  ping: { 200: 'always', 500: link_faults, 503: ['handover'] },
  head: { 200: 'always', 504: link_faults, 503: ['handover'] },
  broken: { 400: 'always', 503: ['handover'], 504: link_faults },
};

/** Monta os bytes de um pedido. */
function request_bytes(plan: request_plan): Buffer {
  const { kind, stream, body } = plan;
  if (kind === 'broken') return Buffer.from(plan.text);
  const start = { ping: 'GET /ping', head: 'HEAD /x', stream: `GET /s/${stream}` }[kind];
  const host = ' HTTP/1.1\r\nHost: stress\r\n';
  if (body.bytes === 0) return Buffer.from(`${start}${host}\r\n`);
  const head = `POST /s/${stream}${host}Content-Length: ${body.bytes}\r\n\r\n`;
  return Buffer.concat([Buffer.from(head), body_bytes(body)]);
}

/** Cria o que separa um corpo em linhas; `on_line` recebe cada uma, sem a quebra. */
function line_splitter(on_line: (line: Buffer) => void): (piece: Buffer) => void {
  let parts: Buffer[] = [];
  return (piece) => {
    let start = 0;
    for (let end = piece.indexOf('\n'); end >= 0; end = piece.indexOf('\n', start)) {
      const line = piece.subarray(start, end);
      on_line(parts.length > 0 ? Buffer.concat([...parts, line]) : line);
      parts = [];
      start = end + 1;
    }
    if (start < piece.length) parts.push(piece.subarray(start));
  };
}

/** Uma resposta que está sendo lida: o último sinal de vida, e como desistir dela. */
type reading = { alive_at: number; give_up: (how: 'left' | 'hung') => void };

/** O que se faz com uma resposta; `on_start` recebe como desistir dela. */
type reading_events = Omit<response_events, 'has_body'> & { on_start: (reading: reading) => void };

/**
 * Lê uma resposta até que ela, o cliente ou a paciência acabe.
 * @param has_body se a resposta pode ter corpo
 * @param hang_ms silêncio a partir do qual o cliente está preso
 * @returns como acabou, e o erro, se o que veio não é HTTP
 */
async function read_response(
  link: connection,
  has_body: boolean,
  events: reading_events,
  hang_ms: number,
): Promise<{ how: outcome['how']; reason: string }> {
  const reading: reading = { alive_at: performance.now(), give_up: () => {} };
  const stopped = new Promise<'left' | 'hung'>((resolve) => {
    reading.give_up = resolve;
  });
  const watch = setInterval(() => {
    if (performance.now() - reading.alive_at > hang_ms) reading.give_up('hung');
  }, watch_ms);
  events.on_start(reading);
  try {
    const received: Promise<response_end> = link.receive({ has_body, ...events });
    received.catch(() => {});
    return { how: await Promise.race([received, stopped]), reason: '' };
  } catch (error) {
    return { how: 'malformed', reason: (error as Error).message };
  } finally {
    clearInterval(watch);
  }
}

/**
 * Cria o que recebe cada pedaço e, se o plano é de um leitor lento, dorme depois de tantos bytes.
 */
function slow_reader(link: connection, plan: request_plan['slow']): (piece: Buffer) => void {
  let read = 0;
  return (piece) => {
    read += piece.length;
    if (!plan || read < plan.every_bytes) return;
    read = 0;
    link.nap(plan.nap_ms);
  };
}

/** Por quanto tempo um cliente cortado tenta voltar. */
const comeback_limit_ms = 20_000;

/**
 * Volta a um fluxo cortado, por outra conexão, e lê o resto.
 * @param place o lugar, como vai em Last-Event-ID
 * @returns como acabou; undefined se a resposta já não está guardada, ou ninguém atende
 */
async function come_back({ port, book }: client_context, place: string, events: reading_events) {
  const deadline = performance.now() + comeback_limit_ms;
  const text = `GET /volta HTTP/1.1\r\nHost: stress\r\nLast-Event-ID: ${place}\r\n\r\n`;
  book.totals.comebacks += 1;
  for (; performance.now() < deadline; await delay(refused_pause_ms)) {
    const link = await open_connection(port).catch(() => undefined);
    if (!link) continue;
    let refused = 0;
    const wary: reading_events = {
      on_start: events.on_start,
      on_head: (status, headers) => {
        refused = headers.has('x-task-uuid') ? 0 : status;
        if (!refused) events.on_head(status, headers);
      },
      on_body: (piece) => refused || events.on_body(piece),
    };
    link.send(text);
    const end = await read_response(link, true, wary, book.maxtime_ms + hang_margin_ms);
    link.leave();
    if (refused >= 400 && refused < refusal_status) return undefined;
    if (!refused && end.how !== 'nothing') return end;
  }
  return undefined;
}

/** Lê e julga um fluxo pedido no instante `from`, em ms; devolve se a conexão ainda serve. */
async function read_stream(
  context: client_context,
  link: connection,
  plan: request_plan,
  from: number,
): Promise<boolean> {
  const { book, seed } = context;
  const { stream, leave } = plan;
  const work = plan_work(seed, stream, book.maxtime_ms);
  const checker = make_checker(book, stream, work);
  const seen = { status: 0, uuid: '', closes: false };
  let received = 0; // as linhas que contam para voltar: também uma cabeça atrasada, e um erro
  let timer: NodeJS.Timeout | undefined;
  let reading: reading | undefined;
  const take_line = (line: Buffer) => {
    if (line.length === keepalive_line.length && line.equals(Buffer.from(keepalive_line))) return;
    received += 1;
    checker.take(line);
    if (reading) reading.alive_at = performance.now();
    if (leave?.when === 'lines' && checker.count() >= leave.value) reading?.give_up('left');
  };
  let split = line_splitter(take_line);
  const rest = slow_reader(link, plan.slow);
  const events = {
    on_start: (started: reading) => {
      reading = started;
      split = line_splitter(take_line); // a linha que um corte deixou no meio vem de novo
      if (leave && leave.when !== 'lines') timer = setTimeout(started.give_up, leave.value, 'left');
    },
    on_head: (status: number, headers: Map<string, string>) => {
      const uuid = headers.get('x-task-uuid') ?? '';
      Object.assign(seen, { status, uuid, closes: headers.get('connection') === 'close' });
    },
    on_body: (piece: Buffer) => {
      book.totals.bytes += piece.length;
      split(piece);
      rest(piece);
    },
  };
  let end = await read_response(link, true, events, book.maxtime_ms + hang_margin_ms);
  clearTimeout(timer);
  const is_first = end.how === 'complete';
  if (!is_first) link.leave();
  while (book.resumes && end.how === 'broken' && seen.uuid) {
    const rest_of_it = await come_back(context, `${seen.uuid}:${received}`, events);
    if (!rest_of_it) break;
    end = rest_of_it;
  }
  const { how, reason } = end;
  const error = checker.error() || reason;
  const to = performance.now();
  const is_prompt = plan.slow === undefined;
  judge_stream(book, stream, work, { how, ...seen, error, from, to, is_prompt }, checker);
  book.totals.lines += checker.count();
  if (seen.status >= refusal_status) await delay(refused_pause_ms);
  return is_first && !seen.closes;
}

/** Lê e julga uma resposta que não vira fluxo; `from`, e o que devolve, como em read_stream. */
async function read_plain(
  context: client_context,
  link: connection,
  plan: request_plan,
  from: number,
): Promise<boolean> {
  const { book } = context;
  const seen = { status: 0, closes: false, body: '' };
  const events = {
    on_start: () => {},
    on_head: (status: number, headers: Map<string, string>) => {
      Object.assign(seen, { status, closes: headers.get('connection') === 'close' });
    },
    on_body: (piece: Buffer) => {
      seen.body += piece;
    },
  };
  const { how, reason } = await read_response(link, plan.kind !== 'head', events, hang_margin_ms);
  const to = performance.now();
  const name = { ping: '/ping', head: 'HEAD', broken: 'pedido malformado', stream: '' }[plan.kind];
  const rule = plain_rules[plan.kind]?.[seen.status];
  const kinds: fault_kind[] = how === 'broken' ? ['kill'] : ['kill', 'handover'];
  const is_right =
    how === 'complete'
      ? rule === 'always' || (rule && is_explained(book, rule, from, to))
      : how !== 'hung' && how !== 'malformed' && is_explained(book, kinds, from, to);
  if (!is_right) fail(book, `${name}: ${how}, status ${seen.status} ${seen.body.trim()}${reason}`);
  book.endings.set(name, (book.endings.get(name) ?? 0) + 1);
  return how === 'complete' && !seen.closes && plan.kind !== 'broken';
}

/** Manda metade de um pedido e vai embora: nenhuma tarefa deve nascer disso. */
async function leave_half_sent(
  context: client_context,
  link: connection,
  plan: request_plan,
): Promise<void> {
  const bytes = request_bytes(plan);
  link.send(bytes.subarray(0, Math.floor(bytes.length / 2)));
  await delay(plan.leave?.value ?? 0);
  link.leave();
  const { endings } = context.book;
  endings.set('pedido pela metade', (endings.get('pedido pela metade') ?? 0) + 1);
}

/**
 * Faz uma visita: abre uma conexão, manda os pedidos, um depois do outro ou todos de uma vez, e lê
 * as respostas.
 */
export async function make_visit(context: client_context, plan: visit_plan): Promise<void> {
  const { book, port } = context;
  const from = performance.now();
  book.totals.visits += 1;
  let link: connection;
  try {
    link = await open_connection(port);
  } catch {
    const is_right = is_explained(book, ['kill', 'handover'], from, performance.now());
    if (!is_right) fail(book, `visita ${plan.visit}: conexão recusada sem falha que o explique`);
    book.endings.set('conexão recusada', (book.endings.get('conexão recusada') ?? 0) + 1);
    await delay(refused_pause_ms);
    return;
  }
  const whole = plan.requests.filter(({ leave }) => leave?.when !== 'half_sent');
  if (plan.pipelined) link.send(Buffer.concat(whole.map(request_bytes)));
  for (const request of plan.requests) {
    if (request.leave?.when === 'half_sent') {
      await leave_half_sent(context, link, request);
      break;
    }
    if (!plan.pipelined) link.send(request_bytes(request));
    const read = request.kind === 'stream' ? read_stream : read_plain;
    const sent_at = plan.pipelined ? from : performance.now();
    if (!(await read(context, link, request, sent_at))) break;
  }
  link.leave();
}
