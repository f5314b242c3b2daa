/*
 * A subida do programa: todas as formas de chegar ao Redis, todas as falhas com a sua linha clara,
 * o que o log diz no começo; e o que o programa diz e faz sem subir.
 */

import assert from 'node:assert/strict';
import { writeFileSync as write_file } from 'node:fs';
import net from 'node:net';
import { networkInterfaces as network_interfaces } from 'node:os';
import path from 'node:path';
import { before, describe } from 'node:test';
import { help_text, load_settings, settings_table, version } from '../json-proxy';
import {
  closed_port,
  connect_redis,
  exit_of,
  fetch_all,
  free_port,
  type local_program,
  type local_redis,
  on_stop,
  open_stream,
  program_file,
  type redis_client,
  run_proxy,
  start_program,
  start_proxy,
  start_redis,
  start_worker,
  temp_dir,
  test,
  until,
  usage_error_of,
} from './harness';

/**
 * O programa promete desistir em menos de 5 s, numa máquina que o carrega em menos de 300 ms; o que
 * se mede é o tempo entre as linhas "start" e "fatal". Numa mais lenta, o prazo cresce com o tempo
 * que o mesmo programa leva, na mesma hora, só para dizer a versão.
 */
const promise_ms = 5000;
const brisk_load_ms = 300;
const floor = { load_ms: 0 };

/**
 * Mede quanto o programa leva aqui para ser carregado e sair.
 */
async function take_floor(): Promise<void> {
  const started_at = performance.now();
  assert.equal(await exit_of(await run_proxy(['--version'])), 0);
  floor.load_ms = Math.max(floor.load_ms, performance.now() - started_at);
}

/** Senha certa da usuária "ana" e do Redis trancado, com os caracteres que complicam uma URL. */
const password = 's3nh@:/ç';

/** Senha errada, que não pode aparecer em lugar nenhum. */
const wrong_password = 'hunter2';

/** O journald não está por trás dos testes, mesmo que quem os roda esteja sob o systemd. */
const plain_log = { JOURNAL_STREAM: undefined };

const addresses = Object.values(network_interfaces()).flatMap((list) => list ?? []);
const has_ipv6 = addresses.some(({ address }) => address === '::1');
const no_ipv6 = !has_ipv6 && 'esta máquina não tem ::1';
const outside = addresses.find(({ family, internal }) => family === 'IPv4' && !internal)?.address;

/** Um Redis aberto que atende por TCP, TLS e socket, e tem usuários de vários poderes. */
let redis: local_redis & { tls_port: number; socket: string; authority: string };
let admin: redis_client;

/** Um Redis que exige senha. */
let locked: local_redis;

/** Um Redis sem senha que atende a rede toda: só o modo protegido o guarda. */
let exposed: local_redis;

/** Portas em que escuta algo que não é um Redis, e uma em que ninguém escuta. */
const strangers = { mute: 0, http: 0, ssh: 0 };
const refused = { port: 0 };

/**
 * Cria um certificado autoassinado para localhost e 127.0.0.1.
 * @param dir diretório em que gravá-lo
 * @returns caminhos da chave e do certificado
 */
async function make_certificate(dir: string) {
  const key = path.join(dir, 'key.pem');
  const certificate = path.join(dir, 'certificate.pem');
  const names = 'subjectAltName=DNS:localhost,IP:127.0.0.1';
  const kind = [
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:prime256v1',
    '-nodes',
    '-days',
    '2',
  ];
  const files = ['-keyout', key, '-out', certificate];
  const subject = ['-subj', '/CN=localhost', '-addext', names];
  const openssl = start_program('openssl', ['req', '-x509', ...kind, ...files, ...subject]);
  assert.equal(await openssl.exited, 0, openssl.stderr());
  return { key, certificate };
}

/**
 * Sobe o Redis aberto.
 * @returns o servidor, com a porta TLS, o socket e o certificado
 */
async function start_open_redis(): Promise<typeof redis> {
  const dir = temp_dir();
  const { key, certificate } = await make_certificate(dir);
  const tls_port = await free_port();
  const socket = path.join(dir, 'redis.sock');
  const tls = ['--tls-port', String(tls_port), '--tls-auth-clients', 'no'];
  const server = await start_redis([
    ...(has_ipv6 ? ['--bind', '127.0.0.1', '::1'] : []),
    ...['--unixsocket', socket, '--tls-key-file', key, '--tls-cert-file', certificate, ...tls],
    ...['--user', 'ana', 'on', `>${password}`, '~*', '&*', '+@all'],
    ...['--user', 'nada', 'on', `>${password}`, '~*', '&*', '-@all'],
  ]);
  return { ...server, tls_port, socket, authority: certificate };
}

