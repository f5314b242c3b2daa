/*
 * Tabelas das funções puras: como um elemento da lista é entendido, o caminho de um pedido, o tipo
 * de mídia escolhido e os cabeçalhos que vão na tarefa. Nada aqui abre rede.
 */

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  choose_media_type,
  collect_headers,
  type list_element,
  parse_chunk,
  parse_element,
  path_of,
  split_element,
  url_of,
  within,
} from '../json-proxy';

/** O maior elemento que ainda é examinado como palavra de fim ou cabeça. */
const examined_bytes = 64 * 1024;

/**
 * Entende um elemento dado em texto ou em bytes.
 * @param raw o elemento
 * @returns o que parse_element entendeu
 */
function parse(raw: string | Buffer): list_element {
  return parse_element(Buffer.from(raw as string));
}

/**
 * Dá um trecho legível de um elemento, para o título do teste.
 * @param raw o elemento
 * @returns o texto em JSON, cortado
 */
function label(raw: string | Buffer): string {
  return JSON.stringify(raw.toString('latin1').slice(0, 60));
}

/** Elementos que são linhas. */
const line_table: (string | Buffer)[] = [
  '{"n":1}',
  'x',
  '0',
  'null',
  'não é JSON',
  '{"emoji":"👩‍👩‍👧","combinado":"e\u0301","separador":"\u2028"}',
  '  {"n": 1}\t',
  '{"texto":"a\\nb\\r\\nc"}',
  Buffer.from([0xe9, 0xff, 0x80, 0xc0]),
  Buffer.from([0x45, 0xe9, 0xff]),
  Buffer.from([0x48, 0x54, 0x54, 0x50, 0x20, 0xff]),
  Buffer.from([0x00, 0x01, 0x00]),
  Buffer.from('\ufeff{"n":1}'),
];

/** Elementos parecidos com palavras de fim, mas que são linhas. */
const almost_end_table = [
  'eof',
  'Eof',
  'EOf',
  'eol',
  'end-of-file',
  'End-Of-List',
  'EOF.',
  'EOF EOF',
  'EOFEOL',
  'EO F',
  'END OF FILE',
  'END_OF_LIST',
  'END-OF-FILES',
  'END-OF',
  'END',
  'E',
  '"EOF"',
  '{"fim":"EOF"}',
  '["END-OF-LIST"]',
  'xEOF',
  '\u0000EOF',
];

/** Elementos que começam como cabeça, mas são texto comum, e portanto linhas. */
const almost_head_table = [
  'HTTP is a protocol',
  'HTTP',
  'HTTP ',
  'HTTPS 200',
  'HTTP/1.1 404 Not Found',
  'HTTP404',
  'HTTP 2xx',
  'HTTP -1',
  'http 404',
  'Http 404 {}',
  'H',
  'R',
  'RAW',
  'RAW ',
  'RAW data 200',
  'RAW200',
  'raw 200',
  'HTTP ABORTED',
  'HTTP  ABORT',
  'http abort',
  'HTTP ABORT {}',
  '"HTTP 404"',
  '{"HTTP":404}',
];

describe('parse_element: linhas', () => {
  for (const raw of [...line_table, ...almost_end_table, ...almost_head_table]) {
    test(`${label(raw)} é uma linha`, () => {
      assert.deepEqual(parse(raw), { kind: 'line', bytes: Buffer.from(raw as string) });
    });
  }
});

describe('parse_element: elementos em branco', () => {
  for (const raw of ['', ' ', '   ', '\t', '\n', '\r', '\r\n', ' \r\n\t \n', ' '.repeat(70_000)]) {
    test(`${label(raw)} é ignorado`, () => {
      assert.deepEqual(parse(raw), { kind: 'blank' });
    });
  }
});

