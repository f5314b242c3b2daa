/*
 * Quem pode pedir, quanto, e o que acontece em apuros: API_KEY, RATE, TRUST_PROXY, CORS_ORIGIN,
 * MAXTASKS, FAILFAST e HEARTBEAT, e os segredos em arquivos.
 */

import assert from 'node:assert/strict';
import { writeFileSync as write_file } from 'node:fs';
import path from 'node:path';
import { before, describe } from 'node:test';
import { network_of, parse_address, parse_origins, parse_rate } from '../json-proxy';
import { probe_env, take_probe } from '../scripts/dev/probe';
import {
  begin,
  connect_redis,
  end_of,
  exit_of,
  fetch_all,
  type http_options,
  type http_reply,
  type local_redis,
  open_socket,
  open_stream,
  type proxy,
  run_proxy,
  served,
  start_proxy,
  start_redis,
  start_scene,
  start_worker,
  temp_dir,
  test,
  tests_at_once,
  until,
  usage_error_of,
} from './harness';
import { assert_error, open_talk, raw_request } from './http_helpers';

let redis: local_redis;

before(async () => {
  redis = await start_redis();
});

/**
 * Escreve um segredo num arquivo.
 * @param text o conteúdo
 * @returns o caminho
 */
function secret_file(text: string): string {
  const file = path.join(temp_dir(), 'segredo');
  write_file(file, text);
  return file;
}

/**
 * Confere uma recusa.
 * @param reply a resposta
 * @param status status esperado
 * @param error texto esperado no campo "error"
 */
function assert_refused(reply: http_reply, status: number, error: string): void {
  assert.equal(reply.status, status);
  assert.equal(reply.headers['content-type'], 'application/json');
  assert.deepEqual(JSON.parse(reply.body), { error });
}

