/*
 * O Redis que cai, volta, volta vazio, trava, corta conexões ou proíbe comandos, no meio dos
 * fluxos. Cada teste tem o seu Redis. No fim de cada um o proxy ainda está são: sai com 0 e sem
 * pilhas no log.
 */

import assert from 'node:assert/strict';
import net from 'node:net';
import { describe } from 'node:test';
import {
  at_some_pace,
  begin,
  brisk,
  connect_redis,
  delay,
  end_of,
  fetch_all,
  freeze_redis,
  on_stop,
  open_socket,
  open_stream,
  type proxy,
  type redis_client,
  see_tombstone,
  served,
  stale_answer_ms,
  start_proxy,
  start_redis,
  start_worker,
  task_named,
  type task_names,
  test,
  tests_at_once,
  until,
  type worker,
} from './harness';

/** Um Redis que, mesmo morto com SIGKILL, volta com tudo o que confirmou. */
const durable = ['--appendonly', 'yes', '--appendfsync', 'always'];

/** Um Redis com um usuário que não pode usar INFO, e como o proxy entra com ele. */
const without_info = ['--user', 'proxy', 'on', '>senha', '~*', '&*', '+@all', '-info'];
const login = 'redis://proxy:senha@';

/** Um usuário que pode tudo, até que se lhe tire algum direito. */
const with_user = ['--user', 'proxy', 'on', '>senha', '~*', '&*', '+@all'];

/** O que o cliente lê quando o Redis se foi por MAXTIME ou voltou sem os dados. */
const lost_line = '{"error": "redis lost"}';

/** O que ele lê quando o Redis não responde. */
const silent_line = '{"error": "redis does not answer"}';

/** O que ele lê quando o Redis só aceita leituras. */
const read_only_line = '{"error": "redis is read-only"}';

/** O que ele lê quando o usuário do proxy perde um direito. */
const denied_line = '{"error": "redis denied access"}';

/** Quantos fluxos estão em andamento quando o Redis cai. */
const crowd = 50;

/** Maior que a paciência dos testes: um fluxo que só notasse algo depois disto os faria falhar. */
const forever = ['-t', '120000'];

/** O programa promete notar uma conexão calada em 15 s; o resto é folga. */
const silence_noticed_ms = 25_000;

/** Um fluxo que consulta a cada INTERVAL, e logo nota que algo mudou no servidor. */
const polling = [...forever, '--wakeup', 'off'];

/** Um fluxo que, depois da primeira consulta vazia, só acorda quando a conexão é refeita. */
const asleep = [...polling, '-i', '60000'];

/** Os direitos que se perdem: o status de um pedido novo, se o fluxo aberto segue, e o log. */
const lost_rights = [
  { command: 'lpop', status: 503, goes_on: false, tag: 'stream_error' },
  { command: 'exists', status: 503, goes_on: false, tag: 'stream_error' },
  { command: 'set', status: 503, goes_on: true, tag: 'create_failed' },
  { command: 'publish', status: 503, goes_on: true, tag: 'create_failed' },
  { command: 'expire', status: 200, goes_on: true, tag: 'clean_refused' },
];

/**
 * Um apuro do servidor: como entra nele e como sai, o que um pedido novo recebe, o que fica no log,
 * e com que linha acaba o fluxo aberto; sem ela, ele segue depois. Com `seeks`, o proxy procura o
 * servidor certo por outra conexão.
 */
type trouble = {
  enter: (db: redis_client) => Promise<unknown>;
  leave: string[];
  status: number;
  error: string;
  log: RegExp;
  last_line?: string;
  seeks?: boolean;
};

const troubles: Record<string, trouble> = {
  'memória cheia': {
    enter: (db) => db.configSet('maxmemory', '1'),
    leave: ['CONFIG', 'SET', 'maxmemory', '0'],
    status: 503,
    error: '{"error": "redis is out of memory"}',
    log: / create_failed task=\S+ reason="OOM /,
  },
  'réplica de outro servidor': {
    enter: async (db) => {
      const master = await start_redis(['--repl-diskless-sync-delay', '0']);
      await db.sendCommand(['REPLICAOF', '127.0.0.1', String(master.port)]);
      const is_synced = async () => /^master_link_status:up/m.test(await db.info('replication'));
      await until('réplica em dia', is_synced);
    },
    leave: ['REPLICAOF', 'NO', 'ONE'],
    status: 503,
    error: read_only_line,
    log: / create_failed task=\S+ reason="READONLY /,
    last_line: lost_line, // os dados passaram a ser os do outro
    seeks: true,
  },
  'réplica que perdeu o mestre e não serve dados velhos': {
    enter: async (db) => {
      await db.configSet('replica-serve-stale-data', 'no');
      await db.sendCommand(['REPLICAOF', '127.0.0.1', '1']);
    },
    leave: ['REPLICAOF', 'NO', 'ONE'],
    status: 504,
    error: silent_line,
    log: / ping_failed reason="esse Redis é uma réplica;/,
    seeks: true,
  },
};