describe('parse_element: palavras de fim', () => {
  for (const word of ['EOF', 'EOL', 'END-OF-FILE', 'END-OF-LIST']) {
    const forms = [word, ` ${word}`, `${word}\n`, `${word}\r\n`, `\n\t ${word} \t\r\n`];
    for (const raw of forms) {
      test(`${label(raw)} é fim`, () => {
        assert.deepEqual(parse(raw), { kind: 'end' });
      });
    }
  }
});

describe('parse_element: HTTP ABORT', () => {
  for (const raw of ['HTTP ABORT', ' HTTP ABORT', 'HTTP ABORT\r\n']) {
    test(`${label(raw)} é uma desistência`, () => {
      assert.deepEqual(parse(raw), { kind: 'abort' });
    });
  }
});

/** Elementos de uma resposta RAW que são só bytes. */
const chunk_table = [
  ' ',
  '\n',
  'EOF',
  'RAW 200',
  'HTTP 404 {}',
  'HTTP ABORT\n',
  ' HTTP ABORT',
  'x',
];

describe('parse_chunk', () => {
  for (const raw of chunk_table) {
    test(`${label(raw)} segue byte a byte`, () => {
      assert.deepEqual(parse_chunk(Buffer.from(raw)), { kind: 'line', bytes: Buffer.from(raw) });
    });
  }

  test('só o vazio e HTTP ABORT, exatamente, não são bytes', () => {
    assert.deepEqual(parse_chunk(Buffer.alloc(0)), { kind: 'blank' });
    assert.deepEqual(parse_chunk(Buffer.from('HTTP ABORT')), { kind: 'abort' });
  });
});

const half = 600_000;

/** Elementos com quebras, e as linhas que são. */
const split_table: [string | Buffer, string[]][] = [
  ['{"n":1}\n', ['{"n":1}']],
  ['{"n":1}\r\n', ['{"n":1}']],
  ['\r\n\r\n{"n":1}', ['{"n":1}']],
  ['{"n":1}\n{"n":2}', ['{"n":1}', '{"n":2}']],
  ['{"n":1}\r\n\r\n{"n":2}\r[3]\n', ['{"n":1}', '{"n":2}', '[3]']],
  ['1\n"dois"\nnull\n "é 👍" ', ['1', '"dois"', 'null', ' "é 👍" ']],
  ['{"n":1}\nfim', ['{"n":1} fim']],
  ['First line\nSecond line', ['First line Second line']],
  ['a\rb\nc\r\nd\n\re\n', ['a b c d  e']],
  ['\n a\n\n b \n', [' a   b ']],
  ['{\n  "a": [\r\n    1,\n    2\n  ]\n}\n', ['{   "a": [     1,     2   ] }']],
  [`${'x'.repeat(half)}\r\n${'y'.repeat(half)}`, [`${'x'.repeat(half)} ${'y'.repeat(half)}`]],
  ['x\r\n'.repeat(half).trim(), ['x '.repeat(half).trim()]],
  [`{"a":"${'x'.repeat(2 * half)}"}\n[]`, [`{"a":"${'x'.repeat(2 * half)}"}`, '[]']],
  [`{"a":"${'x'.repeat(2 * half)}\n[]`, [`{"a":"${'x'.repeat(2 * half)} []`]],
];

describe('split_element', () => {
  for (const [raw, expected] of split_table) {
    test(`${label(raw)} dá ${expected.length} linha(s)`, async () => {
      const lines = [...(await split_element(Buffer.from(raw as string)))];
      assert.deepEqual(
        lines.map((line) => line.toString()),
        expected,
      );
    });
  }

  test('bytes que não são UTF-8 passam intactos', async () => {
    const [line] = await split_element(Buffer.from([0xe9, 0x0a, 0xff, 0x0d, 0x80]));
    assert.deepEqual(line, Buffer.from([0xe9, 0x20, 0xff, 0x20, 0x80]));
  });
});