describe('API_KEY', () => {
  const keys = ['--api-key', 'chave-um, chave-dois'];
  const no_key = 'missing or unknown API key';

  for (const [what, headers] of [
    ['nenhuma', {}],
    ['errada em X-API-KEY', { 'X-API-Key': 'chave-tres' }],
    ['errada em Bearer', { Authorization: 'Bearer chave-tres' }],
    ['vazia', { 'X-API-Key': '' }],
    ['começo de uma', { 'X-API-Key': 'chave' }],
    ['as duas juntas', { 'X-API-Key': 'chave-um, chave-dois' }],
    ['em Basic', { Authorization: 'Basic chave-um' }],
  ] as [string, Record<string, string>][]) {
    test(`chave ${what}: 401, e nada é guardado nem anunciado`, async () => {
      const { proxy, worker, db } = await start_scene(redis, keys);
      await db.flushAll();
      const published = await served(db, 'publish');
      const reply = await fetch_all(proxy, { headers, body: 'x' });
      assert_refused(reply, 401, no_key);
      assert.equal(reply.headers['www-authenticate'], 'Bearer');
      assert.equal((await fetch_all(proxy, { method: 'HEAD', headers })).status, 401);
      assert.deepEqual([await db.keys('*'), worker.pending], [[], []]);
      assert.equal(await served(db, 'publish'), published);
      assert.doesNotMatch(`${proxy.stdout()}${proxy.stderr()}`, /chave/);
    });
  }

  for (const [what, headers] of [
    ['X-API-KEY', { 'X-API-KEY': 'chave-um' }],
    ['Bearer', { Authorization: 'Bearer chave-dois' }],
    ['bearer, em minúsculas', { authorization: 'bearer chave-um' }],
  ] as [string, Record<string, string>][]) {
    test(`uma das chaves, em ${what}: o fluxo corre, e o worker não a vê`, async () => {
      const { proxy, worker, db } = await start_scene(redis, keys);
      const stream = open_stream(proxy, { headers: { ...headers, 'X-Outro': '1' } });
      const task = await worker.next();
      assert.equal(task.headers['X-Outro'], '1');
      assert.doesNotMatch(JSON.stringify(task), /chave|Authorization|X-Api-Key/);
      await db.rPush(task.task_list, ['1', 'EOF']);
      assert.deepEqual(await stream.rest(), ['1']);
      assert.doesNotMatch(`${proxy.stdout()}${proxy.stderr()}`, /chave/);
    });
  }

  test('POST recusado que já mandou o corpo: a conexão serve o pedido seguinte', async () => {
    const proxy = await start_proxy(redis, keys);
    const talk = await open_talk(proxy, raw_request('POST /', [], 'corpo'));
    for (const next of ['segundo', '']) {
      const reply = await talk.reply();
      assert_error(reply, 401, no_key);
      assert.equal(reply.headers.connection, 'keep-alive');
      if (next) talk.send(raw_request('POST /', [], next));
    }
  });

  for (const [what, lines] of [
    ['antes de outra credencial', ['Bearer chave-um', 'Basic Zm9v']],
    ['depois de outra credencial', ['Basic Zm9v', 'Bearer chave-dois']],
    ['numa linha com outra', ['Bearer chave-um, Basic Zm9v']],
  ] as const) {
    test(`a chave ${what} também não chega ao worker`, async () => {
      const { proxy, worker, db } = await start_scene(redis, keys);
      const socket = await open_socket(proxy.port);
      const headers = lines.map((line) => `Authorization: ${line}\r\n`).join('');
      socket.send(`GET / HTTP/1.1\r\nHost: a\r\nX-API-Key: chave-dois\r\n${headers}\r\n`);
      const task = await worker.next();
      assert.doesNotMatch(JSON.stringify(task), /chave/);
      await db.rPush(task.task_list, 'EOF');
      await socket.wait_for(/\r\n0\r\n\r\n$/);
    });
  }

  test('o Authorization que não é nosso chega ao worker', async () => {
    const { proxy, worker } = await start_scene(redis, keys);
    const headers = { 'X-API-KEY': 'chave-um', Authorization: 'Bearer do-cliente' };
    const stream = open_stream(proxy, { headers });
    assert.equal((await worker.next()).headers.Authorization, 'Bearer do-cliente');
    stream.leave();
  });

  test('sem API_KEY os cabeçalhos do cliente passam inteiros', async () => {
    const { proxy, worker } = await start_scene(redis);
    const headers = { 'X-API-KEY': 'qualquer', Authorization: 'Bearer outra' };
    const stream = open_stream(proxy, { headers });
    const task = await worker.next();
    assert.equal(task.headers['X-Api-Key'], 'qualquer');
    assert.equal(task.headers.Authorization, 'Bearer outra');
    stream.leave();
  });

  test('/ping e OPTIONS continuam abertos', async () => {
    const proxy = await start_proxy(redis, keys);
    assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
    assert.equal((await fetch_all(proxy, { method: 'OPTIONS' })).status, 204);
  });

  test('quem errou muitas espera antes da próxima, certa ou errada; os outros, não', async () => {
    const args = [...keys, '--trust-proxy', 'on', '-t', '1'];
    const proxy = await start_proxy(redis, args);
    const ask = (from: string, key: string) =>
      fetch_all(proxy, { headers: { 'X-Forwarded-For': from, 'X-API-Key': key } });
    const guesses = Array.from({ length: 10 }, (_, n) => ask(`2001:db8::${n}`, `x${n}`));
    for (const reply of await Promise.all(guesses)) assert_refused(reply, 401, no_key);
    const asked_at = performance.now();
    const late = Promise.all([ask('2001:db8::a', 'chave-um'), ask('2001:db8::b', 'errada')]);
    assert.equal((await ask('2001:db8:0:1::1', 'chave-um')).status, 200);
    assert.ok(await Promise.race([late.then(() => false), true]), 'o outro endereço esperou');
    assert.deepEqual(
      (await late).map(({ status }) => status),
      [200, 401],
    );
    assert.ok(performance.now() - asked_at >= 1000, 'ninguém esperou');
  });

  test('as chaves podem vir de um arquivo, uma por linha', async () => {
    const file = secret_file('chave-a\r\nchave-b\n');
    const { proxy, worker, db } = await start_scene(redis, ['--api-key-file', file]);
    assert_refused(await fetch_all(proxy), 401, no_key);
    for (const key of ['chave-a', 'chave-b']) {
      const stream = open_stream(proxy, { headers: { 'X-API-KEY': key } });
      await db.rPush((await worker.next()).task_list, 'EOF');
      assert.deepEqual(await stream.rest(), []);
    }
  });

  test('erros de uso nomeiam a configuração e não mostram segredos', async () => {
    const file = secret_file('chave-a');
    const both = usage_error_of(['--api-key', 'chave-a', '--api-key-file', file]);
    assert.match(both, /^json-proxy: API_KEY e API_KEY_FILE dados ao mesmo tempo; aceito: só um/);
    assert.doesNotMatch(both, /chave-a/);
    const missing = usage_error_of(['--api-key-file', '/nao/existe']);
    assert.match(missing, /API_KEY_FILE .*"\/nao\/existe"; aceito: o caminho .*\(ENOENT\)/);
    const blank = usage_error_of(['--api-key-file', secret_file('\n')]);
    assert.match(blank, /API_KEY_FILE .*inválido: .*aceito: uma ou mais chaves/);
    for (const option of ['--api-key', '--api-key-file']) {
      const empty = usage_error_of([option, '']);
      assert.match(empty, /API_KEY(_FILE)? dado vazio; aceito: uma chave ao menos, ou a opção au/);
    }
    const bad = usage_error_of(['--api-key', 'com espaço']);
    assert.match(bad, /API_KEY .*inválido: "\*\*\*"; aceito: uma ou mais chaves em ASCII visível/);
    const help = await run_proxy(['--help'], { API_KEY: 'chave-a' });
    assert.equal(await exit_of(help), 0);
    assert.doesNotMatch(help.stdout(), /chave-a/);
  });
});

