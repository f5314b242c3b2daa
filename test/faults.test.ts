/*
 * O Redis que cai, volta, volta vazio, trava, corta conexões ou proíbe comandos, no meio dos
 * fluxos. Cada teste tem o seu Redis. No fim de cada um o proxy ainda está são: sai com 0 e sem
 * pilhas no log.
 */

import assert from 'node:assert/strict';
import net from 'node:net';
import { describe, test } from 'node:test';
import { on_stop } from '../scripts/local';
import {
  begin,
  brisk,
  end_of,
  fetch_all,
  freeze_redis,
  open_stream,
  type proxy,
  type redis_client,
  see_tombstone,
  served,
  start_proxy,
  start_redis,
  start_worker,
  task_named,
  type task_names,
  until,
} from './harness';

/** Um Redis que, mesmo morto com SIGKILL, volta com tudo o que confirmou. */
const durable = ['--appendonly', 'yes', '--appendfsync', 'always'];

/** Um Redis com um usuário que não pode usar INFO, e como o proxy entra com ele. */
const without_info = ['--user', 'proxy', 'on', '>senha', '~*', '&*', '+@all', '-info'];
const login = 'redis://proxy:senha@';

/** O que o cliente lê quando o Redis se foi por MAXTIME ou voltou sem os dados. */
const lost_line = '{"error": "redis lost"}';

/** Quase só esperam; mais que isto ao mesmo tempo disputaria os processadores. */
const tests_at_once = 4;

/** Maior que a paciência dos testes: um fluxo que só notasse algo depois disto os faria falhar. */
const forever = ['-t', '120000'];

/** O programa promete notar uma conexão calada em 15 s; o resto é folga. */
const silence_noticed_ms = 25_000;

/** Um fluxo que, depois da primeira consulta vazia, só acorda quando a conexão é refeita. */
const asleep = [...forever, '-i', '60000', '--wakeup', 'off'];

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
 *   dele
 */
