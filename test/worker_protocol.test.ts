/*
 * O contrato com os workers, falado como eles o falam: o worker em Python do programa original, tal
 * como foi publicado, e as variações que existem por aí (n8n, redis-cli, quem disputa tarefas, quem
 * confere se ainda há cliente). O que muda de um para outro é só quem assina e como termina.
 */

import assert from 'node:assert/strict';
import { spawnSync as run } from 'node:child_process';
import { before, describe } from 'node:test';
import type { task_record } from '../json-proxy';
import {
  connect_redis,
  delay,
  fetch_all,
  type local_redis,
  open_socket,
  open_stream,
  type redis_client,
  type proxy as running_proxy,
  start_program,
  start_proxy,
  start_redis,
  test,
  until,
} from './harness';

/** O worker original deixa meio segundo entre a última mensagem e os DELs. */
const before_delete_ms = 500;

/** As pausas do worker original entre mensagens, encurtadas. */
const between_messages_ms = 10;

const channel = 'ndjson_jobs';

/** Um worker em teste: o canal já assinado e um cliente para os comandos. */
type worker_side = { client: redis_client; next_key: () => Promise<string> };

let redis: local_redis;
let proxy: running_proxy;
let observer: redis_client;

before(async () => {
  redis = await start_redis();
  proxy = await start_proxy(redis);
  observer = await connect_redis(redis);
});

/**
 * Assina o canal e guarda as chaves anunciadas.
 * @param pattern se assina por padrão (PSUBSCRIBE), como o n8n
 * @returns o lado do worker; `stop` desfaz a assinatura
 */
async function subscribe(pattern = ''): Promise<worker_side & { stop: () => Promise<unknown> }> {
  const client = await connect_redis(redis);
  const subscriber = await connect_redis(redis);
  const keys: string[] = [];
  const listener = (message: string) => {
    keys.push(message);
  };
  if (pattern) await subscriber.pSubscribe(pattern, listener);
  else await subscriber.subscribe(channel, listener);
  const next_key = () => until('anúncio de tarefa', () => keys.shift());
  const stop = () => (pattern ? subscriber.pUnsubscribe() : subscriber.unsubscribe());
  return { client, next_key, stop };
}

/**
 * Dá o nome da lista como o worker original: trocando um pedaço do nome da chave.
 * @param task_key chave da tarefa
 * @returns por exemplo "ndjson_list_<uuid>"
 */
function original_list_name(task_key: string): string {
  return `ndjson_list${task_key.replace('ndjson_task', '')}`;
}

/** As seis linhas do worker original: cinco mensagens e a final, que é uma linha como as outras. */
const original_messages = [
  ...[1, 2, 3, 4, 5].map((step) => JSON.stringify({ step, message: `Processando ${step} de 5` })),
  JSON.stringify({ status: 'completed', message: 'Tarefa concluída' }),
];

/**
 * Atende uma tarefa como o worker original em Python, do anúncio à última mensagem.
 * @param side o lado do worker
 * @returns chave da tarefa, nome da lista e a tarefa lida
 */
async function original_work(side: worker_side) {
  const task_key = await side.next_key();
  assert.equal(await side.client.exists(task_key), 1);
  const task: task_record = JSON.parse((await side.client.get(task_key)) ?? '');
  const list_name = original_list_name(task_key);
  for (const message of original_messages) {
    await side.client.rPush(list_name, message);
    await delay(between_messages_ms);
  }
  return { task_key, list_name, task };
}

/**
 * Espera o fim de uma tarefa no log e confere que nada restou no Redis.
 * @param task a tarefa
 * @param lines linhas que o log deve contar
 */
async function assert_done(task: Pick<task_record, 'uuid'>, lines: number): Promise<void> {
  await proxy.wait_for(new RegExp(`end task=${task.uuid} ending=done status=200 lines=${lines} `));
  assert.deepEqual(await observer.keys(`*${task.uuid}*`), []);
  assert.doesNotMatch(proxy.stderr(), new RegExp(`${task.uuid}`));
}