describe('REDIS_PASSWORD_FILE', () => {
  test('a senha vem do arquivo, sem a quebra de linha', async () => {
    const own = await start_redis(['--requirepass', 'hunter2']);
    const proxy = await start_proxy(own, ['--secret-file', secret_file('hunter2\n')]);
    assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
    assert.doesNotMatch(`${proxy.stdout()}${proxy.stderr()}`, /hunter2/);
  });

  test('com REDIS_PASSWORD também, é erro de uso', async () => {
    const line = usage_error_of(['-S', 'a', '--secret-file', secret_file('b')]);
    assert.match(line, /REDIS_PASSWORD e REDIS_PASSWORD_FILE dados ao mesmo tempo/);
  });
});

describe('RATE e TRUST_PROXY', () => {
  const day_s = 86_400; // numa janela de um dia nenhum teste passa de uma para a outra

  for (const [text, expected] of [
    ['', undefined],
    ['60/60', { count: 60, seconds: 60 }],
    ['1/86400', { count: 1, seconds: 86_400 }],
  ] as const) {
    test(`"${text}" é aceito`, () => {
      assert.deepEqual(parse_rate(text), expected);
    });
  }

  for (const text of ['60', '60/', '/60', '0/60', '60/0', '60/60/60', '1/86401', 'a/b', '-1/60']) {
    test(`"${text}" é recusado`, () => {
      assert.throws(() => parse_rate(text), /^Error: pedidos\/segundos, como 60\/60: /);
    });
  }

  /**
   * Faz um pedido que um worker encerra na hora.
   * @param scene o proxy e o worker
   * @param options o pedido
   * @returns a resposta
   */
  async function ask(
    scene: Awaited<ReturnType<typeof start_scene>>,
    options: http_options = {},
  ): Promise<http_reply> {
    const reply = fetch_all(scene.proxy, options);
    let is_over = false;
    void reply.then(() => {
      is_over = true;
    });
    await until('tarefa ou resposta', () => is_over || scene.worker.pending.length > 0);
    if (!is_over) await scene.db.rPush((await scene.worker.next()).task_list, 'EOF');
    return reply;
  }

  test('acima do limite, 429 com Retry-After; a conta é de todos os proxies e expira', async () => {
    const rate = ['--rate', `2/${day_s}`];
    const scene = await start_scene(redis, rate);
    await scene.db.flushAll();
    const other = await start_scene(redis, rate);
    assert.equal((await ask(scene)).status, 200);
    assert.equal((await ask(other)).status, 200);
    for (const at of [scene, other]) {
      const reply = await ask(at);
      assert_refused(reply, 429, 'too many requests');
      const wait_s = Number(reply.headers['retry-after']);
      assert.ok(wait_s > 0 && wait_s <= day_s, `${wait_s}`);
    }
    const [key = ''] = await scene.db.keys('ndjson_rate_*');
    assert.match(key, /^ndjson_rate_127\.0\.0\.1_\d+$/);
    const ttl = await scene.db.ttl(key);
    assert.ok(ttl > 0 && ttl <= day_s, `${ttl}`);
    assert.equal((await fetch_all(scene.proxy, { path: '/ping' })).body, 'pong');
    assert.equal((await fetch_all(scene.proxy, { method: 'OPTIONS' })).status, 204);
  });

  test('com TRUST_PROXY conta o último X-Forwarded-For, que o worker também vê', async () => {
    const scene = await start_scene(redis, ['--rate', `1/${day_s}`, '--trust-proxy', 'on']);
    await scene.db.flushAll();
    const from = (list: string) => ({ headers: { 'X-Forwarded-For': list } });
    const stream = open_stream(scene.proxy, from('9.9.9.9, 10.0.0.1'));
    const task = await scene.worker.next();
    assert.equal(task.remote_address, '10.0.0.1');
    await scene.db.rPush(task.task_list, 'EOF');
    assert.deepEqual(await stream.rest(), []);
    assert.equal((await ask(scene, from('8.8.8.8, 10.0.0.1'))).status, 429);
    assert.equal((await ask(scene, from('9.9.9.9, 10.0.0.2'))).status, 200);
  });

  test('chaves erradas contam; acima do limite nem a certa é olhada', async () => {
    const args = ['--rate', `3/${day_s}`, '--api-key', 'certa'];
    const scene = await start_scene(redis, args);
    await scene.db.flushAll();
    const with_key = (key: string) => ask(scene, { headers: { 'X-API-Key': key } });
    assert.equal((await with_key('certa')).status, 200);
    for (const key of ['a', 'b']) assert.equal((await with_key(key)).status, 401);
    for (const key of ['c', 'certa']) assert.equal((await with_key(key)).status, 429);
  });

  for (const [text, address, network] of [
    ['203.0.113.7', '203.0.113.7', '203.0.113.7'],
    ['203.0.113.7:50001', '203.0.113.7', '203.0.113.7'],
    [' 203.0.113.7:', '203.0.113.7', '203.0.113.7'],
    ['::FFFF:198.51.100.9', '198.51.100.9', '198.51.100.9'],
    ['::ffff:c633:6409', '198.51.100.9', '198.51.100.9'],
    ['[::ffff:198.51.100.9]:80', '198.51.100.9', '198.51.100.9'],
    ['2001:DB8::1', '2001:db8::1', '2001:db8:0:0::/64'],
    ['2001:0db8:0000:0001:ffff:0:0:1', '2001:db8:0:1:ffff::1', '2001:db8:0:1::/64'],
    ['[2001:db8:0:1::]:443', '2001:db8:0:1::', '2001:db8:0:1::/64'],
    ['1:2:3:4:5:6:7:8', '1:2:3:4:5:6:7:8', '1:2:3:4::/64'],
    ['[::1]', '::1', '0:0:0:0::/64'],
    ['::', '::', '0:0:0:0::/64'],
    ['fe80::1%eth0', 'fe80::1', 'fe80:0:0:0::/64'],
    ...[
      '',
      'unknown',
      '010.0.0.1',
      '1.2.3',
      '1.2.3.4:x',
      '[::1',
      '::1]',
      '::g',
      '_x',
      '1.2.3.4 5',
    ].map((text) => [text, '', ''] as const),
  ] as const) {
    test(`${JSON.stringify(text)} é o endereço "${address}", da rede "${network}"`, () => {
      assert.deepEqual([parse_address(text), network_of(parse_address(text))], [address, network]);
    });
  }

  test('nem outra porta, outra grafia ou outro endereço do mesmo /64 passa do limite', async () => {
    const args = ['--rate', `1/${day_s}`, '--trust-proxy', 'on'];
    const scene = await start_scene(redis, args);
    await scene.db.flushAll();
    const ask_from = async (from: string) =>
      (await ask(scene, { headers: { 'X-Forwarded-For': from } })).status;
    for (const [first, ...others] of [
      ['203.0.113.7:50001', '203.0.113.7:50002', '203.0.113.7', '::ffff:203.0.113.7'],
      ['2001:db8::1', '2001:DB8::1', '[2001:db8::1]', '[2001:db8::1]:80', '2001:db8::ffff:2'],
      ['unknown', 'outra palavra', '', '127.0.0.1'],
    ] as const) {
      assert.equal(await ask_from(first), 200, first);
      for (const other of others) assert.equal(await ask_from(other), 429, other);
    }
    const stream = open_stream(scene.proxy, {
      headers: { 'X-Forwarded-For': '[2001:DB8:A::1]:9' },
    });
    assert.equal((await scene.worker.next()).remote_address, '2001:db8:a::1');
    stream.leave();
  });

  test('sem TRUST_PROXY o X-Forwarded-For não conta', async () => {
    const scene = await start_scene(redis, ['--rate', `1/${day_s}`]);
    await scene.db.flushAll();
    assert.equal((await ask(scene, { headers: { 'X-Forwarded-For': '1.1.1.1' } })).status, 200);
    assert.equal((await ask(scene, { headers: { 'X-Forwarded-For': '2.2.2.2' } })).status, 429);
  });

  test('um Redis que não deixa contar recusa, não abre a porta', async () => {
    const scene = await start_scene(redis, ['--rate', `5/${day_s}`]);
    await scene.db.flushAll();
    await scene.db.sendCommand(['ACL', 'SETUSER', 'default', '-incr']);
    assert_refused(await ask(scene), 503, 'redis denied access');
    assert.deepEqual(await scene.db.keys('*'), []);
    await scene.db.sendCommand(['ACL', 'SETUSER', 'default', '+incr']);
    assert.equal((await ask(scene)).status, 200);
  });
});

