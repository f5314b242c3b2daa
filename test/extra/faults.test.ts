/*
 * As faltas que levam tempo: o Redis travado por dez segundos, a conexão cortada sem parar sob
 * carga, a varredura entre muitas chaves, a parada com todos os workers empurrando. Nada do que se
 * confere aqui depende de quanto tempo algo levou: contam-se linhas.
 */

import assert from 'node:assert/strict';
import { randomUUID as random_uuid } from 'node:crypto';
import net from 'node:net';
import { describe } from 'node:test';
import {
  begin,
  check_tombstone,
  default_ttl_s,
  delay,
  end_of,
  exit_of,
  fetch_all,
  freeze_redis,
  goodbye,
  on_stop,
  type proxy,
  type redis_client,
  type scene,
  served,
  start_proxy,
  start_redis,
  start_scene,
  start_worker,
  task_named,
  test,
  until,
} from '../harness';

/** Por quanto tempo o Redis trava, e em quanto ele deve ser dado por ausente, com folga. */
const hang = { ms: 10_000, refusal_ms: 8000 };

/** Um corpo que não cabe nos buffers de uma conexão: parte dele espera no proxy. */
const big_body = 'x'.repeat(3_000_000);

/** Quantos cortes, e em que ponto do pedaço que traz linhas cada um cai, em vez. */
const cuts = { count: 60, points: [0, 0.25, 0.5, 0.75, 1] };

/** O que cada worker empurra por vez sob carga, e quanto espera entre uma vez e outra, em ms. */
const load = { lines: 5, pause_ms: 5 };

/** Outras chaves no Redis, listas sem dono entre elas, e o máximo que uma página do SCAN pede. */
const crowd = { others: 200_000, orphans: 100, page: 500 };

/** Maior que tudo o que um teste espera. */
const forever = ['-t', '120000'];

/** GRACE bastante para o sucessor subir e atender enquanto o antigo ainda espera. */
const grace_ms = 10_000;

/** Prazo para o fim de um fluxo com muitas linhas. */
const long_patience_ms = 60_000;

/** As linhas de um teste trazem o número do fluxo e o da linha: "<3:17>". */
const line_pattern = /<\d+:\d+>/g;

/** O que fecha cada resposta do Redis. */
const line_break = Buffer.from('\r\n');

/** Um fluxo com um worker que empurra sem parar; `count` é quantas linhas já mandou. */
type busy_stream = Awaited<ReturnType<typeof begin>> & {
  index: number;
  count: number;
  alive: boolean;
  pushing: Promise<void>;
};

/** Uma conexão que passa pelo intermediário: o que falta para completar a mensagem de cada lado. */
type relayed_link = { near: net.Socket; far: net.Socket; request: Buffer; answer: Buffer };

/** O que o intermediário deve fazer a seguir. */
type relay_orders = {
  hold: { text: string; action: () => Promise<void> } | undefined;
  cut: { point: number; report: (lost: string[]) => void } | undefined;
};

/**
 * Acha o fim de uma mensagem do protocolo do Redis.
 * @param bytes o que chegou
 * @param at onde ela começa
 * @returns o índice logo depois dela; -1 se não chegou inteira
 */
function message_end(bytes: Buffer, at = 0): number {
  const line_end = bytes.indexOf('\r\n', at);
  if (line_end < 0) return -1;
  const kind = bytes.toString('latin1', at, at + 1);
  const size = Number(bytes.toString('latin1', at + 1, line_end));
  let next = line_end + 2;
  if ('$=!'.includes(kind) && size >= 0) {
    next += size + 2;
    return next <= bytes.length ? next : -1;
  }
  const parts = '*>~'.includes(kind) ? size : kind === '%' ? 2 * size : 0;
  for (let part = 0; part < parts && next >= 0; part += 1) next = message_end(bytes, next);
  return next;
}

/**
 * Manda ao Redis os pedidos inteiros que chegaram do proxy; a metade de um espera a outra.
 * @param link a conexão
 * @param orders se um deles deve esperar por algo
 */