/**
 * Sobe um Redis, um proxy e um worker.
 * @param redis_args opções do Redis
 * @param args argumentos a mais para o proxy
 * @param user com que usuário o proxy entra: "redis://nome:senha@"
 * @returns os três e um cliente do Redis
 */
async function set_scene(redis_args: string[], args: string[] = [], user = '') {
  const redis = await start_redis(redis_args);
  const [proxy, worker] = await Promise.all([
    start_proxy({ server: user + redis.server }, [...brisk, ...args]),
    start_worker(redis),
  ]);
  return { redis, proxy, worker, db: worker.client };
}

/**
 * Espera o fim de um fluxo.
 * @param proxy o proxy
 * @param task a tarefa
 * @returns o fim, o status e o número de linhas, como estão no log
 */
async function outcome_of(proxy: proxy, task: task_names) {
  const { ending, status, lines } = await end_of(proxy, task);
  return [ending, status, lines];
}

/**
 * Espera que o proxy tenha perdido e refeito a conexão um número de vezes.
 * @param proxy o proxy
 * @param count quantas vezes desde que ele subiu
 */
async function link_back(proxy: proxy, count = 1): Promise<void> {
  const seen = () => proxy.stdout().match(/ redis_up redis=\S+ down_ms=\d+\n/g)?.length ?? 0;
  await until(`${count} reconexões`, () => seen() >= count);
  assert.equal(seen(), count);
  assert.ok((proxy.stderr().match(/ redis_down /g)?.length ?? 0) >= count);
}

/**
 * Abre fluxos, um a cada dois com uma linha já recebida, e os demais ainda mudos.
 * @param proxy o proxy
 * @param worker o worker
 * @param count quantos
 * @returns os fluxos, com as suas tarefas e a linha que já receberam
 */
async function begin_many(proxy: proxy, worker: worker, count = crowd) {
  const begun = [];
  for (let n = 0; n < count; n += 1) {
    const before = n % 2 === 0 ? [] : [`antes ${n}`];
    begun.push({ before, ...(await begin(proxy, worker, before)) });
  }
  return begun;
}

/**
 * Confere que, com o Redis fora, pedidos novos são recusados.
 * @param proxy o proxy
 */
async function check_refusing(proxy: proxy): Promise<void> {
  const asked = [fetch_all(proxy), fetch_all(proxy, { path: '/ping' })] as const;
  const [reply, ping] = await Promise.all(asked);
  assert.deepEqual([reply.status, reply.body], [504, `${silent_line}\n`]);
  assert.deepEqual([ping.status, ping.body], [500, `${silent_line}\n`]);
}

/**
 * Confere que o proxy atende pedidos novos. O worker pode ter caído com o Redis: antes de lhe pedir
 * algo, espera-se que volte a assinar.
 * @param proxy o proxy
 * @param worker o worker
 */
async function check_serving(proxy: proxy, worker: worker): Promise<void> {
  const { client: db } = worker;
  await until('assinatura', async () => (await db.pubSubChannels()).length > 0);
  worker.pending.splice(0);
  const { stream, task } = await begin(proxy, worker, ['nova']);
  await db.del(task.task_key);
  assert.deepEqual(await stream.rest(), []);
  assert.deepEqual(await db.keys(`*${task.uuid}`), []);
}

/**
 * Corta todas as conexões comuns do Redis, menos a de quem pede.
 * @param db cliente do Redis
 */
async function cut_links(db: redis_client): Promise<void> {
  assert.ok(Number(await db.sendCommand(['CLIENT', 'KILL', 'TYPE', 'normal'])) > 0);
}

/**
 * Põe um intermediário TCP na frente do Redis.
 * @param port porta do Redis
 * @returns `server`: o endereço dele; `swallow`: as conexões de agora se calam sem fechar, as novas
 *   não; `cut_after`: a conexão que trouxer o texto é cortada, uma vez, logo depois da resposta
 *   dele, ou antes; `point_at`: as conexões novas vão a outra porta
 */
async function start_relay(port: number) {
  const pairs: [net.Socket, net.Socket][] = [];
  const cut = { text: '', delivers: true };
  const cut_after = (text: string, delivers = true) => Object.assign(cut, { text, delivers });
  let target = port;
  const point_at = (other: number) => {
    target = other;
  };
  const relay = net.createServer((near) => {
    const far = net.connect(target, '127.0.0.1');
    for (const socket of [near, far]) socket.on('error', () => {});
    near.pipe(far);
    far.on('end', () => near.end());
    far.on('data', (chunk: Buffer) => {
      const at = cut.text ? chunk.indexOf(cut.text) : -1;
      if (at < 0) {
        near.write(chunk);
        return;
      }
      near.end(cut.delivers ? chunk.subarray(0, at + cut.text.length + '\r\n'.length) : '');
      far.destroy();
      cut.text = '';
    });
    pairs.push([near, far]);
  });
  await new Promise<void>((resolve) => relay.listen(0, '127.0.0.1', resolve));
  on_stop(async () => {
    relay.close();
    for (const socket of pairs.flat()) socket.destroy();
  });
  const swallow = () => {
    for (const [near, far] of pairs.splice(0)) {
      near.unpipe(far);
      far.removeAllListeners('data');
      near.resume();
      far.resume();
    }
  };
  const server = `127.0.0.1:${(relay.address() as net.AddressInfo).port}/1`;
  return { server, swallow, cut_after, point_at };
}

