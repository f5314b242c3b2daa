/*
 * Os workflows de scripts/n8n dentro de um n8n de verdade, importados e publicados pela linha de
 * comando dele. O modelo do agente também é de verdade para o n8n: um worker do kit que fala o
 * formato do Ollama, atrás de outro proxy, e cujas respostas o teste escolhe. Sem o n8n instalado
 * (npm run test:n8n) estes testes são pulados.
 *
 *   SCREENSHOT=scripts/images/n8n.png npm run test:n8n     refaz a imagem do manual
 */

import assert from 'node:assert/strict';
import { writeFileSync as write_file } from 'node:fs';
import { before, describe } from 'node:test';
import { serve } from '../../scripts/worker/worker';
import {
  brisk,
  connect_redis,
  end_of,
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
import { skip_browser } from './browser';
import { make_part } from './chat_format';
import {
  open_editor,
  run_limit_ms,
  see_clean_end,
  skip_n8n as skip,
  start_n8n,
  task_of,
} from './n8n_guest';
import { node_named, read_workflow, type workflow } from './n8n_helpers';

/** Uma frase que o teste reconhece nas linhas do agente. */
const step = 'olho o mapa';

let redis: local_redis;
let db: redis_client;
let editor: string;

/** Os canais, cada um com um proxy. */
const channels = [
  'lines',
  'shared',
  'broken',
  'thrown',
  'empty',
  'quoted',
  'agent',
  'orphan',
  'model',
];

/** Os proxies dos canais em que um workflow escuta. */
let proxies: Record<string, proxy>;

/** Deixa o modelo responder, depois de ter usado a ferramenta. */
let allow_answer = () => {};

/**
 * Dá as linhas com que stream-lines responde a um pedido.
 * @param body o corpo do pedido
 * @returns as cinco linhas
 */
function answer_to(body: string): string[] {
  return [1, 2, 3, 4, 5].map((n) => JSON.stringify({ n, of: 5, you_sent: body }));
}

/**
 * Troca os pedaços com que stream-lines responde.
 * @param copy o workflow
 * @param value a expressão que dá os pedaços
 */
function set_pieces(copy: workflow, value: string): void {
  const { assignments } = node_named(copy, 'Pieces').parameters as {
    assignments: { assignments: { value: string }[] };
  };
  for (const assignment of assignments.assignments) assignment.value = value;
}

/** O que cada cópia muda no workflow de que vem, para que falhe. */
const faults: Record<string, (copy: workflow) => void> = {
  /** Um passo que falha como os nós que cuidam dos seus erros: ninguém atende nessa porta. */
  broken: (copy) => {
    const work = node_named(copy, 'Your work');
    work.type = 'n8n-nodes-base.httpRequest';
    work.typeVersion = 4.2;
    work.parameters = { url: 'http://127.0.0.1:1/', options: {} };
  },
  /** Um que lança antes disso: o Wait não aceita um tempo negativo. */
  thrown: (copy) => Object.assign(node_named(copy, 'Your work').parameters, { amount: -1 }),
  /** Passos que não dão item algum. */
  empty: (copy) => set_pieces(copy, '={{ [] }}'),
  /** Um que dá, como resposta, o que parece um erro. */
  quoted: (copy) => set_pieces(copy, "={{ [{ error: 'do cliente' }] }}"),
  /** Um agente em cujo modelo ninguém escolheu a credencial. */
  orphan: (copy) => delete node_named(copy, 'Model').credentials,
};

/**
 * Faz uma cópia de um workflow que escuta outro canal.
 * @param name nome do arquivo em scripts/n8n
 * @param id identificador no n8n, de 16 letras
 * @param channel o canal, que também diz o defeito
 * @returns a cópia
 */
function copy_workflow(name: string, id: string, channel: string): workflow {
  const copy = { ...read_workflow(name), id, name: id };
  node_named(copy, 'New task').parameters.channels = channel;
  faults[channel]?.(copy);
  return copy;
}

/**
 * Sobe um worker que fala o formato de chat do Ollama: pede a ferramenta na primeira vez, e na
 * segunda, quando o teste deixa, responde em dois pedaços. Recusa a pergunta "quebra".
 * @param channel canal do proxy que fica na frente dele
 */
function start_model(channel: string): void {
  const allowed = new Promise<void>((resolve) => {
    allow_answer = resolve;
  });
  const stopping = new AbortController();
  const model = serve(
    async function* ({ body }) {
      const { messages } = JSON.parse(body);
      if (body.includes('quebra')) throw new Error('model not found');
      if (messages.some(({ role }: { role: string }) => role === 'tool')) {
        await allowed;
        for (const content of ['Rio ', 'Branco']) yield make_part({ content });
      } else {
        const call = { name: 'tell_the_client', arguments: { step } };
        yield make_part({ tool_calls: [{ function: call }] });
      }
      yield make_part({}, true);
    },
    { redis: redis.server, channel, stop: stopping.signal, log: () => {} },
  );
  on_stop(() => {
    stopping.abort();
    return model;
  });
}

/**
 * Dá o proxy de um canal.
 * @param channel o canal
 * @returns o proxy
 */
function proxy_of(channel: string): proxy {
  const found = proxies[channel];
  assert.ok(found, channel);
  return found;
}

/**
 * Sobe o Redis, um proxy para cada canal, o modelo e o n8n.
 */
async function start_all(): Promise<void> {
  redis = await start_redis();
  db = await connect_redis(redis);
  const patient = [...brisk, '-t', String(run_limit_ms)];
  const started = channels.map(
    async (channel): Promise<[string, proxy]> => [
      channel,
      await start_proxy(redis, [...patient, '-C', channel]),
    ],
  );
  proxies = Object.fromEntries(await Promise.all(started));
  start_model('model');
  const { port } = redis;
  const user = await create_user(db, 'The n8n workflows', [...channels, 'editor']);
  const server = { host: '127.0.0.1', port, database: 1, user, password: user, ssl: false };
  const ollama = Object.fromEntries([['baseUrl', proxies.model?.url]]);
  const credentials = [
    { id: 'redis00000000001', name: 'json-proxy Redis', type: 'redis', data: server },
    { id: 'ollama0000000001', name: 'Ollama', type: 'ollamaApi', data: ollama },
  ];
  const copies = channels.flatMap((channel) => {
    const name = ['agent', 'orphan'].includes(channel) ? 'stream-agent' : 'stream-lines';
    const times = channel === 'shared' ? [1, 2] : channel === 'model' ? [] : [1];
    return times.map((n) =>
      copy_workflow(`redis-nodes/${name}`, `${channel}${n}`.padEnd(16, '0'), channel),
    );
  });
  editor = (await start_n8n({ credentials, workflows: copies })).url;
}

describe('scripts/n8n num n8n de verdade', { skip, concurrency: true }, () => {
  before(start_all);

  test('as linhas chegam uma a uma, na ordem, e nada fica no Redis', async () => {
    const stream = open_stream(proxy_of('lines'), { body: 'olá' });
    const [first, ...others] = answer_to('olá');
    assert.equal(await stream.next(run_limit_ms), first);
    const { task_key } = await task_of(stream);
    assert.equal(await db.exists(task_key), 1, 'a primeira chegou com a tarefa em andamento');
    assert.deepEqual(await stream.rest(run_limit_ms), others);
    await see_clean_end(db, proxy_of('lines'), stream);
  });

  test('dois workflows e um worker do kit num canal: só um responde', async (context) => {
    const stopping = new AbortController();
    const kit = serve(
      async function* ({ body }) {
        yield `kit ${body}`;
      },
      { redis: redis.server, channel: 'shared', stop: stopping.signal, log: () => {} },
    );
    await until('o kit no canal', async () => {
      const { shared } = await db.pubSubNumSub('shared');
      assert.ok(Number(shared) <= 1, 'o gatilho assina por padrão, e não conta em NUMSUB');
      return Number(shared) === 1;
    });
    const bodies = Array.from({ length: 12 }, (_, n) => `pedido ${n}`);
    const served = await Promise.all(
      bodies.map(async (body) => {
        const stream = open_stream(proxy_of('shared'), { body });
        const lines = await stream.rest(run_limit_ms);
        const by_kit = lines[0] === `kit ${body}`;
        assert.deepEqual(lines, by_kit ? [`kit ${body}`] : answer_to(body));
        await see_clean_end(db, proxy_of('shared'), stream);
        return by_kit;
      }),
    );
    stopping.abort();
    await kit;
    context.diagnostic(`o kit respondeu ${served.filter(Boolean).length} de ${bodies.length}`);
    const alone = bodies.slice(0, 6).map((body) => open_stream(proxy_of('shared'), { body }));
    for (const [index, stream] of alone.entries()) {
      assert.deepEqual(await stream.rest(run_limit_ms), answer_to(bodies[index] ?? ''));
      await see_clean_end(db, proxy_of('shared'), stream);
    }
  });

  for (const [channel, what, body, error] of [
    ['broken', 'um passo que falha', 'olá', /refused|ECONNREFUSED/],
    ['thrown', 'um passo que lança', 'olá', /Wait Amount|number|amount/i],
    ['orphan', 'um agente sem credencial', 'olá', /sub-node Model/],
    ['agent', 'um modelo que recusa', 'quebra', /model not found/],
  ] as const) {
    test(`${what}: uma linha de erro, e o fim`, async () => {
      const proxy = proxy_of(channel);
      const stream = open_stream(proxy, { body });
      const lines = await stream.rest(run_limit_ms);
      assert.equal(lines.length, 1, lines.join());
      assert.match(JSON.parse(lines[0] ?? '').error, error);
      await see_clean_end(db, proxy, stream);
    });
  }

  for (const [channel, what, expected] of [
    ['empty', 'passos que não dão item algum: o fim, e nenhuma linha', []],
    ['quoted', 'um pedaço que parece um erro é só uma linha', ['{"error":"do cliente"}']],
  ] as const) {
    test(what, async () => {
      const proxy = proxy_of(channel);
      const stream = open_stream(proxy, { body: 'olá' });
      assert.deepEqual(await stream.rest(run_limit_ms), expected);
      await see_clean_end(db, proxy, stream);
    });
  }

  test('o cliente sai: o que o workflow ainda empurra expira', async () => {
    const stream = open_stream(proxy_of('lines'), { body: 'até logo' });
    await stream.next(run_limit_ms);
    const task = await task_of(stream);
    stream.leave();
    assert.equal((await end_of(proxy_of('lines'), task)).ending, 'client_gone');
    const last_line = answer_to('até logo').at(-1) ?? '';
    const late = async () => (await db.lRange(task.task_list, 0, -1)).includes(last_line);
    await until('a última linha, atrasada', late, run_limit_ms);
    assert.ok((await db.ttl(task.task_list)) > 0);
    assert.equal(await db.exists(task.task_key), 0);
  });

  test('o agente conta um passo enquanto pensa, e depois responde', async () => {
    const stream = open_stream(proxy_of('agent'), { body: 'qual a capital do Acre?' });
    assert.deepEqual(JSON.parse((await stream.next(run_limit_ms)) ?? ''), { step });
    allow_answer(); // só agora o modelo pode responder
    assert.deepEqual(await stream.rest(run_limit_ms), ['{"answer":"Rio Branco"}']);
    await see_clean_end(db, proxy_of('agent'), stream);
  });
});

/** Um clique onde não há nada, que tira a seleção do que foi colado. */
const blank = { x: 1100, y: 150, button: 'left', clickCount: 1 };

/** O workflow no editor, com os avisos por cima e a barra de lado cortados, em pontos. */
const picture = { x: 130, y: 170, width: 1290, height: 592, scale: 1 };

test('no editor: colado, acha a credencial pelo nome, publica-se e responde', {
  skip: skip || skip_browser,
}, async () => {
  const file = read_workflow('redis-nodes/stream-lines');
  node_named(file, 'New task').parameters.channels = 'editor';
  const proxy = await start_proxy(redis, [...brisk, '-C', 'editor']);
  const page = await open_editor(editor);
  const text = JSON.stringify(JSON.stringify(file));
  await page.evaluate(`{
    const clipboardData = new DataTransfer();
    clipboardData.setData('text/plain', ${text});
    document.dispatchEvent(new ClipboardEvent('paste', { clipboardData, bubbles: true }));
  }`);
  const shown = file.nodes.filter(({ type }) => !type.endsWith('stickyNote')).length;
  const nodes = `document.querySelectorAll('[data-test-id="canvas-node"]').length`;
  await page.wait_for(`${nodes} >= ${shown}`);
  const see_all = { type: 'keyDown', key: '1', text: '1' };
  await page.ask('Input.dispatchKeyEvent', see_all);
  const issues = `document.querySelectorAll('[data-test-id="node-issues"]').length`;
  assert.equal(await page.evaluate(issues), 0);
  const buttons = `[...document.querySelectorAll('button:enabled')].filter(
    ({ textContent }) => textContent.trim() === 'Publish')`;
  await page.wait_for(`${buttons}.length === 1`);
  await page.ask('Input.dispatchMouseEvent', { ...blank, type: 'mousePressed' });
  await page.ask('Input.dispatchMouseEvent', { ...blank, type: 'mouseReleased' });
  await page.wait_for(`!document.querySelector('.vue-flow__node.selected')`);
  if (process.env.SCREENSHOT) {
    const { data } = await page.ask('Page.captureScreenshot', { format: 'png', clip: picture });
    write_file(process.env.SCREENSHOT, Buffer.from(String(data), 'base64'));
  }
  await page.evaluate(`${buttons}[0].click()`);
  await page.wait_for(`${buttons}.length === 2`);
  await page.evaluate(`${buttons}[1].click()`);
  await until('o gatilho', async () => (await db.pubSubNumPat()) === channels.length, run_limit_ms);
  const stream = open_stream(proxy, { body: 'do editor' });
  assert.deepEqual(await stream.rest(run_limit_ms), answer_to('do editor'));
  await see_clean_end(db, proxy, stream);
});

test('bastam os direitos que o manual diz', { skip }, async () => {
  assert.deepEqual(await denied_objects(db), []);
});

test('o Redis cai e volta: o gatilho assina de novo, e o workflow responde', { skip }, async () => {
  const { port, dir: data } = redis;
  await redis.stop();
  redis = await start_redis([], { port, dir: data });
  const again = await connect_redis(redis);
  await create_user(again, 'The n8n workflows', [...channels, 'editor']);
  const count = channels.length - 1; // no do modelo quem escuta é o kit
  await until('os canais', async () => (await again.pubSubNumPat()) >= count, run_limit_ms);
  const stream = open_stream(proxy_of('lines'), { body: 'de volta' });
  assert.deepEqual(await stream.rest(run_limit_ms), answer_to('de volta'));
});
