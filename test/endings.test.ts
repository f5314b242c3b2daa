/*
 * Os fins de um fluxo: o que o cliente vê, o que fica no Redis e a linha de log de cada um.
 */

import assert from 'node:assert/strict';
import { rmSync as remove } from 'node:fs';
import { before, describe } from 'node:test';
import {
  at_some_pace,
  begin,
  brisk,
  clog,
  clog_reader,
  connect_redis,
  default_ttl_s,
  delay,
  end_of,
  fetch_all,
  type local_redis,
  open_socket,
  open_stream,
  type proxy,
  push_clog,
  type redis_client,
  see_listeners,
  see_tombstone,
  served,
  start_program,
  start_proxy,
  start_redis,
  start_scene,
  start_worker,
  task_named,
  type task_names,
  test,
  tests_at_once,
  until,
} from './harness';

let redis: local_redis;

/** Um que os testes tratam mal, um de cada vez, e deixam vazio e são. */
let strict: local_redis;

before(async () => {
  [redis, strict] = await Promise.all([start_redis(), start_redis()]);
});

/**
 * Cria no Redis o usuário "proxy", que pode tudo menos alguns comandos.
 * @param db cliente do Redis
 * @param where o Redis
 * @param denied comandos proibidos, na forma "-lpop"
 * @returns o endereço do Redis com esse usuário
 */
async function restrict(db: redis_client, where: local_redis, denied: string[]) {
  await db.aclSetUser('proxy', ['reset', 'on', '>senha', '~*', '&*', '+@all', ...denied]);
  return `redis://proxy:senha@${where.server}`;
}

/**
 * Lê, sem parar mas devagar, uma linha que leva mais que MAXTIME para ser lida inteira.
 * @param maxtime_ms o MAXTIME
 */
async function read_slowly(maxtime_ms: number): Promise<void> {
  const { proxy, worker, db } = await start_scene(redis, [...brisk, '-t', `${maxtime_ms}`]);
  const client = await open_socket(proxy.port);
  const line = 'x'.repeat(12_000_000);
  const bytes_per_ms = line.length / (2.7 * maxtime_ms);
  let received = 0;
  client.socket.removeAllListeners('data').on('data', (text) => {
    received += text.length;
    client.socket.pause();
  });
  client.send('GET / HTTP/1.0\r\n\r\n');
  const task = await worker.next();
  await db.rPush(task.task_list, [line, 'EOF']);
  const started_at = performance.now();
  await until('linha inteira lida devagar, ou conexão cortada', () => {
    const allowed = (performance.now() - started_at) * bytes_per_ms;
    if (received < allowed) client.socket.resume();
    return received > line.length || / end task=/.test(proxy.stdout());
  });
  client.socket.removeAllListeners('data').resume();
  assert.equal((await end_of(proxy, task)).ending, 'done');
  assert.equal(proxy.stderr(), '');
}

/**
 * Tira os direitos do proxy na pausa depois da primeira linha, com a segunda já retirada.
 * @param pause_ms o PAUSE
 */
async function lose_rights(pause_ms: number): Promise<void> {
  const own = await start_redis();
  const { db } = await start_scene(own, brisk);
  const server = await restrict(db, own, []);
  const worker = await start_worker(own, 'jobs_acl');
  const proxy = await start_proxy({ server }, ['-C', 'jobs_acl', '-P', `${pause_ms}`, '-i', '50']);
  const stream = open_stream(proxy);
  const task = await worker.next();
  await db.rPush(task.task_list, ['1', '2']);
  assert.equal(await stream.next(), '1');
  await db.aclSetUser('proxy', ['-exists', '-unlink']); // durante a pausa
  assert.deepEqual(await stream.rest(), ['2', '{"error": "redis denied access"}']);
  const end = await end_of(proxy, task);
  assert.deepEqual([end.ending, end.status, end.lines], ['failed', '200', '2']);
  await proxy.wait_for(new RegExp(` clean_refused task=${task.uuid} reason="NOPERM`));
  const ttls = await Promise.all([db.ttl(task.task_key), db.ttl(task.task_list)]);
  assert.ok(
    ttls.every((ttl) => ttl > 0 && ttl <= default_ttl_s),
    String(ttls),
  );
}