describe('páginas de outras origens', { concurrency: tests_at_once }, () => {
  const friend = 'https://amiga.example';
  const visit = { 'Sec-Fetch-Mode': 'navigate', 'Sec-Fetch-Dest': 'document' };
  const from = (site: string, others: Record<string, string> = {}) => ({
    'Sec-Fetch-Site': site,
    ...others,
  });
  let proxy: proxy;

  before(async () => {
    proxy = await start_proxy(redis, ['-t', '1', '--cors-origin', friend]);
  });

  const cases: [string, string, Record<string, string>, boolean][] = [
    ['quem não é navegador', 'POST', {}, true],
    ['a página da mesma origem', 'POST', from('same-origin'), true],
    [
      'a mesma origem atrás de um proxy',
      'POST',
      from('same-origin', { Origin: 'https://x' }),
      true,
    ],
    ['o que o usuário digitou', 'GET', from('none', visit), true],
    ['outro site', 'POST', from('cross-site', { Origin: 'https://x.example' }), false],
    ['outra porta do mesmo site', 'POST', from('same-site', { Origin: 'http://h:1' }), false],
    ['um formulário de outro site', 'POST', from('cross-site', visit), false],
    ['um link em outro site', 'GET', from('cross-site', visit), true],
    ['um <img> em outro site', 'GET', from('cross-site', { 'Sec-Fetch-Mode': 'no-cors' }), false],
    [
      'um <iframe> em outro site',
      'GET',
      from('cross-site', { ...visit, 'Sec-Fetch-Dest': 'iframe' }),
      false,
    ],
    ['um arquivo local', 'POST', from('cross-site', { Origin: 'null' }), false],
    ['quem está em CORS_ORIGIN', 'POST', from('cross-site', { Origin: friend }), true],
    ['um navegador antigo, na mesma origem', 'POST', { Origin: 'http://Proxy.test' }, true],
    ['um navegador antigo, noutra', 'POST', { Origin: 'http://proxy.test:81' }, false],
    ['um navegador antigo, sem origem', 'POST', { Origin: 'null' }, false],
    ['um navegador antigo, de CORS_ORIGIN', 'GET', { Origin: friend }, true],
  ];
  for (const [title, method, headers, is_allowed] of cases) {
    test(`${title}: ${is_allowed ? 'passa' : '403'}`, async () => {
      const options = { method, headers: { Host: 'proxy.test', ...headers } };
      const reply = await fetch_all(proxy, options);
      if (is_allowed) assert.equal(reply.status, 200);
      else assert_error(reply, 403, 'requests from pages of other origins are not allowed');
      assert.equal((await fetch_all(proxy, { ...options, path: '/ping' })).body, 'pong');
    });
  }

  test('com CORS_ORIGIN * qualquer página pode', async () => {
    const open = await start_proxy(redis, ['-t', '1', '--cors-origin', '*']);
    const headers = from('cross-site', { Origin: 'https://x.example' });
    assert.equal((await fetch_all(open, { headers, body: 'x' })).status, 200);
  });
});

