/*
 * O que todo kit deve fazer com as tarefas de um stream (REDIS_STREAM): os mesmos testes para cada
 * um, com processos de verdade, que se matam e se congelam.
 */

import assert from 'node:assert/strict';
import { writeFileSync as write_file } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { describe } from 'node:test';
import {
  brisk,
  connect_redis,
  fetch_all,
  type local_program,
  type local_redis,
  on_stop,
  open_stream,
  type proxy,
  type redis_client,
  see_listeners,
  start_proxy,
  start_redis,
  start_worker,
  temp_dir,
  test,
  until,
} from './harness';

/** O grupo dos kits, se não lhes dão outro. */
export const group = 'ndjson_workers';

/** O stream e o canal dos testes. */
export const [stream, channel] = ['ndjson_tasks', 'jobs_durable'];

/** Vários prazos destes cabem na paciência de um teste; nenhum worker vivo demora tanto. */
export const soon_s = 2;
export const late_s = 600;

/** Um worker do kit. `tasks` é quantas tarefas atende ao mesmo tempo. */
export type kit_worker = { open: (gate: string) => void; stop: () => Promise<unknown> };

/** O que se pede de um worker; `server` é o REDIS_SERVER, sem `stream` ele ouve o canal. */
export type kit_options = {
  server: string;
  channel: string;
  stream: string;
  name: string;
  takeover: number;
  gates: string;
};

/** Como se põem de pé os workers de um kit: num processo à parte, ou onde custar menos. */
export type kit = {
  tasks: number;
  spawn: (options: kit_options) => Promise<local_program>;
  start: (options: kit_options) => Promise<{ stop: () => Promise<unknown> }>;
};

/** As opções do proxy que guarda as tarefas no stream. */
export const durable = [...brisk, '-C', channel, '--stream', stream, '-t', '600000'];

/**
 * Espera que do stream nada reste, nem por entregar nem por acabar.
 * @param db cliente do Redis
 */
export async function see_empty(db: redis_client): Promise<void> {
  await until('stream vazio', async () => {
    if ((await db.xLen(stream)) > 0) return false;
    const groups = await db.xInfoGroups(stream).catch(() => []);
    return groups.every(({ pending }) => Number(pending) === 0);
  });
}

/** Dá as chaves que há além do stream, que com os seus grupos fica. */
async function leftovers(db: redis_client): Promise<string[]> {
  return (await db.keys('*')).filter((key) => key !== stream);
}

/**
 * Espera que tantas tarefas estejam nas mãos de um worker.
 * @param db cliente do Redis
 * @param name o worker
 * @param count quantas
 */
async function see_claims(db: redis_client, name: string, count: number): Promise<void> {
  await until(`${count} reservas de ${name}`, async () => {
    const claims = await db.keys('ndjson_claim_*');
    const holders = claims.length > 0 ? await db.mGet(claims) : [];
    return holders.filter((holder) => holder?.startsWith(`${group} ${name} `)).length === count;
  });
}

/**
 * Espera que o Redis tenha atendido mais chamadas de um comando.
 * @param db cliente do Redis
 * @param command o comando, em minúsculas
 * @param action o que as faz
 */
async function see_more(db: redis_client, command: string, action = async () => {}) {
  const calls = async () => {
    const info = await db.info('commandstats');
    return Number(new RegExp(`^cmdstat_${command}:calls=(\\d+)`, 'm').exec(info)?.[1] ?? 0);
  };
  const before = await calls();
  await action();
  await until(`${command} no Redis`, async () => (await calls()) > before);
}

/**
 * Pede muitas coisas sem esperar resposta.
 * @param proxy o proxy
 * @param count quantas
 */
function ask_many({ port }: proxy, count: number): void {
  for (let n = 0; n < count; n += 1) {
    const socket = net.connect(port, '127.0.0.1').on('error', () => {});
    socket.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n');
    on_stop(async () => socket.destroy());
  }
}

/**
 * Declara os testes de um kit.
 * @param title o nome dele
 * @param kit como se põe de pé
 * @param redis o Redis de todo o arquivo
 */
