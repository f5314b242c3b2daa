/*
 * O formato da resposta, escolhido pelo Accept: NDJSON, ou eventos (text/event-stream) com o seu
 * começo, o seu fim e a volta de um EventSource. Os clientes são fetch, curl e sockets crus.
 */

import assert from 'node:assert/strict';
import { before, describe } from 'node:test';
import {
  at_some_pace,
  brisk,
  clog,
  clog_reader,
  end_of,
  fetch_all,
  freeze_redis,
  goodbye,
  type http_options,
  type local_redis,
  open_stream,
  type proxy,
  type redis_client,
  type scene,
  served,
  start_program,
  start_proxy,
  start_redis,
  start_scene,
  type task_names,
  test,
  tests_at_once,
  until,
} from './harness';
import { assert_error, open_talk, raw_request } from './http_helpers';

/** Um evento, como o navegador o entrega: `id` é o último que se viu. */
type server_event = { id: string; event: string; data: string };

/** O que o gatilho de um fim tem à mão. */
type ending_scene = { proxy: proxy; db: redis_client; task: task_names };

const event_type = 'text/event-stream; charset=utf-8';
const accept_events = { headers: { accept: 'text/event-stream' } };

let redis: local_redis;

/** A cena dos testes que não mudam as configurações, um de cada vez. */
let common: scene;

before(async () => {
  redis = await start_redis();
  common = await start_scene(redis, brisk);
});

/**
 * Lê eventos como a norma do HTML manda, e de forma estrita: tudo termina em linha em branco, e só
 * há campos que o proxy usa.
 * @param text a resposta inteira
 * @returns os eventos com dados, na ordem, e os comentários
 */
function parse_events(text: string): { events: server_event[]; comments: string[] } {
  assert.ok(text.endsWith('\n\n'), `fim cortado: ${JSON.stringify(text.slice(-80))}`);
  const events: server_event[] = [];
  const comments: string[] = [];
  let id = '';
  for (const block of text.slice(0, -2).split('\n\n')) {
    const fields = { event: 'message', data: [] as string[] };
    for (const line of block.split('\n')) {
      const [, name, value = ''] = /^(id|event|data|): (.*)$/.exec(line) ?? [];
      assert.notEqual(name, undefined, `linha que não é campo: ${JSON.stringify(line)}`);
      if (name === 'id') id = value;
      else if (name === 'event') fields.event = value;
      else if (name === 'data') fields.data.push(value);
      else comments.push(value);
    }
    const { event, data } = fields;
    if (data.length > 0) events.push({ id, event, data: data.join('\n') });
  }
  return { events, comments };
}

/**
 * Dá o que vem antes do primeiro evento.
 * @param task a tarefa
 * @returns o texto
 */
function opening({ uuid }: { uuid: string }): string {
  return `id: ${uuid}\n`;
}

/**
 * Dá o último evento.
 * @param how o fim
 * @returns o texto
 */
function farewell(how = 'done'): string {
  return `event: end\ndata: {"ending": "${how}"}\n\n`;
}

/**
 * Faz um pedido, e espera por ele no worker.
 * @param scene o proxy e o worker
 * @param options o pedido; se não é dado, pede eventos
 * @returns a tarefa, e a resposta inteira quando vier
 */
async function ask(scene: scene, options: http_options = accept_events) {
  const reply = fetch_all(scene.proxy, options);
  return { reply, task: await scene.worker.next() };
}

