/*
 * As respostas em bytes do kit (raw, sse) e o adaptador de fetch, contra o proxy e o Redis de
 * verdade. Um proxy e um worker bastam: cada teste põe a sua função num caminho só dele.
 */

import assert from 'node:assert/strict';
import { before, describe, test } from 'node:test';
import { on_stop } from '../scripts/dev/local';
import { type fetch_handler, serve_fetch } from '../scripts/worker/adapters';
import { type handler, raw, serve, sse } from '../scripts/worker/worker';
import {
  brisk,
  end_of,
  fetch_all,
  next_names,
  type proxy,
  type scene,
  see_tombstone,
  start_redis,
  start_scene,
  tests_at_once,
  until,
} from './harness';

/** A função de cada caminho, e as cenas: uma para o adaptador, outra para geradores. */
const routes = new Map<string, fetch_handler>();
const generators = new Map<string, handler>();
const log: string[] = [];
let fetch_scene: scene;
let kit_scene: scene;
let paths = 0;

const none: handler = async function* () {};

before(async () => {
  const redis = await start_redis();
  [fetch_scene, kit_scene] = await Promise.all([
    start_scene(redis, brisk),
    start_scene(redis, brisk),
  ]);
  const order = new AbortController();
  const options = {
    redis: redis.server,
    grace: 0,
    stop: order.signal,
    log: (text: string) => log.push(text),
  };
  const missing = () => new Response(null, { status: 404 });
  const find: fetch_handler = (request, task) =>
    (routes.get(new URL(request.url).pathname) ?? missing)(request, task);
  const generate: handler = (task, signal) =>
    generators.get(task.url)?.(task, signal) ?? none(task, signal);
  const done = [
    serve_fetch(find, { ...options, channel: fetch_scene.channel }),
    serve(generate, { ...options, channel: kit_scene.channel }),
  ];
  on_stop(async () => {
    order.abort();
    await Promise.all(done);
  });
  await until('os dois no canal', () => log.length === 2);
});

/**
 * Põe uma função num caminho novo.
 * @param answer a função
 * @returns o caminho
 */
function route(answer: fetch_handler): string {
  paths += 1;
  routes.set(`/${paths}`, answer);
  return `/${paths}`;
}

/**
 * Põe um gerador num caminho novo.
 * @param answer o gerador
 * @returns o caminho
 */
function generator(answer: handler): string {
  paths += 1;
  generators.set(`/${paths}`, answer);
  return `/${paths}`;
}

/**
 * Faz um pedido com o fetch do Node.
 * @param where o proxy
 * @param path caminho
 * @param init o resto do pedido
 * @returns a resposta, assim que a cabeça chega
 */
function ask(where: proxy, path: string, init: RequestInit = {}): Promise<Response> {
  return fetch(`http://127.0.0.1:${where.port}${path}`, init);
}

/**
 * Faz um corpo que o teste escreve aos poucos.
 * @returns o corpo, quem o escreve, e se foi cancelado
 */
function make_body() {
  let controller: ReadableStreamDefaultController<Uint8Array> | undefined;
  const state = { cancelled: false, pulls: 0 };
  const body = new ReadableStream<Uint8Array>({
    start: (given) => {
      controller = given;
    },
    cancel: () => {
      state.cancelled = true;
    },
  });
  const send = (text: string) => controller?.enqueue(Buffer.from(text));
  return {
    body,
    state,
    send,
    end: () => controller?.close(),
    fail: () => controller?.error(new Error('acabou')),
  };
}

