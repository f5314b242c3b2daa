/*
 * Configurações: os leitores, a precedência, o --help e o que acontece com valores ruins.
 */

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  format_redis_address,
  help_text,
  key_slot,
  load_settings,
  parse_integer,
  parse_redis_server,
  redact_address,
  type redis_address,
  settings_table,
  version,
} from '../json-proxy';
import { version as package_version } from '../package.json';
import { usage_error_of } from './harness';

/** A senha que não pode aparecer em lugar nenhum. */
const secret = 'hunter2';

/** Uma linha da tabela de configurações. */
type setting = (typeof settings_table)[number];

/** O que a especificação e o projeto fixam: variável, opção curta, opção longa e padrão. */
const contract: [string, string | undefined, string, string][] = [
  ['HTTP_PORT', 'p', 'port', '8771'],
  ['REDIS_SERVER', 'R', 'redis', '127.0.0.1:6379/1'],
  ['REDIS_PASSWORD', 'S', 'secret', ''],
  ['REDIS_CHANNEL', 'C', 'channel', 'ndjson_jobs'],
  ['REDIS_PREFIX', 'X', 'prefix', 'ndjson_task_'],
  ['INTERVAL', 'i', 'interval', '200'],
  ['PAUSE', 'P', 'pause', '20'],
  ['MAXTIME', 't', 'maxtime', '45000'],
  ['MAXTIME_ERROR', 'E', 'maxtime-error', '{"error": "timeout"}'],
  ['SERVERNAME', 's', 'servername', 'py-ndjson-proxy'],
  ['HTTP_HOST', undefined, 'host', '0.0.0.0'],
  ['REDIS_LIST_PREFIX', 'L', 'list-prefix', 'ndjson_list_'],
  ['REDIS_TTL', undefined, 'ttl', '600'],
  ['REPLAY', undefined, 'replay', '0'],
  ['GRACE', undefined, 'grace', '10000'],
  ['MAXBODY', undefined, 'maxbody', '10485760'],
  ['WAKEUP', undefined, 'wakeup', 'on'],
  ['REDIS_STREAM', undefined, 'stream', ''],
  ['WORKERS', 'w', 'workers', '1'],
  ['MAXTASKS', undefined, 'maxtasks', '10000'],
  ['FAILFAST', undefined, 'failfast', 'off'],
  ['HEARTBEAT', undefined, 'heartbeat', '0'],
  ['HEAD_WAIT', undefined, 'head-wait', '10000'],
  ['API_KEY', undefined, 'api-key', ''],
  ['API_KEY_FILE', undefined, 'api-key-file', ''],
  ['REDIS_PASSWORD_FILE', undefined, 'secret-file', ''],
  ['RATE', undefined, 'rate', ''],
  ['TRUST_PROXY', undefined, 'trust-proxy', 'off'],
  ['CORS_ORIGIN', undefined, 'cors-origin', ''],
  ['TLS_CERT', undefined, 'tls-cert', ''],
  ['TLS_KEY', undefined, 'tls-key', ''],
  ['LOG_FORMAT', undefined, 'log-format', 'text'],
  ['LOG_LEVEL', undefined, 'log-level', 'info'],
  ['METRICS_PORT', undefined, 'metrics-port', '0'],
  ['METRICS_HOST', undefined, 'metrics-host', '127.0.0.1'],
];

/** Para cada configuração, um valor pelo ambiente e outro por argumento, todos diferentes. */
const samples: Record<string, { by_environment: string; by_argument: string }> = {
  HTTP_PORT: { by_environment: '9001', by_argument: '9002' },
  REDIS_SERVER: { by_environment: 'env.example:7001/4', by_argument: '[::1]:7002/5' },
  REDIS_PASSWORD: { by_environment: secret, by_argument: `${secret}!` },
  REDIS_CHANNEL: { by_environment: 'env_jobs', by_argument: 'arg_jobs' },
  REDIS_PREFIX: { by_environment: 'env_task_', by_argument: 'arg_task_' },
  INTERVAL: { by_environment: '301', by_argument: '302' },
  PAUSE: { by_environment: '31', by_argument: '32' },
  MAXTIME: { by_environment: '46001', by_argument: '46002' },
  MAXTIME_ERROR: { by_environment: '{"error": "env"}', by_argument: '{"error": "arg"}' },
  SERVERNAME: { by_environment: 'env server', by_argument: 'arg server' },
  HTTP_HOST: { by_environment: '127.0.0.1', by_argument: '::1' },
  REDIS_LIST_PREFIX: { by_environment: 'env_list_', by_argument: 'arg_list_' },
  REDIS_TTL: { by_environment: '61', by_argument: '62' },
  REPLAY: { by_environment: '63', by_argument: '64' },
  GRACE: { by_environment: '11001', by_argument: '11002' },
  MAXBODY: { by_environment: '2001', by_argument: '2002' },
  WAKEUP: { by_environment: 'off', by_argument: 'false' },
  REDIS_STREAM: { by_environment: 'env_tasks', by_argument: 'arg_tasks' },
  WORKERS: { by_environment: '2', by_argument: 'auto' },
  MAXTASKS: { by_environment: '71', by_argument: '72' },
  FAILFAST: { by_environment: 'on', by_argument: '1' },
  HEARTBEAT: { by_environment: '15001', by_argument: '15002' },
  HEAD_WAIT: { by_environment: '10001', by_argument: '10002' },
  API_KEY: { by_environment: `${secret}-a`, by_argument: `${secret}-b` },
  API_KEY_FILE: { by_environment: '/run/a', by_argument: '/run/b' },
  REDIS_PASSWORD_FILE: { by_environment: '/run/c', by_argument: '/run/d' },
  RATE: { by_environment: '10/61', by_argument: '10/62' },
  TRUST_PROXY: { by_environment: 'true', by_argument: 'ON' },
  CORS_ORIGIN: { by_environment: 'https://env.example', by_argument: '*' },
  TLS_CERT: { by_environment: '/run/e', by_argument: '/run/f' },
  TLS_KEY: { by_environment: '/run/g', by_argument: '/run/h' },
  LOG_FORMAT: { by_environment: 'json', by_argument: 'JSON' },
  LOG_LEVEL: { by_environment: 'warn', by_argument: 'error' },
  METRICS_PORT: { by_environment: '9101', by_argument: '9102' },
  METRICS_HOST: { by_environment: '0.0.0.0', by_argument: '::1' },
};

