/*
 * O laço de um fluxo, no programa de verdade: linhas que chegam uma a uma, cabeças, fins, tamanhos,
 * conteúdos, lotes, cliente lento, pausas e TTL. O que se promete é que nada se perde, se repete
 * nem troca de ordem, com qualquer PAUSE e qualquer INTERVAL.
 */

import assert from 'node:assert/strict';
import { createHash as create_hash } from 'node:crypto';
import { readFileSync as read_file } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { before, describe } from 'node:test';
import type { task_record } from '../json-proxy';
import {
  connect_redis,
  delay,
  type local_redis,
  on_stop,
  open_stream,
  type redis_client,
  type proxy as running_proxy,
  start_proxy,
  start_redis,
  start_worker,
  test,
  tests_at_once,
  until,
} from './harness';

/** Um proxy com canal só dele, e quem lê as tarefas dele. */
type lane = {
  proxy: running_proxy;
  client: redis_client;
  task_at: (path: string) => Promise<task_record>;
};

/** Um comando visto a caminho do Redis: nome e argumentos. */
type command = string[];

/** Vezes que o TTL precisa ser visto subir: com três renovações por TTL, quatro passam dele. */
const renewals_past_ttl = 4;

const pauses_ms = [0, 1, 20];
const intervals_ms = [0, 5, 200];

/** Os proxies da matriz, por "PAUSE/INTERVAL", todos no mesmo Redis. */
const lanes = new Map<string, lane>();

let redis: local_redis;
let serial = 0;

/**
 * Dá um número que não se repete, para caminhos e canais.
 * @returns 1, 2, 3…
 */
function next_serial(): number {
  serial += 1;
  return serial;
}

/**
 * Sobe um proxy com canal próprio e um leitor das tarefas dele.
 * @param args argumentos do proxy
 * @param where o Redis do worker
 * @param server o endereço dado ao proxy, se há algo no meio do caminho
 * @returns `task_at`: espera a tarefa do pedido feito a um caminho, chegue em que ordem chegar
 */
async function start_lane(args: string[], where = redis, server = where.server): Promise<lane> {
  const channel = `canal_${next_serial()}`;
  const proxy = await start_proxy({ server }, ['-C', channel, ...args]);
  const { client, pending } = await start_worker(where, channel);
  const tasks = new Map<string, task_record>();
  const take = async () => {
    const task_key = pending.shift();
    const text = task_key && (await client.get(task_key));
    if (text) tasks.set(JSON.parse(text).url, JSON.parse(text));
  };
  const task_at = (path: string) =>
    until(`tarefa de ${path}`, async () => {
      await take();
      return tasks.get(path);
    });
  return { proxy, client, task_at };
}

/**
 * Dá um proxy da matriz.
 * @param name "PAUSE/INTERVAL", por exemplo "0/5"
 * @returns o proxy
 */
function lane_of(name: string): lane {
  const found = lanes.get(name);
  if (!found) throw new Error(`não há proxy ${name}`);
  return found;
}

/**
 * Abre um fluxo, lido linha a linha, e espera a tarefa dele.
 * @param lane o proxy
 * @returns o fluxo e a tarefa
 */
async function open_lines(lane: lane) {
  const path = `/${next_serial()}`;
  const stream = open_stream(lane.proxy, { path });
  return { stream, task: await lane.task_at(path) };
}

/**
 * Abre um fluxo, lido em bytes. Nada é lido do socket antes de `read`.
 * @param lane o proxy
 * @returns a tarefa; `response`: espera os cabeçalhos; `read`: lê até o fim, entrega cada pedaço e
 *   resolve no instante em que o cliente vê o fim; `leave`: o cliente vai embora
 */
async function open_bytes(lane: lane) {
  const path = `/${next_serial()}`;
  const request = http.get({ host: '127.0.0.1', port: lane.proxy.port, path, agent: false });
  const response = new Promise<http.IncomingMessage>((resolve, reject) => {
    request.once('response', resolve);
    request.once('error', reject);
  });
  response.catch(() => {});
  const read = async (consume: (chunk: Buffer) => void) => {
    const incoming = await response;
    return new Promise<void>((resolve, reject) => {
      incoming.on('data', consume).once('end', resolve).once('error', reject);
    });
  };
  return { response, read, leave: () => request.destroy(), task: await lane.task_at(path) };
}

/**
 * Confere que nenhuma das três chaves de uma tarefa existe neste momento.
 * @param client cliente do Redis
 * @param task a tarefa
 */
async function assert_gone(client: redis_client, task: task_record): Promise<void> {
  const keys = [task.task_key, task.task_list, `ndjson_claim_${task.uuid}`];
  assert.equal(await client.exists(keys), 0, `restaram chaves de ${task.uuid}`);
}

/**
 * Abre um fluxo, faz o trabalho e lê o corpo inteiro. Confere que, no instante em que o cliente vê
 * o fim, as chaves já se foram.
 * @param lane o proxy
 * @param work o que o worker faz
 * @returns o corpo, a tarefa e a linha de log do fim
 */
async function serve(lane: lane, work: (task: task_record) => Promise<unknown>) {
  const { read, response, task } = await open_bytes(lane);
  const chunks: Buffer[] = [];
  const ended = read((chunk) => chunks.push(chunk)).then(() => assert_gone(lane.client, task));
  await Promise.all([work(task), ended]);
  const [log] = await lane.proxy.wait_for(new RegExp(`end task=${task.uuid} .*\\n`));
  return { task, log, response: await response, body: Buffer.concat(chunks) };
}

