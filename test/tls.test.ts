/*
 * HTTPS com TLS_CERT e TLS_KEY: o mesmo serviço, cifrado; os erros de configuração; o certificado
 * que se renova sem reinício.
 */

import assert from 'node:assert/strict';
import { createPrivateKey as read_key } from 'node:crypto';
import { once } from 'node:events';
import { renameSync as rename, writeFileSync as write_file } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { before, describe } from 'node:test';
import tls from 'node:tls';
import {
  brisk,
  clog,
  clog_reader,
  end_of,
  exit_of,
  fetch_all,
  goodbye,
  type local_redis,
  on_stop,
  open_stream,
  run_proxy,
  see_tombstone,
  start_redis,
  start_scene,
  temp_dir,
  test,
  until,
  usage_error_of,
} from './harness';
import { first_pair, second_pair, type test_pair } from './tls_pairs';

/** Para ler dezenas de megabytes cifrados numa máquina carregada. */
const long_patience_ms = 60_000;

/** O certificado é relido a cada 10 s; o resto é folga. */
const renewal_noticed_ms = 30_000;

let redis: local_redis;

/** Os arquivos do par que quase todos os testes usam, e nenhum troca. */
let common: ReturnType<typeof write_pair>;

before(async () => {
  redis = await start_redis();
  common = write_pair(first_pair);
});

/**
 * Escreve um certificado e a chave dele numa pasta nova.
 * @param pair o par
 * @returns os caminhos, as opções que os dão ao programa, e como trocar um dos arquivos
 */
function write_pair(pair: test_pair) {
  const dir = temp_dir();
  const [cert, key] = [path.join(dir, 'cert.pem'), path.join(dir, 'key.pem')];
  const replace = (file: string, text: string) => {
    write_file(`${file}.novo`, text);
    rename(`${file}.novo`, file);
  };
  replace(cert, pair.cert);
  replace(key, pair.key);
  return { cert, key, replace, args: ['--tls-cert', cert, '--tls-key', key] };
}

/**
 * Sobe um proxy que atende por HTTPS, com o seu worker.
 * @param args argumentos a mais
 * @param files o par de arquivos
 * @returns a cena e o par de arquivos
 */
async function start_secure_scene(args: string[] = [], files = common) {
  return { ...(await start_scene(redis, [...brisk, ...files.args, ...args])), files };
}

/**
 * Abre uma conexão TLS e espera o aperto de mão.
 * @param port porta do proxy
 * @param options opções do TLS
 * @returns o socket e o nome no certificado que o proxy mostrou
 */
async function shake_hands(port: number, options: tls.ConnectionOptions = {}) {
  const socket = tls.connect({ host: '127.0.0.1', port, rejectUnauthorized: false, ...options });
  on_stop(async () => socket.destroy());
  await once(socket, 'secureConnect');
  return { socket, name: socket.getPeerCertificate().subject.CN };
}

