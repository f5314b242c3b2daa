/*
 * O livro-caixa: o que cada worker empurrou, o que cada cliente recebeu, que falhas houve e quando.
 * Daqui sai o veredito de cada fluxo, e nada é perdoado sem uma falha que o explique.
 */

import { line_text, type work_plan } from './plan';

/** As falhas que se provocam. */
export const fault_names = [
  ...(['cut', 'storm', 'freeze', 'stuck', 'restart', 'wipe'] as const),
  ...(['flush', 'oom', 'mute', 'kill', 'handover'] as const),
];

export type planned_fault = (typeof fault_names)[number];

/** As falhas que contam; "stall" é a própria máquina, que não deixou a prova andar. */
export type fault_kind = planned_fault | 'stall';

/** Uma falha acontecida, em ms do relógio monotônico. `to` é Infinity enquanto dura. */
export type fault_record = { kind: fault_kind; from: number; to: number };

/**
 * O que um worker fez num fluxo. `confirmed`: o instante em que cada linha foi confirmada;
 * `has_ended`: se o comando do fim já pode ter sido atendido; `is_over`: se o worker, ou o cliente,
 * já acabou (o segundo a acabar fecha a conta).
 */
export type work_record = {
  uuid: string;
  confirmed: number[];
  has_ended: boolean;
  is_over: boolean;
};

/** Como um pedido acabou, do lado do cliente; `is_prompt`: ele lia tudo na hora. */
export type outcome = {
  is_prompt: boolean;
  how: 'complete' | 'broken' | 'nothing' | 'left' | 'refused' | 'hung' | 'malformed';
  status: number;
  uuid: string;
  error: string;
  from: number;
  to: number;
};

/** Linhas que não chegaram, à espera de que se saiba por quê. */
type absence = { stream: number; uuid: string; indexes: number[] };

/** O livro. As contagens são por nome. */
export type ledger = {
  maxtime_ms: number;
  polls_only: boolean;
  resumes: boolean;
  faults: fault_record[];
  works: Map<number, work_record>;
  absences: absence[];
  failures: string[];
  failure_count: number;
  endings: Map<string, number>;
  totals: Record<
    | 'visits'
    | 'comebacks'
    | 'streams'
    | 'lines'
    | 'bytes'
    | 'wiped'
    | 'lost'
    | 'doubled'
    | 'reordered'
    | 'cut_short',
    number
  >;
};

/** As que tiram o Redis do alcance do proxy por algum tempo. */
export const link_faults: fault_kind[] = [
  'cut',
  'storm',
  'freeze',
  'stuck',
  'restart',
  'wipe',
  'mute',
  'stall',
];

/** As que apagam os dados. */
const data_faults: fault_kind[] = ['wipe', 'flush'];

/** Cada linha de erro que um cliente pode ler, o nome desse fim, e as falhas que a explicam. */
const error_rules: Record<string, { ending: string; kinds: fault_kind[] }> = {
  'redis lost': { ending: 'redis_lost', kinds: [...link_faults, ...data_faults] },
  'redis does not answer': { ending: 'recusado 504', kinds: link_faults },
  'redis is out of memory': { ending: 'recusado 503', kinds: ['oom'] },
  'server shutting down': { ending: 'shutdown', kinds: ['handover'] },
};

/** Por quanto tempo uma falha que já passou ainda explica o que acontece, em ms. */
const aftermath_ms = 10_000;

/** O que a conta de um silêncio perdoa de cada lado, em ms: nem tudo se sabe na hora. */
const silence_margin_ms = 1500;

/** Falhas que se escrevem por extenso; as outras só se contam. */
const max_written_failures = 20;

/** O começo de uma linha: cabe a ficha dela, ou um erro do proxy. */
const shown_bytes = 60;

/**
 * Cria um livro em branco.
 * @param maxtime_ms o MAXTIME do proxy
 * @param polls_only se o proxy só consulta, sem avisos do Redis
 * @param resumes se quem é cortado volta (REPLAY)
 */
export function make_ledger(maxtime_ms: number, polls_only: boolean, resumes: boolean): ledger {
  return {
    maxtime_ms,
    polls_only,
    resumes,
    faults: [],
    works: new Map(),
    absences: [],
    failures: [],
    failure_count: 0,
    endings: new Map(),
    totals: {
      visits: 0,
      comebacks: 0,
      streams: 0,
      lines: 0,
      bytes: 0,
      wiped: 0,
      lost: 0,
      doubled: 0,
      reordered: 0,
      cut_short: 0,
    },
  };
}

/** Anota algo que não podia ter acontecido. */
export function fail(book: ledger, text: string): void {
  book.failure_count += 1;
  if (book.failures.length >= max_written_failures) return;
  book.failures.push(text);
  process.stderr.write(`FALHA: ${text}\n`);
}