describe('CORS_ORIGIN', () => {
  const page = 'https://pagina.example';
  const allowed = ['--cors-origin', `https://a.example,${page}`, '--maxbody', '1'];
  const preflight = {
    method: 'OPTIONS',
    headers: {
      Origin: page,
      'Access-Control-Request-Method': 'POST',
      'Access-Control-Request-Headers': 'content-type,x-api-key',
    },
  };

  for (const text of [
    'https://*.a',
    'exemplo.com',
    'https://a.b/',
    'https://a.b/c',
    'https://a.b,',
    'nada',
  ]) {
    test(`"${text}" é recusado`, () => {
      const bad = text.endsWith(',') ? '' : text;
      const accepted = '* ou origens separadas por vírgula, como https://exemplo.com.br';
      assert.throws(() => parse_origins(`*,${text}`), {
        message: `${accepted}, sem curinga nem barra no fim; "${bad}" nunca casaria`,
      });
    });
  }

  test('por padrão nenhuma resposta fala de origens', async () => {
    const { proxy } = await start_scene(redis);
    const { status, headers } = await fetch_all(proxy, preflight);
    assert.equal(status, 204);
    assert.deepEqual(
      Object.keys(headers).filter((name) => /^(access-control|vary)/.test(name)),
      [],
    );
  });

  test('a pergunta do navegador é respondida sem tarefa', async () => {
    const { proxy, db } = await start_scene(redis, allowed);
    const published = await served(db, 'publish');
    const { status, headers } = await fetch_all(proxy, preflight);
    assert.equal(status, 204);
    assert.equal(headers['access-control-allow-origin'], page);
    assert.equal(headers['access-control-allow-methods'], headers.allow);
    assert.equal(headers['access-control-allow-headers'], 'content-type,x-api-key');
    assert.equal(headers['access-control-max-age'], '600');
    assert.equal(headers.vary, 'Origin');
    assert.equal(await served(db, 'publish'), published);
  });

  test('a página pode ler o fluxo, o erro e o /ping; outra origem, não', async () => {
    const { proxy, worker, db } = await start_scene(redis, allowed);
    const ours = { Origin: page };
    const stream = open_stream(proxy, { headers: ours });
    await db.rPush((await worker.next()).task_list, ['1', 'EOF']);
    const head = await stream.head();
    assert.deepEqual(await stream.rest(), ['1']);
    const too_large = await fetch_all(proxy, { headers: ours, body: 'xx' });
    const ping = await fetch_all(proxy, { headers: ours, path: '/ping' });
    assert.deepEqual([head.statusCode, too_large.status, ping.status], [200, 413, 200]);
    for (const { headers } of [head, too_large, ping]) {
      assert.equal(headers['access-control-allow-origin'], page);
      assert.match(headers['access-control-expose-headers'] ?? '', /X-Task-UUID/);
    }
    const other = await fetch_all(proxy, {
      headers: { Origin: 'https://x.example' },
      path: '/ping',
    });
    assert.equal(other.headers['access-control-allow-origin'], undefined);
    assert.equal(other.headers.vary, 'Origin');
  });

  test('* serve a qualquer página', async () => {
    const proxy = await start_proxy(redis, ['-t', '1', '--cors-origin', '*']);
    const { headers } = await fetch_all(proxy, { headers: { Origin: page }, path: '/ping' });
    assert.equal(headers['access-control-allow-origin'], '*');
    assert.equal(headers.vary, undefined);
  });
});