describe('o Accept escolhe', () => {
  const line = '{"n": 1}';

  for (const accept of [
    undefined,
    '*/*',
    'application/json',
    'application/json, text/plain, */*',
    'text/*',
    'text/event-stream;q=0, */*',
    'application/jsonl, text/event-stream',
  ]) {
    test(`Accept ${accept}: NDJSON`, async () => {
      const { reply, task } = await ask(common, { headers: accept ? { accept } : {} });
      await common.db.rPush(task.task_list, [line, 'EOF']);
      const { body, headers } = await reply;
      assert.equal(body, `${line}\n`);
      assert.match(String(headers['content-type']), /^application\/(x-ndjson|jsonl)$/);
    });
  }

  test('a barra de endereço de um navegador recebe as mesmas linhas, em texto', async () => {
    const headers = { accept: 'text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8' };
    const { reply, task } = await ask(common, { headers });
    await common.db.rPush(task.task_list, [line, 'é', 'EOF']);
    const { body, headers: given } = await reply;
    assert.equal(body, `${line}\né\n`);
    const asked = await fetch_all(common.proxy, { method: 'HEAD', headers });
    for (const { 'content-type': type } of [given, asked.headers]) {
      assert.equal(type, 'text/plain; charset=utf-8');
    }
  });

  for (const accept of [
    'text/event-stream',
    'Text/Event-Stream; q=0.5',
    'application/json, text/event-stream',
    'text/event-stream, application/x-ndjson',
    '*/*, text/event-stream;charset=utf-8',
  ]) {
    test(`Accept ${accept}: eventos, byte a byte`, async () => {
      const { reply, task } = await ask(common, { headers: { accept } });
      await common.db.rPush(task.task_list, ['{"a":\r\n "é"}', '  à direita', '', 'EOF', 'depois']);
      const { status, headers, body } = await reply;
      const data = 'data: {"a":  "é"}\n\ndata:   à direita\n\ndata: depois\n\n';
      assert.equal(body, `${opening(task)}${data}${farewell()}`);
      assert.deepEqual([status, headers['content-type']], [200, event_type]);
      assert.equal(headers['cache-control'], 'no-store, no-transform');
      assert.equal(headers['x-accel-buffering'], 'no');
      assert.equal(headers['x-task-uuid'], task.uuid);
      const end = await end_of(common.proxy, task);
      assert.deepEqual([end.ending, end.lines], ['done', '3']);
      assert.equal(Number(end.bytes), Buffer.byteLength(data));
    });
  }

  test('HEAD diz o tipo que o GET teria', async () => {
    const { headers } = await fetch_all(common.proxy, { ...accept_events, method: 'HEAD' });
    assert.equal(headers['content-type'], event_type);
  });

  test('HTTP/1.0: os eventos vão sem pedaços, e a conexão fecha', async () => {
    const { proxy, worker, db } = common;
    const talk = await open_talk(
      proxy,
      raw_request('GET / HTTP/1.0', ['Accept: text/event-stream']),
    );
    const task = await worker.next();
    await db.rPush(task.task_list, ['1', 'EOF']);
    const { body } = await talk.reply();
    assert.equal(body, `${opening(task)}data: 1\n\n${farewell()}`);
  });
});