/**
 * Confere que o proxy atravessou o teste são.
 * @param proxy o proxy
 * @param is_expected reconhece as linhas de erro que o teste provocou
 */
async function check_sound(proxy: proxy, is_expected = /^$/): Promise<void> {
  assert.equal(await proxy.stop(), 0);
  const lines = proxy.stderr().split('\n');
  const log = lines.filter((line) => !is_expected.test(line)).join('\n');
  assert.doesNotMatch(log, /\bat \S+ \(|stream_error|request_error|fatal|Warning/);
}

/**
 * Põe o Redis num apuro com um fluxo aberto, e o tira de lá.
 * @param trouble o apuro
 */
async function go_through(trouble: trouble): Promise<void> {
  const { proxy, worker, db } = await set_scene([], polling);
  const { stream, task } = await begin(proxy, worker, ['1']);
  await trouble.enter(db);
  await delay(stale_answer_ms);
  const reply = await fetch_all(proxy);
  assert.deepEqual([reply.status, reply.body], [trouble.status, `${trouble.error}\n`]);
  await proxy.wait_for(trouble.log);
  await db.sendCommand(trouble.leave);
  const links = () => proxy.stdout().match(/ redis_up /g)?.length ?? 0;
  const links_before = links();
  if (trouble.last_line) {
    assert.deepEqual(await stream.rest(), [trouble.last_line]);
    assert.deepEqual(await outcome_of(proxy, task), ['redis_lost', '200', '1']);
    await see_tombstone(db, task);
    await db.del(task.task_list);
  } else {
    await db.rPush(task.task_list, ['2', 'EOF']);
    assert.deepEqual(await stream.rest(), ['2']);
    assert.deepEqual(await outcome_of(proxy, task), ['done', '200', '2']);
  }
  // a troca em curso levaria um fluxo novo por perdido
  if (trouble.seeks) await until('outra conexão', () => links() > links_before);
  await check_serving(proxy, worker);
  assert.deepEqual(await db.keys('*'), []);
  await check_sound(proxy, / stream_error task=\S+ reason="READONLY /);
}

/**
 * Tira um direito do proxy com um fluxo aberto, e o devolve.
 * @param proxy o proxy
 * @param worker o worker
 * @param right o direito, e o que a falta dele faz
 */
async function lose_right(
  proxy: proxy,
  worker: worker,
  right: (typeof lost_rights)[number],
): Promise<void> {
  const { client: db } = worker;
  const { command, status, goes_on, tag } = right;
  const { stream, task } = await begin(proxy, worker, ['1']);
  await db.aclSetUser('proxy', `-${command}`);
  const asked = open_stream(proxy);
  assert.equal((await asked.head()).statusCode, status);
  if (status === 200) asked.leave();
  else assert.deepEqual(await asked.rest(), [denied_line]);
  if (goes_on) {
    await db.rPush(task.task_list, '2');
    assert.equal(await stream.next(), '2');
  } else {
    assert.deepEqual(await stream.rest(), [denied_line]);
    assert.deepEqual(await outcome_of(proxy, task), ['failed', '200', '1']);
    await see_tombstone(db, task);
  }
  await proxy.wait_for(new RegExp(` ${tag} task=\\S+ reason="NOPERM .*'${command}'`));
  await db.aclSetUser('proxy', `+${command}`);
  if (goes_on) {
    await db.rPush(task.task_list, ['3', 'EOF']);
    assert.deepEqual(await stream.rest(), ['3']);
    assert.deepEqual(await outcome_of(proxy, task), ['done', '200', '3']);
  }
  await check_serving(proxy, worker);
}

/**
 * Faz o Redis reiniciar, com os dados, no meio de muitos fluxos.
 * @param args argumentos para o proxy
 */
async function survive_restart(args: string[]): Promise<void> {
  const { redis, proxy, worker, db } = await set_scene(durable, args);
  const begun = await begin_many(proxy, worker);
  if (args === polling) {
    // a consulta de quem acaba de receber uma linha não pode cair sem resposta: podia trazer outra
    const polls = await served(db, 'lpop');
    await until('mais uma consulta de todos', async () => {
      return (await served(db, 'lpop')) > polls + crowd;
    });
  }
  await redis.stop();
  // quem já atendia tem as configurações certas
  await proxy.wait_for(/ redis_down redis=\S+ reason="o servidor fechou a conexão"\n/);
  await proxy.wait_for(/ redis_down redis=\S+ reason="ninguém escuta [^"]* está de pé\?"\n/);
  await check_refusing(proxy);
  await start_redis(durable, redis);
  await link_back(proxy);
  const endings = begun.map(async ({ stream, task, before }, n) => {
    await db.rPush(task.task_list, `depois ${n}`);
    assert.equal(await stream.next(), `depois ${n}`); // e com isso viu que a tarefa ainda está lá
    await db.rPush(task.task_list, 'última');
    await db.del(task.task_key);
    assert.deepEqual(await stream.rest(), ['última']);
    assert.deepEqual(await outcome_of(proxy, task), ['done', '200', `${before.length + 2}`]);
  });
  await Promise.all(endings);
  assert.deepEqual(await db.keys('*'), []);
  await check_serving(proxy, worker);
  await check_sound(proxy);
}

/** Os testes; cada um é independente dos outros. */
const tests: Record<string, () => Promise<void>> = {
  'Redis volta com os dados: os fluxos seguem, sem perder nem repetir linhas': () =>
    survive_restart(forever),

  'Redis volta com os dados, WAKEUP off: os fluxos, que não param de consultar, seguem': () =>
    survive_restart(polling),

  'linhas que esperavam na lista atravessam a queda, uma vez cada': async () => {
    const { redis, proxy, worker, db } = await set_scene(durable, [...forever, '-P', '1500']);
    const stream = open_stream(proxy);
    const task = await worker.next();
    await db.rPush(task.task_list, ['1', '2', '3', 'EOF']);
    assert.equal(await stream.next(), '1');
    await redis.stop('SIGKILL'); // durante a pausa: nenhum LPOP a caminho
    await proxy.wait_for(/ redis_down /);
    await start_redis(durable, redis);
    assert.deepEqual(await stream.rest(), ['2', '3']);
    assert.deepEqual(await outcome_of(proxy, task), ['done', '200', '3']);
    assert.deepEqual(await db.keys('*'), []);
    await check_sound(proxy);
  },

  'Redis volta sem os dados: linha de erro logo, nunca um fim que pareça sucesso': async () => {
    const { redis, proxy, worker, db } = await set_scene([], forever);
    const begun = await begin_many(proxy, worker);
    await redis.stop('SIGKILL');
    await proxy.wait_for(/ redis_down /);
    await check_refusing(proxy);
    await start_redis([], redis);
    const endings = begun.map(async ({ stream, task, before }) => {
      assert.deepEqual(await stream.rest(), [lost_line]);
      const { ending, lines } = await end_of(proxy, task);
      assert.deepEqual([ending, lines], ['redis_lost', `${before.length}`]);
      await see_tombstone(db, task);
    });
    await Promise.all(endings);
    await check_serving(proxy, worker);
    await check_sound(proxy);
  },

  'Redis volta sem os dados e o worker, sem saber, continua: as linhas e o erro': async () => {
    const { redis, proxy, worker, db } = await set_scene([], forever);
    const begun = await begin_many(proxy, worker, 2);
    const blank = await start_redis(durable);
    const blank_db = await connect_redis(blank);
    const late_lines = [
      ['2', '3'],
      ['2', '3', 'EOF'],
    ];
    for (const [n, lines] of late_lines.entries()) {
      await blank_db.rPush(begun[n]?.task.task_list ?? '', lines); // antes da primeira consulta
    }
    await Promise.all([blank.stop(), redis.stop('SIGKILL')]);
    await start_redis(durable, { port: redis.port, dir: blank.dir });
    for (const { stream, task } of begun) {
      assert.deepEqual(await stream.rest(), ['2', '3', lost_line]);
      assert.equal((await end_of(proxy, task)).ending, 'redis_lost');
      await see_tombstone(db, task);
    }
    await check_sound(proxy);
  },

  'Redis volta com os dados e o worker já tinha terminado: as linhas que faltavam e o fim':
    async () => {
      const { redis, proxy, worker, db } = await set_scene(durable, [...forever, '-P', '1500']);
      const { stream, task } = await begin(proxy, worker, ['1']);
      await db.multi().rPush(task.task_list, ['2', '3', '4']).del(task.task_key).exec();
      assert.equal(await stream.next(), '2');
      await redis.stop('SIGKILL'); // durante a pausa: nenhum LPOP a caminho
      await proxy.wait_for(/ redis_down /);
      await start_redis(durable, redis);
      assert.deepEqual(await stream.rest(), ['3', '4']);
      assert.deepEqual(await outcome_of(proxy, task), ['done', '200', '4']);
      assert.deepEqual(await db.keys('*'), []);
      await check_sound(proxy);
    },

  'FLUSHALL e uma linha logo depois: a linha e o erro': async () => {
    const { proxy, worker, db } = await set_scene([], forever);
    const { stream, task } = await begin(proxy, worker, ['1']);
    await db.multi().flushAll().rPush(task.task_list, '2').exec();
    assert.deepEqual(await stream.rest(), ['2', lost_line]);
    assert.deepEqual(await outcome_of(proxy, task), ['redis_lost', '200', '2']);
    await see_tombstone(db, task);
    await check_sound(proxy);
  },

  'fluxo que dorme um INTERVAL longo nota na hora que o Redis voltou sem os dados': async () => {
    const { redis, proxy, worker, db } = await set_scene([], asleep);
    const { stream, task } = await begin(proxy, worker);
    await until('consulta vazia', async () => (await served(db, 'lpop')) >= 1);
    await redis.stop('SIGKILL');
    await proxy.wait_for(/ redis_down /);
    await start_redis([], redis);
    assert.deepEqual(await stream.rest(), [lost_line]);
    assert.equal((await end_of(proxy, task)).ending, 'redis_lost');
    await check_sound(proxy);
  },

  'Redis fora por mais que MAXTIME: linha de erro; as chaves somem quando ele volta': () =>
    at_some_pace([4000, 15_000, 40_000], async (maxtime_ms) => {
      const { redis, proxy, worker, db } = await set_scene(durable, ['-t', `${maxtime_ms}`]);
      const begun = await begin_many(proxy, worker, 10); // todos bem antes de MAXTIME
      await redis.stop();
      for (const { stream, task, before } of begun) {
        assert.deepEqual(await stream.rest(), [lost_line]);
        const { ending, lines } = await end_of(proxy, task);
        assert.deepEqual([ending, lines], ['redis_lost', `${before.length}`]);
      }
      await start_redis(durable, redis);
      await link_back(proxy);
      await Promise.all(begun.map(({ task }) => see_tombstone(db, task)));
      await check_serving(proxy, worker);
      await check_sound(proxy);
    }),

  'cliente que sai com o Redis fora: as chaves somem quando ele volta': async () => {
    const { redis, proxy, worker, db } = await set_scene(durable, asleep);
    const begun = await Promise.all([1, 2, 3].map(() => begin(proxy, worker)));
    await redis.stop();
    await proxy.wait_for(/ redis_down /);
    for (const { stream } of begun) stream.leave();
    for (const { task } of begun) assert.equal((await end_of(proxy, task)).ending, 'client_gone');
    await start_redis(durable, redis);
    await link_back(proxy);
    for (const { task } of begun) await see_tombstone(db, task);
    await check_sound(proxy);
  },

  'Redis que volta ainda carregando os dados: limpezas e fluxos esperam por ele': async () => {
    const slow_load = [...durable, '--key-load-delay', '800']; // microssegundos por comando do AOF
    const { redis, proxy, worker, db } = await set_scene(slow_load, asleep);
    await Promise.all(Array.from({ length: 8000 }, (_, n) => db.set(`outra:${n}`, 'x')));
    const gone = await begin(proxy, worker);
    const kept = await begin(proxy, worker);
    await until('consultas vazias', async () => (await served(db, 'lpop')) >= 2);
    await db.rPush(kept.task.task_list, ['1', 'EOF']);
    await redis.stop();
    await proxy.wait_for(/ redis_down /);
    gone.stream.leave();
    await end_of(proxy, gone.task);
    const loaded = start_redis(slow_load, redis);
    await until('recusas durante a carga', async () => {
      await check_refusing(proxy);
      return / ping_failed reason=".*carregando.*"\n/.test(proxy.stderr());
    });
    await db.configSet('key-load-delay', '0');
    await loaded;
    await see_tombstone(db, gone.task);
    assert.deepEqual(await kept.stream.rest(), ['1']);
    await check_sound(proxy);
  },

  'conexão que se cala sem fechar: é trocada, e tudo volta sem reiniciar o proxy': async () => {
    const redis = await start_redis();
    const relay = await start_relay(redis.port);
    const proxy = await start_proxy({ server: relay.server }, [...forever, ...brisk]);
    const worker = await start_worker(redis);
    const before = await begin(proxy, worker, ['antes']);
    relay.swallow();
    await worker.client.rPush(before.task.task_list, ['durante', 'EOF']);
    assert.equal((await fetch_all(proxy, { path: '/ping' })).status, 500);
    assert.deepEqual(await before.stream.rest(silence_noticed_ms), ['durante']);
    await link_back(proxy);
    const { stream, task } = await begin(proxy, worker, ['depois']);
    await worker.client.del(task.task_key);
    assert.deepEqual(await stream.rest(), []);
    assert.deepEqual(await worker.client.keys('*'), []);
    await check_sound(proxy);
  },

  'conexão cortada logo após a resposta do LPOP: a linha chega, o fluxo segue': async () => {
    const redis = await start_redis();
    const relay = await start_relay(redis.port);
    const args = [...forever, '-P', '0', '--grace', '0'];
    const proxy = await start_proxy({ server: relay.server }, args);
    const worker = await start_worker(redis);
    const { stream, task } = await begin(proxy, worker, ['1']);
    relay.cut_after('alvo');
    await worker.client.rPush(task.task_list, 'alvo');
    assert.equal(await stream.next(), 'alvo');
    await link_back(proxy);
    await worker.client.rPush(task.task_list, ['2', 'EOF']);
    assert.deepEqual(await stream.rest(), ['2']);
    assert.deepEqual(await outcome_of(proxy, task), ['done', '200', '3']);
    await check_sound(proxy);
  },

  'conexão cortada antes da resposta do LPOP, em linhas: o fluxo segue, e não acaba como inteiro':
    async () => {
      const redis = await start_redis();
      const relay = await start_relay(redis.port);
      const proxy = await start_proxy({ server: relay.server }, [...forever, '-P', '0']);
      const worker = await start_worker(redis);
      const { stream, task } = await begin(proxy, worker, ['antes']);
      relay.cut_after('alvo', false);
      await worker.client.rPush(task.task_list, 'alvo');
      await link_back(proxy);
      await worker.client.rPush(task.task_list, ['depois', 'EOF']);
      assert.deepEqual(await stream.rest(), ['depois', lost_line]);
      const end = await end_of(proxy, task);
      assert.deepEqual([end.ending, end.lines], ['redis_lost', '2']);
      assert.match(end.reason ?? '', /antes da resposta a um LPOP/);
      await check_sound(proxy);
    },

  'conexão cortada antes da resposta do LPOP, em RAW: o cliente vê um corte': async () => {
    const redis = await start_redis();
    const relay = await start_relay(redis.port);
    const proxy = await start_proxy({ server: relay.server }, [...forever, '-P', '0']);
    const worker = await start_worker(redis);
    const client = await open_socket(proxy.port);
    client.send('GET / HTTP/1.1\r\nHost: x\r\n\r\n');
    const task = await worker.next();
    await worker.client.rPush(task.task_list, ['RAW 200', 'antes']);
    await client.wait_for(/antes/);
    relay.cut_after('alvo', false);
    await worker.client.rPush(task.task_list, ['alvo', 'depois']);
    await client.closed();
    assert.doesNotMatch(client.text(), /\r\n0\r\n\r\n$/);
    const end = await end_of(proxy, task);
    assert.equal(end.ending, 'redis_lost');
    assert.match(end.reason ?? '', /antes da resposta a um LPOP/);
    await check_sound(proxy);
  },

  'primário trocado atrás do mesmo nome: pedidos novos e o fluxo aberto seguem no novo':
    async () => {
      const [old, heir] = await Promise.all([
        start_redis(['--repl-diskless-sync-delay', '0']),
        start_redis(['--repl-diskless-sync-delay', '0']),
      ]);
      const relay = await start_relay(old.port);
      const proxy = await start_proxy({ server: relay.server }, [...forever, ...brisk]);
      const [worker, next_worker] = await Promise.all([start_worker(old), start_worker(heir)]);
      await next_worker.client.sendCommand(['REPLICAOF', '127.0.0.1', String(old.port)]);
      const { stream, task } = await begin(proxy, worker, ['1']);
      const has_task = async () => (await next_worker.client.exists(task.task_key)) > 0;
      await until('réplica em dia', has_task);
      await next_worker.client.sendCommand(['REPLICAOF', 'NO', 'ONE']);
      await worker.client.sendCommand(['REPLICAOF', '127.0.0.1', String(heir.port)]);
      relay.point_at(heir.port);
      await delay(stale_answer_ms);
      const reply = await fetch_all(proxy);
      assert.deepEqual([reply.status, reply.body], [503, `${read_only_line}\n`]);
      await proxy.wait_for(/ redis_down redis=\S+ reason="esse Redis é uma réplica;/);
      await link_back(proxy);
      await check_serving(proxy, next_worker);
      await next_worker.client.rPush(task.task_list, ['2', 'EOF']);
      assert.deepEqual(await stream.rest(), ['2']);
      assert.deepEqual(await outcome_of(proxy, task), ['done', '200', '2']);
      await check_sound(proxy);
    },

  'tarefa despejada por falta de memória: não passa por terminada': async () => {
    const { proxy, worker, db } = await set_scene(['--maxmemory-policy', 'volatile-ttl'], forever);
    await proxy.wait_for(/ eviction policy=volatile-ttl hint=".*noeviction"\n/);
    const [whole, torn] = [await begin(proxy, worker, ['1']), await begin(proxy, worker, ['1'])];
    await db.del(whole.task.task_key); // apagada pelo worker, sem despejo nenhum
    assert.deepEqual(await whole.stream.rest(), []);
    assert.deepEqual(await outcome_of(proxy, whole.task), ['done', '200', '1']);
    const used = Number(/^used_memory:(\d+)/m.exec(await db.info('memory'))?.[1]);
    await db.configSet('maxmemory', String(used + 2_000_000));
    for (let n = 0; (await db.exists(torn.task.task_key)) > 0; n += 1) {
      await db.set(`outra:${n}`, 'x'.repeat(200_000)).catch(() => {});
    }
    assert.deepEqual(await torn.stream.rest(), [lost_line]);
    const end = await end_of(proxy, torn.task);
    assert.equal(end.ending, 'redis_lost');
    assert.match(end.reason ?? '', /despejou chaves \(volatile-ttl\)/);
    await db.configSet('maxmemory', '0');
    await check_sound(proxy);
  },

  'Redis ocupado com um script quando o cliente sai: a limpeza é tentada de novo': async () => {
    const { proxy, worker, db } = await set_scene([], forever);
    const { stream, task } = await begin(proxy, worker, ['1']);
    await db.configSet({ 'busy-reply-threshold': '50' });
    const script = db.duplicate().on('error', () => {});
    await script.connect();
    const looping = script.eval('while true do end').catch(() => {});
    await until('BUSY', () =>
      db.ping().then(
        () => false,
        () => true,
      ),
    );
    stream.leave();
    await end_of(proxy, task);
    await db.sendCommand(['SCRIPT', 'KILL']);
    await looping;
    script.destroy();
    await see_tombstone(db, task);
    await check_sound(proxy);
  },

  'Redis trava por menos que MAXTIME: pedidos novos recusados, o fluxo continua': async () => {
    const { redis, proxy, worker, db } = await set_scene([], forever);
    const { stream, task } = await begin(proxy, worker, ['1']);
    await freeze_redis(redis);
    try {
      const pushed = db.rPush(task.task_list, ['2', '3']);
      assert.equal((await fetch_all(proxy)).status, 504);
      redis.process.kill('SIGCONT');
      await pushed;
    } finally {
      redis.process.kill('SIGCONT');
    }
    assert.deepEqual([await stream.next(), await stream.next()], ['2', '3']);
    await db.rPush(task.task_list, ['4', 'EOF']);
    assert.deepEqual(await stream.rest(), ['4']);
    assert.deepEqual(await outcome_of(proxy, task), ['done', '200', '4']);
    assert.deepEqual(await db.keys('*'), []);
    assert.deepEqual(worker.pending, []);
    assert.doesNotMatch(proxy.stderr(), / redis_down /);
    await check_sound(proxy);
  },

  'Redis trava por mais que MAXTIME: linha de erro, e limpeza quando destrava': () =>
    at_some_pace([1500, 8000, 30_000], async (maxtime_ms) => {
      const { redis, proxy, worker, db } = await set_scene([], ['-t', `${maxtime_ms}`]);
      const { stream, task } = await begin(proxy, worker, ['1']);
      await freeze_redis(redis);
      try {
        assert.deepEqual(await stream.rest(), [lost_line]);
        assert.deepEqual(await outcome_of(proxy, task), ['redis_lost', '200', '1']);
      } finally {
        redis.process.kill('SIGCONT');
      }
      await see_tombstone(db, task);
      await check_sound(proxy);
    }),

  'conexão cortada dez vezes: o fluxo sobrevive, em ordem': async () => {
    const { proxy, worker, db } = await set_scene([], forever);
    const { stream, task } = await begin(proxy, worker, ['0']);
    for (let round = 1; round <= 10; round += 1) {
      await cut_links(db);
      await link_back(proxy, round);
      await db.rPush(task.task_list, `volta ${round}`);
      assert.equal(await stream.next(), `volta ${round}`);
    }
    await db.del(task.task_key);
    assert.deepEqual(await stream.rest(), []);
    assert.deepEqual(await outcome_of(proxy, task), ['done', '200', '11']);
    assert.deepEqual(await db.keys('*'), []);
    await check_sound(proxy);
  },

  'worker que termina durante um corte da conexão: o mesmo servidor, fim normal': async () => {
    const { proxy, worker, db } = await set_scene([], asleep);
    const { stream, task } = await begin(proxy, worker);
    await until('consulta vazia', async () => (await served(db, 'lpop')) >= 1);
    await db.del(task.task_key);
    await cut_links(db);
    assert.deepEqual(await stream.rest(), []);
    assert.deepEqual(await outcome_of(proxy, task), ['done', '200', '0']);
    await link_back(proxy);
    await check_sound(proxy);
  },

  'INFO proibido: tudo funciona, também depois de um corte': async () => {
    const { proxy, worker, db } = await set_scene(without_info, forever, login);
    const { stream, task } = await begin(proxy, worker, ['1']);
    await cut_links(db);
    await link_back(proxy);
    await db.rPush(task.task_list, '2');
    assert.equal(await stream.next(), '2');
    await db.del(task.task_key);
    assert.deepEqual(await stream.rest(), []);
    assert.deepEqual(await outcome_of(proxy, task), ['done', '200', '2']);
    assert.deepEqual(await db.keys('*'), []);
    await check_sound(proxy);
  },

  'INFO proibido e worker que termina durante um corte: na dúvida, erro': async () => {
    const { proxy, worker, db } = await set_scene(without_info, asleep, login);
    const { stream, task } = await begin(proxy, worker);
    await until('consulta vazia', async () => (await served(db, 'lpop')) >= 1);
    await db.del(task.task_key);
    await cut_links(db);
    assert.deepEqual(await stream.rest(), [lost_line]);
    assert.equal((await end_of(proxy, task)).ending, 'redis_lost');
    await see_tombstone(db, task);
    await check_sound(proxy);
  },

  'Redis que não responde ao PING a tempo: 504 e 500, e nenhuma tarefa': async () => {
    const { redis, proxy, worker, db } = await set_scene([]);
    redis.process.kill('SIGSTOP');
    await delay(stale_answer_ms);
    const [reply, ping] = await Promise.all([
      fetch_all(proxy, { body: 'oi' }),
      fetch_all(proxy, { path: '/ping' }),
    ]);
    assert.deepEqual([reply.status, reply.body], [504, `${silent_line}\n`]);
    assert.equal(reply.headers['content-type'], 'application/json');
    assert.equal(ping.status, 500);
    redis.process.kill('SIGCONT');
    assert.deepEqual(await db.keys('*'), []);
    assert.deepEqual(worker.pending, []);
    const pings = async () => (await fetch_all(proxy, { path: '/ping' })).body === 'pong';
    await until('pong', pings);
    assert.doesNotMatch(proxy.stdout(), / task /);
    await check_sound(proxy);
  },

  'criação que não é respondida: 504, e quem ouvir o anúncio depois não acha tarefa': async () => {
    const { proxy, worker, db } = await set_scene([]);
    await db.sendCommand(['CLIENT', 'PAUSE', '60000', 'WRITE']);
    const reply = await fetch_all(proxy, { body: 'oi' });
    assert.deepEqual([reply.status, reply.body], [504, `${silent_line}\n`]);
    await proxy.wait_for(/ create_failed task=\S+ reason="sem resposta em 2000 ms"\n/);
    await db.sendCommand(['CLIENT', 'UNPAUSE']);
    const task_key = await until('anúncio', () => worker.pending.shift());
    const task = task_named(task_key.slice(-36));
    assert.equal(task_key, task.task_key);
    await see_tombstone(db, task);
    assert.equal((await db.keys('*')).length, 1);
    await check_sound(proxy);
  },

  'conexão cortada com a criação a caminho: 504, e a limpeza segue na conexão nova': async () => {
    const { proxy, worker, db } = await set_scene([]);
    await db.sendCommand(['CLIENT', 'PAUSE', '60000', 'WRITE']);
    const asked = fetch_all(proxy, { body: 'oi' });
    const blocked = /^blocked_clients:1\b/m;
    await until('MULTI parado', async () => blocked.test(await db.info('clients')));
    await cut_links(db);
    assert.equal((await asked).status, 504);
    await link_back(proxy);
    await db.sendCommand(['CLIENT', 'UNPAUSE']);
    const [uuid] = (await proxy.wait_for(/(?<= create_failed task=)\S+/)) as [string];
    await see_tombstone(db, task_named(uuid));
    assert.equal((await db.keys('*')).length, 1);
    assert.deepEqual(worker.pending, []);
    await check_sound(proxy);
  },

  'direitos perdidos um de cada vez e devolvidos: o status, a linha e o log de cada um':
    async () => {
      const { proxy, worker } = await set_scene(with_user, polling, login);
      for (const right of lost_rights) {
        await lose_right(proxy, worker, right).catch((error) => {
          throw new Error(`sem ${right.command}`, { cause: error });
        });
      }
      await check_sound(proxy, / stream_error task=\S+ reason="NOPERM /);
    },

  'sem EXPIRE a tarefa expira debaixo do fluxo: linha de erro, nunca sucesso': async () => {
    const { proxy, worker, db } = await set_scene(with_user, [...polling, '--ttl', '2'], login);
    const { stream, task } = await begin(proxy, worker, ['1']);
    await db.aclSetUser('proxy', '-expire');
    await proxy.wait_for(/ renew_refused task=\S+ reason="NOPERM .*'expire'/);
    assert.deepEqual(await stream.rest(), [lost_line]);
    assert.deepEqual(await outcome_of(proxy, task), ['redis_lost', '200', '1']);
    await proxy.wait_for(/ clean_refused task=\S+ reason="NOPERM .*'expire'/);
    assert.equal(await db.ttl(task.task_list), -1);
    await db.aclSetUser('proxy', '+expire');
    await until('EOF adotado pela varredura', async () => (await db.ttl(task.task_list)) !== -1);
    await check_sound(proxy);
  },
};

describe('faltas do Redis', { concurrency: tests_at_once }, () => {
  for (const [title, run] of Object.entries(tests)) test(title, run);

  for (const [name, trouble] of Object.entries(troubles)) {
    test(`${name}: pedido novo recusado com o motivo, o fluxo aberto também tem resposta`, () =>
      go_through(trouble));
  }
});