describe('serviço', () => {
  const { cert: ca } = first_pair;

  test('um fluxo chega linha a linha; o log dá a URL', async () => {
    const { proxy, worker, db } = await start_secure_scene();
    assert.match(proxy.url, /^https:/);
    assert.equal((await fetch_all(proxy, { path: '/ping', ca })).body, 'pong');
    const stream = open_stream(proxy, { ca, body: 'olá' });
    const task = await worker.next();
    assert.deepEqual([task.body, task.remote_address], ['olá', '127.0.0.1']);
    for (const line of ['1', '2']) {
      await db.rPush(task.task_list, line);
      assert.equal(await stream.next(), line);
    }
    await db.del(task.task_key);
    assert.deepEqual(await stream.rest(), []);
    assert.deepEqual(await db.keys(`*${task.uuid}`), []);
  });

  test('o cliente que sai é notado, e as chaves dele expiram', async () => {
    const { proxy, worker, db } = await start_secure_scene();
    const stream = open_stream(proxy, { ca });
    const task = await worker.next();
    stream.leave();
    assert.equal((await end_of(proxy, task)).ending, 'client_gone');
    await see_tombstone(db, task);
  });

  test('um cliente que não lê por um tempo recebe tudo depois', async () => {
    const { proxy, worker, db } = await start_secure_scene();
    const stream = open_stream(proxy, { ca });
    const task = await worker.next();
    await db.rPush(task.task_list, 'começo');
    assert.equal(await stream.next(), 'começo');
    await stream.pause();
    await clog_reader(db, task, proxy, ca);
    await db.del(task.task_key);
    await stream.resume();
    const lines = await stream.rest(long_patience_ms);
    assert.deepEqual(
      lines.map(({ length }) => length),
      Array(clog.lines).fill(clog.bytes),
    );
  });

  test('corpo grande demais: a resposta chega; pedido malformado: 400', async () => {
    const { proxy } = await start_secure_scene(['--maxbody', '10']);
    const reply = await fetch_all(proxy, { ca, body: 'x'.repeat(100_000) });
    assert.equal(reply.status, 413);
    const { socket } = await shake_hands(proxy.port);
    let text = '';
    socket.setEncoding('latin1').on('data', (chunk) => {
      text += chunk;
    });
    socket.write('ISTO NÃO É HTTP\r\n\r\n');
    await until('400', () => /^HTTP\/1\.1 400 .*"malformed request"/s.test(text));
  });

  test('a parada diz adeus ao fluxo e sai com 0', async () => {
    const { proxy, worker, db } = await start_secure_scene();
    const { socket: idle } = await shake_hands(proxy.port);
    const stream = open_stream(proxy, { ca });
    const task = await worker.next();
    await db.rPush(task.task_list, '1');
    assert.equal(await stream.next(), '1');
    assert.equal(await proxy.stop(), 0);
    assert.deepEqual(await stream.rest(), [goodbye]);
    await until('fechamento da conexão ociosa', () => idle.destroyed || idle.readableEnded);
  });

  test('vários processos também', async () => {
    const { proxy, worker, db } = await start_secure_scene(['-w', '2']);
    await proxy.wait_for(/process_ready worker=2 /);
    for (const body of ['a', 'b']) {
      const stream = open_stream(proxy, { ca, body });
      const task = await worker.next();
      await db.rPush(task.task_list, [task.body, 'EOF']);
      assert.deepEqual(await stream.rest(), [body]);
    }
  });
});