describe('o worker original em Python', () => {
  test('seis linhas, meio segundo, DEL da tarefa e DEL da lista', async () => {
    const side = await subscribe();
    const stream = open_stream(proxy, {
      path: '/qualquer/caminho?x=1',
      headers: { 'content-type': 'application/json', 'x-api-key': 'k' },
      body: '{"pergunta":"olá"}',
    });
    const { task_key, list_name, task } = await original_work(side);
    assert.equal(task.headers['Content-Type'], 'application/json');
    assert.equal(task.headers['X-Api-Key'], 'k');
    assert.equal(task.body, '{"pergunta":"olá"}');
    assert.equal(task_key, `ndjson_task_${task.task_name}`);
    assert.equal(list_name, task.task_list);
    for (const message of original_messages) assert.equal(await stream.next(), message);
    await delay(before_delete_ms);
    assert.equal(await side.client.exists(task_key), 1, 'a mensagem final não termina o fluxo');
    assert.equal(await side.client.del(task_key), 1);
    await side.client.del(list_name);
    assert.deepEqual(await stream.rest(), []);
    await assert_done(task, original_messages.length);
    await side.stop();
  });

  test('a tarefa sem corpo tem "" em body', async () => {
    const side = await subscribe();
    const stream = open_stream(proxy);
    const { task_key, task } = await original_work(side);
    assert.equal(task.body, '');
    await side.client.del(task_key);
    assert.deepEqual(await stream.rest(), original_messages);
    await assert_done(task, original_messages.length);
    await side.stop();
  });

  for (const word of ['EOF', 'END-OF-LIST']) {
    test(`com ${word} no fim, os DELs que chegam depois não acham nada`, async () => {
      const side = await subscribe();
      const stream = open_stream(proxy);
      const { task_key, list_name, task } = await original_work(side);
      await side.client.rPush(list_name, word);
      assert.deepEqual(await stream.rest(), original_messages);
      await assert_done(task, original_messages.length);
      assert.equal(await side.client.del(task_key), 0);
      assert.equal(await side.client.del(list_name), 0);
      assert.deepEqual(await observer.keys(`*${task.uuid}*`), []);
      await side.stop();
    });
  }

  test('linhas que parecem cabeças, e as que seguem EOF, chegam como no original', async () => {
    const side = await subscribe();
    const stream = open_stream(proxy);
    const task_key = await side.next_key();
    const lines = ['HTTP 404 Not Found', '{"n":1}', 'HTTP 200 OK', 'HTTP 999'];
    await side.client.rPush(original_list_name(task_key), [...lines, ' ', 'EOF', '{"n":2}']);
    assert.equal((await stream.head()).statusCode, 200);
    assert.deepEqual(await stream.rest(), [...lines, '{"n":2}']);
    assert.equal(await side.client.del(task_key), 0);
    await side.stop();
  });

  test('os campos que o original dá, um formulário no corpo, os nomes na resposta', async () => {
    const side = await subscribe();
    const headers = { 'Content-Type': 'application/x-www-form-urlencoded', 'X_Under-score': 'u' };
    const stream = open_stream(proxy, { method: 'PUT', path: '/a', headers, body: 'a=1&b=%20' });
    const { task_key, list_name, task } = await original_work(side);
    assert.equal(task.body, 'a=1&b=%20');
    assert.equal(task.headers['X-Under-Score'], 'u');
    const seconds_ago = Date.now() / 1000 - task.request_time;
    assert.ok(seconds_ago >= 0 && seconds_ago < 60, `${seconds_ago} s`);
    const given = (await stream.head()).headers;
    const names = [given['x-task-uuid'], given['x-task-key'], given['x-task-list']];
    assert.deepEqual(names, [task.uuid, task_key, list_name]);
    assert.equal(given['content-type'], 'application/x-ndjson');
    await side.client.del(task_key);
    assert.deepEqual(await stream.rest(), original_messages);
    await side.stop();
  });

  test('o que ali cria uma tarefa e aqui não: POST /ping, HEAD e URL com acentos', async () => {
    const side = await subscribe();
    const ping = await fetch_all(proxy, { path: '/ping', body: '{}' });
    assert.deepEqual([ping.status, ping.body], [200, 'pong']);
    assert.equal((await fetch_all(proxy, { method: 'HEAD', path: '/a' })).status, 200);
    const raw = await open_socket(proxy.port);
    raw.send('GET /ação HTTP/1.1\r\nHost: a\r\n\r\n');
    await raw.wait_for(/^HTTP\/1\.1 400 [\s\S]* percent-encoded"\}\n$/);
    const stream = open_stream(proxy, { path: '/a%C3%A7%C3%A3o' });
    const { task_key, task } = await original_work(side);
    assert.equal(task.url, '/a%C3%A7%C3%A3o', 'é a primeira tarefa que o worker ouve');
    await side.client.del(task_key);
    assert.deepEqual(await stream.rest(), original_messages);
    await side.stop();
  });

  test('cinco pedidos seguidos ao mesmo worker, que nunca reconecta', async () => {
    const side = await subscribe();
    for (let round = 0; round < 5; round += 1) {
      const stream = open_stream(proxy, { body: String(round) });
      const task_key = await side.next_key();
      const task: task_record = JSON.parse((await side.client.get(task_key)) ?? '');
      await side.client.rPush(original_list_name(task_key), task.body);
      await side.client.del(task_key);
      assert.deepEqual(await stream.rest(), [String(round)]);
      await assert_done(task, 1);
    }
    await side.stop();
  });
});

describe('outros workers', () => {
  test('quem assina por padrão, como o n8n, é ouvido e contado', async () => {
    const side = await subscribe('ndjson_*');
    const stream = open_stream(proxy, { path: '/n8n' });
    const { task_key, task } = await original_work(side);
    await side.client.del(task_key);
    assert.deepEqual(await stream.rest(), original_messages);
    await assert_done(task, original_messages.length);
    assert.match(proxy.stdout(), new RegExp(`task=${task.uuid} .*path=/n8n .*receivers=1\n`));
    await side.stop();
  });

  test('sem assinante o log avisa, e um worker que ache a chave ainda atende', async () => {
    const stream = open_stream(proxy);
    const [, uuid = ''] = await proxy.wait_for(/no_worker task=(\S+) hint="[^"]*ndjson_jobs/);
    await observer.rPush(`ndjson_list_${uuid}`, 'x');
    await observer.del(`ndjson_task_${uuid}`);
    assert.deepEqual(await stream.rest(), ['x']);
  });

  test('quem usa task_list da tarefa, com prefixos que não são os padrões', async () => {
    const args = ['-X', 'outra:tarefa:', '-L', 'outra:lista:', '-C', 'outro_canal'];
    const other = await start_proxy(redis, args);
    const keys: string[] = [];
    const subscriber = await connect_redis(redis);
    await subscriber.subscribe('outro_canal', (key) => {
      keys.push(key);
    });
    const stream = open_stream(other);
    const task_key = await until('anúncio de tarefa', () => keys.shift());
    const task: task_record = JSON.parse((await observer.get(task_key)) ?? '');
    assert.equal(task_key, `outra:tarefa:${task.uuid}`);
    assert.equal(task.task_key, task_key);
    assert.equal(task.task_list, `outra:lista:${task.uuid}`);
    await observer.rPush(task.task_list, ['a', 'b']);
    await observer.del(task.task_key);
    assert.deepEqual(await stream.rest(), ['a', 'b']);
    assert.deepEqual(await observer.keys(`*${task.uuid}*`), []);
    assert.equal(await other.stop(), 0);
  });

  test('dois workers disputam a tarefa com uma chave, que some com ela', async () => {
    const sides = [await subscribe(), await subscribe()];
    const stream = open_stream(proxy);
    const claims = await Promise.all(
      sides.map(async ({ client, next_key }) => {
        const task_key = await next_key();
        const claim = task_key.replace('ndjson_task', 'ndjson_claim');
        const won = await client.set(claim, 'eu', { NX: true, EX: 60 });
        if (won) await client.rPush(original_list_name(task_key), 'só uma vez');
        if (won) await client.del(task_key);
        return { won, uuid: task_key.replace('ndjson_task_', '') };
      }),
    );
    assert.deepEqual(claims.map(({ won }) => won).sort(), ['OK', null]);
    assert.deepEqual(await stream.rest(), ['só uma vez']);
    await assert_done(claims[0] ?? { uuid: '' }, 1);
    for (const side of sides) await side.stop();
  });

  test('quem confere EXISTS antes de cada passo para quando o cliente sai', async () => {
    const side = await subscribe();
    const stream = open_stream(proxy);
    const task_key = await side.next_key();
    const list_name = original_list_name(task_key);
    let steps = 0;
    const worked = until('a tarefa sumir', async () => {
      if ((await side.client.exists(task_key)) === 0) return true;
      steps += 1;
      await side.client.rPush(list_name, String(steps));
      return false;
    });
    assert.equal(await stream.next(), '1');
    assert.equal(await stream.next(), '2');
    stream.leave();
    await worked;
    await proxy.wait_for(new RegExp(`end task=${task_key.slice(-36)} ending=client_gone`));
    // um passo atrasado cai numa lista que expira
    await side.client.rPush(list_name, 'atrasada');
    assert.deepEqual(await observer.keys(`*${task_key.slice(-36)}`), [list_name]);
    const ttl_s = await observer.ttl(list_name);
    assert.ok(ttl_s > 0 && ttl_s <= 600, `${ttl_s} s`);
    assert.equal(await observer.lIndex(list_name, 0), 'EOF');
    await side.stop();
  });
});

