/*
 * Respostas que o worker escreve byte a byte (RAW), as sem corpo, e como o cliente sabe que uma
 * acabou pela metade. Os clientes são sockets crus, fetch e curl: conta o que passa na rede.
 */

import assert from 'node:assert/strict';
import { before, describe, test } from 'node:test';
import {
  brisk,
  clog,
  clog_reader,
  end_of,
  fetch_all,
  type local_redis,
  type scene,
  start_program,
  start_redis,
  start_scene,
  type task_names,
  until,
} from './harness';
import { assert_error, open_talk, raw_request } from './http_helpers';

const events_head = 'RAW 200 {"Content-Type": "text/event-stream"}';

let redis: local_redis;

/** A cena dos testes que não mudam as configurações, um de cada vez. */
let common: scene;

before(async () => {
  redis = await start_redis();
  common = await start_scene(redis, brisk);
});

/**
 * Abre uma conversa crua, e espera pela tarefa dela no worker.
 * @param scene o proxy e o worker
 * @param first_line a primeira linha do pedido
 * @param headers linhas de cabeçalho
 * @returns a conversa, a tarefa, e `push`, que empurra elementos na lista dela
 */
async function ask(scene: scene, first_line = 'GET /', headers: string[] = []) {
  const talk = await open_talk(scene.proxy, raw_request(first_line, headers));
  const task = await scene.worker.next();
  const push = (elements: (string | Buffer)[]) => scene.db.rPush(task.task_list, elements);
  return { talk, task, push };
}

describe('RAW', () => {
  const bytes = Buffer.from([0, 13, 10, 255, 10, 32, 9]);
  const chunks = [
    '',
    ' ',
    '\n\n',
    'EOF',
    'HTTP 404',
    'RAW 200',
    'HTTP ABORT\n',
    bytes,
    'END-OF-LIST',
  ];
  const expected = Buffer.concat(chunks.map((chunk) => Buffer.from(chunk as string)));

  for (const accept of ['*/*', 'text/event-stream']) {
    test(`cada elemento vai byte a byte até o DEL, com Accept ${accept}`, async () => {
      const { talk, task, push } = await ask(common, 'GET /', [`Accept: ${accept}`]);
      await push([events_head, ...chunks]);
      await until('tudo retirado', async () => (await common.db.lLen(task.task_list)) === 0);
      assert.equal(await common.db.exists(task.task_key), 1);
      await common.db.del(task.task_key);
      const { status, headers, body } = await talk.reply();
      assert.deepEqual([status, headers['content-type']], [200, 'text/event-stream']);
      assert.deepEqual(
        [headers['transfer-encoding'], headers['x-task-uuid']],
        ['chunked', task.uuid],
      );
      assert.deepEqual(Buffer.from(body, 'latin1'), expected);
      const end = await end_of(common.proxy, task);
      assert.deepEqual([end.ending, end.lines], ['done', String(chunks.length - 1)]);
      assert.equal(Number(end.bytes), expected.length);
    });
  }

  test('os cabeçalhos saem com a cabeça, e cada pedaço assim que chega', async () => {
    const { talk, task, push } = await ask(common);
    await push(['RAW 418 {"X-A": "1"}']);
    await talk.wait_for(/^HTTP\/1\.1 418 [\s\S]+\r\n\r\n$/);
    await push(['data: um']);
    await talk.wait_for(/\r\n8\r\ndata: um\r\n$/);
    await push(['\n\n']);
    await talk.wait_for(/\r\n2\r\n\n\n\r\n$/);
    await common.db.del(task.task_key);
    assert.equal((await talk.reply()).body, 'data: um\n\n');
  });

  test('com o Content-Length do worker não há pedaços, e a conexão serve de novo', async () => {
    const { talk, task, push } = await ask(common);
    await push(['RAW 200 {"Content-Length": "4", "Content-Encoding": "x"}', 'ab', 'cd']);
    await common.db.del(task.task_key);
    const { headers, body } = await talk.reply();
    assert.deepEqual([headers['content-length'], headers['content-encoding']], ['4', 'x']);
    assert.deepEqual([headers['transfer-encoding'], body], [undefined, 'abcd']);
    talk.send(raw_request('GET /ping'));
    assert.equal((await talk.reply()).body, 'pong');
  });

  test('um cliente HTTP/1.0 recebe os bytes sem pedaços, e o fim é o fechamento', async () => {
    const { talk, task, push } = await ask(common, 'GET / HTTP/1.0');
    await push([events_head, 'data: 1\n\n']);
    await common.db.del(task.task_key);
    assert.equal((await talk.reply()).body, 'data: 1\n\n');
  });

  test('HEARTBEAT não põe nada no meio, nem num tipo que o worker escolheu', async () => {
    const scene = await start_scene(redis, [...brisk, '--heartbeat', '50']);
    /** Pede até que `head` chegue antes do primeiro batimento, que abriria a resposta sem ela. */
    const ask_in_time = async (head: string) => {
      for (;;) {
        const asked = await ask(scene);
        await asked.push([head]);
        const [opening] = await asked.talk.wait_for(/^[\s\S]+?\r\n\r\n/);
        if (/^x-a: 1\r$/im.test(opening)) return asked;
        await scene.db.del(asked.task.task_key);
      }
    };
    const beats: [string, number][] = [
      ['RAW 200 {"Content-Type": "text/event-stream", "X-A": "1"}', 0],
      ['HTTP 200 {"content-type": "application/x-ndjson", "X-A": "1"}', 0],
      ['HTTP 200 {"X-A": "1"}', 3],
    ];
    for (const [head, wanted] of beats) {
      const { talk, task } = await ask_in_time(head);
      const other = await ask(scene); // que, sem cabeça, tem batimentos no mesmo compasso
      await other.talk.wait_for(/(keepalive[\s\S]*){5}/);
      await scene.db.del([task.task_key, other.task.task_key]);
      const count = (await talk.reply()).body.split('keepalive').length - 1;
      assert.ok(wanted === 0 ? count === 0 : count >= wanted, `${head}: ${count}`);
    }
  });

  test('um cliente que não lê segura a lista, e depois recebe tudo', async () => {
    const { talk, task, push } = await ask(common, 'GET / HTTP/1.0');
    await push([events_head]);
    const [head] = await talk.wait_for(/^[\s\S]+\r\n\r\n/);
    talk.socket.pause();
    await clog_reader(common.db, task, common.proxy);
    talk.socket.resume();
    await common.db.del(task.task_key);
    await talk.closed(30_000);
    assert.equal(talk.text().length, head.length + clog.lines * clog.bytes);
  });
});

