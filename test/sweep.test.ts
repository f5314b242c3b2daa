/*
 * A varredura que dá TTL às listas sem dono: quais recebem, quais não são tocadas, e quando.
 * Cada teste tem o seu Redis, sem nenhum worker: só a varredura mexe nas chaves.
 */

import assert from 'node:assert/strict';
import { randomUUID as random_uuid } from 'node:crypto';
import { describe } from 'node:test';
import {
  begin,
  connect_redis,
  fetch_all,
  freeze_redis,
  open_stream,
  patience_ms,
  type redis_client,
  start_proxy,
  start_redis,
  start_worker,
  type task_names,
  test,
  tests_at_once,
  until,
} from './harness';

const ttl_s = 600;

/** Fluxos em andamento quando um proxy morre. */
const fleet = 20;

/** Outras chaves no Redis do teste grande; o SCAN leva muitas páginas para percorrê-las. */
const crowd = { others: 100_000, orphans: 1000 };

/**
 * Sobe um Redis e um cliente dele.
 * @returns o Redis e o cliente
 */
async function set_scene() {
  const redis = await start_redis();
  return { redis, db: await connect_redis(redis) };
}

/**
 * Cria uma lista sem TTL, em que há muito ninguém mexe.
 * @param db cliente do Redis
 * @param key nome
 * @param idle_s há quanto tempo
 * @returns o nome
 */
async function make_list(db: redis_client, key: string, idle_s = 10_000): Promise<string> {
  const make = `redis.call('RPUSH', KEYS[1], 'linha', 'atrasada')
    redis.call('RESTORE', KEYS[1], 0, redis.call('DUMP', KEYS[1]), 'REPLACE', ARGV[1], ARGV[2])`;
  const { 'maxmemory-policy': policy = '' } = await db.configGet('maxmemory-policy');
  const age = policy.endsWith('lfu') ? ['FREQ', '1'] : ['IDLETIME', String(idle_s)];
  await db.eval(make, { keys: [key], arguments: age });
  return key;
}

/**
 * Confere que uma chave recebeu o TTL da varredura e continua com o mesmo conteúdo.
 * @param db cliente do Redis
 * @param key nome da lista
 */
async function check_adopted(db: redis_client, key: string): Promise<void> {
  const ttl = await db.ttl(key);
  assert.ok(ttl > ttl_s - 60 && ttl <= ttl_s, `${key}: TTL ${ttl}`);
  assert.deepEqual(await db.lRange(key, 0, -1), ['linha', 'atrasada']);
}