describe('o adaptador de fetch', { concurrency: tests_at_once }, () => {
  test('a tarefa vira um Request inteiro, e a Response chega como é', async () => {
    const seen: unknown[] = [];
    const bytes = Buffer.from([0, 13, 10, 255, 254, 10]);
    const path = route(async (request, task) => {
      const body = Buffer.from(await request.arrayBuffer());
      const { method, url, headers } = request;
      seen.push([
        method,
        url,
        headers.get('x-a'),
        headers.get('cookie'),
        body,
        task.remote_address,
      ]);
      const given = new Headers({ 'Content-Type': 'image/x', ETag: '"1"' });
      given.append('Set-Cookie', 'a=1; Path=/');
      given.append('Set-Cookie', 'b=2');
      return new Response(body, { status: 201, headers: given });
    });
    const reply = await ask(fetch_scene.proxy, `${path}?q=%C3%A7`, {
      method: 'PUT',
      headers: { 'X-A': 'um, dois', Cookie: 'c=3' },
      body: bytes,
    });
    const url = `http://127.0.0.1:${fetch_scene.proxy.port}${path}?q=%C3%A7`;
    assert.deepEqual(seen, [['PUT', url, 'um, dois', 'c=3', bytes, '127.0.0.1']]);
    assert.equal(reply.status, 201);
    assert.equal(reply.headers.get('content-type'), 'image/x');
    assert.equal(reply.headers.get('etag'), '"1"');
    assert.deepEqual(reply.headers.getSetCookie(), ['a=1; Path=/', 'b=2']);
    assert.deepEqual(Buffer.from(await reply.arrayBuffer()), bytes);
  });

  test('cada pedaço sai antes que o próximo exista, sem nada em volta', async () => {
    const { body, send, end } = make_body();
    const reply = await ask(
      fetch_scene.proxy,
      route(() => new Response(body)),
    );
    const reader = reply.body?.getReader();
    for (const text of ['data: 1\n\n', ' {"a":', 'HTTP ABORT', 'EOF', '\r\n']) {
      send(text);
      assert.equal(Buffer.from((await reader?.read())?.value ?? []).toString(), text);
    }
    end();
    assert.equal((await reader?.read())?.done, true);
  });

  test('204 e 304 não têm corpo', async () => {
    for (const status of [204, 304]) {
      const path = route(() => new Response(null, { status, headers: { ETag: '"2"' } }));
      const reply = await fetch_all(fetch_scene.proxy, { path });
      assert.deepEqual([reply.status, reply.headers.etag, reply.body], [status, '"2"', '']);
    }
  });

  test('uma exceção antes do primeiro byte é um 500; um pedido impossível, um 400', async () => {
    const broken = () =>
      new ReadableStream({ start: (stream) => stream.error(new Error('segredo')) });
    const answers: fetch_handler[] = [
      () => {
        throw new Error('segredo');
      },
      () => Promise.reject(new Error('segredo')),
      () => new Response(broken()),
      () => Response.error(),
      () => undefined as never,
    ];
    for (const answer of answers) {
      const reply = await fetch_all(fetch_scene.proxy, { path: route(answer) });
      assert.equal(reply.status, 500, `${answer} ${reply.body}`);
      assert.equal(reply.headers['content-type'], 'application/json');
      assert.equal(reply.body, '{"error":"internal server error"}');
    }
    assert.ok(log.some((text) => /falhou: Error: segredo\n +at /.test(text)));
    const headers = { Host: 'a b' };
    const { status, body } = await fetch_all(fetch_scene.proxy, {
      path: route(answers[0] as never),
      headers,
    });
    assert.deepEqual([status, body], [400, '{"error":"bad request"}']);
  });

  test('uma exceção no meio do corpo corta a conexão', async () => {
    const { body, send, fail } = make_body();
    const reply = await ask(
      fetch_scene.proxy,
      route(() => new Response(body)),
    );
    const reader = reply.body?.getReader();
    send('metade');
    await reader?.read();
    fail();
    await assert.rejects(reader?.read() ?? Promise.resolve(), /terminated/);
  });

  test('o cliente sai: request.signal aborta, e o corpo parado é cancelado', async () => {
    const { body, send, state } = make_body();
    let heard: AbortSignal | undefined;
    const path = route(({ signal }) => {
      heard = signal;
      return new Response(body);
    });
    const leaving = new AbortController();
    const reply = await ask(fetch_scene.proxy, path, { signal: leaving.signal });
    send('x');
    await reply.body?.getReader().read();
    assert.deepEqual([heard?.aborted, state.cancelled], [false, false]);
    leaving.abort();
    await until('signal e cancel', () => heard?.aborted && state.cancelled);
  });

  test('no fim normal request.signal não aborta', async () => {
    let heard: AbortSignal | undefined;
    const path = route(({ signal }) => {
      heard = signal;
      return new Response('ok');
    });
    assert.equal((await fetch_all(fetch_scene.proxy, { path })).body, 'ok');
    await until('fim no log', () => log.some((text) => text.endsWith('terminou')));
    assert.equal(heard?.aborted, false);
  });

  test('um cliente que não lê segura quem escreve', async () => {
    const chunk = Buffer.alloc(256 * 1024, 'x');
    let [made, cancelled] = [0, false];
    const body = new ReadableStream({
      pull: (stream) => {
        made += 1;
        stream.enqueue(chunk);
      },
      cancel: () => {
        cancelled = true;
      },
    });
    const leaving = new AbortController();
    await ask(
      fetch_scene.proxy,
      route(() => new Response(body)),
      { signal: leaving.signal },
    );
    let before_pause = -1;
    await until(
      'ninguém mais escreve',
      async () => {
        const is_still = made === before_pause;
        before_pause = made;
        await new Promise((resolve) => setTimeout(resolve, 300));
        return is_still && made > 0;
      },
      60_000,
    );
    assert.ok(made * chunk.length < 64 * 1024 * 1024, `${made} pedaços`);
    leaving.abort();
    await until('cancel', () => cancelled);
  });
});