/**
 * Empurra elementos e apaga a tarefa, num comando atrás do outro.
 * @param client cliente do worker
 * @param task a tarefa
 * @param elements elementos
 */
async function push_and_finish(
  client: redis_client,
  task: task_record,
  elements: (string | Buffer)[],
): Promise<void> {
  await Promise.all([client.rPush(task.task_list, elements), client.del(task.task_key)]);
}

/**
 * Espera o TTL de uma chave subir algumas vezes, sem que a chave suma.
 * @param client cliente do Redis
 * @param key chave
 * @param times quantas vezes
 */
async function see_renewals(client: redis_client, key: string, times: number): Promise<void> {
  let before_ms = Number.POSITIVE_INFINITY;
  let seen = 0;
  await until(`${times} renovações de ${key}`, async () => {
    const ttl_ms = await client.pTTL(key);
    assert.ok(ttl_ms > 0, `${key} sumiu ou ficou sem TTL: ${ttl_ms}`);
    if (ttl_ms > before_ms) seen += 1;
    before_ms = ttl_ms;
    return seen >= times;
  });
}

/**
 * Dá uma linha de um tamanho, diferente das outras.
 * @param index número da linha
 * @param size bytes
 * @returns a linha
 */
function sized_line(index: number, size: number): Buffer {
  return Buffer.alloc(size, `${index};`);
}

/**
 * Dá a impressão digital de linhas como o cliente deve vê-las.
 * @param lines linhas, na ordem
 * @returns SHA-256 em hexadecimal
 */
function fingerprint(lines: Iterable<Buffer>): string {
  const hash = create_hash('sha256');
  for (const line of lines) hash.update(line).update('\n');
  return hash.digest('hex');
}

/** O intermediário só entende RESP 2, que é o do modo sem avisos. */
const relayed = ['-P', '0', '--wakeup', 'off'];

/**
 * Sobe um intermediário entre o proxy e o Redis, que vê cada comando antes de deixá-lo passar.
 * @param before_forward chamada com cada comando, na ordem; ele só passa quando ela terminar
 * @param change_reply pode trocar o texto das respostas
 * @returns `server`, na forma de REDIS_SERVER; `received`: os comandos que chegaram
 */