/** Para cada configuração que tem valor ruim, um deles, e um trecho do que deve ser dito aceito. */
const bad_values: Record<string, { value: string; accepted: string }> = {
  HTTP_PORT: { value: '65536', accepted: 'um inteiro de 0 a 65535' },
  REDIS_SERVER: { value: 'h:70000/1', accepted: 'host[:porta][/banco]' },
  REDIS_CHANNEL: { value: 'com espaço', accepted: 'ASCII visíveis, sem espaços' },
  REDIS_PREFIX: { value: 'ação_', accepted: 'ASCII visíveis, sem espaços' },
  INTERVAL: { value: '-1', accepted: 'um inteiro de 0 a 2147483647 ms' },
  PAUSE: { value: '2.5', accepted: 'um inteiro de 0 a 2147483647 ms' },
  MAXTIME: { value: '0', accepted: 'um inteiro de 1 a 2147483647 ms' },
  MAXTIME_ERROR: { value: ' ', accepted: 'uma linha de texto, não vazia' },
  SERVERNAME: { value: 'servidor ', accepted: 'texto ASCII visível' },
  HTTP_HOST: { value: '[::1]', accepted: 'um IPv6 sem colchetes' },
  REDIS_LIST_PREFIX: { value: 'a b', accepted: 'ASCII visíveis, sem espaços' },
  REDIS_TTL: { value: '0', accepted: 'um inteiro de 1 a 2147483 s' },
  REPLAY: { value: '-1', accepted: 'um inteiro de 0 a 2147483 s' },
  GRACE: { value: '10s', accepted: 'um inteiro de 0 a 2147483647 ms' },
  MAXBODY: { value: '67108865', accepted: 'um inteiro de 0 a 67108864 bytes' },
  WAKEUP: { value: 'talvez', accepted: 'on, off, 1, 0, true ou false' },
  REDIS_STREAM: { value: 'a b', accepted: 'ASCII visíveis, sem espaços' },
  WORKERS: { value: '0', accepted: 'auto ou um inteiro de 1 a 64' },
  MAXTASKS: { value: '0', accepted: 'um inteiro de 1 a 1000000' },
  FAILFAST: { value: 'sim', accepted: 'on, off, 1, 0, true ou false' },
  HEARTBEAT: { value: '15s', accepted: 'um inteiro de 0 a 2147483647 ms' },
  HEAD_WAIT: { value: '1s', accepted: 'um inteiro de 0 a 2147483647 ms' },
  API_KEY: { value: `${secret} b`, accepted: 'uma ou mais chaves em ASCII visível' },
  API_KEY_FILE: { value: '/nao/existe', accepted: 'o caminho de um arquivo' },
  REDIS_PASSWORD_FILE: { value: '/nao/existe', accepted: 'o caminho de um arquivo' },
  RATE: { value: '60', accepted: 'pedidos/segundos, como 60/60' },
  TRUST_PROXY: { value: '1.2.3.4', accepted: 'on, off, 1, 0, true ou false' },
  CORS_ORIGIN: { value: 'exemplo.com', accepted: '* ou origens separadas por vírgula' },
  TLS_CERT: { value: '/nao/existe', accepted: 'o caminho de um arquivo' },
  TLS_KEY: { value: '/nao/existe', accepted: 'o caminho de um arquivo' },
  LOG_FORMAT: { value: 'logfmt', accepted: 'text ou json' },
  LOG_LEVEL: { value: 'debug', accepted: 'error, warn ou info' },
  METRICS_PORT: { value: '65536', accepted: 'um inteiro de 0 a 65535' },
  METRICS_HOST: { value: '[::1]', accepted: 'um IPv6 sem colchetes' },
};

/**
 * Diz o que o programa escreve a quem pede a ajuda ou a versão.
 * @param args argumentos
 * @param env variáveis de ambiente
 * @returns o texto
 */
function answer_to(args: string[], env: NodeJS.ProcessEnv = {}): string {
  const { action, gathered } = load_settings(args, env);
  assert.notEqual(action, 'run');
  return action === 'help' ? help_text(gathered) : `${version}\n`;
}

/**
 * Pede a ajuda e separa as colunas da tabela, pela posição dos títulos.
 * @param args argumentos a mais
 * @param env variáveis de ambiente
 * @returns opções, padrão e valor em vigor, por nome de variável
 */
