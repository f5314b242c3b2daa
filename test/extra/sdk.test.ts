/*
 * Clientes de verdade diante dos exemplos de worker: os SDKs da OpenAI, da Anthropic e da Vercel, o
 * LangChain, o MCP, dois EventSource, e o modo como o Open WebUI pergunta. E as aplicações de Hono
 * e GraphQL Yoga atendidas pelo adaptador. Um proxy e um worker bastam a todos.
 */

import assert from 'node:assert/strict';
import { readFileSync as read_file } from 'node:fs';
import path from 'node:path';
import { before, describe, test } from 'node:test';
import { on_stop } from '../../scripts/dev/local';
import { type fetch_handler, serve_fetch, stream_response } from '../../scripts/worker/adapters';
import { ai_ui_api } from '../../scripts/worker/examples/ai-ui';
import { anthropic_api } from '../../scripts/worker/examples/anthropic';
import { csv_response, read_orders } from '../../scripts/worker/examples/csv';
import type { model } from '../../scripts/worker/examples/model';
import { openai_api } from '../../scripts/worker/examples/openai';
import { sse } from '../../scripts/worker/worker';
import {
  brisk,
  fetch_all,
  type local_redis,
  type proxy,
  start_program,
  start_redis,
  start_scene,
  until,
} from '../harness';
import {
  check_client,
  load_client,
  load_example,
  reach_clients,
  type read_client,
  words,
} from './sdk_helpers';

const has_clients = reach_clients();
const skip = has_clients ? false : 'sem os clientes: sh scripts/dev/setup.sh clients';

/** Quem atende agora: cada cliente é conferido por vez. */
let serving: fetch_handler = () => new Response(null, { status: 404 });
let front: proxy;
let redis: local_redis;

const root = path.join(__dirname, '../..');

before(async () => {
  redis = await start_redis();
  const scene = await start_scene(redis, brisk);
  front = scene.proxy;
  const order = new AbortController();
  const log: string[] = [];
  const done = serve_fetch((request, task) => serving(request, task), {
    ...{ redis: redis.server, channel: scene.channel, grace: 0, stop: order.signal },
    log: (text) => log.push(text),
  });
  on_stop(() => {
    order.abort();
    return done;
  });
  await until('worker no canal', () => log.length > 0);
});

/**
 * Diz a check_client como conferir um cliente de uma API.
 * @param api a API, dado o modelo
 * @param read o cliente
 */
function over(api: (answer: model) => fetch_handler, read: read_client) {
  return check_client((answer) => {
    serving = api(answer);
    return read;
  });
}

/** Os fluxos que os clientes de eventos leem: uma palavra por evento. */
const event_api =
  (frame: (word: string) => string, last = ''): ((answer: model) => fetch_handler) =>
  (answer) =>
  (request) => {
    const events = async function* () {
      for await (const word of answer('', request.signal)) yield frame(word);
      yield last;
    };
    return stream_response(events());
  };

/**
 * Faz de avisos um gerador.
 * @param start começa a ouvir: dados, fim ou erro
 * @returns os dados, um a um
 * @throws o erro
 */
async function* from_events(
  start: (on: {
    data: (text: string) => void;
    end: () => void;
    fail: (why: Error) => void;
  }) => void,
): AsyncGenerator<string> {
  const waiting: string[] = [];
  const state = { ended: false, error: undefined as Error | undefined };
  start({
    data: (text) => waiting.push(text),
    end: () => {
      state.ended = true;
    },
    fail: (why) => {
      state.error = why;
    },
  });
  for (;;) {
    await until('evento', () => waiting.length > 0 || state.ended || state.error, 60_000);
    const next = waiting.shift();
    if (next !== undefined) yield next;
    else if (state.error) throw state.error;
    else return;
  }
}

