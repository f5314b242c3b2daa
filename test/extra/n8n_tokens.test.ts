/*
 * O nó JSON Proxy Tokens e os workflows stream-agent.json e openai.json, num n8n de verdade, com o
 * agente dele e os nós de modelo dele. Sem o n8n instalado (npm run test:n8n) são pulados.
 */

import assert from 'node:assert/strict';
import { before, describe } from 'node:test';
import {
  brisk,
  connect_redis,
  end_of,
  type local_redis,
  open_stream,
  type proxy,
  type redis_client,
  start_proxy,
  start_redis,
  stir,
  task_named,
  test,
  until,
} from '../harness';
import { run_limit_ms, skip_n8n, start_n8n } from './n8n_guest';
import { node_named, read_workflow, type workflow } from './n8n_helpers';
import { type said, type script, start_models } from './n8n_models';
import { load_client, reach_clients } from './sdk_helpers';

const skip = skip_n8n || (reach_clients() ? false : 'sem os clientes: setup.sh clients');

/** Uma fala de uma conversa. */
type message = { role: string; content: unknown };

let redis: local_redis;
let db: redis_client;
let models: Awaited<ReturnType<typeof start_models>>;
let proxies: Record<string, proxy>;
let openai: ReturnType<typeof load_client>;

/** Põe o nó de modelo da OpenAI no lugar do nó `name`; a versão 1.3 fala a API responses. */
function use_openai(copy: workflow, name = 'Model', version = 1.2): void {
  const model = { __rl: true, mode: 'id', value: 'gpt' };
  Object.assign(node_named(copy, name), {
    type: '@n8n/n8n-nodes-langchain.lmChatOpenAi',
    parameters: { model, options: {} },
    credentials: { openAiApi: { id: null, name: 'OpenAI' } },
    ...{ typeVersion: version },
  });
}

/** Dá a stream-agent um modelo reserva, também com os tokens à mostra. */
function add_spare(copy: workflow): void {
  const names = { Model: 'Spare', 'JSON Proxy Tokens': 'Spare Tokens' };
  for (const [from, name] of Object.entries(names)) {
    copy.nodes.push({ ...node_named(copy, from), ...{ id: name, name, position: [0, 600] } });
  }
  use_openai(copy, 'Spare');
  const type = 'ai_languageModel';
  copy.connections.Spare = { [type]: [[{ node: 'Spare Tokens', type, index: 0 }]] };
  copy.connections['Spare Tokens'] = { [type]: [[{ node: 'Agent', type, index: 1 }]] };
  node_named(copy, 'Agent').parameters.needsFallback = true;
}

/** O que cada canal muda em stream-agent.json, que tem um modelo do Ollama. */
const changes: Record<string, (copy: workflow) => void> = {
  ollama: () => {},
  openai: (copy) => {
    node_named(copy, 'Agent').typeVersion = 2.2;
    use_openai(copy);
  },
  responses: (copy) => use_openai(copy, 'Model', 1.3),
  /** O agente segue quando o modelo falha. */
  stubborn: (copy) => {
    node_named(copy, 'Agent').onError = 'continueRegularOutput';
    use_openai(copy);
  },
  spare: add_spare,
  chain: (copy) => {
    const type = '@n8n/n8n-nodes-langchain.chainLlm';
    Object.assign(node_named(copy, 'Agent'), { type, ...{ typeVersion: 1.7 } });
    delete copy.connections.Calculator;
  },
};

/** Os canais, cada um com um workflow e um proxy. */
const channels = [...Object.keys(changes), 'chat'];

/** Monta o workflow do canal `channel`. */
function make_workflow(channel: string): workflow {
  const copy = read_workflow(channel in changes ? 'stream-agent' : 'openai');
  changes[channel]?.(copy);
  node_named(copy, 'JSON Proxy Trigger').parameters.channel = channel;
  const id = channel.padEnd(16, '0');
  return { ...copy, id, name: id };
}

