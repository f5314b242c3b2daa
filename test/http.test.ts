import assert from 'node:assert/strict';
import http from 'node:http';
import { after, before, beforeEach as before_each, describe } from 'node:test';
import {
  fetch_all,
  freeze_redis,
  type http_options,
  type local_redis,
  open_stream,
  type proxy,
  start_proxy,
  start_redis,
  test,
  until,
} from './harness';
import {
  assert_error,
  assert_identity,
  author,
  open_talk,
  raw_request,
  start_desk,
  type task_desk,
} from './http_helpers';

const ttl_s = 60;

const channel = 'ndjson_jobs';

/** O que ouve quem manda uma URL com acentos crus, e quem fala HTTPS. */
const not_encoded = 'the URL has characters that must be percent-encoded';
const not_https = 'this port speaks HTTP, not HTTPS';

const uuid_v4 = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

let redis: local_redis;
let main_proxy: proxy;
let desk: task_desk;

before(async () => {
  redis = await start_redis();
  main_proxy = await start_proxy(redis, ['-i', '20', '-P', '0', '--ttl', String(ttl_s)]);
  desk = await start_desk(redis, main_proxy);
});

before_each(async () => {
  await desk.client.flushDb(); // o que um teste que falhou deixou não atrapalha os outros
});

after(async () => {
  assert.equal(await main_proxy.stop(), 0);
  assert.match(main_proxy.stdout(), / stop signal=SIGTERM streams=0 /, 'um pedido ficou preso');
  assert.doesNotMatch(main_proxy.stderr(), / (request_error|stream_error|fatal) /);
});

/**
 * Faz um pedido, termina a tarefa dele sem linhas e confere que nada sobrou.
 * @param options o pedido, com `path` só dele
 * @returns a tarefa e os cabeçalhos da resposta
 */
async function run_task(options: http_options & { path: string }) {
  const stream = open_stream(main_proxy, options);
  const task = await desk.task(options.path);
  await desk.finish(task);
  const { statusCode: status, headers } = await stream.head();
  assert.equal(status, 200);
  assert.deepEqual(await stream.rest(), []);
  assert.deepEqual(await desk.client.keys('*'), []);
  return { task, headers };
}

describe('/ping', () => {
  const requests: http_options[] = [
    { path: '/ping' },
    { path: '/ping?x=1&y=%20' },
    { path: '/ping', body: 'corpo ignorado' },
    { path: '/ping', method: 'DELETE' },
    { path: 'http://outro.test:99/ping' },
    { path: 'http://outro.test/ping?x=1' },
  ];
  for (const options of requests) {
    const { path, method = options.body === undefined ? 'GET' : 'POST' } = options;
    test(`${method} ${path} responde pong sem criar tarefa`, async () => {
      const before_it = await desk.created();
      const reply = await fetch_all(main_proxy, options);
      assert.equal(reply.status, 200);
      assert.equal(reply.body, 'pong');
      assert.equal(reply.headers['content-type'], 'text/plain');
      assert_identity(reply);
      assert.deepEqual(await desk.created(), before_it);
    });
  }

  test('são exatamente quatro bytes, e a conexão segue aberta', async () => {
    const talk = await open_talk(main_proxy, raw_request('GET /ping'));
    const reply = await talk.reply();
    assert.equal(reply.headers['content-length'], '4');
    assert.ok(talk.text().endsWith('\r\n\r\npong'));
    talk.send(raw_request('GET /ping'));
    assert.equal((await talk.reply()).body, 'pong');
    assert.equal(talk.leftover(), '');
  });

  test('HEAD /ping tem os cabeçalhos do GET e nenhum corpo', async () => {
    const talk = await open_talk(main_proxy, raw_request('HEAD /ping') + raw_request('GET /ping'));
    const { date: _, ...head } = (await talk.reply(false)).headers;
    const { date: __, ...get } = (await talk.reply()).headers;
    assert.deepEqual(head, get);
    assert.equal(talk.leftover(), '');
  });

  const not_ping = ['/ping/', '/pingx', '/PING', '/a/ping', '//ping', '/%70ing', '/?/ping'];
  for (const path of not_ping) {
    test(`${path} é uma tarefa como outra qualquer`, async () => {
      const { task } = await run_task({ path });
      assert.equal(task.url, path);
    });
  }
});