function read_help(args: string[], env: NodeJS.ProcessEnv = {}) {
  const lines = answer_to([...args, '--help'], env).split('\n');
  const header = lines.find((line) => line.startsWith('opção')) ?? '';
  const starts = ['variável', 'padrão', 'em vigor'].map((title) => header.indexOf(title));
  const [name_at = 0, fallback_at = 0, in_force_at = 0] = starts;
  assert.ok(0 < name_at && name_at < fallback_at && fallback_at < in_force_at, header);
  const rows = new Map<string, { flags: string; fallback: string; in_force: string }>();
  for (const line of lines) {
    const name = line.slice(name_at, fallback_at).trim();
    if (!settings_table.some((row) => row.name === name)) continue;
    rows.set(name, {
      flags: line.slice(0, name_at).trim(),
      fallback: line.slice(fallback_at, in_force_at).trim(),
      in_force: line.slice(in_force_at),
    });
  }
  return rows;
}

/**
 * Confere os valores em vigor que o --help mostra.
 * @param args argumentos
 * @param env variáveis de ambiente
 * @param expected dá o texto esperado de cada configuração
 */
function assert_in_force(
  args: string[],
  env: NodeJS.ProcessEnv,
  expected: (row: setting) => string,
) {
  const shown = read_help(args, env);
  const names = settings_table.map((row) => row.name);
  assert.deepEqual([...shown.keys()], names);
  assert.deepEqual(
    names.map((name) => `${name}=${shown.get(name)?.in_force}`),
    settings_table.map((row) => `${row.name}=${expected(row)}`),
  );
}

/**
 * Diz o que o --help mostra no lugar de um valor.
 * @param row linha da tabela
 * @param text o valor
 * @returns o próprio valor, salvo senhas e vazios
 */
function displayed(row: setting, text: string): string {
  if (text === '') return '(vazio)';
  return row.is_secret ? '***' : text;
}

/**
 * Confere um erro de uso: uma linha, senha nenhuma.
 * @param args argumentos
 * @param env variáveis de ambiente
 * @param pieces o que a linha deve conter
 * @returns a linha
 */
function assert_usage_error(args: string[], env: NodeJS.ProcessEnv, pieces: string[]): string {
  const line = usage_error_of(args, env).replace(/^json-proxy: |\n$/g, '');
  assert.match(line, /^[^\n\r]+$/);
  assert.ok(!line.includes(secret), `a senha apareceu: ${line}`);
  for (const piece of pieces) assert.ok(line.includes(piece), `falta ${piece} em: ${line}`);
  return line;
}

/** O que um endereço tem de seu. */
type address_parts = Partial<redis_address> & { host?: string; port?: number };

/**
 * Monta um endereço esperado a partir do que difere dos padrões do protocolo.
 * @param parts o que difere; `host` e `port` são os do único nó
 * @returns o endereço completo
 */
function address(parts: address_parts): redis_address {
  const { host, port = 6379, ...others } = parts;
  const empty = { tls: false, primary: '', socket_path: '', username: '', password: '' };
  const nodes = host ? [{ host, port }] : [];
  return { kind: 'redis', ...empty, database: 0, nodes, ...others };
}

describe('parse_integer', () => {
  const accepted: [string, number][] = [
    ['0', 0],
    ['7', 7],
    ['007', 7],
    ['100', 100],
  ];
  for (const [text, value] of accepted) {
    test(`lê ${JSON.stringify(text)}`, () => {
      assert.equal(parse_integer(text, 0, 100), value);
    });
  }
  const rejected = ['', ' ', ' 5', '5 ', '5\n', '+5', '-1', '1.0', '1e1', '0x5', '1_0', '5ms', '٣'];
  for (const text of [...rejected, '101', '9999999999999999', 'NaN', 'Infinity']) {
    test(`recusa ${JSON.stringify(text)}`, () => {
      assert.throws(() => parse_integer(text, 0, 100, 'ms'), {
        message: 'um inteiro de 0 a 100 ms',
      });
    });
  }
  test('os limites são aceitos, os vizinhos de fora não, e sem unidade nada sobra no texto', () => {
    assert.equal(parse_integer('3', 3, 5), 3);
    assert.equal(parse_integer('5', 3, 5), 5);
    for (const text of ['2', '6']) {
      assert.throws(() => parse_integer(text, 3, 5), { message: 'um inteiro de 3 a 5' });
    }
  });
});

const sentinels = { kind: 'sentinel' as const, nodes: [{ host: 'h', port: 26379 }] };

