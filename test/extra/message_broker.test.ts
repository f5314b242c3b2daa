/*
 * message-broker atrás do proxy, por HTTPS: filas e mensagens por REST e por GraphQL, os papéis, o
 * fluxo, as estatísticas, os logs, as mortes.
 */

import assert from 'node:assert/strict';
import {
  readdirSync as list_dir,
  readFileSync as read_file,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import { before, describe, test } from 'node:test';
import {
  brisk,
  exit_of,
  type local_program,
  type local_redis,
  open_stream,
  type proxy,
  start_proxy,
  start_redis,
  temp_dir,
  until,
} from '../harness';
import {
  ask as ask_plainly,
  long_patience_ms,
  run_backend,
  start_system,
} from './backends_helpers';

/** Um usuário, com os cabeçalhos que o representam. */
type role = 'nobody' | 'read' | 'write' | 'admin';

const folder = temp_dir();
const password = 'a password of the test';
const env = {
  ...{ APP_ENV: 'production', JWT_SECRET_KEY: 'x'.repeat(32), ADMIN_PASSWORD: password },
  ...{ DATA_FOLDER: path.join(folder, 'data'), LOG_FOLDER: path.join(folder, 'log') },
  ...{ LEASE_S: '2', RATE_LIMIT: 'off' },
};

let redis: local_redis;
let front: proxy;
let ca: string;
let system: local_program;
let tokens: Record<role, Record<string, string>>;

/**
 * Faz um pedido como um usuário.
 * @param role quem pede
 * @param target método e caminho
 * @param body o corpo
 * @returns a resposta
 */
function ask(role: role, target: string, body?: unknown) {
  return ask_plainly(front, target, body, { headers: tokens[role], ca });
}

/**
 * Faz um pedido em GraphQL.
 * @param role quem pede
 * @param query o pedido
 * @returns a resposta
 */
async function ask_graphql(role: role, query: string) {
  return (await ask(role, 'POST /graphql', { query })).value;
}

/**
 * Entra e guarda o token de um usuário.
 * @param role o nome dele, que é o papel
 */
async function log_in(role: role): Promise<void> {
  const { value } = await ask('nobody', 'POST /login', { username: role, password });
  tokens[role] = { Authorization: `Bearer ${value.access_token}` };
}

/**
 * Abre o fluxo de uma fila.
 * @param queue a fila, com a consulta
 * @returns o fluxo
 */
function stream_of(queue: string) {
  const route = `/queues/${queue}`;
  return open_stream(front, { path: route, headers: tokens.write, ca });
}

before(async () => {
  redis = await start_redis();
  const made = await run_backend('message-broker/certificate.ts', [path.join(folder, 'tls')]);
  const [, cert = '', key = ''] = /TLS_CERT=(.*)\nTLS_KEY=(.*)\n/.exec(made.output) ?? [];
  ca = read_file(cert, 'utf8');
  const tls = ['--tls-cert', cert, '--tls-key', key];
  front = await start_proxy(redis, [...brisk, ...tls, '--grace', '5000', '-t', '12000']);
  system = await start_system('message-broker', redis, env);
  tokens = { nobody: {}, read: {}, write: {}, admin: {} };
  await log_in('admin');
  for (const role of ['read', 'write'] as const) {
    const made_user = await ask('admin', 'POST /users', { username: role, password, role });
    assert.equal(made_user.status, 201);
    await log_in(role);
  }
});

describe('message-broker', () => {
  test('uma mensagem, de publicada a processada, recusada e devolvida', async () => {
    assert.equal((await ask('admin', 'POST /queues', { name: 'life' })).status, 201);
    for (const content of ['a', 'b', 'ção 🎉']) {
      const made = await ask('write', 'POST /queues/life/messages', { content });
      assert.deepEqual([made.status, made.value.status], [201, 'pending']);
    }
    const first = (await ask('write', 'POST /queues/life/consume')).value;
    assert.deepEqual([first.content, first.status, first.deliveries], ['a', 'processing', 1]);
    const second = (await ask('write', 'POST /queues/life/consume')).value;
    assert.equal(second.content, 'b');
    const route = `/queues/life/messages/${first.id}`;
    const wrong = await ask('write', `POST ${route}/ack`, { receipt: second.receipt });
    assert.equal(wrong.status, 409);
    const done = await ask('write', `POST ${route}/ack`, { receipt: first.receipt });
    assert.deepEqual([done.value.status, done.value.receipt], ['processed', null]);
    const back = `/queues/life/messages/${second.id}/nack`;
    await ask('write', `POST ${back}`, { receipt: second.receipt });
    const again = (await ask('write', 'POST /queues/life/consume')).value;
    assert.deepEqual([again.content, again.deliveries], ['b', 2], 'devolvida, é a mais antiga');
    const failed = await ask('write', `POST ${back}`, { receipt: again.receipt, requeue: false });
    assert.equal(failed.value.status, 'failed');
    assert.equal((await ask('write', 'POST /queues/life/consume')).value.content, 'ção 🎉');
    const empty = await ask('write', 'POST /queues/life/consume');
    assert.deepEqual([empty.status, empty.body], [204, '']);
    const { messages } = (await ask('read', 'GET /queues/life')).value;
    const counts = { pending: 0, processing: 1, processed: 1, failed: 1, total: 3 };
    assert.deepEqual(messages, counts);
    assert.equal((await ask('admin', 'DELETE /queues/life')).status, 204);
    assert.equal((await ask('read', 'GET /queues/life')).status, 404);
  });

  test('o mesmo em GraphQL, com os mesmos erros', async () => {
    const made = await ask_graphql('admin', 'mutation { create_queue(name: "graph") { name } }');
    assert.deepEqual(made.data, { create_queue: { name: 'graph' } });
    const publish = 'mutation { publish(queue: "graph", content: "one") { id status } }';
    assert.equal((await ask_graphql('write', publish)).data.publish.status, 'pending');
    const consume = 'mutation { consume(queue: "graph") { id content receipt } }';
    const { id, content, receipt } = (await ask_graphql('write', consume)).data.consume;
    assert.equal(content, 'one');
    const settle = (name: string) => {
      return `mutation { ${name}(queue: "graph", id: ${id}, receipt: "${receipt}") { status } }`;
    };
    assert.equal((await ask_graphql('write', settle('nack'))).data.nack.status, 'pending');
    const late = await ask_graphql('write', settle('ack'));
    assert.deepEqual(late.errors[0].extensions, { status: 409 });
    const query = '{ queues { name } queue(name: "graph") { messages { total pending } } }';
    const { data } = await ask_graphql('read', query);
    assert.deepEqual(data.queue, { messages: { total: 1, pending: 1 } });
    const refused = await ask_graphql('read', publish);
    assert.deepEqual(refused.errors[0].extensions, { status: 403 });
    assert.equal((await ask('nobody', 'POST /graphql', { query })).status, 401);
    assert.equal((await ask('read', 'POST /graphql', { query: '{ nothing }' })).status, 200);
    const page = await ask_plainly(front, 'GET /graphql', undefined, {
      ...{ headers: { Accept: 'text/html' }, ca },
    });
    assert.equal(page.status, 405, 'em produção não há página');
  });

  test('cada papel pode só o que lhe cabe; e recusas que dizem o motivo', async () => {
    await ask('admin', 'POST /queues', { name: 'roles' });
    const cases: [role, string, unknown, number, RegExp][] = [
      ['nobody', 'GET /queues', undefined, 401, /access token/],
      ['read', 'POST /queues', { name: 'x' }, 403, /role admin/],
      ['read', 'POST /queues/roles/messages', { content: 'x' }, 403, /role write/],
      ['read', 'POST /queues/roles/consume', undefined, 403, /role write/],
      ['read', 'GET /queues/roles/stream', undefined, 403, /role write/],
      ['write', 'DELETE /queues/roles', undefined, 403, /role admin/],
      ['write', 'GET /logs', undefined, 403, /role admin/],
      ['write', 'POST /users', { username: 'x', password, role: 'admin' }, 403, /role admin/],
      ['admin', 'POST /queues', { name: 'roles' }, 409, /already exists/],
      ['admin', 'POST /queues', { name: 'a/b' }, 400, /^name/],
      ['admin', 'POST /queues', {}, 400, /^name/],
      [
        'admin',
        'POST /users',
        { username: 'x', password: 'short', role: 'read' },
        400,
        /^password/,
      ],
      ['write', 'POST /queues/roles/messages', { content: 1 }, 400, /^content/],
      ['write', 'POST /queues/none/messages', { content: 'x' }, 404, /no queue none/],
      ['write', 'POST /queues/none/consume', undefined, 404, /no queue none/],
      ['write', 'GET /queues/none/stream', undefined, 404, /no queue none/],
      ['write', 'POST /queues/roles/messages/77/ack', { receipt: 'x' }, 404, /no message 77/],
      ['write', 'GET /queues/roles/stream?prefetch=0', undefined, 400, /^prefetch/],
      ['nobody', 'POST /login', { username: 'admin', password: 'wrong' }, 401, /wrong/],
      ['nobody', 'POST /login', { username: 'none', password }, 401, /wrong/],
      ['nobody', 'POST /refresh', { refresh_token: 'x' }, 401, /refresh token/],
    ];
    for (const [role, target, body, status, reason] of cases) {
      const reply = await ask(role, target, body);
      assert.equal(reply.status, status, `${role} ${target}: ${reply.body}`);
      assert.match(reply.value.error, reason, target);
    }
    for (const method of ['GET', 'POST', 'DELETE']) {
      const reply = await ask_plainly(front, `${method} /queues`, undefined, {
        ...{ headers: { Authorization: 'Bearer x.y.z' }, ca },
      });
      assert.equal(reply.status, 401);
    }
  });

  test('um token de renovação dá outros, e não serve de acesso', async () => {
    const { value } = await ask('nobody', 'POST /login', { username: 'read', password });
    assert.deepEqual([value.token_type, value.expires_in], ['bearer', 900]);
    const { refresh_token } = value;
    const { value: renewed } = await ask('nobody', 'POST /refresh', { refresh_token });
    const use = async (token: string) => {
      const headers = { Authorization: `Bearer ${token}` };
      return (await ask_plainly(front, 'GET /queues', undefined, { headers, ca })).status;
    };
    assert.equal(await use(renewed.access_token), 200);
    assert.equal(await use(refresh_token), 401);
    const refused = await ask('nobody', 'POST /refresh', { refresh_token: value.access_token });
    assert.equal(refused.status, 401);
  });

  test('o fluxo entrega o que chega, em ordem, com poucas por confirmar', async () => {
    await ask('admin', 'POST /queues', { name: 'flow' });
    await ask('write', 'POST /queues/flow/messages', { content: 'before' });
    const stream = stream_of('flow/stream?prefetch=2');
    const next = async () => JSON.parse((await stream.next(long_patience_ms)) ?? 'null');
    const first = await next();
    assert.equal(first.content, 'before');
    for (const content of ['1', '2', '3']) {
      await ask('write', 'POST /queues/flow/messages', { content });
    }
    assert.equal((await next()).content, '1');
    const { messages } = (await ask('read', 'GET /queues/flow')).value;
    assert.deepEqual([messages.pending, messages.processing], [2, 2], 'prefetch=2');
    await ask('write', `POST /queues/flow/messages/${first.id}/ack`, { receipt: first.receipt });
    assert.equal((await next()).content, '2');
    stream.leave();
  });

  test('dois nunca recebem a mesma; quem morre a devolve depois do prazo', async () => {
    await ask('admin', 'POST /queues', { name: 'shared' });
    for (let n = 1; n <= 20; n += 1) {
      await ask('write', 'POST /queues/shared/messages', { content: String(n) });
    }
    const took = async () => {
      const mine: string[] = [];
      for (;;) {
        const { status, value } = await ask('write', 'POST /queues/shared/consume');
        if (status === 204) return mine;
        mine.push(value.content);
        const { id, receipt } = value;
        if (id % 2) await ask('write', `POST /queues/shared/messages/${id}/ack`, { receipt });
      }
    };
    const taken = (await Promise.all([took(), took(), took()])).flat();
    const once = new Set(taken);
    assert.equal(once.size, 20);
    const returned = await until(
      'as não confirmadas de volta',
      async () => {
        const { status, value } = await ask('write', 'POST /queues/shared/consume');
        return status === 200 && value;
      },
      long_patience_ms,
    );
    assert.equal(returned.deliveries, 2);
  });

  test('/stats conta pedidos, mensagens e a máquina; X-Process-Time em tudo', async () => {
    const reply = await ask('read', 'GET /stats');
    const stats = reply.value;
    assert.match(String(reply.headers['x-process-time']), /^\d+\.\d{6}$/);
    const missing = await ask('nobody', 'GET /queues');
    assert.match(String(missing.headers['x-process-time']), /^\d+\.\d{6}$/);
    assert.ok(stats.requests_by_route['/queues/:name/messages'].POST >= 3);
    assert.ok(stats.requests_by_route['/login'].POST >= 3);
    assert.ok(stats.requests_by_route['/graphql'].POST >= 3);
    assert.equal(stats.requests_by_route['/*'], undefined);
    assert.ok(stats.requests_by_status[403] >= 1);
    const statuses = Object.values(stats.requests_by_status) as number[];
    const sum = statuses.reduce((a, b) => a + b, 0);
    assert.equal(sum, stats.requests_total);
    const { messages_pending: pending, messages_processing: processing } = stats;
    const { messages_processed: processed, messages_failed: failed } = stats;
    assert.equal(pending + processing + processed + failed, stats.messages_total);
    assert.match(stats.uptime_human, /^(\d+ \w+, )*\d+ seconds?$/);
    assert.ok(stats.system.memory.total > 0 && stats.system.disk.total > 0);
    assert.equal(stats.last_error, null);
    assert.match(stats.broker_specific.database, /SQLite/);
  });

  test('os logs: pedaço, fim e busca; nenhum nome sai da pasta; nenhum segredo neles', async () => {
    const { files } = (await ask('admin', 'GET /logs')).value;
    assert.match(files[0].name, /^message-broker-\d{4}-\d\d-\d\d\.json$/);
    const route = `/logs/${files[0].name}`;
    const part = (await ask('admin', `GET ${route}?start=2&end=4`)).value;
    assert.deepEqual(
      part.lines.map(({ line }: { line: number }) => line),
      [2, 3, 4],
    );
    const tail = (await ask('admin', `GET ${route}?tail=2`)).value;
    assert.deepEqual([tail.lines.length, tail.lines[1].line], [2, tail.total]);
    const found = (await ask('admin', `GET ${route}?search=%2FQUEUES%2Fflow%2Fmessages`)).value;
    assert.ok(found.matches >= 4 && found.matches < found.total);
    assert.equal(found.lines[0].level, 'info');
    write_file(path.join(folder, 'data', 'message-broker-2020-01-01.json'), '{}\n');
    const escapes = [
      '..%2Fdata%2Fbroker.db',
      '../data/broker.db',
      '%2e%2e%2fdata%2fmessage-broker-2020-01-01.json',
      'message-broker-2020-01-01.json',
      '%00',
    ];
    for (const way_out of escapes) {
      assert.equal((await ask('admin', `GET /logs/${way_out}`)).status, 404, way_out);
    }
    for (const bad of ['tail=0', 'start=x', 'tail=1001']) {
      assert.equal((await ask('admin', `GET ${route}?${bad}`)).status, 400, bad);
    }
    const [name = ''] = list_dir(path.join(folder, 'log'));
    const text = read_file(path.join(folder, 'log', name), 'utf8') + system.stdout();
    const { Authorization: authorization = '' } = tokens.admin;
    for (const secret of [password, env.JWT_SECRET_KEY, authorization.slice('Bearer '.length)]) {
      assert.ok(!text.includes(secret));
    }
  });

  test('um kill -9 é visto por quem lia o fluxo, e nada publicado se perde', async () => {
    await ask('admin', 'POST /queues', { name: 'durable' });
    const stream = stream_of('durable/stream');
    await ask('write', 'POST /queues/durable/messages', { content: '0' });
    assert.match((await stream.next(long_patience_ms)) ?? '', /"content":"0"/);
    for (let n = 1; n <= 9; n += 1) {
      const reply = await ask('write', 'POST /queues/durable/messages', { content: String(n) });
      assert.equal(reply.status, 201);
    }
    const dead = system.stop('SIGKILL');
    const heir = start_system('message-broker', redis, env);
    await dead;
    await assert.rejects(stream.rest(long_patience_ms), 'uma parte passou por inteira');
    system = await heir;
    const { messages } = (await ask('read', 'GET /queues/durable')).value;
    assert.equal(messages.total, 10);
    const seen = new Set<string>();
    await until(
      'todas entregues, também as que o morto tinha em mãos',
      async () => {
        const { status, value } = await ask('write', 'POST /queues/durable/consume');
        if (status === 200) seen.add(value.content);
        return seen.size === 10;
      },
      long_patience_ms,
    );
  });

  test('com SIGTERM e outra cópia no ar, nenhum pedido se perde', async () => {
    await ask('admin', 'POST /queues', { name: 'moving' });
    const heir = await start_system('message-broker', redis, env);
    const publish = async (n: number) => {
      const reply = await ask('write', 'POST /queues/moving/messages', { content: String(n) });
      return reply.status;
    };
    const before_stop = Array.from({ length: 20 }, (_, n) => publish(n));
    system.process.kill('SIGTERM');
    const after_stop = Array.from({ length: 20 }, (_, n) => publish(n + 20));
    const statuses = await Promise.all([...before_stop, ...after_stop]);
    assert.deepEqual(new Set(statuses), new Set([201]));
    assert.equal(await exit_of(system, long_patience_ms), 0);
    system = heir;
    assert.equal((await ask('read', 'GET /queues/moving')).value.messages.total, 40);
  });
});

describe('message-broker, o que configura', () => {
  test('em produção os segredos são obrigatórios; nada que não sirva o deixa começar', async () => {
    const cases: [NodeJS.ProcessEnv, RegExp][] = [
      [{ APP_ENV: 'production' }, /^message-broker: falta JWT_SECRET_KEY/],
      [{ APP_ENV: 'production', JWT_SECRET_KEY: 'short' }, /JWT_SECRET_KEY: ao menos 32/],
      [{ APP_ENV: 'staging' }, /APP_ENV inválido: staging/],
    ];
    for (const [given, reason] of cases) {
      const refused = await run_backend('message-broker/main.ts', [], given);
      assert.equal(refused.code, 2, refused.output);
      assert.match(refused.output, reason);
    }
  });

  test('em desenvolvimento há a página do GraphQL; os limites por cliente', async () => {
    const own = await start_redis();
    const where = await start_proxy(own, brisk);
    const place = { DATA_FOLDER: temp_dir(), LOG_FOLDER: temp_dir(), RATE_LIMIT: '13/600' };
    const copy = await start_system('message-broker', own, place);
    const page = await ask_plainly(where, 'GET /graphql', undefined, {
      headers: { Accept: 'text/html' },
    });
    assert.equal(page.status, 200);
    assert.match(page.body, /GraphiQL/);
    assert.doesNotMatch(page.body, /<(?:script|link)[^>]+(?:src|href)="https?:/);
    const tries: number[] = [];
    for (let n = 0; n < 11; n += 1) {
      const login = { username: 'admin', password: n === 0 ? 'admin' : 'x' };
      tries.push((await ask_plainly(where, 'POST /login', login)).status);
    }
    assert.deepEqual(tries, [200, ...Array(9).fill(401), 429]);
    assert.equal((await ask_plainly(where, 'GET /')).status, 200);
    const over = await ask_plainly(where, 'GET /');
    assert.equal(over.status, 429);
    assert.match(String(over.headers['x-process-time']), /^\d/);
    await copy.stop();
  });
});
