/*
 * Milhares de pedidos quebrados, em conexões cruas, contra o programa de verdade: ele vive,
 * responde a tudo com HTTP bem formado, não confunde respostas, não deixa tarefa no Redis e não
 * guarda nada.
 * A semente sai no começo; com ela a mesma série se repete:
 *
 *   FUZZ_SEED=123 FUZZ_REQUESTS=5000 node --import tsx scripts/dev/run-tests.ts test/extra fuzz
 */

import assert from 'node:assert/strict';
import { randomInt as random_int } from 'node:crypto';
import net from 'node:net';
import { setImmediate as next_turn } from 'node:timers/promises';
import { probe_env, take_probe } from '../../scripts/dev/probe';
import {
  connect_redis,
  fetch_all,
  type local_redis,
  type proxy,
  type redis_client,
  start_proxy,
  start_redis,
  test,
  until,
} from '../harness';
import { assert_identity, type raw_reply, raw_request, take_reply } from '../http_helpers';

const seed = Number(process.env.FUZZ_SEED || random_int(2 ** 31));
const request_count = Number(process.env.FUZZ_REQUESTS || 20_000);

/** A parte dos pedidos que aquece o processo antes da primeira medida. */
const warm_up = 0.3;

/** Conversas ao mesmo tempo. */
const lanes = 64;

/** Depois de tantas falhas a série para; mais delas nada ensinam. */
const max_failures = 5;

/** Prazo de uma conversa inteira, folgado para máquinas carregadas. */
const talk_limit_ms = 30_000;

/** Quanto a memória pode variar: o ruído medido chega à metade disto. */
const heap_noise_bytes = 1_000_000;

const max_body = 1000;

/**
 * O que completa, ou estraga de vez, qualquer pedido que tenha ficado no meio: passa de MAXBODY, do
 * limite dos cabeçalhos e do das extensões de um pedaço, e não é começo de método nenhum. Depois
 * dela o proxy tem de responder e fechar, sem que o cliente saia.
 */
const flood = 'x'.repeat(40_000);

/** Os status que um pedido quebrado pode receber; nem 500, nem 503, nem 504. */
const refusals = [400, 413, 417, 431, 501, 505];