describe('HEAD e OPTIONS não criam tarefa', () => {
  test('HEAD tem os cabeçalhos do GET, salvo os da tarefa', async () => {
    const accept = { Accept: 'application/jsonl' };
    const path = '/cabeca?x=1';
    const before_it = await desk.created();
    const reply = await fetch_all(main_proxy, { method: 'HEAD', path, headers: accept });
    assert.equal(reply.status, 200);
    assert.equal(reply.body, '');
    assert.deepEqual(await desk.created(), before_it);
    assert.deepEqual(await desk.client.keys('*'), []);
    const { headers } = await run_task({ path, headers: accept });
    const only_of_a_body = [
      'date',
      'transfer-encoding',
      'x-task-uuid',
      'x-task-key',
      'x-task-list',
    ];
    for (const name of only_of_a_body) {
      delete headers[name];
      delete reply.headers[name];
    }
    assert.deepEqual(reply.headers, headers);
  });

  test('HEAD com corpo não cria tarefa nem estraga o pedido seguinte', async () => {
    const before_it = await desk.created();
    const body = 'x'.repeat(100_000);
    const talk = await open_talk(main_proxy, raw_request('HEAD /h', [], body));
    assert.equal((await talk.reply(false)).status, 200);
    talk.send(raw_request('GET /ping'));
    assert.equal((await talk.reply()).body, 'pong');
    assert.deepEqual(await desk.created(), before_it);
  });

  for (const path of ['/', '/qualquer/coisa?x=1', '/ping', '*']) {
    test(`OPTIONS ${path} responde 204 com Allow`, async () => {
      const before_it = await desk.created();
      const talk = await open_talk(main_proxy, raw_request(`OPTIONS ${path}`));
      const reply = await talk.reply();
      assert.equal(reply.status, 204);
      assert.equal(reply.headers.allow, 'GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS');
      assert_identity(reply);
      assert.equal(talk.leftover(), '');
      assert.deepEqual(await desk.created(), before_it);
      assert.deepEqual(await desk.client.keys('*'), []);
    });
  }
});

describe('a tarefa', () => {
  test('o JSON guardado é o pedido inteiro', async () => {
    const sent_at = Date.now() / 1000;
    const headers = ['x-API-key: k 1', 'Accept: a/b', 'ACCEPT: c/d', 'Cookie: a=1', 'cookie: b=2'];
    const url = '/caminho/%C3%A3?x=1&y=a%20b&x=2';
    const odd = ['__proto__: herdeiro', 'constructor: c', 'X-1-2b: v', 'X-Vazio:'];
    const talk = await open_talk(
      main_proxy,
      raw_request(`POST ${url}`, [...headers, ...odd], 'oi'),
    );
    const { request_time, ...task } = await desk.task(url);
    const uuid = task.task_name;
    assert.match(uuid, uuid_v4);
    assert.ok(request_time >= sent_at && request_time <= Date.now() / 1000, `${request_time}`);
    assert.deepEqual(Object.entries(task.headers), [
      ['Host', 'proxy.test'],
      ['Content-Length', '2'],
      ['X-Api-Key', 'k 1'],
      ['Accept', 'a/b, c/d'],
      ['Cookie', 'a=1; b=2'],
      ['--Proto--', 'herdeiro'],
      ['Constructor', 'c'],
      ['X-1-2b', 'v'],
      ['X-Vazio', ''],
    ]);
    const { headers: _, ...others } = task;
    assert.deepEqual(others, {
      task_name: uuid,
      uuid,
      task_key: `ndjson_task_${uuid}`,
      task_list: `ndjson_list_${uuid}`,
      method: 'POST',
      url,
      remote_address: '127.0.0.1',
      body: 'oi',
    });
    const seconds = await desk.client.ttl(task.task_key);
    assert.ok(seconds > 0 && seconds <= ttl_s, `TTL ${seconds}`);
    assert.ok((await desk.created()).includes(task.task_key));
    await desk.finish({ ...task, request_time });
    assert.equal((await talk.reply()).status, 200);
  });

  test('da forma absoluta do alvo a tarefa guarda o caminho e a busca', async () => {
    const stream = open_stream(main_proxy, { path: 'http://outro.test:99/absoluta?c=d' });
    await desk.finish(await desk.task('/absoluta?c=d'));
    assert.deepEqual(await stream.rest(), []);
  });

  const methods = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'PROPFIND', 'M-SEARCH', 'TRACE'];
  if (http.METHODS.includes('QUERY')) methods.push('QUERY');
  for (const method of methods) {
    test(`${method}, com e sem corpo`, async () => {
      const path = `/metodo/${method}`;
      const body = '{"a":"é"}';
      const headers = { 'Content-Length': Buffer.byteLength(body) };
      const full = await run_task({ path, method, headers, body });
      assert.equal(full.task.method, method);
      assert.equal(full.task.body, body);
      const empty = await run_task({ path: `${path}/vazio`, method });
      assert.equal(empty.task.method, method);
      assert.equal(empty.task.body, '');
    });
  }
});