/** Sobe o Redis, os proxies, o servidor de modelos e o n8n. */
async function start_all(): Promise<void> {
  redis = await start_redis();
  db = await connect_redis(redis);
  models = await start_models();
  const settings = [...brisk, '-t', String(run_limit_ms)];
  const started = channels.map(
    async (channel): Promise<[string, proxy]> => [
      channel,
      await start_proxy(redis, [...settings, '-C', channel]),
    ],
  );
  proxies = Object.fromEntries(await Promise.all(started));
  const { port } = redis;
  const place = { host: '127.0.0.1', port, database: 1, user: '', password: '', ssl: false };
  const of_ollama = Object.fromEntries([['baseUrl', models.url]]);
  const of_openai = Object.fromEntries([
    ['apiKey', 'x'],
    ['url', `${models.url}/v1`],
  ]);
  const credentials = [
    { id: 'redis00000000001', name: 'json-proxy Redis', type: 'redis', data: place },
    { id: 'ollama0000000001', name: 'Ollama', type: 'ollamaApi', data: of_ollama },
    { id: 'openai0000000001', name: 'OpenAI', type: 'openAiApi', data: of_openai },
  ];
  const workflows = channels.map(make_workflow);
  for (const node of workflows.flatMap(({ nodes }) => nodes)) {
    for (const one of Object.values(node.credentials ?? {})) {
      one.id = credentials.find(({ name }) => name === one.name)?.id ?? null;
    }
  }
  await start_n8n({ credentials, workflows, has_nodes: true });
  const client = load_client('openai').default;
  openai = new client({ apiKey: 'x', baseURL: `${proxy_of('chat').url}/v1`, maxRetries: 0 });
}

/** Dá o proxy do canal `channel`. */
function proxy_of(channel: string): proxy {
  const found = proxies[channel];
  assert.ok(found, channel);
  return found;
}

/** Dá um roteiro que só diz o próximo pedaço quando o teste deixa. */
function hold(...says: said[]) {
  const state = { opened: 0, made: 0 };
  const script: script = async function* () {
    for (const [index, one] of says.entries()) {
      await until('a vez do pedaço', () => state.opened >= index, run_limit_ms);
      state.made += 1;
      yield one;
    }
  };
  const open = () => {
    state.opened += 1;
    stir();
  };
  return { script, open, state };
}

/** Diz logo tudo o que o roteiro tem. */
const tell = (...says: said[]): script =>
  async function* () {
    yield* says;
  };

/** Espera que um fluxo de `channel` termine como `ending`, sem deixar chave alguma se foi bem. */
async function see_end(channel: string, stream: ReturnType<typeof open_stream>, ending = 'done') {
  const task = task_named(String((await stream.head()).headers['x-task-uuid']));
  assert.equal((await end_of(proxy_of(channel), task)).ending, ending);
  if (ending !== 'done') return;
  await until('nenhuma chave', async () => (await db.keys(`*${task.uuid}`)).length === 0);
}

/** Lê todos os pedaços de uma resposta do SDK da OpenAI. */
async function read_chunks(messages: message[], more: object = {}) {
  const asked = { model: 'n8n-agent', stream: true, messages, ...more };
  const chunks = [];
  for await (const chunk of await openai.chat.completions.create(asked)) chunks.push(chunk);
  return chunks;
}

/** Monta uma conversa de uma pergunta só. */
const ask = (content: unknown): message[] => [{ role: 'user', content }];

