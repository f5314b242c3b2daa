#!/usr/bin/env node
/*
 * json-proxy: HTTP que responde linha a linha (NDJSON) o que um programa qualquer escreve no Redis.
 *
 * Muitos programas sabem produzir uma resposta aos poucos, mas não sabem transmiti-la por HTTP:
 * um fluxo do n8n, um script em Python, um lote em shell. Todos sabem falar com o Redis.
 *
 *   cliente ──HTTP──▶ json-proxy ──SET tarefa, PUBLISH chave──▶ Redis ──▶ worker
 *   cliente ◀─NDJSON─ json-proxy ◀────────LPOP lista─────────── Redis ◀── RPUSH linha…, DEL tarefa
 *
 * USO
 *   node json-proxy.js -p 8771 -R 127.0.0.1:6379/1      (--help mostra todas as configurações)
 *   curl -N http://127.0.0.1:8771/qualquer/caminho -d '{"pergunta": "..."}'
 *
 * CHAVES NO REDIS
 *   ndjson_task_<uuid>    string  a tarefa em JSON, com TTL; o worker a apaga quando termina
 *   ndjson_list_<uuid>    lista   um elemento (RPUSH) por linha da resposta
 *   ndjson_claim_<uuid>   string  opcional: o worker que reservou a tarefa (SET NX EX ou INCR)
 *   ndjson_sent_<uuid>    lista   só com REPLAY: o que já saiu da lista, para quem volta
 *   ndjson_jobs           canal   a chave de cada tarefa nova
 *   ndjson_rate_<rede>_…  string  só com RATE: quantos pedidos ela fez na janela
 *   REDIS_STREAM          stream  opcional: as tarefas que não acabaram, para grupos de workers
 *
 * O QUE O WORKER PODE EMPURRAR NA LISTA
 *   {"n": 1}                     uma linha; com quebras dentro, várias se cada uma é JSON
 *   HTTP 404 {"X-Nome": "v"}     só como primeiro elemento: status e cabeçalhos da resposta
 *   RAW 200 {"X-Nome": "v"}      o mesmo, e daí em diante cada elemento segue byte a byte
 *   EOF                          fim (também EOL, END-OF-FILE e END-OF-LIST), em vez do DEL
 *   HTTP ABORT                   falhou: a conexão é cortada, para que o cliente saiba
 *
 * FORMATOS (pelo Accept do pedido)
 *   text/event-stream      um evento por linha, para o EventSource; o último, "end", diz o fim
 *   qualquer outra coisa   NDJSON
 *   RAW, se o worker o escolhe: os bytes dele, sem mais nada
 *
 * COMO UM FLUXO TERMINA (campo ending= da linha de log "end")
 *   done  timeout  client_gone  redis_lost  failed  shutdown      (a tabela está em ending_rules)
 *
 * A VIDA DE UM PEDIDO, e com que status cada etapa o recusa (os textos estão em refusal_rules)
 *   handle_request   a vez na conexão; antes dela, o analisador do Node        400 408 413 431
 *   check_request    é HTTP que só se entende de um modo?                      400 417 503 505
 *   dispatch         OPTIONS e /ping; origem, chave, Redis, RATE           400 401 403 429 500 504
 *   serve_task       um lugar, o corpo, a tarefa guardada e anunciada          408 410 413 503 504
 *   stream_loop      consulta, envia, pausa, dorme; o status é o da cabeça, ou 200
 *   finish_stream    a última linha, as chaves, o log: o que ending_rules diz  503 504
 *
 * LEIA PRIMEIRO
 *   ending_rules     o que cada fim significa para o cliente; finish_stream, para o Redis
 *   stream_loop      o laço da especificação, com todas as suas saídas
 *   dispatch         o que cada pedido é
 *
 * ACORDAR EM VEZ DE CONSULTAR
 *   Onde o servidor permite (Redis 6 ou mais novo, CLIENT TRACKING), o próprio Redis avisa quando
 *   uma lista muda, e a linha sai na hora; a consulta periódica vira rede de proteção. Onde não
 *   permite, ou com WAKEUP off, o laço é o da especificação: uma consulta a cada INTERVAL.
 *
 * VÁRIOS PROCESSOS
 *   Com WORKERS acima de 1, este processo vira o supervisor: sobe um processo, e depois que ele
 *   atende, os outros; reparte entre eles as conexões que chegam; troca o que morre; manda parar.
 *   Cada um deles é o programa inteiro, com a sua conexão com o Redis, e assina as suas linhas de
 *   log com worker=N. Com 1, o padrão, nada disso existe.
 *
 * LIMITES ACEITOS
 *   - O LPOP entrega no máximo uma vez: se a conexão com o Redis cai com a resposta a caminho, ou é
 *     trocada depois de 15 s de silêncio (60 s sobre TLS), o que vinha nela se perde. Com PAUSE
 *     acima de 0 isso é no máximo uma linha por fluxo; com REPLAY, nenhuma.
 *   - Um Redis que volta sem os últimos instantes (AOF "everysec", um snapshot) perdeu as linhas
 *     deles, e dá de novo as que neles já tinham saído; com REPLAY, o fluxo é dado por perdido.
 *   - Com PAUSE 0 as linhas são retiradas em lotes; um lote cabe inteiro na memória.
 *   - Quem fecha só a metade de escrita da conexão (shutdown) é tido por cliente que saiu.
 *
 * As seções seguem o caminho dos dados: log, contadores, Redis, HTTP, tarefa, elementos, fluxo,
 * pedido; depois o que o cerca: métricas, leitura das configurações, vida do processo. Nada aponta
 * para cima: toda função está acima de quem a chama.
 */

import { isUtf8 as is_utf8 } from 'node:buffer';
import cluster, { type Worker as cluster_worker } from 'node:cluster';
import {
  createHash as create_hash,
  randomUUID as random_uuid,
  timingSafeEqual as same_bytes,
} from 'node:crypto';
import { subscribe } from 'node:diagnostics_channel';
import { once } from 'node:events';
import {
  fstatSync as file_stats,
  readFileSync as read_file,
  watchFile as watch_file,
} from 'node:fs';
import http, {
  validateHeaderName as validate_header_name,
  validateHeaderValue as validate_header_value,
} from 'node:http';
import https from 'node:https';
import {
  type AddressInfo as address_info,
  isIP as is_ip,
  isIPv6 as is_ipv6,
  Server as net_server,
  type Socket as net_socket,
  SocketAddress as socket_address,
} from 'node:net';
import { availableParallelism as available_parallelism } from 'node:os';
import type { Duplex as duplex_stream } from 'node:stream';
import { setImmediate as next_turn, setTimeout as sleep } from 'node:timers/promises';
import { createSecureContext as make_tls_context } from 'node:tls';
import { parseArgs as parse_args } from 'node:util';
import { getHeapStatistics as heap_statistics } from 'node:v8';
import {
  createClient as create_client,
  ErrorReply as error_reply,
  MultiErrorReply as multi_error_reply,
  RESP_TYPES as resp_types,
} from 'redis';

/** Versão do programa; um teste a mantém igual à do package.json. */
export const version = '0.2.0';

// ── Configurações ───────────────────────────────────────────────────────────────────────────────
// Em maiúsculas, o que quem opera escolhe, e nada mais; tudo é lido uma vez, antes da rede. Quem as
// lê e confere está perto do fim, em Leitura das configurações: aqui só o que cada uma quer dizer.

/** Onde um servidor escuta. */
type place = { host: string; port: number };

/**
 * Endereço do Redis já separado em partes. `nodes` é onde ele escuta, ou os sentinels ou nós do
 * cluster que o sabem, e vazio se é um socket; `primary`, o nome por que os sentinels o conhecem.
 */
export type redis_address = {
  kind: 'redis' | 'sentinel' | 'cluster';
  tls: boolean;
  nodes: place[];
  primary: string;
  socket_path: string;
  database: number;
  username: string;
  password: string;
};

/** Quantos pedidos um endereço pode fazer, e em quantos segundos. */
type rate_limit = { count: number; seconds: number };

let HTTP_PORT: number; // porta HTTP; 0 escolhe uma livre
let HTTP_HOST: string; // endereço em que se escuta
let REDIS_SERVER: redis_address; // onde está o Redis
let REDIS_PASSWORD: string; // vence a da URL; vazia se não há
let REDIS_CHANNEL: string; // canal que anuncia as tarefas
let REDIS_PREFIX: string; // começo da chave da tarefa
let REDIS_LIST_PREFIX: string; // começo da chave da lista de linhas
let REDIS_STREAM: string; // stream em que as tarefas esperam; vazio não há
let REDIS_TTL: number; // s de vida das chaves sem renovação
let REPLAY: number; // s em que um cliente pode voltar; 0 desliga
let INTERVAL: number; // ms entre consultas a uma lista vazia
let PAUSE: number; // ms depois de cada linha enviada
let MAXTIME: number; // ms desde a última linha até desistir
let MAXTIME_ERROR: string; // a linha que se envia então
let MAXBODY: number; // bytes do corpo de um pedido
let WAKEUP: boolean; // se o Redis deve avisar do que muda
let GRACE: number; // ms para os fluxos terminarem numa parada
let SERVERNAME: string; // valor do cabeçalho Server
let WORKERS: number; // processos que atendem
let API_KEY: Buffer[]; // resumos das chaves; vazio não exige nenhuma
let RATE: rate_limit | undefined; // pedidos por endereço; undefined não limita
let TRUST_PROXY: boolean; // se se crê no X-Forwarded-For
let CORS_ORIGIN: string[]; // origens que podem pedir pelo navegador
let MAXTASKS: number; // fluxos ao mesmo tempo por processo
let FAILFAST: boolean; // 503 na hora se ninguém ouve o canal
let HEARTBEAT: number; // ms sem enviar nada até um keepalive; 0 desliga
let HEAD_WAIT: number; // ms que os cabeçalhos esperam pelo worker
let TLS_CERT: string; // caminho do certificado; vazio é HTTP
let TLS_KEY: string; // caminho da chave dele
let LOG_FORMAT: log_format; // texto ou JSON
let LOG_LEVEL: log_level; // a menor gravidade que se registra
let METRICS_PORT: number; // porta das métricas; 0 desliga
let METRICS_HOST: string; // endereço em que ela escuta

/** Prefixo da chave com que um worker reserva uma tarefa; faz parte do contrato, não muda. */
const claim_prefix = 'ndjson_claim_';

/** Prefixo da chave em que REPLAY guarda o que saiu da lista. */
const sent_prefix = 'ndjson_sent_';

/** Prefixo da chave em que se contam os pedidos de um endereço. */
const rate_prefix = 'ndjson_rate_';

/** O maior atraso que setTimeout aceita; acima disso ele dispara na hora. */
const max_timer_ms = 2 ** 31 - 1;

/** Como uma linha de log é escrita: para pessoas, ou um objeto JSON. */
const log_formats = ['text', 'json'] as const;

type log_format = (typeof log_formats)[number];

/** Gravidade de uma linha de log; o número é a prioridade do syslog, que o journald entende. */
const log_priority = { error: 3, warn: 4, info: 6 };

type log_level = keyof typeof log_priority;

// ── Log e tempo ─────────────────────────────────────────────────────────────────────────────────
// Uma linha por acontecimento, `etiqueta chave=valor …`, fácil de achar com grep e journalctl, ou
// um objeto JSON com os mesmos campos. As etiquetas são estáveis e estão no manual. Corpos, valores
// de cabeçalhos e a parte da URL depois do "?" nunca são escritos. Sob o systemd (JOURNAL_STREAM) a
// prioridade vai no prefixo do texto e a hora é dele.

/** Por onde o supervisor diz aos outros processos o número de cada um. */
const slot_variable = 'JSON_PROXY_SLOT';

/** O número deste processo, de 1 a WORKERS; 0 no supervisor e em quem está só. */
const worker_slot = cluster.isWorker ? Number(process.env[slot_variable] ?? 0) : 0;

/** Os campos de uma linha de log, na ordem em que aparecem. */
type log_fields = Record<string, string | number>;

/** O que cada saída recebe: JSON, o texto do journald, o texto, ou o texto com cores. */
type log_style = 'json' | 'journal' | 'plain' | 'color';