describe('quem não fala TLS', () => {
  for (const [what, reason, hello] of [
    ['HTTP às claras', 'ERR_SSL_HTTP_REQUEST', 'GET /ping HTTP/1.1\r\nHost: a\r\n\r\n'],
    ['lixo', 'ERR_SSL_\\w+', '\x00\x01\x02'.repeat(100)],
  ] as const) {
    test(`${what}: a conexão fecha, o log diz por quê, o serviço segue`, async () => {
      const { proxy } = await start_secure_scene();
      const socket = net.connect(proxy.port, '127.0.0.1', () => socket.write(hello));
      socket.on('error', () => {}).resume();
      await until('fechamento', () => socket.closed);
      await proxy.wait_for(new RegExp(` tls_failed address=127\\.0\\.0\\.1 reason=${reason}\n`));
      const reply = await fetch_all(proxy, { path: '/ping', ca: first_pair.cert });
      assert.equal(reply.body, 'pong');
      assert.doesNotMatch(proxy.stderr(), /\bat \S+ \(|request_error|fatal/);
    });
  }

  test('TLS 1.1 é recusado, 1.2 e 1.3 servem', async () => {
    const { proxy } = await start_secure_scene();
    for (const version of ['TLSv1.2', 'TLSv1.3'] as const) {
      const { socket } = await shake_hands(proxy.port, {
        minVersion: version,
        maxVersion: version,
      });
      assert.equal(socket.getProtocol(), version);
    }
    const old = { minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: 'ALL:@SECLEVEL=0' } as const;
    await assert.rejects(shake_hands(proxy.port, old));
    await proxy.wait_for(/ tls_failed address=\S+ reason=ERR_SSL_UNSUPPORTED_PROTOCOL\n/);
  });

  test('quem só abre e fecha a porta não é notícia', async () => {
    const { proxy } = await start_secure_scene();
    for (const how of ['end', 'destroy', 'resetAndDestroy'] as const) {
      const socket = net.connect(proxy.port, '127.0.0.1', () => socket[how]());
      socket.on('error', () => {}).resume();
      await until('fechamento', () => socket.closed);
    }
    assert.equal((await shake_hands(proxy.port)).name, 'first.test');
    assert.equal(proxy.stderr(), '');
  });
});

test('o par trocado nos arquivos vale para conexões novas, sem cortar as antigas', async () => {
  const { proxy, worker, db, files } = await start_secure_scene(
    ['-t', '120000'],
    write_pair(first_pair),
  );
  const stream = open_stream(proxy, { ca: first_pair.cert });
  const task = await worker.next();
  files.replace(files.cert, second_pair.cert); // a renovação a meio: ainda não é um par
  await proxy.wait_for(/ tls_refused cert=\S+ reason=".+"\n/, renewal_noticed_ms);
  assert.equal((await shake_hands(proxy.port)).name, 'first.test');
  files.replace(files.key, second_pair.key);
  await proxy.wait_for(/ tls_renewed cert=\S+\n/, renewal_noticed_ms);
  assert.equal((await shake_hands(proxy.port)).name, 'second.test');
  await db.rPush(task.task_list, ['1', 'EOF']);
  assert.deepEqual(await stream.rest(), ['1']);
  assert.equal(proxy.stderr().match(/ tls_refused /g)?.length, 1);
});

describe('erros de uso', () => {
  const accepted = /aceito: os dois, em PEM, a chave sem senha e deste certificado\n$/;

  test('um sem o outro', async () => {
    const { cert, key } = write_pair(first_pair);
    for (const args of [
      ['--tls-cert', cert],
      ['--tls-key', key],
    ]) {
      const line = usage_error_of(args);
      assert.match(line, /TLS_CERT ".*" e TLS_KEY ".*" inválidos; /);
      assert.match(line, accepted);
    }
  });

  test('a própria chave em vez do caminho não é mostrada', async () => {
    const { cert } = write_pair(first_pair);
    const env = { TLS_CERT: cert, TLS_KEY: first_pair.key };
    for (const args of [[], ['--help']]) {
      const program = await run_proxy(args, env);
      await exit_of(program);
      assert.match(`${program.stdout()}${program.stderr()}`, /TLS_KEY .*\*\*\*/);
      assert.doesNotMatch(`${program.stdout()}${program.stderr()}`, /PRIVATE|MIG/);
    }
    for (const name of ['API_KEY_FILE', 'REDIS_PASSWORD_FILE']) {
      const program = await run_proxy([], { [name]: 'segredo+direto' });
      assert.equal(await exit_of(program), 2);
      assert.match(program.stderr(), new RegExp(`${name} .*inválido: "\\*\\*\\*"; aceito: o cam`));
    }
  });

  test('arquivo que não existe', async () => {
    const { cert } = write_pair(first_pair);
    const line = usage_error_of(['--tls-cert', cert, '--tls-key', '/nao/existe']);
    assert.match(line, /TLS_KEY .*inválido: "\/nao\/existe"; aceito: o caminho .*\(ENOENT\)/);
  });

  const cipher = { cipher: 'aes-256-cbc', passphrase: 'segredo' };
  const locked_key = read_key(first_pair.key).export({ type: 'pkcs8', format: 'pem', ...cipher });

  for (const [what, pair, reason] of [
    ['chave com senha', { ...first_pair, key: String(locked_key) }, '\\w+'],
    ['chave de outro certificado', { ...first_pair, key: second_pair.key }, 'KEY_VALUES_MISMATCH'],
    ['certificado que não é PEM', { ...first_pair, cert: 'lixo' }, 'NO_START_LINE'],
    ['arquivos trocados', { cert: first_pair.key, key: first_pair.cert }, 'NO_START_LINE'],
  ] as const) {
    test(what, async () => {
      const line = usage_error_of(write_pair(pair).args);
      assert.match(line, new RegExp(`inválidos \\(.*${reason}\\); `));
      assert.match(line, accepted);
      assert.doesNotMatch(line, /PRIVATE KEY/);
    });
  }
});
