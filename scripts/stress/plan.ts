/*
 * O que se planeja antes de acontecer, só com a semente: o que cada worker empurra e cada cliente
 * faz. Cliente e worker chegam ao mesmo plano cada um por si, pelo número do fluxo, que vai no
 * caminho do pedido.
 */

import { type dice, roll } from './random';

/** Como o worker termina: apaga a tarefa, empurra EOF, ou se cala e deixa MAXTIME se esgotar. */
export type work_ending = 'del' | 'eof' | 'silence';

/** Um passo do worker: espera, e empurra as próximas `count` linhas de uma vez. */
export type work_step = { wait_ms: number; count: number };

/**
 * O que o worker faz num fluxo. `sizes`: caracteres de enchimento de cada linha; `head`: a cabeça,
 * vazia se não há; `ends_together`: o fim vai no mesmo comando que as últimas linhas; `stubborn`:
 * segue até o fim mesmo depois que a tarefa se foi, ou que o Redis voltou sem os dados.
 */
export type work_plan = {
  head: { status: number; text: string };
  sizes: number[];
  steps: work_step[];
  ending: work_ending;
  ends_together: boolean;
  stubborn: boolean;
};

/** Quando o cliente vai embora: no meio do envio, ou depois de tantos ms, ou de tantas linhas. */
export type leave_plan = { when: 'half_sent' | 'ms' | 'lines'; value: number };

/** Um leitor lento: a cada tantos bytes, dorme tantos ms. */
export type slow_plan = { every_bytes: number; nap_ms: number };

/** O que um cliente pede. `text` é o pedido inteiro quando ele é malformado. */
export type request_plan = {
  kind: 'stream' | 'ping' | 'head' | 'broken';
  stream: number;
  body: { bytes: number; is_binary: boolean };
  leave: leave_plan | undefined;
  slow: slow_plan | undefined;
  text: string;
};

/** Uma conexão de um cliente: pedidos um depois do outro, ou todos de uma vez. */
export type visit_plan = { visit: number; pipelined: boolean; requests: request_plan[] };

/** Pedidos numa conexão, no máximo; o número do fluxo é visita × isto + posição. */
export const requests_per_visit = 4;

/** De vez em quando, uma linha enorme: um a cada tantos fluxos tem uma. */
const huge_line = { one_in: 50, chars: 1_000_000 };

/** Pedidos que o analisador ou o programa recusam com 400. */
const broken_requests = [
  'isto não é HTTP\r\n\r\n',
  'GET / HTTP/1.1\r\n\r\n',
  'GET /a b HTTP/1.1\r\nHost: x\r\n\r\n',
  'GET / HTTP/1.1\r\nHost: x\r\nX : 1\r\n\r\n',
  'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab',
  'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
  'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n',
];

/**
 * O maior corpo. Pedidos mandados de uma vez têm de caber nos buffers do sistema: quem escreve
 * depois que o servidor recusa e fecha recebe um erro de escrita, e nem lê a resposta.
 */
const max_body = { alone: 3_000_000, pipelined: 20_000 };

/** Um status que a cabeça do worker pede, entre os que nenhuma falha daria. */
const head_statuses = [200, 201, 302, 404, 418];

/** O enchimento das linhas e dos corpos: de um, dois e três bytes. */
const fillers = ['x', 'ç', '€'];

/** Diz se a linha de posição `index` tem uma quebra no meio, de que o proxy faz um espaço. */
function has_break(index: number): boolean {
  return index % 17 === 3;
}

/**
 * Monta a linha `index` do fluxo `stream`, com `size` caracteres de enchimento, como o cliente a
 * recebe: JSON que começa pela ficha "@fluxo:posição@".
 */
export function line_text(stream: number, index: number, size: number): string {
  const filler = fillers[(stream + index) % fillers.length] ?? '';
  const end = has_break(index) ? ' }' : '}';
  return `{"s":"@${stream}:${index}@","x":"${filler.repeat(size)}"${end}`;
}

/**
 * Monta a linha como o worker a empurra: algumas com uma quebra no meio. Os `stream`, `index` e
 * `size` são os de line_text.
 */
export function pushed_text(stream: number, index: number, size: number): string {
  const text = line_text(stream, index, size);
  return has_break(index) ? `${text.slice(0, -2)}\r\n}` : text;
}

/** Monta o corpo de um pedido; os binários não são UTF-8 válido. */
export function body_bytes(body: request_plan['body']): Buffer {
  return Buffer.alloc(body.bytes, body.is_binary ? 0xfe : 'corpo ');
}