const redis_accepted: [string, address_parts][] = [
  ['h', { host: 'h' }],
  ['h:1', { host: 'h', port: 1 }],
  ['h:1/2', { host: 'h', port: 1, database: 2 }],
  ['h/2', { host: 'h', database: 2 }],
  ['h:1/', { host: 'h', port: 1 }],
  ['h/', { host: 'h' }],
  ['h:65535/2147483647', { host: 'h', port: 65535, database: 2147483647 }],
  ['127.0.0.1:6379/1', { host: '127.0.0.1', database: 1 }],
  ['Redis_db-1.local:7', { host: 'Redis_db-1.local', port: 7 }],
  ['[::1]', { host: '::1' }],
  ['[::1]/3', { host: '::1', database: 3 }],
  ['[::1]:6379/1', { host: '::1', database: 1 }],
  ['[2001:DB8::5]:7', { host: '2001:DB8::5', port: 7 }],
  ['[::ffff:127.0.0.1]:7/1', { host: '::ffff:127.0.0.1', port: 7, database: 1 }],
  ['redis://h', { host: 'h' }],
  ['redis://h:1/2', { host: 'h', port: 1, database: 2 }],
  ['redis://h/', { host: 'h' }],
  ['REDIS://h', { host: 'h' }],
  ['redis://[::1]:1/2', { host: '::1', port: 1, database: 2 }],
  ['redis://ana@h', { host: 'h', username: 'ana' }],
  ['redis://:pw@h', { host: 'h', password: 'pw' }],
  ['redis://:@h', { host: 'h' }],
  ['redis://ana:pw@h:1/2', { host: 'h', port: 1, database: 2, username: 'ana', password: 'pw' }],
  [
    'redis://a%3An%40:p%40%2F%3A%25%20%C3%A7@h',
    { host: 'h', username: 'a:n@', password: 'p@/:% ç' },
  ],
  ['redis://ana:p@ss@h/2', { host: 'h', database: 2, username: 'ana', password: 'p@ss' }],
  ['redis://ana:p:ss@h/2', { host: 'h', database: 2, username: 'ana', password: 'p:ss' }],
  ['redis://ana:p/ss@h/2', { host: 'h', database: 2, username: 'ana', password: 'p/ss' }],
  ['redis://ana:@:/?#@h:1', { host: 'h', port: 1, username: 'ana', password: '@:/?#' }],
  ['redis://:p@x:1/2@h:3/4', { host: 'h', port: 3, database: 4, password: 'p@x:1/2' }],
  ['rediss://h', { tls: true, host: 'h' }],
  ['RedisS://h', { tls: true, host: 'h' }],
  [
    'rediss://ana:pw@[::1]:6380/3',
    { tls: true, host: '::1', port: 6380, database: 3, username: 'ana', password: 'pw' },
  ],
  ['/run/redis.sock', { socket_path: '/run/redis.sock' }],
  ['/run/redis.sock?db=2', { socket_path: '/run/redis.sock', database: 2 }],
  ['/a b/ç@1.sock', { socket_path: '/a b/ç@1.sock' }],
  ['unix:/run/redis.sock', { socket_path: '/run/redis.sock' }],
  ['unix:/run/redis.sock?db=3', { socket_path: '/run/redis.sock', database: 3 }],
  ['unix:///run/redis.sock', { socket_path: '/run/redis.sock' }],
  ['unix:///run/redis.sock?db=4', { socket_path: '/run/redis.sock', database: 4 }],
  ['unix://ana@/run/r.sock', { socket_path: '/run/r.sock', username: 'ana' }],
  ['unix://:pw@/run/r.sock', { socket_path: '/run/r.sock', password: 'pw' }],
  [
    'unix://ana:p%40:ss@/run/r.sock?db=5',
    { socket_path: '/run/r.sock', database: 5, username: 'ana', password: 'p@:ss' },
  ],
  ['sentinel://h/m', { ...sentinels, primary: 'm' }],
  ['Sentinel://h:1/m/', { kind: 'sentinel', nodes: [{ host: 'h', port: 1 }], primary: 'm' }],
  [
    'sentinel://h,[::1]:7/my-master.1/2',
    {
      ...sentinels,
      nodes: [...sentinels.nodes, { host: '::1', port: 7 }],
      primary: 'my-master.1',
      database: 2,
    },
  ],
  [
    'sentinels://ana:p@ss,/x@h/m/3',
    { ...sentinels, tls: true, primary: 'm', database: 3, username: 'ana', password: 'p@ss,/x' },
  ],
  ['cluster://h', { kind: 'cluster', host: 'h' }],
  [
    'Clusters://ana:p,w@[::1]:7,h/',
    {
      kind: 'cluster',
      tls: true,
      nodes: [
        { host: '::1', port: 7 },
        { host: 'h', port: 6379 },
      ],
      username: 'ana',
      password: 'p,w',
    },
  ],
];

const redis_rejected: Record<string, string[]> = {
  sentinel: [
    ...['sentinel://h', 'sentinel://h/', 'sentinel:///m', 'sentinel://h,/m', 'sentinel://,h/m'],
    ...['sentinel://h:0/m', 'sentinel://h:x/m', 'sentinel://h/m/x', 'sentinel://h/m/1/2', 'h,h/m'],
    ...['cluster://', 'cluster://h/1', 'cluster://h,', 'cluster://h:0', 'cluster:/h', 'cluster:h'],
    ...['sentinel://[h]/m', 'sentinel://h;h/m', 'sentinel://h/m?db=1', 'redis://h,h/1'],
  ],
  'vazios e espaços': ['', ' ', ' h', 'h ', 'h\n', 'h 1', 'h:1/2\n', 'h: 1'],
  'sem host': [':6379', ':6379/1', '/', 'redis://', 'redis:///1', 'redis://ana:pw@', 'redis://@:1'],
  porta: ['h:', 'h:/1', 'h:x', 'h:0', 'h:65536', 'h:-1', 'h:+1', 'h:1.5', 'h:99999999999999999999'],
  banco: ['h:1/x', 'h:1/-1', 'h:1/2/3', 'h:1/2147483648', 'h/1.0', 'h//1'],
  ipv6: ['::1', '::1:6379', '[::1', '::1]', '[h]:1', '[127.0.0.1]:1', '[:::1]:1', '[]:1', '[::1]1'],
  esquemas: ['http://h', 'redis:h', 'redis:/h', 'redis//h', 'rediss+x://h', 'valkey://h', 'redis:'],
  URL: ['redis://h:1/2?x=1', 'redis://h#2', 'ana:pw@h:1', 'redis://a/b:pw@h', 'redis://h:1:2'],
  '%XX': ['redis://ana:%zz@h', 'redis://ana:100%@h', 'redis://%C3:pw@h', 'unix://:%@/run/r.sock'],
  socket: ['unix:', 'unix:/', 'unix://', 'unix:run/r.sock', '/run/', 'unix:/run/', 'run/r.sock'],
  '?db=': [
    '/r.sock?',
    '/r.sock?db=',
    '/r.sock?db=x',
    '/r.sock?db=-1',
    '/r.sock?db=1&x=2',
    '/r?d=1',
  ],
};