function forward_requests(link: relayed_link, orders: relay_orders): void {
  const { near, far, request } = link;
  let from = 0;
  for (let end = message_end(request); end >= 0; end = message_end(request, from)) {
    const { hold } = orders;
    const must_hold = hold !== undefined && request.subarray(from, end).includes(hold.text);
    if (must_hold) {
      orders.hold = undefined;
      near.pause();
      void hold.action().then(() => {
        near.resume();
        forward_requests(link, orders);
      });
      break;
    }
    if (!far.write(request.subarray(from, end))) {
      near.pause();
      far.once('drain', () => near.resume());
    }
    from = end;
  }
  link.request = request.subarray(from);
}

/**
 * Manda ao proxy o que chegou do Redis, e guarda o começo da resposta que ainda não acabou.
 * @param link a conexão
 * @param chunk o que chegou
 */
function forward_answers(link: relayed_link, chunk: Buffer): void {
  link.near.write(chunk);
  link.answer = Buffer.concat([link.answer, chunk]);
  for (let end = message_end(link.answer); end >= 0; end = message_end(link.answer)) {
    link.answer = link.answer.subarray(end);
  }
}

/**
 * Corta uma conexão no meio do que o Redis respondia. Um ECHO, depois de tudo o que ele já recebeu,
 * mostra onde acabam as respostas que o proxy nunca verá inteiras.
 * @param link a conexão
 * @param rest o que chegou do Redis e não será repassado
 * @param report recebe as linhas que estavam nessas respostas
 */
function cut_link(link: relayed_link, rest: Buffer, report: (lost: string[]) => void): void {
  const { near, far } = link;
  const mark = random_uuid();
  let lost = Buffer.concat([link.answer, rest]);
  for (const socket of [near, far]) socket.removeAllListeners('data').removeAllListeners('close');
  near.resume().end();
  far.write(`*2\r\n$4\r\nECHO\r\n$${mark.length}\r\n${mark}\r\n`);
  far.on('data', (chunk: Buffer) => {
    lost = Buffer.concat([lost, chunk]);
    if (!lost.includes(mark)) return;
    far.destroy();
    report(lost.toString('latin1').match(line_pattern) ?? []);
  });
}

/**
 * Liga uma conexão do proxy ao Redis.
 * @param near o lado do proxy
 * @param port porta do Redis
 * @param orders o que fazer com ela
 */
function link_up(near: net.Socket, port: number, orders: relay_orders): void {
  const far = net.connect(port, '127.0.0.1');
  const link = { near, far, request: Buffer.alloc(0), answer: Buffer.alloc(0) };
  near.on('error', () => {}).on('close', () => far.destroy());
  far.on('error', () => {}).on('close', () => near.destroy());
  near.on('data', (chunk: Buffer) => {
    link.request = Buffer.concat([link.request, chunk]);
    forward_requests(link, orders);
  });
  far.on('data', (chunk: Buffer) => {
    const { cut } = orders;
    if (!cut || !chunk.toString('latin1').match(line_pattern)) {
      forward_answers(link, chunk);
      return;
    }
    orders.cut = undefined;
    let at = Math.floor(chunk.length * cut.point);
    while (line_break.includes(chunk[at] ?? 0)) at += 1; // o proxy não espera por ela
    forward_answers(link, chunk.subarray(0, at));
    cut_link(link, chunk.subarray(at), cut.report);
  });
}

/**
 * Põe um intermediário na frente do Redis, que entende o protocolo.
 * @param port porta do Redis
 * @returns `server`: o endereço dele; `hold`: o próximo pedido que trouxer o texto espera a ação;
 *   `cut`: corta a conexão no ponto dado do próximo pedaço que trouxer linhas, e devolve as que
 *   o proxy não verá
 */
async function start_relay(port: number) {
  const orders: relay_orders = { hold: undefined, cut: undefined };
  const relay = net.createServer((near) => link_up(near, port, orders));
  await new Promise<void>((resolve) => relay.listen(0, '127.0.0.1', resolve));
  on_stop(async () => relay.close());
  const hold = (text: string, action: () => Promise<void>) => {
    orders.hold = { text, action };
  };
  const cut = (point: number) => {
    let found: string[] | undefined;
    const report = (lost: string[]) => {
      found = lost;
    };
    orders.cut = { point, report };
    return until('corte', () => found);
  };
  return { server: `127.0.0.1:${(relay.address() as net.AddressInfo).port}/1`, port, hold, cut };
}

/**
 * Abre fluxos, cada um com um worker que empurra linhas numeradas até que o mandem parar.
 * @param scene o proxy e o worker
 * @param count quantos
 * @param pause_ms quanto cada worker espera entre uma vez e outra
 * @returns os fluxos
 */
