/*
 * Os nós de scripts/n8n/nodes num n8n de verdade, instalados como o n8n os instala: cada operação
 * do JSON Proxy Line, cada fim que uma execução pode ter, e quem fica com que tarefa. Sem o n8n
 * instalado (npm run test:n8n) estes testes são pulados.
 *
 *   SCREENSHOTS=1 npm run test:n8n     refaz as imagens do manual
 */

import assert from 'node:assert/strict';
import { writeFileSync as write_file } from 'node:fs';
import http from 'node:http';
import { text as read_text } from 'node:stream/consumers';
import { before, describe } from 'node:test';
import { outside_scope } from '../../scripts/dev/local';
import { serve } from '../../scripts/worker/worker';
import {
  brisk,
  connect_redis,
  delay,
  end_of,
  fetch_all,
  type local_redis,
  on_stop,
  open_stream,
  type proxy,
  type redis_client,
  start_proxy,
  start_redis,
  test,
  until,
} from '../harness';
import { create_user, denied_objects } from '../readme_helpers';
import { type page, skip_browser } from './browser';
import { make_part } from './chat_format';
import {
  chain,
  give,
  line,
  make_workflow,
  redis_credential,
  request,
  split,
  start_gates,
  type step,
  trigger,
} from './n8n_flows';
import {
  type n8n_guest,
  open_editor,
  open_session,
  run_limit_ms,
  see_clean_end,
  skip_n8n as skip,
  start_n8n,
  task_of,
} from './n8n_guest';
import { node_named, read_workflow, type workflow } from './n8n_helpers';

let redis: local_redis;
let db: redis_client;
let gates: Awaited<ReturnType<typeof start_gates>>;
let guest: n8n_guest;
let ask_n8n: Awaited<ReturnType<typeof open_session>>;
const proxies = new Map<string, proxy>();

/** Dá o portão `name` como um passo. */
function gate(name: string): step {
  return { ...request(`Gate ${name}`, gates.url(name)), executeOnce: true };
}

/** Dá dois passos que fazem `count` itens, a partir do que tem o número `from`. */
function numbers(from: number, count: number): step[] {
  const list = `={{ { list: Array.from({ length: ${count} }, (_, n) => ({ n: n + ${from} })) } }}`;
  return [give(`From ${from}`, list), split(`Each from ${from}`, 'list')];
}

const json = (value: string) => ({ content: 'json', json: value });
const text = (value: string) => ({ content: 'text', text: value });

/** Dá os passos de um workflow parado, entre duas linhas, no portão que o corpo do pedido diz. */
function held(start: step): step[] {
  const url = gates.url('{{ $("Trigger").first().json.body }}');
  return [
    start,
    line('Line', json('={"step":1}')),
    request('Gate', `=${url}`),
    line('Last', json('={"step":2}')),
  ];
}

/** Dá o workflow `name` que o projeto oferece, no canal `channel`. */
function offered(name: string, channel: string): workflow {
  const copy = { ...read_workflow(name), id: channel.padEnd(16, '0') };
  copy.name = copy.id;
  node_named(copy, 'JSON Proxy Trigger').parameters.channel = channel;
  return copy;
}

/** Deixa o modelo do agente responder, depois de ter usado a ferramenta. */
let allow_answer = () => {};