describe('parse_element: o tamanho até o qual se examina um elemento', () => {
  test('uma palavra de fim cercada de espaços vale até o limite e é linha acima dele', () => {
    const fits = 'EOF'.padEnd(examined_bytes);
    const larger = 'EOF'.padEnd(examined_bytes + 1);
    assert.equal(parse(fits).kind, 'end');
    assert.equal(parse(larger).kind, 'line');
  });

  test('uma cabeça vale até o limite', () => {
    const bare = 'HTTP 404 {"X-A":""}';
    const value = 'v'.repeat(examined_bytes - bare.length);
    const element = parse(`HTTP 404 {"X-A":"${value}"}`);
    assert.deepEqual(element, {
      kind: 'head',
      is_raw: false,
      status: 404,
      headers: { 'X-A': value },
      dropped: [],
    });
  });

  test('5 MB que começam por E, por H ou por espaço são linhas, sem perder um byte', () => {
    for (const start of ['E', 'HTTP 200 ', '  ']) {
      const raw = Buffer.from(start.padEnd(5_000_000, 'x'));
      const element = parse_element(raw);
      assert.equal(element.kind, 'line');
      assert.ok(element.kind === 'line' && element.bytes.equals(raw));
    }
  });
});

/** Cabeças aceitas, com status e cabeçalhos. */
const head_table: [string, number, Record<string, string | string[]>?][] = [
  ['HTTP 404', 404],
  ['HTTP 404 ', 404],
  ['\t HTTP\t404 \r\n', 404],
  ['HTTP   404   {}', 404],
  ['HTTP 200', 200],
  ['HTTP 201', 201],
  ['HTTP 203', 203],
  ['HTTP 204 {"X-A": "1"}', 204, { 'X-A': '1' }],
  ['HTTP 205', 205],
  ['HTTP 304 {"ETag": "x"}', 304, { ETag: 'x' }],
  ['HTTP 404\n{"X-A": "1"}', 404, { 'X-A': '1' }],
  ['HTTP 206', 206],
  ['HTTP 301 {"Location": "/b"}', 301, { Location: '/b' }],
  ['HTTP 418', 418],
  ['HTTP 599', 599],
  ['HTTP 404 {"Content-Type": "application/json"}', 404, { 'Content-Type': 'application/json' }],
  ['HTTP 404 {\n  "X-A": "1",\r\n  "X-B": "2"\n}\n', 404, { 'X-A': '1', 'X-B': '2' }],
  ['HTTP 429 {"Retry-After": 7, "X-Ok": true}', 429, { 'Retry-After': '7', 'X-Ok': 'true' }],
  [
    'HTTP 200 {"Set-Cookie": ["a=1", "b=2; Path=/"]}',
    200,
    { 'Set-Cookie': ['a=1', 'b=2; Path=/'] },
  ],
  ['HTTP 200 {"X-Vazio": ""}', 200, { 'X-Vazio': '' }],
  ['HTTP 200 {"X-A": "{\\"EOF\\": 1}"}', 200, { 'X-A': '{"EOF": 1}' }],
  ['HTTP 200 {"X-Latin": "ação"}', 200, { 'X-Latin': 'ação' }],
  ['HTTP 200 {"cache-control": "no-cache"}', 200, { 'cache-control': 'no-cache' }],
  ['HTTP 200 {"constructor": "c", "toString": "t"}', 200, { constructor: 'c', toString: 't' }],
];

/** Cabeças que não valem. */
const bad_head_table = [
  'HTTP 0',
  'HTTP 1',
  'HTTP 99',
  'HTTP 100',
  'HTTP 101',
  'HTTP 103',
  'HTTP 199',
  'RAW 99',
  'RAW 200 OK',
  'RAW 2000',
  'RAW 200 {"X-A"}',
  'HTTP 600',
  'HTTP 999',
  'HTTP 0404',
  'HTTP 2000',
  'HTTP 99999',
  'HTTP 404 Not Found',
  'HTTP 404 {"X-A": "1"} sobra',
  'HTTP 404 {',
  'HTTP 404 {X-A: 1}',
  "HTTP 404 {'X-A': '1'}",
  'HTTP 404 {"X-A": "1",}',
  'HTTP 404 {}{}',
  'HTTP 404 []',
  'HTTP 404 [{"X-A": "1"}]',
  'HTTP 404 "X-A"',
  'HTTP 404 null',
  'HTTP 404 1',
];