/** Devolve `value` como o logfmt quer: entre aspas só se preciso, nunca com quebra de linha. */
function format_log_value(value: string | number): string {
  const text = String(value);
  return /^[^\s"=\x00-\x1f\x7f-\x9f]+$/.test(text) ? text : JSON.stringify(text);
}

/** Dá o estilo das linhas de uma saída. Cores, só num terminal que não as recusa (no-color.org). */
function choose_log_style(target: NodeJS.WriteStream & { fd: number }): log_style {
  if (LOG_FORMAT === 'json') return 'json';
  // Terminais abertos por um serviço herdam JOURNAL_STREAM: só vale o dispositivo e inode da saída.
  const { dev, ino } = file_stats(target.fd);
  if (process.env.JOURNAL_STREAM === `${dev}:${ino}`) return 'journal';
  const { NO_COLOR: refused, TERM: terminal } = process.env;
  return target.isTTY && !refused && terminal !== 'dumb' ? 'color' : 'plain';
}

/** As cores de um terminal: da etiqueta, conforme a gravidade, e da hora. */
const log_colors = { error: '\x1b[31m', warn: '\x1b[33m', info: '\x1b[36m', time: '\x1b[2m' };

/** Monta uma linha de log, com a quebra: a etiqueta `tag`, e os campos na ordem em que aparecem. */
function format_log_line(
  style: log_style,
  level: log_level,
  tag: string,
  fields: log_fields,
): string {
  const time = new Date().toISOString();
  if (style === 'json') return `${JSON.stringify({ time, level, tag, ...fields })}\n`;
  const paint = (color: string, text: string) =>
    style === 'color' ? `${color}${text}\x1b[0m` : text;
  const prefix =
    style === 'journal' ? `<${log_priority[level]}>` : `${paint(log_colors.time, time)} `;
  let line = prefix + paint(log_colors[level], tag);
  for (const name in fields) line += ` ${name}=${format_log_value(fields[name] ?? '')}`;
  return `${line}\n`;
}

/** As linhas de uma volta do laço de eventos saem numa escrita só; aqui esperam por ela. */
const log_queue = {
  target: process.stdout as NodeJS.WriteStream,
  text: '',
  styles: new Map<number, log_style>(),
  dropped: { info: 0, warn: 0 },
};

/** Escreve as linhas de log que esperam. */
function flush_log(): void {
  const { target, text } = log_queue;
  log_queue.text = '';
  if (text !== '') target.write(text);
}

/** Um caminho de URL maior que isto é cortado no log. */
const max_logged_text = 300;

/**
 * Caracteres por escrita: em bytes, menos do que uma pipe aceita de uma vez (4096), para que as
 * linhas de dois processos não se misturem.
 */
const max_log_write = 2000;

/** Bytes que esperam por quem lê o log, numa saída; além deles, as linhas são só contadas. */
const max_log_waiting = 1024 * 1024;

/** O que o JSON não escapa e um terminal obedece (C1), ou alguém toma por quebra de linha. */
const unsafe_characters = /[\x7f-\x9f\u2028\u2029]/g;

/**
 * Escreve uma linha de log, se LOG_LEVEL a quer: `info` em stdout, o resto em stderr. `tag` é
 * estável; os campos vão na ordem em que aparecem, e os longos são cortados.
 */
function log(level: log_level, tag: string, fields: log_fields): void {
  if (log_priority[level] > log_priority[LOG_LEVEL]) return;
  const target = level === 'info' ? process.stdout : process.stderr;
  const { styles, dropped } = log_queue;
  if (target.writableLength > max_log_waiting) {
    const output = level === 'info' ? 'info' : 'warn';
    dropped[output] += 1;
    if (dropped[output] > 1) return;
    target.once('drain', () => {
      const lines = dropped[output];
      dropped[output] = 0;
      log(output === 'info' ? 'info' : 'warn', 'log_dropped', { lines });
    });
    return;
  }
  const style = styles.get(target.fd) ?? choose_log_style(target);
  styles.set(target.fd, style);
  const shown: log_fields = {};
  for (const name in fields) {
    const value = fields[name] ?? '';
    shown[name] = typeof value === 'string' ? value.slice(0, max_logged_text) : value;
  }
  if (worker_slot > 0) shown.worker = worker_slot;
  const line = format_log_line(style, level, tag, shown).replace(
    unsafe_characters,
    (unsafe) => `\\u${unsafe.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
  const is_full = log_queue.text.length + line.length > max_log_write;
  if (is_full || target !== log_queue.target) flush_log(); // a ordem entre as duas se mantém
  if (log_queue.text === '') setImmediate(flush_log);
  log_queue.target = target;
  log_queue.text += line;
}

/** Lê o relógio monotônico, que não salta quando a hora do sistema é acertada. */
function now(): number {
  return performance.now();
}

/** Espera `ms` milissegundos, sem segurar o processo por isso. */
function wait(ms: number): Promise<void> {
  return sleep(ms, undefined, { ref: false });
}

/** Um prazo que se esgotou antes da resposta. */
class deadline_error extends Error {}

/** Em quantas batidas um prazo é contado. */
const deadline_beats = 32;

/**
 * Devolve o valor de uma promessa, esperando no máximo `ms` milissegundos. O prazo é contado em
 * batidas do laço de eventos, que rareiam quando o programa pouco roda: uma máquina lenta não é um
 * Redis que falta. A promessa abandonada continua, sem rejeição solta.
 * @param lives diz se quem deve a resposta deu sinal de vida; o prazo recomeça
 * @throws deadline_error se o prazo se esgotar; ou o que a promessa lançar
 */
export function within<result>(
  promise: Promise<result>,
  ms: number,
  lives = () => false,
): Promise<result> {
  return new Promise((resolve, reject) => {
    const give_up = () => reject(new deadline_error(`sem resposta em ${ms} ms`));
    let beats = 0;
    const beat = () => {
      beats = lives() ? 0 : beats + 1;
      if (beats < deadline_beats) timer.refresh();
      else setImmediate(give_up); // o que já chegou vale: lê-se antes
    };
    const timer = setTimeout(beat, Math.ceil(ms / deadline_beats)); // nunca antes de `ms`
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

// ── Contadores ──────────────────────────────────────────────────────────────────────────────────
// O que as métricas mostram e ninguém mais precisaria guardar. Contar custa uma soma, haja ou não
// quem pergunte; o texto só é feito quando pedem (seção Métricas).

/**
 * Medidas, em segundos, contadas por faixa. `bounds` são os limites de cima, crescentes; `counts`
 * tem uma faixa a mais, a do que passa de todos; `sum` é a soma das medidas.
 */
type histogram = { bounds: number[]; counts: number[]; sum: number };

/** Até a primeira linha: de um worker que só lê um valor pronto ao modelo que pensa antes. */
const first_line_bounds = [0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

/** Uma ida e volta ao Redis: na mesma máquina é a primeira faixa; a última é quase uma recusa. */
const redis_bounds = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1];

/** Cria um histograma vazio; `bounds` são os limites das faixas, em segundos, crescentes. */
function make_histogram(bounds: number[]): histogram {
  return { bounds, counts: [...bounds.map(() => 0), 0], sum: 0 };
}

/** O que o cliente recebe numa recusa: o status, o texto do campo "error", cabeçalhos a mais. */
type refusal_rule = { status: number; text: string; headers?: Record<string, string> };

/** Quem foi recusado assim não pode pedir mais nada na mesma conexão; ou só de outro processo. */
const closing = { Connection: 'close' };
const leaving = { ...closing, 'Retry-After': '1' };

/** Como se pede com uma chave. */
const bearer = { 'WWW-Authenticate': 'Bearer' };

/** Quanto um cliente recusado por falta de lugar ou de worker deve esperar, em s. */
const try_later = { 'Retry-After': '5' };

/**
 * Toda recusa que um cliente pode receber antes de haver fluxo, e a de quem volta (gone); depois,
 * quem diz é ending_rules. O "%" é o valor que muda. As tabelas do manual são conferidas com esta.
 */
export const refusal_rules = {
  malformed: { status: 400, text: 'malformed request' },
  not_https: { status: 400, text: 'this port speaks HTTP, not HTTPS' },
  bad_url: { status: 400, text: 'the URL has characters that must be percent-encoded' },
  two_hosts: { status: 400, text: 'more than one Host header', headers: closing },
  no_host: { status: 400, text: 'missing Host header', headers: closing },
  bad_coding: { status: 400, text: 'unsupported Transfer-Encoding', headers: closing },
  bad_place: { status: 400, text: 'Last-Event-ID is not <uuid>:<lines received>' },
  bad_key: { status: 401, text: 'missing or unknown API key', headers: bearer },
  other_origin: { status: 403, text: 'requests from pages of other origins are not allowed' },
  slow_request: { status: 408, text: 'request not received in time' },
  slow_body: { status: 408, text: 'request body stopped arriving' },
  gone: { status: 410, text: 'the answer is not kept, or not from that line on' },
  large_body: { status: 413, text: 'request body larger than % bytes' },
  large_chunks: { status: 413, text: 'chunk extensions too large' },
  bad_expect: { status: 417, text: 'only "Expect: 100-continue" is supported', headers: closing },
  over_rate: { status: 429, text: 'too many requests' },
  large_headers: { status: 431, text: 'request headers too large' },
  internal: { status: 500, text: 'internal error' },
  ping_failed: { status: 500, text: 'redis does not answer' },
  no_tunnel: { status: 501, text: 'CONNECT is not supported' },
  stopping: { status: 503, text: 'server shutting down', headers: leaving },
  full: { status: 503, text: 'too many streams', headers: try_later },
  many_bodies: { status: 503, text: 'too many large bodies at once', headers: try_later },
  no_worker: { status: 503, text: 'no worker is listening', headers: try_later },
  redis_full: { status: 503, text: 'redis is out of memory' },
  redis_read_only: { status: 503, text: 'redis is read-only' },
  redis_unsaved: { status: 503, text: 'redis cannot save to disk' },
  redis_denied: { status: 503, text: 'redis denied access' },
  aborted: { status: 503, text: 'the worker aborted the answer' },
  redis_refused: { status: 503, text: 'redis refused a command' },
  redis_silent: { status: 504, text: 'redis does not answer' },
  bad_version: { status: 505, text: 'only HTTP/1.0 and HTTP/1.1 are supported', headers: closing },
} satisfies Record<string, refusal_rule>;

/** Uma recusa antes de haver tarefa: o status e a mensagem que o cliente vê. */
class refusal extends Error {
  readonly status: number;
  readonly headers: Record<string, string>;

  /**
   * @param rule linha do catálogo
   * @param value o que vai no lugar do "%" do texto
   * @param headers cabeçalhos além dos do catálogo
   */
  constructor(rule: keyof typeof refusal_rules, value = '', headers: Record<string, string> = {}) {
    const { status, text, headers: fixed }: refusal_rule = refusal_rules[rule];
    super(text.replace('%', value));
    this.status = status;
    this.headers = { ...fixed, ...headers };
  }
}

/** As contas deste processo, desde que ele subiu. */
const tally = {
  tasks: 0,
  lines: 0,
  bytes: 0,
  endings: { done: 0, timeout: 0, client_gone: 0, redis_lost: 0, failed: 0, shutdown: 0 },
  // desde 0: quem soma aumentos não veria o primeiro de cada um
  refusals: new Map(Object.values(refusal_rules).map(({ status }) => [status, 0])),
  first_line: make_histogram(first_line_bounds),
  redis_ping: make_histogram(redis_bounds),
  redis_create: make_histogram(redis_bounds),
  reconnections: 0,
  deaths: 0,
};

/** Conta uma medida, de `ms` milissegundos, num histograma. */
function observe(histogram: histogram, ms: number): void {
  const { bounds, counts } = histogram;
  const found = bounds.findIndex((bound) => ms <= bound * 1000);
  const index = found < 0 ? bounds.length : found;
  counts[index] = (counts[index] ?? 0) + 1;
  histogram.sum += ms / 1000;
}

/** Quantas recusas de um status ganham linha própria a cada tanto; das demais só se diz a soma. */
const logged_refusals = { count: 100, window_ms: 60_000 };

/** Recusas por status, desde que a primeira delas abriu a janela corrente. */
const recent_refusals = new Map<number, number>();

/** Diz no log quantas recusas não ganharam linha própria, e fecha a janela. */
function sum_refusals(): void {
  for (const [status, count] of recent_refusals) {
    const more = count - logged_refusals.count;
    if (more > 0) log('warn', 'refused_more', { status, count: more });
  }
  recent_refusals.clear();
}

/** Conta uma recusa com `status`; devolve se ela ganha linha no log, que ninguém deve encher. */
function note_refusal(status: number): boolean {
  tally.refusals.set(status, (tally.refusals.get(status) ?? 0) + 1);
  if (recent_refusals.size === 0) setTimeout(sum_refusals, logged_refusals.window_ms).unref();
  const count = (recent_refusals.get(status) ?? 0) + 1;
  recent_refusals.set(status, count);
  return count <= logged_refusals.count;
}

// ── Redis ───────────────────────────────────────────────────────────────────────────────────────
// Uma conexão para tudo, nas funções redis_*: o que se pede no mesmo instante sai junto, em ordem.
// A primeira conexão que falha encerra o programa; depois dela, reconecta-se para sempre. Sem ela
// nada fica em fila: o pedido é recusado, e os fluxos abertos tentam de novo até MAXTIME. Lançam
// ErrorReply se ele recusa, deadline_error se demora, ou o erro da conexão.

/**
 * O maior silêncio de quem ainda não atendeu: um Redis que falha faz o programa sair em menos de
 * 5 s; um que só é lento, não: até o primeiro PING respondido, cada byte recomeça a conta.
 */
const connect_limit_ms = 3500;

/**
 * Quem respondeu há menos que isto não precisa de outro PING antes de uma tarefa: sob carga ela
 * custa uma ida e volta só. Curto, para que um Redis que congela quase nunca a receba antes da
 * recusa.
 */
const fresh_answer_ms = 5;

/** Prazo da criação de uma tarefa e do resultado de uma consulta. */
const answer_limit_ms = 2000;

/** Quanto o fim de um fluxo espera pela limpeza; ela continua depois, se for preciso. */
const clean_limit_ms = 1000;

/** Entre tentativas de quem espera por um Redis que não está ou não atende ainda. */
const retry_ms = 1000;

/** Erros de um Redis que está voltando, ocupado ou trocado: ausência, que passa, não recusa. */
const transient_reply = /^(LOADING|BUSY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|READONLY|MOVED|ASK)\b/;

/** Erros de um servidor que desliga sem responder. */
const hang_up = /closed unexpectedly|ECONNRESET/;

const uuid_v4_pattern = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

/** A tarefa como é guardada no Redis, em JSON. `request_time` em segundos, com fração. */
export type task_record = {
  task_name: string;
  uuid: string;
  task_key: string;
  task_list: string;
  request_time: number;
  method: string;
  url: string;
  remote_address: string;
  headers: Record<string, string>;
  body: string;
  body_encoding?: 'base64';
};

/** Os nomes de uma tarefa: o que um fluxo guarda dela. */
type task_names = Pick<task_record, 'uuid' | 'task_key' | 'task_list'>;

/** Uma tarefa, o id dela em REDIS_STREAM, se está lá, e se um worker ainda pode escrever nela. */
type cleanup = { task_uuid: string; entry: string; worker_may_write: boolean };

/** Quais chaves de uma tarefa existem, num mesmo instante. */
type task_presence = { list_exists: boolean; task_exists: boolean; claim_exists: boolean };

/**
 * O que REPLAY sabe de uma resposta além dos elementos: quantos já jogou fora (`base`), as linhas
 * que havia neles, a cabeça se estava neles, como terminou, e por quê.
 */
const new_kept = { base: 0, lines: 0, head: '', ending: '', failure: '' };
type kept_news = Partial<typeof new_kept> | undefined;

/** O que uma consulta trouxe, e o que resta. `refusal` é uma recusa depois da retirada. */
type poll_result = task_presence & {
  elements: Buffer[];
  refusal?: Error | undefined;
  kept?: typeof new_kept; // com REPLAY, se a tarefa é conhecida
  is_fresh?: boolean; // nenhum leitor os tinha lido
};

/** Dá onde um servidor escuta: "127.0.0.1:6379", "[::1]:6379". */
function show_place({ host, port }: place): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}`;
}

/**
 * Dá um endereço do Redis sem usuário nem senha: "127.0.0.1:6379/1", "rediss://h:6380/0",
 * "unix:/run/redis.sock?db=1" ou "sentinel://a:26379,b:26379/mymaster/0".
 */
export function format_redis_address(address: redis_address): string {
  const { kind, tls, nodes, primary, socket_path, database } = address;
  if (socket_path) return `unix:${socket_path}?db=${database}`;
  const shown = nodes.map(show_place).join(',');
  if (kind === 'redis') return `${tls ? 'rediss://' : ''}${shown}/${database}`;
  const name = kind === 'sentinel' ? `/${primary}/${database}` : '';
  return `${kind}${tls ? 's' : ''}://${shown}${name}`;
}

/**
 * Entre tentativas de reconexão: dobra a partir do primeiro valor até o segundo. Curto, porque quem
 * termina entre a volta do Redis e a nossa não pode ser distinguido de quem perdeu os dados.
 */
const reconnect_ms = { first: 50, last: 250 };

/**
 * Cria um cliente, ainda sem conectar, que não se reconecta: ele, e a visão dele que dá Buffers.
 * @param tracking se o servidor deve avisar quando as chaves consultadas mudam (exige RESP 3)
 * @param session banco, usuário e senha
 */
function redis_make_client(tracking: boolean, where: place | { path: string }, session: object) {
  const host = 'host' in where ? where.host : '';
  // na primeira conexão, quem conta o silêncio é redis_while_heard
  const limit_ms: number = redis_link.was_ready ? connect_limit_ms : 0;
  const options = { ...where, connectTimeout: limit_ms, reconnectStrategy: false as const };
  const client = create_client({
    // Os avisos vêm por RESP 3; sem eles, RESP 2 é entendido por todo Redis e todo clone dele.
    // (As respostas que usamos são iguais nos dois; o tipo fica com um só.)
    RESP: (tracking ? 3 : 2) as 2,
    emitInvalidate: tracking,
    ...session,
    disableOfflineQueue: true,
    maintNotifications: 'disabled',
    // O prazo da biblioteca custa um AbortSignal por comando e não vale para o que já foi escrito.
    commandOptions: { timeout: 0 },
    socket: REDIS_SERVER.tls
      ? { ...options, tls: true, ...(!is_ip(host) && { servername: host }) }
      : options,
  });
  return { client, buffers: client.withTypeMapping({ [resp_types.BLOB_STRING]: Buffer }) };
}

/** Até onde ia, num instante, a história das escritas de um primário, que a réplica repete. */
type redis_mark = { replid: string; offset: number; at: number };

/** Quantas se guardam: um minuto delas. */
const max_marks = 30;

/** Quem guarda os slots de `from` a `to` de um cluster. */
type slot_range = { from: number; to: number; master: place; replicas: place[] };

/** O estado da conexão, único no processo. Instantes em ms do relógio monotônico. */
const redis_link = {
  // O começo do UUID de toda tarefa deste processo, por que se pedem os avisos: curto, para que o
  // resto seja aleatório; ouvir algumas das tarefas dos outros não faz mal.
  uuid_head: random_uuid().slice(0, 2),
  client: undefined as ReturnType<typeof redis_make_client>['client'] | undefined,
  buffers: undefined as ReturnType<typeof redis_make_client>['buffers'] | undefined, // dá Buffers
  socket: undefined as net_socket | undefined, // para ver chegarem bytes; sobre TLS não se vê

  // que servidor é este
  identity: '', // run_id e master_replid, com um "*" por FLUSHALL; vazio enquanto não se sabe
  connection_count: 0, // faz as vezes dele onde o INFO é proibido
  pops_many: false, // conhece LPOP com quantidade
  wrong_server: '', // por que não serve: réplica, outro nó
  sought_at: 0, // quando se procurou outro pela última vez
  primary: '', // onde está, segundo os sentinels ou os nós do cluster
  slot: -1, // num cluster, um dos slots do mestre deste processo
  slots: [] as slot_range[], // todos os dele
  nodes: [] as place[], // quem do cluster se conhece
  history: [] as redis_mark[], // até onde iam as escritas nele a cada vez que se olhou
  safe_until: 0, // até quando o que se escreveu no servidor anterior está neste
  has_replicas: false, // uma pode vir a tomar o lugar dele
  eviction_policy: '', // a maxmemory-policy, se despeja chaves
  evictions: 0, // quantas já tinha despejado quando se perguntou
  queue: { waiting: 0, active: 0 }, // as tarefas de REDIS_STREAM

  // se está de pé
  was_ready: false, // a primeira conexão já deu certo
  lost_at: 0, // quando caiu; 0 se está de pé
  lost_reason: '', // o último motivo registrado
  alive_at: 0, // o último sinal de vida
  bytes_seen: 0, // os recebidos quando se olhou pela última vez
  tracking: false, // avisa das mudanças
  asks_news: false, // isso foi pedido
};

/** O que mudou de uma tarefa: a lista, outra chave, ou talvez tudo. */
type news = 'list' | 'key' | 'all';

/** Quem quer saber das mudanças de cada tarefa, por UUID, o último trecho das chaves dela. */
const redis_listeners = new Map<string, ((what: news) => void)[]>();
const uuid_length = 36;

/** Avisa quem lê a tarefa `uuid`, salvo `author`, do que mudou nela. */
function redis_tell(uuid: string, what: news, author?: unknown): void {
  for (const tell of redis_listeners.get(uuid) ?? []) if (tell !== author) tell(what);
}

/** Avisa a todos que tudo pode ter mudado: a conexão voltou, ou um FLUSHALL. */
function redis_tell_all(): void {
  for (const uuid of redis_listeners.keys()) redis_tell(uuid, 'all');
}

/**
 * Dá o cliente conectado e a visão dele que devolve Buffers, ou lança. A node-redis recusa comandos
 * soltos sem conexão, mas enfileira MULTI; por isso todos passam por aqui.
 */
function redis_ready() {
  const { client, buffers } = redis_link;
  if (!client?.isReady || !buffers) throw new Error('sem conexão com o Redis');
  return { client, buffers };
}

/** Registra que o Redis respondeu ao que se perguntou em `asked_at`. */
function redis_note_answer(asked_at: number, latency: histogram): void {
  redis_link.alive_at = now();
  observe(latency, redis_link.alive_at - asked_at);
}

/** Diz se chegaram bytes do Redis desde a última vez que se olhou. */
function redis_heard(): boolean {
  const bytes = redis_link.socket?.bytesRead ?? 0;
  const is_new = bytes !== redis_link.bytes_seen;
  redis_link.bytes_seen = bytes;
  return is_new;
}

/** Diz se `slot` é do mestre a que este processo se liga. */
function redis_owns(slot: number): boolean {
  return redis_link.slots.some(({ from, to }) => from <= slot && slot <= to);
}

/** Diz se o erro é uma recusa (OOM, NOPERM…; num cluster, o slot que se mudou), que não passa. */
function is_refusal(error: unknown): error is Error {
  if (!(error instanceof error_reply)) return false;
  const [, slot = ''] = /^MOVED (\d+)/.exec(error.message) ?? [];
  const has_left = slot !== '' && REDIS_SERVER.kind === 'cluster' && !redis_owns(Number(slot));
  return has_left || !transient_reply.test(error.message);
}

/**
 * Erros de um servidor que não é o procurado: uma réplica, por uma troca de primário, outro nó. Só
 * uma conexão nova, com o nome perguntado de novo, acha o certo.
 */
const wrong_server_reply = /^(READONLY|MOVED|MASTERDOWN|CLUSTERDOWN)\b/;

/** Diz qual recusa do catálogo é um erro do Redis, sem nomes de chaves nem de usuários. */
function refusal_reason(error: Error): keyof typeof refusal_rules {
  const reasons: [RegExp, keyof typeof refusal_rules][] = [
    [/^OOM\b/, 'redis_full'],
    [/^READONLY\b/, 'redis_read_only'],
    [/^MISCONF\b/, 'redis_unsaved'],
    [/^(NOPERM|NOAUTH|WRONGPASS)\b/, 'redis_denied'],
  ];
  return reasons.find(([pattern]) => pattern.test(error.message))?.[1] ?? 'redis_refused';
}

/**
 * Devolve `message` até o nome do comando que o Redis não conhece: num HELLO ou AUTH, o eco dos
 * argumentos traz a senha.
 */
function hide_arguments(message: string): string {
  return message.replace(/, with args .*/s, '');
}

/**
 * Dá um erro de conexão em uma frase, sem senha, que diz o que fazer. Quem já atendeu por minutos
 * tem as configurações certas: dele não se duvida.
 */
function explain_redis_error(error: unknown): string {
  const { message = '', code = '' } = error as { message?: string; code?: string };
  const explanations: [RegExp, string][] = [
    [/ENOTFOUND|EAI_AGAIN/, 'host desconhecido; confira REDIS_SERVER (-R)'],
    [
      /ECONNREFUSED/,
      'ninguém escuta nesse endereço; o Redis está de pé? confira REDIS_SERVER (-R)',
    ],
    [/ENOENT/, 'o socket não existe; confira o caminho em REDIS_SERVER (-R)'],
    [/EACCES/, 'sem permissão para o socket; o usuário do proxy está no grupo do Redis?'],
    [/EHOSTUNREACH|ENETUNREACH/, 'sem rota até o host; confira REDIS_SERVER (-R)'],
    [/WRONGPASS|invalid password/, 'usuário ou senha errados; confira REDIS_PASSWORD (-S)'],
    [/without any password configured/, 'o Redis não tem senha; retire REDIS_PASSWORD (-S)'],
    [/NOAUTH/, 'o Redis exige senha; dê REDIS_PASSWORD (-S)'],
    [/NOPERM/, 'o usuário do Redis não tem permissão para os comandos do proxy'],
    [
      /^ sentinel$|unknown command '?SELECT/i,
      'é um Sentinel, que não guarda dados; em REDIS_SERVER (-R), sentinel://host:porta/primário',
    ],
    [
      /^ cluster$|SELECT is not allowed in cluster/,
      'é um nó de um cluster, que só tem parte das chaves; em REDIS_SERVER (-R), cluster://host',
    ],
    [/unknown primary/, 'os sentinels não conhecem esse primário; confira REDIS_SERVER (-R)'],
    [/DB index|invalid DB/, 'banco fora da faixa do servidor; confira o /N de REDIS_SERVER (-R)'],
    [/DENIED/, 'o Redis está em modo protegido; defina uma senha nele ou escute só em 127.0.0.1'],
    [/MISCONF/, 'o Redis não consegue salvar em disco e recusa tudo; veja o log dele'],
    [/LOADING/, 'o Redis ainda está carregando os dados; tente de novo em instantes'],
    [/READONLY|MASTERDOWN/, 'esse Redis é uma réplica; procura-se o primário no mesmo endereço'],
    [/cluster support disabled/, 'não é um cluster; em REDIS_SERVER (-R), sem o cluster://'],
    [/WRONGTYPE/, 'a chave de REDIS_STREAM já existe e não é um stream; dê outro nome'],
    [/MOVED|CLUSTERDOWN/, 'esse nó do cluster não tem a chave, ou o cluster está fora'],
    [/CERT|certificate/i, 'certificado TLS não aceito; dê a autoridade em NODE_EXTRA_CA_CERTS'],
    [/SSL|TLS|EPROTO/, 'o servidor não fala TLS nessa porta; use redis:// ou a porta certa'],
    [hang_up, 'o servidor fechou a conexão; a porta é do Redis? pede TLS? está em modo protegido?'],
    [
      /timeout|ETIMEDOUT|sem resposta/i,
      'não respondeu a tempo; confira REDIS_SERVER (-R) e a rede; a porta é do Redis? fala TLS?',
    ],
  ];
  const found = explanations.find(([pattern]) => pattern.test(`${code} ${message}`));
  if (!found) return hide_arguments(message) || code || 'erro desconhecido';
  const doubt = /;? [^;?]*(REDIS_SERVER|a porta é do Redis).*/;
  return redis_link.was_ready ? found[1].replace(doubt, '') : found[1];
}

/** Um Redis que aceita a conexão e não responde ao PING neste prazo conta como fora do ar. */
const ping_limit_ms = 1500;

/**
 * Diz se o Redis responde a um PING a tempo, ou a algo há menos que `fresh_ms`. A falta de conexão
 * já foi registrada quando ela caiu; aqui só o que falha com a conexão de pé.
 */
async function redis_ping(fresh_ms = 0): Promise<boolean> {
  try {
    const { client } = redis_ready();
    const asked_at = now();
    if (asked_at - redis_link.alive_at < fresh_ms) return true;
    await within(client.ping(), ping_limit_ms);
    redis_note_answer(asked_at, tally.redis_ping);
    return true;
  } catch (error) {
    const is_connected = redis_link.client?.isReady === true;
    if (is_connected) log('warn', 'ping_failed', { reason: explain_redis_error(error) });
    return false;
  }
}

/** Lê o campo `name` do INFO `info`; vazio se não há. */
function info_field(info: string, name: string): string {
  return new RegExp(`^${name}:([^\\r\\n]*)`, 'm').exec(info)?.[1] ?? '';
}

/**
 * Guarda de `info` quantas chaves o Redis já despejou e até onde vai a história das escritas.
 * @param at quando se perguntou; o que se escreveu depois não está nela
 */
function redis_note_info(info: string, at: number): void {
  redis_link.evictions = Number(info_field(info, 'evicted_keys'));
  const offset = Number(info_field(info, 'master_repl_offset'));
  const mark = { replid: info_field(info, 'master_replid'), offset, at };
  redis_link.history = [mark, ...redis_link.history].slice(0, max_marks);
  redis_link.has_replicas = Number(info_field(info, 'connected_slaves')) > 0;
}

/**
 * Dá o mestre de um cluster, de `ranges`, a que este processo se liga: as tarefas dele são todas
 * desse, com as chaves nos slots dele. Uma conexão só basta assim, e os avisos e a ordem dos
 * comandos são os de um Redis sozinho. O escolhido é um para cada processo, ou ao acaso; depois,
 * sempre quem tiver o último slot do que foi: mudanças de slots começam pelos primeiros.
 */
function redis_choose_master(ranges: slot_range[]): place {
  const masters = [...new Set(ranges.map(({ master }) => show_place(master)))].sort();
  const turn = worker_slot > 0 ? worker_slot - 1 : Math.floor(Math.random() * masters.length);
  const of = (name?: string) => ranges.filter(({ master }) => show_place(master) === name);
  if (redis_link.slot < 0) redis_link.slot = of(masters[turn % masters.length]).at(-1)?.to ?? -1;
  const { slot } = redis_link;
  const found = ranges.find(({ from, to }) => from <= slot && slot <= to)?.master;
  if (!found) throw new Error('CLUSTERDOWN');
  redis_link.slots = of(show_place(found));
  redis_link.nodes = ranges.flatMap(({ master, replicas }) => [master, ...replicas]);
  return found;
}

/** Olha o que muda no Redis, e devolve se pôde; se não, fica o que se sabia. Não lança. */
async function redis_look(): Promise<boolean> {
  const asked_at = now();
  try {
    const { client } = redis_ready();
    redis_note_info(await client.info(), asked_at);
    if (REDIS_SERVER.kind !== 'cluster') return true;
    const master = show_place(redis_choose_master(await client.clusterSlots()));
    if (master !== redis_link.primary) redis_link.wrong_server = 'MOVED';
    return true;
  } catch {
    return false; // caiu: a conexão seguinte lê de novo
  }
}

/**
 * Guarda um erro que diz que se fala com o servidor errado: redis_watch procura outro. Num cluster
 * isso pode ser só de um slot, e então o resto segue: redis_look dirá.
 */
function redis_note_error(error: unknown): void {
  if (!(error instanceof error_reply) || !wrong_server_reply.test(error.message)) return;
  const is_slot = REDIS_SERVER.kind === 'cluster' && error.message.startsWith('MOVED');
  if (is_slot) return void redis_look();
  if (redis_link.wrong_server === '') redis_link.identity += '*'; // os dados podem ser já outros
  redis_link.wrong_server = error.message;
}

/** LPOP com quantidade existe desde o Redis 6.2. */
const pop_count_version = 6.2;

/**
 * Descobre qual servidor atende a conexão nova e o que ele sabe fazer. Onde o INFO é proibido, cada
 * conexão conta como um servidor diferente: na dúvida, dados sumidos não passam por sucesso.
 * @returns o redis_mode: "standalone", "sentinel" ou "cluster"; vazio se não se sabe
 */
async function redis_identify(): Promise<string> {
  const fallback = `conexão ${++redis_link.connection_count}`;
  const asked_at = now();
  redis_link.identity = '';
  let info = '';
  try {
    info = await redis_ready().client.info();
  } catch (error) {
    if (!(error instanceof error_reply)) return ''; // caiu de novo; a próxima conexão pergunta
  }
  const policy = info_field(info, 'maxmemory_policy');
  redis_link.eviction_policy = policy === 'noeviction' ? '' : policy;
  // de uma réplica promovida: de quem o era, e a primeira escrita dele que não tem
  const former = info_field(info, 'master_replid2');
  const missing_from = Number(info_field(info, 'second_repl_offset'));
  const marks = redis_link.history.filter(({ replid }) => replid && replid === former);
  const unknown = marks.length > 0 || REDIS_SERVER.kind !== 'redis' ? 0 : Infinity; // um reinício
  redis_link.safe_until = marks.find(({ offset }) => offset < missing_from)?.at ?? unknown;
  redis_note_info(info, asked_at);
  redis_link.wrong_server = info_field(info, 'role') === 'slave' ? 'READONLY' : '';
  redis_link.pops_many = Number.parseFloat(info_field(info, 'redis_version')) >= pop_count_version;
  // o segundo muda quando o servidor passa a primário, ou a réplica de outro
  const identity = info_field(info, 'run_id') + info_field(info, 'master_replid');
  redis_link.identity = identity || fallback;
  if (redis_link.eviction_policy) {
    const hint = 'cheio, esse Redis joga tarefas e linhas fora; use maxmemory-policy noeviction';
    log('warn', 'eviction', { policy, hint });
  }
  return info_field(info, 'redis_mode');
}

/** Diz se o Redis pode ter despejado chaves desde que `count` foi lido de redis_link.evictions. */
async function redis_evicted_since(count: number): Promise<boolean> {
  if (redis_link.eviction_policy === '') return false;
  return !(await redis_look()) || redis_link.evictions > count;
}

/** Dá o slot de um cluster em que ficam as chaves com {`tag`}: o CRC16 (XMODEM) dele. */
export function key_slot(tag: string): number {
  let crc = 0;
  for (const byte of Buffer.from(tag)) {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc << 1) ^ (crc & 0x8000 ? 0x1021 : 0);
  }
  return crc & 0x3fff;
}

/** Dá um UUIDv4 novo, que começa como os do processo; num cluster, com as chaves no mestre dele. */
function redis_new_uuid(): string {
  const { uuid_head, slots } = redis_link;
  for (;;) {
    const uuid = uuid_head + random_uuid().slice(uuid_head.length);
    if (slots.length === 0 || redis_owns(key_slot(uuid))) return uuid;
  }
}

/** Dá o que `text`, um UUID, é nas chaves: num cluster, o que as deixa no mesmo slot. */
function key_tag(text: string): string {
  return REDIS_SERVER.kind === 'cluster' ? `{${text}}` : text;
}

/** Dá as chaves da tarefa `task_uuid`: a dela, a da lista, a da reserva e a que REPLAY guarda. */
function redis_keys(task_uuid: string): [string, string, string, string] {
  const tag = key_tag(task_uuid);
  return [REDIS_PREFIX + tag, REDIS_LIST_PREFIX + tag, claim_prefix + tag, sent_prefix + tag];
}

/** Dá a vida das chaves de uma tarefa sem renovação, em s. */
function key_life_s(): number {
  return REPLAY || REDIS_TTL;
}

/**
 * Apaga as chaves de uma tarefa encerrada. Se um worker ainda pode escrever, deixa no lugar da
 * lista um EOF com TTL: as linhas atrasadas caem em algo que expira, em vez de recriar a lista para
 * sempre. Comandos soltos, sem MULTI: com a memória cheia o RPUSH falha, mas o UNLINK vale.
 * Sem conexão, insiste até `until`, quando o TTL já fez o serviço. Não lança.
 */
async function redis_clean(work: cleanup, until = now() + REDIS_TTL * 1000): Promise<void> {
  const keys = redis_keys(work.task_uuid);
  const replies: Promise<unknown>[] = [];
  try {
    const { client } = redis_ready();
    replies.push(client.unlink(keys.slice(0, 3)));
    if (work.entry) replies.push(client.xDel(REDIS_STREAM, work.entry));
    if (work.worker_may_write) {
      replies.push(client.rPush(keys[1], 'EOF'), client.expire(keys[1], REDIS_TTL));
    }
  } catch (error) {
    replies.push(Promise.reject(error));
  }
  const failed = (await Promise.allSettled(replies)).filter((reply) => reply.status === 'rejected');
  const refused = failed.find((reply) => is_refusal(reply.reason));
  for (const { reason } of failed) redis_note_error(reason);
  if (refused) {
    const reason = String(refused.reason.message);
    log('warn', 'clean_refused', { task: work.task_uuid, reason });
  } else if (failed.length > 0 && now() < until) {
    setTimeout(redis_clean, retry_ms, work, until).unref();
  }
}

/** Lê de `sum` quais chaves existem: a lista conta um, a tarefa dois, a reserva quatro. */
function presence_of(sum: number): task_presence {
  return { list_exists: (sum & 1) > 0, task_exists: (sum & 2) > 0, claim_exists: (sum & 4) > 0 };
}

/** Diz quais das três chaves de uma tarefa existem, no mesmo instante. */
async function redis_presence(task: task_names): Promise<task_presence> {
  const { task_key: key, task_list: list, uuid } = task;
  const claim = claim_prefix + key_tag(uuid);
  // Uma chave repetida conta de novo: a soma diz quais existem.
  const sum = await redis_ready().client.exists([list, key, key, claim, claim, claim, claim]);
  return presence_of(sum);
}

/** Entradas de REDIS_STREAM que podem sobrar de proxies mortos: bem mais que as tarefas vivas. */
const queue_trim = { strategy: 'MAXLEN', strategyModifier: '~', threshold: 100_000 } as const;

/**
 * Guarda a tarefa e anuncia a chave dela, tudo ou nada (MULTI): ninguém ouve falar de tarefa que
 * não foi guardada. Sem resposta a tempo, uma limpeza segue atrás na mesma conexão, para que nenhum
 * worker atenda um cliente que foi recusado.
 * @returns quantos assinantes do canal receberam o anúncio, e o id em REDIS_STREAM ou vazio
 */
async function redis_create_task(task: task_record): Promise<{ receivers: number; entry: string }> {
  const { uuid, task_key } = task;
  const asked_at = now();
  const multi = redis_ready().client.multi();
  const sent = redis_keys(uuid)[3];
  if (REPLAY > 0) multi.rPush(sent, JSON.stringify(new_kept)).expire(sent, REPLAY);
  const work = multi
    .set(task_key, JSON.stringify(task), { expiration: { type: 'EX', value: key_life_s() } })
    .publish(REDIS_CHANNEL, task_key);
  if (REDIS_STREAM) work.xAdd(REDIS_STREAM, '*', { task_key }, { TRIM: queue_trim });
  try {
    const replies: unknown[] = await within(work.exec(), answer_limit_ms);
    redis_note_answer(asked_at, tally.redis_create);
    const [, receivers, entry = ''] = replies.slice(REPLAY > 0 ? 2 : 0);
    const known = Number(receivers); // de um cluster, só os deste nó: nos outros pode haver mais
    return { receivers: redis_link.slots.length > 0 ? known || 1 : known, entry: String(entry) };
  } catch (error) {
    const is_partial = error instanceof multi_error_reply; // o XADD foi recusado, o resto não
    const cause = is_partial ? error.errors().next().value : error;
    redis_note_error(cause);
    // outro erro é resposta: nada foi guardado; sem resposta, não se sabe
    const is_kept = is_partial || !(error instanceof error_reply);
    if (is_kept) void redis_clean({ task_uuid: uuid, entry: '', worker_may_write: true });
    throw cause;
  }
}

/**
 * Conta as tarefas que esperam em REDIS_STREAM, e as que um worker tem em mãos: cada grupo recebe
 * todas, e o que vai à frente diz quantas. Sem resposta fica o que se sabia. Não lança.
 */
async function redis_count_queue(): Promise<void> {
  try {
    const { client } = redis_ready();
    const [entries, groups] = await Promise.all([
      client.xLen(REDIS_STREAM),
      client.xInfoGroups(REDIS_STREAM).catch(() => []), // sem tarefa alguma, a chave não existe
    ]);
    const pending = groups.map((group) => Number(group.pending));
    const active = Math.min(entries, Math.max(0, ...pending));
    redis_link.queue = { waiting: entries - active, active };
  } catch {
    // caiu, ou recusa: o próximo pedido dirá
  }
}

/**
 * Conta um pedido de `network`, na forma de network_of, na janela corrente de `seconds`, comum a
 * todos os proxies; devolve quantos ele já fez nela, e em quantos segundos ela acaba.
 */
async function redis_count_request(network: string, seconds: number) {
  const clock_s = Date.now() / 1000;
  const window = Math.floor(clock_s / seconds);
  const { slots } = redis_link;
  let shard = 0; // num cluster, o que deixa a chave no mestre deste processo
  while (slots.length > 0 && !redis_owns(key_slot(String(shard)))) shard += 1;
  const key = `${rate_prefix}${network}_${window}${slots.length > 0 ? `{${shard}}` : ''}`;
  const counted = redis_ready().client.multi().incr(key).expire(key, seconds).exec();
  const [count] = await within(counted, answer_limit_ms);
  return { count: Number(count), wait_s: Math.ceil((window + 1) * seconds - clock_s) };
}

/** A conexão caiu antes da resposta a um LPOP: se ele foi atendido, o que retirou se perdeu. */
class lost_reply extends Error {}

/**
 * Retira até `count` linhas (mais de uma, só se o servidor souber), e as devolve com o que resta,
 * numa ida e volta. UM SÓ EXISTS É A GARANTIA: ele vê a lista e a tarefa no mesmo instante, depois
 * do LPOP. Se nenhuma existe, tudo o que o worker empurrou antes do seu DEL já saiu. Perguntadas em
 * separado, primeiro a lista, o worker poderia empurrar a última linha e apagar a tarefa entre as
 * duas, e a linha se perderia. Lança lost_reply se o que retirou pode ter-se perdido.
 */
async function redis_poll(task: task_names, count: number): Promise<poll_result> {
  const { buffers } = redis_ready();
  const [popped, presence] = await Promise.allSettled([
    count > 1 ? buffers.lPopCount(task.task_list, count) : buffers.lPop(task.task_list),
    redis_presence(task),
  ]);
  if (popped.status === 'rejected') {
    redis_note_error(popped.reason);
    if (popped.reason instanceof error_reply) throw popped.reason;
    log('warn', 'poll_lost', { task: task.uuid });
    throw new lost_reply(String(popped.reason.message));
  }
  redis_link.alive_at = now();
  const found = popped.value ?? [];
  const elements = Array.isArray(found) ? found : [found];
  if (presence.status === 'fulfilled') return { elements, ...presence.value };
  if (elements.length === 0) throw presence.reason;
  // O que já saiu da lista é entregue antes da recusa. Uma queda entre as respostas não é recusa: a
  // próxima consulta a encontra e espera a conexão voltar.
  const refusal = is_refusal(presence.reason) ? presence.reason : undefined;
  return { elements, list_exists: true, task_exists: true, claim_exists: true, refusal };
}

/**
 * O que REPLAY faz com uma tarefa, tudo no mesmo instante. O que sai da lista é guardado antes de
 * ser respondido, e cada leitor diz de onde quer ler: leem quantos quiserem, e uma resposta que se
 * perde é lida de novo. As chaves expiram juntas: se há o que foi guardado e não há a tarefa, ela
 * foi apagada. O primeiro elemento guardado é o new_kept, em JSON; essa lista só nasce com a tarefa
 * e nunca fica vazia, e por isso nunca perde o TTL.
 */
const replay_script = `
local task, list, claim, sent = unpack(KEYS)
local ask, found, header = cjson.decode(ARGV[1]), {}, redis.call('LINDEX', sent, 0)
if not header then return {} end
local kept, news = cjson.decode(header), ask.news
local at, is_over = ask.from - kept.base, kept.ending ~= ''
local rest = redis.call('LLEN', sent) - 1 - at
if rest < 0 then return {} end
if rest > 0 and at >= 0 then found = redis.call('LRANGE', sent, 1 + at, at + ask.count) end
if rest == 0 and ask.pops > 0 and not is_over then
  found = redis.call('LRANGE', list, 0, ask.pops - 1)
  if #found == 0 and ask.opens then found = {'HTTP 200'} end
  if #found > 0 then redis.call('RPUSH', sent, unpack(found)) end
  redis.call('LTRIM', list, #found, -1)
end
if news and not is_over and (news.base or kept.base + 1) > kept.base then
  if news.base then redis.call('LTRIM', sent, news.base - kept.base, -1) end
  for name, value in pairs(news) do kept[name] = value end
  header = cjson.encode(kept)
  redis.call('LSET', sent, 0, header)
end
if ask.leaves and not is_over then redis.call('RPUSH', list, '') end
if ask.ttl > 0 then for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ask.ttl) end end
local left = redis.call('EXISTS', list, task, task, claim, claim, claim, claim)
if is_over then left = left - left % 2 end
if rest > #found then left = left + 1 - left % 2 end
return {left, header, found, rest}`;

const replay_sha = create_hash('sha1').update(replay_script).digest('hex');

/** O que um leitor pede: de onde ler, quantos guardados, quantos da lista; o TTL, se o renova. */
const plain_ask = { from: 0, count: 0, pops: 0, ttl: 0 };

/**
 * Com REPLAY, lê da tarefa `uuid` o que um leitor ainda não leu, e faz o mais que ele pede: abrir a
 * resposta sem esperar pela cabeça, sair, guardar o que mudou no new_kept.
 * @returns o que veio; sem `kept` se dessa tarefa nada há, ou há menos do que ele já leu
 */
async function redis_replay(
  uuid: string,
  ask: Partial<typeof plain_ask> & { opens?: boolean; leaves?: boolean; news?: kept_news },
): Promise<poll_result> {
  const text = JSON.stringify({ ...plain_ask, ...ask });
  const call = { keys: redis_keys(uuid), arguments: [text] };
  const { buffers } = redis_ready();
  const reply = await buffers.evalSha(replay_sha, call).catch((error) => {
    if (/^NOSCRIPT\b/.test(error.message)) return buffers.eval(replay_script, call);
    redis_note_error(error);
    // sem memória nada se guarda, e nada se retirou: espera-se, como por um Redis que não está
    throw /\bOOM\b/.test(error.message) ? new Error(error.message) : error;
  });
  redis_link.alive_at = now();
  type found = [number?, Buffer?, Buffer[]?, number?];
  const [sum = 0, header, elements = [], rest] = reply as unknown as found;
  const is_fresh = rest === 0 && elements.length > 0;
  return {
    elements,
    ...presence_of(sum),
    ...(header && { kept: JSON.parse(String(header)), is_fresh }),
  };
}

/**
 * Renova o TTL das chaves da tarefa `task_uuid`, e devolve se a dela e a da lista existiam;
 * undefined se o Redis não está ou recusou. Os comandos saem junto com o próximo.
 */
async function redis_renew(task_uuid: string) {
  try {
    const { client } = redis_ready();
    if (REPLAY > 0) return await redis_replay(task_uuid, { ttl: REPLAY });
    const keys = redis_keys(task_uuid).slice(0, 3);
    const replies = await Promise.all(keys.map((key) => client.expire(key, REDIS_TTL)));
    return { task_exists: replies[0] === 1, list_exists: replies[1] === 1 };
  } catch (error) {
    const { message } = error as Error;
    if (is_refusal(error)) log('warn', 'renew_refused', { task: task_uuid, reason: message });
    return undefined;
  }
}

/** O menor TTL de uma lista adotada, em s: três renovações de quem tem um REDIS_TTL comum. */
const least_adopted_ttl_s = 600;

/** Dá o TTL, em s, de uma lista sem dono: nunca curto, para que um dono, se há, o renove antes. */
function adopted_ttl_s(): number {
  return Math.max(REDIS_TTL, least_adopted_ttl_s);
}

/** Página do SCAN da varredura, e a pausa entre páginas, para não pesar em milhões de chaves. */
const sweep_page = { keys: 500, pause_ms: 10 };

/**
 * Varre o Redis, agora e a cada REDIS_TTL, atrás de listas sem TTL cuja tarefa não existe mais (um
 * proxy morto com kill -9, um worker atrasado que nenhum EOF alcançou) e em que ninguém mexe há
 * REDIS_TTL, e lhes dá um TTL. Dois proxies podem varrer ao mesmo tempo: repetir o EXPIRE não faz
 * mal. Não lança.
 */
async function redis_sweep(): Promise<void> {
  const pattern = `${REDIS_LIST_PREFIX.replace(/[\\*?[\]^]/g, '\\$&')}*`;
  let adopted = 0;
  const adopt = async (list: string) => {
    const uuid = list.slice(REDIS_LIST_PREFIX.length).replace(/^\{(.*)\}$/, '$1');
    if (!uuid_v4_pattern.test(uuid)) return;
    const { client } = redis_ready();
    const [task_key] = redis_keys(uuid);
    const [ttl, task_exists, idle_s] = await Promise.all([
      client.ttl(list),
      client.exists(task_key),
      client.objectIdleTime(list).catch(() => REDIS_TTL), // com LFU não se sabe
    ]);
    if (ttl !== -1 || task_exists || Number(idle_s) < REDIS_TTL) return;
    const count = await client.expire(list, adopted_ttl_s());
    adopted += count; // só depois da espera: outras somam enquanto isso
  };
  try {
    const options = { MATCH: pattern, COUNT: sweep_page.keys };
    for await (const lists of redis_ready().client.scanIterator(options)) {
      await Promise.all(lists.map(adopt));
      await wait(sweep_page.pause_ms);
    }
  } catch (error) {
    const is_closed = !redis_link.was_ready; // pela parada: não é uma falha
    if (!is_closed) log('warn', 'sweep_failed', { reason: explain_redis_error(error) });
  }
  if (adopted > 0) log('info', 'sweep', { adopted, ttl: adopted_ttl_s() });
  setTimeout(redis_sweep, REDIS_TTL * 1000).unref();
}

/** Registra a queda da conexão, e de novo se o motivo mudar (caiu, e ao voltar recusa a senha). */
function redis_note_loss(error: unknown): void {
  const reason = explain_redis_error(error);
  redis_link.alive_at = now(); // um erro também é sinal de que se está tentando
  if (!redis_link.was_ready || reason === redis_link.lost_reason) return;
  if (redis_link.lost_at === 0) redis_link.lost_at = now();
  redis_link.lost_reason = reason;
  redis_link.identity = '';
  log('error', 'redis_down', { redis: format_redis_address(REDIS_SERVER), reason });
}

/** Espera um Redis que voltou carregar os dados; devolve false se a conexão caiu antes disso. */
async function redis_settled(): Promise<boolean> {
  for (;;) {
    try {
      await redis_ready().client.ping();
      return true;
    } catch (error) {
      if (!(error instanceof error_reply)) return false;
      if (!transient_reply.test(error.message)) return true;
    }
    await wait(retry_ms);
  }
}

/**
 * Pede ao servidor que avise das mudanças nas chaves deste processo (NOLOOP: não as nossas). O modo
 * é o BCAST, por prefixo: o outro, por chave lida, guarda no Redis cada chave consultada até que
 * ela mude, e a lista e a tarefa que se foram não mudam mais; cada tarefa deixaria lá 300 bytes.
 * Como o prefixo leva uuid_head, um processo ouve das suas e de uma em 256 dos outros.
 */
async function redis_track(): Promise<void> {
  const { client } = redis_ready();
  const { uuid_head } = redis_link;
  const head = key_tag(uuid_head).replace('}', '');
  const prefixes = [REDIS_PREFIX, REDIS_LIST_PREFIX].flatMap((name) => ['PREFIX', name + head]);
  await Promise.all([
    client.sendCommand(['CLIENT', 'TRACKING', 'OFF']), // o que a biblioteca pediu
    client.sendCommand(['CLIENT', 'TRACKING', 'ON', 'BCAST', ...prefixes, 'NOLOOP']),
  ]);
  redis_link.tracking = true;
}

/** Registra se os avisos estão em vigor, ou por que não: `reason`. */
function redis_log_wakeup(reason = ''): void {
  log('info', 'wakeup', redis_link.tracking ? { mode: 'tracking' } : { mode: 'polling', reason });
}

/**
 * Atende uma conexão refeita: identifica o servidor, espera que ele atenda, pede os avisos de novo
 * e acorda os fluxos. Até lá, quem consulta dorme só INTERVAL.
 */
async function redis_note_ready(): Promise<void> {
  const { asks_news } = redis_link;
  redis_link.tracking = false;
  if (!redis_link.was_ready) return; // a primeira conexão cuida de si
  void redis_identify();
  if (!(await redis_settled())) return;
  let refused = '';
  try {
    if (asks_news) await redis_track();
  } catch (error) {
    if (!(error instanceof error_reply)) return; // caiu de novo
    refused = error.message;
  }
  if (redis_link.lost_at === 0) {
    redis_tell_all(); // a troca do pedido pode ter engolido um aviso
    return;
  }
  const down_ms = Math.round(now() - redis_link.lost_at);
  redis_link.lost_at = 0;
  redis_link.lost_reason = '';
  tally.reconnections += 1;
  log('info', 'redis_up', { redis: format_redis_address(REDIS_SERVER), down_ms });
  if (asks_news) redis_log_wakeup(refused);
  redis_tell_all();
}

/**
 * Passa adiante o aviso de que mudou uma chave ou, com null, de um FLUSHALL: o servidor passa a
 * contar como outro, e quem não achar mais nada nele perdeu os dados, não terminou.
 */
function redis_note_change(key: unknown): void {
  if (key !== null) {
    const name = String(key);
    const what = name.startsWith(REDIS_LIST_PREFIX) ? 'list' : 'key';
    redis_tell(name.replace('}', '').slice(-uuid_length), what);
    return;
  }
  if (redis_link.identity) redis_link.identity += '*';
  redis_tell_all();
}

/** Dá o usuário e a senha do Redis; vazio se não há. */
function redis_login() {
  const { username } = REDIS_SERVER;
  const password = REDIS_PASSWORD || REDIS_SERVER.password;
  return { ...(username && { username }), ...(password && { password }) };
}

/**
 * Pergunta a um sentinel onde está o primário, ou a um nó do cluster, o mestre; devolve o que ele
 * diz. A senha, que de um sentinel costuma não ser, vai a quem a pede.
 * @throws deadline_error, ErrorReply, erro de conexão, ou Error se o sentinel não o conhece
 */
async function redis_ask(node: place): Promise<place> {
  const { kind, primary } = REDIS_SERVER;
  const { client } = redis_make_client(false, node, {});
  const ask = async (): Promise<place> => {
    if (kind === 'cluster') return redis_choose_master(await client.clusterSlots());
    const question = ['SENTINEL', 'GET-MASTER-ADDR-BY-NAME', primary];
    const [host, port] = (await client.sendCommand<string[] | null>(question)) ?? [];
    if (!host) throw new Error('unknown primary');
    return { host, port: Number(port) };
  };
  const ask_again = async (error: Error) => {
    const { username = 'default', password } = redis_login();
    if (!password || !/^NOAUTH\b/.test(error.message)) throw error;
    await client.auth({ username, password });
    return ask();
  };
  client.on('error', () => {}); // connect também o lança
  const { socket } = redis_link; // o desta pergunta toma o lugar dele
  try {
    return await within(
      client.connect().then(() => ask().catch(ask_again)),
      answer_limit_ms,
    );
  } finally {
    redis_link.socket = socket;
    client.destroy();
  }
}

/**
 * Dá onde está o Redis. Com sentinels ou um cluster, é onde diz o primeiro deles a responder.
 * @throws se nenhum sabe, o erro do que respondeu, se algum, ou o de um deles
 */
async function redis_find(): Promise<place | { path: string }> {
  const { kind, nodes, socket_path: path } = REDIS_SERVER;
  if (kind === 'redis') return nodes[0] ?? { path };
  const asked = new Map([...nodes, ...redis_link.nodes].map((node) => [show_place(node), node]));
  try {
    const found = await Promise.any([...asked.values()].map(redis_ask));
    const primary = show_place(found);
    if (primary !== redis_link.primary) log('info', 'primary', { redis: primary });
    redis_link.primary = primary;
    return found;
  } catch (error) {
    const { errors } = error as AggregateError;
    throw errors.find(({ code }) => code === undefined) ?? errors[0];
  }
}

/**
 * Conecta e devolve um cliente, que passa a ser o do processo; `asks_news` pede os avisos. Cada um
 * é novo: o nome do servidor é resolvido outra vez, ou perguntado a quem o sabe.
 */
async function redis_open(asks_news: boolean) {
  const session = { database: REDIS_SERVER.database, ...redis_login() };
  const { client, buffers } = redis_make_client(asks_news, await redis_find(), session);
  client.on('error', redis_note_loss);
  client.on('ready', redis_note_ready);
  client.on('invalidate', redis_note_change);
  Object.assign(redis_link, { client, buffers, asks_news });
  return client.connect();
}

/** Refaz a conexão que caiu, e a que cair depois dela; tenta até a parada. */
async function redis_reconnect(): Promise<void> {
  const { first, last } = reconnect_ms;
  for (let pause_ms = first; redis_link.was_ready; pause_ms = Math.min(2 * pause_ms, last)) {
    try {
      const client = await redis_open(redis_link.asks_news);
      client.once('terminated', redis_reconnect);
      return;
    } catch (error) {
      redis_note_loss(error);
    }
    await wait(pause_ms);
  }
}

/** Devolve algo que se espera do Redis, enquanto ele der sinal de vida. */
function redis_while_heard<result>(promise: Promise<result>): Promise<result> {
  return within(promise, connect_limit_ms, redis_heard);
}

/** Tenta a primeira conexão, com os avisos se `asks_news`, e a confirma com um PING. */
async function redis_try_connect(asks_news: boolean): Promise<void> {
  const confirmed = redis_open(asks_news).then((client) =>
    Promise.all([redis_identify(), client.ping(), asks_news && redis_track()]),
  );
  try {
    const [mode] = await redis_while_heard(confirmed);
    if (mode === 'sentinel' || (mode === 'cluster' && !redis_link.primary)) throw new Error(mode);
    if (REDIS_STREAM) await redis_while_heard(redis_ready().client.xLen(REDIS_STREAM));
  } catch (error) {
    redis_link.client?.destroy();
    throw error;
  }
}

/**
 * Faz a primeira conexão. Se o servidor recusa RESP 3 ou os avisos (Redis antigo, ACL, alguns
 * clones) ou desliga ao ouvir falar deles, conecta sem eles e o laço consulta a cada INTERVAL. Um
 * que ainda carrega os dados não falhou: espera-se por ele.
 */
async function redis_connect(): Promise<void> {
  subscribe('net.client.socket', (message) => {
    redis_link.socket = (message as { socket: net_socket }).socket; // o do Redis; ver redis_ask
  });
  const redis = format_redis_address(REDIS_SERVER);
  let [asks_news, reason, is_told] = [WAKEUP, 'WAKEUP off', false];
  for (;;) {
    try {
      await redis_try_connect(asks_news);
      break;
    } catch (error) {
      const { message, code = '' } = error as NodeJS.ErrnoException;
      const is_reply = error instanceof error_reply;
      if (is_reply && /^LOADING\b/.test(message)) {
        if (!is_told) log('warn', 'redis_loading', { redis });
        is_told = true;
        await sleep(retry_ms);
        continue;
      }
      if (!asks_news || !(is_reply || hang_up.test(`${code} ${message}`))) throw error;
      reason = hide_arguments(message);
      asks_news = false;
    }
  }
  redis_link.was_ready = true;
  redis_link.client?.once('terminated', redis_reconnect);
  redis_log_wakeup(reason);
}

/** Diz se os sentinels já dão o primário por outro. */
async function redis_has_moved(): Promise<boolean> {
  const { primary } = redis_link;
  await redis_find().catch(() => {});
  return redis_link.primary !== primary;
}

/** Larga a conexão: redis_reconnect faz outra ou, se já a fazia, tenta de novo. */
function redis_drop(reason: Error): void {
  const { client } = redis_link;
  redis_note_loss(reason);
  client?.destroy();
  client?.emit('terminated');
}

/** De quanto em quanto tempo a conexão é conferida. */
const watch_ms = 2000;

/** De quanto em quanto tempo, no máximo, se procura o servidor certo por uma conexão nova. */
const seek_ms = 4000;

/**
 * Silêncio a partir do qual a conexão é trocada. Um Redis que só travou por menos que isto responde
 * tudo o que lhe foi pedido; trocá-la antes jogaria fora uma retirada já escrita. Sobre TLS não se
 * veem chegar os bytes de uma linha enorme, e o PING espera atrás dela: mais paciência.
 */
const silence_limit_ms = { plain: 15_000, tls: 60_000 };

/**
 * Confere de tempos em tempos se a conexão se calou sem fechar (o host sumiu), o que não dá erro
 * por muitos minutos, ou se fala com o servidor errado, e então a troca por outra.
 */
async function redis_watch(): Promise<void> {
  const limit_ms = REDIS_SERVER.tls ? silence_limit_ms.tls : silence_limit_ms.plain;
  for (redis_link.alive_at = now(); ; await wait(watch_ms)) {
    const asked_at = now();
    const alive = () => redis_note_answer(asked_at, tally.redis_ping);
    redis_link.client?.ping().then(alive, (error) => error instanceof error_reply && alive());
    const { eviction_policy, has_replicas, slots } = redis_link;
    if (eviction_policy || has_replicas || slots.length > 0) void redis_look();
    if (REDIS_STREAM && METRICS_PORT > 0 && worker_slot <= 1) void redis_count_queue();
    if (redis_heard()) redis_link.alive_at = asked_at; // uma linha enorme a caminho
    const silence_ms = asked_at - redis_link.alive_at;
    const is_odd = silence_ms > 2 * watch_ms; // dois PING sem resposta
    const is_silent = silence_ms > limit_ms || (is_odd && (await redis_has_moved()));
    const is_wrong = redis_link.wrong_server !== '' && asked_at - redis_link.sought_at > seek_ms;
    if (!redis_link.was_ready || !(is_silent || is_wrong)) continue;
    redis_link.sought_at = asked_at;
    redis_drop(is_wrong ? new Error(redis_link.wrong_server) : new deadline_error('sem resposta'));
  }
}

/** Fecha a conexão, esperando um pouco pelas respostas que faltam. */
async function redis_close(): Promise<void> {
  const client = redis_link.client;
  redis_link.was_ready = false;
  if (client?.isReady) await within(client.close(), clean_limit_ms).catch(() => {});
  client?.destroy();
}

// ── HTTP ────────────────────────────────────────────────────────────────────────────────────────
// O que toda resposta tem, os erros em JSON e a vez de cada pedido na sua conexão. Também os erros
// que o próprio Node daria em texto puro (400, 408, 417, 431) saem daqui, com os nossos cabeçalhos.

const author = 'Patrick Brandao <patrickbrandao@gmail.com>';

/** Mais que os 75 s usuais de um balanceador: quem fecha uma conexão ociosa é ele, nunca nós. */
const keep_alive_ms = 76_000;

/** Prazo para os cabeçalhos chegarem inteiros, e de quanto em quanto tempo ele é conferido. */
const headers_limit_ms = 30_000;
const headers_check_ms = 1000;

/** Prazo para o pedido inteiro, corpo incluído, e o de um corpo que parou de chegar. */
const request_limit_ms = 300_000;
const body_limit_ms = 30_000;

/** Silêncio de um cliente até o sistema perguntar se ele está lá; 10 s sem resposta encerram. */
const probe_after_ms = 30_000;

/** Depois de recusar um corpo, quanto tempo ainda se lê e joga fora, para a resposta ser lida. */
const linger_ms = 2000;

/** Pedidos sem resposta numa conexão: quem enfileira de verdade (pipelining) manda uma dúzia. */
const max_pipelined = 64;

const allowed_methods = 'GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS';

/** O tipo de mídia dos eventos que o EventSource de um navegador lê. */
const event_type = 'text/event-stream';

/** Por que um pedido é interrompido de fora. */
type interruption = 'client_gone' | 'shutdown';

/**
 * A vez de um pedido. Um AbortSignal diria o mesmo de uma interrupção, por um décimo do tempo de
 * uma tarefa curta e mais de um kB por fluxo parado.
 */
class request_turn {
  interrupted: interruption | undefined; // por que ele não deve mais ser atendido
  on_interrupt = () => {}; // quem avisar disso: ele espera por uma coisa de cada vez
  body_bytes = 0; // o que o corpo dele ocupa, até a tarefa estar guardada

  /** Começa com o que o Node dá de um pedido. */
  constructor(
    readonly request: http.IncomingMessage,
    readonly response: http.ServerResponse,
  ) {}
}

/** O que se sabe de uma conexão de cliente. */
class connection_state {
  bytes_at_rest: number; // os recebidos quando ficou ociosa: se há mais, vem um pedido
  turns = new Set<request_turn>(); // os pedidos sem resposta
  last_turn = Promise.resolve(); // o fim da vez do último deles
  last_response: http.ServerResponse | undefined;
  broken: refusal | undefined; // o que o analisador recusou nela
  on_broken = () => {}; // avisa o pedido que ainda espera pelo corpo

  /** Começa ociosa, com o que a conexão já recebeu. */
  constructor(readonly socket: net_socket) {
    this.bytes_at_rest = socket.bytesRead;
  }
}

const connections = new Map<duplex_stream, connection_state>();

/** Pedidos em andamento em todo o processo, para a parada graciosa. */
const live_requests = new Set<request_turn>();

/**
 * A vida do processo: o servidor, quantos pedidos ocupam um lugar de MAXTASKS, quanto ocupam os
 * corpos deles e se a parada já começou.
 */
const lifetime = {
  server: undefined as http.Server | undefined,
  tasks: 0,
  body_bytes: 0,
  stopping: false,
};

/** Dá os cabeçalhos de toda resposta. */
function common_headers(): Record<string, string> {
  return { Server: SERVERNAME, 'X-Author': author };
}

/** Por quanto tempo um navegador pode guardar a resposta a um OPTIONS, em s. */
const preflight_age_s = 600;

/**
 * Dá os cabeçalhos que deixam uma página de outra origem ler a resposta, se há CORS_ORIGIN. Num
 * OPTIONS que pergunta antes de pedir, também o que ela pode mandar.
 */
function cors_headers(request: http.IncomingMessage): Record<string, string> {
  if (CORS_ORIGIN.length === 0) return {};
  const { origin = '' } = request.headers;
  const is_open = CORS_ORIGIN.includes('*');
  const headers: Record<string, string> = is_open ? {} : { Vary: 'Origin' };
  if (!is_open && !CORS_ORIGIN.includes(origin)) return headers;
  headers['Access-Control-Allow-Origin'] = is_open ? '*' : origin;
  headers['Access-Control-Expose-Headers'] = 'X-Task-UUID, X-Task-Key, X-Task-List';
  const asked_method = request.headers['access-control-request-method'];
  if (request.method !== 'OPTIONS' || !asked_method) return headers;
  headers['Access-Control-Allow-Methods'] = allowed_methods;
  headers['Access-Control-Allow-Headers'] =
    request.headers['access-control-request-headers'] ?? '*';
  headers['Access-Control-Max-Age'] = String(preflight_age_s);
  return headers;
}

/** Devolve o SHA-256 de `key`, para que comparar chaves não revele nem o tamanho delas. */
function hash_key(key: string): Buffer {
  return create_hash('sha256').update(key).digest();
}

/** Diz se `text` é uma das chaves de API, em tempo que não depende dele. */
function is_api_key(text: string): boolean {
  const given = hash_key(text);
  return API_KEY.map((key) => same_bytes(key, given)).includes(true);
}

/** Dá a credencial de um cabeçalho Authorization: Bearer; vazia se não há. */
function bearer_of(authorization = ''): string {
  return /^Bearer +(\S+) *$/i.exec(authorization)?.[1] ?? '';
}

/** Diz se o cliente mandou uma chave de API, ou se nenhuma é exigida. */
function is_authorized(request: http.IncomingMessage): boolean {
  if (API_KEY.length === 0) return true;
  const { authorization, 'x-api-key': header = '' } = request.headers;
  return is_api_key(String(header)) || is_api_key(bearer_of(authorization));
}

/**
 * Lê um endereço IP na única forma em que é contado e mostrado; vazio se não é um: "203.0.113.7" de
 * "203.0.113.7:50001", "::1" de "[::1]:80", "198.51.100.9" de "::FFFF:198.51.100.9".
 */
export function parse_address(text: string): string {
  const bare = text.trim().replace(/^\[(.*)\](?::\d*)?$|^([\d.]+):\d*$/, '$1$2');
  if (!is_ip(bare)) return '';
  const family = is_ipv6(bare) ? 'ipv6' : 'ipv4';
  return new socket_address({ address: bare, family }).address.replace(/^::ffff:(?=.*\.)/, '');
}

/**
 * Dá a quem pertence `address`, na forma de parse_address: o próprio se é IPv4, ou um /64 como
 * "2001:db8:0:1::/64", que um assinante recebe inteiro, e muda dentro dele.
 */
export function network_of(address: string): string {
  if (!address.includes(':')) return address;
  const [head = [], tail = []] = address
    .split('::')
    .map((part) => part.split(':').filter((group) => group !== ''));
  const zeros = Array<string>(Math.max(0, 8 - head.length - tail.length)).fill('0');
  return `${[...head, ...zeros, ...tail].slice(0, 4).join(':')}::/64`;
}

/**
 * Dá o endereço de que veio um pedido; vazio se o cliente já se foi. O último X-Forwarded-For é do
 * proxy que está à nossa frente; os anteriores, qualquer um pode inventar.
 */
function remote_address_of({ headers, socket }: http.IncomingMessage): string {
  const forwarded = TRUST_PROXY ? String(headers['x-forwarded-for'] ?? '') : '';
  const last = parse_address(forwarded.split(',').at(-1) ?? '');
  return last || parse_address(socket.remoteAddress ?? '');
}

/** Monta a linha de erro da especificação, {"error": "..."}, com `message`, em inglês. */
function error_line(message: string): string {
  return `{"error": ${JSON.stringify(message)}}`;
}

/** Dá os cabeçalhos de uma resposta de erro com o corpo `body`. */
function error_headers(body: string): Record<string, string> {
  return {
    ...common_headers(),
    'Content-Type': 'application/json',
    'Content-Length': String(Buffer.byteLength(body)),
    'Cache-Control': 'no-store',
    'X-Content-Type-Options': 'nosniff',
  };
}

/** Dá o caminho e a busca de `target`: "/a?x=1", também de "http://h/a?x=1". */
export function url_of(target: string): string {
  const url = target.replace(/^[a-z][a-z0-9+.-]*:\/\/[^/?#]*/i, '');
  return /^[^?#]/.test(url) ? url : `/${url}`;
}

/** Dá o caminho de `target`, sem a busca: "/ping" de "http://h/ping?x=1". */
export function path_of(target: string): string {
  return url_of(target).replace(/[?#].*/s, '');
}

/** Tipos de mídia que o cliente pode escolher em Accept: os de NDJSON e o dos eventos. */
const stream_types = [
  'application/x-ndjson',
  'application/json-lines',
  'application/jsonl',
  event_type,
];

/**
 * Dá o tipo de mídia da resposta: o primeiro de stream_types que `accept` nomeia sem q=0; senão
 * texto a quem aceita páginas, que um navegador mostra em vez de baixar, e NDJSON aos outros.
 */
export function choose_media_type(accept = ''): string {
  const wanted = accept.split(',').filter((item) => !/;\s*q=0(\.0*)?\s*(;|$)/i.test(item));
  const named = wanted.map((item) => (item.split(';')[0] ?? '').trim().toLowerCase());
  const fallback = named.includes('text/html') ? 'text/plain' : 'application/x-ndjson';
  return named.find((type) => stream_types.includes(type)) ?? fallback;
}

/** Interrompe um pedido e acorda quem espera por ele. Só a primeira razão vale. */
function interrupt(turn: request_turn, why: interruption): void {
  if (turn.interrupted) return;
  turn.interrupted = why;
  turn.on_interrupt();
}

/**
 * Acompanha uma conexão nova: quando ela fecha, ou o cliente encerra o lado dele, todos os pedidos
 * em andamento nela são interrompidos.
 */
function watch_connection(socket: net_socket): void {
  const state = new connection_state(socket);
  const client_left = () => {
    for (const turn of state.turns) interrupt(turn, 'client_gone');
  };
  connections.set(socket, state);
  socket.on('error', () => {}); // depois de um CONNECT o Node deixa de ouvi-los; o close basta
  socket.once('end', client_left);
  socket.once('close', () => {
    connections.delete(socket);
    client_left();
  });
}

/**
 * Fecha uma conexão em que nada acontece. A do Node (closeIdleConnections, e close, que a chama)
 * não serve: ela corta também uma resposta encerrada que o cliente lento ainda não leu até o fim.
 */
function close_if_idle(state: connection_state | undefined): void {
  const is_idle = state?.turns.size === 0 && state.socket.bytesRead === state.bytes_at_rest;
  if (is_idle) state.socket.destroySoon();
}

/**
 * Corta a conexão de um pedido. Um cliente HTTP/1.0 não tem pedaços, e para ele fechar seria o fim
 * normal: só um RST lhe diz que falta algo. Em TLS o diz a falta do close_notify.
 */
function break_off({ socket, httpVersion: http_version }: http.IncomingMessage): void {
  if (http_version === '1.0' && TLS_CERT === '') socket.resetAndDestroy();
  else socket.destroy();
}

/**
 * Espera uma resposta já encerrada sair para a rede e largar a conexão, que só então serve a
 * próxima. Um cliente que não lê o resto por MAXTIME perde a conexão.
 * @param response resposta em que `end` ou `destroy` já foi chamado
 */
function response_sent(response: http.ServerResponse): Promise<void> {
  const { socket } = response.req;
  if (response.closed || socket.destroyed) return Promise.resolve();
  return new Promise((resolve) => {
    const timer = setTimeout(break_off, MAXTIME, response.req);
    const sent = () => {
      clearTimeout(timer);
      response.off('close', sent);
      socket.off('close', sent);
      resolve();
    };
    response.once('close', sent);
    socket.once('close', sent);
  });
}

/** O que um pedaço de corpo ocupa além dos seus bytes: um cliente pode mandá-los um a um. */
const chunk_cost = 256;

/**
 * A parte da memória do V8 que cabe aos corpos a caminho: cada um ainda vira texto e JSON, de até o
 * dobro do tamanho e com até dois bytes por caractere.
 */
const body_budget = heap_statistics().heap_size_limit / 8;

/**
 * Lê o corpo de um pedido. Quem mandou `Expect: 100-continue` só é convidado a enviar agora.
 * @throws refusal 413 se passar de MAXBODY, 408 se parar de chegar, 503 se já há corpos demais em
 *   memória, ou a do analisador; Error se o cliente sair no meio
 */
function read_body(turn: request_turn): Promise<Buffer> {
  const { request, response } = turn;
  const too_large = () => new refusal('large_body', String(MAXBODY));
  if (Number(request.headers['content-length'] ?? 0) > MAXBODY) return Promise.reject(too_large());
  const waits = request.headers.expect !== undefined && request.httpVersion !== '1.0';
  if (waits) response.writeContinue(); // check_request só deixou passar o 100-continue
  const state = connections.get(request.socket);
  const chunks: Buffer[] = [];
  let timer: NodeJS.Timeout;
  const body = new Promise<Buffer>((resolve, reject) => {
    let size = 0;
    const stalled = () => reject(new refusal('slow_body'));
    timer = setTimeout(stalled, body_limit_ms);
    const check_broken = () => {
      if (state?.broken && !request.complete) reject(state.broken);
    };
    if (state) state.on_broken = check_broken;
    check_broken();
    request.on('data', (chunk: Buffer) => {
      timer.refresh();
      size += chunk.length;
      if (size > MAXBODY) return reject(too_large());
      chunks.push(chunk);
      turn.body_bytes += chunk.length + chunk_cost;
      lifetime.body_bytes += chunk.length + chunk_cost;
      if (lifetime.body_bytes > Math.max(body_budget, 2 * MAXBODY))
        reject(new refusal('many_bodies'));
    });
    request.once('end', () => resolve(Buffer.concat(chunks)));
    request.once('error', reject);
    turn.on_interrupt = () => reject(new Error('interrompido'));
    if (turn.interrupted) turn.on_interrupt();
  });
  return body.finally(() => {
    request.removeAllListeners('data'); // o que ainda vier não religa o prazo
    chunks.length = 0; // nada fica com o pedido
    clearTimeout(timer);
  });
}

/**
 * Responde uma recusa. Se ainda há corpo a caminho, a conexão será fechada, mas antes o resto é
 * lido e jogado fora por um instante: um fechamento seco apagaria a resposta antes de ser lida.
 */
async function send_refusal({ request, response }: request_turn, why: refusal): Promise<void> {
  const { status, message: reason } = why;
  const { method = '', url = '' } = request;
  const address = remote_address_of(request);
  const path = path_of(url);
  if (note_refusal(status)) log('warn', 'refused', { status, method, path, reason, address });
  const body = `${error_line(reason)}\n`;
  if (!request.complete) await new Promise((resolve) => setImmediate(resolve)); // veio junto?
  const ending = !request.complete && closing;
  response.writeHead(status, { ...error_headers(body), ...why.headers, ...ending });
  if (request.complete) {
    response.end(body);
    return;
  }
  response.write(body);
  request.resume();
  const input_over = new Promise<void>((resolve) => {
    request.once('end', resolve);
    request.once('close', resolve);
  });
  await within(input_over, linger_ms).catch(() => {});
  response.end();
}

/** Destrói uma conexão daqui a pouco, feche ou não o cliente o seu lado. */
function destroy_later(socket: duplex_stream): void {
  setTimeout(() => socket.destroy(), linger_ms).unref();
}

/**
 * Fecha uma conexão com uma última resposta, salvo se a anterior já prometeu ser a última: numa sem
 * tamanho, que acaba quando a conexão fecha, ela pareceria parte do corpo. `reason` é do log.
 */
function end_connection(socket: duplex_stream, why: refusal, reason: string): void {
  const { status, message } = why;
  const address = parse_address((socket as net_socket).remoteAddress ?? '');
  if (note_refusal(status)) log('warn', 'refused', { status, reason, address });
  const is_over = connections.get(socket)?.last_response?.shouldKeepAlive === false;
  const body = `${error_line(message)}\n`;
  const headers = { ...error_headers(body), Date: new Date().toUTCString(), ...closing };
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  const head = `HTTP/1.1 ${status} ${http.STATUS_CODES[status]}\r\n${lines.join('')}`;
  if (socket.writable) socket.end(is_over ? undefined : `${head}\r\n${body}`);
  destroy_later(socket);
}

/** O primeiro byte de uma conexão TLS, que não começa nenhum pedido HTTP. */
const tls_handshake = 0x16;

/**
 * Responde o que o analisador do Node recusou, e fecha a conexão. Se foi no corpo de um pedido, é
 * ele quem responde: esperar a vez dele seria esperar para sempre. Senão, as respostas em andamento
 * na conexão terminam antes.
 */
async function refuse_broken_request(
  error: NodeJS.ErrnoException,
  socket: duplex_stream,
): Promise<void> {
  const state = connections.get(socket);
  if (!state) {
    // não chegou a haver conexão; quem só abre e fecha a porta (um balanceador) não é notícia
    const is_news = TLS_CERT !== '' && error.code !== 'ECONNRESET';
    const address = parse_address((socket as net_socket).remoteAddress ?? '');
    if (is_news) log('warn', 'tls_failed', { address, reason: error.code ?? error.message });
    socket.destroy();
    return;
  }
  if (state.broken) return; // cada pedaço que chega depois repete o erro
  const is_tls = Reflect.get(error, 'rawPacket')?.[0] === tls_handshake;
  const code = is_tls ? 'HTTPS' : (error.code ?? '');
  const answers: Record<string, keyof typeof refusal_rules> = {
    HTTPS: 'not_https',
    HPE_INVALID_URL: 'bad_url',
    HPE_HEADER_OVERFLOW: 'large_headers',
    HPE_CHUNK_EXTENSIONS_OVERFLOW: 'large_chunks',
    ERR_HTTP_REQUEST_TIMEOUT: 'slow_request',
  };
  state.broken = new refusal(answers[code] ?? 'malformed');
  const is_body = state.last_response?.req.complete === false;
  if (is_body) state.on_broken();
  await state.last_turn;
  if (is_body || error.code === 'ECONNRESET') destroy_later(socket);
  else end_connection(socket, state.broken, `${code || error.message}: ${state.broken.message}`);
}

// ── Tarefa ──────────────────────────────────────────────────────────────────────────────────────
// Um pedido HTTP vira um registro JSON que qualquer linguagem lê. Nada do corpo se perde: o que não
// é UTF-8 válido vai em base64, e o campo body_encoding diz isso.

/** Nomes já escritos como o original os entrega: os clientes repetem os mesmos, e chegam antes. */
const header_names = new Map<string, string>();
const max_header_names = 500;

/** Devolve `name` como o programa original o entrega: "X-Api-Key" para "x-api-key". */
function capitalize_header(name: string): string {
  const known = header_names.get(name);
  if (known) return known;
  const dashed = name.toLowerCase().replaceAll('_', '-'); // no WSGI os dois são um só
  const capitalized = dashed.replace(/(^|-)[a-z]/g, (initial) => initial.toUpperCase());
  if (header_names.size < max_header_names) header_names.set(name, capitalized);
  return capitalized;
}

/**
 * Junta `raw_headers`, nomes e valores alternados, como o Node os dá, num valor por nome: repetidos
 * unidos por ", ", e os de Cookie por "; ".
 */
export function collect_headers(raw_headers: string[]): Record<string, string> {
  const headers = new Map<string, string>();
  for (let index = 0; index + 1 < raw_headers.length; index += 2) {
    const name = capitalize_header(raw_headers[index] ?? '');
    const value = raw_headers[index + 1] ?? '';
    const before = headers.get(name);
    const separator = name === 'Cookie' ? '; ' : ', ';
    headers.set(name, before === undefined ? value : before + separator + value);
  }
  return Object.fromEntries(headers);
}

/** Devolve os cabeçalhos sem as chaves de API, que não são da conta do worker. */
function hide_api_keys(headers: Record<string, string>): Record<string, string> {
  if (API_KEY.length === 0) return headers;
  const { 'X-Api-Key': _key, Authorization: authorization, ...others } = headers;
  const credentials = (authorization ?? '').split(','); // repetidos vêm juntos
  const is_ours = credentials.some((text) => is_api_key(bearer_of(text.trim())));
  if (authorization === undefined || is_ours) return others;
  return { ...others, Authorization: authorization };
}

/**
 * Diz se os controles de um corpo, que em JSON são seis bytes cada, o fariam maior que em base64.
 * As quebras de linha, as aspas e a barra, comuns em textos, são dois e não contam.
 */
function is_control_heavy(body: Buffer): boolean {
  let controls = 0;
  for (let index = 0; index < body.length; index += 1) {
    const byte = body[index] ?? 0;
    if (byte < 0x20 && (byte < 0x08 || byte > 0x0d || byte === 0x0b)) controls += 1;
  }
  return 5 * controls > body.length / 3;
}

/** Monta a tarefa de um pedido, com um UUIDv4 novo, cujo começo é o do processo. */
function make_task(request: http.IncomingMessage, body: Buffer): task_record {
  const uuid = redis_new_uuid();
  const [task_key, task_list] = redis_keys(uuid);
  const is_text = is_utf8(body) && !is_control_heavy(body);
  return {
    task_name: uuid,
    uuid,
    task_key,
    task_list,
    request_time: Date.now() / 1000,
    method: request.method ?? '',
    url: url_of(request.url ?? ''),
    remote_address: remote_address_of(request),
    headers: hide_api_keys(collect_headers(request.rawHeaders)),
    body: body.toString(is_text ? 'utf8' : 'base64'),
    ...(!is_text && { body_encoding: 'base64' as const }),
  };
}

// ── Elementos ───────────────────────────────────────────────────────────────────────────────────
// O que um worker pode dizer. Um elemento da lista é uma linha; só o primeiro pode ser uma cabeça;
// uma palavra de fim ou HTTP ABORT encerra. O que não é exatamente isso é linha: nada do que foi
// empurrado some. Depois de uma cabeça RAW só HTTP ABORT é lido: o resto segue byte a byte.

const abort_word = 'HTTP ABORT';
const abort_bytes = Buffer.from(abort_word);

const head_pattern = /^(?:HTTP|RAW)[ \t]+\d+(?:[\s{]|$)/;
const valid_head_pattern = /^(HTTP|RAW)[ \t]+(\d{3})\s*(\{.*\})?$/s;

/** Status de respostas sem corpo. */
const bodyless_statuses = new Set([204, 205, 304]);

const [feed_byte, return_byte] = [0x0a, 0x0d];

/** Os cabeçalhos que um worker pede. */
type worker_headers = Record<string, string | string[]>;

/** Uma cabeça; `dropped` são os nomes dos cabeçalhos recusados. */
type head_element = {
  kind: 'head';
  is_raw: boolean;
  status: number;
  headers: worker_headers;
  dropped: string[];
};

/** Um elemento da lista, já entendido. `flaw` é por que uma linha parecida não é uma cabeça. */
export type list_element =
  | { kind: 'blank' }
  | { kind: 'end' }
  | { kind: 'abort' }
  | { kind: 'line'; bytes: Buffer; flaw?: string }
  | head_element;

/** O worker desistiu, ou pediu o que não se pode cumprir: nada disso pode passar por inteiro. */
class worker_fault extends Error {}

/** Cabeçalhos que conduzem a resposta, ou que a identificam: são só do proxy. */
const reserved_header =
  /^(connection|transfer-encoding|keep-alive|upgrade|te|trailer|date|proxy-.*|server|x-author|x-task-(uuid|key|list))$/i;

/** Os que descrevem os bytes do corpo, que só em RAW são os do worker. */
const body_header = /^content-(length|encoding)$/i;

/**
 * Confere um cabeçalho pedido por um worker.
 * @param name nome
 * @param value valor, como veio no JSON
 * @param owns_body se o corpo é do worker, byte a byte
 * @returns o valor como o Node o aceita, ou undefined se o cabeçalho não pode ser usado
 */
function usable_header(name: string, value: unknown, owns_body: boolean) {
  const values = Array.isArray(value) ? value : [value];
  const is_plain = values.every((item) => /^(string|number|boolean)$/.test(typeof item));
  if (!is_plain || reserved_header.test(name)) return undefined;
  if (body_header.test(name) && !owns_body) return undefined;
  if (/^content-length$/i.test(name) && !/^\d{1,15}$/.test(String(value))) return undefined;
  try {
    validate_header_name(name);
    for (const item of values) validate_header_value(name, String(item));
  } catch {
    return undefined;
  }
  return Array.isArray(value) ? value.map(String) : String(value);
}

/** Lê uma cabeça, como 'HTTP 404 {"Content-Type": "a/b"}', ou diz por que ela não vale. */
function parse_head(text: string): head_element | string {
  const [, word = '', digits = '', json = '{}'] = valid_head_pattern.exec(text) ?? [];
  const status = Number(digits);
  if (!word) return 'não é HTTP ou RAW <status> {cabeçalhos}';
  if (status < 200 || status > 599) return `status ${status} não é aceito`;
  let given: Record<string, unknown>;
  try {
    given = JSON.parse(json);
  } catch {
    return 'os cabeçalhos não são um objeto JSON';
  }
  const is_raw = word === 'RAW';
  const has_length = status !== 204 && status !== 205; // neles o HTTP não o permite
  const headers: [string, string | string[]][] = [];
  const dropped: string[] = [];
  for (const [name, value] of Object.entries(given)) {
    const usable = usable_header(name, value, is_raw && has_length);
    if (usable === undefined) dropped.push(name);
    else headers.push([name, usable]);
  }
  return { kind: 'head', is_raw, status, headers: Object.fromEntries(headers), dropped };
}

/** Palavras e cabeças são curtas; elementos maiores que isto são linhas, sem mais exame. */
const max_head_bytes = 64 * 1024;

const end_words = new Set(['EOF', 'EOL', 'END-OF-FILE', 'END-OF-LIST']);

/** Os bytes por que começam as palavras, as cabeças e os elementos em branco. */
const word_starts = new Set(Buffer.from('EHR \t\r\n'));
const blanks = new Set(Buffer.from(' \t\r\n'));

/** Entende um elemento de uma resposta em linhas: devolve linha, cabeça, palavra ou nada. */
export function parse_element(bytes: Buffer): list_element {
  // quase toda linha começa por outro byte, e não precisa virar texto
  const is_plain = bytes.length > 0 && !word_starts.has(bytes[0] ?? 0);
  const is_long = bytes.length > max_head_bytes && !bytes.every((byte) => blanks.has(byte));
  if (is_plain || is_long) return { kind: 'line', bytes };
  const text = bytes.toString('utf8').trim();
  if (text === '') return { kind: 'blank' };
  if (text === abort_word) return { kind: 'abort' };
  if (end_words.has(text)) return { kind: 'end' };
  if (!head_pattern.test(text)) return { kind: 'line', bytes };
  const head = parse_head(text);
  return typeof head === 'string' ? { kind: 'line', bytes, flaw: head } : head;
}

/** Entende um elemento de uma resposta RAW: devolve os bytes, HTTP ABORT ou nada. */
export function parse_chunk(bytes: Buffer): list_element {
  if (bytes.length === 0) return { kind: 'blank' };
  return bytes.equals(abort_bytes) ? { kind: 'abort' } : { kind: 'line', bytes };
}

/** Devolve se há quebras de linha em `bytes`. */
function has_breaks(bytes: Buffer): boolean {
  return bytes.includes(feed_byte) || bytes.includes(return_byte);
}

/** Devolve uma a uma as linhas de `bytes`, sem as quebras; as vazias não contam. */
function* lines_within(bytes: Buffer): Generator<Buffer> {
  const find = (mark: number, after: number) => {
    const found = bytes.indexOf(mark, after);
    return found < 0 ? bytes.length : found;
  };
  let [return_at, feed_at] = [-1, -1];
  for (let from = 0, end = 0; from < bytes.length; from = end + 1) {
    if (return_at < from) return_at = find(return_byte, from);
    if (feed_at < from) feed_at = find(feed_byte, from);
    end = Math.min(return_at, feed_at);
    if (end > from) yield bytes.subarray(from, end);
  }
}

/** Numa linha maior que isto, de um elemento com quebras, só os extremos dizem se é JSON. */
const max_parsed_bytes = 1024 * 1024;

/** Devolve se `line` é um texto JSON. */
function is_json(line: Buffer): boolean {
  if (line.length > max_parsed_bytes) {
    return /^(\{.*\}|\[.*\]|".*")$/.test(String.fromCharCode(line[0] ?? 0, line.at(-1) ?? 0));
  }
  try {
    JSON.parse(line.toString('latin1')); // basta: o que não é ASCII só pode estar entre aspas
    return true;
  } catch {
    return false;
  }
}

/** De quantos em quantos bytes o exame de um elemento enorme cede a vez. */
const examined_piece_bytes = 64 * 1024;

/**
 * Dá as linhas de um elemento com quebras: se cada uma é JSON, são linhas; senão é uma só, e cada
 * quebra vira um espaço. Um elemento enorme é examinado aos pedaços, e nunca vira texto inteiro.
 * @param element os bytes; podem ser reescritos no lugar
 */
export async function split_element(element: Buffer): Promise<Iterable<Buffer>> {
  let examined = 0;
  let all_json = true;
  for (const line of lines_within(element)) {
    all_json = is_json(line);
    if (!all_json) break;
    examined += line.length;
    if (examined < examined_piece_bytes) continue;
    examined = 0;
    await next_turn();
  }
  if (all_json) return lines_within(element);
  let [size, from, last] = [0, 0, element.length];
  const is_break = (at: number) => element[at] === feed_byte || element[at] === return_byte;
  while (is_break(from)) from += 1;
  while (is_break(last - 1)) last -= 1;
  for (let end = from; from < last; from = end) {
    end = Math.min(from + examined_piece_bytes, last);
    if (element[end - 1] === return_byte && element[end] === feed_byte) end += 1; // uma quebra só
    const piece = element.toString('latin1', from, end).replace(/\r\n?|\n/g, ' ');
    size += element.write(piece, size, 'latin1');
    if (end < last) await next_turn();
  }
  return [element.subarray(0, size)];
}

// ── Fluxo ───────────────────────────────────────────────────────────────────────────────────────
// A vida de uma resposta: consultar, enviar, pausar, dormir, até um dos seis fins. O estado é de
// cada pedido; comum a todos só há a conexão com o Redis e a tabela redis_listeners. Cada tarefa
// é do processo que a criou, salvo com REPLAY: então qualquer proxy a lê, e muitos ao mesmo tempo.

/** Os modos como um fluxo termina. */
export type ending = 'done' | 'timeout' | 'redis_lost' | 'failed' | interruption;

/**
 * O que cada fim faz: gravidade no log, status se nada foi enviado, e última linha. Só em "done" o
 * worker acabou.
 */
type ending_rule = {
  level: log_level;
  status: number;
  last_line: (stream: stream_state) => string | undefined;
};

/**
 * Como as linhas vão para o cliente: o que fica antes e depois de cada uma, o que HEARTBEAT envia
 * (vazio se o cliente não o entenderia), e o que fecha o fluxo.
 */
type stream_format = {
  before: Buffer;
  after: Buffer;
  heartbeat: string;
  closing: (how: ending) => string;
};

/** Por que um fluxo está parado. Só "interval" pode ser encurtado por uma notícia do Redis. */
type wait_kind = 'interval' | 'pause' | 'drain';

/** O que se escreve por vez: um cliente que lê ao menos isto a cada MAXTIME está vivo. */
const write_slice_bytes = 64 * 1024;

/** O TTL é renovado a cada fração destas dele: duas renovações podem falhar sem dano. */
const renewals_per_ttl = 3;

/** Uma linha por linha: o formato de todos os tipos de NDJSON, e o de quem escolhe outro tipo. */
const ndjson_format: stream_format = {
  before: Buffer.alloc(0),
  after: Buffer.from('\n'),
  heartbeat: '{"type":"keepalive"}\n',
  closing: () => '',
};

/** O mesmo, com um Content-Type que o worker escolheu: só ele sabe o que cabe entre as linhas. */
const typed_format: stream_format = { ...ndjson_format, heartbeat: '' };

/** Os bytes do worker, e nada mais. */
const raw_format: stream_format = { ...typed_format, after: Buffer.alloc(0) };

/**
 * Um evento por linha. Um EventSource reconecta sozinho depois de qualquer fim, e criaria outra
 * tarefa: o evento "end" deixa a página fechá-lo antes, e o id, que ele repete em Last-Event-ID,
 * deixa reconhecer quem volta (dispatch). O id vai só com o primeiro evento que tem dados: sozinho,
 * muitos clientes o entregariam como uma mensagem vazia.
 */
const event_format: stream_format = {
  before: Buffer.from('data: '),
  after: Buffer.from('\n\n'),
  heartbeat: ': keepalive\n', // sem linha em branco, que também seria uma mensagem vazia
  closing: (how) => `event: end\ndata: {"ending": "${how}"}\n\n`,
};

/** REPLAY guarda de um fluxo uma a duas vezes `half`; `element` é o que cada um ocupa a mais. */
const kept_bytes = { half: 8 * 1024 * 1024, element: 16 };

/** Tudo o que um fluxo sabe de si. Instantes em ms do relógio monotônico. */
class stream_state {
  // o pedido e a forma da resposta
  task: task_names;
  response: http.ServerResponse;
  turn: request_turn;
  media_type: string; // o que o Accept pediu
  format = ndjson_format; // o que sai: depende também da cabeça
  opening = ''; // o que ainda vai antes do primeiro evento
  bytes_left = Infinity; // o que falta do Content-Length do worker
  is_sending = false; // há linhas a meio caminho do cliente

  // o worker
  receivers = 0; // quantos ouviram o anúncio
  entry = ''; // o id em REDIS_STREAM
  was_claimed = false; // já se viu a reserva dele
  was_fed = false; // já se viu algo na lista
  said_end = false; // empurrou uma palavra de fim
  is_complete = false; // apagou a tarefa: ninguém mais escreve na lista
  is_cut = false; // desistiu: o fim tem de ser um corte
  odd_head = false; // já se registrou uma linha que parece cabeça

  // o Redis: se o que some foi o worker que apagou
  identity = redis_link.identity; // o servidor em que se viu a tarefa pela última vez
  has_gap = false; // podem faltar linhas, ou bytes em RAW: acaba já
  has_stock = false; // ao que se sabe, há algo na lista
  lacks_reply = false; // perdeu-se o que se tirou dela: segue, mas não termina como inteiro
  // quando algo mudou pela última vez nas chaves dele; sem avisos não se sabe
  touched_at = redis_link.tracking ? 0 : Infinity;
  evictions = redis_link.evictions; // quantas chaves ele tinha despejado então
  expires_at = now() + key_life_s() * 1000; // antes disto a tarefa não pode ter expirado
  renew_at = now() + (key_life_s() * 1000) / renewals_per_ttl; // quando renovar o TTL das chaves
  keys_left = true; // na última consulta ainda havia chaves

  // o lugar deste leitor no que REPLAY guarda, que são os elementos como o worker os empurrou: quem
  // volta os lê desde o começo, como da primeira vez, e as linhas que já tem são puladas
  next_element = 0;
  skip = 0; // linhas que ainda se pulam
  asks_opening = false; // quer abrir a resposta sem esperar pela cabeça
  head = 'HTTP 200'; // a cabeça da resposta
  kept_size = 0; // bytes que leu desde a última marca
  mark: kept_news; // por onde passou, e até onde se poderá jogar fora
  cut: kept_news; // até onde jogar fora na próxima consulta

  // o ritmo
  started_at = now();
  last_pop_at = now(); // o último elemento: dele conta MAXTIME
  resume_at = 0; // até quando vai a PAUSE
  sent_at = now(); // a última escrita: dela conta HEARTBEAT
  batch = 1; // quantas linhas pedir da próxima vez
  open_timer: NodeJS.Timeout | undefined; // o de HEAD_WAIT
  beat_timer: NodeJS.Timeout | undefined; // o de HEARTBEAT
  waiting: wait_kind | undefined; // por que dorme, se dorme
  has_news = false; // algo mudou desde a última consulta
  wake = () => {}; // encurta o sono de agora
  tell = (_what: news) => {}; // recebe a notícia de que algo mudou

  // as contas do log
  elements = 0;
  lines = 0;
  bytes = 0;
  dropped = 0; // elementos de uma resposta sem corpo
  failure = ''; // por que não deu certo

  /** Toma de uma tarefa ainda por guardar só os nomes: o corpo dela pode ser grande. */
  constructor({ uuid, task_key, task_list }: task_names, turn: request_turn) {
    this.task = { uuid, task_key, task_list };
    this.response = turn.response;
    this.turn = turn;
    this.media_type = choose_media_type(turn.request.headers.accept);
  }
}

/** O único lugar que diz o que cada fim significa para o cliente. */
const ending_rules: Record<ending, ending_rule> = {
  done: { level: 'info', status: 200, last_line: () => undefined },
  timeout: { level: 'warn', status: 200, last_line: () => MAXTIME_ERROR },
  client_gone: { level: 'info', status: 0, last_line: () => undefined },
  redis_lost: { level: 'error', status: 504, last_line: () => error_line('redis lost') },
  failed: { level: 'error', status: 503, last_line: (stream) => error_line(stream.failure) },
  shutdown: {
    level: 'info',
    status: 503,
    last_line: () => error_line(refusal_rules.stopping.text),
  },
};

/** Dá os cabeçalhos de um fluxo do tipo `media_type`; sem `task`, os da resposta a HEAD. */
function stream_headers(media_type: string, task?: task_names): Record<string, string> {
  const headers = common_headers();
  const charset = media_type.startsWith('text/') ? '; charset=utf-8' : '';
  headers['Content-Type'] = media_type + charset;
  headers['Cache-Control'] = 'no-store, no-transform';
  headers['X-Accel-Buffering'] = 'no';
  headers['X-Content-Type-Options'] = 'nosniff';
  if (task) {
    headers['X-Task-UUID'] = task.uuid;
    headers['X-Task-Key'] = task.task_key;
    headers['X-Task-List'] = task.task_list;
  }
  return headers;
}

/**
 * Dá a um fluxo a notícia de que algo mudou: se dorme à espera de linhas, acorda; se não, a notícia
 * fica guardada e o próximo sono não começa. Assim nenhuma se perde entre a consulta e o sono.
 */
function tell_stream(stream: stream_state, what: news): void {
  if (what !== 'all') stream.touched_at = now();
  if (what !== 'key') stream.has_stock = true;
  stream.has_news = true;
  if (stream.waiting === 'interval') stream.wake();
}

/** Tira um fluxo da tabela dos que recebem notícias. */
function forget_stream({ task: { uuid }, tell }: stream_state): void {
  const others = redis_listeners.get(uuid)?.filter((other) => other !== tell) ?? [];
  if (others.length > 0) redis_listeners.set(uuid, others);
  else redis_listeners.delete(uuid);
}

/** Devolve se a resposta, já aberta, não pode ter corpo. */
function is_bodyless({ response }: stream_state): boolean {
  return response.headersSent && bodyless_statuses.has(response.statusCode);
}

/**
 * Prepara os cabeçalhos da resposta, se ainda não saíram. Eles vão junto com o primeiro pedaço. O
 * formato é o do Content-Type que sai: quem pediu eventos não os recebe num erro, que é JSON, nem
 * se o worker escolhe outro tipo.
 * @param status status HTTP
 * @param headers cabeçalhos pedidos pelo worker; vencem os do fluxo
 * @param is_raw se o worker escolheu RAW
 */
function open_response(
  stream: stream_state,
  status = 200,
  headers: worker_headers = {},
  is_raw = false,
): void {
  const { response, media_type, task } = stream;
  clearTimeout(stream.open_timer);
  if (response.headersSent) return;
  if (response.req.httpVersion === '1.0') response.useChunkedEncodingByDefault = false;
  const { 'Content-Type': our_type = '', ...ours } = stream_headers(media_type, task);
  if (!bodyless_statuses.has(status)) response.setHeader('Content-Type', our_type);
  for (const name in ours) response.setHeader(name, ours[name] ?? '');
  const exposed = response.getHeader('Access-Control-Expose-Headers');
  if (exposed) {
    const names = [exposed, ...Object.keys(headers)].join(', ');
    response.setHeader('Access-Control-Expose-Headers', names);
  }
  for (const name in headers) response.setHeader(name, headers[name] ?? '');
  if (status === 205) response.setHeader('Content-Length', '0');
  response.writeHead(status);
  const has_own_type = Object.keys(headers).some((name) => /^content-type$/i.test(name));
  const sent_type = String(response.getHeader('Content-Type')).toLowerCase();
  if (is_raw) {
    stream.format = raw_format;
    if (!is_bodyless(stream))
      stream.bytes_left = Number(response.getHeader('Content-Length') ?? Infinity);
  } else if (is_bodyless(stream)) stream.format = typed_format;
  else if (media_type === event_type && sent_type.startsWith(event_type)) {
    stream.format = event_format;
    stream.opening = `id: ${task.uuid}\n`;
  } else if (has_own_type) stream.format = typed_format;
}

/** Cria o estado de um fluxo e o põe na tabela dos que recebem notícias. */
function make_stream(task: task_names, turn: request_turn): stream_state {
  const stream = new stream_state(task, turn);
  stream.tell = (what) => tell_stream(stream, what);
  redis_listeners.set(task.uuid, [...(redis_listeners.get(task.uuid) ?? []), stream.tell]);
  turn.on_interrupt = () => stream.wake();
  return stream;
}

/** Abre a resposta, sem cabeça, e manda os cabeçalhos já. */
function flush_head(stream: stream_state): void {
  open_response(stream);
  stream.response.flushHeaders();
}

/** Abre já a resposta; com REPLAY na próxima consulta, e a cabeça atrasada o é para todos. */
function open_early(stream: stream_state): void {
  if (REPLAY === 0 || stream.elements > 0 || stream.response.headersSent) flush_head(stream);
  else {
    stream.asks_opening = true;
    tell_stream(stream, 'all');
  }
}

/**
 * Envia uma linha de vida se nada foi enviado há HEARTBEAT, e marca a próxima. Nunca no meio de uma
 * linha que ainda está saindo; e ela não conta como linha do worker.
 */
function send_heartbeat(stream: stream_state): void {
  const quiet_ms = now() - stream.sent_at;
  if (quiet_ms >= HEARTBEAT && !stream.is_sending) {
    open_early(stream);
    if (stream.format.heartbeat === '') return;
    if (stream.response.headersSent) stream.response.write(stream.format.heartbeat);
    stream.sent_at = now();
  }
  const wait_ms = quiet_ms >= HEARTBEAT ? HEARTBEAT : HEARTBEAT - quiet_ms;
  stream.beat_timer = setTimeout(send_heartbeat, Math.ceil(wait_ms), stream);
}

/**
 * Dorme uma vez: acorda no prazo, quando o cliente sai, ou com o que o tipo de espera permite.
 * É o único lugar em que o sono de um fluxo pode ser encurtado.
 * @param ms prazo em milissegundos
 * @returns true se algo o acordou antes do prazo
 */
function nap(stream: stream_state, ms: number, kind: wait_kind): Promise<boolean> {
  const { response, turn } = stream;
  const is_over =
    kind === 'drain' ? !response.writableNeedDrain : kind === 'interval' && stream.has_news;
  if (turn.interrupted || is_over) return Promise.resolve(true);
  return new Promise((resolve) => {
    const wake = () => leave(true);
    const leave = (woken: boolean) => {
      clearTimeout(timer);
      response.off('drain', wake);
      stream.waiting = undefined;
      stream.wake = () => {};
      resolve(woken);
    };
    const timer = setTimeout(leave, Math.min(ms, max_timer_ms), false);
    stream.waiting = kind;
    stream.wake = wake;
    if (kind === 'drain') response.once('drain', wake);
  });
}

/** Renova o TTL das chaves do fluxo, se já é hora. */
function renew_if_due(stream: stream_state): void {
  if (now() < stream.renew_at) return;
  stream.renew_at = now() + (key_life_s() * 1000) / renewals_per_ttl;
  // NOLOOP: o nosso EXPIRE esconde um RPUSH atendido na mesma volta do Redis; só a consulta o vê.
  stream.has_news = true;
  const asked_at = now();
  void redis_renew(stream.task.uuid).then((found) => {
    if (!found) stream.renew_at = Math.min(stream.renew_at, now() + retry_ms);
    // sumiu antes de poder expirar: foi o worker que a apagou; a lista por ler ainda pode expirar
    else if (found.task_exists || now() < stream.expires_at) {
      const is_left = found.task_exists || found.list_exists;
      stream.expires_at = is_left ? asked_at + key_life_s() * 1000 : Infinity;
    }
  });
}

/**
 * Espera `ms` milissegundos, por longo que seja, sem deixar as chaves do fluxo expirarem; devolve
 * se algo o acordou antes do prazo.
 */
async function stream_wait(stream: stream_state, ms: number, kind: wait_kind): Promise<boolean> {
  const deadline = now() + ms;
  do {
    const next = Math.min(deadline, stream.renew_at);
    if (await nap(stream, Math.max(0, next - now()), kind)) return true;
    renew_if_due(stream);
  } while (now() < deadline);
  return false;
}

/** Diz quantos ms faltam para MAXTIME sem nenhum elemento; zero ou menos se já se esgotou. */
function time_left(stream: stream_state): number {
  return stream.last_pop_at + MAXTIME - now();
}

/** Devolve o que vem depois do lugar de um leitor, que só move_on muda: isto pode chegar tarde. */
function read_on(stream: stream_state) {
  const { task, next_element: from, batch: count, cut: news } = stream;
  const pops = stream.skip > 0 ? 0 : PAUSE > 0 ? 1 : count;
  const opens = stream.asks_opening && stream.elements === 0;
  return redis_replay(task.uuid, { from, count, pops, opens, news });
}

/** Leva um leitor adiante, e avisa os outros; lança refusal se o que ia ler já não se guarda. */
function move_on(stream: stream_state, { elements, kept, is_fresh = false }: poll_result): void {
  if (kept && kept.base > stream.next_element) throw new refusal('gone');
  stream.next_element += elements.length;
  stream.cut = undefined;
  stream.failure ||= kept?.failure ?? '';
  if (is_fresh) redis_tell(stream.task.uuid, 'key', stream.tell);
}

/**
 * Diz se o Redis foi trocado pela réplica e um fluxo pode ter perdido algo com isso: a réplica não
 * espera, e o que se escreveu por último no primário pode não ter chegado a ela.
 */
function may_have_holes(stream: stream_state): boolean {
  const { identity, safe_until } = redis_link;
  const is_same = identity === '' || stream.identity === '' || identity === stream.identity;
  return !is_same && stream.touched_at > safe_until;
}

/** Diz se o Redis avisa das linhas de um fluxo; das que outro processo criou, não. */
function hears_news({ task }: stream_state): boolean {
  return redis_link.tracking && task.uuid.startsWith(redis_link.uuid_head);
}

/**
 * Consulta a lista uma vez, e devolve o que veio; undefined se o Redis não está ou o pedido foi
 * interrompido. Um LPOP já escrito nunca é abandonado enquanto a conexão vive e ainda há tempo: a
 * resposta dele é uma linha do cliente. Lança ErrorReply se o Redis recusa, e a refusal de move_on.
 */
async function stream_poll(stream: stream_state): Promise<poll_result | undefined> {
  renew_if_due(stream);
  const { identity } = redis_link; // a resposta vale para o servidor a que se perguntou
  stream.has_news = false; // o que mudar de agora em diante ainda não foi visto
  const answered = new Promise<poll_result | undefined>((resolve, reject) => {
    const patience_ms = () => (stream.turn.interrupted === 'client_gone' ? 0 : clean_limit_ms);
    stream.wake = () => setTimeout(resolve, patience_ms(), undefined);
    const asked = REPLAY > 0 ? read_on(stream) : redis_poll(stream.task, stream.batch);
    asked.then(resolve, reject);
  });
  try {
    const poll = await within(answered, Math.max(time_left(stream), answer_limit_ms));
    if (!poll) return undefined;
    if (REPLAY > 0) move_on(stream, poll);
    const { elements, list_exists, task_exists, claim_exists } = poll;
    const has_lines = list_exists || elements.length > 0;
    stream.keys_left = list_exists || task_exists || claim_exists;
    stream.was_fed ||= has_lines;
    stream.was_claimed ||= claim_exists;
    // A lista só não prova que os dados são os mesmos: um worker que de nada sabe a recria.
    const is_proof = task_exists || (stream.is_complete && has_lines);
    if (is_proof && may_have_holes(stream)) {
      stream.failure = 'o primário mudou, e a réplica podia não ter as últimas linhas';
      stream.has_gap = true;
      return undefined;
    }
    if (elements.length > 0) stream.touched_at = now();
    stream.has_stock = list_exists || (elements.length > 0 && !hears_news(stream)); // vêm mais
    if (is_proof) stream.identity = identity || stream.identity;
    if (task_exists) stream.evictions = redis_link.evictions;
    // um FLUSHALL entre a pergunta e a resposta já mudou a identidade
    const is_same = identity !== '' && identity === redis_link.identity;
    if (!is_proof && is_same && identity === stream.identity) stream.is_complete = true;
    return poll;
  } catch (error) {
    if (is_refusal(error) || error instanceof refusal) throw error;
    if (error instanceof lost_reply) {
      stream.touched_at = now();
      stream.has_gap = stream.format === raw_format;
      stream.lacks_reply ||= stream.has_stock || stream.has_gap;
      if (stream.lacks_reply) stream.failure = 'a conexão caiu antes da resposta a um LPOP';
    }
    return undefined;
  }
}

/** Com PAUSE 0 as linhas saem em lotes que dobram até aqui, enquanto forem pequenos. */
const max_batch = { lines: 512, bytes: 256 * 1024 };

/**
 * Diz quantas linhas retirar depois de `batch`: dobra enquanto os lotes são pequenos, volta a uma
 * quando não são, para que linhas de megabytes não encham a memória. Sempre 1 com PAUSE acima de 0
 * ou num Redis antigo, salvo com REPLAY.
 */
function next_batch(batch: number, elements: Buffer[]): number {
  if (REPLAY === 0 && (PAUSE > 0 || !redis_link.pops_many)) return 1;
  const bytes = elements.reduce((sum, element) => sum + element.length, 0);
  if (bytes > max_batch.bytes) return 1;
  return Math.min(batch * 2, max_batch.lines);
}

/**
 * Aplica a cabeça do worker, se veio em primeiro (`is_first`) e a tempo, e devolve se a aplicou.
 * @throws worker_fault se é RAW e chegou tarde: o que vem depois não são linhas; refusal se é RAW e
 *   o cliente já tem uma parte: RAW só se repete inteiro
 */
function take_head(stream: stream_state, head: head_element, is_first: boolean): boolean {
  const is_late = !is_first || stream.response.headersSent;
  if (is_late && head.is_raw) throw new worker_fault('RAW chegou tarde: a resposta já começou');
  if (is_late) return false;
  if (head.is_raw && stream.lines > 0) throw new refusal('gone');
  if (head.dropped.length > 0) {
    log('warn', 'header_refused', { task: stream.task.uuid, names: head.dropped.join(',') });
  }
  open_response(stream, head.status, head.headers, head.is_raw);
  stream.response.flushHeaders();
  return true;
}

/** Registra, uma vez por fluxo, que uma linha parece uma cabeça e, por `reason`, não é. */
function note_odd_head(stream: stream_state, reason: string): void {
  if (!stream.odd_head) log('warn', 'head_as_line', { task: stream.task.uuid, reason });
  stream.odd_head = true;
}

/** Até aqui linhas são copiadas juntas para uma só escrita; além, vão como vieram. */
const max_copied_bytes = 1024 * 1024;

/**
 * Escreve as `size` bytes de `parts` e respeita o cliente lento: enquanto o socket dele está cheio,
 * nada mais é retirado da lista. Vai em fatias, para que uma linha enorme mostre se ele ainda lê, e
 * cede a vez depois de cada uma; quem não lê nada por MAXTIME perde a conexão.
 * @throws worker_fault se passam do Content-Length que o worker deu
 */
async function send_parts(stream: stream_state, parts: Buffer[], size: number): Promise<void> {
  stream.bytes_left -= size;
  if (stream.bytes_left < 0) throw new worker_fault('a resposta é maior que o seu Content-Length');
  for (const part of size > max_copied_bytes ? parts : [Buffer.concat(parts, size)]) {
    for (let from = 0; from < part.length; from += write_slice_bytes) {
      const slice = part.subarray(from, from + write_slice_bytes);
      stream.bytes += slice.length;
      tally.bytes += slice.length;
      stream.sent_at = now();
      stream.response.write(slice);
      if (slice.length === write_slice_bytes) await next_turn();
      if (!stream.response.writableNeedDrain) continue;
      if (!(await stream_wait(stream, MAXTIME, 'drain'))) {
        log('warn', 'stalled_reader', { task: stream.task.uuid, maxtime: MAXTIME });
        interrupt(stream.turn, 'client_gone');
        break_off(stream.turn.request);
      }
      stream.last_pop_at = now(); // o tempo do cliente lento não conta contra o worker
      if (stream.turn.interrupted === 'client_gone') return;
    }
  }
}

/** Envia linhas, uma ao menos, sem quebras, ou os bytes de uma resposta RAW; as pequenas juntas. */
async function send_lines(stream: stream_state, lines: Iterable<Buffer>): Promise<void> {
  let [parts, size, count]: [Buffer[], number, number] = [[], 0, 0];
  const is_gone = () => stream.turn.interrupted === 'client_gone';
  const flush = async () => {
    await send_parts(stream, parts, size);
    if (is_gone()) return;
    stream.lines += count;
    tally.lines += count;
    [parts, size, count] = [[], 0, 0];
  };
  open_response(stream);
  const { before, after } = stream.format;
  const is_numbered = REPLAY > 0 && stream.format === event_format;
  if (stream.lines === 0) observe(tally.first_line, now() - stream.started_at);
  if (stream.opening !== '' && !is_numbered) stream.response.write(stream.opening);
  if (!is_numbered) stream.opening = ''; // se não, o id sem lugar diz depois que se viu o fim
  const id = `id: ${stream.task.uuid}:`;
  for (const line of lines) {
    count += 1;
    const lead = is_numbered ? Buffer.from(`${id}${stream.lines + count}\n${before}`) : before;
    if (lead.length > 0) parts.push(lead);
    parts.push(line);
    if (after.length > 0) parts.push(after);
    size += lead.length + line.length + after.length;
    if (size >= write_slice_bytes) await flush();
    if (is_gone()) return;
  }
  if (count > 0) await flush();
}

/**
 * Entende um elemento, e devolve os bytes a enviar, se é uma linha; se não, faz o que ele manda.
 * @throws worker_fault se o worker desistiu, ou se uma cabeça RAW chegou tarde
 */
function take_element(stream: stream_state, raw: Buffer): Buffer | undefined {
  const element = stream.format === raw_format ? parse_chunk(raw) : parse_element(raw);
  if (element.kind === 'blank') return undefined;
  const is_first = stream.elements === 0;
  stream.elements += 1;
  if (element.kind === 'abort') throw new worker_fault('o worker mandou HTTP ABORT');
  if (element.kind === 'end') {
    stream.said_end = true;
    return undefined;
  }
  if (element.kind === 'head') {
    if (take_head(stream, element, is_first)) {
      stream.head = raw.toString();
      return undefined;
    }
    note_odd_head(stream, 'chegou tarde: a resposta já começou');
  } else if (element.flaw && is_first) note_odd_head(stream, element.flaw);
  if (!is_bodyless(stream)) return raw;
  stream.dropped += 1;
  return undefined;
}

/** Devolve de `lines` as que o cliente não tem; quando já se sabe quais são, a resposta abre. */
function skip_lines(stream: stream_state, lines: Buffer[]): Buffer[] {
  const seen = lines.splice(0, stream.skip);
  stream.skip -= seen.length;
  if (stream.skip === 0) flush_head(stream);
  return lines;
}

/** Marca por onde um leitor passou, e manda jogar fora o que passa do limite. */
function bound_kept(stream: stream_state, elements: Buffer[]): void {
  const { next_element: base, head } = stream;
  for (const { length } of elements) stream.kept_size += length + kept_bytes.element;
  if (stream.kept_size < kept_bytes.half) return;
  stream.cut = stream.mark;
  stream.mark = { base, lines: stream.lines - stream.skip, head };
  stream.kept_size = 0;
}

/**
 * Entrega o que foi retirado da lista, e marca até quando vai a pausa depois disso.
 * @throws worker_fault se o worker desistiu; o que vinha antes é entregue
 */
async function deliver(stream: stream_state, elements: Buffer[]): Promise<void> {
  let lines: Buffer[] = [];
  const send = async (some: Iterable<Buffer>) => {
    lines = [];
    const unseen = stream.skip > 0 ? skip_lines(stream, [...some]) : some;
    if (Array.isArray(unseen) && unseen.length === 0) return;
    stream.is_sending = true;
    await send_lines(stream, unseen);
    stream.is_sending = false;
    stream.resume_at = now() + PAUSE;
  };
  stream.last_pop_at = now();
  try {
    for (const raw of elements) {
      const line = take_element(stream, raw);
      if (!line) continue;
      if (stream.format === raw_format || !has_breaks(line)) {
        lines.push(line);
        continue;
      }
      if (lines.length > 0) await send(lines);
      await send(await split_element(line));
    }
  } finally {
    if (lines.length > 0) await send(lines);
  }
  if (REPLAY > 0) bound_kept(stream, elements);
}

/**
 * Diz o que significa a tarefa ter sumido; undefined se não se sabe que servidor é este. Se não
 * é mais o da última prova de que tinha os dados, ou se a chave pode ter expirado sem renovação,
 * eles se perderam: isso não pode parecer sucesso.
 */
function judge_absence(stream: stream_state): ending | undefined {
  if (redis_link.identity === '') return undefined;
  // com REPLAY, o que ele guarda ainda está lá, e prova que ela foi apagada: ver replay_script
  if (REPLAY > 0) return may_have_holes(stream) ? 'redis_lost' : 'done';
  const same_server = stream.identity === '' || stream.identity === redis_link.identity;
  return same_server && now() < stream.expires_at ? 'done' : 'redis_lost';
}

/**
 * Devolve como um fluxo termina, se `verdict` é o que parece. A parte não pode passar pelo todo: se
 * uma resposta se perdeu, pode faltar o que ela trazia; se o Redis despejou chaves desde que se viu
 * a tarefa, pode ter sido ele que a apagou.
 */
async function confirm_ending(stream: stream_state, verdict: ending): Promise<ending> {
  if (verdict !== 'done') return verdict;
  if (stream.lacks_reply) return 'redis_lost';
  if (!(await redis_evicted_since(stream.evictions))) return verdict;
  stream.failure = `o Redis despejou chaves (${redis_link.eviction_policy}), talvez a da tarefa`;
  return 'redis_lost';
}

/**
 * Com avisos, a consulta periódica é só proteção. O sorteio em volta de `every_ms` espalha os
 * fluxos parados; os que caem no mesmo quadro de `frame_ms` consultam juntos, numa ida e volta.
 */
const safety_poll = { every_ms: 60_000, frame_ms: 100 };

/** Dá o sono entre consultas a uma lista vazia, em ms: INTERVAL, ou bem mais se o Redis avisa. */
function idle_interval(stream: stream_state): number {
  if (!hears_news(stream)) return Math.min(INTERVAL, time_left(stream));
  const { every_ms, frame_ms } = safety_poll;
  const due = now() + every_ms * (0.75 + Math.random() / 2);
  const spread = Math.ceil(due / frame_ms) * frame_ms - now();
  return Math.min(Math.max(INTERVAL, spread), time_left(stream));
}

/**
 * O laço de um fluxo, como a especificação o descreve: consulta; linha, envia e pausa; nada, dorme.
 * Devolve como terminou, ou lança: ErrorReply se o Redis recusa; worker_fault se o worker desistiu;
 * refusal se o que o cliente quer não está mais guardado.
 */
async function stream_loop(stream: stream_state): Promise<ending> {
  const { turn } = stream;
  stream.has_news ||= !hears_news(stream); // com avisos, uma tarefa nova começa pelo sono
  stream.identity ||= redis_link.identity; // já se sabe: ele respondeu antes à identificação
  stream.last_pop_at = now();
  await stream_wait(stream, idle_interval(stream), 'interval');
  for (;;) {
    if (stream.resume_at > now()) await stream_wait(stream, stream.resume_at - now(), 'pause');
    if (turn.interrupted) return turn.interrupted; // o cliente saiu, ou o programa para
    const poll = await stream_poll(stream);
    // já: o envio pode demorar, e o Redis mudar
    const verdict = poll && !poll.task_exists && judge_absence(stream);
    if (poll && poll.elements.length > 0) {
      stream.batch = next_batch(stream.batch, poll.elements);
      await deliver(stream, poll.elements);
    }
    if (poll?.refusal) throw poll.refusal; // o Redis recusa: failed
    if (stream.has_gap) return 'redis_lost'; // faltaria um pedaço no meio da resposta
    if (REPLAY > 0 && poll && !poll.kept) return 'redis_lost'; // há menos do que já se leu
    const is_all = poll && !(poll.list_exists && poll.elements.length > 0);
    // menos linhas do que o cliente diz ter, fora a que o fim acrescenta: as dele, estas não são
    if (is_all && stream.skip > (poll.kept?.ending ? 1 : 0)) throw new refusal('gone');
    if (poll?.list_exists) continue;
    if (poll?.kept?.ending) return poll.kept.ending as ending; // outro leitor viu o fim
    // a palavra de fim, e tudo já saiu
    if (poll && stream.said_end) return confirm_ending(stream, verdict || 'done');
    // Com avisos, o que vier depois desta consulta acorda, mesmo durante a pausa.
    if (poll?.task_exists && poll.elements.length > 0 && !hears_news(stream)) continue;
    if (verdict) return confirm_ending(stream, verdict); // a tarefa sumiu: pelo worker, ou perdida
    if (turn.interrupted) continue;
    if (time_left(stream) <= 0) return poll ? 'timeout' : 'redis_lost'; // MAXTIME sem nada
    const pause_ms = poll ? idle_interval(stream) : Math.min(retry_ms, time_left(stream));
    await stream_wait(stream, pause_ms, 'interval');
  }
}

/** Leva um fluxo até o fim, e devolve como foi. Se nada chega logo, a resposta abre sem esperar. */
async function run_stream(stream: stream_state): Promise<ending> {
  stream.open_timer = setTimeout(open_early, HEAD_WAIT, stream);
  if (HEARTBEAT > 0) stream.beat_timer = setTimeout(send_heartbeat, HEARTBEAT, stream);
  try {
    const how = await stream_loop(stream);
    const is_short = how === 'done' && stream.bytes_left > 0 && stream.bytes_left < Infinity;
    if (is_short) throw new worker_fault('a resposta é menor que o seu Content-Length');
    return how;
  } catch (error) {
    if (error instanceof refusal) throw error;
    const { message, stack = message } = error as Error;
    stream.is_cut = error instanceof worker_fault;
    const reason = stream.is_cut || is_refusal(error) ? message : stack;
    const rule = is_refusal(error) ? refusal_reason(error) : 'internal';
    stream.failure = refusal_rules[stream.is_cut ? 'aborted' : rule].text;
    log('error', 'stream_error', { task: stream.task.uuid, reason });
    return 'failed';
  } finally {
    clearTimeout(stream.open_timer);
    clearTimeout(stream.beat_timer);
  }
}

/** Registra o que num fluxo terminado costuma ser um engano de instalação, e onde procurar. */
function log_suspicion(stream: stream_state, how: ending): void {
  const { task, receivers, was_fed } = stream;
  const { database } = REDIS_SERVER;
  if (how === 'timeout' && !was_fed && receivers > 0 && !stream.was_claimed) {
    const others =
      database === 0 ? 'REDIS_SERVER sem /N é o 0' : 'o n8n e o redis-cli começam no 0';
    const hint = `ouviram e nada veio: o worker está no banco ${database} deste proxy? (${others})`;
    log('warn', 'silent_worker', { task: task.uuid, receivers, hint });
  }
  if (REDIS_STREAM && how === 'timeout' && !was_fed && !stream.was_claimed) {
    const hint = `ninguém a tomou do stream ${REDIS_STREAM}; há worker de pé, e com lugar?`;
    log('warn', 'no_worker', { task: task.uuid, hint });
  }
  if (how === 'done' && !was_fed) {
    const hint =
      `nada foi empurrado nesta lista: o worker usa outra? valem REDIS_PREFIX ${REDIS_PREFIX} e ` +
      `REDIS_LIST_PREFIX ${REDIS_LIST_PREFIX}, e nada se acrescenta a eles`;
    log('warn', 'empty_stream', { task: task.uuid, list: task.task_list, hint });
  }
  if (receivers > 1 && was_fed && !stream.was_claimed) {
    const hint = 'mais de um ouviu e nenhum a reservou: se dois respondem, as linhas se misturam';
    log('warn', 'unclaimed', { task: task.uuid, receivers, hint });
  }
}

/** Registra o fim de um fluxo. */
function log_ending(stream: stream_state, how: ending): void {
  const { task, lines, bytes, started_at, response } = stream;
  tally.endings[how] += 1;
  log_suspicion(stream, how);
  const status = response.headersSent ? response.statusCode : 0;
  if (stream.dropped > 0) {
    log('warn', 'body_dropped', { task: task.uuid, status, elements: stream.dropped });
  }
  const ms = Math.round(now() - started_at);
  const reason = stream.failure && { reason: stream.failure };
  const fields = { task: task.uuid, ending: how, status, lines, bytes, ms };
  log(ending_rules[how].level, 'end', { ...fields, ...reason });
}

/** Corta a conexão no meio da resposta, depois do que já foi escrito. */
function cut_response({ request }: request_turn): void {
  request.socket.write('', () => break_off(request));
}

/**
 * Guarda como um fluxo terminou, antes que o cliente o saiba; devolve se o guardou. Se não, ou se
 * quem sai é só este leitor, o fluxo segue sem ele, e ele pode voltar: não deve ler o fim.
 */
async function keep_ending({ task, failure }: stream_state, how: ending): Promise<boolean> {
  const leaves = how === 'client_gone' || how === 'shutdown';
  const ask = leaves ? { leaves } : { news: { ending: how, failure } };
  try {
    await within(redis_replay(task.uuid, { ...ask, ttl: REPLAY }), clean_limit_ms);
    return !leaves;
  } catch (error) {
    if (is_refusal(error)) log('warn', 'keep_refused', { task: task.uuid, reason: error.message });
    return false;
  }
}

/**
 * Encerra um fluxo: última linha, limpeza, fim da resposta e log, nesta ordem. O cliente só vê o
 * fim depois que as chaves se foram, salvo se o Redis demorar mais que clean_limit_ms. Uma resposta
 * RAW que não acabou é cortada: a nossa linha de erro, no meio do formato de outro, passaria por
 * parte dela, ou nem seria lida.
 */
async function finish_stream(stream: stream_state, how: ending): Promise<void> {
  const { response, task } = stream;
  const { status, last_line } = ending_rules[how];
  const worker_may_write = how !== 'done';
  const is_gone = how === 'client_gone';
  const is_over = REPLAY === 0 || (await keep_ending(stream, how));
  if (!is_over && !is_gone && !response.headersSent) {
    log_ending(stream, how);
    const rule = how === 'failed' ? 'redis_refused' : 'redis_silent';
    throw new refusal(how === 'shutdown' ? 'stopping' : rule); // sem o UUID: não é a resposta
  }
  const has_no_line = stream.format === raw_format || !is_over;
  const is_broken = stream.is_cut || (has_no_line && how !== 'done');
  const is_cut = is_broken && response.headersSent && !is_bodyless(stream);
  if (is_gone) response.destroy();
  else if (!is_cut) {
    open_response(stream, status, status === 200 ? {} : { 'Content-Type': 'application/json' });
    const { before, after } = stream.format;
    const is_known = is_bodyless(stream) || stream.skip > 0;
    const line = is_known ? undefined : last_line(stream);
    if (line !== undefined) response.write(`${stream.opening}${before}${line}${after}`);
    if (line !== undefined) stream.opening = '';
  }
  if (is_over && (stream.keys_left || worker_may_write || stream.entry)) {
    const { entry } = stream;
    const cleaned = redis_clean({ task_uuid: task.uuid, entry, worker_may_write });
    await within(cleaned, clean_limit_ms).catch(() => {});
  }
  if (is_cut && !is_gone) cut_response(stream.turn);
  else if (!is_gone) response.end(stream.opening + stream.format.closing(how));
  forget_stream(stream);
  redis_tell(task.uuid, 'key');
  log_ending(stream, how);
}

// ── Pedido ──────────────────────────────────────────────────────────────────────────────────────
// Um despachante curto decide o que cada pedido é. Tudo o que for lançado daqui para baixo termina
// a resposta e é registrado; um pedido ruim nunca derruba o processo.

/** Dá a recusa do que falhou antes de haver fluxo: 503 se o Redis recusou, 504 se não respondeu. */
function refusal_for(error: unknown): refusal {
  const is_read_only = error instanceof error_reply && /^READONLY\b/.test(error.message);
  if (is_refusal(error) || is_read_only) return new refusal(refusal_reason(error as Error));
  return new refusal('redis_silent');
}

/** Devolve o que se pediu ao Redis; o que falha vira a recusa que o cliente vê. */
function or_refuse<result>(asked: Promise<result>): Promise<result> {
  return asked.catch((error) => Promise.reject(refusal_for(error)));
}

/** Responde /ping: "pong" se o Redis responde, 500 se não, mesmo a quem já fechou o seu lado. */
async function answer_ping(turn: request_turn): Promise<void> {
  const { response } = turn;
  if (!(await redis_ping())) {
    await send_refusal(turn, new refusal('ping_failed'));
    return;
  }
  response.writeHead(200, {
    ...common_headers(),
    'Content-Type': 'text/plain',
    'Content-Length': '4',
    'Cache-Control': 'no-store',
  });
  response.end('pong');
}

/**
 * Cria a tarefa de um pedido no Redis e o fluxo dela, que entra antes na tabela: os avisos podem
 * vir no mesmo pacote que a resposta. Nada guarda `body` depois daqui: um fluxo pode durar horas.
 * @throws refusal 503 se o Redis recusa, ou se ninguém ouve e FAILFAST manda; 504 se não responde
 */
async function open_stream(turn: request_turn, body: Buffer): Promise<stream_state> {
  const task = make_task(turn.request, body);
  const { uuid, method, url } = task;
  const stream = make_stream(task, turn);
  try {
    Object.assign(stream, await redis_create_task(task));
  } catch (error) {
    forget_stream(stream);
    log('error', 'create_failed', { task: uuid, reason: (error as Error).message });
    throw refusal_for(error);
  }
  const { receivers } = stream;
  tally.tasks += 1;
  log('info', 'task', { task: uuid, method, path: path_of(url), body: body.length, receivers });
  if (receivers > 0 || REDIS_STREAM) return stream; // no stream ela espera por um worker
  const hint = `ninguém escuta o canal ${REDIS_CHANNEL}; o worker está de pé?`;
  log('warn', 'no_worker', { task: uuid, hint });
  if (!FAILFAST) return stream;
  forget_stream(stream);
  const cleaned = redis_clean({ task_uuid: uuid, entry: '', worker_may_write: false });
  await within(cleaned, clean_limit_ms).catch(() => {});
  throw new refusal('no_worker');
}

/** A que tarefa um cliente volta, com quantas linhas (-1: já viu o fim), e o que se sabe dela. */
type comeback = { uuid: string; lines: number; is_event: boolean; kept?: typeof new_kept };

/** Cria o fluxo de um cliente que volta; lança a recusa 410 se a linha que ele quer já se foi. */
function resume_stream(turn: request_turn, { uuid, lines, kept }: comeback): stream_state {
  const head = parse_element(Buffer.from(kept?.head ?? '')); // a que já foi jogada fora
  const is_raw = head.kind === 'head' && head.is_raw; // só se repete inteira
  if (!kept || kept.lines > lines || is_raw) throw new refusal('gone');
  const [task_key, task_list] = redis_keys(uuid);
  const stream = make_stream({ uuid, task_key, task_list }, turn);
  Object.assign(stream, { lines, skip: lines - kept.lines, next_element: kept.base });
  // não se sabe o que mudou, nem o que se despejou, enquanto ninguém olhava
  Object.assign(stream, { touched_at: Infinity, evictions: 0, has_news: true });
  if (head.kind === 'head') take_head(stream, head, true);
  stream.head = kept.head || stream.head;
  log('info', 'replay', { task: uuid, lines });
  return stream;
}

/**
 * Atende um pedido que vira tarefa, ou que volta a uma, do corpo ao fim do fluxo, se há lugar para
 * mais um; ou lança a recusa. O corpo já ocupa o lugar: muitos grandes ao mesmo tempo encheriam a
 * memória antes da primeira tarefa.
 */
async function serve_task(turn: request_turn, back?: comeback): Promise<void> {
  if (lifetime.tasks >= MAXTASKS) throw new refusal('full');
  lifetime.tasks += 1;
  let stream: stream_state | undefined;
  try {
    const opening = read_body(turn).then((body) =>
      back ? resume_stream(turn, back) : open_stream(turn, body),
    );
    stream = await opening.finally(() => {
      lifetime.body_bytes -= turn.body_bytes;
    });
    await finish_stream(stream, await run_stream(stream));
  } finally {
    if (stream) forget_stream(stream);
    lifetime.tasks -= 1;
  }
}

/**
 * Confere o que um pedido é, antes de saber o que ele quer. O que dois programas no caminho podem
 * entender de dois modos é recusado.
 */
function check_request(request: http.IncomingMessage): void {
  const { httpVersion: http_version, headers, rawHeaders: raw_headers } = request;
  if (lifetime.stopping) throw new refusal('stopping');
  if (!/^1\.[01]$/.test(http_version)) throw new refusal('bad_version');
  const hosts = raw_headers.filter((text, index) => index % 2 === 0 && /^host$/i.test(text));
  if (hosts.length > 1) throw new refusal('two_hosts');
  if (hosts.length === 0 && http_version === '1.1') throw new refusal('no_host');
  const coding = headers['transfer-encoding'];
  const is_understood = coding?.toLowerCase() === 'chunked' && http_version === '1.1';
  if (coding !== undefined && !is_understood) throw new refusal('bad_coding');
  const { expect = '100-continue' } = headers;
  if (expect.toLowerCase() !== '100-continue') throw new refusal('bad_expect');
}

/**
 * Confere se um cliente não passou do seu limite. Um Redis que não conta não responde nem guarda
 * tarefas: a falha dele é respondida como tal, e não abre nem fecha a porta.
 */
async function check_rate(request: http.IncomingMessage): Promise<void> {
  if (!RATE) return;
  const network = network_of(remote_address_of(request));
  const { count, wait_s } = await or_refuse(redis_count_request(network, RATE.seconds));
  if (count <= RATE.count) return;
  throw new refusal('over_rate', '', { 'Retry-After': String(wait_s) });
}

/**
 * Lê a que tarefa um cliente volta: "<uuid>:<linhas que tem>" em Last-Event-ID ou, de quem pede
 * eventos e não pode mandá-lo, na busca. Só "<uuid>" é o id que um EventSource recebe com o fim.
 * Outro id é assunto do worker. Lança a recusa 400 se depois de "<uuid>:" não vem um número.
 */
function comeback_of({ headers, url = '' }: http.IncomingMessage): comeback | undefined {
  const is_event = choose_media_type(headers.accept) === event_type;
  const query = is_event ? new URLSearchParams(url.split('?')[1]).get('lastEventId') : '';
  for (const id of [headers['last-event-id'], query].map(String)) {
    const [uuid, place] = [id.slice(0, uuid_length), id.slice(uuid_length)];
    if (!uuid_v4_pattern.test(uuid)) continue;
    if (place === '' && is_event) return { uuid, lines: -1, is_event };
    if (REPLAY === 0 || !place.startsWith(':')) continue;
    if (!/^:\d{1,15}$/.test(place)) throw new refusal('bad_place');
    return { uuid, lines: Number(place.slice(1)), is_event };
  }
  return undefined;
}

/** Chaves erradas, por rede, na janela corrente; a tabela tem tamanho certo, venha quem vier. */
const wrong_keys = new Map<string, number>();

/** Quantas erradas não custam espera, quanto custam as outras, e os limites de wrong_keys. */
const guessing = { free: 10, delay_ms: 1000, window_ms: 60_000, networks: 10_000 };

/**
 * Confere a chave de um pedido. A errada conta em RATE; sem ele, quem já errou muitas espera antes
 * que a próxima seja olhada, certa ou errada: recusar também a certa deixaria um estranho trancar
 * quem divide o endereço com ele.
 */
async function check_key(request: http.IncomingMessage): Promise<void> {
  if (API_KEY.length === 0) return;
  const network = network_of(remote_address_of(request));
  const wrong = wrong_keys.get(network) ?? 0;
  if (wrong >= guessing.free) await sleep(guessing.delay_ms);
  if (is_authorized(request)) return;
  if (RATE) await check_rate(request);
  else if (wrong > 0 || wrong_keys.size < guessing.networks) {
    if (wrong_keys.size === 0) setTimeout(() => wrong_keys.clear(), guessing.window_ms).unref();
    wrong_keys.set(network, (wrong_keys.get(network) ?? 0) + 1);
  }
  throw new refusal('bad_key');
}

/**
 * Recusa o pedido que uma página de outra origem faz: o navegador a deixa pedir, só não deixa que
 * leia. A regra é a do CrossOriginProtection do Go, mas aqui também um GET cria tarefa: dele só
 * passa quem navega até cá. Quem não é navegador não manda estes cabeçalhos.
 */
function check_origin({ method, headers }: http.IncomingMessage): void {
  const { origin, host = '' } = headers;
  if (CORS_ORIGIN.includes('*') || (origin && CORS_ORIGIN.includes(origin))) return;
  const { 'sec-fetch-site': site, 'sec-fetch-mode': mode, 'sec-fetch-dest': target } = headers;
  if (site === 'same-origin' || site === 'none') return;
  if (method === 'GET' && mode === 'navigate' && target === 'document') return;
  // um navegador antigo, ou que não fala HTTPS conosco, só diz a origem, e só às vezes
  const from = origin?.replace(/^https?:\/\//, '').toLowerCase();
  if (site === undefined && (from === undefined || from === host.toLowerCase())) return;
  throw new refusal('other_origin');
}

/** Decide o que fazer com um pedido; lança a recusa que deve virar resposta. */
async function dispatch(turn: request_turn): Promise<void> {
  const { request, response } = turn;
  check_request(request);
  if (request.method === 'OPTIONS') {
    response.writeHead(204, { ...common_headers(), Allow: allowed_methods });
    response.end();
    return;
  }
  if (path_of(request.url ?? '') === '/ping') {
    await answer_ping(turn);
    return;
  }
  check_origin(request);
  await check_key(request);
  const back = comeback_of(request);
  const give_up = () => response.writeHead(204, common_headers()).end(); // um EventSource desiste
  if (back && back.lines < 0) {
    give_up();
    return;
  }
  if (!(await redis_ping(fresh_answer_ms))) throw new refusal('redis_silent');
  await check_rate(request);
  if (turn.interrupted) throw new Error('interrompido');
  if (request.method === 'HEAD') {
    response.writeHead(200, stream_headers(choose_media_type(request.headers.accept)));
    response.end();
    return;
  }
  if (back) {
    const found = within(redis_replay(back.uuid, { ttl: REPLAY }), answer_limit_ms);
    const { kept } = await or_refuse(found);
    if (!kept && back.is_event) return void give_up();
    if (kept) back.kept = kept;
  }
  await serve_task(turn, back);
}

/** Termina a resposta de um pedido em que algo foi lançado. */
async function answer_failure(turn: request_turn, error: unknown): Promise<void> {
  const { response } = turn;
  if (turn.interrupted === 'client_gone') {
    response.destroy();
    return;
  }
  if (!(error instanceof refusal) && !turn.interrupted) {
    log('error', 'request_error', { reason: String((error as Error).stack) });
  }
  if (response.headersSent) {
    const { message: reason } = error as Error;
    if (error instanceof refusal) log('warn', 'replay_cut', { reason });
    cut_response(turn); // um fim normal passaria a parte por todo
    return;
  }
  const fallback = new refusal(turn.interrupted ? 'stopping' : 'internal');
  await send_refusal(turn, error instanceof refusal ? error : fallback);
}

/** Atende um pedido cuja vez chegou, e só a passa adiante quando a resposta saiu. */
async function take_turn(state: connection_state, turn: request_turn): Promise<void> {
  const { request, response } = turn;
  try {
    // O que vem atrás de uma resposta que fecha a conexão não é atendido (RFC 9112, 9.6).
    if (turn.interrupted === 'client_gone' || state.socket.writableEnded) {
      state.socket.destroySoon(); // o erro do analisador espera por esta vez
      return;
    }
    const cors = cors_headers(request);
    for (const name in cors) response.setHeader(name, cors[name] ?? '');
    // O Node joga fora o que chegou no mesmo pacote, atrás de um Upgrade que ninguém atende.
    if (request.headers.upgrade !== undefined) response.shouldKeepAlive = false;
    await dispatch(turn);
  } catch (error) {
    await answer_failure(turn, error);
  } finally {
    await response_sent(response);
    state.turns.delete(turn);
    live_requests.delete(turn);
    state.bytes_at_rest = state.socket.bytesRead;
    if (lifetime.stopping) close_if_idle(state);
  }
}

/**
 * Recebe um pedido e o põe na fila da sua conexão. Nada espera antes disto: nenhum fechamento passa
 * despercebido. Quem enfileira sem ler as respostas perde a conexão, e o que já vinha nela, cai.
 */
function handle_request(request: http.IncomingMessage, response: http.ServerResponse): void {
  const { socket } = request;
  const state = connections.get(socket);
  if (!state || socket.destroyed) return;
  if (state.turns.size >= max_pipelined) {
    const address = parse_address(socket.remoteAddress ?? '');
    log('warn', 'pipeline_cut', { address, waiting: max_pipelined });
    socket.destroy();
    return;
  }
  const turn = new request_turn(request, response);
  state.turns.add(turn);
  live_requests.add(turn);
  state.last_response = response;
  state.last_turn = state.last_turn.then(() => take_turn(state, turn));
}

// ── Métricas ────────────────────────────────────────────────────────────────────────────────────
// O que um processo conta de si, no formato de texto do Prometheus (0.0.4). Sai por uma porta só
// para isto, METRICS_PORT: na outra todo caminho vira tarefa. Com WORKERS acima de 1 cada processo
// assina as suas linhas com o rótulo worker, e somá-las cabe a quem lê: um que morre recomeça do 0.

/** O valor de uma métrica. */
type reading = number | histogram;

/** Os valores de uma métrica: um só, ou por rótulo já na forma da página, 'ending="done"'. */
type readings = reading | Record<string, reading>;

/**
 * Dá a função que monta uma métrica do tipo `type` do Prometheus: nome, ajuda, leitura, e de quem
 * ela é (sem isso, de quem atende).
 */
function metric_of(type: 'counter' | 'gauge' | 'histogram') {
  return (name: string, help: string, read: () => readings, of?: 'supervisor' | 'everyone') => ({
    name: `json_proxy_${name}`,
    type,
    help,
    read,
    of,
  });
}

const [counter, gauge, histogram] = [
  metric_of('counter'),
  metric_of('gauge'),
  metric_of('histogram'),
];

/** Dá as contas de um contador por valor do rótulo `label`, na forma do formato. */
function by_label(label: string, values: Iterable<[string | number, number]>) {
  return Object.fromEntries([...values].map(([key, value]) => [`${label}="${key}"`, value]));
}

/** Todas as métricas, na ordem em que saem. */
export const metrics_table = [
  gauge(
    'info',
    'Vale 1; os rótulos dizem a versão do programa e a do Node.',
    () => ({ [`version="${version}",node="${process.version}"`]: 1 }),
    'everyone',
  ),
  gauge('streams', 'Fluxos em andamento.', () => lifetime.tasks),
  gauge('connections', 'Conexões de clientes abertas, as ociosas também.', () => connections.size),
  counter('tasks_total', 'Tarefas criadas.', () => tally.tasks),
  counter('stream_endings_total', 'Fluxos terminados, pelo modo como terminaram.', () =>
    by_label('ending', Object.entries(tally.endings)),
  ),
  counter('refusals_total', 'Pedidos recusados antes de haver fluxo, por status.', () =>
    by_label('status', tally.refusals),
  ),
  counter('sent_lines_total', 'Linhas dos workers enviadas aos clientes.', () => tally.lines),
  counter('sent_bytes_total', 'Bytes dessas linhas, com as quebras.', () => tally.bytes),
  histogram('first_line_seconds', 'Da tarefa à primeira linha do worker.', () => tally.first_line),
  histogram('redis_seconds', 'Resposta do Redis ao PING e à criação de uma tarefa.', () => ({
    'command="ping"': tally.redis_ping,
    'command="create"': tally.redis_create,
  })),
  gauge('redis_connected', 'Vale 1 com a conexão com o Redis de pé, 0 sem ela.', () =>
    Number(redis_link.client?.isReady === true && redis_link.lost_at === 0),
  ),
  counter('redis_reconnections_total', 'Conexões refeitas com o Redis.', () => tally.reconnections),
  gauge(
    'wakeup_mode',
    'Vale 1 o modo: o Redis avisa (tracking) ou é consultado (polling).',
    () => ({
      'mode="tracking"': Number(redis_link.tracking),
      'mode="polling"': Number(!redis_link.tracking),
    }),
  ),
  gauge('redis_eviction', 'Vale 1 se o Redis, cheio, joga chaves fora (maxmemory-policy).', () =>
    Number(redis_link.eviction_policy !== ''),
  ),
  gauge('queue_tasks', 'Tarefas de REDIS_STREAM, à espera de um worker ou nas mãos de um.', () =>
    by_label('state', Object.entries(redis_link.queue)),
  ),
  counter(
    'process_cpu_seconds_total',
    'Tempo de processador usado, do usuário e do sistema.',
    () => process.cpuUsage().user / 1e6 + process.cpuUsage().system / 1e6,
    'everyone',
  ),
  gauge(
    'process_resident_memory_bytes',
    'Memória residente do processo.',
    () => process.memoryUsage.rss(),
    'everyone',
  ),
  gauge(
    'process_heap_bytes',
    'Memória em uso pelos objetos do JavaScript.',
    () => process.memoryUsage().heapUsed,
    'everyone',
  ),
  gauge(
    'process_start_time_seconds',
    'Quando o processo subiu, em segundos desde 1970.',
    () => performance.timeOrigin / 1000,
    'everyone',
  ),
  counter(
    'process_deaths_total',
    'Processos que morreram e foram trocados.',
    () => tally.deaths,
    'supervisor',
  ),
];

/**
 * Dá um valor da métrica `name` com os rótulos `labels`, na forma do formato: uma linha ou, de
 * um histograma, uma por faixa (cada uma conta as anteriores), a soma e o total.
 */
function format_reading(name: string, labels: string, value: reading): string {
  const signature = WORKERS > 1 ? `worker="${worker_slot}"` : '';
  const line = (suffix: string, number: number, bound = '') => {
    const all = [labels, signature, bound].filter(Boolean).join(',');
    return `${name}${suffix}${all && `{${all}}`} ${number}\n`;
  };
  if (typeof value === 'number') return line('', value);
  let count = 0;
  const buckets = value.counts.map((found, index) => {
    count += found;
    return line('_bucket', count, `le="${value.bounds[index] ?? '+Inf'}"`);
  });
  return buckets.join('') + line('_sum', value.sum) + line('_count', count);
}

/** Lê as métricas deste processo, na ordem de metrics_table; vazia a que não é dele. */
function collect_metrics(): string[] {
  const role = WORKERS > 1 && worker_slot === 0 ? 'supervisor' : undefined;
  return metrics_table.map(({ name, of, read }) => {
    if (of !== 'everyone' && of !== role) return '';
    const value = read();
    const is_single = typeof value === 'number' || 'bounds' in value;
    const readings = Object.entries(is_single ? { '': value as reading } : value);
    return readings.map(([labels, value]) => format_reading(name, labels, value)).join('');
  });
}

/**
 * Monta a página de `collected`, o que collect_metrics deu em cada processo. O formato quer juntas
 * as linhas de uma métrica, sejam de quem forem.
 */
function metrics_page(collected: string[][]): string {
  const blocks = metrics_table.map(({ name, type, help }, index) => {
    const lines = collected.map((of_process) => of_process[index] ?? '').join('');
    return lines && `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${lines}`;
  });
  return blocks.join('');
}

/** Diz se este processo pode receber pedidos: não está parando, e o Redis responde e guarda. */
async function is_ready(): Promise<boolean> {
  const may_write = () => !lifetime.stopping && redis_link.wrong_server === '';
  return may_write() && (await redis_ping()) && may_write();
}

/** O que um processo conta ao supervisor, se há porta de métricas; `at` em ms desde 1970. */
type report = { metrics: string[]; ready: boolean; at: number };

/** De quanto em quanto tempo ele o faz; quem falta três vezes travou. */
const report_every_ms = 1000;

/** Os processos: os vivos, o último relato dos que atendem, onde o fazem, e o fim de tudo. */
const crew = {
  alive: new Set<cluster_worker>(),
  reports: new Map<cluster_worker, report>(),
  url: '',
  stopping: new AbortController(),
};

/** O formato do Prometheus; as outras páginas, de uma palavra, também são texto. */
const metrics_type = 'text/plain; version=0.0.4; charset=utf-8';

/** Responde na porta das métricas, em nome deste processo ou, no supervisor, de todos. */
async function answer_observer(
  request: http.IncomingMessage,
  response: http.ServerResponse,
): Promise<void> {
  const is_fresh = ({ at }: report) => Date.now() - at < 3 * report_every_ms;
  const reports = [...crew.reports.values()].filter(is_fresh); // o de quem trava não conta
  const all_ready = async () => {
    if (WORKERS === 1) return is_ready();
    return reports.filter(({ ready }) => ready).length === Math.max(crew.reports.size, 1);
  };
  const pages: Record<string, () => Promise<[number, string]>> = {
    '/metrics': async () => [
      200,
      metrics_page([collect_metrics(), ...reports.map(({ metrics }) => metrics)]),
    ],
    '/live': async () => [200, 'live\n'],
    '/ready': async () => ((await all_ready()) ? [200, 'ready\n'] : [503, 'not ready\n']),
  };
  const path = path_of(request.url ?? '');
  const page = Object.hasOwn(pages, path) ? pages[path] : undefined;
  const is_read = request.method === 'GET' || request.method === 'HEAD';
  const not_found = [404, 'not found\n'] as const;
  const not_allowed = [405, 'method not allowed\n'] as const;
  const [status, body] = page && is_read ? await page() : page ? not_allowed : not_found;
  response.writeHead(status, {
    ...common_headers(),
    'Content-Type': metrics_type,
    'Cache-Control': 'no-store',
    ...(status === 405 && { Allow: 'GET, HEAD' }),
  });
  response.end(body);
}

// ── Leitura das configurações ───────────────────────────────────────────────────────────────────
// Uma tabela só (settings_table) alimenta a leitura, o --help e o manual: nome, opções, padrão e
// leitor moram juntos. Os leitores devolvem um valor válido ou lançam o que seria aceito, e o
// programa para ali, com código 2, sem tocar na rede. Senhas nunca são mostradas, nem as de URL.

/** De onde veio o texto em vigor de uma configuração. */
type setting_source = 'default' | 'environment' | 'argument';

/** O texto em vigor de cada configuração, e sua origem, antes de ser interpretado. */
type gathered_settings = Map<string, { text: string; source: setting_source; label: string }>;

/** Erro de uso: a mensagem é a linha inteira que o usuário lê. */
class usage_error extends Error {}

/** Um TTL maior que isto não caberia no temporizador da varredura, que corre a cada REDIS_TTL. */
const max_ttl_s = Math.floor(max_timer_ms / 1000);

/** Uma string do Redis não passa de 512 MB; base64 e JSON aumentam o corpo em até seis vezes. */
const max_body_setting = 64 * 1024 * 1024;

/** O maior número de fluxos ao mesmo tempo que se pode pedir; o que cabe é a memória que diz. */
const max_tasks_setting = 1_000_000;

/** As gravidades, da mais grave para a menos. Não há "debug": o que vale uma linha já a tem. */
const log_levels = Object.keys(log_priority) as log_level[];

// Os leitores recebem em `text` o que o usuário deu, e devolvem o valor lido ou lançam Error com a
// descrição do que é aceito.

/** Lê um inteiro de `min` a `max`; `unit` ("ms", "s", "bytes") só aparece na mensagem. */
export function parse_integer(text: string, min: number, max: number, unit = ''): number {
  const value = Number(text);
  if (/^\d{1,15}$/.test(text) && value >= min && value <= max) return value;
  throw new Error(`um inteiro de ${min} a ${max}${unit && ` ${unit}`}`);
}

/** Nomes de chave e canal vão em cabeçalhos e logs: ASCII visível, de tamanho razoável. */
const key_name_pattern = /^[\x21-\x7e]{1,200}$/;

/** Lê um nome de chave, prefixo ou canal do Redis, como "ndjson_task_". */
function parse_key_name(text: string): string {
  if (key_name_pattern.test(text)) return text;
  throw new Error('de 1 a 200 caracteres ASCII visíveis, sem espaços');
}

/** Lê um valor que vai inteiro em um cabeçalho HTTP. */
function parse_header_value(text: string): string {
  if (/^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$/.test(text)) return text;
  throw new Error('texto ASCII visível, sem espaço no começo nem no fim');
}

/** Lê um texto que será enviado como uma linha da resposta. */
function parse_line(text: string): string {
  if (text.trim() !== '' && !/[\r\n]/.test(text)) return text;
  throw new Error('uma linha de texto, não vazia, sem quebras');
}

/** Lê um endereço IP ou nome em que escutar: "0.0.0.0", "::" ou "localhost". */
function parse_host(text: string): string {
  if (/^[\w.-]+$/.test(text) || is_ipv6(text)) return text;
  throw new Error('um endereço IPv4, um IPv6 sem colchetes ou um nome de host');
}

/** Lê "on", "off", "1", "0", "true" ou "false", em qualquer caixa; devolve true se ligado. */
function parse_switch(text: string): boolean {
  if (/^(on|1|true)$/i.test(text)) return true;
  if (/^(off|0|false)$/i.test(text)) return false;
  throw new Error('on, off, 1, 0, true ou false');
}

/** Lê uma de poucas palavras, `words`, em minúsculas; o texto pode vir em qualquer caixa. */
function parse_choice<word>(text: string, words: readonly word[]): word {
  const chosen = words.find((word) => word === (text.toLowerCase() as word));
  if (chosen !== undefined) return chosen;
  throw new Error(words.join(', ').replace(/, (?=[^,]*$)/, ' ou '));
}

/** Cada processo é um Node inteiro: mais do que isto esgotaria antes a memória e um só Redis. */
const max_workers = 64;

/** Lê quantos processos atendem, até max_workers; "auto" é um por núcleo. */
export function parse_workers(text: string): number {
  if (/^auto$/i.test(text)) return Math.min(available_parallelism(), max_workers);
  try {
    return parse_integer(text, 1, max_workers);
  } catch (error) {
    throw new Error(`auto ou ${(error as Error).message}`);
  }
}

/** Devolve o conteúdo do arquivo `file`, dado numa configuração. */
function read_setting_file(file: string): string {
  try {
    return read_file(file, 'utf8');
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException;
    throw new Error(`o caminho de um arquivo que se possa ler (${code})`);
  }
}

/** Lê o caminho de um arquivo que se possa ler; vazio desliga. */
function parse_file(text: string): string {
  if (text !== '') read_setting_file(text);
  return text;
}

/** Devolve o certificado e a chave de TLS_CERT e TLS_KEY, em PEM; lança se não formam um par. */
function read_tls_pair() {
  const pair = { cert: read_setting_file(TLS_CERT), key: read_setting_file(TLS_KEY) };
  make_tls_context(pair);
  return pair;
}

/** Lê chaves de API separadas por vírgula ou quebra de linha; devolve o resumo de cada uma. */
function parse_api_keys(text: string): Buffer[] {
  const keys = text.split(/[,\r\n]+/).map((key) => key.trim());
  const given = keys.filter((key) => key !== '');
  const usable = given.length > 0 && given.every((key) => /^[\x21-\x7e]+$/.test(key));
  if (!usable) throw new Error('uma ou mais chaves em ASCII visível, separadas por vírgula');
  return given.map(hash_key);
}

/** O maior número de pedidos por janela, e a maior janela, de um dia. */
const max_rate = { count: 1_000_000, seconds: 86_400 };

/** Lê um limite como "60/60", pedidos e segundos; vazio desliga e dá undefined. */
export function parse_rate(text: string): rate_limit | undefined {
  if (text === '') return undefined;
  const [count = '', seconds = '', ...rest] = text.split('/');
  try {
    if (rest.length > 0) throw new Error('barras demais');
    return {
      count: parse_integer(count, 1, max_rate.count),
      seconds: parse_integer(seconds, 1, max_rate.seconds),
    };
  } catch {
    throw new Error(
      `pedidos/segundos, como 60/60: de 1 a ${max_rate.count} e de 1 a ${max_rate.seconds} s`,
    );
  }
}

/** Lê "*" ou origens separadas por vírgula, na forma em que o navegador as manda. */
export function parse_origins(text: string): string[] {
  if (text === '') return [];
  const origins = text.split(',').map((origin) => origin.trim());
  const is_origin = (origin: string) =>
    !origin.includes('*') && URL.canParse(origin) && new URL(origin).origin === origin;
  const bad = origins.find((origin) => origin !== '*' && !is_origin(origin));
  if (bad === undefined) return origins;
  const form = '* ou origens separadas por vírgula, como https://exemplo.com.br';
  throw new Error(`${form}, sem curinga nem barra no fim; ${JSON.stringify(bad)} nunca casaria`);
}

/** Lê "host", "host:porta" ou "[::1]:porta"; `port` é a que vale sem ela. */
function parse_place(text: string, port: string): place {
  const [, host = '', given = port] = /^(.*?)(?::(\d+))?$/.exec(text) ?? [];
  const bare = host.replace(/^\[(.*)\]$/, '$1');
  if (bare !== host && !is_ipv6(bare)) throw new Error('um IPv6 entre colchetes');
  return { host: bare, port: parse_integer(given, 1, 65535) };
}

/**
 * Monta um endereço do Redis das partes capturadas, em texto; a que falta vale o padrão.
 * @throws Error se uma porta, um banco ou um IPv6 não vale
 */
function make_redis_address(parts: Record<string, string | undefined>): redis_address {
  const { scheme = '', primary = '' } = parts;
  const [kind = 'redis'] = /^(?:sentinel|cluster)/.exec(scheme.toLowerCase()) ?? [];
  const nodes = parts.nodes?.split(',') ?? [];
  return {
    kind: kind as redis_address['kind'],
    tls: /^(rediss|sentinels|clusters)$/i.test(scheme),
    nodes: nodes.map((text) => parse_place(text, primary ? '26379' : '6379')),
    primary,
    socket_path: parts.path ?? '',
    database: parse_integer(parts.database || '0', 0, 2 ** 31 - 1),
    username: decodeURIComponent(parts.username ?? ''),
    password: decodeURIComponent(parts.password ?? ''),
  };
}

const redis_forms =
  'host[:porta][/banco], [::1]:6379/1, redis://[usuário:senha@]host[:porta][/banco], ' +
  'rediss://… (TLS), /caminho/redis.sock[?db=N], unix:/caminho/redis.sock[?db=N], ' +
  'sentinel://[usuário:senha@]host[:porta][,host…]/primário[/banco], sentinels://… (TLS), ' +
  'cluster://[usuário:senha@]host[:porta][,host…] ou clusters://… (TLS)';

/** Lê um endereço do Redis, numa das formas de `redis_forms`; o que lança diz o que é aceito. */
export function parse_redis_server(text: string): redis_address {
  const userinfo = '(?:(?<username>[^:@/]*)(?::(?<password>.*))?@)?';
  const node = '(?:\\[[0-9a-f:.]+\\]|[\\w.-]+)(?::\\d+)?';
  const database = '(?:/(?<database>\\d*))?';
  const list = `(?<nodes>${node}(?:,${node})*)`;
  const primary = '/(?<primary>[\\w.-]+)';
  const forms = [
    new RegExp(`^(?<nodes>${node})${database}$`, 'i'),
    new RegExp(`^(?<scheme>rediss?)://${userinfo}(?<nodes>${node})${database}$`, 'i'),
    new RegExp(`^(?<scheme>sentinels?)://${userinfo}${list}${primary}${database}$`, 'i'),
    new RegExp(`^(?<scheme>clusters?)://${userinfo}${list}/?$`, 'i'),
    new RegExp(`^(?:unix:(?://${userinfo})?)?(?<path>/[^?]*[^?/])(?:\\?db=(?<database>\\d+))?$`),
  ];
  for (const form of forms) {
    const parts = form.exec(text)?.groups;
    if (!parts) continue;
    try {
      return make_redis_address(parts);
    } catch {
      break; // a forma é conhecida, mas um número, um IPv6 ou um %XX dela não vale
    }
  }
  throw new Error(`${redis_forms}; porta de 1 a 65535`);
}

const shown_node = '(\\[[\\da-f:.]+\\]|[\\w.-]+)(:\\d{1,5})?';
const shown_list = `(\\*\\*\\*@)?${shown_node}(,${shown_node})*`;

/** O que se mostra de um endereço: outra forma, malformada, pode ter a senha em qualquer lugar. */
const harmless_addresses = [
  new RegExp(`^(rediss?://)?(\\*\\*\\*@)?${shown_node}(/\\d{0,10})?$`, 'i'),
  new RegExp(`^sentinels?://${shown_list}/[\\w.-]+(/\\d{0,10})?$`, 'i'),
  new RegExp(`^clusters?://${shown_list}/?$`, 'i'),
  /^(unix:(\/\/(\*\*\*@)?)?)?\/[^?\x00-\x1f]*(\?db=\d*)?$/i,
];

/** Devolve o endereço `text`, que pode ser malformado, com "***" em vez do que pode ser senha. */
export function redact_address(text: string): string {
  const shown = text.replace(/^([a-z]+:\/\/)?.*@/is, '$1***@');
  return harmless_addresses.some((form) => form.test(shown)) ? shown : '***';
}

/**
 * Dá uma linha da tabela de configurações; o que ela guarda é segredo, ou caminho, conforme o nome.
 * @param form variável, opções e padrão: "HTTP_PORT -p --port 8771"
 * @param help o que ela diz no --help
 * @param read lê o texto e preenche a global; lança Error com a descrição do que é aceito
 */
function row(form: string, help: string, read: (text: string) => void) {
  const [, name = '', short = '', long = '', fallback = ''] =
    /^(\w+) (?:-(\w) )?--([\w-]+) ?(.*)$/.exec(form) ?? [];
  const is_secret = /^(REDIS_PASSWORD|API_KEY)$/.test(name);
  return { name, short, long, fallback, help, is_secret, is_path: /_FILE$|^TLS_/.test(name), read };
}

/** Todas as configurações, na ordem em que o --help as mostra. */
export const settings_table = [
  row('HTTP_PORT -p --port 8771', 'porta HTTP; 0 escolhe uma livre', (text) => {
    HTTP_PORT = parse_integer(text, 0, 65535);
  }),
  row('REDIS_SERVER -R --redis 127.0.0.1:6379/1', 'servidor Redis, host:porta/banco', (text) => {
    REDIS_SERVER = parse_redis_server(text);
  }),
  row('REDIS_PASSWORD -S --secret', 'senha do Redis; vence a da URL', (text) => {
    REDIS_PASSWORD = text;
  }),
  row('REDIS_CHANNEL -C --channel ndjson_jobs', 'canal que anuncia as tarefas', (text) => {
    REDIS_CHANNEL = parse_key_name(text);
  }),
  row('REDIS_PREFIX -X --prefix ndjson_task_', 'prefixo da chave da tarefa', (text) => {
    REDIS_PREFIX = parse_key_name(text);
  }),
  row('INTERVAL -i --interval 200', 'ms entre consultas a uma lista vazia', (text) => {
    INTERVAL = parse_integer(text, 0, max_timer_ms, 'ms');
  }),
  row('PAUSE -P --pause 20', 'ms de pausa após cada linha enviada', (text) => {
    PAUSE = parse_integer(text, 0, max_timer_ms, 'ms');
  }),
  row('MAXTIME -t --maxtime 45000', 'ms de espera máxima desde a última linha', (text) => {
    MAXTIME = parse_integer(text, 1, max_timer_ms, 'ms');
  }),
  row(
    'MAXTIME_ERROR -E --maxtime-error {"error": "timeout"}',
    'a linha de quando MAXTIME se esgota',
    (text) => {
      MAXTIME_ERROR = parse_line(text);
    },
  ),
  row('SERVERNAME -s --servername py-ndjson-proxy', 'valor do cabeçalho Server', (text) => {
    SERVERNAME = parse_header_value(text);
  }),
  row('HTTP_HOST --host 0.0.0.0', 'endereço em que escutar', (text) => {
    HTTP_HOST = parse_host(text);
  }),
  row('REDIS_LIST_PREFIX -L --list-prefix ndjson_list_', 'prefixo da lista de linhas', (text) => {
    REDIS_LIST_PREFIX = parse_key_name(text);
  }),
  row('REDIS_TTL --ttl 600', 's de vida das chaves sem renovação', (text) => {
    REDIS_TTL = parse_integer(text, 1, max_ttl_s, 's');
  }),
  row('REPLAY --replay 0', 's em que um cliente pode voltar à sua resposta; 0 desliga', (text) => {
    REPLAY = parse_integer(text, 0, max_ttl_s, 's');
  }),
  row('GRACE --grace 10000', 'ms para os fluxos terminarem após SIGTERM', (text) => {
    GRACE = parse_integer(text, 0, max_timer_ms, 'ms');
  }),
  row('MAXBODY --maxbody 10485760', 'bytes que o corpo de um pedido pode ter', (text) => {
    MAXBODY = parse_integer(text, 0, max_body_setting, 'bytes');
  }),
  row('WAKEUP --wakeup on', 'acordar pelo Redis em vez de só consultar: on ou off', (text) => {
    WAKEUP = parse_switch(text);
  }),
  row('REDIS_STREAM --stream', 'stream em que as tarefas esperam por um worker', (text) => {
    REDIS_STREAM = text === '' ? '' : parse_key_name(text);
  }),
  row('WORKERS -w --workers 1', 'processos que atendem; auto é um por núcleo', (text) => {
    WORKERS = parse_workers(text);
  }),
  row('MAXTASKS --maxtasks 10000', 'fluxos ao mesmo tempo por processo; além, 503', (text) => {
    MAXTASKS = parse_integer(text, 1, max_tasks_setting);
  }),
  row('FAILFAST --failfast off', '503 na hora se ninguém ouve o canal: on ou off', (text) => {
    FAILFAST = parse_switch(text);
  }),
  row('HEARTBEAT --heartbeat 0', 'ms sem enviar nada até um keepalive; 0 desliga', (text) => {
    HEARTBEAT = parse_integer(text, 0, max_timer_ms, 'ms');
  }),
  row('HEAD_WAIT --head-wait 10000', 'ms que os cabeçalhos esperam pelo worker', (text) => {
    HEAD_WAIT = parse_integer(text, 0, max_timer_ms, 'ms');
  }),
  row('API_KEY --api-key', 'chaves que os clientes devem mandar, com vírgulas', (text) => {
    API_KEY = text === '' ? [] : parse_api_keys(text);
  }),
  row('API_KEY_FILE --api-key-file', 'arquivo com as chaves de API_KEY', (text) => {
    if (text !== '') API_KEY = parse_api_keys(read_setting_file(text));
  }),
  row('REDIS_PASSWORD_FILE --secret-file', 'arquivo com a senha do Redis', (text) => {
    if (text !== '') REDIS_PASSWORD = read_setting_file(text).replace(/\r?\n$/, '');
  }),
  row('RATE --rate', 'pedidos/segundos por endereço, como 60/60; além, 429', (text) => {
    RATE = parse_rate(text);
  }),
  row('TRUST_PROXY --trust-proxy off', 'crer no X-Forwarded-For: on ou off', (text) => {
    TRUST_PROXY = parse_switch(text);
  }),
  row('CORS_ORIGIN --cors-origin', 'origens que podem pedir pelo navegador, ou *', (text) => {
    CORS_ORIGIN = parse_origins(text);
  }),
  row('TLS_CERT --tls-cert', 'arquivo do certificado, em PEM: atende por HTTPS', (text) => {
    TLS_CERT = parse_file(text);
  }),
  row('TLS_KEY --tls-key', 'arquivo da chave do certificado, em PEM, sem senha', (text) => {
    TLS_KEY = parse_file(text);
  }),
  row('LOG_FORMAT --log-format text', 'forma das linhas de log: text ou json', (text) => {
    LOG_FORMAT = parse_choice(text, log_formats);
  }),
  row('LOG_LEVEL --log-level info', 'gravidade mínima do log: error, warn ou info', (text) => {
    LOG_LEVEL = parse_choice(text, log_levels);
  }),
  row('METRICS_PORT --metrics-port 0', 'porta de /metrics, /live e /ready; 0 desliga', (text) => {
    METRICS_PORT = parse_integer(text, 0, 65535);
  }),
  row('METRICS_HOST --metrics-host 127.0.0.1', 'endereço em que ela escuta', (text) => {
    METRICS_HOST = parse_host(text);
  }),
];

/** O que se mostra como caminho; outra coisa pode ser o próprio segredo, dado por engano. */
const path_pattern = /^([./~]|[\w-]+\.\w+$)[^\x00-\x1f]*$/;

/**
 * Devolve o valor de uma configuração, dado em `text`, como se pode mostrar: "***" no lugar de um
 * segredo, ou do que foi dado em vez do caminho dele; endereços sem usuário e senha.
 */
function show_setting(of: ReturnType<typeof row>, text: string): string {
  const is_hidden = of.is_secret || (of.is_path && !path_pattern.test(text));
  if (is_hidden) return text === '' ? '' : '***';
  return of.name === 'REDIS_SERVER' ? redact_address(text) : text;
}

/** O que existe noutro lugar e não aqui, o Node ou o py-ndjson-proxy, e o que usar. */
const foreign_names = new Map([
  ['env-file', 'é do Node, e vai antes do programa: node --env-file=.env json-proxy.js'],
  ['m', 'aqui é -t (MAXTIME, em ms)'],
  ['d', 'não há modo debug; veja LOG_LEVEL (--log-level)'],
  ['debug', 'não há modo debug; veja LOG_LEVEL (--log-level)'],
  ['key-prefix', 'aqui é -X (REDIS_PREFIX), com o separador no fim: ndjson_task_'],
]);

/**
 * Separa os argumentos em `argv`: por nome longo, o texto de cada um e como o usuário a escreveu.
 * Nenhum erro mostra um valor, nem um argumento solto: pode ser uma senha que escapou da sua opção
 * (`--secret= abc`, `-secret abc`).
 * @throws usage_error em opção desconhecida, opção sem valor ou argumento solto
 */
function read_arguments(argv: string[]): Map<string, { text: string; label: string }> {
  const options: Record<string, { type: 'string' | 'boolean'; short?: string }> = {
    help: { type: 'boolean', short: 'h' },
    version: { type: 'boolean', short: 'V' },
  };
  for (const { long, short } of settings_table) {
    options[long] = { type: 'string', ...(short && { short }) };
  }
  const { tokens } = parse_args({ args: argv, options, strict: false, tokens: true });
  const given = new Map<string, { text: string; label: string }>();
  for (const token of tokens) {
    if (token.kind === 'option-terminator') continue;
    if (token.kind === 'positional') {
      const where = `na posição ${token.index + 1}`;
      throw new usage_error(`argumento inesperado ${where}; só opções são aceitas, veja --help`);
    }
    const label = token.rawName;
    const known = Object.hasOwn(options, token.name) && options[token.name];
    if (!known) {
      const shown = label.replace(/^(--(?:secret|redis|api-key)).+$/s, '$1…');
      const advice = foreign_names.get(token.name) ?? '--help mostra as aceitas';
      throw new usage_error(`opção desconhecida: ${shown}; ${advice}`);
    }
    const text = known.type === 'boolean' ? '' : token.value;
    if (text === undefined) throw new usage_error(`falta o valor de ${label}; veja --help`);
    given.set(token.name, { text, label });
  }
  return given;
}

/** Confere o certificado e a chave do HTTPS: nenhum dos dois, ou um par. */
function check_tls_settings(): void {
  if (TLS_CERT === '' && TLS_KEY === '') return;
  const shown = `TLS_CERT ${JSON.stringify(TLS_CERT)} e TLS_KEY ${JSON.stringify(TLS_KEY)}`;
  const accepted = 'aceito: os dois, em PEM, a chave sem senha e deste certificado';
  if (TLS_CERT === '' || TLS_KEY === '') throw new usage_error(`${shown} inválidos; ${accepted}`);
  try {
    read_tls_pair();
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    throw new usage_error(`${shown} inválidos (${code ?? message}); ${accepted}`);
  }
}

/** Duas formas da mesma configuração: só uma pode ser dada. */
const rival_settings = [
  ['API_KEY', 'API_KEY_FILE'],
  ['REDIS_PASSWORD', 'REDIS_PASSWORD_FILE'],
] as const;

/** Confere as configurações que só valem umas com as outras; lança usage_error que as nomeia. */
function check_settings_together(gathered: gathered_settings): void {
  const prefixes = [REDIS_PREFIX, REDIS_LIST_PREFIX, claim_prefix, rate_prefix, sent_prefix];
  if (new Set(prefixes).size < prefixes.length) {
    throw new usage_error(
      `REDIS_PREFIX ${JSON.stringify(REDIS_PREFIX)} e REDIS_LIST_PREFIX ` +
        `${JSON.stringify(REDIS_LIST_PREFIX)} inválidos; aceito: diferentes entre si, de ` +
        `${JSON.stringify(claim_prefix)}, de ${JSON.stringify(rate_prefix)} e de ` +
        JSON.stringify(sent_prefix),
    );
  }
  for (const [name, value] of Object.entries({ FAILFAST, REDIS_STREAM, REPLAY })) {
    if (REDIS_SERVER.kind !== 'cluster' || !value) continue;
    throw new usage_error(`${name} e cluster:// dados ao mesmo tempo; aceito: só um deles`);
  }
  const is_given = (name: string) => (gathered.get(name)?.text ?? '') !== '';
  for (const name of ['API_KEY', 'API_KEY_FILE']) {
    // uma variável que o shell não achou deixaria a porta aberta; no ambiente, vazia é ausente
    if (is_given(name) || gathered.get(name)?.source !== 'argument') continue;
    throw new usage_error(`${name} dado vazio; aceito: uma chave ao menos, ou a opção ausente`);
  }
  for (const [plain, file] of rival_settings) {
    if (is_given(plain) && is_given(file)) {
      throw new usage_error(`${plain} e ${file} dados ao mesmo tempo; aceito: só um deles`);
    }
  }
  if (METRICS_PORT > 0 && METRICS_PORT === HTTP_PORT) {
    throw new usage_error(`METRICS_PORT inválido: "${METRICS_PORT}"; aceito: não a de HTTP_PORT`);
  }
  if (FAILFAST && REDIS_STREAM) {
    throw new usage_error('FAILFAST e REDIS_STREAM dados ao mesmo tempo; aceito: só um deles');
  }
  check_tls_settings();
}

/**
 * Lê todas as configurações e as deixa nas variáveis globais: padrão < ambiente (`env`) < argumento
 * (`argv`). Variável vazia vale como ausente: é o que o compose produz com `${X:-}`. Devolve o que
 * foi pedido, "run", "help" ou "version" (nada é aplicado), e os textos em vigor.
 * @throws usage_error que nomeia a configuração, o valor e o que é aceito
 */
export function load_settings(argv: string[], env: NodeJS.ProcessEnv) {
  const given = read_arguments(argv);
  const gathered: gathered_settings = new Map();
  for (const { name, long, fallback } of settings_table) {
    const argument = given.get(long);
    const variable = env[name];
    const found = argument
      ? { ...argument, source: 'argument' as const }
      : variable
        ? { text: variable, label: 'ambiente', source: 'environment' as const }
        : { text: fallback, label: 'padrão', source: 'default' as const };
    gathered.set(name, found);
  }
  if (given.has('help')) return { action: 'help' as const, gathered };
  if (given.has('version')) return { action: 'version' as const, gathered };
  if (env.REDIS_KEY_PREFIX) {
    const advice = foreign_names.get('key-prefix');
    throw new usage_error(`REDIS_KEY_PREFIX (ambiente) desconhecida; ${advice}`);
  }
  for (const entry of settings_table) {
    const { text, label } = gathered.get(entry.name) ?? { text: '', label: '' };
    try {
      entry.read(text);
    } catch (error) {
      const shown = JSON.stringify(show_setting(entry, text));
      const accepted = (error as Error).message;
      throw new usage_error(`${entry.name} (${label}) inválido: ${shown}; aceito: ${accepted}`);
    }
  }
  check_settings_together(gathered);
  return { action: 'run' as const, gathered };
}

/** Monta o texto do --help, com a tabela gerada de `settings_table`. */
export function help_text(gathered: gathered_settings): string {
  const lines = [
    `json-proxy ${version}: HTTP que responde em NDJSON o que um worker põe no Redis.`,
    '',
    'Uso: node json-proxy.js [opções]',
    '     node json-proxy.js -p 8771 -R 127.0.0.1:6379/1',
    '',
    'Precedência: padrão < variável de ambiente < argumento.',
    '',
  ];
  const row_text = (flags: string, name: string, fallback: string, in_force: string) =>
    `${flags.padEnd(18)} ${name.padEnd(19)} ${fallback.padEnd(20)} ${in_force}`;
  lines.push(row_text('opção', 'variável', 'padrão', 'em vigor'), '');
  for (const row of settings_table) {
    const flags = `${row.short ? `-${row.short} ` : '   '}--${row.long}`;
    const in_force = show_setting(row, gathered.get(row.name)?.text ?? row.fallback);
    lines.push(row_text(flags, row.name, row.fallback || '(vazio)', in_force || '(vazio)'));
    lines.push(`      ${row.help}`);
  }
  lines.push('-h --help', '      esta ajuda', '-V --version', '      a versão', '');
  lines.push(
    'REDIS_SERVER aceita:',
    ...redis_forms.split(/, | ou /).map((form) => `      ${form}`),
  );
  lines.push('Prefira a senha no ambiente: argumentos aparecem na saída do ps.');
  return `${lines.join('\n')}\n`;
}

// ── Vida do processo ────────────────────────────────────────────────────────────────────────────
// Subir: configurações, Redis, porta. Descer: parar de aceitar, dar GRACE aos fluxos, encerrar os
// que restam com uma linha de erro, limpar o Redis. O segundo sinal sai na hora. Com WORKERS acima
// de 1 essa é a vida de cada processo, e a do supervisor é cuidar deles, sem atender ninguém.

/** O que pede a parada graciosa: o serviço, o Ctrl-C, o terminal que se fecha. */
const stop_signals = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const;

/** Como um processo terminou: o código de saída, ou do erro que não o deixou subir; ou o sinal. */
type process_end = { code: number | string } | { signal: string };

/** De quanto em quanto tempo o certificado é relido. */
const certificate_check_ms = 10_000;

/**
 * Cria o servidor HTTPS, que relê o seu certificado quando os arquivos mudam: quem o renova só
 * precisa trocá-los. Enquanto os dois não formam um par, vale o anterior.
 */
function make_tls_server(options: http.ServerOptions): https.Server {
  const pair = read_tls_pair();
  const server = https.createServer({ ...options, ...pair, handshakeTimeout: headers_limit_ms });
  const renew = () => {
    try {
      server.setSecureContext(read_tls_pair());
      log('info', 'tls_renewed', { cert: TLS_CERT });
    } catch (error) {
      log('warn', 'tls_refused', { cert: TLS_CERT, reason: (error as Error).message });
    }
  };
  const watching = { interval: certificate_check_ms, persistent: false };
  for (const file of [TLS_CERT, TLS_KEY]) watch_file(file, watching, renew);
  return server;
}

/** Cria o servidor HTTP ou HTTPS com todos os seus ouvintes, ainda sem abrir a porta. */
function make_server(): http.Server {
  const options = {
    keepAliveTimeout: keep_alive_ms,
    headersTimeout: headers_limit_ms,
    requestTimeout: request_limit_ms,
    connectionsCheckingInterval: headers_check_ms,
    requireHostHeader: false, // a recusa é nossa, com os nossos cabeçalhos
    keepAlive: true, // o do TCP, não o do HTTP
    keepAliveInitialDelay: probe_after_ms,
  };
  const server = TLS_CERT ? make_tls_server(options) : http.createServer(options);
  server.maxHeadersCount = 0; // o Node jogaria fora os de mais sem dizer; 16 KiB já os limitam
  server.on(TLS_CERT ? 'secureConnection' : 'connection', watch_connection);
  server.on('request', handle_request);
  server.on('checkContinue', handle_request);
  server.on('checkExpectation', handle_request);
  server.on('clientError', refuse_broken_request);
  server.on('connect', async (_request, socket) => {
    await connections.get(socket)?.last_turn;
    end_connection(socket, new refusal('no_tunnel'), 'CONNECT'); // não é um túnel
  });
  return server;
}

/**
 * Dá, em uma frase que diz o que fazer, por que uma porta não abriu; `port` e `host` são as
 * configurações que a escolhem.
 */
function explain_listen_error(error: NodeJS.ErrnoException, port: string, host: string): string {
  const reasons: Record<string, string> = {
    EADDRINUSE: `a porta já está em uso; escolha outra em ${port}`,
    EACCES: `sem permissão para essa porta; escolha uma acima de 1023 em ${port}`,
    EADDRNOTAVAIL: `o endereço não é desta máquina; confira ${host}`,
    ENOTFOUND: `nome desconhecido; confira ${host}`,
    EAI_AGAIN: `nome desconhecido; confira ${host}`,
  };
  return reasons[error.code ?? ''] ?? error.message;
}

/** Dá a URL em que se atende em `host` e `port`, e se é HTTPS (`is_tls`): "http://0.0.0.0:8771". */
function url_at(host: string, port: number, is_tls = TLS_CERT !== ''): string {
  return `${is_tls ? 'https' : 'http'}://${host.includes(':') ? `[${host}]` : host}:${port}`;
}

/** De quanto em quanto tempo, no máximo, se diz que uma conexão não pôde ser aceita. */
const accept_failure_ms = 1000;

/**
 * Abre uma porta de `host`, em `port` (0 escolhe uma livre), e devolve a real. O que falhar nela
 * depois disso é registrado, e não encerra o programa. Lança o erro de listen.
 */
async function listen(server: http.Server, port: number, host: string): Promise<number> {
  await once(server.listen(port, host), 'listening');
  let told_at = -Infinity;
  server.on('error', ({ message: reason }) => {
    if (now() - told_at < accept_failure_ms) return; // sem descritores, falham todas
    told_at = now();
    log('error', 'accept_failed', { reason });
  });
  return (server.address() as address_info).port;
}

/** De quanto em quanto tempo a parada confere se restam pedidos. */
const drain_check_ms = 20;

/** Espera, no máximo `ms` milissegundos, os pedidos em andamento terminarem. */
async function requests_over(ms: number): Promise<void> {
  const deadline = now() + ms;
  while (live_requests.size > 0 && now() < deadline) await sleep(drain_check_ms);
}

/** Quanto a saída espera por um leitor do log que se atrasou. */
const log_limit_ms = 2000;

/** Espera o log sair: numa pipe cheia a escrita é assíncrona, e process.exit perderia o resto. */
async function log_sent(): Promise<void> {
  flush_log();
  const late = [process.stdout, process.stderr].filter((output) => output.writableLength > 0);
  const sent = late.map((output) => new Promise((resolve) => output.write('', resolve)));
  await within(Promise.all(sent), log_limit_ms).catch(() => {});
}

/** O que se diz a quem deu um Ctrl-C num terminal e talvez não queira esperar. */
const ctrl_c_hint = 'outro Ctrl-C sai já, sem limpar o Redis';

/** Depois de GRACE, quanto se espera pelas últimas linhas e pelas limpezas. */
const farewell_ms = 3000;

/**
 * Para o processo: fecha a porta, dá GRACE aos fluxos, encerra os que restam com uma linha de erro,
 * espera as limpezas e sai com 0. Chamada de novo, sai na hora, com o `signal_number` no código.
 * @param signal_name o sinal recebido, ou "disconnect" se o supervisor morreu
 */
async function stop(signal_name: string, signal_number: number): Promise<void> {
  if (lifetime.stopping) {
    log('warn', 'killed', { signal: signal_name, streams: live_requests.size });
    process.exit(128 + signal_number);
  }
  lifetime.stopping = true;
  const streams = live_requests.size;
  const waits = streams > 0 && signal_name === 'SIGINT' && process.stdout.isTTY;
  const hint = waits ? ctrl_c_hint : '';
  log('info', 'stop', { signal: signal_name, streams, grace: GRACE, ...(hint && { hint }) });
  if (lifetime.server) net_server.prototype.close.call(lifetime.server); // só a porta
  for (const state of connections.values()) close_if_idle(state);
  await requests_over(GRACE);
  for (const turn of live_requests) interrupt(turn, 'shutdown');
  await requests_over(farewell_ms);
  for (const { request } of live_requests) break_off(request);
  lifetime.server?.closeAllConnections();
  await redis_close();
  sum_refusals();
  log('info', 'stopped', { streams: live_requests.size });
  await log_sent();
  process.exit(0);
}

/** Encerra o programa por um motivo que o operador precisa resolver. */
function die(fields: log_fields): never {
  log('error', 'fatal', fields);
  process.exit(1);
}

/**
 * Abre a porta das métricas. Ela não segura o processo, e só fecha quando ele sai: durante a parada
 * ainda diz que ele vive e que não está pronto.
 */
async function open_metrics(): Promise<void> {
  const server = http.createServer((request, response) => {
    void answer_observer(request, response);
  });
  const settings = ['METRICS_PORT (--metrics-port)', 'METRICS_HOST (--metrics-host)'] as const;
  try {
    await listen(server.unref(), METRICS_PORT, METRICS_HOST);
    const url = `${url_at(METRICS_HOST, METRICS_PORT, false)}/metrics`;
    log('info', 'metrics', { url });
  } catch (error) {
    const reason = explain_listen_error(error as Error, ...settings);
    die({ host: METRICS_HOST, port: METRICS_PORT, reason });
  }
}

/** Atende neste processo: Redis, porta, varredura (que basta em um dos processos). */
async function serve(): Promise<void> {
  try {
    await redis_connect();
  } catch (error) {
    if (lifetime.stopping) return; // a parada fechou a conexão
    const redis = format_redis_address(REDIS_SERVER);
    die({ redis, reason: explain_redis_error(error) });
  }
  lifetime.server = make_server();
  try {
    const url = url_at(HTTP_HOST, await listen(lifetime.server, HTTP_PORT, HTTP_HOST));
    if (worker_slot === 0) log('info', 'listen', { url });
  } catch (error) {
    const reason = explain_listen_error(error as Error, 'HTTP_PORT (-p)', 'HTTP_HOST (--host)');
    die({ host: HTTP_HOST, port: HTTP_PORT, reason });
  }
  void redis_watch();
  if (worker_slot <= 1 || redis_link.slots.length > 0) void redis_sweep();
}

/**
 * Põe este processo sob as ordens do supervisor. Os sinais não contam: o Ctrl-C de um terminal
 * chega a todos, e só o supervisor decide. Se ele morre, é como se tivesse mandado parar.
 */
function obey_supervisor(link: cluster_worker): void {
  for (const signal of stop_signals) process.on(signal, () => {});
  const leave = (why: unknown) => {
    if (!lifetime.stopping) void stop(String(why), 0);
  };
  process.on('message', leave);
  process.on('disconnect', () => leave('disconnect'));
  link.on('error', () => {}); // o supervisor pode morrer com uma resposta nossa a caminho
  link.exitedAfterDisconnect = true; // senão o Node sai na hora quando ele some
  const tell = async () => {
    const ready = await is_ready();
    if (process.connected) process.send?.({ metrics: collect_metrics(), ready, at: Date.now() });
  };
  if (METRICS_PORT > 0) setInterval(tell, report_every_ms).unref();
  if (!process.connected) process.exit(0); // ele se foi antes de este processo acabar de subir
}

/**
 * Vigia as conexões entregues a um processo. O cluster as entrega uma a uma, e cada uma espera ser
 * aceita; se o processo morre antes, ele a esquece aberta e o cliente esperaria para sempre.
 * @returns função que fecha a conexão que ficou sem resposta, se há uma; para depois da morte
 */
function track_handover(worker: cluster_worker): () => void {
  const child = worker.process;
  const { send } = child;
  let handed: { close: () => void } | undefined;
  child.send = (...args: unknown[]) => {
    handed = (args[1] as typeof handed) ?? handed;
    return Reflect.apply(send, child, args);
  };
  return () => handed?.close(); // fechar uma que foi aceita não faz nada
}

/**
 * Sobe o processo de número `slot` e devolve como ele terminou.
 * @throws ErrnoException se o sistema não tem memória para mais um
 */
function run_process(slot: number): Promise<process_end> {
  return new Promise((resolve) => {
    const worker = cluster.fork({ [slot_variable]: slot });
    const drop_handover = track_handover(worker);
    const over = (end: process_end) => {
      crew.alive.delete(worker);
      crew.reports.delete(worker);
      drop_handover();
      resolve(end);
    };
    crew.alive.add(worker);
    worker.once('listening', ({ port }) => {
      crew.reports.set(worker, { metrics: [], ready: false, at: 0 });
      log('info', 'process_ready', { worker: slot, pid: worker.process.pid ?? 0 });
      const url = url_at(HTTP_HOST, port);
      if (url !== crew.url) log('info', 'listen', { url });
      crew.url = url;
    });
    worker.on('message', (report) => crew.reports.has(worker) && crew.reports.set(worker, report));
    worker.once('exit', (code, signal) => over(signal ? { signal } : { code }));
    worker.on('error', ({ code = '' }: NodeJS.ErrnoException) => {
      if (worker.process.pid === undefined) over({ code }); // nem subiu; não haverá "exit"
    });
  });
}

/**
 * Da morte de um processo ao seu substituto: dobra a partir do primeiro valor até o segundo, e
 * recomeça quando um deles vive o terceiro.
 */
const replace_ms = { first: 100, last: 10_000, settled: 60_000 };

/**
 * Mantém o processo de número `slot` no ar até a parada: se ele morre, sobe outro, depois de uma
 * pausa que cresce. Só o primeiro, antes de atender, acaba com tudo: o Redis ou a porta não servem.
 */
async function keep_process(slot: number): Promise<void> {
  const { signal: stopping } = crew.stopping;
  let pause = replace_ms.first;
  while (!stopping.aborted) {
    const born_at = now();
    const end = await run_process(slot).catch(({ code }) => ({ code }));
    if (stopping.aborted) return;
    if (crew.url === '') {
      if ('code' in end && end.code === 1) process.exit(1); // ele já disse por quê
      die({ reason: `o primeiro processo morreu antes de atender: ${Object.values(end)}` });
    }
    if (now() - born_at >= replace_ms.settled) pause = replace_ms.first;
    tally.deaths += 1;
    const fields = { worker: slot, ...end, pause };
    log('error', 'process_died', fields);
    await sleep(pause, undefined, { signal: stopping }).catch(() => {});
    pause = Math.min(2 * pause, replace_ms.last);
  }
}

/**
 * Manda parar todos os processos; a porta fecha na hora. Chamada de novo, mata-os e sai na hora.
 * O sinal `signal_name` tem o número `signal_number`, do código da saída imediata.
 */
function stop_crew(signal_name: string, signal_number: number): void {
  if (crew.stopping.signal.aborted) {
    log('warn', 'killed', { signal: signal_name });
    for (const worker of crew.alive) worker.process.kill('SIGKILL');
    process.exit(128 + signal_number);
  }
  crew.stopping.abort();
  const hint = signal_name === 'SIGINT' && process.stdout.isTTY ? ctrl_c_hint : '';
  log('info', 'stop', { signal: signal_name, grace: GRACE, ...(hint && { hint }) });
  crew.reports.clear(); // desligados, não contam mais
  for (const worker of crew.alive) {
    worker.send(signal_name);
    worker.disconnect(); // a porta fecha já, esteja o processo atento ou não
  }
}

/** Sobe os processos, o primeiro sozinho, e os mantém no ar até a parada. */
async function supervise(): Promise<void> {
  const first = keep_process(1);
  await Promise.race([first, new Promise((resolve) => cluster.once('listening', resolve))]);
  const others = Array.from({ length: WORKERS - 1 }, (_, index) => keep_process(index + 2));
  await Promise.all([first, ...others]);
  log('info', 'stopped', {});
  await log_sent();
  process.exit(0);
}

/** Registra o que é aceito, mas costuma ser engano de quem vem do py-ndjson-proxy. */
function log_odd_settings(): void {
  for (const [setting, value] of Object.entries({ REDIS_PREFIX, REDIS_LIST_PREFIX })) {
    const hint = 'sem separador no fim, e nada se acrescenta a ele: não seria ndjson_task_?';
    if (/[a-z0-9]$/i.test(value)) log('warn', 'odd_setting', { setting, value, hint });
  }
  const hint = 'são ms de silêncio até o fim de um fluxo; o TTL em s é --ttl (REDIS_TTL)';
  if (MAXTIME < 1000) log('warn', 'odd_setting', { setting: 'MAXTIME', value: MAXTIME, hint });
}

/** Sobe o programa: sinais, e depois os processos ou, no caso comum, só este. */
async function start(): Promise<void> {
  process.on('uncaughtException', (error) => die({ reason: String(error.stack) }));
  const leads = WORKERS > 1 && cluster.isPrimary;
  if (cluster.worker && worker_slot > 0) {
    obey_supervisor(cluster.worker);
  } else {
    for (const signal of stop_signals) process.on(signal, leads ? stop_crew : stop);
    const rate = RATE ? `${RATE.count}/${RATE.seconds}` : 'off';
    log('info', 'start', {
      version,
      node: process.version,
      pid: process.pid,
      redis: format_redis_address(REDIS_SERVER),
      channel: REDIS_CHANNEL,
      prefix: REDIS_PREFIX,
      list_prefix: REDIS_LIST_PREFIX,
      stream: REDIS_STREAM || 'off',
      maxtime: MAXTIME,
      api_key: API_KEY.length > 0 ? 'on' : 'off',
      rate,
      tls: TLS_CERT ? 'on' : 'off',
      ...(leads && { workers: WORKERS }),
    });
    log_odd_settings();
  }
  if (METRICS_PORT > 0 && worker_slot === 0) await open_metrics();
  await (leads ? supervise() : serve());
}

/** Código de saída de erro de uso, como o das ferramentas de linha de comando. */
const usage_exit_code = 2;

/**
 * Entrada: lê as configurações e faz o que foi pedido. `argv` são os argumentos sem o nome do
 * programa. Erro de uso: uma linha em stderr e código 2.
 */
async function main(argv: string[], env: NodeJS.ProcessEnv): Promise<void> {
  process.on('exit', flush_log);
  for (const output of [process.stdout, process.stderr]) {
    output.on('error', () => {}); // quem lia o log saiu (| head); o serviço continua
    Object.assign(output, { _writev: null }); // senão escritas atrasadas se juntam além do limite
  }
  try {
    const { action, gathered } = load_settings(argv, env);
    if (action === 'run') await start();
    else process.stdout.write(action === 'help' ? help_text(gathered) : `${version}\n`);
  } catch (error) {
    if (!(error instanceof usage_error)) throw error;
    process.stderr.write(
      `json-proxy: ${error.message.replace(/[\x00-\x1f\x7f-\x9f\u2028\u2029]+/g, ' ')}\n`,
    );
    process.exitCode = usage_exit_code;
    if (cluster.isWorker) process.exit(usage_exit_code); // o canal com o supervisor o seguraria
  }
}

/** No binário único o cluster põe o nome do programa antes dos argumentos de cada processo. */
const first_argument = cluster.isWorker && __filename === process.execPath ? 3 : 2;

if (require.main === module) void main(process.argv.slice(first_argument), process.env);