describe('os eventos de um fluxo', { concurrency: tests_at_once }, () => {
  /** Como cada fim é provocado depois da primeira linha, e o último evento com dados antes dele. */
  const ends: [string, string[], string | undefined, (with_all: ending_scene) => unknown][] = [
    ['done', [], undefined, ({ db, task }) => db.del(task.task_key)],
    ['timeout', ['-t', '4000'], '{"error": "timeout"}', () => {}],
    [
      'failed',
      ['-i', '20'],
      '{"error": "redis refused a command"}',
      ({ db, task }) => db.set(task.task_list, 'não é lista'),
    ],
    ['redis_lost', [], '{"error": "redis lost"}', ({ db }) => db.flushAll()],
    ['shutdown', ['--grace', '0'], goodbye, ({ proxy }) => proxy.process.kill('SIGTERM')],
  ];

  for (const [how, args, last, provoke] of ends) {
    test(`${how}: a última linha é um evento comum, e depois dela vem "end"`, async () => {
      const own = how === 'redis_lost' ? await start_redis() : redis;
      const scene = await start_scene(own, ['-P', '0', ...args]);
      const { proxy, worker, db } = scene;
      const stream = open_stream(proxy, accept_events);
      const task = await worker.next();
      await db.rPush(task.task_list, '1');
      for (const line of `${opening(task)}data: 1\n`.split('\n')) {
        assert.equal(await stream.next(), line);
      }
      await provoke({ proxy, db, task });
      const { events } = parse_events(`${(await stream.rest()).join('\n')}\n`);
      const ended = ['end', `{"ending": "${how}"}`];
      const expected = [last && ['message', last], ended].filter(Boolean);
      assert.deepEqual(
        events.map(({ event, data }) => [event, data]),
        expected,
      );
      assert.equal((await end_of(proxy, task)).ending, how);
    });
  }

  test('"end" espera pela limpeza: com o Redis mudo, vem 1 s depois da última linha', () =>
    at_some_pace([1500, 4000, 10_000], async (maxtime_ms) => {
      const own = await start_redis();
      const { proxy, worker } = await start_scene(own, [
        ...brisk,
        '-t',
        `${maxtime_ms}`,
        '--head-wait',
        '0',
      ]);
      const stream = open_stream(proxy, accept_events);
      await worker.next();
      await freeze_redis(own);
      const lines = await stream.rest();
      own.process.kill('SIGCONT');
      assert.deepEqual(lines.slice(1), [
        'data: {"error": "redis lost"}',
        '',
        ...farewell('redis_lost').split('\n').slice(0, -1),
      ]);
      const [, last = 0, , end = 0] = stream.arrivals;
      assert.ok(end - last > 500, `${end - last} ms`);
    }));

  test('sem linhas: abre depois de HEAD_WAIT, e termina com "end", que leva o id', async () => {
    const { proxy, worker, db } = await start_scene(redis, [...brisk, '--head-wait', '50']);
    const stream = open_stream(proxy, accept_events);
    const task = await worker.next();
    assert.equal((await stream.head()).headers['content-type'], event_type);
    await db.del(task.task_key);
    assert.deepEqual(await stream.rest(), `${opening(task)}${farewell()}`.split('\n').slice(0, -1));
  });

  test('HEARTBEAT são comentários, que o navegador não entrega à página', async () => {
    const scene = await start_scene(redis, ['--heartbeat', '30']);
    const stream = open_stream(scene.proxy, accept_events);
    const task = await scene.worker.next();
    const lines: (string | undefined)[] = [];
    for (let n = 0; n < 8; n += 1) lines.push(await stream.next()); // comentários
    await scene.db.rPush(task.task_list, ['1', 'EOF']);
    lines.push(...(await stream.rest()));
    const { events, comments } = parse_events(`${lines.join('\n')}\n`);
    assert.deepEqual(
      events.map(({ data }) => data),
      ['1', '{"ending": "done"}'],
    );
    assert.deepEqual([...new Set(comments)], ['keepalive']);
  });

  test('linhas de todos os tamanhos, em lotes: nenhum byte a mais ou a menos', async () => {
    const { proxy, worker, db } = await start_scene(redis, brisk);
    const slice = 64 * 1024;
    const around = [-8, -7, -6, -5, -2, -1, 0, 1, 2].map((more) => slice + more);
    const sizes = [...Array(600).keys(), ...around, 1, ...around, 3 * slice, 2 * slice - 6, 5];
    const sent = sizes.filter((size) => size > 0).map((size, n) => `${n % 10}`.repeat(size));
    const stream = open_stream(proxy, accept_events);
    const task = await worker.next();
    await db.rPush(task.task_list, [...sent, 'EOF']);
    const { events } = parse_events(`${(await stream.rest()).join('\n')}\n`);
    const got = events.map(({ data }) => data);
    assert.equal(got.pop(), '{"ending": "done"}');
    assert.ok(got.length === sent.length && got.every((line, n) => line === sent[n]));
    assert.deepEqual([...new Set(events.map(({ id }) => id))], [task.uuid]);
    const end = await end_of(proxy, task);
    const framing = 'data: '.length + '\n\n'.length;
    const expected = sent.reduce((sum, line) => sum + line.length + framing, 0);
    assert.deepEqual([end.lines, end.bytes], [String(sent.length), String(expected)]);
  });

  test('um cliente que não lê segura a lista, e depois recebe tudo', async () => {
    const { proxy, worker, db } = await start_scene(redis, brisk);
    const stream = open_stream(proxy, accept_events);
    const task = await worker.next();
    await stream.pause();
    await clog_reader(db, task, proxy);
    await stream.resume();
    await db.rPush(task.task_list, 'EOF');
    const { events } = parse_events(`${(await stream.rest(30_000)).join('\n')}\n`);
    const lengths = events.map(({ data }) => data.length);
    const last = '{"ending": "done"}'.length;
    assert.deepEqual(lengths, [...Array(clog.lines).fill(clog.bytes), last]);
  });
});