/** Os testes; cada um é independente dos outros. */
const tests: Record<string, () => Promise<void>> = {
  'ao subir: só as listas do proxy, sem TTL e sem tarefa, recebem TTL': async () => {
    const { redis, db } = await set_scene();
    const orphans = [random_uuid(), random_uuid(), random_uuid()];
    for (const uuid of orphans) await make_list(db, `ndjson_list_${uuid}`);
    const [owned, expiring] = [random_uuid(), random_uuid()];
    await make_list(db, `ndjson_list_${expiring}`);
    await db.expire(`ndjson_list_${expiring}`, 50_000);
    await db.set(`ndjson_task_${owned}`, '{}');
    const untouched = [
      `ndjson_list_${owned}`, // a tarefa existe
      'ndjson_list_', // nada depois do prefixo
      'ndjson_list_minha', // não é UUID
      `ndjson_list_${random_uuid()}x`, // sobra um caractere
      `ndjson_list_${random_uuid().toUpperCase()}`,
      'ndjson_list_00000000-0000-1000-8000-000000000000', // UUID, mas não v4
      `outra_${random_uuid()}`,
      `xndjson_list_${random_uuid()}`,
      random_uuid(),
    ];
    for (const key of untouched) await make_list(db, key);
    const fresh = await make_list(db, `ndjson_list_${random_uuid()}`, ttl_s - 60);
    untouched.push(fresh); // há pouco alguém mexeu nela
    const elsewhere = await connect_redis(redis, 0);
    untouched.push(`ndjson_task_${owned}`);
    await make_list(elsewhere, `ndjson_list_${orphans[0]}`);

    const proxy = await start_proxy(redis, ['--ttl', String(ttl_s)]);
    await proxy.wait_for(new RegExp(` sweep adopted=3 ttl=${ttl_s}\n`));
    for (const uuid of orphans) await check_adopted(db, `ndjson_list_${uuid}`);
    for (const key of untouched) assert.equal(await db.ttl(key), -1, key);
    assert.ok((await db.ttl(`ndjson_list_${expiring}`)) > ttl_s);
    assert.equal(await elsewhere.ttl(`ndjson_list_${orphans[0]}`), -1);
    assert.equal(proxy.stderr(), '');
  },

  'de REDIS_TTL em REDIS_TTL: o que fica órfão depois também expira': async () => {
    const { redis, db } = await set_scene();
    const uuid = random_uuid();
    await db.set(`ndjson_task_${uuid}`, '{}');
    const owned = await make_list(db, `ndjson_list_${uuid}`);
    const proxy = await start_proxy(redis, ['--ttl', '1']);
    for (const round of [1, 2]) {
      const orphan = await make_list(db, `ndjson_list_${random_uuid()}`);
      await until(`órfã ${round} com TTL`, async () => (await db.ttl(orphan)) > ttl_s - 60);
      await until('registro', () => proxy.stdout().match(/ sweep adopted=1 /g)?.length === round);
    }
    assert.equal(await db.ttl(owned), -1);
    await db.del(`ndjson_task_${uuid}`);
    await until('lista que perdeu a tarefa', async () => (await db.ttl(owned)) > ttl_s - 60);
    assert.equal(proxy.stderr(), '');
  },

  'proxy morto com kill -9 em pleno voo: as tarefas expiram; as listas, pelo próximo': async () => {
    const { redis, db } = await set_scene();
    const args = ['--ttl', '2', '-P', '0'];
    const [victim, worker] = await Promise.all([start_proxy(redis, args), start_worker(redis)]);
    const begun = [];
    for (let n = 0; n < fleet; n += 1) begun.push(await begin(victim, worker));
    // cada worker segue, sem saber de nada, até ter criado uma lista que não expiraria nunca
    const push_on = async ({ task_key, task_list }: task_names) => {
      for (let n = 0; ; n += 1) {
        await db.rPush(task_list, String(n));
        if ((await db.exists(task_key)) === 0 && (await db.ttl(task_list)) === -1) return;
      }
    };
    const pushing = begun.map(({ task }) => push_on(task));
    for (const { stream } of begun) assert.equal(await stream.next(), '0');
    await victim.stop('SIGKILL');
    for (const { stream } of begun) await assert.rejects(stream.rest());
    const heir = await start_proxy(redis, args);
    await Promise.all(pushing);
    await until('só listas, que expiram', async () => {
      const keys = await db.keys('*');
      const ttls = await Promise.all(keys.map((key) => db.ttl(key)));
      return keys.every((key) => key.startsWith('ndjson_list_')) && !ttls.includes(-1);
    });
    await until('adoção no log', () => {
      const counts = [...heir.stdout().matchAll(/ sweep adopted=(\d+) ttl=600\n/g)];
      return counts.reduce((sum, [, count]) => sum + Number(count), 0) >= fleet;
    });
    assert.equal(heir.stderr(), '');
  },

  [`no meio de ${crowd.others} chaves: acha todas, e o proxy atende enquanto varre`]: async () => {
    const { redis, db } = await set_scene();
    const fill = `for n = 1, ${crowd.others} do
      redis.call('SET', 'outra:' .. n, 'x')
      if n % 20 == 0 then redis.call('RPUSH', 'ndjson_list_' .. n, 'x') end
    end`;
    await db.eval(fill);
    const names = Array.from({ length: crowd.orphans }, () => `ndjson_list_${random_uuid()}`);
    await Promise.all(names.map((name) => make_list(db, name)));
    const proxy = await start_proxy(redis);
    const ping = await fetch_all(proxy, { path: '/ping' });
    await proxy.wait_for(new RegExp(` sweep adopted=${crowd.orphans} ttl=600\n`), 3 * patience_ms);
    assert.equal(ping.body, 'pong');
    for (const name of names) await check_adopted(db, name);
    assert.equal(await db.ttl('ndjson_list_20'), -1);
    assert.equal(await db.ttl('outra:1'), -1);
    assert.equal(proxy.stderr(), '');
  },

  'outra instalação com o mesmo prefixo de lista e um REDIS_TTL curto: nenhuma linha se perde':
    async () => {
      const { redis, db } = await set_scene();
      const [proxy, worker] = await Promise.all([
        start_proxy(redis, ['-P', '300', '-X', 'nossa_']),
        start_worker(redis),
      ]);
      const { stream, task } = await begin(proxy, worker);
      const lines = Array.from({ length: 10 }, (_, n) => `linha ${n}`);
      await db.rPush(task.task_list, lines);
      const neighbor = await start_proxy(redis, ['--ttl', '1', '-X', 'deles_', '-C', 'deles']);
      for (const line of lines) assert.equal(await stream.next(), line);
      await db.del(task.task_key);
      assert.deepEqual(await stream.rest(), []);
      assert.equal(neighbor.stderr(), '');
    },

  'com LFU não se sabe há quanto tempo ninguém mexe: a lista é adotada assim mesmo': async () => {
    const redis = await start_redis(['--maxmemory-policy', 'allkeys-lfu']);
    const db = await connect_redis(redis);
    const orphan = await make_list(db, `ndjson_list_${random_uuid()}`);
    const proxy = await start_proxy(redis, ['--ttl', '1000']);
    await proxy.wait_for(/ sweep adopted=1 ttl=1000\n/);
    assert.ok((await db.ttl(orphan)) > 900);
  },

  'a parada no meio de uma varredura não é uma falha dela': async () => {
    const { redis, db } = await set_scene();
    await db.eval(`for n = 1, ${crowd.others} do redis.call('SET', 'outra:' .. n, 'x') end`);
    const proxy = await start_proxy(redis);
    await freeze_redis(redis); // uma página do SCAN espera por ele
    const stopped = proxy.stop();
    await proxy.wait_for(/ stop signal=SIGTERM /);
    redis.process.kill('SIGCONT');
    assert.equal(await stopped, 0);
    assert.equal(proxy.stderr(), '');
  },

  'SCAN proibido: o proxy avisa e funciona': async () => {
    const { redis, db } = await set_scene();
    await db.aclSetUser('proxy', ['on', '>senha', '~*', '&*', '+@all', '-scan']);
    const server = `redis://proxy:senha@${redis.server}`;
    const [proxy, worker] = await Promise.all([start_proxy({ server }), start_worker(redis)]);
    await proxy.wait_for(/ sweep_failed reason=".*permissão.*"\n/);
    const stream = open_stream(proxy);
    await db.rPush((await worker.next()).task_list, ['1', 'EOF']);
    assert.deepEqual(await stream.rest(), ['1']);
    assert.deepEqual(await db.keys('*'), []);
  },
};

describe('varredura', { concurrency: tests_at_once }, () => {
  for (const [title, run] of Object.entries(tests)) test(title, run);

  for (const [prefix, decoy] of [
    ['a*[x]?', 'aBBBx?'], // o padrão sem escape acharia as duas
    ['b[^x]-', 'bzzzx-'],
    ['c\\d?ef', 'cddxef'],
  ] as const) {
    test(`prefixo ${prefix}: vale ao pé da letra, não como padrão`, async () => {
      const { redis, db } = await set_scene();
      const orphan = await make_list(db, prefix + random_uuid());
      const neighbor = await make_list(db, decoy + random_uuid());
      const proxy = await start_proxy(redis, ['-L', prefix, '--ttl', String(ttl_s)]);
      await proxy.wait_for(/ sweep adopted=1 /);
      await check_adopted(db, orphan);
      assert.equal(await db.ttl(neighbor), -1);
    });
  }
});