/**
 * Abre uma porta que não é de um Redis.
 * @param greet o que fazer com cada conexão
 * @returns a porta
 */
async function start_stranger(greet: (socket: net.Socket) => void): Promise<number> {
  const sockets = new Set<net.Socket>();
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    socket.resume();
    greet(socket);
  });
  on_stop(async () => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return (server.address() as net.AddressInfo).port;
}

before(async () => {
  await program_file(); // montar o programa não conta no tempo de nenhuma subida
  [redis, locked, exposed] = await Promise.all([
    start_open_redis(),
    start_redis(['--requirepass', password]),
    start_redis(['--bind', '0.0.0.0', '--protected-mode', 'yes']),
  ]);
  await take_floor();
  admin = await connect_redis(redis, 0);
  refused.port = await closed_port();
  strangers.mute = await start_stranger(() => {});
  strangers.ssh = await start_stranger((socket) => socket.write('SSH-2.0-OpenSSH_9.2\r\n'));
  strangers.http = await start_stranger((socket) =>
    socket.once('data', () => socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n')),
  );
});

/**
 * Confere que senha nenhuma foi escrita, nem crua nem codificada para URL.
 * @param program o programa
 */
function assert_no_password(program: Pick<local_program, 'stdout' | 'stderr'>): void {
  const output = program.stdout() + program.stderr();
  for (const text of [wrong_password, password, encodeURIComponent(password)]) {
    assert.ok(!output.includes(text), `a senha apareceu: ${output}`);
  }
}

const as_ana = `ana:${encodeURIComponent(password)}`;
const trusting = () => ({ NODE_EXTRA_CA_CERTS: redis.authority });

/** Uma forma de chegar ao Redis, e o banco em que a tarefa deve cair. */
type connection = {
  title: string;
  server: () => string;
  database: number;
  args?: string[];
  env?: () => NodeJS.ProcessEnv;
  user?: string;
  skip?: string | false;
};

const connections: connection[] = [
  { title: 'host:porta/banco', server: () => `127.0.0.1:${redis.port}/3`, database: 3 },
  { title: 'host:porta, que é o banco 0', server: () => `127.0.0.1:${redis.port}`, database: 0 },
  { title: 'nome de host', server: () => `localhost:${redis.port}/4`, database: 4 },
  { title: 'redis://', server: () => `redis://127.0.0.1:${redis.port}/2`, database: 2 },
  {
    title: 'redis:// com usuário e senha codificada',
    server: () => `redis://${as_ana}@127.0.0.1:${redis.port}/5`,
    database: 5,
    user: 'ana',
  },
  {
    title: 'redis:// com usuário e senha crua',
    server: () => `redis://ana:${password}@127.0.0.1:${redis.port}/6`,
    database: 6,
    user: 'ana',
  },
  {
    title: 'REDIS_PASSWORD vence a senha errada da URL',
    server: () => `redis://ana:${wrong_password}@127.0.0.1:${redis.port}/7`,
    database: 7,
    env: () => ({ REDIS_PASSWORD: password }),
    user: 'ana',
  },
  {
    title: '-S vence a URL e REDIS_PASSWORD, erradas as duas',
    server: () => `redis://ana:${wrong_password}@127.0.0.1:${redis.port}/8`,
    database: 8,
    args: ['-S', password],
    env: () => ({ REDIS_PASSWORD: wrong_password }),
    user: 'ana',
  },
  {
    title: 'REDIS_PASSWORD vazia deixa valer a da URL',
    server: () => `redis://${as_ana}@127.0.0.1:${redis.port}/9`,
    database: 9,
    env: () => ({ REDIS_PASSWORD: '' }),
    user: 'ana',
  },
  { title: 'caminho de socket', server: () => redis.socket, database: 0 },
  { title: 'caminho?db=N', server: () => `${redis.socket}?db=10`, database: 10 },
  { title: 'unix:caminho?db=N', server: () => `unix:${redis.socket}?db=11`, database: 11 },
  {
    title: 'unix:// com usuário e senha',
    server: () => `unix://${as_ana}@${redis.socket}?db=12`,
    database: 12,
    user: 'ana',
  },
  {
    title: '[::1]:porta/banco',
    server: () => `[::1]:${redis.port}/13`,
    database: 13,
    skip: no_ipv6,
  },
  {
    title: 'rediss:// por nome',
    server: () => `rediss://${as_ana}@localhost:${redis.tls_port}/14`,
    database: 14,
    env: trusting,
    user: 'ana',
  },
  {
    title: 'rediss:// por endereço IP',
    server: () => `rediss://127.0.0.1:${redis.tls_port}/15`,
    database: 15,
    env: trusting,
  },
];

/**
 * Diz com que usuários há conexões num banco do Redis aberto.
 * @param database número do banco
 * @returns os nomes, sem repetição, em ordem
 */
async function users_in(database: number): Promise<string[]> {
  const clients = String(await admin.sendCommand(['CLIENT', 'LIST']));
  const lines = clients.split('\n').filter((line) => line.includes(` db=${database} `));
  return [...new Set(lines.map((line) => / user=(\S+) /.exec(line)?.[1] ?? ''))].sort();
}

/**
 * Sobe um proxy por uma das formas e confere, com um worker no banco esperado, que um pedido vai e
 * volta por ele.
 * @param row a forma
 * @param channel canal só desta forma
 */
async function assert_reaches(row: connection, channel: string): Promise<void> {
  const { title, server, database, args = [], env = () => ({}), user = 'default' } = row;
  const worker = await start_worker(redis, channel, database);
  const environment = { ...plain_log, REDIS_PASSWORD: undefined, ...env() };
  const flags = ['-C', channel, '-i', '20', ...args];
  const proxy = await start_proxy({ server: server() }, flags, environment);
  assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
  assert.deepEqual(await users_in(database), [...new Set([user, 'default'])].sort());
  const stream = open_stream(proxy, { body: title });
  const task = await worker.next();
  assert.equal(task.body, title);
  await worker.client.rPush(task.task_list, ['{"n":1}', 'EOF']);
  assert.deepEqual(await stream.rest(), ['{"n":1}']);
  assert.equal(await worker.client.exists([task.task_key, task.task_list]), 0);
  assert.equal(await proxy.stop(), 0);
  assert.equal(proxy.stderr(), '');
  assert_no_password(proxy);
}

describe('chega ao Redis', { concurrency: 3 }, () => {
  for (const [index, row] of connections.entries()) {
    test(row.title, { skip: row.skip ?? false }, () => assert_reaches(row, `canal_${index}`));
  }
  test('um Redis com requirepass, pela senha sem usuário', async () => {
    const env = { ...plain_log, REDIS_PASSWORD: password };
    const proxy = await start_proxy(locked, [], env);
    assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
    assert.equal(await proxy.stop(), 0);
    assert.equal(proxy.stderr(), '');
    assert_no_password(proxy);
  });
});

/**
 * Roda o programa, que deve falhar ao subir, e confere o que vale para toda falha: código 1, menos
 * de 5 s, uma linha "fatal" em stderr, só a linha "start" em stdout, sem senha e sem pilha.
 * @param args argumentos
 * @param env variáveis de ambiente
 * @returns a linha, da etiqueta em diante
 */
async function failed_start(args: string[], env: NodeJS.ProcessEnv = {}): Promise<string> {
  const basics = ['-p', '0', '--host', '127.0.0.1'];
  const environment = { ...plain_log, REDIS_PASSWORD: undefined, ...env };
  const program = await run_proxy([...basics, ...args], environment);
  const code = await exit_of(program);
  const started = /^(\S+Z) start [^\n]+\n(?:\S+Z wakeup mode=tracking\n)?$/;
  const [, started_at = ''] = started.exec(program.stdout()) ?? [];
  const [, died_at = '', line = ''] = /^(\S+Z) (fatal [^\n]+)\n$/.exec(program.stderr()) ?? [];
  assert.ok(started_at && died_at, `${program.stdout()}---\n${program.stderr()}`);
  assert.equal(code, 1);
  const ms = Date.parse(died_at) - Date.parse(started_at);
  const limit_ms = promise_ms * Math.max(1, floor.load_ms / brisk_load_ms);
  assert.ok(ms < limit_ms, `desistiu em ${ms} ms; a versão levou ${floor.load_ms} ms`);
  assert_no_password(program);
  assert.doesNotMatch(line, /\bat \S+:\d+:\d+|Error:|node:/);
  return line;
}

/** Uma falha ao subir: o -R dado, como a linha deve nomear o servidor e o que ela deve dizer. */
type failure = {
  title: string;
  server: () => string;
  shown?: () => string;
  password?: string;
  env?: NodeJS.ProcessEnv;
  reason: RegExp;
  skip?: string | false;
};

const silent = /^não respondeu a tempo; confira REDIS_SERVER \(-R\)/;
const nobody = /^ninguém escuta nesse endereço; .*confira REDIS_SERVER \(-R\)$/;
const closed = /^o servidor fechou a conexão; a porta é do Redis\? pede TLS\?/;
const wrong = /^usuário ou senha errados; confira REDIS_PASSWORD \(-S\)$/;

const at_redis = (database: number) => () => `127.0.0.1:${redis.port}/${database}`;
const at_locked = (database: number) => () => `127.0.0.1:${locked.port}/${database}`;

/** As que esgotam o prazo; vêm primeiro, para correrem juntas. */
const mute_failures: failure[] = [
  {
    title: 'um servidor que aceita e nunca responde',
    server: () => `127.0.0.1:${strangers.mute}/1`,
    reason: silent,
  },
  {
    title: 'um servidor que aceita e nunca responde ao TLS',
    server: () => `rediss://:${wrong_password}@localhost:${strangers.mute}`,
    shown: () => `rediss://localhost:${strangers.mute}/0`,
    reason: silent,
  },
  {
    title: 'rediss:// para uma porta sem TLS',
    server: () => `rediss://localhost:${redis.port}/1`,
    reason: silent,
  },
  {
    title: 'um servidor SSH',
    server: () => `127.0.0.1:${strangers.ssh}/0`,
    reason: /; .*REDIS_SERVER \(-R\)/,
  },
];

/** As que dependem de senha e permissões, que o Redis pode negar em comandos diferentes. */
const access_failures = [0, 1].flatMap((database): failure[] => [
  {
    title: `senha errada, banco ${database}`,
    server: at_locked(database),
    password: wrong_password,
    reason: wrong,
  },
  {
    title: `falta a senha, banco ${database}`,
    server: at_locked(database),
    reason: /^o Redis exige senha; dê REDIS_PASSWORD \(-S\)$/,
  },
  {
    // com avisos o HELLO a aceita em silêncio, como o próprio Redis faz com o usuário default
    title: `senha dada a um Redis sem senha, banco ${database}, com WAKEUP off`,
    server: at_redis(database),
    password: wrong_password,
    env: { WAKEUP: 'off' },
    reason: /^o Redis não tem senha; retire REDIS_PASSWORD \(-S\)$/,
  },
  {
    title: `senha errada dentro da URL, banco ${database}`,
    server: () => `redis://ana:${wrong_password}@127.0.0.1:${redis.port}/${database}`,
    shown: at_redis(database),
    reason: wrong,
  },
  {
    title: `usuário sem permissões, banco ${database}`,
    server: () => `redis://nada@127.0.0.1:${redis.port}/${database}`,
    shown: at_redis(database),
    password,
    reason: /^o usuário do Redis não tem permissão para os comandos do proxy/,
  },
  {
    title: `Redis em modo protegido, banco ${database}`,
    server: () => `${outside}:${exposed.port}/${database}`,
    reason: /modo protegido/,
    skip: !outside && 'esta máquina só tem o endereço 127.0.0.1',
  },
]);

const address_failures: failure[] = [
  {
    title: 'banco fora da faixa',
    server: at_redis(16),
    reason: /^banco fora da faixa do servidor; confira o \/N de REDIS_SERVER \(-R\)$/,
  },
  {
    title: 'host desconhecido',
    server: () => 'no-such-host.invalid:6379/1',
    // Onde o próprio DNS não responde, o prazo se esgota antes que se saiba que o nome não existe.
    reason: /^(host desconhecido|não respondeu a tempo); confira REDIS_SERVER \(-R\)/,
  },
  { title: 'porta fechada', server: () => `127.0.0.1:${refused.port}/1`, reason: nobody },
  {
    title: 'porta fechada em localhost',
    server: () => `localhost:${refused.port}/1`,
    reason: nobody,
  },
  { title: 'um servidor HTTP', server: () => `127.0.0.1:${strangers.http}/1`, reason: closed },
  {
    title: 'socket que não existe',
    server: () => `unix://:${wrong_password}@${redis.socket}.nada?db=2`,
    shown: () => `"unix:${redis.socket}.nada?db=2"`,
    reason: /^o socket não existe; confira o caminho em REDIS_SERVER \(-R\)$/,
  },
  {
    title: 'caminho que não é um socket',
    server: () => redis.authority,
    shown: () => `"unix:${redis.authority}?db=0"`,
    reason: nobody,
  },
  {
    title: 'redis:// para uma porta TLS',
    server: () => `redis://127.0.0.1:${redis.tls_port}/1`,
    shown: () => `127.0.0.1:${redis.tls_port}/1`,
    reason: closed,
  },
  {
    title: 'rediss:// com certificado de autoridade desconhecida',
    server: () => `rediss://127.0.0.1:${redis.tls_port}/1`,
    reason: /^certificado TLS não aceito; dê a autoridade em NODE_EXTRA_CA_CERTS$/,
  },
];

describe('falha ao subir sem o Redis: uma linha que diz o que fazer', { concurrency: 4 }, () => {
  for (const row of [...mute_failures, ...access_failures, ...address_failures]) {
    const { title, server, shown = server, password: given = '', env, reason, skip = false } = row;
    test(title, { skip }, async () => {
      if (mute_failures.includes(row)) void take_floor();
      const line = await failed_start(['-R', server()], { REDIS_PASSWORD: given, ...env });
      const [, where, why = ''] = /^fatal redis=("[^"]+"|\S+) reason="([^"]+)"$/.exec(line) ?? [];
      assert.equal(where, shown(), line);
      assert.match(why, reason);
    });
  }
  for (const database of [0, 1]) {
    test(`um Sentinel e um nó de cluster, banco ${database}`, async () => {
      const port = await free_port();
      const file = path.join(temp_dir(), 'sentinel.conf');
      write_file(file, `port ${port}\nbind 127.0.0.1\n`);
      const sentinel = start_program('redis-server', [file, '--sentinel']);
      const [node] = await Promise.all([
        start_redis(['--cluster-enabled', 'yes']),
        sentinel.wait_for(/Sentinel ID is/),
      ]);
      const is_sentinel =
        /reason="é um Sentinel, que não guarda dados; em REDIS_SERVER \(-R\), sentinel:/;
      assert.match(await failed_start(['-R', `127.0.0.1:${port}/${database}`]), is_sentinel);
      const is_cluster = /reason="é um nó de um cluster, .*; em REDIS_SERVER \(-R\), cluster:/;
      assert.match(await failed_start(['-R', `127.0.0.1:${node.port}/${database}`]), is_cluster);
    });
  }
  test('nome com vários endereços, todos fechados', async () => {
    // Só aqui o DNS é trocado, e só para este nome: nem toda máquina tem um com dois endereços em
    // que ninguém escuta. O endereço em que o proxy escuta também passa por lookup.
    const preload = path.join(temp_dir(), 'two_addresses.cjs');
    const found = ['127.0.0.1', '127.0.0.2'].map((address) => ({ address, family: 4 }));
    const lookup = `
      const dns = require('node:dns');
      const { lookup } = dns;
      const found = ${JSON.stringify(found)};
      dns.lookup = (name, ...rest) =>
        name === 'two.invalid' ? rest.at(-1)(null, found) : lookup(name, ...rest);
    `;
    write_file(preload, lookup);
    const server = `two.invalid:${refused.port}/1`;
    const line = await failed_start(['-R', server], { NODE_OPTIONS: `--require ${preload}` });
    assert.ok(
      line.startsWith(`fatal redis=${server} reason="ninguém escuta nesse endereço; `),
      line,
    );
  });
});

/**
 * Põe na frente do Redis um intermediário que entrega as respostas aos bocados.
 * @param bites tamanho e pausa de cada bocado
 * @returns o endereço dele
 */
async function start_dripper(bites: { bytes: number; pause_ms: number }): Promise<string> {
  const port = await start_stranger((near) => {
    const far = net.connect(redis.port, '127.0.0.1');
    let held = Buffer.alloc(0);
    near.on('data', (chunk) => far.write(chunk)).on('close', () => far.destroy());
    far
      .on('error', () => {})
      .on('data', (chunk) => {
        held = Buffer.concat([held, chunk]);
      });
    const timer = setInterval(() => {
      near.write(held.subarray(0, bites.bytes));
      held = held.subarray(bites.bytes);
    }, bites.pause_ms);
    near.once('close', () => clearInterval(timer));
  });
  return `127.0.0.1:${port}/1`;
}

describe('um Redis que é só lento não é uma falha', { concurrency: 2 }, () => {
  test('respostas aos bocados por mais tempo que o de uma falha: sobe', async () => {
    const server = await start_dripper({ bytes: 300, pause_ms: 500 });
    const started_at = performance.now();
    const proxy = await start_proxy({ server }, [], plain_log);
    const [, from = ''] = /^(\S+) start /.exec(proxy.stdout()) ?? [];
    assert.ok(
      performance.now() - started_at > promise_ms,
      `lento demais para provar algo: ${from}`,
    );
    assert.equal(proxy.stderr(), '');
  });

  test('um que ainda carrega os dados: o log o diz uma vez, e ele é esperado', async () => {
    const own = await start_redis(['--rdbcompression', 'no']);
    const db = await connect_redis(own);
    const value = 'x'.repeat(200);
    await Promise.all(Array.from({ length: 1000 }, (_, n) => db.set(`outra:${n}`, value)));
    await db.sendCommand(['SAVE']);
    await own.stop();
    // uns 20 s de carga, em que ele responde a cada meia dúzia de chaves
    const slow = ['--key-load-delay', '20000', '--loading-process-events-interval-bytes', '1024'];
    const loaded = start_redis(slow, own);
    const program = await run_proxy(['-p', '0', '--host', '127.0.0.1', '-R', own.server]);
    await program.wait_for(/ redis_loading redis=\S+\n/);
    const hurry = () => db.configSet('key-load-delay', '0').catch(() => false);
    await until('fim da carga', hurry);
    await loaded;
    await program.wait_for(/ listen url=/);
    assert.match(program.stderr(), /^\S+ redis_loading redis=\S+\n$/);
  });
});

describe('falha ao abrir a porta HTTP', { concurrency: 3 }, () => {
  test('porta em uso', async () => {
    const port = String(strangers.mute);
    const line = await failed_start(['-R', redis.server, '-p', port]);
    const reason =
      /^fatal host=127\.0\.0\.1 port=(\d+) reason="a porta já está em uso; .*HTTP_PORT \(-p\)"$/;
    assert.equal(reason.exec(line)?.[1], port, line);
  });
  const hosts: [string, string, RegExp][] = [
    ['endereço de outra máquina', '203.0.113.9', /o endereço não é desta máquina; .*HTTP_HOST/],
    ['nome desconhecido', 'no-such-host.invalid', /nome desconhecido; .*HTTP_HOST \(--host\)/],
  ];
  for (const [title, host, reason] of hosts) {
    test(title, async () => {
      const line = await failed_start(['-R', redis.server, '--host', host]);
      assert.ok(line.startsWith(`fatal host=${host} port=0 reason="`), line);
      assert.match(line, reason);
    });
  }
});

/** Nomes dados na linha de comando, para que os padrões não passem por eles no log. */
const named = ['-C', 'meu_canal', '-X', 'minha_', '-L', 'lista_'];

/** O instante no começo de cada linha, fora do journald. */
const stamp = '\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{3}Z ';

/**
 * Monta o que as três linhas da subida devem ser.
 * @param prefix padrão do que vem antes de cada etiqueta
 * @param pid processo
 * @returns o padrão de toda a saída; o primeiro grupo é a porta
 */
function expected_lines(prefix: string, pid: number | undefined): RegExp {
  const start =
    `start version=${version} node=${process.version} pid=${pid} ` +
    `redis=127.0.0.1:${redis.port}/2 channel=meu_canal prefix=minha_ list_prefix=lista_ ` +
    'stream=off maxtime=45000 api_key=off rate=off tls=off';
  const wakeup = 'wakeup mode=tracking';
  const listen = 'listen url=http://127\\.0\\.0\\.1:(\\d+)';
  const lines = [start.replaceAll('.', '\\.'), wakeup, listen];
  return new RegExp(`^${lines.map((line) => `${prefix}${line}\\n`).join('')}$`);
}

/**
 * Roda o programa como o systemd: as duas saídas são a mesma, e JOURNAL_STREAM a descreve.
 * @param args argumentos
 * @param env variáveis de ambiente a mais
 * @returns o programa; tudo o que ele escreve está em stdout
 */
async function run_under_journal(
  args: string[],
  env: NodeJS.ProcessEnv = {},
): Promise<local_program> {
  const script = 'export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/$$/fd/1); exec "$0" "$@" 2>&1';
  return start_program('sh', ['-c', script, process.execPath, await program_file(), ...args], env);
}

describe('log da subida', { concurrency: 3 }, () => {
  test('as linhas start e listen dizem o que está em vigor, com a porta real', async () => {
    const server = `redis://ana:${wrong_password}@127.0.0.1:${redis.port}/2`;
    const proxy = await start_proxy({ server }, ['-S', password, ...named], plain_log);
    const found = expected_lines(stamp, proxy.process.pid).exec(proxy.stdout());
    assert.equal(found?.[1], String(proxy.port), proxy.stdout());
    assert.ok(proxy.port > 0);
    assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
    assert.equal(proxy.stderr(), '');
    assert_no_password(proxy);
  });
  test('a linha start diz se há chave e limite, sem dizer a chave', async () => {
    const args = ['-S', password, '--api-key', 'segredo-da-porta', '--rate', '9/60'];
    const proxy = await start_proxy(redis, args);
    assert.match(proxy.stdout(), /^.* start .* api_key=on rate=9\/60 tls=off\n/);
    assert.doesNotMatch(proxy.stdout(), /segredo/);
  });
  test('sob o journald a prioridade vai na frente, sem a hora', async () => {
    const args = ['-p', '0', '--host', '127.0.0.1', '-R', `127.0.0.1:${redis.port}/2`];
    const program = await run_under_journal([...args, ...named]);
    await program.wait_for(/listen .*\n/);
    assert.match(program.stdout(), expected_lines('<6>', program.process.pid));
  });
  test('uma JOURNAL_STREAM herdada, que descreve outra saída, não conta', async () => {
    const args = ['-p', '0', '--host', '127.0.0.1', '-R', `127.0.0.1:${redis.port}/2`];
    const program = await run_proxy([...args, ...named], { JOURNAL_STREAM: '1:2' });
    await program.wait_for(/listen .*\n/);
    assert.match(program.stdout(), expected_lines(stamp, program.process.pid));
  });
  test('sob o journald a falha ao subir tem prioridade de erro', async () => {
    const args = ['-p', '0', '-R', `127.0.0.1:${locked.port}/1`];
    const program = await run_under_journal(args, { REDIS_PASSWORD: undefined });
    assert.equal(await program.exited, 1);
    const expected = /^<6>start [^\n]+\n<3>fatal redis=\S+ reason="o Redis exige senha; [^\n]+\n$/;
    assert.match(program.stdout(), expected);
  });
  test('o que costuma ser engano de quem vem do original é dito, e nada mais', async () => {
    const args = ['-X', 'ndjson_task', '-L', 'ndjson_list', '-t', '999'];
    const proxy = await start_proxy(redis, args, plain_log);
    const found = [...proxy.stderr().matchAll(/ odd_setting setting=(\S+) value=(\S+) hint="/g)];
    assert.deepEqual(
      found.map(([, ...pair]) => pair),
      [
        ['REDIS_PREFIX', 'ndjson_task'],
        ['REDIS_LIST_PREFIX', 'ndjson_list'],
        ['MAXTIME', '999'],
      ],
    );
    assert.match(proxy.stdout(), / start .* maxtime=999 /);
    const usual = ['-X', 'app:task:', '-L', 'app-list-', '-t', '1000'];
    assert.equal((await start_proxy(redis, usual, plain_log)).stderr(), '');
  });
  test('o endereço IPv6 sai entre colchetes', {
    skip: no_ipv6,
  }, async () => {
    const proxy = await start_proxy(redis, ['--host', '::1'], plain_log);
    assert.equal(proxy.url, `http://[::1]:${proxy.port}`);
    const { status } = await fetch(`${proxy.url}/ping`);
    assert.equal(status, 200);
  });
});

test('conexões que o sistema não entrega: o programa diz isso, uma vez, e continua', async () => {
  // Só aqui o erro é trazido de fora: nem todo Node passa adiante os que o sistema dá no accept.
  const preload = path.join(temp_dir(), 'accept_fails.cjs');
  write_file(
    preload,
    `const { Server } = require('node:net');
    const { listen } = Server.prototype;
    Server.prototype.listen = function (...args) {
      const fail = () => this.emit('error', new Error('accept EMFILE'));
      this.once('listening', () => setTimeout(() => [fail(), fail()]));
      return listen.apply(this, args);
    };`,
  );
  const proxy = await start_proxy(redis, ['-S', password], {
    NODE_OPTIONS: `--require ${preload}`,
  });
  await proxy.wait_for(/ accept_failed reason="accept EMFILE"\n/);
  assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
  assert.equal(proxy.stderr().match(/ accept_failed /g)?.length, 1);
});

test('quem lia o log vai embora e o serviço continua', async () => {
  const channel = 'canal_sem_log';
  const worker = await start_worker(redis, channel);
  const proxy = await start_proxy(redis, ['-C', channel, '-i', '20'], plain_log);
  const serve_one = async (body: string) => {
    const stream = open_stream(proxy, { body });
    const task = await worker.next();
    await worker.client.rPush(task.task_list, [`{"eco":"${task.body}"}`, 'EOF']);
    assert.deepEqual(await stream.rest(), [`{"eco":"${body}"}`]);
  };
  for (const output of [proxy.process.stdout, proxy.process.stderr]) {
    output?.destroy();
    await serve_one('um'); // a primeira linha de log encontra a saída fechada
    await serve_one('dois');
    // Uma cabeça ruim é registrada em stderr.
    const stream = open_stream(proxy);
    const task = await worker.next();
    await worker.client.rPush(task.task_list, ['HTTP 999', '{"n":1}', 'EOF']);
    assert.deepEqual(await stream.rest(), ['HTTP 999', '{"n":1}']);
    assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
    assert.equal(proxy.process.exitCode, null);
    assert.equal(proxy.process.signalCode, null);
  }
  assert.equal(await proxy.stop(), 0);
});

/** Nenhuma configuração no ambiente: o de quem roda os testes não pode influir. */
const clean_env: NodeJS.ProcessEnv = Object.fromEntries(
  settings_table.map(({ name }) => [name, undefined]),
);

/**
 * Roda um programa até o fim.
 * @param running o programa
 * @returns código de saída e tudo o que ele escreveu
 */
async function finished(running: local_program | Promise<local_program>) {
  const program = await running;
  const code = await exit_of(program);
  return { code, stdout: program.stdout(), stderr: program.stderr() };
}

describe('sem subir: o programa diz o que se leu das configurações, e sai', () => {
  for (const [args, env] of [
    [['-p', 'x'], {}],
    [[], { REDIS_SERVER: `redis://ana:${wrong_password}@h:x/1` }],
    [['--na\nda'], { PAUSE: 'x' }],
  ] as const) {
    test(`erro de uso, código 2: ${args.join(' ')} ${Object.keys(env)}`, async () => {
      const line = usage_error_of([...args], env).trimEnd(); // é sempre uma linha
      const stderr = `${line.replace('\n', ' ')}\n`;
      const told = await finished(run_proxy([...args], { ...clean_env, ...env }));
      assert.deepEqual(told, { code: 2, stdout: '', stderr });
    });
  }

  test('--help e --version, código 0, e a senha escondida', async () => {
    const env = { ...clean_env, REDIS_PASSWORD: wrong_password };
    const { gathered } = load_settings(['--help'], { REDIS_PASSWORD: wrong_password });
    const [help, told] = await Promise.all([
      finished(run_proxy(['-h'], env)),
      finished(run_proxy(['--version'], env)),
    ]);
    assert.deepEqual(help, { code: 0, stdout: help_text(gathered), stderr: '' });
    assert.ok(!help.stdout.includes(wrong_password));
    assert.deepEqual(told, { code: 0, stdout: `${version}\n`, stderr: '' });
  });

  test('as variáveis podem vir de um arquivo, pela opção do Node', async () => {
    const program = await program_file();
    const file = path.join(temp_dir(), '.env');
    write_file(file, '# comentário\nINTERVAL=321\nREDIS_CHANNEL="do_arquivo"\n');
    const args = [`--env-file=${file}`, program, '--help'];
    const help = start_program(process.execPath, args, clean_env);
    assert.equal(await exit_of(help), 0);
    assert.match(help.stdout(), / INTERVAL +200 +321\n/);
    assert.match(help.stdout(), / REDIS_CHANNEL +ndjson_jobs +do_arquivo\n/);
  });
});

describe('importar não inicia nada', { concurrency: 2 }, () => {
  // PipeWrap é a própria saída do processo, que a biblioteca redis abre ao ser carregada.
  const report =
    'const open = process.getActiveResourcesInfo().filter((name) => name !== "PipeWrap");' +
    'console.log(JSON.stringify(open))';
  const root = path.join(__dirname, '..');

  test('o programa montado pode ser carregado: nada fica aberto e o processo sai só', async () => {
    const code = `require(${JSON.stringify(await program_file())}); ${report}`;
    const result = await finished(start_program(process.execPath, ['-e', code], clean_env));
    assert.deepEqual(result, { code: 0, stdout: '[]\n', stderr: '' });
  });
  test('o fonte pode ser importado: nenhum servidor, conexão ou temporizador', async () => {
    const code = `require('./json-proxy.ts'); ${report}`;
    const args = ['--import', 'tsx', '-e', code];
    const program = start_program(process.execPath, args, clean_env, root);
    const { code: exit_code, stdout, stderr } = await finished(program);
    assert.equal(stderr, '');
    assert.match(stdout, /^\[[^\n]*\]\n$/);
    assert.doesNotMatch(stdout, /TCP|Timeout|Immediate|Signal|GetAddrInfo/);
    assert.equal(exit_code, 0);
  });
});