/** Um worker em shell: recebe a porta e a chave, confere a tarefa e empurra três linhas. */
const shell_worker = `
  cli="redis-cli -p $1 -n 1"
  list=ndjson_list_\${2#ndjson_task_}
  test "$($cli EXISTS "$2")" = 1 || exit 3
  $cli RPUSH "$list" '{"n": 1}'
  $cli RPUSH "$list" '{"n": 2}' '{
  "texto": "em várias linhas"
}'
`;

const has_redis_cli = !run('redis-cli', ['-v']).error;

describe('o worker em redis-cli', { skip: !has_redis_cli && 'não há redis-cli' }, () => {
  for (const ending of ['DEL "$2"', 'RPUSH "$list" EOF']) {
    test(`assina, empurra e termina com ${ending}`, async () => {
      const cli = ['-p', String(redis.port), '-n', '1'];
      const subscriber = start_program('redis-cli', [...cli, 'SUBSCRIBE', channel]);
      await subscriber.wait_for(/subscribe\nndjson_jobs\n/);
      const reply = fetch_all(proxy);
      const [, task_key = ''] = await subscriber.wait_for(/message\nndjson_jobs\n(\S+)\n/);
      const script = `${shell_worker}$cli ${ending}`;
      const shell = start_program('sh', ['-c', script, 'sh', String(redis.port), task_key]);
      assert.equal(await shell.exited, 0, shell.stderr());
      const { body } = await reply;
      assert.equal(body, '{"n": 1}\n{"n": 2}\n{   "texto": "em várias linhas" }\n');
      await assert_done({ uuid: task_key.replace('ndjson_task_', '') }, 3);
      await subscriber.stop();
    });
  }
});