/** As linhas de stderr que são esperadas. */
const usual_log = /^\S+ refused(_more)? status=(400|413|417|431|501|505) |^probe \{/;

const token = /^[!#$%&'*+.^_`|~\w-]+$/;

/**
 * Quando a enxurrada pode não bastar: o corpo do que se responde sem o ler é jogado fora, por maior
 * que seja; e o Node cala os erros do corpo em pedaços de um Upgrade, que só o prazo encerra.
 */
const may_outlast_flood =
  /(HEAD|OPTIONS|ping).*(Content-Length|chunked)|Upgrade.*chunked|chunked.*Upgrade/is;

/** De onde vem o acaso, sempre o mesmo para a mesma semente. */
type random = ReturnType<typeof make_random>;

/**
 * O que um cliente faz: o que manda, em partes, e como sai. Com "flood" ele espera que o proxy
 * feche; com "fin" encerra o seu lado; os outros somem: na hora, ou quando a resposta começa.
 */
type script = { parts: string[]; leaves: (typeof departures)[number] };

/** O que um cliente viu. */
type outcome = { text: string; is_late: boolean };

const departures = ['flood', 'flood', 'fin', 'fin', 'reset', 'destroy', 'reset_on_answer'] as const;

const in_chunks = 'Transfer-Encoding: chunked';

/** Pedidos bons, que as mutações estragam. */
const samples = [
  raw_request('GET /a'),
  raw_request('GET /a?b=c', ['Accept: application/jsonl', 'X-Nome: valor', 'Cookie: a=b']),
  raw_request('POST /corpo', ['Content-Type: application/json'], '{"pergunta": "ação"}'),
  raw_request('PUT /grande', [], 'x'.repeat(max_body)),
  `${raw_request('POST /pedacos', [in_chunks])}2\r\noi\r\n3;a=b\r\nabc\r\n0\r\n\r\n`,
  `${raw_request('POST /rodape', [in_chunks, 'Trailer: X'])}1\r\na\r\n0\r\nX: y\r\n\r\n`,
  raw_request('POST /convite', ['Expect: 100-continue'], 'oi'),
  raw_request('GET /velho HTTP/1.0'),
  raw_request('POST /velho HTTP/1.0', ['Connection: keep-alive'], 'oi'),
  raw_request('GET /fecha', ['Connection: close']),
  raw_request('GET /sobe', ['Connection: Upgrade', 'Upgrade: websocket']),
  raw_request('GET http://outro.test/absoluto'),
  raw_request('HEAD /so-cabecalhos'),
  raw_request('OPTIONS *'),
  raw_request('GET /ping'),
  raw_request('CONNECT outro.test:443'),
  raw_request('POST /um', [], 'um') + raw_request('GET /ping') + raw_request('PUT /dois', [], '2'),
];

/** O que não é HTTP/1. */
const foreign = [
  '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03',
  'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00',
  'isto não é HTTP\r\n\r\n',
  '*1\r\n$8\r\nFLUSHALL\r\n',
  '\x05\x01\x00',
  '\0'.repeat(100),
  '\r\n'.repeat(100),
];

const odd_bytes = [
  '\0',
  '\r',
  '\n',
  '\t',
  ' ',
  ':',
  '\x0b',
  '\x1b',
  '\x7f',
  '\x80',
  '\x9b',
  '\xff',
];

const odd_methods = ['', 'get', 'G', 'VOAR', 'PRI', 'SOURCE', 'M-SEARCH', 'A'.repeat(5000), 'G\0T'];

const odd_targets = [
  ...['', '*', '/', '//', '/ping', '/ping?a b', 'http://', 'http://h', 'h:80', '/%00%0d%0a'],
  ...['/../../etc/passwd', '/\x80\x85\x9b\xff', '?', '#', `/${'x'.repeat(15_000)}`],
  `/${'x'.repeat(20_000)}`,
];

const odd_versions = [
  ...['', 'HTTP/0.9', 'HTTP/1.0', 'HTTP/1.2', 'HTTP/1.10', 'HTTP/2.0', 'HTTP/3.0', 'http/1.1'],
  ...['HTTP/1', 'HTTP/-1.1', 'HTTP/1.1 HTTP/1.1', 'ICE/1.0', 'RTSP/1.0'],
];

const odd_headers = [
  ...['-1', '+2', '0x2', '2 2', '2, 2', '', 'dois', '1e3', '0', '1', String(max_body + 1)].map(
    (length) => `Content-Length: ${length}`,
  ),
  ...['99999999999999999999', '9007199254740993'].map((length) => `Content-Length: ${length}`),
  'Content-Length: 2\r\nContent-Length: 3',
  'Content-Length : 2',
  ...['chunked', 'xchunked', 'chunked ,', ', chunked', '\tchunked', '\x0bchunked', 'identity'].map(
    (coding) => `Transfer-Encoding: ${coding}`,
  ),
  ...['gzip, chunked', 'chunked, gzip', '', '"chunked"', 'chunked;q=1', 'CHUNKED'].map(
    (coding) => `Transfer-Encoding: ${coding}`,
  ),
  'Transfer-Encoding: chunked\r\nTransfer-Encoding: identity',
  'Transfer-Encoding : chunked',
  'Transfer-Encoding:\r\n chunked',
  'Content-Length: 5\r\nTransfer-Encoding: chunked',
  ...['X: dobrado\r\n e mais', ' X: recuado', ': sem nome', 'sem dois-pontos', 'X: a\rY: b'],
  ...['Host: outro', 'Host:', 'Expect: 100-continue', 'Expect: x', 'TE: chunked', 'Trailer: Host'],
  ...['Connection: close', 'Connection: keep-alive', 'Connection: Upgrade', 'Connection: ,,'],
  ...['__proto__: x', 'constructor: x', 'Upgrade: h2c', 'Accept: ;q=0,,/;=', 'X: \xff\x80'],
  `X: ${'x'.repeat(20_000)}`,
  `${'N'.repeat(20_000)}: x`,
  Array.from({ length: 3000 }, (_, n) => `X-${n}: v`).join('\r\n'),
];

const odd_bodies = [
  ...['zz\r\n', '-1\r\nx\r\n', '+1\r\nx\r\n', '0x1\r\nx\r\n', ' 1\r\nx\r\n', '1 \r\nx\r\n'],
  ...['1\nx\n0\n\n', '1\r\nxx\r\n', '2\r\nx\r\n', '1\r\nx', '0\r\n', '0\n\n', '\r\n', ''],
  ...['ffffffffffffffff\r\n', '10000000000000000\r\n', `${'0'.repeat(500)}1\r\nx\r\n`],
  ...['7fffffff\r\nx', '1;a\nb\r\nx\r\n', '1;a="b\r\nc"\r\nx\r\n', `1;${'e'.repeat(20_000)}\r\n`],
  ...['0\r\nContent-Length: 9\r\n\r\n', '0\r\nX Y: z\r\n\r\n', `0\r\nX: ${'x'.repeat(20_000)}`],
];

/**
 * Faz um gerador de números que se repetem (mulberry32).
 * @param start a semente, um inteiro
 * @returns `below`: um inteiro de 0 a n-1; `pick`: um item de uma lista
 */
function make_random(start: number) {
  let state = start >>> 0;
  const below = (n: number): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * n);
  };
  const pick = <item>(list: readonly item[]): item => list[below(list.length)] as item;
  return { below, pick };
}