describe('parse_redis_server', () => {
  for (const [text, parts] of redis_accepted) {
    test(`lê ${text}`, () => {
      assert.deepEqual(parse_redis_server(text), address(parts));
    });
  }
  for (const [why, texts] of Object.entries(redis_rejected)) {
    for (const text of texts) {
      test(`recusa ${JSON.stringify(text)} (${why})`, () => {
        assert.throws(
          () => parse_redis_server(text),
          (error: Error) => {
            assert.match(error.message, /^host\[:porta\]\[\/banco\], .*porta de 1 a 65535$/);
            return true;
          },
        );
      });
    }
  }
});

test('key_slot dá o slot que um cluster dá', () => {
  const slots = { '': 0, '123456789': 12739, foo: 12182 };
  for (const [tag, slot] of Object.entries(slots)) assert.equal(key_slot(tag), slot, tag);
});

describe('format_redis_address', () => {
  const forms: [string, string][] = [
    ['h', 'h:6379/0'],
    ['redis://ana:pw@h:1/2', 'h:1/2'],
    ['[::1]/3', '[::1]:6379/3'],
    ['rediss://ana:pw@h', 'rediss://h:6379/0'],
    ['rediss://[::1]:6380', 'rediss://[::1]:6380/0'],
    ['/run/redis.sock', 'unix:/run/redis.sock?db=0'],
    ['unix://ana:pw@/run/redis.sock?db=5', 'unix:/run/redis.sock?db=5'],
    ['sentinel://ana:pw@h,[::1]:7/m', 'sentinel://h:26379,[::1]:7/m/0'],
    ['sentinels://h/m/2', 'sentinels://h:26379/m/2'],
    ['clusters://ana:pw@h,[::1]:7', 'clusters://h:6379,[::1]:7'],
  ];
  for (const [text, shown] of forms) {
    test(`mostra ${text} como ${shown}`, () => {
      assert.equal(format_redis_address(parse_redis_server(text)), shown);
    });
  }
  test('o que mostra é aceito de volta e leva ao mesmo lugar, sem usuário nem senha', () => {
    for (const [text] of redis_accepted) {
      const parsed = parse_redis_server(text);
      const again = parse_redis_server(format_redis_address(parsed));
      assert.deepEqual(again, { ...parsed, username: '', password: '' }, text);
    }
  });
});

describe('redact_address', () => {
  const forms: [string, string][] = [
    ['h:1/2', 'h:1/2'],
    ['h:99999/1', 'h:99999/1'],
    ['[::1]:6379/1', '[::1]:6379/1'],
    ['redis://h:99999/1', 'redis://h:99999/1'],
    ['/run/redis.sock?db=1', '/run/redis.sock?db=1'],
    ['redis://ana:hunter2@h:1/2', 'redis://***@h:1/2'],
    ['rediss://:hunter2@[::1]', 'rediss://***@[::1]'],
    ['unix://ana:hunter2@/run/r.sock?db=1', 'unix://***@/run/r.sock?db=1'],
    ['ana:hunter2@h', '***@h'],
    ['redis://ana:x@hunter2@h', 'redis://***@h'],
    ['unix:/run/r.sock', 'unix:/run/r.sock'],
    ['sentinel://:hunter2@h,[::1]:7/m/99999', 'sentinel://***@h,[::1]:7/m/99999'],
    ['cluster://ana:hunter2@h,[::1]:7/', 'cluster://***@h,[::1]:7/'],
    ['h:porta', '***'],
  ];
  for (const [text, shown] of forms) {
    test(`mostra ${text} como ${shown}`, () => {
      assert.equal(redact_address(text), shown);
    });
  }
  const malformed = [
    ...['redis:/ana:hunter2@h', 'redis//ana:hunter2@h', 'redis:ana:hunter2@h', 'REDIS://:hunter2@'],
    ...[' redis://:hunter2@h', '"redis://:hunter2@h"', 'redis://a:x\nhunter2@h', 'x://hunter2@@h'],
    ...['redis://h?password=hunter2', 'redis://h/1?x=1&PASSWD=hunter2', '/r.sock?pass=hunter2'],
    ...['redis://:hunter2', 'redis://ana:hunter2', 'redis://ana:hunter2/1', 'rediss://:x/hunter2'],
    ...['ana:hunter2:6379', 'redis://h/hunter2', 'rediss//ana:hunter2/h', 'h:6379:hunter2/1'],
    ...['sentinel://:hunter2', 'sentinel://ana:hunter2/m', 'sentinel://h/m/hunter2'],
    ...['cluster://:hunter2', 'cluster://ana:hunter2', 'cluster://ana:hunter2,h'],
    ...['redis://ana:hunter2%40h:6379/1', 'redis://ana:hunter2\n', 'redis://h:1/2?auth=hunter2'],
  ];
  for (const text of malformed) {
    test(`esconde a senha de ${JSON.stringify(text)}`, () => {
      assert.ok(!redact_address(text).includes(secret), redact_address(text));
    });
  }
});

