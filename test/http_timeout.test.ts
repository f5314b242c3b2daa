/*
 * Os prazos longos, esperados de verdade. Tudo é aberto de uma vez, e por último a ampulheta, uma
 * conexão calada: quando ela recebe o seu 408, os 30 s dos cabeçalhos já passaram para todos.
 */

import assert from 'node:assert/strict';
import { after, before } from 'node:test';
import { fetch_all, type local_redis, type proxy, start_proxy, start_redis, test } from './harness';
import { assert_error, open_talk, raw_request, start_desk, type task_desk } from './http_helpers';

/** Prazo dos cabeçalhos no programa, menos o arredondamento dos relógios. */
const headers_limit_ms = 30_000 - 100;

/** Quanto se espera por ele, com folga para uma máquina carregada. */
const long_patience_ms = 60_000;

/** De quanto em quanto tempo as conexões que pingam mandam mais um byte. */
const drip_ms = 500;

/** Um corpo que ainda estará chegando quando os 30 s tiverem passado. */
const slow_length = 1000;

const late = 'request not received in time';
const stopped = 'request body stopped arriving';

type talk = Awaited<ReturnType<typeof open_talk>>;

let redis: local_redis;
let main_proxy: proxy;
let desk: task_desk;
let drip: NodeJS.Timeout;
let hourglass: talk;
let turned_at: number;
let half: talk;
let dripping: talk;
let behind: talk;
let silent: talk;
let idle: talk;
let slow_body: talk;
let slow_drip: NodeJS.Timeout;
let slow_sent = 0;
let stalled_body: talk;

/**
 * Espera a resposta de uma conexão, que deve ser um 408 seguido do fechamento.
 * @param late_talk a conexão
 * @param message o motivo que ela deve dar
 */
async function assert_late(late_talk: talk, message = late): Promise<void> {
  const reply = await late_talk.reply(true, long_patience_ms);
  assert_error(reply, 408, message);
  assert.equal(reply.headers.connection, 'close');
  await late_talk.closed();
  assert.equal(late_talk.leftover(), '');
}

before(async () => {
  redis = await start_redis();
  main_proxy = await start_proxy(redis, ['-i', '50', '-P', '0']);
  desk = await start_desk(redis, main_proxy);
  const half_request = 'GET /metade HTTP/1.1\r\nHost: proxy.test\r\nX-Pela: met';
  half = await open_talk(main_proxy, half_request);
  dripping = await open_talk(main_proxy, half_request);
  drip = setInterval(() => dripping.send('a'), drip_ms);
  behind = await open_talk(main_proxy, raw_request('GET /na-frente') + half_request);
  silent = await open_talk(main_proxy, raw_request('GET /calado'));
  idle = await open_talk(main_proxy, raw_request('GET /ping'));
  const put = (path: string) => raw_request(`PUT ${path}`, [`Content-Length: ${slow_length}`]);
  slow_body = await open_talk(main_proxy, put('/aos-poucos'));
  slow_drip = setInterval(() => {
    slow_body.send('a');
    slow_sent += 1;
  }, drip_ms);
  assert.equal((await idle.reply()).body, 'pong');
  turned_at = performance.now();
  stalled_body = await open_talk(main_proxy, `${put('/parado')}abc`);
  hourglass = await open_talk(main_proxy);
});

after(async () => {
  clearInterval(drip);
  clearInterval(slow_drip);
  assert.equal(await main_proxy.stop(), 0);
  assert.match(main_proxy.stdout(), / stop signal=SIGTERM streams=0 /, 'um pedido ficou preso');
  assert.doesNotMatch(main_proxy.stderr(), / (request_error|stream_error|fatal) /);
});

test('quem nada diz em 30 s recebe 408, e não antes', async () => {
  await assert_late(hourglass);
  assert.ok(performance.now() - turned_at >= headers_limit_ms);
});

test('cabeçalhos pela metade recebem 408', async () => {
  await assert_late(half);
});

test('um byte de cada vez não estica o prazo dos cabeçalhos', async () => {
  await assert_late(dripping);
});

test('meio pedido atrás de um fluxo: o fluxo termina inteiro, e então vem o 408', async () => {
  await hourglass.closed(long_patience_ms);
  const task = await desk.task('/na-frente');
  assert.equal(await desk.client.exists(task.task_key), 1);
  await desk.finish(task, ['{"n":1}', '{"n":2}']);
  const stream = await behind.reply();
  assert.equal(stream.status, 200);
  assert.equal(stream.body, '{"n":1}\n{"n":2}\n');
  await assert_late(behind);
});

test('um fluxo calado por mais de 30 s não é cortado, nem a conexão dele', async () => {
  await hourglass.closed(long_patience_ms);
  const task = await desk.task('/calado');
  await desk.finish(task, ['{"n":1}']);
  assert.equal((await silent.reply()).body, '{"n":1}\n');
  silent.send(raw_request('GET /ping'));
  assert.equal((await silent.reply()).body, 'pong');
});

test('uma conexão ociosa por mais de 30 s ainda serve', async () => {
  await hourglass.closed(long_patience_ms);
  idle.send(raw_request('GET /ping'));
  assert.equal((await idle.reply()).body, 'pong');
});

test('um corpo que para de chegar por 30 s recebe 408, e não antes', async () => {
  await assert_late(stalled_body, stopped);
  assert.ok(performance.now() - turned_at >= headers_limit_ms);
});

test('um corpo que leva mais de 30 s para chegar, aos poucos, vira tarefa inteiro', async () => {
  await stalled_body.closed(long_patience_ms);
  clearInterval(slow_drip);
  slow_body.send('a'.repeat(slow_length - slow_sent));
  const task = await desk.task('/aos-poucos');
  assert.equal(task.body, 'a'.repeat(slow_length));
  await desk.finish(task);
  assert.equal((await slow_body.reply()).status, 200);
});

test('nada além das três tarefas foi criado, e o programa segue de pé', async () => {
  assert.equal((await desk.created()).length, 3);
  assert.deepEqual(await desk.client.keys('*'), []);
  assert.equal((await fetch_all(main_proxy, { path: '/ping' })).body, 'pong');
});