describe('parse_element: cabeças', () => {
  for (const [raw, status, headers = {}] of head_table) {
    test(`${label(raw)} dá o status ${status}`, () => {
      const head = { kind: 'head', is_raw: false, status, headers, dropped: [] };
      assert.deepEqual(parse(raw), head);
      assert.deepEqual(parse(raw.replace('HTTP', 'RAW')), { ...head, is_raw: true });
    });
  }
  for (const raw of bad_head_table) {
    test(`${label(raw)} é uma linha, e diz por que não é uma cabeça`, () => {
      const element = parse(raw);
      assert.ok(element.kind === 'line');
      assert.deepEqual(element.bytes, Buffer.from(raw));
      assert.match(element.flaw ?? '', /^\S.+/);
    });
  }
});

/** Cabeçalhos que uma cabeça não pode pedir: nome e valor em JSON. */
const refused_header_table: [string, string][] = [
  ['Connection', '"close"'],
  ['connection', '"close"'],
  ['CONTENT-LENGTH', '5'],
  ['Content-Encoding', '"gzip"'],
  ['Transfer-Encoding', '"identity"'],
  ['Keep-Alive', '"timeout=1"'],
  ['Upgrade', '"h2c"'],
  ['TE', '"trailers"'],
  ['Trailer', '"X-A"'],
  ['Date', '"ontem"'],
  ['Server', '"outro"'],
  ['X-Author', '"outro"'],
  ['X-Task-UUID', '"1"'],
  ['x-task-key', '"1"'],
  ['X-Task-List', '"1"'],
  ['Proxy-Connection', '"close"'],
  ['Proxy-Authenticate', '"Basic"'],
  ['', '"1"'],
  ['X A', '"1"'],
  ['X:A', '"1"'],
  ['X-A\\r\\nX-B', '"1"'],
  ['X-Ação', '"1"'],
  ['X-A', '"1\\r\\nX-B: 2"'],
  ['X-A', '"1\\n2"'],
  ['X-A', '"\\u0000"'],
  ['X-A', '"👍"'],
  ['X-A', 'null'],
  ['X-A', '{"b": 1}'],
  ['X-A', '[["b"]]'],
  ['X-A', '["b", null]'],
  ['Set-Cookie', '["a=1", "b\\r\\nX: 1"]'],
];

describe('parse_element: cabeçalhos recusados', () => {
  for (const [name, value] of refused_header_table) {
    test(`${name}: ${value} é recusado, e o resto da cabeça vale`, () => {
      const element = parse(`HTTP 200 {"X-Antes": "a", "${name}": ${value}, "X-Depois": "d"}`);
      const headers = { 'X-Antes': 'a', 'X-Depois': 'd' };
      const dropped = [JSON.parse(`"${name}"`)];
      const head = { kind: 'head', is_raw: false, status: 200, headers, dropped };
      assert.deepEqual(element, head);
    });
  }

  test('em RAW o corpo é do worker: Content-Length, se é um número, e Content-Encoding', () => {
    const body = { 'Content-Length': '5', 'content-encoding': 'gzip' };
    for (const status of [200, 304]) {
      const element = parse(`RAW ${status} ${JSON.stringify({ ...body, Connection: 'close' })}`);
      assert.ok(element.kind === 'head');
      assert.deepEqual([element.headers, element.dropped], [body, ['Connection']]);
    }
    for (const [status, length] of [
      [200, '5x'],
      [200, '-1'],
      [200, ['5', '6']],
      [204, '5'],
      [205, '5'],
    ]) {
      const element = parse(`RAW ${status} ${JSON.stringify({ 'content-length': length })}`);
      assert.ok(element.kind === 'head');
      assert.deepEqual(element.dropped, ['content-length']);
    }
  });

  test('os recusados são dados na ordem em que vieram', () => {
    const element = parse('HTTP 200 {"Server": "a", "X-A": "1", "Date": "b", "Upgrade": "c"}');
    assert.ok(element.kind === 'head');
    assert.deepEqual(element.dropped, ['Server', 'Date', 'Upgrade']);
  });
});