/** Sorteia o tamanho de uma linha, quase sempre pequena; devolve caracteres de enchimento. */
function line_size(dice: dice): number {
  return dice.chance(0.02) ? dice.integer(1000, 40_000) : dice.skewed(0, 400);
}

/** Sorteia as esperas e os lotes em que `lines` linhas saem, e devolve os passos. */
function work_steps(dice: dice, lines: number): work_step[] {
  const steps: work_step[] = [];
  const pace_ms = dice.pick([2, 30, 150, 400]);
  const batch = dice.pick([1, 3, 20, 100]);
  const least = Math.ceil(lines / 15); // nem o fluxo mais miúdo tem passos demais
  for (let left = lines; left > 0; ) {
    const count = Math.min(left, Math.max(least, dice.integer(1, batch)));
    steps.push({ wait_ms: dice.integer(0, pace_ms), count });
    left -= count;
  }
  return steps;
}

/**
 * Planeja o worker do fluxo `stream`; devolve sempre o mesmo para a mesma semente `seed` e o mesmo
 * `maxtime_ms`.
 */
export function plan_work(seed: number, stream: number, maxtime_ms: number): work_plan {
  const dice = roll(seed, 'worker', stream);
  const lines = dice.chance(0.06) ? 0 : dice.skewed(1, 400);
  const sizes = Array.from({ length: lines }, () => line_size(dice));
  if (lines > 0 && dice.chance(1 / huge_line.one_in)) {
    sizes[dice.integer(0, lines - 1)] = huge_line.chars;
  }
  const steps = work_steps(dice, lines);
  const pause = dice.chance(0.03) && dice.pick(steps);
  if (pause) pause.wait_ms = maxtime_ms + dice.integer(0, 2000); // o resto chega tarde demais
  const status = dice.chance(0.2) ? dice.pick(head_statuses) : 0;
  return {
    head: { status, text: status ? `HTTP ${status} {"X-Stress": "${stream}"}` : '' },
    sizes,
    steps,
    ending: dice.chance(0.06) ? 'silence' : dice.pick(['del', 'del', 'eof'] as const),
    ends_together: dice.chance(0.3),
    stubborn: dice.chance(0.4),
  };
}

/** Sorteia a saída antes da hora de um cliente; devolve undefined se ele lê até o fim. */
function plan_leave(dice: dice): leave_plan | undefined {
  if (dice.chance(0.75)) return undefined;
  const when = dice.pick(['half_sent', 'ms', 'ms', 'lines', 'lines'] as const);
  return { when, value: when === 'lines' ? dice.skewed(1, 100) : dice.skewed(0, 1500) };
}

/**
 * Planeja um pedido, que pode abrir o fluxo `stream`, e ir junto com outros (`pipelined`); devolve
 * o plano.
 */
function plan_request(dice: dice, stream: number, pipelined: boolean): request_plan {
  const is_plain = dice.chance(0.12);
  const kind = is_plain ? dice.pick(['ping', 'head', 'broken'] as const) : 'stream';
  const is_large = dice.chance(0.03) && !pipelined;
  const most = is_large ? max_body.alone : max_body.pipelined;
  const bytes = dice.chance(0.5) ? 0 : dice.skewed(1, most);
  const is_slow = dice.chance(0.1);
  return {
    kind,
    stream,
    body: { bytes: is_plain ? 0 : bytes, is_binary: dice.chance(0.1) },
    leave: is_plain ? undefined : plan_leave(dice),
    slow: is_slow ? { every_bytes: dice.skewed(100, 64_000), nap_ms: 30 } : undefined,
    text: kind === 'broken' ? dice.pick(broken_requests) : '',
  };
}

/** Planeja a conexão de número `visit`; devolve sempre o mesmo para a mesma semente `seed`. */
export function plan_visit(seed: number, visit: number): visit_plan {
  const dice = roll(seed, 'cliente', visit);
  const pipelined = dice.chance(0.5);
  const count = dice.chance(0.6) ? 1 : dice.integer(2, requests_per_visit);
  const requests: request_plan[] = [];
  for (let index = 0; index < count; index += 1) {
    const request = plan_request(dice, visit * requests_per_visit + index, pipelined);
    requests.push(request);
    if (request.kind === 'broken' || request.leave) break; // a conexão acaba aí
  }
  return { visit, pipelined, requests };
}