/**
 * Troca um trecho de um texto.
 * @param text o texto
 * @param at onde
 * @param count quantos caracteres saem
 * @param fresh o que entra
 * @returns o texto novo
 */
function splice(text: string, at: number, count: number, fresh: string): string {
  return text.slice(0, at) + fresh + text.slice(at + count);
}

/**
 * Troca uma parte da primeira linha de um pedido.
 * @param text o pedido
 * @param index 0 para o método, 1 para o alvo, 2 para a versão
 * @param fresh o que entra
 * @returns o pedido novo
 */
function replace_word(text: string, index: number, fresh: string): string {
  const [first_line = '', ...others] = text.split('\r\n');
  const words = first_line.split(' ');
  words[index] = fresh;
  return [words.join(' '), ...others].join('\r\n');
}

/**
 * Estraga um trecho qualquer de um texto.
 * @param text o texto
 * @param random o acaso
 * @param change diz o que entra no lugar do trecho
 * @returns o texto novo
 */
function spoil(text: string, random: random, change: (part: string) => string): string {
  const at = random.below(text.length + 1);
  const part = text.slice(at, at + 1 + random.below(12));
  return splice(text, at, part.length, change(part));
}

/** Os modos de estragar um pedido. */
const mutations: ((text: string, random: random) => string)[] = [
  (text, random) => {
    const at = random.below(text.length);
    const flipped = text.charCodeAt(at) ^ (1 << random.below(8));
    return splice(text, at, 1, String.fromCharCode(flipped & 0xff));
  },
  (text, random) => text.slice(0, random.below(text.length + 1)),
  (text, random) => spoil(text, random, () => ''),
  (text, random) => spoil(text, random, (part) => part.repeat(2 + random.below(3))),
  (text, random) => spoil(text, random, (part) => random.pick(odd_bytes) + part),
  (text, random) => spoil(text, random, () => random.pick(odd_bytes).repeat(1 + random.below(4))),
  (text, random) => text.replaceAll('\r\n', random.pick(['\n', '\r', '\r\r\n', '\n\r'])),
  (text, random) => text.replace('\r\n', random.pick(['\n', '\r', '\r\r\n', ''])),
  (text, random) => text.replace('\r\n', `\r\n${random.pick(odd_headers)}\r\n`),
  (text, random) => text.replace('\r\n', `\r\n${random.pick(odd_headers)}\r\n`),
  (text, random) => text.replace(/: /, random.pick([' : ', '', ':\0', '\t:', '::'])),
  (text) => text.replace(/Host: .*\r\n/, ''),
  (text, random) => replace_word(text, 0, random.pick(odd_methods)),
  (text, random) => replace_word(text, 1, random.pick(odd_targets)),
  (text, random) => replace_word(text, 2, random.pick(odd_versions)),
  (text, random) => text.replace(/(?<=\r\n\r\n)[\s\S]*/, () => random.pick(odd_bodies)),
  (text, random) => raw_request('POST /c', [in_chunks]) + random.pick(odd_bodies) + text,
  (text, random) => text + random.pick(samples),
  (text, random) => text + random.pick(foreign),
  (text, random) => random.pick(foreign) + text,
  (_, random) => random.pick(foreign),
  (_, random) =>
    Array.from({ length: 1 + random.below(200) }, () =>
      String.fromCharCode(random.below(256)),
    ).join(''),
];