describe('respostas sem corpo', () => {
  const cases: [string, number, Record<string, string | undefined>][] = [
    ['HTTP 204 {"X-A": "1"}', 204, { 'x-a': '1', 'content-length': undefined }],
    ['RAW 204', 204, { 'content-length': undefined }],
    ['HTTP 205', 205, { 'content-length': '0' }],
    ['RAW 304 {"Content-Length": "7", "ETag": "x"}', 304, { 'content-length': '7', etag: 'x' }],
  ];

  for (const [head, status, wanted] of cases) {
    test(`${head}: só a cabeça, e o que vem depois é descartado e registrado`, async () => {
      const { talk, task, push } = await ask(common, 'GET /', ['Accept: text/event-stream']);
      await push([head]);
      const [first = ''] = await talk.wait_for(/^[\s\S]+\r\n\r\n/);
      assert.match(first, new RegExp(`^HTTP/1\\.1 ${status} `));
      assert.doesNotMatch(first, /transfer-encoding/i);
      for (const [name, value] of Object.entries({ ...wanted, 'content-type': undefined })) {
        assert.equal(new RegExp(`^${name}: (.*)\r$`, 'im').exec(first)?.[1], value, name);
      }
      await push(['x', 'y']);
      await common.db.del(task.task_key);
      assert.equal((await end_of(common.proxy, task)).ending, 'done');
      talk.send(raw_request('GET /ping'));
      await talk.wait_for(/pong$/);
      assert.match(talk.text().slice(first.length), /^HTTP\/1\.1 200 OK/);
      const dropped = ` body_dropped task=${task.uuid} status=${status} elements=2\n`;
      await common.proxy.wait_for(new RegExp(dropped));
    });
  }

  test('um fim que não é o do worker não muda a resposta, que já estava inteira', async () => {
    const scene = await start_scene(redis, [...brisk, '-t', '3000']);
    const { talk, task, push } = await ask(scene);
    await push(['RAW 204']);
    assert.equal((await end_of(scene.proxy, task)).ending, 'timeout');
    talk.send(raw_request('GET /ping'));
    await talk.wait_for(/^HTTP\/1\.1 204 [\s\S]+?\r\n\r\nHTTP\/1\.1 200 [\s\S]+pong$/);
  });
});