describe('o corpo da tarefa', () => {
  const texts: [string, string][] = [
    ['texto', 'a=1&b=2'],
    ['UTF-8 com emoji', 'ação 🚀 👩‍👩‍👧 \u{10ffff}'],
    ['BOM', '\ufeff{"a": 1}'],
    ['NUL', `a\0${'b'.repeat(20)}`],
    ['aspas e quebras, que em JSON dobram', '"\\\n\t\r\b\f'],
    ['quebras de linha', 'a\r\nb\nc\r'],
    ['o caractere de substituição de verdade', 'a\ufffdb'],
    ['JSON com escapes', '{"a": "\\u0000 \\\\ \\" \u2028"}'],
    ['um megabyte', 'é'.repeat(512 * 1024)],
  ];
  for (const [index, [title, text]] of texts.entries()) {
    test(`${title} chega como texto, sem tirar nem pôr`, async () => {
      const { task } = await run_task({ path: `/texto/${index}`, body: text });
      assert.ok(task.body === text, 'o corpo mudou');
      assert.equal(task.body_encoding, undefined);
    });
  }

  const binaries: [string, Buffer][] = [
    ['latin1', Buffer.from('ação', 'latin1')],
    ['UTF-8 cortado no meio', Buffer.from('🚀').subarray(0, 3)],
    ['forma longa demais', Buffer.from([0x61, 0xc0, 0x80])],
    ['substituto solto', Buffer.from([0xed, 0xa0, 0x80])],
    ['o que em JSON ficaria seis vezes maior', Buffer.alloc(1_000_000)],
    ['gzip', Buffer.from([0x1f, 0x8b, 0x08, 0x00, 0xff])],
    ['todos os bytes', Buffer.from(Array.from({ length: 100_000 }, (_, index) => index % 256))],
  ];
  for (const [index, [title, bytes]] of binaries.entries()) {
    test(`${title} vai em base64`, async () => {
      const { task } = await run_task({ path: `/binario/${index}`, body: bytes });
      assert.equal(task.body_encoding, 'base64');
      assert.ok(task.body === bytes.toString('base64'), 'o corpo mudou');
    });
  }

  test('em pedaços (chunked), partidos no meio de um caractere, chega inteiro', async () => {
    const [first, second] = [Buffer.from('é').subarray(0, 1), Buffer.from('é').subarray(1)];
    const head = raw_request('POST /pedacos', ['Transfer-Encoding: chunked']);
    const talk = await open_talk(main_proxy, head);
    talk.send(Buffer.concat([Buffer.from('1\r\n'), first, Buffer.from('\r\n')]));
    // O proxy já leu o primeiro pedaço quando responde a outro pedido.
    assert.equal((await fetch_all(main_proxy, { path: '/ping' })).body, 'pong');
    talk.send(
      Buffer.concat([Buffer.from('1;x=y\r\n'), second, Buffer.from('\r\n0\r\nT: 1\r\n\r\n')]),
    );
    const task = await desk.task('/pedacos');
    assert.equal(task.body, 'é');
    await desk.finish(task);
    assert.equal((await talk.reply()).status, 200);
  });
});