/**
 * Inventa o que um cliente faz.
 * @param index número do pedido na série
 * @returns o mesmo, para a mesma semente e o mesmo número
 */
function make_script(index: number): script {
  const random = make_random(seed + Math.imul(index, 0x9e3779b1));
  let text = random.pick(samples);
  for (let n = random.below(4); n > 0; n -= 1) text = random.pick(mutations)(text, random);
  const wanted = random.pick(departures);
  const is_flooded = wanted === 'flood' || wanted === 'reset_on_answer';
  const leaves = is_flooded && may_outlast_flood.test(text) ? 'fin' : wanted;
  const sent = leaves === 'flood' ? text : text.slice(0, 1 + random.below(2 * text.length));
  const cut = random.below(2) * random.below(sent.length + 1);
  const last = is_flooded ? flood : '';
  return { parts: [sent.slice(0, cut), sent.slice(cut), last], leaves };
}

/**
 * Faz o que o roteiro manda e espera que a conexão feche.
 * @param port porta do proxy
 * @param script o roteiro
 * @returns o que chegou, em latin1, e se o prazo se esgotou antes
 */
async function converse(port: number, { parts, leaves }: script): Promise<outcome> {
  const socket = net.connect(port, '127.0.0.1').setNoDelay().setEncoding('latin1');
  const seen: outcome = { text: '', is_late: false };
  const closed = new Promise((resolve) => socket.once('close', resolve));
  const timer = setTimeout(() => {
    seen.is_late = true;
    socket.destroy();
  }, talk_limit_ms);
  socket.on('error', () => {});
  socket.on('data', (text) => {
    seen.text += text;
    if (leaves === 'reset_on_answer') socket.resetAndDestroy();
  });
  for (const part of parts.filter((text) => text !== '')) {
    await new Promise((resolve) => socket.write(part, 'latin1', resolve));
    await next_turn();
  }
  if (leaves === 'fin') socket.end();
  if (leaves === 'reset') socket.resetAndDestroy();
  if (leaves === 'destroy') socket.destroy();
  await closed;
  clearTimeout(timer);
  return seen;
}

/**
 * Confere uma resposta inteira.
 * @param reply a resposta
 * @throws AssertionError se ela não é uma das que o manual promete, ou traz linhas de outra
 */