describe('os tokens de um agente num n8n de verdade', { skip, concurrency: true }, () => {
  before(start_all);

  for (const channel of ['ollama', 'openai', 'responses']) {
    test(`${channel}: cada token chega antes que o próximo exista`, async () => {
      const { script, open, state } = hold({ text: 'Rio ' }, { text: 'Branco' }, { text: '.' });
      models.play(`${channel} aos poucos`, script);
      const stream = open_stream(proxy_of(channel), { body: `${channel} aos poucos` });
      for (const [index, token] of ['Rio ', 'Branco', '.'].entries()) {
        assert.deepEqual(JSON.parse((await stream.next(run_limit_ms)) ?? ''), { token });
        assert.equal(state.made, index + 1, 'o próximo token não existia');
        open();
      }
      assert.deepEqual(await stream.rest(run_limit_ms), ['{"answer":"Rio Branco."}']);
      await see_end(channel, stream);
      assert.equal(models.calls(`${channel} aos poucos`)[0]?.asked.stream, true);
    });

    test(`${channel}: a ferramenta que o agente usa é dita, e depois dela a resposta`, async () => {
      models.play(`${channel} conta`, async function* (turn) {
        if (turn > 0) return yield { text: 'São 42' };
        yield { text: 'Calculo.' };
        yield { tool: 'Calculator', input: { input: '6*7' } };
      });
      const stream = open_stream(proxy_of(channel), { body: `${channel} conta` });
      const lines = (await stream.rest(run_limit_ms)).map((line) => JSON.parse(line));
      assert.deepEqual(lines, [
        { token: 'Calculo.' },
        { tool: 'Calculator', input: { input: '6*7' } },
        { token: 'São 42' },
        { answer: 'São 42' },
      ]);
      const [, second] = models.calls(`${channel} conta`);
      assert.match(JSON.stringify(second?.asked.messages.at(-1)), /42/);
      await see_end(channel, stream);
    });

    test(`${channel}: um modelo que cai no meio: tokens, e um erro`, async () => {
      const { script, open } = hold({ text: 'Rio ' }, 'cut');
      models.play(`${channel} cai`, script);
      const stream = open_stream(proxy_of(channel), { body: `${channel} cai` });
      assert.equal(await stream.next(run_limit_ms), '{"token":"Rio "}');
      open();
      const [last, ...more] = await stream.rest(run_limit_ms);
      assert.match(JSON.parse(last ?? '').error, /./);
      assert.deepEqual(more, []);
    });

    test(`${channel}: um fluxo que só acaba, sem dizer que acabou, é um erro`, async () => {
      models.play(`${channel} some`, tell({ text: 'Rio ' }, 'short'));
      const stream = open_stream(proxy_of(channel), { body: `${channel} some` });
      const [first, last, ...more] = await stream.rest(run_limit_ms);
      assert.equal(first, '{"token":"Rio "}');
      assert.match(JSON.parse(last ?? '').error, /no end|Did not receive done/);
      assert.deepEqual(more, []);
    });

    test(`${channel}: o cliente sai, e o modelo para`, async () => {
      models.play(`${channel} sem fim`, async function* () {
        for (const says = { text: 'e ' }; ; ) {
          yield says;
          await new Promise((resolve) => setImmediate(resolve));
          const [call] = models.calls(`${channel} sem fim`);
          if (call?.closed) return;
        }
      });
      const stream = open_stream(proxy_of(channel), { body: `${channel} sem fim` });
      await stream.next(run_limit_ms);
      stream.leave();
      const [call] = await until('o pedido', () => models.calls(`${channel} sem fim`));
      await until('o modelo deixado', () => call?.closed, run_limit_ms);
      assert.equal(call?.finished, false);
      await see_end(channel, stream, 'client_gone');
    });
  }

  for (const channel of ['ollama', 'openai']) {
    test(`${channel}: a resposta de um modelo a que faltou espaço diz isso`, async () => {
      models.play(`${channel} enche`, tell({ text: 'Rio ' }, 'full'));
      const stream = open_stream(proxy_of(channel), { body: `${channel} enche` });
      const last = (await stream.rest(run_limit_ms)).at(-1) ?? '';
      assert.deepEqual(JSON.parse(last), { answer: 'Rio ', finish_reason: 'length' });
    });
  }

  for (const [when, says] of [
    ['no meio', [{ text: 'Rio ' }, 'cut']],
    ['antes de falar', ['cut']],
  ] as const) {
    test(`um agente que segue apesar de um modelo que falha ${when}: ainda é um erro`, async () => {
      const { script, open } = hold(...says);
      models.play(`teimoso ${when}`, script);
      const stream = open_stream(proxy_of('stubborn'), { body: `teimoso ${when}` });
      for (const token of says.slice(0, -1).map((one) => (one as { text: string }).text)) {
        assert.equal(await stream.next(run_limit_ms), JSON.stringify({ token }));
        open();
      }
      const [last, ...more] = await stream.rest(run_limit_ms);
      assert.match(JSON.parse(last ?? '').error, /./);
      assert.deepEqual(more, []);
    });
  }

  test('um modelo que falha antes de falar: responde o reserva', async () => {
    models.play('com reserva', async function* (_, { asked_by }) {
      yield asked_by === 'ollama' ? 'cut' : { text: 'Rio Branco' };
    });
    const lines = await open_stream(proxy_of('spare'), { body: 'com reserva' }).rest(run_limit_ms);
    assert.deepEqual(lines, ['{"token":"Rio Branco"}', '{"answer":"Rio Branco"}']);
  });

  test('um modelo que cai no meio, com reserva: um erro, e não duas respostas em uma', async () => {
    const { script, open } = hold({ text: 'Rio ' }, 'cut');
    models.play('reserva tarde', script);
    const stream = open_stream(proxy_of('spare'), { body: 'reserva tarde' });
    assert.equal(await stream.next(run_limit_ms), '{"token":"Rio "}');
    open();
    const [last, ...more] = await stream.rest(run_limit_ms);
    assert.match(JSON.parse(last ?? '').error, /./);
    assert.deepEqual(more, []);
  });

  test('uma cadeia, em lugar do agente', async () => {
    models.play('elos', tell({ text: 'Rio ' }, { text: 'Branco' }));
    const lines = await open_stream(proxy_of('chain'), { body: 'elos' }).rest(run_limit_ms);
    const tokens = ['Rio ', 'Branco'].map((token) => JSON.stringify({ token }));
    assert.deepEqual(lines, [...tokens, '{"answer":"Rio Branco"}']);
  });

  test('vinte ao mesmo tempo: cada cliente tem os tokens do seu, na ordem', async () => {
    const count = 20;
    const words = (n: number) => Array.from({ length: 10 }, (_, at) => `${n}-${at} `);
    let ready = 0;
    for (let n = 0; n < count; n += 1) {
      models.play(`muitos ${n}.`, async function* () {
        ready += 1;
        stir();
        await until('todos ao mesmo tempo', () => ready === count, run_limit_ms);
        for (const text of words(n)) yield { text };
      });
    }
    const streams = Array.from({ length: count }, (_, n) =>
      open_stream(proxy_of('ollama'), { body: `muitos ${n}.` }),
    );
    for (const [n, stream] of streams.entries()) {
      const lines = (await stream.rest(run_limit_ms)).map((line) => JSON.parse(line));
      const tokens = words(n).map((token) => ({ token }));
      assert.deepEqual(lines, [...tokens, { answer: words(n).join('') }]);
    }
  });
});