describe('a resposta', () => {
  test('um fluxo leva todos os cabeçalhos do contrato', async () => {
    const stream = open_stream(main_proxy, { path: '/cabecalhos', body: 'x' });
    const task = await desk.task('/cabecalhos');
    await desk.client.rPush(task.task_list, ['{"n":1}', '{"n":2}']);
    const response = await stream.head();
    assert.equal(response.statusCode, 200);
    const { date, ...headers } = response.headers;
    assert.ok(date && Number.isFinite(Date.parse(date)));
    assert.deepEqual(headers, {
      server: 'py-ndjson-proxy',
      'x-author': author,
      'content-type': 'application/x-ndjson',
      'cache-control': 'no-store, no-transform',
      'x-accel-buffering': 'no',
      'x-content-type-options': 'nosniff',
      'x-task-uuid': task.uuid,
      'x-task-key': task.task_key,
      'x-task-list': task.task_list,
      connection: 'close',
      'transfer-encoding': 'chunked',
    });
    await desk.finish(task);
    assert.deepEqual(await stream.rest(), ['{"n":1}', '{"n":2}']);
  });

  test('os cabeçalhos saem depois de 1 s, mesmo sem linha nenhuma', async () => {
    const sent_at = performance.now();
    const stream = open_stream(main_proxy, { path: '/espera' });
    const task = await desk.task('/espera');
    let opened = false;
    const head = stream.head().then((response) => {
      opened = true;
      return response;
    });
    await until('cabeçalhos sem linha nenhuma', () => opened);
    assert.equal((await head).statusCode, 200);
    const waited_ms = performance.now() - sent_at;
    assert.ok(waited_ms >= 990, `saíram em ${waited_ms} ms, sem esperar pela cabeça do worker`);
    assert.equal(await desk.client.exists(task.task_key), 1);
    await desk.finish(task, ['{"n":1}']);
    assert.deepEqual(await stream.rest(), ['{"n":1}']);
  });

  const ndjson = 'application/x-ndjson';
  const accepts: [string | undefined, string][] = [
    [undefined, ndjson],
    ['', ndjson],
    ['*/*', ndjson],
    ['application/*', ndjson],
    ['application/json', ndjson],
    ['text/event-stream', 'text/event-stream; charset=utf-8'],
    [ndjson, ndjson],
    ['application/json-lines', 'application/json-lines'],
    ['application/jsonl', 'application/jsonl'],
    ['Application/JSONL', 'application/jsonl'],
    ['application/jsonl;q=0.9', 'application/jsonl'],
    ['application/json-lines ; charset=utf-8 ; q=1', 'application/json-lines'],
    ['text/html, application/jsonl;q=0.8, */*;q=0.1', 'application/jsonl'],
    ['application/json,application/json-lines', 'application/json-lines'],
    ['application/jsonlx, xapplication/jsonl, application/json-lines2', ndjson],
    ['application/jsonl;q=0', ndjson],
  ];
  for (const [accept, media_type] of accepts) {
    test(`Accept ${JSON.stringify(accept)} recebe ${media_type}`, async () => {
      const headers = accept === undefined ? {} : { Accept: accept };
      const reply = await fetch_all(main_proxy, { method: 'HEAD', path: '/tipo', headers });
      assert.equal(reply.headers['content-type'], media_type);
    });
  }

  test('o fluxo também segue o Accept', async () => {
    const accept = { Accept: 'text/html, application/json-lines;q=0.8' };
    const { headers } = await run_task({ path: '/tipo', headers: accept });
    assert.equal(headers['content-type'], 'application/json-lines');
  });
});