async function start_relay(port: number) {
  const pairs: [net.Socket, net.Socket][] = [];
  const cut = { text: '' };
  const cut_after = (text: string) => {
    cut.text = text;
  };
  const relay = net.createServer((near) => {
    const far = net.connect(port, '127.0.0.1');
    for (const socket of [near, far]) socket.on('error', () => {});
    near.pipe(far);
    far.on('end', () => near.end());
    far.on('data', (chunk: Buffer) => {
      const at = cut.text ? chunk.indexOf(cut.text) : -1;
      if (at < 0) {
        near.write(chunk);
        return;
      }
      near.end(chunk.subarray(0, at + cut.text.length + '\r\n'.length));
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
  return { server: `127.0.0.1:${(relay.address() as net.AddressInfo).port}/1`, swallow, cut_after };
}

/**
 * Confere que o proxy atravessou o teste são.
 * @param proxy o proxy
 */
async function check_sound(proxy: proxy): Promise<void> {
  assert.equal(await proxy.stop(), 0);
  assert.doesNotMatch(proxy.stderr(), /\bat \S+ \(|stream_error|request_error|fatal|Warning/);
}

/** Os testes; cada um é independente dos outros. */
const tests: Record<string, () => Promise<void>> = {
  'Redis volta com os dados: os fluxos seguem, sem perder nem repetir linhas': async () => {
    const { redis, proxy, worker, db } = await set_scene(durable, forever);
    const begun = [];
    for (let n = 0; n < 20; n += 1) begun.push(await begin(proxy, worker, [`antes ${n}`]));
    await redis.stop();
    await proxy.wait_for(/ redis_down redis=\S+ reason=".+"\n/);
    assert.equal((await fetch_all(proxy)).status, 504);
    assert.equal((await fetch_all(proxy, { path: '/ping' })).status, 500);
    await start_redis(durable, redis);
    await link_back(proxy);
    const endings = begun.map(async ({ stream, task }, n) => {
      await db.rPush(task.task_list, [`depois ${n}`, 'última']);
      await db.del(task.task_key);
      assert.deepEqual(await stream.rest(), [`depois ${n}`, 'última']);
      assert.deepEqual(await outcome_of(proxy, task), ['done', '200', '3']);
    });
    await Promise.all(endings);
    assert.deepEqual(await db.keys('*'), []);
    // o worker também caiu: antes de lhe pedir algo, espera-se que volte a assinar
    await until('assinatura', async () => (await db.pubSubChannels()).length > 0);
    const { stream, task } = await begin(proxy, worker, ['nova']);
    await db.del(task.task_key);
    assert.deepEqual(await stream.rest(), []);
    await check_sound(proxy);
  },

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
    const mute = await begin(proxy, worker);
    const talking = await begin(proxy, worker, ['1', '2']);
    await redis.stop('SIGKILL');
    await proxy.wait_for(/ redis_down /);
    await start_redis([], redis);
    assert.deepEqual(await mute.stream.rest(), [lost_line]);
    assert.deepEqual(await talking.stream.rest(), [lost_line]);
    const { ending, lines } = await end_of(proxy, mute.task);
    assert.deepEqual([ending, lines], ['redis_lost', '0']);
    assert.deepEqual(await outcome_of(proxy, talking.task), ['redis_lost', '200', '2']);
    await see_tombstone(db, mute.task);
    await see_tombstone(db, talking.task);
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

  'Redis fora por mais que MAXTIME: linha de erro; as chaves somem quando ele volta': async () => {
    const { redis, proxy, worker, db } = await set_scene(durable, ['-t', '2000']);
    const { stream, task } = await begin(proxy, worker, ['1']);
    await redis.stop();
    assert.deepEqual(await stream.rest(), [lost_line]);
    assert.deepEqual(await outcome_of(proxy, task), ['redis_lost', '200', '1']);
    await start_redis(durable, redis);
    await link_back(proxy);
    await see_tombstone(db, task);
    await check_sound(proxy);
  },

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
    const slow_load = [...durable, '--key-load-delay', '400']; // microssegundos por comando do AOF
    const { redis, proxy, worker, db } = await set_scene(slow_load, asleep);
    await Promise.all(Array.from({ length: 4000 }, (_, n) => db.set(`outra:${n}`, 'x')));
    const gone = await begin(proxy, worker);
    const kept = await begin(proxy, worker);
    await until('consultas vazias', async () => (await served(db, 'lpop')) >= 2);
    await db.rPush(kept.task.task_list, ['1', 'EOF']);
    await redis.stop();
    await proxy.wait_for(/ redis_down /);
    gone.stream.leave();
    await end_of(proxy, gone.task);
    await start_redis(slow_load, redis);
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

  'Redis trava por mais que MAXTIME: linha de erro, e limpeza quando destrava': async () => {
    const { redis, proxy, worker, db } = await set_scene([], ['-t', '1500']);
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
  },

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
    const { proxy, worker, db } = await set_scene([]);
    await db.sendCommand(['CLIENT', 'PAUSE', '3000', 'ALL']);
    const [reply, ping] = await Promise.all([
      fetch_all(proxy, { body: 'oi' }),
      fetch_all(proxy, { path: '/ping' }),
    ]);
    assert.deepEqual([reply.status, reply.body], [504, '{"error": "redis does not answer"}\n']);
    assert.equal(reply.headers['content-type'], 'application/json');
    assert.equal(ping.status, 500);
    assert.deepEqual(await db.keys('*'), []);
    assert.deepEqual(worker.pending, []);
    assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
    assert.doesNotMatch(proxy.stdout(), / task /);
    await check_sound(proxy);
  },

  'criação que não é respondida: 504, e quem ouvir o anúncio depois não acha tarefa': async () => {
    const { proxy, worker, db } = await set_scene([]);
    await db.sendCommand(['CLIENT', 'PAUSE', '60000', 'WRITE']);
    const reply = await fetch_all(proxy, { body: 'oi' });
    assert.deepEqual([reply.status, reply.body], [504, '{"error": "redis does not answer"}\n']);
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
};

describe('faltas do Redis', { concurrency: tests_at_once }, () => {
  for (const [title, run] of Object.entries(tests)) test(title, run);
});