describe('clientes de verdade', { skip }, () => {
  test('openai: chat completions e responses, aos poucos e de uma vez, e os erros', async () => {
    const openai = load_client('openai').default;
    const client = new openai({ apiKey: 'x', baseURL: `${front.url}/v1`, maxRetries: 0 });
    const messages = [{ role: 'user', content: 'olá' }];
    await over(openai_api, async function* (signal) {
      const asked = { model: 'm', messages, stream: true };
      const chunks = await client.chat.completions.create(asked, { signal });
      for await (const chunk of chunks) yield chunk.choices[0].delta.content ?? '';
    });
    await over(openai_api, async function* (signal) {
      const events = await client.responses.create(
        { model: 'm', input: 'olá', stream: true },
        { signal },
      );
      for await (const event of events) {
        if (event.type === 'response.output_text.delta') yield event.delta;
      }
    });
    const answer: model = async function* (prompt) {
      yield* ['eco: ', prompt];
    };
    serving = openai_api(answer);
    const whole = await client.chat.completions.create({ model: 'm', messages });
    assert.equal(whole.choices[0].message.content, 'eco: olá');
    const response = await client.responses.create({ model: 'm', input: messages });
    assert.equal(response.output_text, 'eco: olá');
    assert.deepEqual(
      (await client.models.list()).data.map(({ id }: { id: string }) => id),
      ['echo'],
    );
    await assert.rejects(client.chat.completions.create({ model: 'm', messages: [] }), {
      status: 400,
      message: /messages or input/,
    });
    await assert.rejects(client.embeddings.create({ model: 'm', input: 'x' }), { status: 404 });
    const stream = client.responses.stream({ model: 'm', input: 'olá' });
    assert.equal((await stream.finalResponse()).output_text, 'eco: olá');
  });

  test('Open WebUI: GET /v1/models, e o fluxo lido por linhas em branco', async () => {
    await over(openai_api, async function* (signal) {
      const models = await (await fetch(`${front.url}/v1/models`)).json();
      const [{ id }] = (models as { data: { id: string }[] }).data as [{ id: string }];
      const reply = await fetch(`${front.url}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'Content-Type': 'application/json', Authorization: 'Bearer x' },
        body: JSON.stringify({
          model: id,
          stream: true,
          stream_options: { include_usage: true },
          messages: [{ role: 'user', content: [{ type: 'text', text: 'olá' }] }],
        }),
        signal,
      });
      assert.match(reply.headers.get('content-type') ?? '', /^text\/event-stream/);
      let [rest, done] = ['', false];
      for await (const chunk of reply.body ?? []) {
        const events = (rest + Buffer.from(chunk).toString()).split('\n\n');
        rest = events.pop() ?? '';
        for (const event of events) {
          const data = event.replace(/^data: /, '');
          done ||= data === '[DONE]';
          if (!done) yield JSON.parse(data).choices[0].delta.content ?? '';
        }
      }
      assert.deepEqual([rest, done], ['', true]);
    });
  });

  test('ai com @ai-sdk/openai-compatible', async () => {
    const { streamText } = load_client('ai');
    const { createOpenAICompatible } = load_client('@ai-sdk/openai-compatible');
    const provider = createOpenAICompatible({ name: 'proxy', baseURL: `${front.url}/v1` });
    await over(openai_api, async function* (abort_signal) {
      const options = { maxRetries: 0, onError: () => {}, abortSignal: abort_signal };
      const { fullStream } = streamText({ model: provider('m'), prompt: 'olá', ...options });
      for await (const part of fullStream) {
        if (part.type === 'text-delta') yield part.text;
        if (part.type === 'error') throw part.error;
      }
    });
  });

  test('useChat da Vercel, pelo transporte dele', async () => {
    const { DefaultChatTransport } = load_client('ai');
    await over(ai_ui_api, async function* (abort_signal) {
      const transport = new DefaultChatTransport({ api: `${front.url}/api/chat` });
      const chunks = await transport.sendMessages({
        ...{ trigger: 'submit-message', chatId: 'c', abortSignal: abort_signal },
        messages: [{ id: '1', role: 'user', parts: [{ type: 'text', text: 'olá' }] }],
      });
      for await (const chunk of chunks) if (chunk.type === 'text-delta') yield chunk.delta;
    });
  });

  test('@langchain/openai, e RemoteRunnable do LangChain', async () => {
    const { ChatOpenAI } = load_client('@langchain/openai');
    await over(openai_api, async function* (signal) {
      const configuration = { baseURL: `${front.url}/v1` };
      const options = { model: 'm', apiKey: 'x', maxRetries: 0, configuration };
      for await (const { content } of await new ChatOpenAI(options).stream('olá', { signal })) {
        yield content;
      }
    });
    const { RemoteRunnable } = load_client('langchain-core-0.3/runnables/remote');
    const frame = (word: string) => sse(JSON.stringify(word), { event: 'data' });
    await over(event_api(frame, sse('', { event: 'end' })), async function* (signal) {
      const remote = new RemoteRunnable({ url: front.url, options: { timeout: 60_000 } });
      for await (const word of await remote.stream('olá', { signal })) {
        yield word;
        if (signal.aborted) return;
      }
    });
  });

  test('@anthropic-ai/sdk: messages, aos poucos e de uma vez, e os erros', async () => {
    const anthropic = load_client('@anthropic-ai/sdk').default;
    const client = new anthropic({ apiKey: 'x', baseURL: front.url, maxRetries: 0 });
    const asked = { model: 'm', max_tokens: 9, messages: [{ role: 'user', content: 'olá' }] };
    await over(anthropic_api, async function* (signal) {
      for await (const event of await client.messages.create(
        { ...asked, stream: true },
        { signal },
      )) {
        if (event.type === 'content_block_delta') yield event.delta.text;
      }
    });
    serving = anthropic_api(async function* (prompt) {
      yield* ['eco: ', prompt];
    });
    assert.equal((await client.messages.create(asked)).content[0].text, 'eco: olá');
    assert.equal(await client.messages.stream(asked).finalText(), 'eco: olá');
    const refused = client.messages.create({ ...asked, messages: [] });
    await assert.rejects(refused, { status: 400, message: /a list is required/ });
  });

  test('@modelcontextprotocol/sdk: a ferramenta avisa a cada passo', async () => {
    const { Client } = load_client('@modelcontextprotocol/sdk/client/index.js');
    const { StreamableHTTPClientTransport } = load_client(
      '@modelcontextprotocol/sdk/client/streamableHttp.js',
    );
    const { mcp_api } = load_example('mcp');
    const api = (answer: model): fetch_handler => {
      let words_left: AsyncIterator<string> | undefined;
      return mcp_api(async (n: number, signal: AbortSignal) => {
        if (n === 1) words_left = answer('', signal)[Symbol.asyncIterator]();
        await words_left?.next();
      });
    };
    await over(api, (signal) =>
      from_events(async ({ data, end, fail }) => {
        const client = new Client({ name: 't', version: '1' });
        const retries = { initialReconnectionDelay: 1, maxReconnectionDelay: 1, maxRetries: 0 };
        const reconnection_options = { ...retries, reconnectionDelayGrowFactor: 1 };
        const url = new URL(`${front.url}/mcp`);
        const transport = new StreamableHTTPClientTransport(url, {
          reconnectionOptions: reconnection_options,
        });
        await client.connect(transport);
        const options = {
          onprogress: ({ progress }: { progress: number }) => data(words[progress - 1] ?? ''),
          timeout: 5000,
        };
        signal.addEventListener('abort', () => client.close());
        const asked = { name: 'count', arguments: { to: words.length + 1 } };
        const called = client.callTool(asked, undefined, options);
        // o SDK faz da exceção de uma ferramenta um resultado que diz ser um erro
        await called.then((result: Record<string, unknown>) => {
          if (result.isError) fail(new Error('isError'));
          else end();
        }, fail);
      }),
    );
  });

  test('eventsource, e @microsoft/fetch-event-source', async () => {
    const frame = (word: string) => sse(word);
    const api = event_api(frame, sse('', { event: 'end' }));
    const { EventSource } = load_client('eventsource');
    await over(api, (signal) =>
      from_events(({ data, end, fail }) => {
        const source = new EventSource(front.url);
        const close = (after: () => void) => {
          source.close();
          after();
        };
        signal.addEventListener('abort', () => close(end));
        source.onmessage = (event: { data: string }) => data(event.data);
        source.addEventListener('end', () => close(end));
        source.onerror = () => close(() => fail(new Error('erro')));
      }),
    );
    // ele só conhece navegadores
    const document = { addEventListener: () => {}, removeEventListener: () => {} };
    Object.assign(globalThis, { window: globalThis, document });
    const { fetchEventSource } = load_client('@microsoft/fetch-event-source');
    await over(api, (signal) =>
      from_events(({ data, end, fail }) => {
        const read = fetchEventSource(front.url, {
          signal,
          openWhenHidden: true,
          fetch,
          onmessage: ({ event, data: text }: { event: string; data: string }) => {
            if (event !== 'end') data(text);
          },
          onerror: (error: Error) => {
            throw error;
          },
        });
        read.then(end, fail);
      }),
    );
  });

  test('um download em CSV: cada linha na hora, e uma falha não é um arquivo cortado', async () => {
    const api =
      (answer: model): fetch_handler =>
      (request) => {
        const rows = async function* () {
          for await (const word of answer('', request.signal)) yield [1, word, '"'];
        };
        return csv_response(rows());
      };
    await over(api, async function* (signal) {
      const reply = await fetch(front.url, { signal });
      assert.match(reply.headers.get('content-disposition') ?? '', /filename="orders.csv"/);
      for await (const chunk of reply.body ?? []) {
        const text = Buffer.from(chunk).toString().replace('id,customer,total\r\n', '');
        if (text) yield /^1,(.*),""""\r\n$/.exec(text)?.[1] ?? text;
      }
    });
    serving = () => csv_response(read_orders(2));
    const { body } = await fetch_all(front);
    assert.equal(body.split('\r\n')[1], '1,"Customer ""1"", Inc.",1.25');
  });
});

describe('os exemplos, pelas linhas do manual', { skip }, () => {
  const manual = read_file(path.join(root, 'MANUAL.md'), 'utf8');
  const lines = [...manual.matchAll(/`((?:npx tsx|python3) scripts\/worker\/examples\/\S+)`/g)];
  const body = JSON.stringify({ messages: [{ role: 'user', content: 'olá' }] });
  const call = { jsonrpc: '2.0', id: 1, method: 'tools/list', params: {} };
  const json = { 'Content-Type': 'application/json' };
  const both = { ...json, Accept: 'application/json, text/event-stream' };
  const asked: Record<string, [object, RegExp]> = {
    'openai.ts': [{ path: '/v1/chat/completions', body, headers: json }, /You said: olá/],
    'ai-ui.ts': [{ path: '/api/chat', body, headers: json }, /"delta":"olá"/],
    'anthropic.ts': [{ path: '/v1/messages', body, headers: json }, /You said: olá/],
    'mcp.ts': [{ path: '/mcp', body: JSON.stringify(call), headers: both }, /"name":"count"/],
    'csv.ts': [{ path: '/orders.csv?rows=3' }, /^id,customer,total\r\n1,(.*\r\n){3}$/],
    'app.py': [{ path: '/count/3' }, /^1\n2\n3\n$/],
  };
  for (const [, line = ''] of lines) {
    test(line, async () => {
      const scene = await start_scene(redis, brisk);
      const env = { REDIS_SERVER: redis.server, REDIS_CHANNEL: scene.channel };
      const [command = '', ...args] = line.replace('npx tsx', 'node --import tsx').split(' ');
      const python = '/usr/bin/python3';
      const worker = start_program(command === 'node' ? command : python, args, env, root);
      await worker.wait_for(/ouvindo/);
      const [request, expected] = asked[path.basename(line)] ?? [{}, /^$/];
      assert.match((await fetch_all(scene.proxy, request)).body, expected);
      assert.equal(await worker.stop(), 0);
      assert.equal(worker.stderr(), '');
    });
  }

  test('são todos os que há', () => {
    assert.deepEqual(
      lines.map(([, line = '']) => path.basename(line)),
      Object.keys(asked),
    );
  });

  test('openai.ts passa os pedidos a um modelo de verdade, aos poucos', async () => {
    const openai = load_client('openai').default;
    const scene = await start_scene(redis, brisk);
    const { url } = scene.proxy;
    const env = { REDIS_SERVER: redis.server, REDIS_CHANNEL: scene.channel };
    const real = { OPENAI_BASE_URL: `${front.url}/v1`, OPENAI_API_KEY: 'certa' };
    const args = ['--import', 'tsx', 'scripts/worker/examples/openai.ts'];
    const worker = start_program(process.execPath, args, { ...env, ...real }, root);
    await worker.wait_for(/ouvindo/);
    const api = (answer: model): fetch_handler => {
      const inner = openai_api(answer);
      return (request, task) => {
        assert.equal(request.headers.get('authorization'), 'Bearer certa');
        return inner(request, task);
      };
    };
    const client = new openai({ apiKey: 'x', baseURL: `${url}/v1`, maxRetries: 0 });
    await over(api, async function* (signal) {
      const messages = [{ role: 'user', content: 'olá' }];
      const chat = { model: 'm', messages, stream: true };
      for await (const chunk of await client.chat.completions.create(chat, { signal })) {
        yield chunk.choices[0].delta.content ?? '';
      }
    });
    await assert.rejects(client.embeddings.create({ model: 'm', input: 'x' }), { status: 404 });
  });
});

describe('aplicações no adaptador de fetch', { skip }, () => {
  test('Hono', async () => {
    const { Hono } = load_client('hono');
    const { streamText } = load_client('hono/streaming');
    const app = new Hono();
    app.get(
      '/hello/:name',
      (c: { req: { param: (name: string) => string } } & Record<string, never>) =>
        (c as unknown as { json: (v: object) => Response }).json({ hello: c.req.param('name') }),
    );
    const api = (answer: model): fetch_handler => {
      const streaming = new Hono();
      // biome-ignore lint/suspicious/noExplicitAny: os tipos dele não estão no projeto
      streaming.get('/', (c: any) =>
        streamText(c, async (stream: { write: (text: string) => Promise<void> }) => {
          for await (const word of answer('', c.req.raw.signal)) await stream.write(word);
        }),
      );
      return streaming.fetch;
    };
    serving = app.fetch;
    assert.deepEqual((await fetch_all(front, { path: '/hello/ana' })).body, '{"hello":"ana"}');
    assert.equal((await fetch_all(front, { path: '/nada' })).status, 404);
    const shown: string[] = [];
    serving = api(async function* () {
      yield* words;
    });
    for await (const chunk of (await fetch(front.url)).body ?? []) {
      shown.push(Buffer.from(chunk).toString());
    }
    assert.equal(shown.join(''), words.join(''));
  });

  test('GraphQL Yoga: uma consulta, e uma assinatura por eventos', async () => {
    const { createYoga, createSchema } = load_client('graphql-yoga');
    const api = (answer: model): fetch_handler => {
      const count = {
        subscribe: (_: unknown, __: unknown, context: { request: Request }) =>
          answer('', context.request.signal),
        resolve: (word: string) => word,
      };
      const resolvers = { Query: { hello: () => 'world' }, Subscription: { count } };
      const type_defs = 'type Query { hello: String } type Subscription { count: String }';
      const yoga = createYoga({
        schema: createSchema({ typeDefs: type_defs, resolvers }),
        logging: false,
      });
      return (request) => yoga.fetch(request);
    };
    serving = api(async function* () {
      yield* words;
    });
    const ask = (query: string, accept: string) =>
      fetch(`${front.url}/graphql`, {
        method: 'POST',
        headers: { 'Content-Type': 'application/json', Accept: accept },
        body: JSON.stringify({ query }),
      });
    const reply = await ask('{ hello }', 'application/json');
    assert.deepEqual(await reply.json(), { data: { hello: 'world' } });
    const events = await (await ask('subscription { count }', 'text/event-stream')).text();
    const shown = [...events.matchAll(/"count":"(.*?)"/g)].map(([, word]) => word);
    assert.deepEqual(shown, words);
  });
});