describe('configurações que o contrato mostra', () => {
  let custom: proxy;
  let custom_desk: task_desk;

  before(async () => {
    const names = ['-C', 'canal.meu', '-X', 'pref:', '-L', 'linhas/', '-s', 'meu servidor/1.0'];
    const args = [...names, '--host', '::ffff:127.0.0.1', '--ttl', '7', '--maxbody', '10'];
    custom = await start_proxy(redis, args);
    custom_desk = await start_desk(redis, custom, 'canal.meu');
  });

  after(async () => {
    assert.equal(await custom.stop(), 0);
  });

  test('-C, -X, -L e --ttl valem; o endereço vem sem o prefixo do IPv6', async () => {
    const before_it = await desk.created();
    const stream = open_stream(custom, { path: '/nomes' });
    const task = await custom_desk.task('/nomes');
    assert.equal(task.task_key, `pref:${task.uuid}`);
    assert.equal(task.task_list, `linhas/${task.uuid}`);
    assert.equal(task.remote_address, '127.0.0.1');
    assert.deepEqual(await custom_desk.created(), [`pref:${task.uuid}`]);
    const seconds = await desk.client.ttl(task.task_key);
    assert.ok(seconds > 0 && seconds <= 7, `TTL ${seconds}`);
    await custom_desk.finish(task, ['{"n":1}']);
    const { headers } = await stream.head();
    assert.equal(headers['x-task-key'], task.task_key);
    assert.equal(headers['x-task-list'], task.task_list);
    assert.deepEqual(await stream.rest(), ['{"n":1}']);
    assert.deepEqual(await desk.created(), before_it, 'anunciou também no canal padrão');
  });

  test('SERVERNAME vai em toda resposta', async () => {
    const name = 'meu servidor/1.0';
    for (const options of [{ path: '/ping' }, { method: 'HEAD' }, { method: 'OPTIONS' }]) {
      assert_identity(await fetch_all(custom, options), name);
    }
    const large = await fetch_all(custom, { body: 'onze bytes!' });
    assert_error(large, 413, 'request body larger than 10 bytes', name);
    const broken: [string, number, string][] = [
      ['nada disso\r\n\r\n', 400, 'malformed request'],
      ['GET /ação HTTP/1.1\r\nHost: a\r\n\r\n', 400, not_encoded],
      ['\x16\x03\x01\x02\x00\x01', 400, not_https],
      ['GET / HTTP/1.1\r\n\r\n', 400, 'missing Host header'],
      [raw_request('GET /', [`X: ${'x'.repeat(20_000)}`]), 431, 'request headers too large'],
      [raw_request('CONNECT a:1'), 501, 'CONNECT is not supported'],
    ];
    for (const [text, status, message] of broken) {
      const talk = await open_talk(custom, text);
      assert_error(await talk.reply(), status, message, name);
    }
    const reasons = `HPE_INVALID_URL: ${not_encoded}" [^]* reason="HTTPS: ${not_https}" `;
    assert.match(custom.stderr(), new RegExp(` refused status=400 reason="${reasons}`));
    const stream = open_stream(custom, { path: '/nome' });
    await custom_desk.finish(await custom_desk.task('/nome'));
    assert.equal((await stream.head()).headers.server, name);
  });
});