describe('raw() e sse()', { concurrency: tests_at_once }, () => {
  test('textos e bytes vão como são, o resto em JSON, e a palavra de corte não corta', async () => {
    const path = generator(async function* () {
      yield raw(418, { 'Content-Type': 'text/plain', 'X-Two': ['a', 'b'] });
      yield* ['', ' a\r\n', new Uint8Array([0, 255]), { n: 1 }, 'HTTP ABORT'];
      yield Buffer.from('HTTP ABORT');
    });
    const reply = await ask(kit_scene.proxy, path);
    assert.deepEqual([reply.status, reply.headers.get('x-two')], [418, 'a, b']);
    const expected = Buffer.concat([
      Buffer.from(' a\r\n'),
      Buffer.from([0, 255]),
      Buffer.from('{"n":1}HTTP ABORTHTTP ABORT'),
    ]);
    assert.deepEqual(Buffer.from(await reply.arrayBuffer()), expected);
  });

  test('bytes também são linhas', async () => {
    const path = generator(async function* () {
      yield new TextEncoder().encode('{"ç":1}');
    });
    assert.equal((await fetch_all(kit_scene.proxy, { path })).body, '{"ç":1}\n');
  });

  test('uma exceção corta a conexão, e não deixa nada no Redis', async () => {
    const path = generator(async function* () {
      yield raw(200);
      yield 'metade';
      throw new Error('acabou');
    });
    const reply = ask(kit_scene.proxy, path).then((found) => found.text());
    await assert.rejects(reply, /terminated/);
    const task = await next_names(kit_scene);
    await end_of(kit_scene.proxy, task);
    await until('limpeza', async () => !(await kit_scene.db.exists(task.task_key)));
    const left = await kit_scene.db.keys(`*${task.uuid}`);
    if (left.length > 0) await see_tombstone(kit_scene.db, task);
  });

  test('um evento de qualquer forma', () => {
    const table: [Parameters<typeof sse>, string][] = [
      [['olá'], 'data: olá\n\n'],
      [[''], 'data: \n\n'],
      [['a\nb\r\nc\rd'], 'data: a\ndata: b\ndata: c\ndata: d\n\n'],
      [[{ a: 'x\n' }, { event: 'token', id: 7 }], 'event: token\nid: 7\ndata: {"a":"x\\n"}\n\n'],
      [[null, { retry: 100 }], 'retry: 100\ndata: null\n\n'],
    ];
    for (const [given, text] of table) assert.equal(sse(...given), text);
    assert.throws(() => sse('x', { event: 'a\ndata: b' }), /line break in event/);
    assert.throws(() => sse('x', { id: 'a\r' }), /line break in id/);
    assert.throws(() => sse(undefined), TypeError);
  });
});
