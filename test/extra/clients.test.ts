/*
 * Clientes que não sabem nada do proxy: o http.client do Python, e o cliente oficial do Ollama em
 * JavaScript diante de um worker que fala o formato de chat dele.
 */

import assert from 'node:assert/strict';
import { spawnSync as run } from 'node:child_process';
import { createRequire as create_require } from 'node:module';
import path from 'node:path';
import { before, describe } from 'node:test';
import type { task_record } from '../../json-proxy';
import {
  brisk,
  end_of,
  type local_redis,
  start_program,
  start_redis,
  start_scene,
  temp_dir,
  test,
  until,
} from '../harness';
import { make_part } from './chat_format';

/** Um pedaço de resposta do Ollama. */
type chat_part = { message: { content: string }; done: boolean };

/** O que se usa do cliente do Ollama. */
type chat_client = {
  chat(request: object & { stream: true }): Promise<AsyncIterable<chat_part>>;
  chat(request: object): Promise<chat_part>;
  abort(): void;
};

const ollama_package = 'ollama@0.6.4';

/** Quanto o npm pode demorar a instalá-lo. */
const install_limit_ms = 120_000;

let redis: local_redis;

before(async () => {
  redis = await start_redis();
});

/** Lê uma resposta como um script em Python a lê, e mostra cada linha quando ela chega. */
const python_client = `
import http.client, sys
server = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]), timeout=30)
server.request('POST', '/a', body='olá'.encode(), headers={'Accept': sys.argv[2]})
answer = server.getresponse()
print(answer.status, answer.getheader('Content-Type'), flush=True)
while line := answer.readline():
    print(repr(line.decode()), flush=True)
`;

describe('http.client do Python', { concurrency: true }, () => {
  for (const [accept, type, frame] of [
    ['application/json', 'application/x-ndjson', (line: string) => [`${line}\\n`]],
    [
      'text/event-stream',
      'text/event-stream; charset=utf-8',
      (line: string) => [`data: ${line}\\n`, '\\n'],
    ],
  ] as const) {
    test(`Accept ${accept}: cada linha na hora`, async () => {
      const { proxy, worker, db } = await start_scene(redis, brisk);
      const args = ['-c', python_client, String(proxy.port), accept];
      const client = start_program('/usr/bin/python3', args);
      const task = await worker.next();
      assert.equal(task.body, 'olá');
      for (const line of ['{"n": 1}', '{"n": 2}']) {
        await db.rPush(task.task_list, line);
        const shown = frame(line).map((text) => `'${text}'\n`);
        await until(`${line} no Python`, () => client.stdout().endsWith(shown.join('')));
      }
      await db.del(task.task_key);
      assert.equal(await client.exited, 0, client.stderr());
      assert.ok(client.stdout().startsWith(`200 ${type}\n`), client.stdout());
      const is_events = accept === 'text/event-stream';
      assert.equal(
        client.stdout().endsWith(`'event: end\\n'\n'data: {"ending": "done"}\\n'\n'\\n'\n`),
        is_events,
      );
    });
  }
});

/**
 * Instala o cliente do Ollama numa pasta só dele.
 * @returns a classe do cliente; undefined se o npm não o alcança
 */
function install_ollama(): (new (options: object) => chat_client) | undefined {
  const dir = temp_dir();
  const args = ['install', '--prefix', dir, '--ignore-scripts', '--no-audit', '--no-fund'];
  const { status } = run('npm', [...args, ollama_package], {
    cwd: dir,
    stdio: 'ignore',
    timeout: install_limit_ms,
  });
  return status === 0 ? create_require(path.join(dir, 'x.js'))('ollama').Ollama : undefined;
}

/**
 * Escreve um pedaço de resposta como o Ollama o escreve.
 * @param content o texto
 * @param done se é o último
 * @returns a linha
 */
function chat_line(content: string, done = false): string {
  return JSON.stringify(make_part({ content }, done));
}

test('o cliente do Ollama conversa com um worker que fala o formato dele', async (context) => {
  const ollama_client = install_ollama();
  if (!ollama_client) {
    context.skip(`o npm não alcança ${ollama_package}`);
    return;
  }
  const scene = await start_scene(redis, [...brisk, '-t', '3000']);
  const { proxy, worker, db } = scene;
  const client = new ollama_client({ host: proxy.url });
  const request = { model: 'm', messages: [{ role: 'user', content: 'olá' }] };

  await context.test('aos poucos: cada pedaço na hora', async () => {
    const asked = client.chat({ ...request, stream: true });
    const task = await worker.next();
    assert.deepEqual([task.method, task.url], ['POST', '/api/chat']);
    assert.deepEqual(JSON.parse(task.body), { ...request, stream: true });
    await db.rPush(task.task_list, chat_line('O'));
    const seen: string[] = [];
    for await (const { message, done } of await asked) {
      seen.push(message.content);
      if (seen.length === 1) await db.rPush(task.task_list, chat_line('lá')); // só depois de lido
      if (seen.length === 2) await db.rPush(task.task_list, [chat_line('', true), 'EOF']);
      assert.equal(done, seen.length === 3);
    }
    assert.deepEqual(seen, ['O', 'lá', '']);
    assert.equal((await end_of(proxy, task)).ending, 'done');
  });

  await context.test('de uma vez: uma linha é a resposta', async () => {
    const asked = client.chat(request);
    const { task_list } = await worker.next();
    await db.rPush(task_list, [chat_line('Olá!', true), 'EOF']);
    assert.equal((await asked).message.content, 'Olá!');
  });

  await context.test(
    'um erro do worker, com status, e o do tempo esgotado chegam como erros',
    async () => {
      const refused = client.chat({ ...request, stream: true });
      const { task_list } = await worker.next();
      const head = 'HTTP 404 {"Content-Type": "application/json"}';
      await db.rPush(task_list, [head, '{"error": "model not found"}', 'EOF']);
      await assert.rejects(refused, /model not found/);
      const late = client.chat({ ...request, stream: true });
      const task: task_record = await worker.next();
      await db.rPush(task.task_list, chat_line('O'));
      const read_all = async () => {
        for await (const _ of await late);
      };
      await assert.rejects(read_all(), /timeout/);
      assert.equal((await end_of(proxy, task)).ending, 'timeout');
    },
  );

  await context.test('abort cancela a tarefa', async () => {
    const asked = client.chat({ ...request, stream: true });
    const task = await worker.next();
    await db.rPush(task.task_list, chat_line('O'));
    const read_all = async () => {
      for await (const _ of await asked) client.abort();
    };
    await assert.rejects(read_all(), { name: 'AbortError' });
    assert.equal((await end_of(proxy, task)).ending, 'client_gone');
  });
});