describe('sem o Redis', () => {
  const down = 'redis does not answer';
  let own_redis: local_redis;
  let own_proxy: proxy;
  let own_desk: task_desk;

  before(async () => {
    own_redis = await start_redis();
    own_proxy = await start_proxy(own_redis, ['-i', '20', '-P', '0']);
    own_desk = await start_desk(own_redis, own_proxy);
  });

  after(async () => {
    assert.equal(await own_proxy.stop(), 0);
    assert.match(own_proxy.stdout(), / stop signal=SIGTERM streams=0 /, 'um pedido ficou preso');
    assert.doesNotMatch(own_proxy.stderr(), / (request_error|stream_error|fatal) /);
  });

  /**
   * Faz cada tipo de pedido, todos ao mesmo tempo, e confere as recusas.
   */
  async function assert_refusals(): Promise<void> {
    const invited = raw_request('POST /convite', ['Expect: 100-continue', 'Content-Length: 2']);
    const talk = await open_talk(own_proxy, invited);
    const [ping, get, post, head, options, expect] = await Promise.all([
      fetch_all(own_proxy, { path: '/ping' }),
      fetch_all(own_proxy, { path: '/a' }),
      fetch_all(own_proxy, { path: '/a', body: 'x'.repeat(500_000) }),
      fetch_all(own_proxy, { path: '/a', method: 'HEAD' }),
      fetch_all(own_proxy, { path: '/a', method: 'OPTIONS' }),
      talk.reply(),
    ]);
    assert_error(ping, 500, down);
    assert_error(get, 504, down);
    assert_error(post, 504, down);
    assert.equal(head.status, 504);
    assert_identity(head);
    assert.equal(head.body, '');
    assert.equal(options.status, 204);
    assert_error(expect, 504, down);
    talk.send('oi');
    await talk.closed();
  }

  test('Redis parado (SIGSTOP): 500 e 504, e nada é criado quando ele volta', async () => {
    await freeze_redis(own_redis);
    try {
      await assert_refusals();
    } finally {
      own_redis.process.kill('SIGCONT');
    }
    assert.deepEqual(await own_desk.created(), []);
    assert.deepEqual(await own_desk.client.keys('*'), []);
    const stream = open_stream(own_proxy, { path: '/voltou' });
    await own_desk.finish(await own_desk.task('/voltou'), ['{"n":1}']);
    assert.deepEqual(await stream.rest(), ['{"n":1}']);
  });

  test('cliente que sai enquanto o Redis demora: nenhuma tarefa, nada preso', async () => {
    const before_it = await own_desk.created();
    const left_proxy = await start_proxy(own_redis, ['--grace', '1000']);
    await freeze_redis(own_redis);
    try {
      for (const body of ['', 'corpo']) {
        const talk = await open_talk(left_proxy, raw_request('POST /desistiu', [], body));
        talk.socket.end();
        await talk.closed();
      }
      // O proxy já viu os dois saírem quando atende quem chegou depois; OPTIONS não usa o Redis.
      assert.equal((await fetch_all(left_proxy, { method: 'OPTIONS' })).status, 204);
    } finally {
      own_redis.process.kill('SIGCONT');
    }
    for (let round = 0; round < 2; round += 1) {
      assert.equal((await fetch_all(left_proxy, { path: '/ping' })).body, 'pong');
    }
    assert.deepEqual(await own_desk.created(), before_it);
    assert.deepEqual(await own_desk.client.keys('*'), []);
    assert.equal(await left_proxy.stop(), 0);
    assert.match(left_proxy.stdout(), / stop signal=SIGTERM streams=0 /, 'um pedido ficou preso');
  });

  test('Redis que recusa escrever: 503 com o motivo, sem tarefa', async () => {
    const before_it = await own_desk.created();
    await own_desk.client.configSet('maxmemory', '1');
    try {
      const reply = await fetch_all(own_proxy, { path: '/cheio' });
      assert_error(reply, 503, 'redis is out of memory');
    } finally {
      await own_desk.client.configSet('maxmemory', '0');
    }
    assert.deepEqual(await own_desk.created(), before_it);
    assert.deepEqual(await own_desk.client.keys('*'), []);
  });

  test('Redis fora do ar: 500 e 504; quando volta, tudo funciona sem reiniciar', async () => {
    const { port, dir } = own_redis;
    await own_redis.stop();
    await own_proxy.wait_for(/ redis_down /);
    await assert_refusals();
    own_redis = await start_redis([], { port, dir });
    await own_proxy.wait_for(/ redis_up /);
    assert.equal((await fetch_all(own_proxy, { path: '/ping' })).body, 'pong');
    await until('worker de volta', async () => {
      const listeners = own_desk.client.isReady && (await own_desk.client.pubSubNumSub(channel));
      return listeners ? listeners[channel] : 0;
    });
    assert.deepEqual(await own_desk.client.keys('*'), []);
    const stream = open_stream(own_proxy, { path: '/de-novo' });
    await own_desk.finish(await own_desk.task('/de-novo'), ['{"n":1}']);
    assert.deepEqual(await stream.rest(), ['{"n":1}']);
  });
});