/** O que quebra uma resposta: como, o fim no log, e os argumentos do proxy. */
type break_case = {
  how: string;
  ending: string;
  args?: string[];
  head?: string;
  reason?: string;
  provoke: (scene: scene, task: task_names) => unknown;
};

const aborted = 'the worker aborted the answer';

/** O que pode acontecer a uma resposta RAW depois dos cabeçalhos. */
const break_cases: break_case[] = [
  { how: 'MAXTIME', ending: 'timeout', args: ['-t', '3000'], provoke: () => {} },
  { how: 'um FLUSHALL', ending: 'redis_lost', provoke: ({ db }) => db.flushAll() },
  {
    how: 'uma recusa do Redis',
    ending: 'failed',
    reason: 'redis refused a command',
    provoke: ({ db }, task) => db.set(task.task_list, 'não é lista'),
  },
  {
    how: 'a parada do proxy',
    ending: 'shutdown',
    provoke: ({ proxy }) => proxy.process.killed || proxy.process.kill('SIGTERM'), // uma vez só
  },
  {
    how: 'HTTP ABORT',
    ending: 'failed',
    reason: aborted,
    provoke: ({ db }, task) => db.rPush(task.task_list, ['HTTP ABORT', 'depois']),
  },
  {
    how: 'HTTP ABORT em linhas',
    head: 'HTTP 200 {"X-A": "1"}',
    ending: 'failed',
    reason: aborted,
    provoke: ({ db }, task) => db.rPush(task.task_list, ['HTTP ABORT', 'depois']),
  },
  {
    how: 'uma cabeça RAW que chega tarde',
    head: 'HTTP 200 {"X-A": "1"}',
    ending: 'failed',
    reason: aborted,
    provoke: ({ db }, task) => db.rPush(task.task_list, [events_head, 'depois']),
  },
];