describe('MAXTASKS', () => {
  test('além dele, 503 com Retry-After; quando um fluxo acaba, há lugar', async () => {
    const { proxy, worker, db } = await start_scene(redis, ['--maxtasks', '2']);
    const first = await begin(proxy, worker);
    const second = await begin(proxy, worker);
    const reply = await fetch_all(proxy);
    assert_refused(reply, 503, 'too many streams');
    assert.equal(reply.headers['retry-after'], '5');
    assert.equal(worker.pending.length, 0);
    assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
    await db.rPush(first.task.task_list, 'EOF');
    assert.deepEqual(await first.stream.rest(), []);
    second.stream.leave();
    await end_of(proxy, second.task);
    await Promise.all([begin(proxy, worker), begin(proxy, worker)]);
  });

  test('um corpo a caminho já ocupa o lugar; a recusa dele o devolve', async () => {
    const limits = ['--maxtasks', '1', '--maxbody', '10'];
    const { proxy, worker } = await start_scene(redis, limits);
    assert.equal((await fetch_all(proxy, { body: 'x'.repeat(11) })).status, 413);
    const { stream } = await begin(proxy, worker);
    assert.equal((await fetch_all(proxy)).status, 503);
    stream.leave();
  });
});

describe('FAILFAST', () => {
  test('ninguém ouve o canal: 503 na hora, e a tarefa some', async () => {
    const proxy = await start_proxy(redis, ['--failfast', 'on', '-C', 'ninguem']);
    const db = await connect_redis(redis);
    await db.flushAll();
    const reply = await fetch_all(proxy, { body: 'x' });
    assert_refused(reply, 503, 'no worker is listening');
    assert.equal(reply.headers['retry-after'], '5');
    assert.deepEqual(await db.keys('*'), []);
    await proxy.wait_for(/ no_worker task=/);
    assert.equal(await proxy.stop(), 0);
    assert.match(proxy.stdout(), / stop signal=SIGTERM streams=0 /);
  });

  test('quem ouve por padrão de nomes, como o n8n, conta', async () => {
    const { proxy, worker, db, channel } = await start_scene(redis, ['--failfast', 'on']);
    await worker.subscriber.unsubscribe();
    const keys: string[] = [];
    await worker.subscriber.pSubscribe(`${channel}*`, (key) => keys.push(key));
    const stream = open_stream(proxy);
    const key = await until('tarefa anunciada', () => keys.shift());
    await db.rPush(key.replace('_task_', '_list_'), ['1', 'EOF']);
    assert.deepEqual(await stream.rest(), ['1']);
  });
});

