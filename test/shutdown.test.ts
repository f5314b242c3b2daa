/*
 * A parada do programa: o que os clientes veem, o que fica no Redis, e em quanto tempo ele sai.
 * GRACE é de um minuto onde o teste prova que ninguém o espera: o teste desistiria antes.
 */

import assert from 'node:assert/strict';
import http from 'node:http';
import { before } from 'node:test';
import {
  begin,
  brisk,
  check_tombstone,
  clog,
  clog_reader,
  default_ttl_s,
  exit_of,
  fetch_all,
  free_port,
  freeze_redis,
  goodbye,
  type local_redis,
  long_grace,
  open_socket,
  open_stream,
  program_file,
  type proxy,
  run_proxy,
  start_program,
  start_proxy,
  start_redis,
  start_scene,
  start_worker,
  task_named,
  test,
  until,
} from './harness';

/** O comando script é outro fora do Linux. */
const no_terminal = process.platform !== 'linux' && 'só no Linux';

let redis: local_redis;

before(async () => {
  redis = await start_redis();
});

/**
 * Pede que o proxy pare e espera que ele diga que começou a parar.
 * @param proxy o proxy
 * @param signal o sinal
 */
async function ask_to_stop(proxy: proxy, signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
  proxy.process.kill(signal);
  await proxy.wait_for(new RegExp(` stop signal=${signal} streams=\\d+ grace=\\d+\\n`));
}

for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
  test(`${signal} sem fluxos: sai com 0 na hora, apesar das conexões ociosas`, async () => {
    const { proxy } = await start_scene(redis, [...brisk, ...long_grace]);
    const agent = new http.Agent({ keepAlive: true });
    assert.equal((await fetch_all(proxy, { path: '/ping', agent })).body, 'pong');
    const used = await open_socket(proxy.port);
    used.send('GET /ping HTTP/1.1\r\nHost: a\r\n\r\n');
    await used.wait_for(/pong$/);
    const silent = await open_socket(proxy.port);
    await ask_to_stop(proxy, signal);
    assert.equal(await exit_of(proxy), 0);
    await Promise.all([used.closed(), silent.closed()]);
    assert.match(
      proxy.stdout(),
      / stop signal=\w+ streams=0 grace=600000\n.* stopped streams=0\n$/,
    );
    assert.equal(proxy.stderr(), '');
    agent.destroy();
  });
}

test('a porta fica livre na hora; o fluxo antigo e o programa novo convivem', async () => {
  const { proxy, worker, db, channel } = await start_scene(redis, [...brisk, ...long_grace]);
  const old = await begin(proxy, worker, ['primeira']);
  await ask_to_stop(proxy);
  const successor = await start_proxy(redis, ['-C', channel, '-p', String(proxy.port)]);
  const fresh = open_stream(successor);
  const task = await worker.next();
  await db.rPush(task.task_list, ['nova', 'EOF']);
  assert.deepEqual(await fresh.rest(), ['nova']);
  await db.rPush(old.task.task_list, ['segunda', 'terceira']);
  await db.del(old.task.task_key);
  assert.deepEqual(await old.stream.rest(), ['segunda', 'terceira']);
  assert.equal(await exit_of(proxy), 0);
  assert.match(proxy.stdout(), /stop signal=SIGTERM streams=1 [\s\S]* ending=done .* lines=3 /);
  assert.match(proxy.stdout(), / stopped streams=0\n$/);
  assert.deepEqual(await db.keys(`*${old.task.uuid}`), []);
  assert.equal((await fetch_all(successor, { path: '/ping' })).body, 'pong');
});

test('fluxo que não termina a tempo: a última linha diz por quê, e o corpo fecha bem', async () => {
  const { proxy, worker, db } = await start_scene(redis, [...brisk, '--grace', '100']);
  const client = await open_socket(proxy.port);
  client.send('GET / HTTP/1.1\r\nHost: a\r\n\r\n');
  const task = await worker.next();
  await db.set(`ndjson_claim_${task.uuid}`, 'worker-1');
  await db.rPush(task.task_list, 'primeira');
  await client.wait_for(/primeira\n/);
  await ask_to_stop(proxy);
  await client.closed();
  const size = (goodbye.length + 1).toString(16);
  assert.ok(client.text().endsWith(`\r\n${size}\r\n${goodbye}\n\r\n0\r\n\r\n`), client.text());
  assert.equal(await exit_of(proxy), 0);
  assert.match(proxy.stdout(), /ending=shutdown status=200 lines=1 bytes=9 .*\n.* stopped .*\n$/);
  await check_tombstone(db, task);
});