/**
 * Faz um segredo passar por tudo o que se registra, e confere que o log não o tem.
 * @param maxtime_ms o MAXTIME
 */
async function keep_secrets(maxtime_ms: number): Promise<void> {
  const { proxy, worker, db } = await start_scene(strict, [...brisk, '-t', `${maxtime_ms}`]);
  await db.flushAll();
  const secret = 'segredo';
  const asked = {
    path: `/caminho?chave=${secret}`,
    headers: { 'X-Chave': secret, Authorization: `Bearer ${secret}`, Cookie: `a=${secret}` },
    body: secret,
  };
  const give = async (...elements: string[]) => {
    const stream = open_stream(proxy, asked);
    const task = await worker.next();
    if (elements.length > 0) await db.rPush(task.task_list, elements);
    else await db.set(task.task_list, secret);
    if (elements[0] === 'sai') stream.leave();
    else assert.match((await stream.rest()).join(), /segredo|timeout|refused/);
    return (await end_of(proxy, task)).ending;
  };
  const head = `HTTP 200 {"X-Bom": "${secret}", "Server": "${secret}"}`;
  assert.equal(await give(head, secret, `HTTP 999 {"X": "${secret}"}`, 'EOF'), 'done');
  assert.equal(await give(`HTTP 200 {"${secret}`, secret), 'timeout');
  assert.equal(await give('sai', secret), 'client_gone');
  assert.equal(await give(), 'failed');
  await db.configSet('maxmemory', '1');
  assert.equal((await fetch_all(proxy, asked)).status, 503);
  await db.configSet('maxmemory', '0');
  assert.equal(await proxy.stop(), 0);
  const log = proxy.stdout() + proxy.stderr();
  assert.match(log, / task task=\S+ method=POST path=\/caminho body=7 receivers=1\n/);
  for (const tag of ['header_refused', 'head_as_line', 'create_failed', 'stream_error']) {
    assert.match(log, new RegExp(` ${tag} `));
  }
  assert.doesNotMatch(log, new RegExp(secret));
}