function check_reply({ version, status, headers, names, body }: raw_reply): void {
  assert.equal(version, 'HTTP/1.1');
  for (const name of names) assert.match(name, token);
  if (status === 100) return;
  assert_identity({ status, headers, body });
  if (status === 200 && headers['x-task-uuid']) {
    assert.equal(body, `{"task":"${headers['x-task-uuid']}"}\n`);
  } else if (status === 200) {
    assert.match(body, /^(pong)?$/);
  } else if (status !== 204) {
    assert.ok(refusals.includes(status), `status ${status}: ${body}`);
    assert.equal(headers['content-type'], 'application/json');
    assert.match(body, /^(\{"error": "[^"]+( \\"[^"]+\\")?[^"]*"\}\n)?$/);
  }
}

/**
 * Confere tudo o que um cliente recebeu.
 * @param script o que ele fez
 * @param outcome o que ele viu
 * @throws AssertionError se algo não é como o manual promete
 */
function check_outcome({ parts, leaves }: script, { text, is_late }: outcome): void {
  assert.ok(!is_late, `conexão nem respondida nem fechada; chegou: ${JSON.stringify(text)}`);
  const may_be_head = parts.join('').includes('HEAD');
  let count = 0;
  for (let rest = text; rest !== ''; count += 1) {
    const [, after_head = ''] = rest.split(/\r\n\r\n(.*)/s);
    const has_no_body = may_be_head && /^(HTTP\/1\.1 |$)/.test(after_head);
    const taken = take_reply(rest, true, !has_no_body);
    if (!taken && leaves !== 'flood') break; // quem sai antes do fim não o vê
    assert.ok(taken, `resposta incompleta: ${JSON.stringify(rest)}`);
    check_reply(taken.reply);
    rest = taken.rest;
  }
  if (leaves === 'flood') assert.ok(count > 0, 'conexão fechada sem resposta');
}

/**
 * Manda uma parte da série de pedidos quebrados, vários ao mesmo tempo.
 * @param where o proxy
 * @param first número do primeiro
 * @param end número do que vem depois do último
 * @returns o que falhou, com o pedido que o causou
 */
async function bombard(where: proxy, first: number, end: number): Promise<string[]> {
  const failures: string[] = [];
  let next = first;
  const lane = async () => {
    while (next < end && failures.length < max_failures) {
      const index = next++;
      const script = make_script(index);
      try {
        check_outcome(script, await converse(where.port, script));
      } catch (error) {
        const sent = JSON.stringify(script)
          .replace(/(.)\1{50,}/g, '$1…')
          .slice(0, 1000);
        failures.push(`${index} ${sent}: ${String(error).slice(0, 300)}`);
      }
    }
  };
  await Promise.all(Array.from({ length: lanes }, lane));
  return failures.slice(0, max_failures);
}

/**
 * Põe um worker que responde a cada tarefa na hora, com uma linha que a nomeia.
 * @param redis o Redis
 * @returns um cliente do Redis, e quantas tarefas já vieram
 */
async function start_echo(redis: local_redis) {
  const [db, subscriber] = await Promise.all([connect_redis(redis), connect_redis(redis)]);
  const seen = { tasks: 0 };
  await subscriber.subscribe('ndjson_jobs', (task_key) => {
    const uuid = task_key.slice(-36);
    seen.tasks += 1;
    void db.rPush(`ndjson_list_${uuid}`, [`{"task":"${uuid}"}`, 'EOF']);
  });
  return { db, seen };
}

/**
 * Confere que no Redis não há tarefas, só listas que expiram.
 * @param db cliente do Redis
 */
async function check_redis(db: redis_client): Promise<void> {
  await until('nenhuma tarefa', async () => (await db.keys('ndjson_task_*')).length === 0);
  const keys = await db.keys('*');
  const ttls = await Promise.all(keys.map((key) => db.ttl(key)));
  assert.deepEqual(
    keys.filter((key, index) => !key.startsWith('ndjson_list_') || (ttls[index] ?? -1) <= 0),
    [],
  );
}

test(`${request_count} pedidos quebrados: o processo vive, responde e nada guarda`, async (t) => {
  t.diagnostic(`FUZZ_SEED=${seed} FUZZ_REQUESTS=${request_count}`);
  const redis = await start_redis();
  const args = ['-P', '0', '--grace', '0', '--maxbody', String(max_body)];
  const proxy = await start_proxy(redis, args, await probe_env());
  const { db, seen } = await start_echo(redis);
  const at_rest = (await take_probe(proxy)).resources;
  const rest = (name: string) =>
    until(`recursos como no começo (${name})`, async () => {
      const probe = await take_probe(proxy);
      try {
        assert.deepEqual(probe.resources, at_rest);
        return probe;
      } catch {
        return undefined;
      }
    });
  const ping = async () => assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');

  await ping();
  const warm = Math.floor(request_count * warm_up);
  assert.deepEqual(await bombard(proxy, 0, warm), []);
  const before = await rest('aquecido');
  assert.deepEqual(await bombard(proxy, warm, request_count), []);
  const after = await rest('no fim');
  await ping();

  const growth = after.heap_bytes - before.heap_bytes;
  t.diagnostic(`${seen.tasks} viraram tarefa; heap ${before.heap_bytes} ${growth} bytes`);
  assert.equal(proxy.process.exitCode, null);
  assert.ok(seen.tasks > request_count / 20, `só ${seen.tasks} tarefas: mutações demais`);
  await check_redis(db);
  const strange = proxy
    .stderr()
    .split('\n')
    .filter((line) => line && !usual_log.test(line));
  assert.deepEqual(strange, []);
  assert.doesNotMatch(proxy.stdout() + proxy.stderr(), /[\x00-\x09\x0b-\x1f\x7f-\x9f]/);
  assert.ok(growth < heap_noise_bytes, `o heap cresceu ${growth} bytes`);
  assert.equal(await proxy.stop(), 0);
  assert.match(proxy.stdout(), / stop signal=SIGTERM streams=0 /, 'um pedido ficou preso');
});