/** Para cada opção, o que é aceito e o que é recusado. */
const limits: [string, string[], string[]][] = [
  ['--port', ['0', '1', '65535'], ['65536', '-1', '', '8771/tcp']],
  ['--channel', ['a', 'x'.repeat(200), '!~:{}*'], ['', 'x'.repeat(201), 'a b', 'á', 'a\n']],
  ['--prefix', ['a', 'x'.repeat(200)], ['', 'x'.repeat(201), 'a\tb', '\x7f']],
  ['--list-prefix', ['a', 'x'.repeat(200)], ['', 'x'.repeat(201), ' a']],
  ['--interval', ['0', '2147483647'], ['2147483648', '']],
  ['--pause', ['0', '2147483647'], ['2147483648', '']],
  ['--maxtime', ['1', '2147483647'], ['0', '2147483648', '']],
  ['--maxtime-error', ['x', ' x ', 'tempo é dinheiro'], ['', ' ', 'a\nb', 'a\rb']],
  ['--servername', ['x', 'a b', '~'], ['', ' a', 'a ', 'ç', 'a\r\nX: y']],
  ['--host', ['0.0.0.0', '::', 'localhost', 'a-b.c_d'], ['', '[::]', 'a b', 'a:1', '::g', 'h/']],
  ['--ttl', ['1', '2147483'], ['0', '2147484', '']],
  ['--grace', ['0', '2147483647'], ['2147483648', '']],
  ['--maxbody', ['0', '67108864'], ['67108865', '']],
  ['--workers', ['1', '64', 'auto', 'AUTO'], ['0', '65', '', 'autos']],
];

describe('limites de cada configuração', () => {
  for (const [flag, accepted, rejected] of limits) {
    test(`${flag}: aceita os extremos e recusa o que passa deles`, () => {
      for (const text of accepted) {
        assert.equal(load_settings([`${flag}=${text}`], {}).action, 'run', JSON.stringify(text));
      }
      const name = settings_table.find((row) => `--${row.long}` === flag)?.name;
      for (const text of rejected) {
        const expected = { message: new RegExp(`^${name} \\(${flag}\\) inválido: `) };
        assert.throws(() => load_settings([`${flag}=${text}`], {}), expected, JSON.stringify(text));
      }
    });
  }
});

const names = settings_table.map((row) => row.name);
const all_empty = Object.fromEntries(names.map((name) => [name, '']));
const all_given = Object.fromEntries(names.map((name) => [name, samples[name]?.by_environment]));
const argument = (row: setting) => samples[row.name]?.by_argument ?? '';
const variable = (row: setting) => samples[row.name]?.by_environment ?? '';
const of_fallback = (row: setting) => displayed(row, row.fallback);
const of_argument = (row: setting) => displayed(row, argument(row));
const of_variable = (row: setting) => displayed(row, variable(row));

/** As formas de dar um argumento que todas as configurações têm. */
const ways: [string, (row: setting) => string[]][] = [
  ['-p VALOR', (row) => [row.short ? `-${row.short}` : `--${row.long}`, argument(row)]],
  ['--port VALOR', (row) => [`--${row.long}`, argument(row)]],
  ['--port=VALOR', (row) => [`--${row.long}=${argument(row)}`]],
];

describe('precedência: padrão < ambiente < argumento', { concurrency: 3 }, () => {
  test('as configurações são as combinadas, e os exemplos todos diferentes', () => {
    const actual = settings_table.map(({ name, short, long, fallback }) => {
      return [name, short || undefined, long, fallback];
    });
    assert.deepEqual(actual, contract);
    assert.deepEqual(Object.keys(samples), names);
    for (const row of settings_table) {
      assert.equal(new Set([row.fallback, variable(row), argument(row)]).size, 3, row.name);
    }
  });
  test('sem ambiente nem argumentos valem os padrões', () => assert_in_force([], {}, of_fallback));
  test('variável de ambiente vazia vale como ausente', () =>
    assert_in_force([], all_empty, of_fallback));
  test('a variável de ambiente vence o padrão', () => assert_in_force([], all_given, of_variable));
  for (const [way, flags] of ways) {
    test(`o argumento na forma ${way} vence o ambiente`, () =>
      assert_in_force(settings_table.flatMap(flags), all_given, of_argument));
  }
  test('o argumento na forma -pVALOR vence o ambiente', () => {
    const rows = settings_table.filter((row) => row.short);
    const args = rows.map((row) => `-${row.short}${argument(row)}`);
    return assert_in_force(args, all_given, (row) =>
      row.short ? of_argument(row) : of_variable(row),
    );
  });
  test('de opções repetidas vale a última, seja qual for a forma', () => {
    const first = (row: setting) => [`--${row.long}`, variable(row)];
    const last = (row: setting) =>
      row.short ? [`-${row.short}`, argument(row)] : [`--${row.long}=${argument(row)}`];
    const args = [...settings_table.flatMap(first), ...settings_table.flatMap(last)];
    return assert_in_force(args, {}, of_argument);
  });
  test('senha vazia por argumento vence a do ambiente', () => {
    const env = { REDIS_PASSWORD: secret };
    assert.equal(read_help([], env).get('REDIS_PASSWORD')?.in_force, '***');
    assert.equal(read_help(['-S', ''], env).get('REDIS_PASSWORD')?.in_force, '(vazio)');
  });
});

/** As maneiras de dar uma senha, que a ajuda não pode mostrar. */
const hidden: [string, string[], NodeJS.ProcessEnv][] = [
  ['por variável', [], { REDIS_PASSWORD: secret }],
  ['por -S', ['-S', secret], {}],
  ['por --secret=', [`--secret=${secret}`], {}],
  ['na URL, por -R', ['-R', `redis://ana:${secret}@h:1/2`], {}],
  ['na URL, por variável', [], { REDIS_SERVER: `rediss://:${secret}@h` }],
  ['em URL malformada', ['-R', `redis:/ana:${secret}@h:x`], {}],
];