/**
 * Diz se alguma destas falhas alcança o intervalo de `from` a `to`, em ms, ou acabou pouco antes.
 */
export function is_explained(book: ledger, kinds: fault_kind[], from: number, to: number): boolean {
  return book.faults.some((fault) => {
    return kinds.includes(fault.kind) && fault.from <= to && fault.to + aftermath_ms >= from;
  });
}

/**
 * Encerra um lado do fluxo `stream`; quando os dois acabaram, nada mais dele precisa ser guardado.
 */
export function close_side(book: ledger, stream: number): void {
  const work = book.works.get(stream);
  if (work?.is_over) book.works.delete(stream);
  else if (work) work.is_over = true;
}

/** Confere as linhas de uma resposta, na ordem em que chegam. */
export type line_checker = {
  take: (line: Buffer) => void;
  count: () => number;
  next: () => number;
  missing: Set<number>;
  error: () => string;
};

/**
 * Cria o conferente do fluxo `stream`: cada linha deve ser a próxima, byte por byte. As que faltam
 * ficam anotadas; um erro do proxy só pode ser a última.
 */
export function make_checker(book: ledger, stream: number, plan: work_plan): line_checker {
  const missing = new Set<number>();
  let next = 0;
  let count = 0;
  let error = '';
  const misplace = (index: number) => {
    const is_late = missing.delete(index);
    book.totals[is_late ? 'reordered' : 'doubled'] += 1;
    fail(book, `fluxo ${stream}: a linha ${index} veio ${is_late ? 'fora de ordem' : 'de novo'}`);
  };
  const take = (line: Buffer) => {
    const start = line.toString('latin1', 0, shown_bytes);
    if (error) fail(book, `fluxo ${stream}: depois do erro veio ${start}`);
    error = /^\{"error": "(.*)"\}$/.exec(start)?.[1] ?? '';
    if (error) return;
    // uma cabeça que chega depois de um sinal de vida, ou de HEAD_WAIT, segue como linha
    if (count === 0 && start === plan.head.text) return;
    count += 1;
    const [, owner, position] = /^\{"s":"@(\d+):(\d+)@/.exec(start) ?? [];
    const index = Number(position);
    const size = plan.sizes[index];
    const is_exact =
      Number(owner) === stream &&
      size !== undefined &&
      line.equals(Buffer.from(line_text(stream, index, size)));
    if (!is_exact) fail(book, `fluxo ${stream}: linha alheia ou danificada: ${start}`);
    else if (index < next) misplace(index);
    else {
      for (; next < index; next += 1) missing.add(next);
      next = index + 1;
    }
  };
  return { take, count: () => count, next: () => next, missing, error: () => error };
}

/**
 * Diz se um fim por MAXTIME, visto em `ended_at`, foi mesmo de silêncio: nenhuma linha confirmada
 * na janela em que ela teria adiado o fim.
 */
function was_silent(book: ledger, work: work_record, ended_at: number): boolean {
  const from = ended_at - book.maxtime_ms + silence_margin_ms;
  const to = ended_at - silence_margin_ms;
  return !work.confirmed.some((at) => at > from && at < to);
}

/**
 * Julga o fluxo `stream`, que acabou em timeout: o que foi empurrado bem antes do fim tinha de
 * chegar, e nada pode ter sido empurrado pouco antes dele.
 */
function judge_timeout(
  book: ledger,
  stream: number,
  outcome: outcome,
  checker: line_checker,
): void {
  const { missing } = checker;
  const work = book.works.get(stream);
  const cutoff = outcome.to - silence_margin_ms - book.maxtime_ms / 2;
  const confirmed = work?.confirmed ?? [];
  for (let index = checker.next(); (confirmed[index] ?? Infinity) < cutoff; index += 1) {
    missing.add(index);
  }
  if (!work) {
    const kinds = [...link_faults, ...data_faults, 'oom' as const];
    if (is_explained(book, kinds, outcome.from, outcome.to)) return;
    fail(book, `fluxo ${stream}: timeout, e o worker nunca soube dele (${outcome.uuid})`);
  } else if (missing.size === 0 && !was_silent(book, work, outcome.to)) {
    fail(book, `fluxo ${stream}: timeout com linhas chegando (${outcome.uuid})`);
  }
}

/**
 * Julga o fluxo `stream`, que pareceu sucesso: o worker terminou, e todas as linhas vieram ou vão
 * ser procuradas. A exceção está no manual: sem avisos, um FLUSHALL parece o fim de todas as
 * tarefas.
 */
function judge_success(
  book: ledger,
  stream: number,
  outcome: outcome,
  checker: line_checker,
  plan: work_plan,
): void {
  const ended = book.works.get(stream)?.has_ended === true;
  const is_whole = checker.next() === plan.sizes.length;
  if (is_whole && ended && checker.missing.size === 0) return;
  if (book.polls_only && is_explained(book, ['flush'], outcome.from, outcome.to)) {
    book.totals.cut_short += 1;
    checker.missing.clear();
    return;
  }
  if (!ended) {
    fail(book, `fluxo ${stream}: fim de sucesso sem o worker ter terminado (${outcome.uuid})`);
  }
  for (let index = checker.next(); index < plan.sizes.length; index += 1) {
    checker.missing.add(index);
  }
}

/** Julga o fluxo `stream`, que acabou numa linha de erro; devolve o nome do fim. */
function judge_error(
  book: ledger,
  stream: number,
  outcome: outcome,
  checker: line_checker,
): string {
  const { error, from, to, is_prompt } = outcome;
  if (error === 'timeout') {
    if (is_prompt) judge_timeout(book, stream, outcome, checker);
    return 'timeout';
  }
  const rule = error_rules[error];
  if (!rule || !is_explained(book, rule.kinds, from, to)) {
    fail(book, `fluxo ${stream}: erro sem falha que o explique: ${error} (${outcome.uuid})`);
  }
  return rule?.ending ?? 'outro erro';
}

/** Julga o fluxo `stream`, que acabou sem resposta inteira; devolve o nome do fim. */
function judge_break(book: ledger, stream: number, outcome: outcome): string {
  const { how, from, to, uuid } = outcome;
  const was_served = how === 'broken' || book.works.has(stream);
  const kinds: fault_kind[] = was_served ? ['kill'] : ['kill', 'handover'];
  // com REPLAY, só desiste quem volta e não acha nada: expirou numa falha longa, ou foi apagado
  if (book.resumes) kinds.push('handover', ...link_faults, ...data_faults);
  if (!is_explained(book, kinds, from, to)) {
    fail(book, `fluxo ${stream}: conexão perdida (${how}) sem falha que a explique (${uuid})`);
  }
  return was_served ? 'conexão quebrada' : 'sem resposta';
}

/** Julga o fluxo `stream`, quando o cliente dele acabou. */
export function judge_stream(
  book: ledger,
  stream: number,
  plan: work_plan,
  outcome: outcome,
  checker: line_checker,
): void {
  const { how, status, error } = outcome;
  let ending = 'cliente saiu';
  if (how === 'hung' || how === 'malformed') {
    ending = how === 'hung' ? 'preso' : 'malformado';
    fail(book, `fluxo ${stream}: ${ending} (${outcome.uuid}) ${error}`);
  } else if (how === 'complete') {
    const is_expected = status === 200 || status === plan.head.status;
    if (error) ending = judge_error(book, stream, outcome, checker);
    else if (is_expected) {
      ending = 'inteiro';
      judge_success(book, stream, outcome, checker, plan);
    } else fail(book, `fluxo ${stream}: status ${status} inesperado (${outcome.uuid})`);
  } else if (how !== 'left') {
    ending = judge_break(book, stream, outcome);
  }
  book.endings.set(ending, (book.endings.get(ending) ?? 0) + 1);
  book.totals.streams += 1;
  const { uuid, from, to } = outcome;
  if (ending !== 'inteiro' && is_explained(book, data_faults, from, to)) {
    book.totals.wiped += checker.missing.size; // o Redis as perdeu, e nada disse que era sucesso
    checker.missing.clear();
  }
  const indexes = [...checker.missing];
  if (indexes.length > 0) book.absences.push({ stream, uuid, indexes });
  close_side(book, stream);
}

/**
 * Separa as linhas que não chegaram: as de respostas cortadas, uma a uma conhecidas; as que um
 * Redis morto pode ter tirado da lista sem responder; e as perdidas, que não podem existir.
 * @param lost linhas em respostas cortadas, por fluxo
 * @param doubts quantas cada tarefa pode ter perdido com o Redis
 */
export function sort_absences(
  book: ledger,
  lost: Map<number, Set<number>>,
  doubts: Map<string, number>,
): { in_cut_replies: number; in_doubt: number } {
  const counts = { in_cut_replies: 0, in_doubt: 0 };
  for (const { stream, uuid, indexes } of book.absences) {
    const rest = indexes.filter((index) => !lost.get(stream)?.has(index));
    counts.in_cut_replies += indexes.length - rest.length;
    if (rest.length <= (doubts.get(uuid) ?? 0)) {
      counts.in_doubt += rest.length;
      continue;
    }
    book.totals.lost += rest.length;
    fail(book, `fluxo ${stream}: linhas perdidas: ${rest.slice(0, 10)} (${uuid})`);
  }
  return counts;
}
