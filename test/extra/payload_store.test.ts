/*
 * payload-store atrás do proxy: as três rotas, a chave, o que fica no Redis, o log, as mortes.
 */

import assert from 'node:assert/strict';
import {
  readdirSync as list_dir,
  readFileSync as read_file,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import { before, describe, test } from 'node:test';
import { rotating_file } from '../../scripts/backends/common/log';
import {
  brisk,
  connect_redis,
  exit_of,
  type local_program,
  type local_redis,
  type proxy,
  type redis_client,
  start_program,
  start_proxy,
  start_redis,
  temp_dir,
  until,
} from '../harness';
import {
  ask,
  long_patience_ms,
  run_backend,
  sees_failure,
  start_relay,
  start_system,
} from './backends_helpers';

const api_key = 'the-secret-of-the-test';
const days_30_s = 30 * 24 * 3600;
const log_folder = path.join(temp_dir(), 'made', 'here');
const env = { API_SECRET_KEY: api_key, LOG_FOLDER: log_folder, FORCE_COLOR: '1' };
const headers = { 'X-API-KEY': api_key };

let redis: local_redis;
let front: proxy;
let db: redis_client;
let system: local_program;

before(async () => {
  redis = await start_redis();
  db = await connect_redis(redis);
  front = await start_proxy(redis, [...brisk, '--grace', '5000', '-t', '3000']);
  system = await start_system('payload-store', redis, env);
});

describe('payload-store', () => {
  test('guarda e devolve a entrada e a saída, como vieram, por 30 dias', async () => {
    const input = '{"usuario": "Maria", "n": 12345678901234567890, "é": [1.0, null]}';
    const saved = await ask(front, 'POST /save_input?uuid=abc123', input, { headers });
    assert.deepEqual(saved.value, { status: 'ok', uuid: 'abc123', saved: 'input' });
    const half = await ask(front, 'GET /get_payload?uuid=abc123', undefined, { headers });
    assert.equal(half.body, `{"input": ${input}, "output": null}`);
    await db.expire('payload_abc123', 60);
    await ask(front, 'POST /save_output?uuid=abc123', '[]', { headers });
    const both = await ask(front, 'GET /get_payload?uuid=abc123', undefined, { headers });
    assert.equal(both.body, `{"input": ${input}, "output": []}`);
    assert.match(both.headers['content-type'] ?? '', /^application\/json/);
    const ttl = await db.ttl('payload_abc123');
    assert.ok(ttl > days_30_s - 300 && ttl <= days_30_s, `o save não renovou o TTL: ${ttl}`);
  });

  test('recusa com um erro que diz o motivo', async () => {
    const cases: [string, unknown, typeof headers | Record<string, string>, number, RegExp][] = [
      ['POST /save_input', {}, headers, 400, /uuid/],
      ['POST /save_input?uuid=%20', {}, headers, 400, /uuid/],
      ['GET /get_payload', undefined, headers, 400, /uuid/],
      [`GET /get_payload?uuid=${'x'.repeat(201)}`, undefined, headers, 400, /uuid/],
      ['POST /save_input?uuid=bad', '{"a":', headers, 400, /JSON/],
      ['POST /save_input?uuid=bad', '', headers, 400, /JSON/],
      ['GET /get_payload?uuid=bad', undefined, headers, 404, /uuid/],
      ['GET /get_payload?uuid=abc123', undefined, {}, 401, /X-API-KEY/],
      ['POST /save_input?uuid=x', {}, { 'X-API-KEY': `${api_key}x` }, 401, /X-API-KEY/],
      ['GET /nothing', undefined, headers, 404, /no such route/],
      ['GET /save_input?uuid=x', undefined, headers, 404, /no such route/],
    ];
    for (const [target, body, given, status, reason] of cases) {
      const reply = await ask(front, target, body, { headers: given });
      assert.equal(reply.status, status, target);
      assert.match(reply.value.error, reason, target);
    }
  });

  test('o log tem cor no console e não tem no arquivo, em GMT-3, e nunca a chave', async () => {
    await ask(front, 'POST /save_input?uuid=logged%0Ainjected', {}, { headers });
    const file = read_file(path.join(log_folder, 'server.log'), 'utf8');
    const line = /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d GMT-3 INFO {2}salvo uuid="logged\\ninjected"/m;
    assert.match(file, line);
    assert.doesNotMatch(file, /\x1b/);
    assert.match(system.stdout(), /\x1b\[32m[^\n]* salvo /);
    assert.ok(!(file + system.stdout()).includes(api_key));
  });

  test('sem a chave, ou com uma porta que não serve, não começa', async () => {
    const cwd_env = { REDIS_SERVER: redis.server, LOG_FOLDER: log_folder };
    const without = await run_backend('payload-store/main.ts', [], cwd_env);
    assert.equal(without.code, 2);
    assert.equal(without.output, 'payload-store: falta API_SECRET_KEY, no ambiente ou no .env\n');
    const bad = { ...env, REDIS_SERVER: '', REDIS_HOST: 'localhost', REDIS_PORT: '70000' };
    const refused = await run_backend('payload-store/main.ts', [], bad);
    assert.equal(refused.code, 2);
    assert.match(
      refused.output,
      /^payload-store: REDIS_PORT inválido: "70000"; aceito: 1 a 65535\n$/,
    );
  });

  test('o cliente experimenta as três rotas com o que está no .env', async () => {
    const dir = temp_dir();
    const lines = [`API_SECRET_KEY=${api_key}`, `SERVER_URL=${front.url}`, 'UUID=from-the-file'];
    write_file(path.join(dir, '.env'), lines.join('\n'));
    const client = path.resolve('scripts/backends/payload-store/client.ts');
    const tsx = path.resolve('node_modules/.bin/tsx');
    const program = start_program(tsx, [client], {}, dir);
    assert.equal(await exit_of(program, long_patience_ms), 0, program.stderr());
    assert.match(program.stdout(), /GET \/get_payload: 200 \{"input": \{"usuario":"Maria"/);
    assert.equal(await db.exists('payload_from-the-file'), 1);
  });

  test('um kill -9 no meio de um pedido é um erro no cliente, e outra cópia segue', async () => {
    const relay = await start_relay(redis);
    const victim = await start_system('payload-store', { server: relay.server }, env);
    relay.hold('payload_victim');
    system.process.kill('SIGSTOP'); // a outra cópia não disputa este pedido
    const asked = ask(front, 'POST /save_input?uuid=victim', {}, { headers });
    await relay.held();
    await victim.stop('SIGKILL');
    system.process.kill('SIGCONT');
    await sees_failure(asked);
    const next = await ask(front, 'POST /save_input?uuid=victim', { n: 1 }, { headers });
    assert.equal(next.status, 200);
  });

  test('com SIGTERM termina o que está em curso, e sai com 0', async () => {
    const relay = await start_relay(redis);
    const leaving = await start_system('payload-store', { server: relay.server }, env);
    relay.hold('payload_leaving');
    system.process.kill('SIGSTOP');
    const asked = ask(front, 'POST /save_input?uuid=leaving', { n: 1 }, { headers });
    await relay.held();
    leaving.process.kill('SIGTERM');
    relay.release();
    assert.equal((await asked).status, 200);
    assert.equal(await exit_of(leaving, long_patience_ms), 0);
    system.process.kill('SIGCONT');
    const kept = await ask(front, 'GET /get_payload?uuid=leaving', undefined, { headers });
    assert.deepEqual(kept.value, { input: { n: 1 }, output: null });
  });

  test('um Redis que cai e volta é achado de novo, sem que se reinicie nada', async () => {
    await redis.stop();
    redis = await start_redis([], { port: redis.port, dir: redis.dir });
    await until(
      'pedidos atendidos',
      async () => {
        const reply = await ask(front, 'POST /save_input?uuid=back', {}, { headers });
        return reply.status === 200 && reply.value.saved === 'input';
      },
      long_patience_ms,
    );
  });

  test('o arquivo de log dá lugar a outro, e nenhuma linha se perde', () => {
    const file = path.join(temp_dir(), 'made', 'server.log');
    const write = rotating_file(file);
    const fields = { text: 'x'.repeat(999_000) };
    for (let n = 0; n < 12; n += 1) {
      write({ at: new Date(0), level: 'info', message: `linha ${n};`, fields });
    }
    const names = list_dir(path.dirname(file)).sort();
    assert.deepEqual(names, ['server.log.1', 'server.log.2'], '12 MB, 6 MB cada arquivo');
    const text = names.map((name) => read_file(path.join(path.dirname(file), name), 'utf8'));
    for (let n = 0; n < 12; n += 1) assert.ok(text.join('').includes(`linha ${n};`));
    assert.match(text[1] ?? '', /^1969-12-31 21:00:00 GMT-3 INFO {2}linha 0; text="x/);
  });

  test('o binário único traz o proxy e o sistema, e para inteiro', async () => {
    const binary = path.join(temp_dir(), 'app_server');
    const built = await run_backend('payload-store/build.ts', ['--out', binary]);
    assert.equal(built.code, 0, built.output);
    const own_redis = await start_redis();
    const where = { REDIS_HOST: '127.0.0.1', REDIS_PORT: String(own_redis.port), HTTP_PORT: '0' };
    const settings = {
      ...env,
      ...where,
      REDIS_SERVER: undefined,
      LOG_FOLDER: temp_dir(),
      PATH: '',
    };
    const server = start_program(binary, [], settings, temp_dir());
    const [, port] = await server.wait_for(/ listen url=http:\/\/\S+?:(\d+)\n/, long_patience_ms);
    await server.wait_for(/ouvindo/, long_patience_ms);
    const at = { port: Number(port) };
    assert.equal((await ask(at, 'POST /save_input?uuid=a', { n: 1 }, { headers })).status, 200);
    const got = await ask(at, 'GET /get_payload?uuid=a', undefined, { headers });
    assert.deepEqual(got.value, { input: { n: 1 }, output: null });
    server.process.kill('SIGTERM');
    assert.equal(await exit_of(server, long_patience_ms), 0);
    await assert.rejects(ask(at, 'GET /ping'));
    const again = start_program(binary, [], settings, temp_dir());
    const [, port_2] = await again.wait_for(/ listen url=http:\/\/\S+?:(\d+)\n/, long_patience_ms);
    await again.wait_for(/ouvindo/, long_patience_ms);
    await again.stop('SIGKILL');
    await again.wait_for(/ stopped /); // o proxy percebe que ficou só, e para
    await assert.rejects(ask({ port: Number(port_2) }, 'GET /ping'));
  });
});