async function begin_busy(
  { proxy, worker }: scene,
  count: number,
  pause_ms = load.pause_ms,
): Promise<busy_stream[]> {
  const begun: busy_stream[] = [];
  for (let index = 0; index < count; index += 1) {
    const parts = { index, count: 0, alive: true, pushing: Promise.resolve() };
    begun.push({ ...(await begin(proxy, worker)), ...parts });
  }
  for (const busy of begun) busy.pushing = push_on(worker.client, busy, pause_ms);
  return begun;
}

/**
 * Empurra linhas numeradas enquanto o worker estiver vivo.
 * @param db cliente do Redis
 * @param busy o fluxo
 * @param pause_ms quanto esperar entre uma vez e outra
 */
async function push_on(db: redis_client, busy: busy_stream, pause_ms: number): Promise<void> {
  while (busy.alive) {
    const { index, count } = busy;
    busy.count += load.lines;
    const lines = Array.from({ length: load.lines }, (_, n) => `<${index}:${count + n}>`);
    await db.rPush(busy.task.task_list, lines);
    await delay(pause_ms);
  }
}

/**
 * Dá as primeiras linhas de um fluxo, como o worker as empurrou.
 * @param busy o fluxo
 * @param count quantas
 * @returns as linhas
 */
function lines_of({ index }: Pick<busy_stream, 'index'>, count: number): string[] {
  return Array.from({ length: count }, (_, n) => `<${index}:${n}>`);
}

/**
 * Faz parar o worker de um fluxo, com um EOF no fim.
 * @param db cliente do Redis
 * @param busy o fluxo
 */
async function finish_busy(db: redis_client, busy: busy_stream): Promise<void> {
  busy.alive = false;
  await busy.pushing;
  await db.rPush(busy.task.task_list, 'EOF');
}

/**
 * Espera que o cliente de um fluxo receba mais linhas.
 * @param busy o fluxo
 */
async function see_flowing({ stream, index }: busy_stream): Promise<void> {
  const received = stream.arrivals.length;
  await until(`linhas no fluxo ${index}`, () => stream.arrivals.length >= received + load.lines);
}

/**
 * Abre os fluxos que vão atravessar o travamento, cada um com linhas já recebidas.
 * @param scene o proxy e o worker
 * @returns os fluxos, com o cliente do Redis que escreve neles
 */
async function begin_hung({ proxy, worker, db }: scene) {
  const begun = [];
  for (let n = 0; n < 5; n += 1) {
    begun.push({ proxy, db, ...(await begin(proxy, worker, [`antes ${n}`])) });
  }
  return begun;
}

/**
 * Confere que um fluxo atravessou o travamento sem perder nem repetir linhas.
 * @param hung o fluxo
 */
async function check_resumed(hung: Awaited<ReturnType<typeof begin_hung>>[number]): Promise<void> {
  const { proxy, db, stream, task } = hung;
  await db.rPush(task.task_list, ['depois', 'EOF']);
  assert.deepEqual(await stream.rest(), ['durante 1', 'durante 2', 'depois']);
  const { ending, lines } = await end_of(proxy, task);
  assert.deepEqual([ending, lines], ['done', '4']);
}

/**
 * Faz o que um worker faz ao ser chamado: lê a tarefa na hora.
 * @param scene o worker e o canal
 * @returns `heard`: o que ele achou a cada chamada feita até agora; null onde já não havia tarefa
 */
async function answer_calls({ worker, db, channel }: scene) {
  const found: Promise<string | null>[] = [];
  let is_over = false;
  await worker.subscriber.subscribe(channel, (message) => {
    if (message === 'fim') is_over = true;
    else found.push(db.get(message));
  });
  const heard = async () => {
    await db.publish(channel, 'fim');
    await until('fim das chamadas', () => is_over);
    return Promise.all(found);
  };
  return { heard };
}

/**
 * Confere, enquanto o Redis está travado, que pedidos novos são recusados a tempo.
 * @param proxy o proxy
 */