/** Dá o endereço de um modelo que fala como o Ollama: usa a ferramenta, espera, e responde. */
async function start_model(): Promise<string> {
  const allowed = new Promise<void>((resolve) => {
    allow_answer = resolve;
  });
  const server = http.createServer(async (incoming, response) => {
    const asked = await read_text(incoming);
    const call = { name: 'tell_the_client', arguments: { step: 'olho o mapa' } };
    if (asked.includes('"role":"tool"')) {
      await allowed;
      for (const content of ['Rio ', 'Branco'])
        response.write(`${JSON.stringify(make_part({ content }))}\n`);
    } else response.write(`${JSON.stringify(make_part({ tool_calls: [{ function: call }] }))}\n`);
    response.end(`${JSON.stringify(make_part({}, true))}\n`);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  on_stop(async () => server.close());
  return `http://127.0.0.1:${(server.address() as { port: number }).port}`;
}

/** Os workflows de cada canal. */
const flows: Record<string, () => workflow[]> = {
  echo: () => [make_workflow('echo', [trigger('echo'), line('Line')])],
  many: () => [
    make_workflow('many', [
      trigger('many'),
      ...numbers(0, 100),
      line('First'),
      gate('many'),
      ...numbers(100, 100),
      line('Second'),
    ]),
  ],
  crowd: () => [
    make_workflow('crowd', [
      trigger('crowd'),
      gate('crowd'),
      line('Line', json('={{ { you_sent: $("Trigger").item.json.body } }}')),
    ]),
  ],
  head: () => {
    const entries = [
      { name: 'X-Reason', value: 'no such order' },
      { name: 'Set-Cookie', value: 'a=1' },
      { name: 'Set-Cookie', value: 'b=2' },
    ];
    const parameters = { operation: 'head', statusCode: 404, headers: { entries } };
    return [
      make_workflow('head', [
        trigger('head'),
        line('Head', parameters),
        line('Line', json('={"found":false}')),
      ]),
    ];
  },
  page: () => {
    const entries = [{ name: 'Content-Type', value: 'text/html' }];
    return [
      make_workflow('page', [
        trigger('page'),
        line('Head', { operation: 'head', framing: 'raw', headers: { entries } }),
        line('Chunk', { operation: 'chunk', chunkText: '<p>olá' }),
        line('Cut', { operation: 'chunk', chunkText: 'HTTP ABORT' }),
        line('Line', text('linha')),
      ]),
    ];
  },
  file: () => {
    const parameters = { operation: 'chunk', source: 'binary' };
    return [make_workflow('file', [trigger('file'), line('Chunk', parameters)])];
  },
  events: () => {
    const fields = { eventFields: { event: 'token', id: '7' } };
    return [
      make_workflow('events', [
        trigger('events'),
        line('Event', { operation: 'event', ...text('a\nb'), ...fields }),
        line('Plain', { operation: 'event', ...json('={{ { n: 1 } }}') }),
      ]),
    ];
  },
  words: () => [
    make_workflow('words', [
      trigger('words'),
      line('Head', text('HTTP 404')),
      line('End', text(' EOF ')),
      line('Empty', text('')),
      line('Text', text('só texto')),
    ]),
  ],
  check: () => [
    make_workflow(
      'check',
      [
        trigger('check'),
        line('Line', json('={"step":1}')),
        gate('check'),
        line('Check', { operation: 'check' }),
        line('There', json('={"there":true}')),
        request('Gone', gates.url('gone')),
      ],
      [
        ['Trigger', 0, 'Line'],
        ['Line', 0, 'Gate check'],
        ['Gate check', 0, 'Check'],
        ['Check', 0, 'There'],
        ['Check', 1, 'Gone'],
      ],
    ),
  ],
  end: () => [
    make_workflow('end', [
      trigger('end'),
      line('Line', json('={"last":true}')),
      line('End', { operation: 'end' }),
      line('Late', json('={"late":true}')),
      gate('end'),
    ]),
  ],
  failed: () => {
    const parameters = { operation: 'end', outcome: 'failed', error: 'no such order' };
    return [make_workflow('failed', [trigger('failed'), line('End', parameters)])];
  },
  nothing: () => [make_workflow('nothing', [trigger('nothing')])],
  broken: () => [
    make_workflow('broken', [
      trigger('broken'),
      line('Line', json('={"step":1}')),
      request('Broken', 'http://127.0.0.1:1/'),
    ]),
  ],
  hidden: () => [
    make_workflow('hidden', [
      trigger('hidden', { options: { errorText: 'try again later' } }),
      request('Broken', 'http://127.0.0.1:1/'),
    ]),
  ],
  torn: () => [
    make_workflow('torn', [
      trigger('torn'),
      line('Chunk', { operation: 'chunk', chunkText: 'half' }),
      gate('torn'),
      request('Broken', 'http://127.0.0.1:1/'),
    ]),
  ],
  mixed: () => [
    make_workflow('mixed', [
      trigger('mixed'),
      line('Line', json('={"step":1}')),
      line('Chunk', { operation: 'chunk', chunkText: 'half' }),
    ]),
  ],
  slow: () => {
    const steps = [trigger('slow'), gate('slow')];
    return [make_workflow('slow', steps, undefined, { executionTimeout: 2 })];
  },
  stopped: () => [make_workflow('stopped', [trigger('stopped'), gate('stopped')])],
  sleeping: () => {
    const parameters = { amount: 1, unit: 'hours' };
    const wait: step = { name: 'Wait', type: 'n8n-nodes-base.wait', parameters };
    wait.typeVersion = 1.1;
    const steps = [trigger('sleeping'), line('Line', json('={"step":1}')), wait];
    return [make_workflow('sleeping', steps)];
  },
  shared: () => [
    make_workflow('orders', [
      trigger('shared', { path: '/orders/:id', methods: ['GET'] }),
      line('Line', json('={{ { order: $json.params.id } }}')),
    ]),
    make_workflow('files', [
      trigger('shared', { path: '/files/*' }),
      line('Line', json('={{ { file: $json.path } }}')),
    ]),
  ],
  lines: () => [offered('stream-lines', 'lines')],
  agent: () => [offered('stream-steps', 'agent')],
  manual: () => [make_workflow('manual', [trigger('manual'), line('Line')])],
  wrong: () => {
    const credentials = { redis: { id: 'redis00000000000', name: 'database 0' } };
    return [make_workflow('wrong', [{ ...trigger('wrong'), credentials }])];
  },
  held: () => [make_workflow('held', held(trigger('held')))],
  queue: () => {
    const options = { stream: 'ndjson_tasks' };
    return [make_workflow('queue', held(trigger('queue', { options })))];
  },
  latency: () => {
    const push: step = {
      ...{ name: 'Push', type: 'n8n-nodes-base.redis', credentials: redis_credential },
      parameters: {
        operation: 'push',
        list: '={{ $("Trigger").first().json.task.list }}',
        messageData: '={{ JSON.stringify($json) }}',
        tail: true,
      },
    };
    const loop: step = { name: 'Loop', type: 'n8n-nodes-base.splitInBatches', typeVersion: 3 };
    const stamp = (by: string) => give(`Stamp ${by}`, `={{ { by: "${by}", at: Date.now() } }}`);
    const turns = [stamp('line'), line('Line'), stamp('push'), push];
    const steps = [trigger('latency'), ...numbers(0, 30), loop];
    const links = [...chain(steps), ...chain(turns)];
    links.push(['Loop', 1, 'Stamp line'], ['Push', 0, 'Loop']);
    return [make_workflow('latency', [...steps, ...turns], links)];
  },
  called: () => [
    make_workflow('called', [
      trigger('called'),
      {
        name: 'Call',
        type: 'n8n-nodes-base.executeWorkflow',
        typeVersion: 1.2,
        parameters: {
          workflowId: { __rl: true, mode: 'id', value: 'callee'.padEnd(16, '0') },
          workflowInputs: { mappingMode: 'defineBelow', value: {}, schema: [] },
          options: {},
        },
      },
    ]),
    make_workflow('callee', [
      {
        name: 'Called',
        type: 'n8n-nodes-base.executeWorkflowTrigger',
        typeVersion: 1.1,
        parameters: { inputSource: 'passthrough' },
      },
      line('Line', json('={"from":"below"}')),
    ]),
  ],
};

/** Dá o proxy do canal `channel`. */
function proxy_of(channel: string): proxy {
  const found = proxies.get(channel);
  assert.ok(found, channel);
  return found;
}

/** Dá o usuário dos nós no Redis, que ele cria com os direitos que o manual diz. */
function make_user(): Promise<string> {
  return create_user(db, 'The n8n nodes', Object.keys(flows), true);
}

/** Sobe o Redis, um proxy para cada canal, os portões e o n8n. */
async function start_all(): Promise<void> {
  redis = await start_redis();
  db = await connect_redis(redis);
  gates = await start_gates();
  const limit = String(run_limit_ms); // uma execução pode demorar a começar
  const patient = [...brisk, '-t', limit, '--head-wait', limit];
  const started = Object.keys(flows).map(async (channel) => {
    const more = channel === 'queue' ? ['--stream', 'ndjson_tasks'] : [];
    proxies.set(channel, await start_proxy(redis, [...patient, '-C', channel, ...more]));
  });
  await Promise.all(started);
  const { port } = redis;
  const user = await make_user();
  const server = { host: '127.0.0.1', port, database: 1, user, password: user, ssl: false };
  const type = 'redis';
  const ollama = Object.fromEntries([['baseUrl', await start_model()]]);
  const credentials = [
    { id: 'redis00000000001', name: 'json-proxy Redis', type, data: server },
    { id: 'redis00000000000', name: 'database 0', type, data: { ...server, database: 0 } },
    { id: 'ollama0000000001', name: 'Ollama', type: 'ollamaApi', data: ollama },
  ];
  const workflows = Object.values(flows).flatMap((make) => make());
  guest = await start_n8n({ credentials, workflows, has_nodes: true });
  ask_n8n = await open_session(guest.url);
}

describe('os nós num n8n de verdade', { skip, concurrency: true }, () => {
  before(start_all);

  test('o pedido chega em campos', async () => {
    const proxy = proxy_of('echo');
    const headers = { 'Content-Type': 'application/json', 'X-Two': 'a' };
    const asked = { method: 'PUT', path: '/a%20b/c?x=1&x=2&y=%C3%A9', headers, body: '{"n":[1]}' };
    const stream = open_stream(proxy, asked);
    const [first = '', ...others] = await stream.rest(run_limit_ms);
    assert.deepEqual(others, []);
    const item = JSON.parse(first);
    assert.equal(item.method, 'PUT');
    assert.equal(item.path, '/a b/c');
    assert.equal(item.url, asked.path);
    assert.deepEqual(item.query, { x: ['1', '2'], y: 'é' });
    assert.deepEqual(item.body, { n: [1] });
    assert.equal(item.headers['x-two'], 'a');
    assert.equal(item.remoteAddress, '127.0.0.1');
    assert.ok(Math.abs(Date.parse(item.requestTime) - Date.now()) < 600_000);
    assert.equal(item.task.uuid, (await task_of(stream)).uuid);
    await see_clean_end(db, proxy_of('echo'), stream);
  });

  for (const [what, type, body, expected] of [
    ['JSON sem Content-Type', undefined, '{"n":1}', { body: { n: 1 } }],
    ['JSON que não é', 'application/json', '{n', { body: '{n' }],
    ['texto', 'text/plain', 'olá', { body: 'olá' }],
    [
      'formulário',
      'application/x-www-form-urlencoded',
      'a=1&b=+2&b=3',
      { body: 'a=1&b=+2&b=3', form: { a: '1', b: [' 2', '3'] } },
    ],
    [
      'formulário com arquivo',
      'multipart/form-data; boundary=Xx',
      [
        '--Xx\r\nContent-Disposition: form-data; name="a"\r\n\r\n1',
        '--Xx\r\nContent-Disposition: form-data; name="f"; filename="x.txt"\r\n\r\nolá',
        '--Xx--\r\n',
      ].join('\r\n'),
      { body: undefined, form: { a: '1' } },
    ],
  ] as const) {
    test(`o corpo: ${what}`, async () => {
      const headers = type ? { 'Content-Type': type } : {};
      const { body: answer } = await fetch_all(proxy_of('echo'), { method: 'POST', headers, body });
      const item = JSON.parse(answer);
      for (const [name, value] of Object.entries(expected)) assert.deepEqual(item[name], value);
    });
  }

  test('um corpo de bytes volta igual, por um arquivo do n8n', async () => {
    const bytes = Buffer.from(Array.from({ length: 70_000 }, (_, n) => (n * 7) % 256));
    const headers = { 'Content-Type': 'image/png' };
    const response = await fetch(proxy_of('file').url, { method: 'POST', headers, body: bytes });
    assert.equal(response.headers.get('content-type'), 'application/octet-stream');
    assert.deepEqual(Buffer.from(await response.arrayBuffer()), bytes);
  });

  test('200 linhas, na ordem, e as primeiras antes que o resto exista', async () => {
    const stream = open_stream(proxy_of('many'));
    for (let n = 0; n < 100; n += 1) {
      assert.equal(await stream.next(run_limit_ms), `{"n":${n}}`);
    }
    await gates.reached('many');
    gates.open('many');
    const others = Array.from({ length: 100 }, (_, n) => `{"n":${n + 100}}`);
    assert.deepEqual(await stream.rest(run_limit_ms), others);
    await see_clean_end(db, proxy_of('many'), stream);
  });

  test('20 tarefas ao mesmo tempo, cada uma com a sua resposta', async () => {
    const bodies = Array.from({ length: 20 }, (_, n) => `pedido ${n}`);
    const streams = bodies.map((body) => open_stream(proxy_of('crowd'), { body }));
    assert.equal(await gates.reached('crowd', 20), 20);
    gates.open('crowd');
    for (const [index, stream] of streams.entries()) {
      const expected = JSON.stringify({ you_sent: bodies[index] });
      assert.deepEqual(await stream.rest(run_limit_ms), [expected]);
      await see_clean_end(db, proxy_of('crowd'), stream);
    }
  });

  test('a cabeça dá o status e os cabeçalhos', async () => {
    const { status, headers, body } = await fetch_all(proxy_of('head'));
    assert.deepEqual(
      [status, headers['x-reason'], body],
      [404, 'no such order', '{"found":false}\n'],
    );
    assert.deepEqual(headers['set-cookie'], ['a=1', 'b=2']);
  });

  test('em RAW os pedaços vão como são, e uma linha tem a sua quebra', async () => {
    const { headers, body } = await fetch_all(proxy_of('page'));
    assert.deepEqual([headers['content-type'], body], ['text/html', '<p>oláHTTP ABORTlinha\n']);
  });

  test('os eventos têm a sua cabeça, e nada mais', async () => {
    const { headers, body } = await fetch_all(proxy_of('events'));
    assert.equal(headers['content-type'], 'text/event-stream');
    const first = 'event: token\nid: 7\ndata: a\ndata: b\n\n';
    assert.equal(body, `${first}data: {"n":1}\n\n`);
  });

  test('um texto que seria uma ordem é uma linha', async () => {
    const { status, body } = await fetch_all(proxy_of('words'));
    assert.deepEqual([status, body], [200, '"HTTP 404"\n" EOF "\nsó texto\n']);
  });

  test('o cliente ainda está lá, e depois não', async () => {
    const stays = open_stream(proxy_of('check'));
    const leaves = open_stream(proxy_of('check'));
    for (const stream of [stays, leaves]) await stream.next(run_limit_ms);
    await gates.reached('check', 2);
    const task = await task_of(leaves);
    leaves.leave();
    assert.equal((await end_of(proxy_of('check'), task)).ending, 'client_gone');
    gates.open('check');
    assert.deepEqual(await stays.rest(run_limit_ms), ['{"there":true}']);
    await gates.reached('gone');
    gates.open('gone');
    const only_eof = async () => (await db.lRange(task.task_list, 0, -1)).join() === 'EOF';
    assert.ok(await only_eof(), 'nada é empurrado para quem saiu');
  });

  test('End acaba a resposta; o que vem depois não chega', async () => {
    const stream = open_stream(proxy_of('end'));
    assert.deepEqual(await stream.rest(run_limit_ms), ['{"last":true}']);
    await see_clean_end(db, proxy_of('end'), stream);
    await gates.reached('end');
    gates.open('end');
  });

  test('um workflow que nada envia: o fim, e nenhuma linha', async () => {
    const stream = open_stream(proxy_of('nothing'));
    assert.deepEqual(await stream.rest(run_limit_ms), []);
    await see_clean_end(db, proxy_of('nothing'), stream);
  });

  for (const [channel, what, before_it, error] of [
    ['broken', 'um passo que falha', ['{"step":1}'], /refused|ECONNREFUSED/],
    ['hidden', 'um texto para os erros', [], /^try again later$/],
    ['failed', 'End com erro', [], /^no such order$/],
    ['mixed', 'bytes depois de linhas', ['{"step":1}'], /began with lines/],
    ['slow', 'tempo esgotado', [], /timed out/],
  ] as const) {
    test(`${what}: uma linha de erro, e o fim`, async () => {
      const stream = open_stream(proxy_of(channel));
      const lines = await stream.rest(run_limit_ms);
      assert.deepEqual(lines.slice(0, -1), before_it);
      assert.match(JSON.parse(lines.at(-1) ?? '').error, error);
      await see_clean_end(db, proxy_of(channel), stream);
    });
  }

  test('depois de RAW uma falha corta a conexão', async () => {
    const response = await fetch(proxy_of('torn').url);
    await gates.reached('torn');
    gates.open('torn');
    await assert.rejects(response.text());
  });

  test('uma execução que adormece deixa a resposta aberta, e o log do n8n o diz', async () => {
    const stream = open_stream(proxy_of('sleeping'));
    assert.equal(await stream.next(run_limit_ms), '{"step":1}');
    const { uuid } = await task_of(stream);
    await guest.program.wait_for(new RegExp(`execution of task ${uuid} sleeps`), run_limit_ms);
    assert.equal(await db.exists(`ndjson_task_${uuid}`), 1);
    stream.leave();
  });

  test('dois workflows num canal, cada um com o seu caminho; o resto é de outros', async () => {
    const proxy = proxy_of('shared');
    const ask = async (method: string, path: string) =>
      (await fetch_all(proxy, { method, path })).body;
    assert.equal(await ask('GET', '/orders/a%2Fb?x=1'), '{"order":"a/b"}\n');
    assert.equal(await ask('POST', '/files/x/y'), '{"file":"/files/x/y"}\n');
    const stopping = new AbortController();
    const kit = serve(
      async function* ({ method, url }) {
        yield `kit ${method} ${url}`;
      },
      { redis: redis.server, channel: 'shared', stop: stopping.signal, log: () => {} },
    );
    on_stop(() => {
      stopping.abort();
      return kit;
    });
    await until('o kit', async () => Number((await db.pubSubNumSub('shared')).shared) === 3);
    assert.equal(await ask('POST', '/orders/7'), 'kit POST /orders/7\n');
    assert.equal(await ask('GET', '/orders'), 'kit GET /orders\n');
  });

  test('um workflow que outro chama envia também', async () => {
    const { body } = await fetch_all(proxy_of('called'));
    assert.equal(body, '{"from":"below"}\n');
  });

  test('stream-lines: cinco linhas', async () => {
    const stream = open_stream(proxy_of('lines'), { body: 'olá' });
    const lines = [1, 2, 3, 4, 5].map((n) => JSON.stringify({ n, of: 5, you_sent: 'olá' }));
    assert.deepEqual(await stream.rest(run_limit_ms), lines);
    await see_clean_end(db, proxy_of('lines'), stream);
  });

  test('stream-steps: o agente conta um passo enquanto pensa, e depois responde', async () => {
    const stream = open_stream(proxy_of('agent'), { body: 'qual a capital do Acre?' });
    assert.equal(await stream.next(run_limit_ms), '{"step":"olho o mapa"}');
    allow_answer(); // só agora o modelo pode responder
    assert.deepEqual(await stream.rest(run_limit_ms), ['{"answer":"Rio Branco"}']);
    await see_clean_end(db, proxy_of('agent'), stream);
  });

  test('uma execução parada no editor: uma linha de erro, e o fim', async () => {
    const stream = open_stream(proxy_of('stopped'));
    await gates.reached('stopped');
    const filter = JSON.stringify({ workflowId: 'stopped'.padEnd(16, '0'), status: ['running'] });
    const { results } = await ask_n8n('GET', `executions?filter=${encodeURIComponent(filter)}`);
    assert.equal(results.length, 1);
    await ask_n8n('POST', `executions/${results[0].id}/stop`);
    const lines = await stream.rest(run_limit_ms);
    assert.match(JSON.parse(lines.join('\n')).error, /cancelled manually/);
    await see_clean_end(db, proxy_of('stopped'), stream);
    gates.open('stopped');
  });

  test('o editor toma um pedido por clique, e o workflow publicado os outros', async () => {
    const workflow = await ask_n8n('GET', `workflows/${'manual'.padEnd(16, '0')}`);
    const payload = { workflowData: workflow, triggerToStartFrom: { name: 'Trigger' } };
    await ask_n8n('POST', `workflows/${workflow.id}/run`, payload);
    await until('os dois', async () => Number((await db.pubSubNumSub('manual')).manual) === 2);
    const first = JSON.parse((await fetch_all(proxy_of('manual'))).body);
    assert.equal(first.test.isPublished, true);
    assert.equal(first.test.otherListeners, 1);
    assert.match(first.test.note, /published workflow listens too/);
    const second = JSON.parse((await fetch_all(proxy_of('manual'))).body);
    assert.equal(second.test, undefined);
  });

  test('o banco da credencial não é o do proxy: um erro que o diz', async () => {
    const stream = open_stream(proxy_of('wrong'));
    const told = /is in database 1 of Redis, and the credential says 0/;
    await guest.program.wait_for(told, run_limit_ms);
    const filter = JSON.stringify({ workflowId: 'wrong'.padEnd(16, '0'), status: ['error'] });
    await until('a execução com erro', async () => {
      const { results } = await ask_n8n('GET', `executions?filter=${encodeURIComponent(filter)}`);
      return results.length === 1;
    });
    stream.leave();
  });
});

test('de um nó ao cliente: o Line ao lado do nó do Redis, na mesma execução', {
  skip,
}, async (context) => {
  const stream = open_stream(proxy_of('latency'));
  const delays: Record<string, number[]> = { line: [], push: [] };
  for (let n = 0; n < 60; n += 1) {
    const { by, at } = JSON.parse((await stream.next(run_limit_ms)) ?? '');
    delays[by]?.push(performance.timeOrigin + (stream.arrivals[n] ?? 0) - at);
  }
  assert.deepEqual(await stream.rest(run_limit_ms), []);
  const [by_line = 0, by_push = 0] = ['line', 'push'].map((by) => {
    const sorted = (delays[by] ?? []).toSorted((a, b) => a - b);
    assert.equal(sorted.length, 30);
    return sorted[15];
  });
  context.diagnostic(
    `mediana, em ms: JSON Proxy Line ${by_line.toFixed(1)}, Redis Push ${by_push.toFixed(1)}`,
  );
});

/** O que vai nas imagens do manual, em pontos: o workflow, e o meio do nó aberto. */
const pictures = {
  'n8n-nodes': { x: 50, y: 170, width: 1400, height: 640, scale: 0.75 },
  'n8n-line': { x: 520, y: 30, width: 460, height: 560, scale: 1 },
};

/** Guarda o que se vê de uma página, se pedido, numa imagem `name` do manual. */
async function keep_picture(page: page, name: keyof typeof pictures): Promise<void> {
  if (!process.env.SCREENSHOTS) return;
  await delay(3000); // o editor anima o que mostra
  const clip = pictures[name];
  const { data } = await page.ask('Page.captureScreenshot', { format: 'png', clip });
  write_file(`scripts/images/${name}.png`, Buffer.from(String(data), 'base64'));
}

test('no editor: os nós aparecem, com os seus ícones e sem avisos', {
  skip: skip || skip_browser,
}, async () => {
  const { id = '', nodes } = offered('stream-lines', 'lines');
  const page = await open_editor(guest.url, id);
  const shown = nodes.filter(({ type }) => !type.endsWith('stickyNote')).length;
  const find = (selector: string) => `[...document.querySelectorAll('${selector}')]`;
  await page.wait_for(`${find('[data-test-id="canvas-node"]')}.length >= ${shown}`, run_limit_ms);
  assert.equal(await page.evaluate(`${find('[data-test-id="node-issues"]')}.length`), 0);
  const own = `${find('.vue-flow__node img')}.filter(({ src }) => src.includes('jsonProxy'))`;
  const loaded = `${own}.filter((image) => image.complete && image.naturalWidth > 0).length === 2`;
  await page.wait_for(loaded, run_limit_ms);
  await page.ask('Input.dispatchKeyEvent', { type: 'keyDown', key: '1', text: '1' });
  await keep_picture(page, 'n8n-nodes');
  const { id: node } = nodes.find(({ name }) => name === 'JSON Proxy Line') as { id?: string };
  await page.evaluate(`location.href = '/workflow/${id}/${node}'`);
  const operation = `${find('[data-test-id="parameter-input-operation"]')}.length === 1`;
  await page.wait_for(operation, run_limit_ms);
  await page.evaluate(
    `document.querySelector('[data-test-id="parameter-input-operation"] input').click()`,
  );
  await keep_picture(page, 'n8n-line');
});

test('bastam os direitos que o manual diz', { skip }, async () => {
  assert.deepEqual(await denied_objects(db), []);
});

test('o Redis cai e volta: o log do n8n o diz, e o workflow responde', { skip }, async () => {
  const { port, dir } = redis;
  const first = open_stream(proxy_of('held'), { body: 'before' });
  assert.equal(await first.next(run_limit_ms), '{"step":1}');
  await redis.stop();
  await guest.program.wait_for(/Redis 127\.0\.0\.1:\d+\/1 is gone/, run_limit_ms);
  redis = await outside_scope(() => start_redis([], { port, dir })); // os próximos o usam
  db = await outside_scope(() => connect_redis(redis));
  await make_user();
  await guest.program.wait_for(/Redis 127\.0\.0\.1:\d+\/1 is back/, run_limit_ms);
  const lines = await first.rest(run_limit_ms);
  assert.ok(JSON.parse(lines.at(-1) ?? '').error, 'o fim não parece inteiro');
  gates.open('before');
  await until('o canal', async () => Number((await db.pubSubNumSub('echo')).echo) === 1);
  for (const channel of ['echo', 'held']) {
    const ping = () => fetch_all(proxy_of(channel), { path: '/ping' });
    await until('o proxy', async () => (await ping()).status === 200);
  }
  const { body } = await fetch_all(proxy_of('echo'), { body: 'de volta' });
  assert.equal(JSON.parse(body).body, 'de volta');
});

test('o n8n desce: quem acaba a tempo acaba inteiro, quem não, com um erro', { skip }, async () => {
  const [quick, late] = ['quick', 'late'].map((body) => open_stream(proxy_of('held'), { body }));
  assert.ok(quick && late);
  for (const stream of [quick, late]) {
    assert.equal(await stream.next(run_limit_ms), '{"step":1}');
  }
  await Promise.all([gates.reached('quick'), gates.reached('late')]);
  guest.program.process.kill('SIGTERM');
  await until('ninguém escuta', async () => Number((await db.pubSubNumSub('held')).held) === 0);
  gates.open('quick');
  assert.deepEqual(await quick.rest(run_limit_ms), ['{"step":2}']);
  assert.deepEqual(await late.rest(run_limit_ms), ['{"error":"n8n is stopping"}']);
  gates.open('late');
  await guest.program.exited;
  const waiting = open_stream(proxy_of('queue'), { body: 'waiting' });
  await until('a tarefa no stream', async () => (await db.xLen('ndjson_tasks')) === 1);
  gates.open('waiting');
  guest = await outside_scope(() => guest.again());
  assert.deepEqual(await waiting.rest(run_limit_ms), ['{"step":1}', '{"step":2}']);
  const { body } = await fetch_all(proxy_of('echo'), { body: 'outro n8n' });
  assert.equal(JSON.parse(body).body, 'outro n8n');
});

test('o n8n morre: o que veio do stream acaba com um erro quando ele volta', { skip }, async () => {
  const stream = open_stream(proxy_of('queue'), { body: 'dying' });
  assert.equal(await stream.next(run_limit_ms), '{"step":1}');
  guest.program.process.kill('SIGKILL');
  await guest.program.exited;
  guest = await guest.again();
  assert.deepEqual(await stream.rest(run_limit_ms), ['{"error":"worker lost"}']);
  await until('nada no stream', async () => (await db.xLen('ndjson_tasks')) === 0);
});
