/*
 * Nada vaza: dez mil pedidos de todos os tipos pelo mesmo processo, mil clientes que saem juntos,
 * clientes que não leem e workers que empurram sem parar. O que o processo guarda é lido por fora,
 * com a sonda; o que fica no Redis, com os comandos dele.
 */

import assert from 'node:assert/strict';
import http from 'node:http';
import { before } from 'node:test';
import { isDeepStrictEqual as is_same } from 'node:util';
import type { task_record } from '../../json-proxy';
import { probe_env, type probe_reading, take_probe } from '../../scripts/dev/probe';
import {
  begin,
  brisk,
  check_tombstone,
  clog_reader,
  connect_redis,
  delay,
  end_of,
  fetch_all,
  type local_redis,
  open_socket,
  open_stream,
  type proxy,
  type redis_client,
  served,
  start_proxy,
  start_redis,
  start_worker,
  test,
  until,
  type worker,
} from '../harness';
import { raw_request } from '../http_helpers';

/** Quantos pedidos de todos os tipos, e depois de quantos se mede. */
const rounds = [2000, 6000, 10_000];

/** Pedidos ao mesmo tempo. */
const lanes = 64;

/** Quanto a memória pode variar entre duas medidas: o ruído medido chega à metade disto. */
const heap_noise_bytes = 1_000_000;

/** O REDIS_TTL e o MAXTIME de quem quer ver as chaves expirarem e o silêncio acabar logo. */
const soon = { ttl_s: 6, maxtime_ms: 3000 };