async function check_refusing(proxy: proxy): Promise<void> {
  const thaw_at = performance.now() + hang.ms;
  while (performance.now() < thaw_at) {
    const asked_at = performance.now();
    const asked = [fetch_all(proxy), fetch_all(proxy, { path: '/ping' })];
    const replies = await Promise.all(asked);
    assert.deepEqual(
      replies.map(({ status }) => status),
      [504, 500],
    );
    assert.ok(performance.now() - asked_at < hang.refusal_ms);
  }
}

/**
 * Espera o fim de um fluxo que a parada cortou: as linhas em ordem, sem falta, e a despedida. Do
 * que o worker ainda empurra depois, nada fica para sempre.
 * @param db cliente do Redis
 * @param busy o fluxo
 */
async function check_cut(db: redis_client, busy: busy_stream): Promise<void> {
  const lines = await busy.stream.rest(long_patience_ms);
  busy.alive = false;
  await busy.pushing;
  assert.equal(lines.pop(), goodbye);
  assert.deepEqual(lines, lines_of(busy, lines.length + 1).slice(1));
  assert.deepEqual(await db.keys(`*${busy.task.uuid}`), [busy.task.task_list]);
  assert.ok((await db.ttl(busy.task.task_list)) > 0);
}

describe('conexão com o Redis cortada sem parar', { concurrency: true }, () => {
  for (const wakeup of ['on', 'off']) {
    test(`só faltam as linhas das respostas cortadas (WAKEUP ${wakeup})`, async () => {
      const relay = await start_relay((await start_redis()).port);
      const args = [...forever, '-P', '0', '-i', '10', '--wakeup', wakeup];
      const scene = await start_scene(relay, args);
      const { proxy, db } = scene;
      const begun = await begin_busy(scene, 20);
      const lost = new Set<string>();
      for (let round = 0; round < cuts.count; round += 1) {
        const point = cuts.points[round % cuts.points.length] ?? 0;
        for (const line of await relay.cut(point)) lost.add(line);
        const is_back = () => proxy.stdout().match(/ redis_up /g)?.length === round + 1;
        await until(`volta ${round + 1}`, is_back);
        await Promise.all(begun.map(see_flowing));
      }
      await Promise.all(begun.map((busy) => finish_busy(db, busy)));
      for (const busy of begun) {
        const sent = lines_of(busy, busy.count);
        const expected = sent.filter((line) => !lost.has(line));
        const lines = await busy.stream.rest(long_patience_ms);
        const { ending } = await end_of(proxy, busy.task);
        if (ending === 'redis_lost') assert.equal(lines.pop(), '{"error": "redis lost"}');
        assert.deepEqual(lines, expected);
        // sem avisos, não se sabe do que chegou à lista no instante do corte
        const must_tell = wakeup === 'on' && expected.length < sent.length;
        assert.ok(!must_tell || ending === 'redis_lost', `${ending}, e faltam linhas`);
      }
      assert.ok(lost.size > 0, 'nenhum corte pegou linhas a caminho');
      for (const key of await db.keys('*')) assert.ok((await db.ttl(key)) > 0, key);
      assert.equal(await proxy.stop(), 0);
    });
  }
});

describe('Redis travado por dez segundos', () => {
  test('recusas enquanto dura; depois tudo segue, e quem foi recusado não é atendido', async () => {
    const redis = await start_redis();
    const relay = await start_relay(redis.port);
    const scenes = await Promise.all([
      start_scene(relay, [...forever, '-P', '0', '--wakeup', 'on']),
      start_scene(redis, [...forever, '-P', '5', '--wakeup', 'off', '-i', '20']),
    ]);
    const [first] = scenes;
    const begun = [];
    for (const scene of scenes) begun.push(...(await begin_hung(scene)));
    const calls = await Promise.all(scenes.map(answer_calls));

    let is_frozen = false;
    relay.hold('MULTI', async () => {
      await freeze_redis(redis); // a criação já está a caminho
      is_frozen = true;
    });
    const caught = fetch_all(first.proxy, { body: big_body });
    try {
      await until('Redis travado', () => is_frozen);
      const pushed = begun.map(({ db, task }) =>
        db.rPush(task.task_list, ['durante 1', 'durante 2']),
      );
      await Promise.all(scenes.map((scene) => check_refusing(scene.proxy)));
      assert.equal((await caught).status, 504);
      redis.process.kill('SIGCONT');
      await Promise.all(pushed);
    } finally {
      redis.process.kill('SIGCONT');
    }
    await Promise.all(begun.map(check_resumed));
    // o que foi anunciado, foi antes disto; só a criação que estava a caminho, e já sem tarefa
    assert.deepEqual(await Promise.all(calls.map((call) => call.heard())), [[null], []]);
    const [, uuid = ''] = await first.proxy.wait_for(
      / create_failed task=(\S+) reason="sem resposta/,
    );
    assert.deepEqual(await first.db.keys('*'), [task_named(uuid).task_list]);
    await check_tombstone(first.db, task_named(uuid));
    for (const { proxy } of scenes) {
      assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
      assert.equal(await proxy.stop(), 0);
    }
  });
});