describe('uma resposta que não acabou é cortada, e o cliente sabe', { concurrency: 4 }, () => {
  for (const wanted of break_cases) {
    const { how, ending, args = [], head = events_head, reason, provoke } = wanted;
    test(`${how}: sem o último pedaço; em HTTP/1.0, com RST`, async () => {
      const own = ending === 'redis_lost' ? await start_redis() : redis;
      const scene = await start_scene(own, [...brisk, ...args]);
      const asked = [await ask(scene), await ask(scene, 'GET / HTTP/1.0')];
      const errors = asked.map(({ talk }) => {
        const seen: string[] = [];
        talk.socket.on('error', ({ code }: NodeJS.ErrnoException) => seen.push(String(code)));
        return seen;
      });
      for (const { talk, push } of asked) {
        await push([head, 'data: 1']);
        await talk.wait_for(/data: 1/);
      }
      await Promise.all(asked.map(({ task }) => provoke(scene, task)));
      for (const { talk, task } of asked) {
        await talk.closed();
        const end = await end_of(scene.proxy, task);
        assert.deepEqual([end.ending, end.reason], [ending, reason && `"${reason}"`]);
        assert.doesNotMatch(talk.text(), /error|depois|0\r\n\r\n$/);
        assert.match(talk.text(), /data: 1(\n|\r\n)*$/);
      }
      assert.deepEqual(errors, [[], ['ECONNRESET']]);
    });
  }

  test('com Content-Length: se faltam ou sobram bytes; se não, está inteira', async () => {
    const scene = await start_scene(redis, brisk);
    for (const [chunks, sent, reason] of [
      [['ab'], 'ab', 'menor'],
      [['ab', 'cde'], '(?:ab)?', 'maior'],
      [['ab', 'cd'], 'abcd', undefined],
    ] as const) {
      const { talk, task, push } = await ask(scene);
      await push(['RAW 200 {"Content-Length": "4"}', ...chunks]);
      await scene.db.del(task.task_key);
      const { ending } = await end_of(scene.proxy, task);
      assert.equal(ending, reason ? 'failed' : 'done');
      if (reason)
        await scene.proxy.wait_for(new RegExp(`stream_error task=${task.uuid} .*${reason}`));
      if (reason) await talk.closed();
      await talk.wait_for(new RegExp(`\r\n\r\n(?:${sent})$`));
    }
  });

  test('antes dos cabeçalhos é um erro como os outros: status e JSON', async () => {
    const scene = await start_scene(redis, brisk);
    const abort = await ask(scene);
    await abort.push(['HTTP ABORT']);
    assert_error(await abort.talk.reply(), 503, aborted);
    const stopped = await ask(scene);
    scene.proxy.process.kill('SIGTERM');
    assert_error(await stopped.talk.reply(), 503, 'server shutting down');
  });

  test('a cabeça RAW que chega depois de HEAD_WAIT também corta', async () => {
    const scene = await start_scene(redis, [...brisk, '--head-wait', '0']);
    const { talk, task, push } = await ask(scene);
    await talk.wait_for(/\r\n\r\n$/);
    await push([events_head, 'data: 1\n\n']);
    await talk.closed();
    assert.doesNotMatch(talk.text(), /data|0\r\n\r\n$/);
    await scene.proxy.wait_for(
      new RegExp(`stream_error task=${task.uuid} reason="RAW chegou tarde`),
    );
  });

  test('curl sai com erro, e fetch lança', async () => {
    const scene = await start_scene(redis, brisk);
    for (const [head, code] of [
      [events_head, 18],
      ['HTTP 200', 18],
      ['RAW 200 {"Content-Length": "9"}', 18],
    ] as const) {
      const curl = start_program('curl', ['-sSN', '--max-time', '30', scene.proxy.url]);
      const asked = fetch(scene.proxy.url);
      const tasks = [await scene.worker.next(), await scene.worker.next()];
      for (const { task_list } of tasks)
        await scene.db.rPush(task_list, [head, 'um', 'HTTP ABORT']);
      assert.equal(await curl.exited, code, head);
      await until('a parte no curl', () => /^um\n?$/.test(curl.stdout()));
      const { body, status } = await asked;
      assert.equal(status, 200);
      await assert.rejects(new Response(body).text(), /terminated/);
    }
  });
});

describe('os cabeçalhos de um worker', () => {
  test('o que não é ASCII vai sempre em UTF-8, em qualquer formato', async () => {
    for (const accept of ['*/*', 'text/event-stream']) {
      for (const word of ['HTTP', 'RAW']) {
        for (const status of [200, 204]) {
          const { talk, task, push } = await ask(common, 'GET /', [`Accept: ${accept}`]);
          await push([`${word} ${status} {"X-A": "ação"}`, 'x']);
          await common.db.del(task.task_key);
          await talk.wait_for(/\r\nX-A: a\u00c3\u00a7\u00c3\u00a3o\r\n/);
        }
      }
    }
  });

  test('com CORS_ORIGIN a página pode ler também os deles', async () => {
    const scene = await start_scene(redis, [...brisk, '--cors-origin', 'https://a.example']);
    for (const [head, names] of [
      ['HTTP 200', ''],
      ['HTTP 200 {"X-A": "1", "ETag": "2"}', ', X-A, ETag'],
      ['RAW 200 {"X-B": "1"}', ', X-B'],
    ] as const) {
      const asked = fetch_all(scene.proxy, { headers: { origin: 'https://a.example' } });
      const task = await scene.worker.next();
      await scene.db.rPush(task.task_list, head);
      await scene.db.del(task.task_key);
      const exposed = `X-Task-UUID, X-Task-Key, X-Task-List${names}`;
      assert.equal((await asked).headers['access-control-expose-headers'], exposed);
    }
  });
});