/** As linhas de stderr que são esperadas; um aviso do Node não é. */
const usual_log =
  /^probe \{|^\S+ (refused|refused_more|head_as_line|header_refused|silent_worker|stalled_reader) /;

const max_body = 1000;

/** O INTERVAL de fluxos que consultam sem avisos. */
const interval_ms = 200;

/** Prazo do que leva muitos segundos mesmo numa máquina folgada. */
const long_patience_ms = 60_000;

/** O que um pedido precisa para ser feito e respondido. */
type stage = {
  open: proxy;
  guarded: proxy;
  agent: http.Agent;
  db: redis_client;
  task_at: (url: string) => Promise<task_record>;
};

/** Um tipo de pedido: quantas vezes em cada mil, e como é feito; `url` é só dele. */
type kind = { share: number; run: (stage: stage, url: string) => Promise<void> };

/**
 * Espera o fim de um fluxo em que o worker diz tudo de uma vez.
 * @param stage onde
 * @param url caminho do pedido
 * @param elements o que o worker empurra
 * @param options o que o pedido leva a mais
 * @returns status e corpo
 */
async function exchange(
  stage: stage,
  url: string,
  elements: string[],
  options: Parameters<typeof fetch_all>[1] = {},
): Promise<[number, string]> {
  const answered = fetch_all(stage.open, { ...options, path: url });
  const task = await stage.task_at(url);
  await stage.db.rPush(task.task_list, elements);
  const { status, body } = await answered;
  return [status, body];
}

/**
 * Manda um pedido cru, deixa algo acontecer e some.
 * @param port porta do proxy
 * @param text o que é mandado
 * @param happen o que deve acontecer antes
 */
async function vanish(
  port: number,
  text: string,
  happen: (client: Awaited<ReturnType<typeof open_socket>>) => Promise<unknown>,
): Promise<void> {
  const client = await open_socket(port);
  client.send(text);
  await happen(client);
  client.destroy();
}

/** Todos os tipos de pedido. As partes somam mil. */
const kinds: Record<string, kind> = {
  'tarefa curta, conexão reaproveitada': {
    share: 250,
    run: async (stage, url) => {
      const { agent } = stage;
      const reply = await exchange(stage, url, ['1', '2', 'EOF'], { agent, body: 'oi' });
      assert.deepEqual(reply, [200, '1\n2\n']);
    },
  },
  'tarefa curta, conexão nova, fim por DEL': {
    share: 100,
    run: async (stage, url) => {
      const answered = fetch_all(stage.open, { path: url });
      const task = await stage.task_at(url);
      await stage.db.multi().rPush(task.task_list, '1').del(task.task_key).exec();
      assert.equal((await answered).body, '1\n');
    },
  },
  'cabeça do worker': {
    share: 60,
    run: async (stage, url) => {
      const head = 'HTTP 404 {"Content-Type": "application/json", "X-A": "b", "Date": "x"}';
      assert.deepEqual(await exchange(stage, url, [head, '{}', 'EOF']), [404, '{}\n']);
    },
  },
  'cabeça que não vale': {
    share: 20,
    run: async (stage, url) => {
      assert.deepEqual(await exchange(stage, url, ['HTTP 99', '{}', 'EOF']), [
        200,
        'HTTP 99\n{}\n',
      ]);
    },
  },
  '/ping, HEAD e OPTIONS': {
    share: 150,
    run: async ({ open, agent }, url) => {
      assert.equal((await fetch_all(open, { path: '/ping', agent })).body, 'pong');
      assert.equal((await fetch_all(open, { path: url, method: 'HEAD', agent })).status, 200);
      assert.equal((await fetch_all(open, { path: url, method: 'OPTIONS' })).status, 204);
    },
  },
  'corpo grande demais': {
    share: 40,
    run: async ({ open }, path) => {
      const reply = await fetch_all(open, { path, body: 'x'.repeat(max_body + 1) });
      assert.equal(reply.status, 413);
    },
  },
  'pedido malformado': {
    share: 40,
    run: async ({ open }) => {
      await vanish(open.port, 'isto não é HTTP\r\n\r\n', (client) => client.wait_for(/^\S+ 400 /));
    },
  },
  'HTTP/1.0': {
    share: 40,
    run: async (stage, url) => {
      const client = await open_socket(stage.open.port);
      client.send(raw_request(`GET ${url} HTTP/1.0`));
      await stage.db.rPush((await stage.task_at(url)).task_list, ['1', 'EOF']);
      await client.closed();
      assert.match(client.text(), /\r\n\r\n1\n$/);
    },
  },
  'três enfileirados': {
    share: 40,
    run: async (stage, url) => {
      const urls = [1, 2, 3].map((n) => `${url}/${n}`);
      const text = urls.map((at) => raw_request(`GET ${at}`)).join('');
      await vanish(stage.open.port, text, async (client) => {
        for (const at of urls) await stage.db.rPush((await stage.task_at(at)).task_list, 'EOF');
        await client.wait_for(/(0\r\n\r\n.*){3}/s);
      });
    },
  },
  'sai antes do fim do corpo': {
    share: 50,
    run: async ({ open }, url) => {
      const head = raw_request(`POST ${url}`, ['Expect: 100-continue', 'Content-Length: 9']);
      await vanish(open.port, `${head}metade`, (client) => client.wait_for(/^\S+ 100 /));
    },
  },
  'sai antes da primeira linha': {
    share: 70,
    run: async (stage, url) => {
      await vanish(stage.open.port, raw_request(`GET ${url}`), () => stage.task_at(url));
    },
  },
  'sai entre linhas': {
    share: 59,
    run: async (stage, url) => {
      await vanish(stage.open.port, raw_request(`GET ${url}`), async (client) => {
        await stage.db.rPush((await stage.task_at(url)).task_list, 'uma');
        await client.wait_for(/\numa\n/);
      });
    },
  },
  'sai com pedidos na fila': {
    share: 30,
    run: async (stage, url) => {
      const text = raw_request(`GET ${url}`) + raw_request(`GET ${url}/fila`).repeat(3);
      await vanish(stage.open.port, text, () => stage.task_at(url));
    },
  },
  'sai com o socket cheio': {
    share: 1,
    run: async (stage, url) => {
      await vanish(stage.open.port, raw_request(`GET ${url}`), async (client) => {
        client.socket.pause();
        await clog_reader(stage.db, await stage.task_at(url), stage.open);
      });
    },
  },
  'ninguém responde': {
    share: 20,
    run: async ({ open }, path) => {
      assert.equal((await fetch_all(open, { path })).body, '{"error": "timeout"}\n');
    },
  },
  'sem chave, e acima do limite': {
    share: 30,
    run: async ({ guarded }, path) => {
      const headers = { 'X-Api-Key': 'certa' };
      // chaves erradas contam no limite: passado ele, é ele que as recusa
      const { status } = await fetch_all(guarded, { path });
      assert.ok(status === 401 || status === 429, String(status));
      assert.equal((await fetch_all(guarded, { path, headers })).status, 429);
    },
  },
};

/**
 * Dá o tipo de um pedido: cada mil seguidos têm todos os tipos, nas suas partes, misturados.
 * @param index número do pedido
 * @returns o tipo e o nome dele
 */
function kind_of(index: number): [string, kind] {
  let place = (index * 7919) % 1000;
  for (const [name, kind] of Object.entries(kinds)) {
    if (place < kind.share) return [name, kind];
    place -= kind.share;
  }
  throw new Error('as partes dos tipos não somam mil');
}

/**
 * Ouve o canal e entrega cada tarefa a quem espera pela URL dela.
 * @param redis o Redis
 * @returns `db`: cliente para escrever linhas; `task_at`: espera a tarefa de uma URL
 */
async function start_switchboard(redis: local_redis) {
  const [db, subscriber] = await Promise.all([connect_redis(redis), connect_redis(redis)]);
  const tasks = new Map<string, task_record>();
  await subscriber.subscribe('ndjson_jobs', async (task_key) => {
    const text = await db.get(task_key);
    if (text === null) return; // o cliente já saiu
    const task: task_record = JSON.parse(text);
    tasks.set(task.url, task);
  });
  const task_at = (url: string) => until(`tarefa de ${url}`, () => tasks.get(url));
  return { db, task_at };
}

/**
 * Faz uma parte dos pedidos, vários ao mesmo tempo.
 * @param stage onde
 * @param first número do primeiro
 * @param end número do que vem depois do último
 */
async function toil(stage: stage, first: number, end: number): Promise<void> {
  let next = first;
  const lane = async () => {
    while (next < end) {
      const index = next++;
      const [name, { run }] = kind_of(index);
      await run(stage, `/${index}`).catch((error) => {
        next = end;
        throw new Error(`${index}, ${name}: ${error.message}`);
      });
    }
  };
  await Promise.all(Array.from({ length: lanes }, lane));
}

/**
 * Espera que um processo guarde os mesmos sockets e temporizadores que em repouso.
 * @param program o processo
 * @param at_rest o que ele guardava em repouso
 * @returns a leitura em que isso se viu
 */
async function settled(program: proxy, at_rest: probe_reading): Promise<probe_reading> {
  return until('sockets e temporizadores como no começo', async () => {
    const reading = await take_probe(program);
    return is_same(reading.resources, at_rest.resources) ? reading : undefined;
  });
}

/**
 * Confere que um proxy atravessou o teste sem nada de estranho no log, e que todo fluxo acabou.
 * @param program o proxy
 */
async function check_sound(program: proxy): Promise<void> {
  assert.equal(await program.stop(), 0);
  assert.match(program.stdout(), / stop signal=SIGTERM streams=0 /);
  const strange = program
    .stderr()
    .split('\n')
    .filter((line) => line && !usual_log.test(line) && !/ end \S+ ending=timeout /.test(line));
  assert.deepEqual(strange, []);
  const log = program.stdout() + program.stderr(); // o fim por tempo esgotado é um aviso
  const [begun, ended] = [/ task task=/g, / end task=/g].map(
    (pattern) => log.match(pattern)?.length,
  );
  assert.equal(ended, begun);
}

/**
 * Diz quanto um fluxo guarda, no máximo, do que o cliente não lê: um lote, que dobra enquanto não
 * passa de 256 KiB, ou duas linhas, se são maiores; e as cópias dos pedaços que se escrevem.
 * @param line_bytes tamanho das linhas, todas parecidas
 * @returns bytes; o que está no kernel não conta
 */
function stream_bound(line_bytes: number): number {
  return 768 * 1024 + 2 * line_bytes;
}

/**
 * Empurra linhas numeradas, muitas por vez.
 * @param db cliente do Redis
 * @param list a lista
 * @param lines quantas linhas, o número da primeira, e o que cada uma traz além do número
 */
async function push_numbered(
  db: redis_client,
  list: string,
  { count, first = 0, filling = '' }: { count: number; first?: number; filling?: string },
): Promise<void> {
  const per_push = 1000;
  for (let at = first; at < first + count; at += per_push) {
    const size = Math.min(per_push, first + count - at);
    await db.rPush(
      list,
      Array.from({ length: size }, (_, n) => `${at + n} ${filling}`),
    );
  }
}

/**
 * Espera que o proxy pare de retirar linhas de uma lista que não está vazia.
 * @param db cliente do Redis
 * @param list a lista
 * @returns quantas linhas ficaram nela
 */
async function clogged(db: redis_client, list: string): Promise<number> {
  let before_pause = -1;
  return until('socket cheio', async () => {
    const left = await db.lLen(list);
    const is_stuck = left > 0 && left === before_pause;
    before_pause = left;
    await delay(200);
    return is_stuck ? left : undefined;
  });
}

/**
 * Abre fluxos que param de ler depois da primeira linha.
 * @param where o proxy
 * @param worker o worker
 * @param count quantos
 * @returns os fluxos e as tarefas
 */
async function open_sleepers(where: proxy, worker: worker, count: number) {
  const begun = [];
  for (let n = 0; n < count; n += 1) begun.push(await begin(where, worker, ['primeira']));
  for (const { stream } of begun) await stream.pause();
  return begun;
}

/**
 * Lê um fluxo de linhas numeradas, e só guarda quantas vieram.
 * @param where o proxy
 * @returns `seen.lines`: quantas vieram; `seen.error`: a primeira fora de ordem; `leave`
 */
function count_stream(where: proxy) {
  const seen = { lines: 0, error: '' };
  let tail = '';
  const request = http.get({ port: where.port, host: '127.0.0.1', agent: false }, (response) => {
    response.setEncoding('latin1').on('error', () => {});
    response.on('data', (text) => {
      const parts = (tail + text).split('\n');
      tail = parts.pop() ?? '';
      for (const line of parts) {
        if (Number.parseInt(line, 10) !== seen.lines)
          seen.error ||= `${line} no lugar ${seen.lines}`;
        seen.lines += 1;
      }
    });
  });
  request.on('error', () => {});
  return { seen, leave: () => request.destroy() };
}

let redis: local_redis;

before(async () => {
  redis = await start_redis();
});

test(`${rounds.at(-1)} pedidos de todos os tipos: nada fica, nem no Redis`, async (t) => {
  const env = await probe_env();
  const limits = ['-t', String(soon.maxtime_ms), '--ttl', String(soon.ttl_s)];
  const args = [...brisk, ...limits, '--maxbody', String(max_body)];
  const rate = ['--api-key', 'certa', '--rate', '1/86400'];
  const open = await start_proxy(redis, args, env);
  const guarded = await start_proxy(redis, [...args, ...rate], env);
  const { db, task_at } = await start_switchboard(redis);
  const agent = new http.Agent({ keepAlive: true });
  const stage = { open, guarded, agent, db, task_at };
  const headers = { 'X-Api-Key': 'certa' };
  assert.deepEqual(await exchange({ ...stage, open: guarded }, '/x', ['EOF'], { headers }), [
    200,
    '',
  ]);

  const proxies = [open, guarded];
  const at_rest = await Promise.all(proxies.map(take_probe));
  const heaps: number[][] = [];
  for (const [index, end] of rounds.entries()) {
    await toil(stage, rounds[index - 1] ?? 0, end);
    agent.destroy();
    const readings = proxies.map((one, n) => settled(one, at_rest[n] as probe_reading));
    heaps.push((await Promise.all(readings)).map(({ heap_bytes }) => heap_bytes));
    t.diagnostic(`depois de ${end} pedidos, heap ${heaps.at(-1)}`);
  }
  const [first = [], ...later] = heaps;
  for (const readings of later) {
    readings.forEach((bytes, n) => {
      const growth = bytes - (first[n] ?? 0);
      assert.ok(growth < heap_noise_bytes, `o heap cresceu ${growth} bytes`);
    });
  }
  assert.deepEqual(await db.keys('ndjson_task_*'), []);
  const lists = await db.keys('ndjson_list_*');
  const ttls = await Promise.all(lists.map((list) => db.ttl(list)));
  assert.ok(!ttls.includes(-1), 'lista sem TTL');
  const is_empty = async () => (await db.keys('ndjson_[^r]*')).length === 0;
  await until('Redis vazio', is_empty, soon.ttl_s * 1000 + long_patience_ms);
  await check_sound(open);
  await check_sound(guarded);
});

test('mil clientes saem no mesmo instante: os laços param, as tarefas somem', async (t) => {
  const own = await start_redis();
  const polling = ['--wakeup', 'off', '-i', String(interval_ms), '-t', '600000', '--grace', '0'];
  const proxy = await start_proxy(own, polling, await probe_env());
  const worker = await start_worker(own);
  const db = worker.client;
  const at_rest = await take_probe(proxy);
  const streams = Array.from({ length: 1000 }, () => open_stream(proxy));
  await until('mil tarefas', () => worker.pending.length === 1000, long_patience_ms);
  const uuids = worker.pending.map((key) => key.slice(-36));
  await Promise.all(uuids.map((uuid) => db.rPush(`ndjson_list_${uuid}`, 'uma')));
  const all_run = () => streams.every(({ arrivals }) => arrivals.length === 1);
  await until('mil fluxos correndo', all_run, long_patience_ms);

  const left_at = performance.now();
  for (const stream of streams) stream.leave();
  const ended = () => proxy.stdout().match(/ ending=client_gone status=200 lines=1 /g)?.length;
  await until('mil fins', () => ended() === 1000, long_patience_ms);
  t.diagnostic(`mil laços pararam em ${Math.round(performance.now() - left_at)} ms`);
  const pops = await served(db, 'lpop');
  assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
  await settled(proxy, at_rest);
  for (const uuid of uuids) await check_tombstone(db, { uuid, task_list: `ndjson_list_${uuid}` });
  await delay(2 * interval_ms); // um laço esquecido consultaria outra vez
  assert.equal(await served(db, 'lpop'), pops, 'um laço continuou');
  await check_sound(proxy);
});

test('100 mil linhas para quem não lê: esperam no Redis, e depois chegam todas', async (t) => {
  const count = 100_000;
  const proxy = await start_proxy(redis, [...brisk, '-C', 'lento'], await probe_env());
  const worker = await start_worker(redis, 'lento');
  const [sleeper] = await open_sleepers(proxy, worker, 1);
  assert.ok(sleeper);
  const { stream, task } = sleeper;
  const before_push = await take_probe(proxy);
  const filling = 'x'.repeat(250);
  await push_numbered(worker.client, task.task_list, { count, filling });
  const left = await clogged(worker.client, task.task_list);
  const { heap_bytes, rss_bytes } = await take_probe(proxy);
  const growth = heap_bytes - before_push.heap_bytes;
  t.diagnostic(`${left} linhas ficaram no Redis; heap +${growth}, RSS ${rss_bytes} bytes`);
  assert.ok(left > count / 2, `só ${left} linhas ficaram no Redis`);
  assert.ok(growth < stream_bound(250) + heap_noise_bytes, `o heap cresceu ${growth} bytes`);
  await stream.resume();
  await worker.client.rPush(task.task_list, 'EOF');
  const lines = await stream.rest(long_patience_ms);
  assert.equal(lines.length, count);
  assert.equal(
    lines.findIndex((line, n) => line !== `${n} ${filling}`),
    -1,
  );
  assert.deepEqual(await worker.client.keys(`*${task.uuid}`), []);
  await check_sound(proxy);
});

for (const [what, count, bytes] of [
  ['curtas', 40_000, 200],
  ['médias', 200, 40_000],
  ['longas', 10, 1_000_000],
] as const) {
  test(`vinte clientes que não leem linhas ${what}: cada um ocupa pouca memória`, async (t) => {
    const sleepers = 20;
    const channel = `lentos_${bytes}`;
    const proxy = await start_proxy(redis, [...brisk, '-C', channel], await probe_env());
    const worker = await start_worker(redis, channel);
    const begun = await open_sleepers(proxy, worker, sleepers);
    const before_push = await take_probe(proxy);
    const filling = 'x'.repeat(bytes);
    const lists = begun.map(({ task }) => task.task_list);
    for (const list of lists) await push_numbered(worker.client, list, { count, filling });
    await Promise.all(lists.map((list) => clogged(worker.client, list)));
    const { heap_bytes } = await take_probe(proxy);
    const each = Math.round((heap_bytes - before_push.heap_bytes) / sleepers);
    t.diagnostic(`${each} bytes por fluxo`);
    assert.ok(each < stream_bound(bytes), `cada fluxo guarda ${each} bytes`);
    for (const { stream } of begun) stream.leave();
    for (const { task } of begun) assert.equal((await end_of(proxy, task)).ending, 'client_gone');
    await check_sound(proxy);
  });
}

test('worker que empurra sem parar: memória parada; e tudo expira depois', async (t) => {
  const own = await start_redis();
  const proxy = await start_proxy(own, [...brisk, '--ttl', '2'], await probe_env());
  const worker = await start_worker(own);
  const db = worker.client;
  const reader = count_stream(proxy);
  const { task_list, uuid } = await worker.next();
  const heaps: number[] = [];
  let pushed = 0;
  for (const mark of [100_000, 200_000, 300_000, 400_000]) {
    for (; pushed < mark; pushed += 1000) {
      await push_numbered(db, task_list, { count: 1000, first: pushed });
      await until('folga na lista', async () => (await db.lLen(task_list)) < 5000);
    }
    heaps.push((await take_probe(proxy)).heap_bytes);
  }
  await until('todas as linhas', () => reader.seen.lines === pushed || reader.seen.error);
  assert.deepEqual(reader.seen, { lines: pushed, error: '' });
  t.diagnostic(`heap a cada 100 mil linhas: ${heaps}`);
  const growth = (heaps.at(-1) ?? 0) - (heaps[0] ?? 0);
  assert.ok(growth < heap_noise_bytes, `o heap cresceu ${growth} bytes`);

  reader.leave();
  assert.equal((await end_of(proxy, { uuid })).ending, 'client_gone');
  // Quando o EOF com TTL expira, a linha seguinte recria a lista, sem TTL; quando o worker para de
  // empurrar, a varredura a acha.
  await until('lista recriada', async () => {
    await db.rPush(task_list, 'linha atrasada');
    return (await db.ttl(task_list)) === -1;
  });
  await proxy.wait_for(/ sweep adopted=1 ttl=600\n/);
  assert.ok((await db.ttl(task_list)) > 0);
  await check_sound(proxy);
});