test('fluxo sem nenhum byte enviado: 503 de verdade, em JSON', async () => {
  const own = await start_redis();
  const { proxy, worker, db } = await start_scene(own, [...brisk, '--grace', '0']);
  await db.sendCommand(['CLIENT', 'PAUSE', '60000', 'WRITE']);
  const asked = fetch_all(proxy);
  const blocked = /^blocked_clients:1\b/m;
  await until('criação parada', async () => blocked.test(await db.info('clients')));
  await ask_to_stop(proxy);
  await db.sendCommand(['CLIENT', 'UNPAUSE']);
  const reply = await asked;
  assert.deepEqual([reply.status, reply.body], [503, `${goodbye}\n`]);
  assert.equal(reply.headers['content-type'], 'application/json');
  assert.equal(await exit_of(proxy), 0);
  assert.match(proxy.stdout(), / ending=shutdown status=503 lines=0 /);
  const uuid = (await until('anúncio', () => worker.pending.shift())).slice(-36);
  await check_tombstone(db, task_named(uuid));
});

test('corpo que não acaba de chegar: 503 depois de GRACE, sem tarefa', async () => {
  const { proxy, worker } = await start_scene(redis, [...brisk, '--grace', '100']);
  const client = await open_socket(proxy.port);
  client.send('POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n');
  await client.wait_for(/100 Continue/);
  client.send('metade');
  await ask_to_stop(proxy);
  await client.wait_for(/HTTP\/1.1 503 [\s\S]*Connection: close[\s\S]*\{"error": ".*"\}\n/i);
  await client.closed();
  assert.equal(await exit_of(proxy), 0);
  assert.deepEqual(worker.pending, []);
});

test('pedidos que chegam durante a parada: 503 e conexão fechada', async () => {
  const { proxy, worker, db } = await start_scene(redis, [...brisk, ...long_grace]);
  const late = await open_socket(proxy.port);
  late.send('GET /tarde HTTP/1.1\r\n'); // a conexão existe; o pedido só se completa depois
  const line = await open_socket(proxy.port);
  line.send('GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n');
  const task = await worker.next();
  await ask_to_stop(proxy);
  late.send('Host: a\r\n\r\n');
  await late.closed();
  await db.rPush(task.task_list, ['1', 'EOF']);
  await line.closed();
  const refused =
    /^HTTP\/1\.1 503 (?:.*\r\n)*connection: close\r\n(?:.*\r\n)*\r\n\{"error": ".*"\}\n$/i;
  assert.match(late.text(), refused);
  const [first = '', second = ''] = line.text().split(/(?<=\r\n0\r\n\r\n)/);
  assert.match(first, /^HTTP\/1\.1 200 [\s\S]*\r\n1\n\r\n0\r\n\r\n$/);
  assert.match(second, refused);
  assert.equal(await exit_of(proxy), 0);
  assert.deepEqual(worker.pending, []);
  assert.deepEqual(await db.keys(`*${task.uuid}`), []);
});

test('50 fluxos: cada um recebe a última linha, e só ficam listas que expiram', async () => {
  const own = await start_redis();
  const { proxy, worker, db } = await start_scene(own, [...brisk, '--grace', '0']);
  const begun = [];
  for (let n = 0; n < 50; n += 1) begun.push(await begin(proxy, worker, ['primeira']));
  await ask_to_stop(proxy);
  const ends = await Promise.all(begun.map(({ stream }) => stream.rest()));
  for (const lines of ends) assert.deepEqual(lines, [goodbye]);
  assert.equal(await exit_of(proxy), 0);
  assert.match(proxy.stdout(), / stop signal=SIGTERM streams=50 /);
  assert.equal(proxy.stdout().match(/ ending=shutdown /g)?.length, 50);
  assert.equal(await db.dbSize(), 50);
  for (const { task } of begun) await check_tombstone(db, task);
  assert.equal(proxy.stderr(), '');
});

test('cliente lento com muito por ler recebe tudo, mesmo que outros já tenham saído', async () => {
  const { proxy, worker, db } = await start_scene(redis, [...brisk, '--grace', '0']);
  const slow = await begin(proxy, worker, ['primeira']);
  const quick = await begin(proxy, worker, ['primeira']);
  await slow.stream.pause();
  await clog_reader(db, slow.task, proxy);
  await ask_to_stop(proxy);
  assert.deepEqual(await quick.stream.rest(), [goodbye]);
  const pattern = new RegExp(` end task=${slow.task.uuid} ending=shutdown status=200 lines=(\\d+)`);
  const [, taken] = await proxy.wait_for(pattern);
  await slow.stream.resume();
  const lines = await slow.stream.rest();
  assert.equal(lines.pop(), goodbye);
  assert.equal(lines.length, Number(taken) - 1); // a primeira já tinha sido lida
  assert.ok(lines.every((line) => line.length === clog.bytes));
  assert.equal(await exit_of(proxy), 0);
});