describe('--help e --version', { concurrency: 3 }, () => {
  test('a ajuda é em português, cabe em 80 colunas e mostra a tabela inteira', () => {
    const stdout = answer_to(['--help']);
    assert.match(stdout, /^json-proxy \d+\.\d+\.\d+: .*HTTP.*NDJSON/);
    assert.match(stdout, /\nUso: node json-proxy\.js \[opções\]\n/);
    assert.match(stdout, /\nPrecedência: padrão < variável de ambiente < argumento\.\n/);
    for (const line of stdout.split('\n')) assert.ok([...line].length <= 80, line);
    for (const row of settings_table) assert.ok(stdout.includes(`\n      ${row.help}\n`), row.help);
    assert.match(stdout, /\n-h --help\n.*\n-V --version\n/);
    assert.match(stdout, /rediss:\/\/.*TLS/);
    assert.match(stdout, /unix:\/\S+\[\?db=N\]/);
    assert.equal(answer_to(['-h']), stdout);
  });
  test('cada linha traz as opções, a variável e o padrão', () => {
    const rows = read_help(['-p', '1']);
    for (const { name, short, long, fallback } of settings_table) {
      const { flags = '', fallback: shown } = rows.get(name) ?? {};
      assert.equal(flags, short ? `-${short} --${long}` : `--${long}`);
      assert.equal(shown, fallback || '(vazio)');
    }
  });
  for (const [how, args, env] of hidden) {
    test(`a ajuda nunca mostra a senha dada ${how}`, () => {
      const text = answer_to([...args, '--help'], env);
      assert.match(text, /\*\*\*/);
      assert.ok(!text.includes(secret), text);
    });
  }
  test('a ajuda e a versão saem mesmo com outras configurações inválidas', () => {
    const env = { HTTP_PORT: 'x', REDIS_SERVER: 'h:x', MAXTIME: '0' };
    const rows = read_help(['-X', 'a b', '-L', 'a b'], env);
    assert.equal(rows.get('HTTP_PORT')?.in_force, 'x');
    assert.equal(rows.get('REDIS_PREFIX')?.in_force, 'a b');
    assert.equal(answer_to(['--version'], env), `${package_version}\n`);
  });
  test('a versão é a do package.json', () => {
    for (const flag of ['--version', '-V']) {
      assert.equal(
        answer_to([flag]),
        `${package_version}
`,
        flag,
      );
    }
  });
});

describe('valores ruins: código 2 e uma linha', { concurrency: 3 }, () => {
  test('só REDIS_PASSWORD aceita qualquer texto', () => {
    const rows = settings_table.filter((row) => row.name !== 'REDIS_PASSWORD');
    const names = rows.map((row) => row.name);
    assert.deepEqual(Object.keys(bad_values), names);
  });
  for (const row of settings_table) {
    const { value, accepted } = bad_values[row.name] ?? { value: '', accepted: '' };
    if (accepted === '') continue;
    const shown = `inválido: ${JSON.stringify(row.is_secret ? '***' : value)}; aceito: `;
    test(`${row.name} ruim por opção`, () => {
      const flag = row.short ? `-${row.short}` : `--${row.long}`;
      const pieces = [`${row.name} (${flag}) ${shown}`, accepted];
      assert_usage_error([flag, value], {}, pieces);
    });
    test(`${row.name} ruim por variável`, () => {
      const pieces = [`${row.name} (ambiente) ${shown}`, accepted];
      assert_usage_error([], { [row.name]: value }, pieces);
    });
  }
  test('um argumento bom encobre uma variável ruim; um ruim não é encoberto por ela', () => {
    const env = { HTTP_PORT: 'x', INTERVAL: '5' };
    const line = assert_usage_error(['-p', '0', '-i', 'y'], env, ['INTERVAL (-i)']);
    assert.ok(!line.includes('HTTP_PORT'), line);
  });
});

/** Linhas de comando erradas, e o que a mensagem deve dizer. */
const wrong_arguments: [string, string[], string[]][] = [
  ['opção longa desconhecida', ['--nada'], ['opção desconhecida: --nada', '--help']],
  ['opção longa desconhecida com valor', ['--nada=1'], ['opção desconhecida: --nada', '--help']],
  ['opção curta desconhecida', ['-Z'], ['opção desconhecida: -Z', '--help']],
  ['opção com nome de membro de objeto', ['--constructor=1'], ['desconhecida: --constructor']],
  ['senha em opção mal escrita, com =', [`--passwrd=${secret}`], ['desconhecida: --passwrd']],
  ['senha em opção mal escrita', ['--passwrd', secret], ['desconhecida: --passwrd']],
  ['opção longa sem valor', ['--port'], ['falta o valor de --port']],
  ['opção curta sem valor', ['-i', '5', '-p'], ['falta o valor de -p']],
  ['--secret sem valor', ['--secret'], ['falta o valor de --secret']],
  [
    'FAILFAST num cluster',
    ['-R', 'cluster://h', '--failfast', 'on'],
    ['FAILFAST e cluster:// dados ao mesmo tempo'],
  ],
  ['REPLAY num cluster', ['-R', 'cluster://h', '--replay', '9'], ['REPLAY e cluster:// dados']],
  ['stream num cluster', ['-R', 'cluster://h', '--stream', 's'], ['REDIS_STREAM e cluster://']],
  ['argumento solto', ['start'], ['argumento inesperado', '--help']],
  ['argumento solto depois de --', ['--', 'start'], ['argumento inesperado', '--help']],
  ['porta negativa', ['-p', '-1'], ['HTTP_PORT (-p) inválido: "-1"']],
  ['porta enorme', ['--port=99999999999'], ['HTTP_PORT (--port) inválido: "99999999999"']],
  ['argumento solto com quebra de linha', ['a\nb'], ['argumento inesperado']],
  ['pedaço solto de senha', ['--secret=', secret], ['argumento inesperado', '2']],
  ['--secret escrito com um traço só', ['-secret', secret], ['argumento inesperado']],
  ['-password em vez de -S', ['-password', secret], ['argumento inesperado']],
  ['variável dada como argumento', [`REDIS_PASSWORD=${secret}`], ['argumento inesperado']],
  ['URL solta', [`redis://ana:${secret}@h/1`], ['argumento inesperado']],
  ['senha colada em --secret', [`--secret${secret}`], ['opção desconhecida: --secret']],
  ['--env-file depois do programa', ['--env-file=.env'], ['node --env-file=.env json-proxy.js']],
  ['--env-file com o valor à parte', ['--env-file', '.env'], ['node --env-file=.env ']],
  ['o -m do original', ['-m', '45000'], ['desconhecida: -m; aqui é -t (MAXTIME, em ms)']],
  ['o -d do original', ['-d'], ['desconhecida: -d; ', 'LOG_LEVEL']],
  ['o --debug do original', ['--debug'], ['desconhecida: --debug; ', 'LOG_LEVEL']],
  [
    'o --key-prefix do original',
    ['--key-prefix', 'x'],
    ['desconhecida: --key-prefix; aqui é -X (REDIS_PREFIX)', 'ndjson_task_'],
  ],
  [
    'a porta das métricas igual à outra',
    ['-p', '81', '--metrics-port', '81'],
    ['METRICS_PORT', '81'],
  ],
  ['URL colada em --redis', [`--redis:redis://:${secret}@h`], ['opção desconhecida: --redis']],
];