describe('o formato é o do Content-Type que sai', () => {
  const lines = ['{"a": 1}', 'EOF'];

  test('a cabeça do worker muda status e cabeçalhos, e os eventos continuam', async () => {
    const { reply, task } = await ask(common);
    await common.db.rPush(task.task_list, ['HTTP 202 {"X-Nome": "v"}', ...lines]);
    const { status, headers, body } = await reply;
    assert.deepEqual([status, headers['x-nome'], headers['content-type']], [202, 'v', event_type]);
    assert.equal(parse_events(body).events[0]?.data, '{"a": 1}');
  });

  for (const [type, wanted, expected] of [
    ['application/json', 'text/event-stream', '{"a": 1}\n'],
    ['text/event-stream', 'application/json', '{"a": 1}\n'],
    ['TEXT/event-stream;x=1', 'text/event-stream', undefined],
  ] as const) {
    test(`a cabeça escolhe ${type} e o cliente pediu ${wanted}`, async () => {
      const { reply, task } = await ask(common, { headers: { accept: wanted } });
      const head = `HTTP 404 ${JSON.stringify({ 'content-type': type })}`;
      await common.db.rPush(task.task_list, [head, ...lines]);
      const { status, headers, body } = await reply;
      assert.deepEqual([status, headers['content-type']], [404, type]);
      const events = `${opening(task)}data: {"a": 1}\n\n${farewell()}`;
      assert.equal(body, expected ?? events);
    });
  }

  test('um erro antes do primeiro byte é o status de sempre, com JSON', async () => {
    const own = await start_redis();
    const scene = await start_scene(own, [...brisk, '--maxbody', '3', '--failfast', 'on']);
    const { proxy, worker, db } = scene;
    const large = await fetch_all(proxy, { ...accept_events, body: 'abcd' });
    assert_error(large, 413, 'request body larger than 3 bytes');
    const { reply, task } = await ask(scene);
    await db.set(task.task_list, 'não é lista');
    assert_error(await reply, 503, 'redis refused a command');
    await worker.subscriber.unsubscribe();
    assert_error(await fetch_all(proxy, accept_events), 503, 'no worker is listening');
    await own.stop('SIGKILL');
    await proxy.wait_for(/ redis_down /);
    assert_error(await fetch_all(proxy, accept_events), 504, 'redis does not answer');
  });
});