export function durable_scenes(title: string, kit: kit, redis: () => local_redis): void {
  const settings = (name: string, given: Partial<kit_options> = {}): kit_options => {
    const { server } = redis();
    return { server, channel, stream, name, takeover: late_s, gates: temp_dir(), ...given };
  };
  const opener = (gates: string) => (gate: string) => write_file(path.join(gates, gate), '');
  const spawn = async (name: string, given: Partial<kit_options> = {}) => {
    const options = settings(name, given);
    return { ...(await kit.spawn(options)), open: opener(options.gates) };
  };
  const start = async (name: string, given: Partial<kit_options> = {}): Promise<kit_worker> => {
    const options = settings(name, given);
    return { ...(await kit.start(options)), open: opener(options.gates) };
  };
  const lines_of = (lines: string[]) => lines.map((line) => line.replace('{"n": ', '{"n":'));

  describe(title, () => {
    test('sem worker de pé as tarefas esperam; vem um, e as atende pela ordem', async () => {
      const proxy = await start_proxy(redis(), durable);
      const db = await connect_redis(redis());
      const early = open_stream(proxy);
      await until('tarefa no stream', async () => (await db.xLen(stream)) === 1);
      const other = fetch_all(proxy, { path: '/hold' });
      await until('outra', async () => (await db.xLen(stream)) === 2);
      assert.doesNotMatch(proxy.stdout() + proxy.stderr(), /no_worker/);
      const worker = await start('ana');
      assert.deepEqual(await early.rest(), ['ana']);
      worker.open('hold');
      assert.deepEqual(lines_of((await other).body.split('\n')), ['{"n":1}', '{"n":2}', 'ana', '']);
      await see_empty(db);
      assert.deepEqual(await leftovers(db), []);
    });

    test('dois workers dividem cem tarefas, e cada uma é atendida uma vez', async () => {
      const proxy = await start_proxy(redis(), durable);
      const db = await connect_redis(redis());
      const workers = await Promise.all(['ana', 'rui'].map((name) => start(name)));
      const held = Array.from({ length: 2 * kit.tasks }, () => fetch_all(proxy, { path: '/hold' }));
      await see_claims(db, 'ana', kit.tasks);
      await see_claims(db, 'rui', kit.tasks);
      const quick = Array.from({ length: 100 }, () => fetch_all(proxy));
      for (const worker of workers) worker.open('hold');
      for (const { body } of await Promise.all(quick)) assert.match(body, /^(ana|rui)\n$/);
      for (const { body } of await Promise.all(held)) {
        assert.match(lines_of([body])[0] ?? '', /^\{"n":1\}\n\{"n": ?2\}\n(ana|rui)\n$/);
      }
      await see_empty(db);
    });

    test('kill -9: nada empurrado, outro serve do começo; senão, só um erro', async () => {
      const proxy = await start_proxy(redis(), durable);
      const db = await connect_redis(redis());
      const urls = ['/late', '/hold', '/raw-hold'];
      const victims = await Promise.all(
        urls.slice(0, Math.ceil(urls.length / kit.tasks)).map(() => spawn('morto')),
      );
      const [late, hold] = ['/late', '/hold'].map((path) => open_stream(proxy, { path }));
      const raw = await fetch(`${proxy.url}/raw-hold`);
      const reader = raw.body?.getReader();
      assert.equal(Buffer.from((await reader?.read())?.value ?? []).toString(), 'data: 1\n\n');
      assert.match((await hold?.next()) ?? '', /^\{"n": ?1\}$/);
      await see_claims(db, 'morto', 3);
      for (const victim of victims) victim.process.kill('SIGKILL');
      for (const victim of victims) await victim.exited;
      const heir = await start('rui', { takeover: soon_s });
      heir.open('late');
      assert.deepEqual(lines_of((await late?.rest()) ?? []), ['{"n":1}', 'rui']);
      assert.match(((await hold?.rest()) ?? []).join(), /^\{"error": ?"worker lost"\}$/);
      await assert.rejects(reader?.read() ?? Promise.resolve(), /terminated/);
      await see_empty(db);
      assert.deepEqual(await db.keys('ndjson_claim_*'), []);
    });

    test('parado, um worker guarda a tarefa; parado demais perde-a, e nada empurra', async () => {
      const proxy = await start_proxy(redis(), durable);
      const db = await connect_redis(redis());
      const frozen = await spawn('ana');
      const kept = open_stream(proxy, { path: '/late' });
      await see_claims(db, 'ana', 1);
      frozen.process.kill('SIGSTOP');
      let other: kit_worker | undefined;
      await see_more(db, 'xpending', async () => {
        other = await start('rui'); // olha, ao subir, o que os outros deixaram
      });
      await other?.stop();
      await see_claims(db, 'ana', 1);
      frozen.process.kill('SIGCONT');
      frozen.open('late');
      assert.deepEqual(lines_of(await kept.rest()), ['{"n":1}', 'ana']);

      const lost = open_stream(proxy, { path: '/later' });
      await see_claims(db, 'ana', 1);
      frozen.process.kill('SIGSTOP');
      const heir = await start('rui', { takeover: soon_s });
      await see_claims(db, 'rui', 1);
      frozen.process.kill('SIGCONT');
      frozen.open('later');
      await frozen.wait_for(/finally \/later/);
      heir.open('later');
      assert.deepEqual(lines_of(await lost.rest()), ['{"n":1}', 'rui']);
      await see_empty(db);
    });

    test('um FLUSHALL, no meio de uma tarefa e depois: o grupo e o stream voltam', async () => {
      const own = await start_redis();
      const proxy = await start_proxy(own, durable);
      const db = await connect_redis(own);
      const worker = await start('ana', { server: own.server });
      const torn = open_stream(proxy, { path: '/hold' });
      await torn.next();
      await db.flushAll();
      assert.deepEqual(await torn.rest(), ['{"error": "redis lost"}']);
      worker.open('hold');
      assert.equal((await fetch_all(proxy)).body, 'ana\n');
      await db.flushAll();
      assert.equal((await fetch_all(proxy)).body, 'ana\n');
      await see_empty(db);
      assert.deepEqual(
        (await db.xInfoGroups(stream)).map(({ name }) => name),
        [group],
      );
    });

    test('mil tarefas de um proxy que morreu são saltadas, e a próxima é atendida', async () => {
      const own = await start_redis();
      const db = await connect_redis(own);
      const dead = await start_proxy(own, durable);
      ask_many(dead, 1000);
      await until('mil tarefas', async () => (await db.xLen(stream)) === 1000);
      dead.process.kill('SIGKILL');
      await dead.exited;
      for (const key of await db.keys('ndjson_task_*')) await db.expire(key, 0); // passa REDIS_TTL
      const proxy = await start_proxy(own, durable);
      const reply = fetch_all(proxy);
      await until('mais uma', async () => (await db.xLen(stream)) === 1001);
      await start('ana', { server: own.server });
      assert.equal((await reply).body, 'ana\n');
      await see_empty(db);
      assert.deepEqual(await leftovers(db), []); // de nenhuma das mil se empurrou nada
    });

    test('workers do canal e do stream dividem as tarefas; a reserva decide', async () => {
      const proxy = await start_proxy(redis(), durable);
      const db = await connect_redis(redis());
      await start('canal', { stream: '' });
      await see_listeners(db, channel, 1);
      await start('stream', { takeover: soon_s });
      const replies = Array.from({ length: 40 }, () => fetch_all(proxy));
      for (const { body } of await Promise.all(replies)) assert.match(body, /^(canal|stream)\n$/);
      await see_empty(db);
    });

    test('a tarefa que um fluxo do n8n reservou fica com ele, por mais que demore', async () => {
      const proxy = await start_proxy(redis(), durable);
      const n8n = await start_worker(redis(), channel);
      const { client: db } = n8n;
      const held = open_stream(proxy);
      const { uuid, task_key, task_list } = await n8n.next();
      assert.equal(await db.incr(`ndjson_claim_${uuid}`), 1);
      await db.rPush(task_list, 'um');
      assert.equal(await held.next(), 'um');
      await see_more(db, 'xclaim', async () => {
        await start('rui', { takeover: soon_s });
      });
      await see_more(db, 'xclaim');
      assert.equal(await db.get(`ndjson_claim_${uuid}`), '1');
      await db.rPush(task_list, 'dois');
      await db.del(task_key);
      assert.deepEqual(await held.rest(), ['dois']);
      await see_empty(db);
    });
  });
}