describe('parse_element: __proto__ é um nome como outro', () => {
  for (const value of ['"x"', '["x"]']) {
    test(`{"__proto__": ${value}} não some sem aviso nem muda o protótipo`, () => {
      const element = parse(`HTTP 200 {"__proto__": ${value}, "X-A": "1"}`);
      assert.ok(element.kind === 'head');
      const known = [...Object.keys(element.headers), ...element.dropped].sort();
      assert.deepEqual(known, ['X-A', '__proto__']);
      assert.equal(Array.isArray(Object.getPrototypeOf(element.headers)), false);
    });
  }

  test('{"__proto__": {...}} é recusado como qualquer objeto', () => {
    const element = parse('HTTP 200 {"__proto__": {"X-B": "2"}, "X-A": "1"}');
    assert.ok(element.kind === 'head');
    assert.deepEqual({ ...element.headers }, { 'X-A': '1' });
    assert.deepEqual(element.dropped, ['__proto__']);
    assert.equal(Object.hasOwn(Object.prototype, 'X-B'), false);
  });
});

/** Alvos de pedido e o caminho de cada um. */
const path_table: [string, string][] = [
  ['/', '/'],
  ['', '/'],
  ['/ping', '/ping'],
  ['/ping?x=1', '/ping'],
  ['/ping?', '/ping'],
  ['/ping#topo', '/ping'],
  ['/ping?a#b?c', '/ping'],
  ['?x=1', '/'],
  ['/ping/', '/ping/'],
  ['//ping', '//ping'],
  ['/Ping', '/Ping'],
  ['/%70ing', '/%70ing'],
  ['/a/b%2Fc?d=/e', '/a/b%2Fc'],
  ['http://h/ping', '/ping'],
  ['HTTP://h:8771/ping?x', '/ping'],
  ['http://usuario@[::1]:1/ping', '/ping'],
  ['http://h', '/'],
  ['http://h?x=/ping', '/'],
  ['/http://h/ping', '/http://h/ping'],
  ['*', '*'],
];

/** Alvos e o que a tarefa guarda deles; os de origem, como vieram. */
const url_table: [string, string][] = [
  ['/a/b?c=d', '/a/b?c=d'],
  ['/', '/'],
  ['//a?b#c', '//a?b#c'],
  ['http://h:8771/a/b?c=http://d', '/a/b?c=http://d'],
  ['HTTPS://usuario@[::1]:1/a', '/a'],
  ['http://h', '/'],
  ['http://h?c=/d', '/?c=/d'],
  ['?c=d', '/?c=d'],
  ['/http://h/a', '/http://h/a'],
  ['*', '*'],
];

describe('url_of', () => {
  for (const [target, expected] of url_table) {
    test(`${JSON.stringify(target)} dá ${JSON.stringify(expected)}`, () => {
      assert.equal(url_of(target), expected);
    });
  }
});

describe('path_of', () => {
  for (const [target, expected] of path_table) {
    test(`${JSON.stringify(target)} dá ${JSON.stringify(expected)}`, () => {
      assert.equal(path_of(target), expected);
    });
  }
});

const standard_type = 'application/x-ndjson';