async function start_relay(
  before_forward: (words: command) => Promise<unknown>,
  change_reply = (text: string) => text,
) {
  const received: command[] = [];
  const server = net.createServer((inner) => {
    const outer = net.connect(redis.port, '127.0.0.1');
    const state = { text: '', queue: Promise.resolve<unknown>(undefined) };
    inner.on('data', (chunk) => {
      state.text += chunk.toString('latin1');
      for (let size = command_size(state.text); size > 0; size = command_size(state.text)) {
        const raw = state.text.slice(0, size);
        const words = raw.split('\r\n').filter((_, index) => index > 0 && index % 2 === 0);
        state.text = state.text.slice(size);
        received.push(words);
        state.queue = state.queue.then(() => before_forward(words)).then(() => outer.write(raw));
      }
    });
    outer.on('data', (chunk) => inner.write(change_reply(chunk.toString('latin1')), 'latin1'));
    inner.on('error', () => {}).on('close', () => outer.destroy());
    outer.on('error', () => {}).on('close', () => inner.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  on_stop(async () => server.close());
  const { port } = server.address() as net.AddressInfo;
  return { server: `127.0.0.1:${port}/1`, received };
}

/**
 * Mede o primeiro comando de um texto em RESP. Serve aos do proxy, que não trazem CR LF dentro.
 * @param text o que chegou
 * @returns caracteres do comando; 0 se ainda não chegou inteiro
 */
function command_size(text: string): number {
  const [whole = '', count = 0] = /^\*(\d+)\r\n(?:\$\d+\r\n[^\r]*\r\n)*/.exec(text) ?? [];
  const parts = whole.split('\r\n').length - 2;
  return whole !== '' && parts === 2 * Number(count) ? whole.length : 0;
}

/**
 * Observa, com MONITOR, os comandos que o Redis executa.
 * @param where o Redis
 * @returns `polls_of`: os EXISTS e LPOP de uma tarefa que já terminou
 */
async function start_monitor(where: local_redis) {
  const client = await connect_redis(where);
  const seen: string[] = [];
  await client.monitor((text) => seen.push(String(text)));
  const commands_of = (uuid: string): command[] =>
    seen
      .filter((text) => text.slice(0, 300).includes(uuid))
      .map((text) => [...text.matchAll(/"([^"]*)"/g)].map(([, word = '']) => word));
  const marker = await connect_redis(where);
  const polls_of = async (uuid: string): Promise<command[]> => {
    const mark = `fim de ${uuid}`;
    await marker.echo(mark);
    await until('tudo o que veio antes da marca', () => seen.some((text) => text.includes(mark)));
    const is_poll = ([name, ...keys]: command) =>
      name === 'LPOP' || (name === 'EXISTS' && keys.length > 3); // os curtos são dos testes
    return commands_of(uuid).filter(is_poll);
  };
  return { polls_of };
}

/**
 * Dá os dois comandos de uma consulta.
 * @param task a tarefa
 * @returns o LPOP, sem a quantidade, e o EXISTS em que a lista conta 1, a tarefa 2 e a reserva 4
 */
function poll_commands({ uuid, task_key, task_list }: task_record): [command, command] {
  const claims = Array<string>(4).fill(`ndjson_claim_${uuid}`);
  return [
    ['LPOP', task_list],
    ['EXISTS', task_list, task_key, task_key, ...claims],
  ];
}

/**
 * Dá quantas linhas cada LPOP pediu.
 * @param polls comandos de uma tarefa
 * @returns a quantidade de cada um, na ordem
 */
function pop_counts(polls: command[]): number[] {
  return polls.filter(([name]) => name === 'LPOP').map(([, , count = '1']) => Number(count));
}

before(async () => {
  redis = await start_redis();
  const pairs = pauses_ms.flatMap((pause) => intervals_ms.map((interval) => [pause, interval]));
  await Promise.all(
    pairs.map(async ([pause, interval]) => {
      // só no último as cabeças têm pressa; os testes delas usam os outros
      const hasty = pause === 20 && interval === 200 ? ['--head-wait', '50'] : [];
      const lane = await start_lane(['-P', `${pause}`, '-i', `${interval}`, ...hasty]);
      lanes.set(`${pause}/${interval}`, lane);
    }),
  );
});

// ── Linhas ──────────────────────────────────────────────────────────────────────────────────────

describe('linhas', { concurrency: tests_at_once }, () => {
  for (const name of ['0/5', '1/5', '20/200']) {
    test(`cada linha chega antes de a próxima ser empurrada (${name})`, async () => {
      const { proxy, client, task_at } = lane_of(name);
      const path = `/${next_serial()}`;
      const stream = open_stream(proxy, { path });
      const task = await task_at(path);
      for (let index = 0; index < 6; index += 1) {
        await client.rPush(task.task_list, `{"n":${index}}`);
        assert.equal(await stream.next(), `{"n":${index}}`);
      }
      assert.equal(await client.exists(task.task_key), 1);
      await client.del(task.task_key);
      assert.deepEqual(await stream.rest(), []);
      await assert_gone(client, task);
    });
  }

  test('PAUSE é respeitado entre linhas empurradas juntas', async () => {
    const pause_ms = 100;
    const lane = await start_lane(['-P', String(pause_ms), '-i', '5']);
    const { stream, task } = await open_lines(lane);
    const pushed_at = performance.now();
    await push_and_finish(lane.client, task, ['1', '2', '3', '4', '5']);
    assert.deepEqual(await stream.rest(), ['1', '2', '3', '4', '5']);
    const took_ms = (stream.arrivals[4] ?? 0) - pushed_at;
    const timer_slack_ms = 5; // um temporizador do Node pode adiantar-se menos de 1 ms
    assert.ok(took_ms >= 4 * pause_ms - timer_slack_ms, `chegaram em ${took_ms} ms`);
  });

  test('cem fluxos ao mesmo tempo recebem cada um as suas linhas', async () => {
    const lane = lane_of('1/5');
    const opened = await Promise.all(Array.from({ length: 100 }, () => open_lines(lane)));
    for (let round = 0; round < 5; round += 1) {
      await Promise.all(
        opened.map(({ task }) => lane.client.rPush(task.task_list, `${round} ${task.uuid}`)),
      );
    }
    await Promise.all(opened.map(({ task }) => lane.client.del(task.task_key)));
    for (const { stream, task } of opened) {
      const expected = [0, 1, 2, 3, 4].map((round) => `${round} ${task.uuid}`);
      assert.deepEqual(await stream.rest(), expected);
      await assert_gone(lane.client, task);
    }
    assert.equal(new Set(opened.map(({ task }) => task.uuid)).size, 100);
  });
});

// ── Cabeças ─────────────────────────────────────────────────────────────────────────────────────

/** Uma cabeça e o que se espera: status, cabeçalhos, corpo e linha de log. */
type head_case = {
  title: string;
  elements: string[];
  status?: number;
  headers?: http.IncomingHttpHeaders;
  body?: string;
  log?: RegExp;
};

const head_cases: head_case[] = [
  {
    title: 'status e cabeçalho, e a cabeça não é linha',
    elements: ['HTTP 404 {"Content-Type": "application/json"}', '{"error":"x"}'],
    status: 404,
    headers: { 'content-type': 'application/json' },
    body: '{"error":"x"}\n',
  },
  {
    title: 'cabeçalho em minúsculas substitui o do fluxo',
    elements: ['HTTP 200 {"content-type": "text/csv", "cache-control": "max-age=1"}', 'a,b'],
    headers: { 'content-type': 'text/csv', 'cache-control': 'max-age=1' },
    body: 'a,b\n',
  },
  {
    title: 'JSON em várias linhas',
    elements: ['HTTP 429 {\r\n  "Retry-After": "7",\n  "X-A": "b"\n}\n', 'x'],
    status: 429,
    headers: { 'retry-after': '7', 'x-a': 'b' },
    body: 'x\n',
  },
  {
    title: 'vários cookies',
    elements: ['HTTP 200 {"Set-Cookie": ["a=1", "b=2; Path=/"]}'],
    headers: { 'set-cookie': ['a=1', 'b=2; Path=/'] },
  },
  { title: 'só a cabeça, sem corpo', elements: ['HTTP 503'], status: 503 },
  {
    title: 'cabeça depois de elementos em branco',
    elements: ['', ' \r\n', 'HTTP 403'],
    status: 403,
  },
  {
    title: 'cabeçalhos reservados são recusados e o resto vale',
    elements: ['HTTP 201 {"Connection": "segredo", "X-Ok": "1", "Server": "segredo"}', 'x'],
    status: 201,
    headers: { 'x-ok': '1', server: 'py-ndjson-proxy', connection: 'close' },
    body: 'x\n',
    log: /header_refused task=\S+ names=Connection,Server$/,
  },
  {
    title: 'cabeça inválida é uma linha',
    elements: ['HTTP 999 {"X-A": "1"}', 'x'],
    headers: { 'x-a': undefined, 'content-type': 'application/x-ndjson' },
    body: 'HTTP 999 {"X-A": "1"}\nx\n',
    log: /head_as_line task=\S+ reason="status 999 [^\n]+$/,
  },
  {
    title: 'texto que parece cabeça é uma linha, em qualquer lugar',
    elements: ['HTTP 404 Not Found', 'HTTP 200 OK\nHTTP 999', 'x'],
    body: 'HTTP 404 Not Found\nHTTP 200 OK HTTP 999\nx\n',
    log: /head_as_line task=\S+ reason=[^\n]+$/,
  },
  {
    title: 'uma cabeça boa depois de uma inválida já não é a primeira',
    elements: ['HTTP 99999', 'HTTP 404', 'x'],
    body: 'HTTP 99999\nHTTP 404\nx\n',
    log: /head_as_line task=[^\n]+$/,
  },
  {
    title: 'a segunda cabeça é uma linha',
    elements: ['HTTP 201 {"X-A": "1"}', 'HTTP 404 {"X-A":\n"2"}', 'x'],
    status: 201,
    headers: { 'x-a': '1' },
    body: 'HTTP 404 {"X-A": "2"}\nx\n',
    log: /head_as_line task=\S+ reason="chegou tarde/,
  },
  {
    title: 'cabeça depois de uma linha é uma linha',
    elements: ['x', 'HTTP 404 {}', 'y', 'HTTP 500'],
    body: 'x\nHTTP 404 {}\ny\nHTTP 500\n',
    log: /head_as_line task=\S+ reason="chegou tarde[^\n]+$/,
  },
  {
    title: 'texto que começa por HTTP é linha',
    elements: ['HTTP is a protocol', 'HTTP/1.1 404'],
    body: 'HTTP is a protocol\nHTTP/1.1 404\n',
  },
];

/**
 * Confere um caso de cabeça num proxy.
 * @param lane o proxy
 * @param wanted o caso
 * @param last_word palavra de fim a empurrar; vazio termina com o DEL
 */
async function check_head(lane: lane, wanted: head_case, last_word: string): Promise<void> {
  const { status = 200, headers = {}, body = '', log } = wanted;
  const reply = await serve(lane, async (task) => {
    if (last_word === '') await push_and_finish(lane.client, task, wanted.elements);
    else await lane.client.rPush(task.task_list, [...wanted.elements, last_word]);
  });
  assert.equal(reply.response.statusCode, status);
  for (const [name, value] of Object.entries(headers)) {
    assert.deepEqual(reply.response.headers[name], value, name);
  }
  assert.equal(reply.response.headers['x-task-uuid'], reply.task.uuid);
  assert.equal(reply.body.toString(), body);
  assert.match(reply.log, new RegExp(`ending=done status=${status} `));
  const warnings = () => {
    const all = lane.proxy.stderr().split('\n');
    return all.filter((line) => line.includes(reply.task.uuid)).join('\n');
  };
  await until(`avisos: ${log ?? 'nenhum'}`, () => (log ?? /^$/).test(warnings()));
  assert.doesNotMatch(warnings(), /segredo/);
}

describe('cabeças', { concurrency: tests_at_once }, () => {
  for (const wanted of head_cases) {
    test(`${wanted.title} (PAUSE 0, DEL)`, () => check_head(lane_of('0/5'), wanted, ''));
    test(`${wanted.title} (PAUSE 1, EOF)`, () => check_head(lane_of('1/5'), wanted, 'EOF'));
  }
});

describe('cabeças no tempo', { concurrency: tests_at_once }, () => {
  test('a cabeça chega ao cliente antes de qualquer linha', async () => {
    const lane = lane_of('20/5');
    const { stream, task } = await open_lines(lane);
    await lane.client.rPush(task.task_list, 'HTTP 402');
    assert.equal((await stream.head()).statusCode, 402);
    await lane.client.rPush(task.task_list, 'depois');
    assert.equal(await stream.next(), 'depois');
    await lane.client.del(task.task_key);
    assert.deepEqual(await stream.rest(), []);
  });

  test('depois de HEAD_WAIT os cabeçalhos saem, e a cabeça que chega é linha', async () => {
    const lane = lane_of('20/200');
    const { stream, task } = await open_lines(lane);
    const head = await stream.head();
    assert.equal(head.statusCode, 200);
    assert.equal(await lane.client.exists(task.task_key), 1);
    await push_and_finish(lane.client, task, ['HTTP 404', 'x']);
    assert.deepEqual(await stream.rest(), ['HTTP 404', 'x']);
    await lane.proxy.wait_for(new RegExp(`head_as_line task=${task.uuid} reason="chegou tarde`));
  });
});

// ── Fins ────────────────────────────────────────────────────────────────────────────────────────

describe('fins', { concurrency: tests_at_once }, () => {
  for (const name of ['0/5', '1/5']) {
    for (const word of ['EOF', 'EOL', 'END-OF-FILE', 'END-OF-LIST', ' \r\nEOF \n']) {
      test(`${JSON.stringify(word)} termina, e o resto da lista passa (${name})`, async () => {
        const lane = lane_of(name);
        const { body, log } = await serve(lane, async (task) => {
          await lane.client.set(`ndjson_claim_${task.uuid}`, 'eu', { NX: true, EX: 60 });
          // com lotes de 1, 2 e 4, a palavra e o que vem depois dela saem da lista juntos
          const elements = ['a', 'b', 'c', 'd', word, 'e', 'EOF', 'f'];
          await lane.client.rPush(task.task_list, elements);
        });
        assert.equal(body.toString(), 'a\nb\nc\nd\ne\nf\n');
        assert.match(log, /ending=done status=200 lines=6 bytes=12 ms=\d+\n/);
      });
    }

    test(`o DEL termina depois de esvaziar a lista (${name})`, async () => {
      const lane = lane_of(name);
      const { body, log } = await serve(lane, async (task) => {
        await lane.client.set(`ndjson_claim_${task.uuid}`, 'eu', { NX: true, EX: 60 });
        await push_and_finish(lane.client, task, ['a', 'b', 'c']);
      });
      assert.equal(body.toString(), 'a\nb\nc\n');
      assert.match(log, /ending=done status=200 lines=3 bytes=6 ms=\d+\n/);
    });

    test(`o DEL sem nenhuma linha termina um corpo vazio (${name})`, async () => {
      const lane = lane_of(name);
      const { body, response, log } = await serve(lane, (task) => lane.client.del(task.task_key));
      assert.equal(body.length, 0);
      assert.equal(response.statusCode, 200);
      assert.match(log, /ending=done status=200 lines=0 bytes=0 ms=\d+\n/);
    });

    test(`uma palavra empurrada sozinha termina o que já foi lido (${name})`, async () => {
      const lane = lane_of(name);
      const { stream, task } = await open_lines(lane);
      await lane.client.rPush(task.task_list, 'a');
      assert.equal(await stream.next(), 'a');
      await lane.client.rPush(task.task_list, 'EOL');
      assert.deepEqual(await stream.rest(), []);
      await assert_gone(lane.client, task);
    });
  }
});

// ── Nada se perde ───────────────────────────────────────────────────────────────────────────────

/**
 * Empurra linhas em rajadas e termina de um de três modos: RPUSH e DEL na mesma escrita, um depois
 * da resposta do outro, ou as últimas linhas e o DEL num só MULTI.
 * @param client cliente do worker
 * @param task a tarefa
 * @param lines linhas
 * @param round escolhe o tamanho das rajadas e o modo
 */
async function push_in_bursts(
  client: redis_client,
  task: task_record,
  lines: string[],
  round: number,
): Promise<void> {
  const burst = 1 + (round % 7);
  const last = lines.slice(-burst);
  const rest = lines.slice(0, -burst);
  for (let start = 0; start < rest.length; start += burst) {
    await client.rPush(task.task_list, rest.slice(start, start + burst));
    // às vezes o laço alcança o worker e dorme, às vezes o worker está sempre à frente
    if (start % 3 === 1)
      await until('lista vazia', async () => !(await client.lLen(task.task_list)));
  }
  if (round % 3 === 0) await push_and_finish(client, task, last);
  if (round % 3 === 1) {
    await client.rPush(task.task_list, last);
    await client.del(task.task_key);
  }
  if (round % 3 === 2) {
    await client.multi().rPush(task.task_list, last).del(task.task_key).exec();
  }
}

describe('nada se perde, se repete ou troca de ordem', { concurrency: tests_at_once }, () => {
  for (const pause of pauses_ms) {
    for (const interval of intervals_ms) {
      const streams = 4;
      const rounds = interval === 200 ? 3 : 6;
      const count = pause === 20 ? 9 : 40;
      test(`PAUSE ${pause} e INTERVAL ${interval}`, async () => {
        const lane = lane_of(`${pause}/${interval}`);
        const run = async (number: number) => {
          for (let round = number; round < number + rounds; round += 1) {
            const lines = Array.from(
              { length: count },
              (_, index) => `${number} ${round} ${index}`,
            );
            const { body } = await serve(lane, (task) =>
              push_in_bursts(lane.client, task, lines, round),
            );
            assert.equal(body.toString(), `${lines.join('\n')}\n`);
          }
        };
        await Promise.all(Array.from({ length: streams }, (_, number) => run(number)));
      });
    }
  }
});

describe('a corrida do DEL', { concurrency: tests_at_once }, () => {
  for (const name of ['0/5', '0/0', '1/0', '20/0']) {
    test(`últimas linhas e DEL em seguida, sessenta vezes (${name})`, async () => {
      const lane = lane_of(name);
      const run = async (number: number) => {
        for (let round = 0; round < 10; round += 1) {
          const lines = ['a', `${number}`, `${round}`];
          const { body } = await serve(lane, (task) => push_and_finish(lane.client, task, lines));
          assert.equal(body.toString(), `${lines.join('\n')}\n`);
        }
      };
      await Promise.all([0, 1, 2, 3, 4, 5].map(run));
    });
  }

  test('tudo num só MULTI, DEL da tarefa incluído, antes da próxima consulta', async () => {
    const lane = lane_of('20/200');
    const { body } = await serve(lane, (task) =>
      lane.client
        .multi()
        .rPush(task.task_list, ['a', 'b'])
        .rPush(task.task_list, 'c')
        .del(task.task_key)
        .exec(),
    );
    assert.equal(body.toString(), 'a\nb\nc\n');
  });
});

// ── A consulta ──────────────────────────────────────────────────────────────────────────────────

/** O que um intermediário faz antes de deixar um comando passar; cada teste põe o seu. */
const relay_duty = { before_forward: async (_words: command): Promise<unknown> => undefined };

describe('a consulta, vista no caminho até o Redis', () => {
  let relay: Awaited<ReturnType<typeof start_relay>>;
  let lane: lane;
  before(async () => {
    relay = await start_relay((words) => relay_duty.before_forward(words));
    lane = await start_lane([...relayed, '-i', '5'], redis, relay.server);
  });

  test('os dois comandos de uma consulta vão sem esperar resposta um do outro', async () => {
    const { stream, task } = await open_lines(lane);
    const expected = poll_commands(task);
    let batch: unknown;
    relay_duty.before_forward = async (words) => {
      if (batch || words.join() !== expected[0].join()) return;
      const start = relay.received.indexOf(words);
      batch = await until('o resto da consulta', () => {
        const sent = relay.received.slice(start);
        return sent.length >= 2 && sent;
      });
    };
    await until('uma consulta retida', () => batch);
    relay_duty.before_forward = async () => undefined;
    assert.deepEqual(batch, expected);
    await push_and_finish(lane.client, task, ['x']);
    assert.deepEqual(await stream.rest(), ['x']);
  });

  for (const [index, moment] of ['LPOP', 'EXISTS'].entries()) {
    test(`linhas e DEL que chegam bem antes do ${moment} não se perdem`, async () => {
      const { stream, task } = await open_lines(lane);
      const awaited = poll_commands(task)[index]?.join();
      let finished = false;
      relay_duty.before_forward = async (words) => {
        if (finished || words.join() !== awaited) return;
        finished = true;
        await push_and_finish(lane.client, task, ['a', 'b', 'c']);
      };
      assert.deepEqual(await stream.rest(), ['a', 'b', 'c']);
      assert.equal(finished, true);
      await assert_gone(lane.client, task);
    });
  }

  test('o cliente só vê o fim depois que o Redis confirmou a limpeza', async () => {
    const unlink_delay_ms = 300;
    relay_duty.before_forward = async ([name]) => {
      if (name === 'UNLINK') await delay(unlink_delay_ms);
    };
    const { body } = await serve(lane, (task) => lane.client.rPush(task.task_list, ['x', 'EOF']));
    relay_duty.before_forward = async () => undefined;
    assert.equal(body.toString(), 'x\n');
  });

  test('mas não espera para sempre por um Redis que não responde à limpeza', async () => {
    const { read, task } = await open_bytes(lane);
    let release = () => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    relay_duty.before_forward = ([name]) => (name === 'UNLINK' ? held : Promise.resolve());
    await lane.client.rPush(task.task_list, ['x', 'EOF']);
    await read(() => {});
    assert.equal(await lane.client.exists(task.task_key), 1);
    release();
    relay_duty.before_forward = async () => undefined;
    await until('limpeza', async () => (await lane.client.exists(task.task_key)) === 0);
    await assert_gone(lane.client, task);
  });
});

describe('a consulta, vista pelo Redis', () => {
  let watched: local_redis;
  let monitor: Awaited<ReturnType<typeof start_monitor>>;
  before(async () => {
    watched = await start_redis();
    monitor = await start_monitor(watched);
  });

  for (const pause of pauses_ms) {
    test(`cada consulta é um LPOP e um EXISTS, nesta ordem (PAUSE ${pause})`, async () => {
      const lane = await start_lane(['-P', `${pause}`, '-i', '5'], watched);
      const lines = Array.from({ length: 20 }, (_, index) => `${index}`);
      const { task, body } = await serve(lane, (task) => push_and_finish(lane.client, task, lines));
      assert.equal(body.toString(), `${lines.join('\n')}\n`);
      const polls = await monitor.polls_of(task.uuid);
      assert.ok(polls.length > 0 && polls.length % 2 === 0, `${polls.length} comandos`);
      for (let index = 0; index < polls.length; index += 2) {
        const [pop = [], exists] = polls.slice(index, index + 2);
        assert.deepEqual([pop.slice(0, 2), exists], poll_commands(task));
      }
      const pops = polls.filter(([name]) => name === 'LPOP');
      if (pause > 0)
        assert.ok(pops.length >= lines.length && pops.every((words) => words.length === 2));
      else assert.ok(pops.length < lines.length, `${pops.length} LPOPs`);
    });
  }

  test('com PAUSE 0 vinte mil linhas saem exatas, em poucos LPOPs de até 512', async () => {
    const lane = await start_lane(['-P', '0'], watched);
    const lines = Array.from({ length: 20_000 }, (_, index) => Buffer.from(`{"n":${index}}`));
    const hash = create_hash('sha256');
    const { read, task } = await open_bytes(lane);
    const ended = read((chunk) => hash.update(chunk));
    await push_and_finish(lane.client, task, lines);
    await ended;
    assert.equal(hash.digest('hex'), fingerprint(lines));
    const counts = pop_counts(await monitor.polls_of(task.uuid));
    assert.ok(counts.length < 60, `${counts.length} LPOPs`);
    assert.equal(Math.max(...counts), 512);
    for (const [index, count] of counts.entries()) {
      const before_it = counts[index - 1] ?? 0.5;
      assert.ok([before_it, before_it * 2].includes(count), counts.join());
    }
  });
});

// ── Lotes ───────────────────────────────────────────────────────────────────────────────────────

describe('lotes', { concurrency: tests_at_once }, () => {
  test('linhas grandes fazem o próximo LPOP voltar a uma só', async () => {
    const watched = await start_redis();
    const monitor = await start_monitor(watched);
    const lane = await start_lane(['-P', '0'], watched);
    const sizes = [...Array(7).fill(10), ...Array(12).fill(150_000)];
    const lines = sizes.map((size, index) => sized_line(index, size));
    const { body, task } = await serve(lane, (task) => push_and_finish(lane.client, task, lines));
    assert.equal(create_hash('sha256').update(body).digest('hex'), fingerprint(lines));
    const counts = pop_counts(await monitor.polls_of(task.uuid));
    const first = counts.indexOf(8); // 1 + 2 + 4 pequenas, depois 8 grandes de uma vez
    assert.deepEqual(counts.slice(first, first + 3), [8, 1, 2]);
  });

  test('um Redis anterior ao 6.2 é atendido com um LPOP por linha', async () => {
    const as_old = (text: string) => text.replace(/redis_version:\d\.\d/, 'redis_version:6.0');
    const relay = await start_relay(async () => undefined, as_old);
    const lane = await start_lane([...relayed, '-i', '5'], redis, relay.server);
    const lines = Array.from({ length: 30 }, (_, index) => `${index}`);
    const { body, task } = await serve(lane, (task) => push_and_finish(lane.client, task, lines));
    assert.equal(body.toString(), `${lines.join('\n')}\n`);
    const pops = relay.received.filter(([name, key]) => name === 'LPOP' && key === task.task_list);
    assert.ok(pops.length >= lines.length, `${pops.length} LPOPs`);
    assert.deepEqual([...new Set(pops.map((words) => words.length))], [2]);
  });
});

// ── Tamanhos e conteúdos ────────────────────────────────────────────────────────────────────────

const megabytes_5 = 5_000_000;

const kilobytes_64 = 64 * 1024;

/** Elementos de conteúdo variado, e o que o cliente deve receber de cada um. */
const content_table: [string | Buffer, string | Buffer][] = [
  ['{"n":1}', '{"n":1}\n'],
  [
    '{"ação":"👩‍👩‍👧 e\u0301 日本 \u2028 \u0085"}',
    '{"ação":"👩‍👩‍👧 e\u0301 日本 \u2028 \u0085"}\n',
  ],
  ['{\r\n  "a": [\n    1\n  ]\r\n}\n', '{   "a": [     1   ] }\n'],
  ['{"n":1}\r\n[2]\n', '{"n":1}\n[2]\n'],
  ['', ''],
  [' \t ', ''],
  ['\r\n', ''],
  ['isto não é JSON', 'isto não é JSON\n'],
  ['  recuado  ', '  recuado  \n'],
  ['eof', 'eof\n'],
  ['{"fim":"EOF"}', '{"fim":"EOF"}\n'],
  ['END OF FILE', 'END OF FILE\n'],
  ['HTTP is a protocol', 'HTTP is a protocol\n'],
  ['data: {"a":1}\n\n', 'data: {"a":1}\n'],
  [Buffer.from('caf\u00e9 \u00ff', 'latin1'), Buffer.from('caf\u00e9 \u00ff\n', 'latin1')],
  [Buffer.from([0xc3, 0x0a, 0xa9, 0x80]), Buffer.from([0xc3, 0x20, 0xa9, 0x80, 0x0a])],
  [Buffer.from([0x00]), Buffer.from([0x00, 0x0a])],
  [Buffer.from([0x61, 0x00, 0x0d, 0x00, 0xff]), Buffer.from([0x61, 0x00, 0x20, 0x00, 0xff, 0x0a])],
  [Buffer.from('\ufeff{}'), Buffer.from('\ufeff{}\n')],
];

describe('tamanhos e conteúdos', { concurrency: tests_at_once }, () => {
  for (const name of ['0/5', '1/5']) {
    test(`conteúdos de todo tipo passam byte a byte (${name})`, async () => {
      const lane = lane_of(name);
      const elements = content_table.map(([element]) => element);
      const expected = Buffer.concat(content_table.map(([, sent]) => Buffer.from(sent as string)));
      const { body, log } = await serve(lane, (task) =>
        push_and_finish(lane.client, task, elements),
      );
      assert.deepEqual(body, expected);
      const lines = expected.filter((byte) => byte === 0x0a).length;
      assert.match(log, new RegExp(` lines=${lines} bytes=${expected.length} `));
    });

    test(`de 1 byte a 5 MB, misturados (${name})`, async () => {
      const lane = lane_of(name);
      const sizes = [1, kilobytes_64, 1, megabytes_5, 1, 2, 1, 1, megabytes_5, kilobytes_64, 1];
      const lines = sizes.map((size, index) => sized_line(index, size));
      const { body, log } = await serve(lane, async (task) => {
        for (const line of lines) await lane.client.rPush(task.task_list, line);
        await lane.client.del(task.task_key);
      });
      assert.equal(create_hash('sha256').update(body).digest('hex'), fingerprint(lines));
      assert.match(log, new RegExp(` lines=${sizes.length} bytes=${body.length} `));
    });
  }
});

/**
 * Lê a maior memória residente que um processo já teve.
 * @param pid o processo
 * @returns bytes
 */
function peak_memory(pid: number | undefined): number {
  const status = read_file(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024;
}

describe('memória', { skip: process.platform !== 'linux' && 'só o Linux tem /proc' }, () => {
  test('60 linhas de 5 MB por um fluxo não se acumulam no proxy', async () => {
    const lane = await start_lane(['-P', '0', '-i', '5']);
    const { read, task } = await open_bytes(lane);
    const expected = create_hash('sha256');
    for (let index = 0; index < 60; index += 1) {
      const line = sized_line(index, megabytes_5);
      expected.update(line).update('\n');
      await lane.client.rPush(task.task_list, line);
    }
    await lane.client.del(task.task_key);
    // com o cliente parado quase tudo ainda está na lista
    assert.ok((await lane.client.lLen(task.task_list)) > 40);
    const received = create_hash('sha256');
    await read((chunk) => received.update(chunk));
    assert.equal(received.digest('hex'), expected.digest('hex'));
    const peak = peak_memory(lane.proxy.process.pid);
    assert.ok(peak < 0.6 * 60 * megabytes_5, `${Math.round(peak / 1e6)} MB`);
    await assert_gone(lane.client, task);
  });
});

// ── Cliente lento e TTL ─────────────────────────────────────────────────────────────────────────

const short_ttl = ['--ttl', '2'];

describe('cliente lento e TTL', { concurrency: tests_at_once }, () => {
  test('com o cliente parado o proxy não retira, renova o TTL, e no fim nada falta', async () => {
    const lane = await start_lane(['-P', '0', '-i', '5', ...short_ttl]);
    const { read, task } = await open_bytes(lane);
    const lines = Array.from({ length: 480 }, (_, index) => sized_line(index, 2 * kilobytes_64));
    for (let start = 0; start < lines.length; start += 40) {
      await lane.client.rPush(task.task_list, lines.slice(start, start + 40));
    }
    const lengths = [-1, await lane.client.lLen(task.task_list)];
    while (lengths.at(-1) !== lengths.at(-2)) {
      await see_renewals(lane.client, task.task_key, 2);
      lengths.push(await lane.client.lLen(task.task_list));
    }
    assert.ok((lengths.at(-1) ?? 0) > 0, lengths.join());
    await see_renewals(lane.client, task.task_list, renewals_past_ttl);
    assert.equal(await lane.client.lLen(task.task_list), lengths.at(-1));
    await lane.client.del(task.task_key);
    const received = create_hash('sha256');
    await read((chunk) => received.update(chunk));
    await assert_gone(lane.client, task);
    assert.equal(received.digest('hex'), fingerprint(lines));
  });

  test('um fluxo mais longo que o TTL não é cortado', async () => {
    const lane = await start_lane(['-i', '5', ...short_ttl]);
    const { stream, task } = await open_lines(lane);
    const claim_key = `ndjson_claim_${task.uuid}`;
    await lane.client.set(claim_key, 'eu', { NX: true, EX: 3600 });
    await see_renewals(lane.client, task.task_key, renewals_past_ttl);
    const claim_ttl_ms = await lane.client.pTTL(claim_key);
    assert.ok(claim_ttl_ms > 0 && claim_ttl_ms <= 2000, `${claim_ttl_ms} ms`);
    await lane.client.rPush(task.task_list, 'x');
    assert.equal(await stream.next(), 'x');
    await lane.client.del(task.task_key);
    assert.deepEqual(await stream.rest(), []);
    await assert_gone(lane.client, task);
  });

  test('o sono de INTERVAL, muito maior que o TTL, não deixa as chaves expirarem', async () => {
    const lane = await start_lane(['-i', '60000', '-t', '90000', ...short_ttl]);
    const { stream, task } = await open_lines(lane);
    await stream.head();
    await see_renewals(lane.client, task.task_key, renewals_past_ttl);
    stream.leave();
    await lane.proxy.wait_for(new RegExp(`end task=${task.uuid} ending=client_gone`));
  });

  test('a pausa de PAUSE, muito maior que o TTL, não deixa as chaves expirarem', async () => {
    const lane = await start_lane(['-i', '5', '-P', '60000', '-t', '90000', ...short_ttl]);
    const { stream, task } = await open_lines(lane);
    await lane.client.rPush(task.task_list, ['x', 'y']);
    assert.equal(await stream.next(), 'x');
    await until('TTL na lista', async () => (await lane.client.pTTL(task.task_list)) > 0);
    await see_renewals(lane.client, task.task_list, renewals_past_ttl);
    assert.equal(await lane.client.exists(task.task_key), 1);
    assert.deepEqual(await lane.client.lRange(task.task_list, 0, -1), ['y']);
    stream.leave();
    await lane.proxy.wait_for(new RegExp(`end task=${task.uuid} ending=client_gone`));
  });
});