describe('o SDK da OpenAI diante de openai.json', { skip, concurrency: true }, () => {
  test('cada token chega antes que o próximo exista; no fim, stop', async () => {
    const { script, open, state } = hold({ text: 'Rio ' }, { text: 'Branco' });
    models.play('capital?', script);
    const messages = ask('capital?');
    const asked = { model: 'n8n-agent', stream: true, messages };
    const seen: string[] = [];
    let reason: string | null = null;
    for await (const chunk of await openai.chat.completions.create(asked)) {
      const [{ delta, finish_reason }] = chunk.choices;
      assert.deepEqual([chunk.object, chunk.model], ['chat.completion.chunk', 'n8n-agent']);
      reason = finish_reason;
      if (!delta.content) continue;
      seen.push(delta.content);
      assert.equal(state.made, seen.length, 'o próximo token não existia');
      open();
    }
    assert.deepEqual([seen, reason], [['Rio ', 'Branco'], 'stop']);
  });

  test('a resposta inteira, e os modelos; um caminho que não há', async () => {
    models.play('inteira', tell({ text: 'Rio ' }, { text: 'Branco' }));
    const messages = ask('inteira');
    const whole = await openai.chat.completions.create({ model: 'n8n-agent', messages });
    const [{ message, finish_reason }] = whole.choices;
    assert.deepEqual([message.content, finish_reason], ['Rio Branco', 'stop']);
    const { data } = await openai.models.list();
    assert.deepEqual(
      data.map(({ id }: { id: string }) => id),
      ['n8n-agent'],
    );
    await assert.rejects(openai.embeddings.create({ model: 'm', input: 'x' }), { status: 404 });
    const empty = openai.chat.completions.create({ model: 'm' });
    await assert.rejects(empty, { status: 404, message: /no messages/ });
  });

  test('a conversa chega ao modelo como foi, chaves e cifrões também', async () => {
    models.play('e agora {x} $&?', tell({ text: 'sim' }));
    const messages = [
      { role: 'system', content: 'Seja {breve} $&' },
      ...[...ask('primeira'), { role: 'assistant', content: 'resposta' }],
      ...ask([
        { type: 'text', text: 'e agora {x} $&?' },
        { type: 'image_url', image_url: { url: 'data:,' } },
      ]),
    ];
    await read_chunks(messages);
    const [call] = models.calls('e agora');
    const [system, user] = call?.asked.messages ?? [];
    assert.match(system?.content ?? '', /^Seja \{breve\} \$&\n\n/);
    assert.match(system?.content ?? '', /user: primeira\n\nassistant: resposta$/);
    assert.equal(user?.content, 'e agora {x} $&?\n[image_url left out]');
  });

  test('uma ferramenta do agente não é pedida ao cliente: aparece como raciocínio', async () => {
    models.play('quanto é?', async function* (turn) {
      if (turn > 0) return yield { text: 'São 42' };
      yield { text: 'Calculo.' };
      yield { tool: 'Calculator', input: { input: '6*7' } };
    });
    const deltas = (await read_chunks(ask('quanto é?'))).map(({ choices }) => choices[0].delta);
    assert.equal(deltas.map(({ content = '' }) => content).join(''), 'Calculo.\n\nSão 42');
    const thought = deltas.map(({ reasoning_content = '' }) => reasoning_content).join('');
    assert.equal(thought, 'Calculator {"input":"6*7"}\n');
    assert.ok(deltas.every((delta) => !('tool_calls' in delta)));
  });

  for (const [what, says] of [
    ['no meio', [{ text: 'Rio ' }, 'short']],
    ['antes de falar', ['cut']],
  ] as const) {
    test(`um modelo que falha ${what} é um erro no SDK, aos poucos e de uma vez`, async () => {
      models.play(`quebra ${what}`, tell(...says));
      const messages = ask(`quebra ${what}`);
      await assert.rejects(read_chunks(messages), (error: Error) => {
        assert.equal(error.constructor.name, 'APIError', 'dito num evento, e não só cortado');
        assert.match(error.message, /Did not receive done|fetch failed/);
        return true;
      });
      await assert.rejects(openai.chat.completions.create({ model: 'm', messages }));
    });
  }

  const side_prompts: [string, string, object][] = [
    ['title', '{ "title": "your concise title here" }', { title: 'qual a "title": do Acre $&?' }],
    ['tags', '{ "tags": ["tag1", "tag2", "tag3"] }', { tags: [] }],
    ['follow_ups', '{ "follow_ups": ["Question 1?", "Question 2?"] }', { follow_ups: [] }],
    ['queries', '{\n  "queries": ["query1", "query2"]\n}', { queries: [] }],
    ['text', '{ "text": "<your_completion>" }', { text: '' }],
  ];
  for (const [key, output, expected] of side_prompts) {
    test(`Open WebUI pede ${key}: uma resposta pronta, sem modelo`, async () => {
      const history = 'USER: qual a "title": do Acre $&?\nASSISTANT: Rio Branco';
      const template = `### Task:\nDo as told.\n### Output:\nJSON format: ${output}`;
      const content = `${template}\n<chat_history>\n${history}\n</chat_history>`;
      const asked = { model: 'n8n-agent', stream: false, messages: ask(content) };
      const { choices } = await openai.chat.completions.create(asked);
      assert.deepEqual(JSON.parse(choices[0].message.content), expected);
      assert.equal(models.calls(`JSON format: ${output}`).length, 0);
    });
  }

  test('o que o Open WebUI pergunta sobre documentos é do agente', async () => {
    const content =
      '### Task:\nRespond to the user query using the provided context.\n<context>\n' +
      'JSON format: { "title": "x" } <chat_history>\n</context>\nqual documento?';
    models.play('qual documento?', tell({ text: 'este' }));
    const asked = { model: 'n8n-agent', stream: false, messages: ask(content) };
    const { choices } = await openai.chat.completions.create(asked);
    assert.equal(choices[0].message.content, 'este');
  });
});