describe('argumentos que não se entendem', () => {
  test('métricas desligadas e porta livre não são a mesma porta', () => {
    const { action } = load_settings(['-p', '0', '--metrics-port', '0'], { REDIS_KEY_PREFIX: '' });
    assert.equal(action, 'run');
  });
  for (const [title, args, pieces] of wrong_arguments) {
    test(title, () => {
      assert_usage_error(args, {}, pieces);
    });
  }
});

/** Ambientes com valores que poderiam quebrar a linha, revelar a senha ou passar por bons. */
const tricky_values: [string, NodeJS.ProcessEnv, string[]][] = [
  [
    'REDIS_SERVER malformado com senha',
    { REDIS_SERVER: `redis://ana:${secret}@h:x/1` },
    ['REDIS_SERVER (ambiente) inválido: "***"', 'rediss://', 'unix:'],
  ],
  [
    'REDIS_SERVER com %XX ruim na senha',
    { REDIS_SERVER: `redis://ana:${secret}%zz@h` },
    ['REDIS_SERVER (ambiente) inválido: "redis://***@h"'],
  ],
  [
    'REDIS_SERVER com a senha e sem o host',
    { REDIS_SERVER: `redis://ana:${secret}` },
    ['REDIS_SERVER (ambiente) inválido: '],
  ],
  [
    'REDIS_SERVER com quebra de linha e senha',
    { REDIS_SERVER: `redis://ana:a\n${secret}@h\nx` },
    ['REDIS_SERVER (ambiente) inválido: "***"'],
  ],
  [
    'porta fora da faixa em REDIS_SERVER',
    { REDIS_SERVER: 'h:65536' },
    ['"h:65536"', 'porta de 1 a 65535'],
  ],
  ['MAXTIME_ERROR com quebra', { MAXTIME_ERROR: 'a\nb' }, ['MAXTIME_ERROR (ambiente)', '"a\\nb"']],
  ['SERVERNAME com quebra', { SERVERNAME: 'a\r\nb' }, ['SERVERNAME (ambiente)', '"a\\r\\nb"']],
  ['REDIS_CHANNEL com quebra', { REDIS_CHANNEL: 'a\n' }, ['REDIS_CHANNEL (ambiente)', '"a\\n"']],
  [
    'prefixos iguais',
    { REDIS_PREFIX: 'x_', REDIS_LIST_PREFIX: 'x_' },
    ['REDIS_PREFIX "x_"', 'REDIS_LIST_PREFIX "x_"', 'diferentes entre si', '"ndjson_claim_"'],
  ],
  [
    'prefixo da tarefa igual ao padrão do prefixo da lista',
    { REDIS_PREFIX: 'ndjson_list_' },
    ['REDIS_PREFIX "ndjson_list_"', 'REDIS_LIST_PREFIX "ndjson_list_"', 'aceito: diferentes'],
  ],
  [
    'prefixo da tarefa igual ao da reserva',
    { REDIS_PREFIX: 'ndjson_claim_' },
    ['REDIS_PREFIX "ndjson_claim_"', 'aceito: diferentes'],
  ],
  [
    'o prefixo do original',
    { REDIS_KEY_PREFIX: 'ndjson_task' },
    ['REDIS_KEY_PREFIX (ambiente)', 'REDIS_PREFIX', 'ndjson_task_'],
  ],
  [
    'prefixo da lista igual ao da reserva',
    { REDIS_LIST_PREFIX: 'ndjson_claim_' },
    ['REDIS_LIST_PREFIX "ndjson_claim_"', 'aceito: diferentes'],
  ],
];

describe('valores ruins que enganam', () => {
  for (const [title, env, pieces] of tricky_values) {
    test(title, () => {
      assert_usage_error([], env, pieces);
    });
  }
  test('a senha de um REDIS_SERVER malformado não aparece quando vem por -R', () => {
    const args = ['-R', `redis://ana:${secret}@h:x/1`];
    assert_usage_error(args, {}, ['REDIS_SERVER (-R) inválido: "***"']);
  });
});