/** Testes que passam quase todo o tempo à espera do relógio; correm juntos. */
const patient_tests: Record<string, () => Promise<void>> = {
  'cada linha reinicia o relógio de MAXTIME': async () => {
    await at_some_pace([1200, 6000, 20_000], async (maxtime_ms) => {
      const { proxy, worker, db } = await start_scene(redis, [...brisk, '-t', `${maxtime_ms}`]);
      const stream = open_stream(proxy);
      const task = await worker.next();
      await db.set(`ndjson_claim_${task.uuid}`, 'worker-1');
      let pushed_at = 0;
      for (const line of ['1', '2', '3']) {
        await delay(maxtime_ms / 2.5);
        pushed_at = performance.now();
        await db.rPush(task.task_list, line);
        assert.equal(await stream.next(), line);
      }
      assert.deepEqual(await stream.rest(), ['{"error": "timeout"}']);
      assert.ok(performance.now() - pushed_at >= maxtime_ms);
      const end = await end_of(proxy, task);
      assert.deepEqual([end.ending, end.lines], ['timeout', '3']);
      assert.ok(Number(end.ms) > 2 * maxtime_ms, `${end.ms}: o relógio não recomeçou`);
      await see_tombstone(db, task);
    });
  },

  'cliente que não lê nada por MAXTIME perde a conexão': () =>
    at_some_pace([1500, 6000, 20_000], async (maxtime_ms) => {
      const { proxy, worker, db } = await start_scene(redis, [...brisk, '-t', String(maxtime_ms)]);
      const stream = open_stream(proxy);
      const task = await worker.next();
      await db.rPush(task.task_list, 'primeira');
      assert.equal(await stream.next(), 'primeira');
      await stream.pause();
      await push_clog(db, task);
      assert.equal((await end_of(proxy, task)).ending, 'client_gone');
      const noted = new RegExp(` stalled_reader task=${task.uuid} maxtime=${maxtime_ms}\n`);
      await proxy.wait_for(noted);
      await stream.resume();
      await assert.rejects(stream.rest(), /aborted/);
      await see_tombstone(db, task);
    }),

  'cliente lento que continua lendo não perde a conexão, por grande que seja a linha': () =>
    at_some_pace([1500, 6000, 20_000], read_slowly),

  'permissões perdidas no meio do fluxo: o que já saiu da lista é entregue': () =>
    at_some_pace([500, 4000, 20_000], lose_rights),

  'worker que empurra para sempre: quando o cliente sai, o laço para e tudo expira': async () => {
    const own = await start_redis();
    const { proxy, worker, db } = await start_scene(own, [...brisk, '--ttl', '1']);
    const { stream, task } = await begin(proxy, worker);
    const worker_state = { alive: true };
    const push_forever = async () => {
      for (let n = 0; worker_state.alive; n += 1) {
        await db.rPush(task.task_list, String(n));
        await delay(5);
      }
    };
    const pushing = push_forever();
    pushing.catch(() => {}); // se o teste falha antes, a falha é a dele
    for (let n = 0; n < 20; n += 1) assert.equal(await stream.next(), String(n));
    stream.leave();
    assert.equal((await end_of(proxy, task)).ending, 'client_gone');
    const pops = await served(db, 'lpop');
    // o EOF expira, e o worker refaz a lista sem TTL; quando ele para, a varredura lhe dá um
    await until('lista refeita', async () => (await db.ttl(task.task_list)) === -1);
    worker_state.alive = false;
    await pushing;
    await proxy.wait_for(/ sweep adopted=1 ttl=600\n/);
    assert.ok((await db.ttl(task.task_list)) > 0);
    assert.equal(await served(db, 'lpop'), pops);
    assert.equal(await proxy.stop(), 0);
    assert.match(proxy.stdout(), / stop signal=SIGTERM streams=0 /);
    assert.equal(proxy.stderr(), '');
  },

  'anúncio que ninguém ouve é registrado na hora, e não como worker calado': async () => {
    const proxy = await start_proxy(redis, ['-C', 'ninguem', '-t', '300']);
    const stream = open_stream(proxy);
    assert.deepEqual(await stream.rest(), ['{"error": "timeout"}']);
    assert.equal(await proxy.stop(), 0);
    const log = `${proxy.stdout()}${proxy.stderr()}`.trimEnd().split('\n').sort();
    const hint = log.findIndex((line) => / no_worker task=\S+ hint=".*canal ninguem;/.test(line));
    const end = log.findIndex((line) => line.includes(' end task='));
    assert.ok(hint >= 0 && hint < end, log.join('\n'));
    assert.doesNotMatch(proxy.stderr(), /silent_worker/);
  },

  'timeout depois de uma linha não acusa o worker de silêncio': () =>
    at_some_pace([1500, 6000, 20_000], async (maxtime_ms) => {
      const { proxy, worker, db } = await start_scene(redis, [...brisk, '-t', `${maxtime_ms}`]);
      const stream = open_stream(proxy);
      const task = await worker.next();
      await db.rPush(task.task_list, 'oi');
      assert.deepEqual(await stream.rest(), ['oi', '{"error": "timeout"}']);
      assert.equal((await end_of(proxy, task)).ending, 'timeout');
      assert.doesNotMatch(proxy.stderr(), /silent_worker/);
    }),
};

describe('esperas', { concurrency: tests_at_once }, () => {
  for (const [title, run] of Object.entries(patient_tests)) test(title, run);
});

for (const [name, args, line] of [
  ['padrão', [], '{"error": "timeout"}'],
  ['em JSON', ['-E', '{"erro": "demorou", "código": 7}'], '{"erro": "demorou", "código": 7}'],
  ['em texto puro', ['-E', 'acabou o tempo'], 'acabou o tempo'],
] as const) {
  test(`timeout com a mensagem ${name}: status 200, a linha, e só o EOF no Redis`, async () => {
    const { proxy, db } = await start_scene(redis, [...brisk, '-t', '300', ...args]);
    const { status, headers, body } = await fetch_all(proxy);
    assert.deepEqual([status, body], [200, `${line}\n`]);
    assert.equal(headers['content-type'], 'application/x-ndjson');
    const task = task_named(String(headers['x-task-uuid']));
    const end = await end_of(proxy, task);
    assert.deepEqual([end.ending, end.status, end.lines], ['timeout', '200', '0']);
    assert.ok(Number(end.ms) >= 300, end.ms);
    await see_tombstone(db, task);
  });
}

test('timeout sem linha nenhuma, embora alguém ouvisse: o log pergunta pelo banco', async () => {
  const elsewhere = { ...redis, server: redis.server.replace(/\d+$/, '3') };
  const { proxy, worker } = await start_scene(elsewhere, [...brisk, '-t', '100']);
  assert.deepEqual((await fetch_all(proxy)).body, '{"error": "timeout"}\n');
  const silent = / silent_worker task=\S+ receivers=1 hint="(.*)"\n.* end task=.*\n$/;
  const [, hint = ''] = await proxy.wait_for(silent);
  assert.match(hint, /banco 3 deste proxy\? .*n8n .*começam no 0/);
  assert.equal(worker.pending.length, 1);
  const default_database = { ...redis, server: redis.server.replace(/\/\d+$/, '') };
  const { proxy: other } = await start_scene(default_database, [...brisk, '-t', '100']);
  assert.deepEqual((await fetch_all(other)).body, '{"error": "timeout"}\n');
  await other.wait_for(/ silent_worker .*banco 0 deste proxy\? \(REDIS_SERVER sem \/N é o 0/);
});

test('timeout de uma tarefa reservada neste banco: o log não pergunta por ele', async () => {
  await at_some_pace([500, 5000], async (limit_ms) => {
    const { proxy, worker, db } = await start_scene(redis, [...brisk, '-t', String(limit_ms)]);
    const reply = fetch_all(proxy);
    const task = await worker.next();
    await db.set(`ndjson_claim_${task.uuid}`, 'ana', { expiration: { type: 'EX', value: 600 } });
    assert.equal((await reply).body, '{"error": "timeout"}\n');
    await end_of(proxy, task);
    assert.doesNotMatch(proxy.stderr(), /silent_worker/);
  });
});

test('a lista que expira por ler, depois de o worker acabar, não é um fim', async () => {
  const { proxy, worker, db } = await start_scene(redis, ['-P', '5000', '--ttl', '2']);
  const { stream, task } = await begin(proxy, worker);
  await db.multi().rPush(task.task_list, ['1', '2']).del(task.task_key).exec();
  assert.equal(await stream.next(), '1'); // a outra só sai daqui a 5 s
  await until('renovação', async () => (await db.pTTL(task.task_list)) > 0);
  await delay(1000); // outra renovação, que vê a lista sem a tarefa
  proxy.process.kill('SIGSTOP');
  await until('lista expirada', async () => (await db.exists(task.task_list)) === 0);
  proxy.process.kill('SIGCONT');
  assert.deepEqual(await stream.rest(), ['{"error": "redis lost"}']);
});

test('o que o fim de um fluxo faz suspeitar', async () => {
  const { proxy, worker, db, channel } = await start_scene(redis, brisk);
  const serve = async (answer: (task: task_names) => Promise<unknown>) => {
    const reply = fetch_all(proxy);
    const task = await worker.next();
    await answer(task);
    const { body } = await reply;
    await end_of(proxy, task);
    const lines = proxy.stderr().split('\n');
    return { task, body, log: lines.filter((line) => line.includes(task.uuid)).join('\n') };
  };
  const missed = await serve(async ({ task_key, uuid }) => {
    await db.rPush(`ndjson_list__${uuid}`, ['uma', 'duas']); // o prefixo com um _ a mais
    await db.del(task_key);
  });
  assert.equal(missed.body, '');
  const names = 'REDIS_PREFIX ndjson_task_ e REDIS_LIST_PREFIX ndjson_list_,';
  const { uuid, task_list: read } = missed.task;
  const empty = ` empty_stream task=${uuid} list=${read} hint=".*${names}`;
  assert.match(missed.log, new RegExp(empty));
  for (const words of [['uma'], ['EOF'], [' ']]) {
    const { log } = await serve(({ task_list, task_key }) => {
      return db.multi().rPush(task_list, words).del(task_key).exec();
    });
    assert.equal(log, '');
  }
  const second = await connect_redis(redis);
  await second.subscribe(channel, () => {});
  await see_listeners(db, channel, 2);
  const mixed = await serve(({ task_list }) => db.rPush(task_list, ['uma', 'uma', 'EOF']));
  assert.match(mixed.log, / unclaimed task=\S+ receivers=2 hint="/);
  const claimed = await serve(async ({ uuid, task_list }) => {
    await db.set(`ndjson_claim_${uuid}`, 'eu', { condition: 'NX' });
    await db.rPush(task_list, ['uma', 'EOF']);
  });
  assert.equal(claimed.log, '');
});

for (const [name, args, lines] of [
  ['antes da primeira linha', [], []],
  ['entre linhas', [], ['1', '2']],
  ['durante PAUSE', ['--wakeup', 'off', '-P', '600000'], ['1']],
  ['entre consultas', ['--wakeup', 'off', '-P', '600000'], []],
  ['durante INTERVAL', ['--wakeup', 'off', '-i', '600000'], []],
] as const) {
  test(`cliente que sai ${name}: tarefa apagada na hora, laço parado`, async () => {
    const { proxy, worker, db } = await start_scene(redis, [...brisk, ...args]);
    const pops_before = await served(db, 'lpop');
    const stream = open_stream(proxy);
    const task = await worker.next();
    for (const line of lines) {
      await db.rPush(task.task_list, line);
      assert.equal(await stream.next(), line);
    }
    if (args.some((word) => word === 'off')) {
      await until('primeira consulta', async () => (await served(db, 'lpop')) > pops_before);
    }
    stream.leave();
    const end = await end_of(proxy, task);
    assert.deepEqual([end.ending, end.lines], ['client_gone', String(lines.length)]);
    const pops_after = await served(db, 'lpop');
    await see_tombstone(db, task);
    assert.equal(await served(db, 'lpop'), pops_after);
  });
}

for (const [how, leave] of [
  ['fecha a conexão', 'destroy'],
  ['encerra só a metade de escrita', 'end'],
] as const) {
  test(`cliente que não lê nada e ${how}: o socket cheio não segura a limpeza`, async () => {
    const { proxy, worker, db } = await start_scene(redis, brisk);
    const client = await open_socket(proxy.port);
    client.socket.pause();
    client.send('GET / HTTP/1.1\r\nHost: a\r\n\r\n');
    const task = await worker.next();
    await clog_reader(db, task, proxy);
    client.socket[leave]();
    const end = await end_of(proxy, task);
    assert.equal(end.ending, 'client_gone');
    assert.ok(Number(end.lines) < clog.lines, `${end.lines} linhas: o socket nunca encheu`);
    await see_tombstone(db, task);
  });
}

/** Código de saída do curl: a conexão foi cortada com um RST. Com um fechamento seria 0. */
const curl_reset = 56;

/**
 * Corta um curl em HTTP/1.0 que não lê, e vê que ele o sabe: fechar seria, para ele, o fim. (O Node
 * não serve de cliente: numa leitura parcial toma o RST por fim.)
 * @param args argumentos para o proxy
 * @param cut faz o proxy cortá-lo
 */
async function cut_old_client(
  args: string[],
  cut: (scene: { proxy: proxy; db: redis_client }, task: task_names) => Promise<unknown>,
): Promise<void> {
  const { proxy, worker, db } = await start_scene(redis, [...brisk, ...args]);
  const quiet = ['-s', '-0', '-o', '/dev/null'];
  const client = start_program('curl', [...quiet, `http://127.0.0.1:${proxy.port}/`]);
  const task = await worker.next();
  client.process.kill('SIGSTOP');
  await cut({ proxy, db }, task);
  client.process.kill('SIGCONT');
  assert.equal(await client.exited, curl_reset, client.stderr());
}

test('cliente HTTP/1.0 que não lê nada por MAXTIME recebe um RST', () =>
  at_some_pace([1500, 6000, 20_000], (maxtime_ms) =>
    cut_old_client(['-t', `${maxtime_ms}`], async ({ proxy, db }, task) => {
      await push_clog(db, task);
      await proxy.wait_for(/ stalled_reader /);
      await end_of(proxy, task);
    }),
  ));

test('cliente que encerra só a metade de escrita conta como quem saiu', async () => {
  const { proxy, worker, db } = await start_scene(redis, brisk);
  const client = await open_socket(proxy.port);
  client.send('GET / HTTP/1.1\r\nHost: a\r\n\r\n');
  const task = await worker.next();
  client.socket.end();
  const end = await end_of(proxy, task);
  await client.closed();
  const status = client.text() === '' ? '0' : '200'; // 0: nem os cabeçalhos tinham saído
  assert.deepEqual([end.ending, end.status, end.lines], ['client_gone', status, '0']);
  await see_tombstone(db, task);
});

test('cliente que sai enquanto a tarefa é criada não deixa tarefa', async () => {
  const { proxy, worker, db } = await start_scene(strict, brisk);
  await db.flushAll();
  await db.sendCommand(['CLIENT', 'PAUSE', '60000', 'WRITE']);
  const client = await open_socket(proxy.port);
  client.send('GET / HTTP/1.1\r\nHost: a\r\n\r\n');
  const blocked = /^blocked_clients:1\b/m;
  await until('MULTI parado', async () => blocked.test(await db.info('clients')));
  client.destroy();
  await db.sendCommand(['CLIENT', 'UNPAUSE']);
  const task_key = await until('anúncio', () => worker.pending.shift());
  await until('tarefa apagada', async () => (await db.exists(task_key)) === 0);
  const noted = /ending=client_gone|create_failed/;
  await until('registro', () => noted.test(proxy.stdout() + proxy.stderr()));
  const lists = await db.keys('*');
  assert.equal(lists.length, 1);
  assert.ok((await db.ttl(lists[0] ?? '')) > 0);
});

test('200 clientes que saem juntos: 200 tarefas apagadas, e o proxy continua são', async () => {
  const { proxy, worker, db } = await start_scene(strict, brisk);
  await db.flushAll();
  const streams = Array.from({ length: 200 }, () => open_stream(proxy));
  const heard = await until('200 tarefas', () =>
    worker.pending.length === 200 ? worker.pending : undefined,
  );
  for (const stream of streams) stream.leave();
  await until('tarefas apagadas', async () => (await db.exists(heard)) === 0);
  await until('200 fins', () => proxy.stdout().match(/ ending=client_gone /g)?.length === 200);
  const lists = await db.keys('*');
  assert.equal(lists.length, 200);
  const ttls = await Promise.all(lists.map((list) => db.ttl(list)));
  assert.ok(
    ttls.every((ttl) => ttl > 0 && ttl <= default_ttl_s),
    String(ttls),
  );
  assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
  assert.equal(await proxy.stop(), 0);
  assert.match(proxy.stdout(), / stop signal=SIGTERM streams=0 /);
  assert.equal(proxy.stderr(), '');
});

test('worker que apaga as duas chaves de uma vez: fim normal, com o que já chegou', async () => {
  for (const args of [[], ['--wakeup', 'off']]) {
    const { proxy, worker, db } = await start_scene(redis, [...brisk, ...args]);
    const { stream, task } = await begin(proxy, worker, ['1']);
    const { task_key, task_list } = task;
    await db.multi().rPush(task_list, ['2', '3']).del([task_key, task_list]).exec();
    assert.deepEqual(await stream.rest(), []);
    const end = await end_of(proxy, task);
    assert.deepEqual([end.ending, end.status, end.lines], ['done', '200', '1']);
    assert.deepEqual(await db.keys(`*${task.uuid}`), []);
    assert.equal(proxy.stderr(), '');
  }
});

test('a linha end traz os números do fluxo', async () => {
  const { proxy, worker, db } = await start_scene(redis, brisk);
  const stream = open_stream(proxy);
  const task = await worker.next();
  const lines = ['{"n":1}', 'ação', 'x'.repeat(1000)];
  await db.rPush(task.task_list, ['HTTP 404', ' ', ...lines, 'EOF']);
  assert.deepEqual(await stream.rest(), lines);
  const { ms, ...end } = await end_of(proxy, task);
  const bytes = lines.reduce((sum, line) => sum + Buffer.byteLength(line) + 1, 0);
  assert.deepEqual(end, {
    task: task.uuid,
    ending: 'done',
    status: '404',
    lines: '3',
    bytes: String(bytes),
  });
  assert.match(ms ?? '', /^\d+$/);
  assert.deepEqual(await db.keys(`*${task.uuid}`), []);
});

test('corpo, busca, valores de cabeçalhos e linhas nunca vão para o log', () =>
  at_some_pace([1500, 10_000, 20_000], keep_secrets));

test('lista de tipo errado no meio do fluxo: linha de erro, e o EOF no lugar dela', async () => {
  const { proxy, worker, db } = await start_scene(redis, [...brisk, '-i', '100']);
  const stream = open_stream(proxy);
  const task = await worker.next();
  await db.rPush(task.task_list, '1');
  assert.equal(await stream.next(), '1');
  await db.set(task.task_list, 'não sou lista');
  assert.deepEqual(await stream.rest(), ['{"error": "redis refused a command"}']);
  const end = await end_of(proxy, task);
  assert.deepEqual([end.ending, end.status, end.lines], ['failed', '200', '1']);
  assert.equal(end.reason, '"redis refused a command"');
  assert.match(proxy.stderr(), / stream_error task=\S+ reason="[^"]*WRONGTYPE/);
  await see_tombstone(db, task);
});

test('consulta recusada antes do primeiro byte: 503 de verdade, em JSON', async () => {
  const own = await start_redis();
  const { db, worker } = await start_scene(own, brisk);
  const server = await restrict(db, own, ['-lpop']);
  const proxy = await start_proxy({ server }, ['-C', 'jobs_acl']);
  await worker.subscriber.subscribe('jobs_acl', (key) => worker.pending.push(key));
  const answered = fetch_all(proxy);
  const task = task_named((await until('anúncio', () => worker.pending.shift())).slice(-36));
  await db.rPush(task.task_list, '1');
  const reply = await answered;
  assert.equal(reply.status, 503);
  assert.equal(reply.headers['content-type'], 'application/json');
  assert.equal(reply.body, '{"error": "redis denied access"}\n');
  const end = await end_of(proxy, task);
  assert.deepEqual([end.ending, end.status, end.lines], ['failed', '503', '0']);
  await see_tombstone(db, task);
});

for (const [name, reason, code, refuse, undo] of [
  ['memória cheia', 'redis is out of memory', 'OOM', 'CONFIG SET maxmemory 1', ''],
  ['só leitura', 'redis is read-only', 'READONLY', 'REPLICAOF 127.0.0.1 1', 'REPLICAOF NO ONE'],
  ['PUBLISH proibido', 'redis denied access', 'NOPERM', 'ACL SETUSER default -publish', ''],
] as const) {
  test(`criação recusada (${name}): 503, nada guardado; depois tudo volta`, async () => {
    const { proxy, worker, db } = await start_scene(strict, brisk);
    await db.flushAll();
    await db.sendCommand(refuse.split(' '));
    const reply = await fetch_all(proxy, { body: 'oi' });
    assert.equal(reply.status, 503);
    assert.equal(reply.headers['content-type'], 'application/json');
    assert.equal(reply.body, `{"error": "${reason}"}\n`);
    await proxy.wait_for(new RegExp(` create_failed task=\\S+ reason="${code} `));
    await proxy.wait_for(new RegExp(` refused status=503 .* reason="${reason}" `));
    const undoing = undo || refuse.replace('1', '0').replace('-publish', '+publish');
    await db.sendCommand(undoing.split(' '));
    assert.deepEqual([await db.keys('*'), worker.pending], [[], []]);
    const stream = open_stream(proxy);
    await db.rPush((await worker.next()).task_list, ['1', 'EOF']);
    assert.deepEqual(await stream.rest(), ['1']);
    assert.deepEqual(await db.keys('*'), []);
  });
}

test('Redis que não salva em disco responde erro ao PING: 504, nada guardado', async () => {
  const own = await start_redis();
  const { proxy, worker, db } = await start_scene(own, brisk);
  remove(own.dir, { recursive: true });
  await db.configSet('save', '3600 1');
  await db.sendCommand(['BGSAVE']);
  const failed = /^rdb_last_bgsave_status:err/m;
  await until('falha ao salvar', async () => failed.test(await db.info('persistence')));
  await assert.rejects(db.ping(), /^ErrorReply: MISCONF|^Error: MISCONF/);
  assert.equal((await fetch_all(proxy, { body: 'oi' })).status, 504);
  assert.equal((await fetch_all(proxy, { path: '/ping' })).status, 500);
  await db.configSet('save', '');
  assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
  assert.deepEqual([await db.keys('*'), worker.pending], [[], []]);
});