/** Cabeçalhos Accept e o tipo de mídia escolhido. */
const accept_table: [string | undefined, string][] = [
  [undefined, standard_type],
  ['', standard_type],
  ['*/*', standard_type],
  ['application/json', standard_type],
  ['text/event-stream, application/json', 'text/event-stream'],
  ['application/x-ndjson', standard_type],
  ['application/json-lines', 'application/json-lines'],
  ['application/jsonl', 'application/jsonl'],
  ['Application/JSON-Lines', 'application/json-lines'],
  [' application/jsonl ; q=0.5', 'application/jsonl'],
  ['text/html, application/jsonl;q=0.9, */*;q=0.1', 'application/jsonl'],
  ['application/jsonl, application/json-lines', 'application/jsonl'],
  ['application/x-ndjson, application/jsonl', standard_type],
  ['application/jsonlx', standard_type],
  ['x-application/jsonl', standard_type],
  ['application/json, text/event-stream', 'text/event-stream'],
  ['text/event-stream, application/jsonl', 'text/event-stream'],
  ['application/jsonl, text/event-stream', 'application/jsonl'],
  ['text/event-stream;q=0, application/jsonl', 'application/jsonl'],
  ['text/*', standard_type],
  ['text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8', 'text/plain'],
  ['TEXT/HTML', 'text/plain'],
  ['text/html;q=0, */*', standard_type],
  ['text/html, text/event-stream', 'text/event-stream'],
  ['text/html, application/x-ndjson', standard_type],
  ['text/plain', standard_type],
];

describe('choose_media_type', () => {
  for (const [accept, expected] of accept_table) {
    test(`${JSON.stringify(accept)} escolhe ${expected}`, () => {
      assert.equal(choose_media_type(accept), expected);
    });
  }
});

/** Cabeçalhos como o Node os dá, e como vão na tarefa. */
const header_table: [string[], [string, string][]][] = [
  [[], []],
  [['content-type', 'a/b'], [['Content-Type', 'a/b']]],
  [['X-API-KEY', 'Segredo'], [['X-Api-Key', 'Segredo']]],
  [
    ['x', '1', 'y', ''],
    [
      ['X', '1'],
      ['Y', ''],
    ],
  ],
  [['accept', 'a', 'Accept', 'b', 'ACCEPT', 'c'], [['Accept', 'a, b, c']]],
  [['cookie', 'a=1', 'cookie', 'b=2'], [['Cookie', 'a=1; b=2']]],
  [
    ['x-1a', '1', 'x_b-c', '2'],
    [
      ['X-1a', '1'],
      ['X-B-C', '2'],
    ],
  ],
  [['x_under', '1', 'X-Under', '2'], [['X-Under', '1, 2']]],
  [['sobra'], []],
];

describe('collect_headers', () => {
  for (const [raw, expected] of header_table) {
    test(`${JSON.stringify(raw)} dá ${JSON.stringify(expected)}`, () => {
      assert.deepEqual(Object.entries(collect_headers(raw)), expected);
    });
  }

  test('um cabeçalho __proto__ chega à tarefa como qualquer outro', () => {
    const headers = collect_headers(['__proto__', 'x', 'constructor', 'y', 'a', '1']);
    assert.equal(JSON.stringify(headers), '{"--Proto--":"x","Constructor":"y","A":"1"}');
    assert.equal(Object.getPrototypeOf(headers), Object.prototype);
  });
});

describe('prazos', () => {
  /** Ocupa o laço de eventos por `turns` voltas, de 20 ms cada uma. */
  const hog_loop = async (turns: number) => {
    for (let turn = 0; turn < turns; turn += 1) {
      for (const from = performance.now(); performance.now() - from < 20; );
      await new Promise(setImmediate);
    }
  };

  test('quem pouco roda conta batidas, e não o relógio', async () => {
    const coming = hog_loop(6).then(() => 'veio');
    assert.equal(await within(coming, 80), 'veio');
  });

  test('o que não vem é um erro que diz o prazo', async () => {
    await assert.rejects(within(new Promise(() => {}), 80), /sem resposta em 80 ms/);
  });
});