for (const [first, second, code] of [
  ['SIGTERM', 'SIGINT', 130],
  ['SIGINT', 'SIGTERM', 143],
  ['SIGTERM', 'SIGTERM', 143],
] as const) {
  test(`${first} e depois ${second}: sai na hora com ${code}`, async () => {
    const { proxy, worker, db } = await start_scene(redis, [...brisk, ...long_grace]);
    const { stream, task } = await begin(proxy, worker, ['primeira']);
    await ask_to_stop(proxy, first);
    proxy.process.kill(second);
    assert.equal(await exit_of(proxy), code);
    assert.match(proxy.stderr(), new RegExp(` killed signal=${second} streams=1\n$`));
    assert.doesNotMatch(proxy.stdout(), / stopped /);
    await assert.rejects(stream.rest());
    const ttl = await db.ttl(task.task_key);
    assert.ok(ttl > 0 && ttl <= default_ttl_s, `TTL ${ttl}`);
    await db.del(task.task_key);
  });
}

test('num terminal o primeiro Ctrl-C diz o que o segundo faz', { skip: no_terminal }, async () => {
  const port = await free_port();
  const channel = 'no_terminal';
  const worker = await start_worker(redis, channel);
  const args = ['-p', String(port), '-R', redis.server, '-C', channel, ...long_grace];
  const command = ['exec', process.execPath, await program_file(), ...args].join(' ');
  const terminal = start_program('script', ['-qec', command, '/dev/null'], { SHELL: '/bin/sh' });
  const [, pid] = await terminal.wait_for(/ pid=(\d+) /);
  await terminal.wait_for(/ url=http/);
  const stream = open_stream({ port });
  await worker.client.rPush((await worker.next()).task_list, 'primeira');
  assert.equal(await stream.next(), 'primeira');
  process.kill(Number(pid), 'SIGINT');
  await terminal.wait_for(/ signal=SIGINT streams=1 grace=\d+ hint="outro Ctrl-C sai já.*"\r?\n/);
  process.kill(Number(pid), 'SIGINT');
  assert.equal(await exit_of(terminal), 130);
  await assert.rejects(stream.rest());
});

test('Redis fora do ar: o fluxo recebe a última linha e o programa sai com 0', async () => {
  const own = await start_redis();
  const { proxy, worker } = await start_scene(own, [...brisk, '--grace', '0']);
  const { stream } = await begin(proxy, worker, ['primeira']);
  await own.stop('SIGKILL');
  await proxy.wait_for(/ redis_down /);
  await ask_to_stop(proxy);
  assert.deepEqual(await stream.rest(), [goodbye]);
  assert.equal(await exit_of(proxy), 0);
  assert.match(proxy.stdout(), / stopped streams=0\n$/);
});

test('Redis travado: fluxo, pedido a meio e parada terminam assim mesmo', async () => {
  const own = await start_redis();
  const { proxy, worker, db } = await start_scene(own, [...brisk, '--grace', '0']);
  const { stream, task } = await begin(proxy, worker, ['primeira']);
  await freeze_redis(own);
  try {
    const asked = await open_socket(proxy.port);
    asked.send('GET / HTTP/1.1\r\nHost: a\r\n\r\n');
    await fetch_all(proxy, { method: 'OPTIONS' }); // quem veio antes já foi lido
    await ask_to_stop(proxy);
    assert.deepEqual(await stream.rest(), [goodbye]);
    await asked.wait_for(/^HTTP\/1\.1 50[34] [\s\S]*\r\n\r\n\{"error": ".*"\}\n$/);
    assert.equal(await exit_of(proxy), 0);
  } finally {
    own.process.kill('SIGCONT');
  }
  assert.match(proxy.stdout(), / stopped streams=0\n$/);
  assert.ok((await db.ttl(task.task_key)) !== -1); // apagada depois, ou por expirar
});

test('sinal antes da primeira conexão com o Redis: sai com 0', async () => {
  const own = await start_redis();
  await freeze_redis(own);
  try {
    const program = await run_proxy(['-p', '0', '--host', '127.0.0.1', '-R', own.server]);
    await program.wait_for(/ start version=/);
    program.process.kill('SIGTERM');
    assert.equal(await exit_of(program), 0);
    assert.match(program.stdout(), / stop signal=SIGTERM streams=0 .*\n.* stopped streams=0\n$/);
    assert.equal(program.stderr(), '');
  } finally {
    own.process.kill('SIGCONT');
  }
});