describe('um EventSource que volta', () => {
  const uuid = '6f1c2f64-5c6e-4b4e-9d36-0a3b9a1f7d11';
  const returning = { accept: 'text/event-stream', 'last-event-id': uuid };

  test('recebe 204 e nenhuma tarefa nasce, nem com o Redis fora', async () => {
    const own = await start_redis();
    const args = ['--cors-origin', 'https://a.example', '--rate', '1/60'];
    const { proxy, worker, db } = await start_scene(own, args);
    const headers = { ...returning, origin: 'https://a.example' };
    const ask_again = async () => {
      const reply = await fetch_all(proxy, { headers });
      assert.deepEqual([reply.status, reply.body], [204, '']);
      assert.equal(reply.headers['access-control-allow-origin'], 'https://a.example');
    };
    for (let n = 0; n < 3; n += 1) await ask_again();
    assert.deepEqual([await db.keys('*'), worker.pending], [[], []]);
    assert.equal(await served(db, 'publish'), 0);
    await own.stop('SIGKILL');
    await proxy.wait_for(/ redis_down /);
    await ask_again();
  });

  test('o id também pode vir na busca, de quem não pode mandar o cabeçalho', async () => {
    const path = `/a?b=1&lastEventId=${uuid}`;
    assert.equal((await fetch_all(common.proxy, { ...accept_events, path })).status, 204);
    for (const other of [
      { path },
      { ...accept_events, path: '/a?lastEventId=42' },
      { ...accept_events, path: `/lastEventId=${uuid}` },
    ]) {
      const { reply, task } = await ask(common, other);
      assert.equal(task.url, other.path);
      await common.db.rPush(task.task_list, 'EOF');
      assert.equal((await reply).status, 200);
    }
  });

  test('sem a chave de API_KEY recebe 401, que também o faz desistir', async () => {
    const proxy = await start_proxy(redis, ['--api-key', 'chave']);
    assert.equal((await fetch_all(proxy, { headers: returning })).status, 401);
    const headers = { ...returning, 'x-api-key': 'chave' };
    assert.equal((await fetch_all(proxy, { headers })).status, 204);
  });

  for (const headers of [
    { 'last-event-id': uuid },
    { ...returning, accept: 'application/json' },
    { ...returning, 'last-event-id': '' },
    { ...returning, 'last-event-id': '42' },
    { ...returning, 'last-event-id': `${uuid}x` },
  ]) {
    test(`mas ${JSON.stringify(headers)} é um pedido como outro`, async () => {
      const { reply, task } = await ask(common, { headers });
      await common.db.rPush(task.task_list, 'EOF');
      assert.equal((await reply).status, 200);
    });
  }
});

describe('clientes de verdade', { concurrency: tests_at_once }, () => {
  test('fetch com um leitor recebe cada evento na hora, e desistir cancela a tarefa', async () => {
    const { proxy, worker, db } = await start_scene(redis);
    const leaving = new AbortController();
    const asked = fetch(proxy.url, { ...accept_events, signal: leaving.signal });
    const task = await worker.next();
    let text = '';
    for (const data of ['um', 'dois', 'três']) {
      await db.rPush(task.task_list, data); // só depois de lido o anterior
      const { body } = await asked;
      const reader = (body as ReadableStream<Uint8Array>).getReader();
      while (!text.includes(`data: ${data}\n\n`)) {
        text += new TextDecoder().decode((await reader.read()).value);
      }
      reader.releaseLock();
    }
    leaving.abort();
    await until('tarefa cancelada', async () => (await db.exists(task.task_key)) === 0);
    assert.equal((await end_of(proxy, task)).ending, 'client_gone');
  });

  test('curl -N recebe linhas, e eventos se os pede', async () => {
    const { proxy, worker, db } = await start_scene(redis, brisk);
    const accepts = [[], ['-H', 'Accept: text/event-stream']];
    for (const [index, accept] of accepts.entries()) {
      const curl = start_program('curl', ['-sSN', '--max-time', '30', ...accept, proxy.url]);
      const task = await worker.next();
      const frame = (line: string) => (index === 0 ? `${line}\n` : `data: ${line}\n\n`);
      let expected = index === 0 ? '' : opening(task);
      for (const line of ['{"n": 1}', '{"n": 2}']) {
        await db.rPush(task.task_list, line);
        expected += frame(line);
        await until('linha no curl', () => curl.stdout() === expected);
      }
      await db.del(task.task_key);
      assert.equal(await curl.exited, 0);
      assert.equal(curl.stdout(), index === 0 ? expected : `${expected}${farewell()}`);
    }
  });
});