describe('HEARTBEAT', { concurrency: tests_at_once }, () => {
  const beat = '{"type":"keepalive"}';

  test('um fluxo calado recebe linhas de vida, que não contam como do worker', async () => {
    const { proxy, worker, db } = await start_scene(redis, ['--heartbeat', '30']);
    const { stream, task } = await begin(proxy, worker);
    for (let n = 0; n < 3; n += 1) assert.equal(await stream.next(), beat);
    await db.rPush(task.task_list, ['1', 'EOF']);
    const rest = await stream.rest();
    assert.deepEqual(
      rest.filter((line) => line !== beat),
      ['1'],
    );
    assert.equal((await end_of(proxy, task)).lines, '1');
  });

  test('com o fluxo acabam os temporizadores dele', async () => {
    const args = ['-C', 'jobs_beat', '--heartbeat', '30'];
    const proxy = await start_proxy(redis, args, await probe_env());
    const worker = await start_worker(redis, 'jobs_beat');
    const { stream, task } = await begin(proxy, worker);
    assert.equal(await stream.next(), beat);
    await worker.client.rPush(task.task_list, 'EOF');
    await stream.rest();
    await end_of(proxy, task);
    const timers = async () => (await take_probe(proxy)).resources.Timeout ?? 0;
    await until('nenhum temporizador', async () => (await timers()) === 0);
  });

  test('elas não adiam MAXTIME', async () => {
    const { proxy } = await start_scene(redis, ['--heartbeat', '20', '-t', '300']);
    const lines = await open_stream(proxy).rest();
    assert.equal(lines.at(-1), '{"error": "timeout"}');
    assert.deepEqual([...new Set(lines.slice(0, -1))], [beat]);
    assert.ok(lines.length > 1, `${lines.length} linhas`);
  });

  test('nunca caem no meio de uma linha grande que o cliente lê devagar', async () => {
    const { proxy, worker, db } = await start_scene(redis, ['--heartbeat', '5', '-P', '0']);
    const { stream, task } = await begin(proxy, worker);
    assert.equal(await stream.next(), beat);
    await stream.pause();
    const large = JSON.stringify({ text: 'x'.repeat(8_000_000) });
    await db.rPush(task.task_list, large);
    await until('linha retirada', async () => (await db.lLen(task.task_list)) === 0);
    await until(
      'alguns batimentos passados',
      () => performance.now() > (stream.arrivals[0] ?? 0) + 60,
    );
    await stream.resume();
    await db.rPush(task.task_list, 'EOF');
    const kinds = (await stream.rest()).map((line) => (line === beat ? 'beat' : line.length));
    assert.deepEqual([...new Set(kinds)].toSorted(), [large.length, 'beat'].toSorted());
  });

  test('por padrão não há nenhuma', async () => {
    const { proxy } = await start_scene(redis, ['-t', '200']);
    assert.equal((await fetch_all(proxy)).body, '{"error": "timeout"}\n');
  });
});