describe('varredura', () => {
  test(`entre ${crowd.others} chaves, página a página: um fluxo não perde o passo`, async () => {
    const redis = await start_redis(['--enable-debug-command', 'yes']);
    const worker = await start_worker(redis);
    const { client: db } = worker;
    await db.sendCommand(['DEBUG', 'POPULATE', String(crowd.others), 'outra']);
    const orphans = Array.from({ length: crowd.orphans }, () => `ndjson_list_${random_uuid()}`);
    // há muito ninguém mexe nelas: as outras a varredura deixa em paz
    const make = `redis.call('RPUSH', KEYS[1], 'linha atrasada')
      redis.call('RESTORE', KEYS[1], 0, redis.call('DUMP', KEYS[1]), 'REPLACE', 'IDLETIME', 10000)`;
    await Promise.all(orphans.map((name) => db.eval(make, { keys: [name] })));
    const proxy = await start_proxy(redis, [...forever, '-P', '0']);
    const { stream, task } = await begin(proxy, worker);
    const over = new RegExp(` sweep adopted=${crowd.orphans} ttl=${default_ttl_s}\n`);
    const pages_before = await served(db, 'scan');
    let lines = 0;
    for (; !over.test(proxy.stdout()); lines += 1) {
      await db.rPush(task.task_list, String(lines));
      assert.equal(await stream.next(), String(lines));
    }
    const pages = await served(db, 'scan');
    assert.ok(pages >= crowd.others / crowd.page, `só ${pages} páginas`);
    const swept = pages - pages_before;
    assert.ok(swept > pages / 2 && lines > swept, `${lines} linhas durante ${swept} páginas`);
    await db.rPush(task.task_list, 'EOF');
    assert.deepEqual(await stream.rest(), []);
    for (const name of orphans) assert.ok((await db.ttl(name)) > 0);
    assert.equal(await proxy.stop(), 0);
    assert.equal(proxy.stderr(), '');
  });
});

describe('SIGTERM sob carga', () => {
  test('cada fluxo tem a sua última linha; a porta e os pedidos vão para o sucessor', async () => {
    const redis = await start_redis();
    const scene = await start_scene(redis, [...forever, '-P', '0', '--grace', String(grace_ms)]);
    const { proxy, worker, db, channel } = scene;
    const begun = await begin_busy(scene, 50, 20);
    for (const { stream, index } of begun) assert.equal(await stream.next(), `<${index}:0>`);
    proxy.process.kill('SIGTERM');
    await proxy.wait_for(/ stop signal=SIGTERM streams=50 /);
    const successor = await start_proxy(redis, ['-C', channel, '-p', String(proxy.port)]);
    for (let n = 0; n < 10; n += 1) {
      const fresh = await begin(successor, worker, [`nova ${n}`]);
      await db.del(fresh.task.task_key);
      assert.deepEqual(await fresh.stream.rest(), []);
    }
    assert.doesNotMatch(proxy.stdout(), / end | stopped /); // todos ainda correm no antigo
    const [finished, cut] = [begun.slice(0, 25), begun.slice(25)];
    for (const busy of finished) {
      await finish_busy(db, busy);
      assert.deepEqual(await busy.stream.rest(), lines_of(busy, busy.count).slice(1));
    }
    for (const busy of cut) await check_cut(db, busy);
    assert.equal(await exit_of(proxy), 0);
    assert.equal(proxy.stdout().match(/ ending=done /g)?.length, finished.length);
    assert.equal(proxy.stdout().match(/ ending=shutdown /g)?.length, cut.length);
    assert.equal(proxy.stderr(), '');
    assert.equal((await db.keys('*')).length, cut.length);
    assert.equal((await fetch_all(successor, { path: '/ping' })).body, 'pong');
  });
});
