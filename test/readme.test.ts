/*
 * O README e o manual dizem o que o programa faz: as tabelas de configurações, etiquetas, fins,
 * status e recusas são conferidas com o fonte, os dois idiomas um com o outro, e os workers de dez
 * linhas rodam.
 */

import assert from 'node:assert/strict';
import {
  existsSync as file_exists,
  readdirSync as list_dir,
  readFileSync as read_file,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import { describe } from 'node:test';
import { metrics_table, refusal_rules, settings_table, version } from '../json-proxy';
import { serve } from '../scripts/worker/worker';
import {
  brisk,
  connect_redis,
  fetch_all,
  start_program,
  start_proxy,
  start_redis,
  start_scene,
  start_worker,
  temp_dir,
  test,
  until,
} from './harness';
import { labels_of, start_metered } from './metrics_helpers';
import {
  code_spans,
  create_user,
  denied_objects,
  type manual,
  type manual_table,
  read_manual,
  start_manual_worker,
} from './readme_helpers';

type both_languages = [english: manual, portuguese: manual];

const fronts: both_languages = [read_manual('README.md'), read_manual('README.pt-BR.md')];
const manuals: both_languages = [read_manual('MANUAL.md'), read_manual('MANUAL.pt-BR.md')];
const guides: both_languages = [
  read_manual('CONTRIBUTING.md'),
  read_manual('CONTRIBUTING.pt-BR.md'),
];
const pairs = [fronts, manuals, guides];
const program = read_file('json-proxy.ts', 'utf8');
const package_json = JSON.parse(read_file('package.json', 'utf8'));

/** Trechos de código que são palavras, e por isso mudam de um idioma para o outro. */
const translated_spans = new Map([
  ['host:port', 'host:porta'],
  ['host:port/db', 'host:porta/banco'],
  ['/db', '/banco'],
  ['redis://user:password@host:port/db', 'redis://usuário:senha@host:porta/banco'],
  [
    'sentinel://user:password@a:26379,b:26379/name/db',
    'sentinel://usuário:senha@a:26379,b:26379/nome/banco',
  ],
  ['cluster://user:password@a:6379,b:6379', 'cluster://usuário:senha@a:6379,b:6379'],
  ['HTTP <status> {"Name": "value"}', 'HTTP <status> {"Nome": "valor"}'],
  ['RAW <status> {"Name": "value"}', 'RAW <status> {"Nome": "valor"}'],
  ['name=value', 'nome=valor'],
  ['NAME=value', 'NOME=valor'],
]);

/** Os prazos e limites de que o manual fala: a constante do programa, e onde o manual a diz. */
const cited_limits: [constant: string, english: string, portuguese: string][] = [
  ['keep_alive_ms = 76_000', 'Idle connections are kept for 76 s', 'são mantidas por 76 s'],
  ['headers_limit_ms = 30_000', 'headers must come within 30 s', 'cabeçalhos devem vir em 30 s'],
  ['request_limit_ms = 300_000', 'whole request within 300 s', 'o pedido inteiro em 300 s'],
  ['body_limit_ms = 30_000', '30 s without a byte of the body', '30 s sem um byte do corpo'],
  ['max_head_bytes = 64 * 1024', 'longer than 64 KiB', 'passa de 64 KiB'],
  ['max_batch = { lines: 512,', '1, 2, 4 … 512', '1, 2, 4 … 512'],
  ['max_batch = { lines: 512, bytes: 256 * 1024 }', 'under 256 KiB', 'abaixo de 256 KiB'],
  ['safety_poll = { every_ms: 60_000,', 'only every 45 to 75 s', 'a cada 45 a 75 s'],
  ['renewals_per_ttl = 3', 'three times per `REDIS_TTL`', 'três vezes por `REDIS_TTL`'],
  ['silence_limit_ms = { plain: 15_000,', 'replaced after 15 s', 'trocada depois de 15 s'],
  ['plain: 15_000, tls: 60_000 }', 'over TLS after 60 s', 'sobre TLS, de 60 s'],
  ['max_pipelined = 64', 'At most 64 requests', 'No máximo 64 pedidos'],
  ['replace_ms = { first: 100,', 'replaced after 100 ms', 'substituído depois de 100 ms'],
  ['first: 100, last: 10_000,', 'up to 10 s; one that', 'até 10 s; um que'],
  ['last: 10_000, settled: 60_000 }', 'lives for 60 s', 'viva 60 s'],
  ['report_every_ms = 1000', 'report to it every second', 'se reportam a cada segundo'],
  ['certificate_check_ms = 10_000', 'read again every 10 s', 'relidos a cada 10 s'],
  ['ping_limit_ms = 1500', '`/ping`, after 1.5 s', '`/ping`, depois de 1,5 s'],
  ['farewell_ms = 3000', 'up to 3 s more', 'até 3 s mais'],
  ['connect_limit_ms = 3500', 'Silence of 3.5 s', 'o silêncio de 3,5 s'],
  ['logged_refusals = { count: 100,', '100 in a minute', '100 por minuto'],
  ['guessing = { free: 10, delay_ms: 1000,', 'waits a second', 'espera um segundo'],
  ['max_log_waiting = 1024 * 1024', 'fallen behind by 1 MiB', '1 MiB de atraso'],
  ['least_adopted_ttl_s = 600', 'never less than 600', 'nunca menos de 600'],
  ['max_logged_text = 300', 'cut at 300 characters', 'cortados em 300 caracteres'],
];

/**
 * Acha uma tabela pelo título da primeira coluna em inglês; no outro idioma, pela posição.
 * @param manual o manual em que se quer a tabela
 * @param title título da primeira coluna, em inglês
 * @returns a tabela
 */
function table_of(manual: manual, title: string): manual_table {
  const [original] = pairs.find((pair) => pair.includes(manual)) ?? assert.fail(manual.file);
  const index = original.tables.findIndex(({ header }) => header[0] === title);
  const table = manual.tables[index];
  assert.ok(table, `${manual.file}: não há tabela "${title}"`);
  return table;
}

/**
 * Dá o que está entre crases na primeira coluna de uma tabela.
 * @param manual o manual
 * @param title título da primeira coluna, em inglês
 * @returns os nomes, na ordem
 */
function first_column(manual: manual, title: string): string[] {
  return table_of(manual, title).rows.flatMap(([cell = '']) => code_spans(cell));
}

/**
 * Acha as chamadas de log no fonte.
 * @returns nível e campos por etiqueta; sem campos quando a chamada não os escreve ali mesmo
 * @throws AssertionError se há uma chamada de outra forma
 */
function logged_tags(): Map<string, { levels: Set<string>; fields: Set<string> }> {
  const calls = [...program.matchAll(/\blog\(\s*([^,]+),\s*'(\w+)',\s*(\w+|\{[^}]*\})/g)];
  const written = program.match(/(?<!function )\blog\(/g) ?? [];
  assert.equal(calls.length, written.length, 'chamadas de log que o teste não reconhece');
  const deaths = [...program.matchAll(/\bdie\((\{[^}]*\})/g)];
  const tags = new Map<string, { levels: Set<string>; fields: Set<string> }>();
  const found: string[][] = calls.map(([, ...parts]) => parts);
  for (const [, fields = ''] of deaths) found.push(["'error'", 'fatal', fields]);
  for (const [level = '', tag = '', fields = ''] of found) {
    const entry = tags.get(tag) ?? { levels: new Set(), fields: new Set() };
    const is_ending = level.endsWith('.level'); // a gravidade de um fim está na tabela deles
    const words = is_ending ? program.matchAll(/level: '(\w+)'/g) : level.matchAll(/'(\w+)'/g);
    for (const [, name = ''] of words) entry.levels.add(name);
    const names = [...fields.matchAll(/[{,]\s*(\w+)\s*(?=[:,}])/g)];
    for (const [, name = ''] of names) entry.fields.add(name);
    tags.set(tag, entry);
  }
  return tags;
}

/**
 * Dá o nome que o GitHub usa para a âncora de um título.
 * @param heading por exemplo "## Atrás do nginx"
 * @returns por exemplo "atrás-do-nginx"
 */
function anchor_of(heading: string): string {
  const text = heading.replace(/^#+ /, '').toLowerCase();
  return text.replace(/[^\p{L}\p{N}\s_-]/gu, '').replace(/\s/g, '-');
}

/**
 * Dá os elos de um manual, salvo os que saem do projeto.
 * @param manual o manual
 * @returns por elo, o que está escrito nele, o arquivo, e a posição do título a que leva: -1 se não
 *   há esse título, 0 se é o arquivo inteiro
 */
function links_of(manual: manual): { target: string; file: string; heading: number }[] {
  const links = [...manual.prose.matchAll(/\]\(([^)]+)\)/g)].map(([, target = '']) => target);
  const inner = links.filter((target) => !target.startsWith('https://'));
  return inner.map((target) => {
    const [file = '', anchor] = target.split('#');
    const there = pairs.flat().find((other) => other.file === (file || manual.file));
    const heading = anchor ? there?.headings.map(anchor_of).indexOf(anchor) : 0;
    return { target, file: file || manual.file, heading: heading ?? -1 };
  });
}

describe('os manuais e o programa', () => {
  test('a tabela de configurações é a do programa, na mesma ordem', () => {
    const expected = settings_table.map(({ name, short, long, fallback }) => ({
      name: [name],
      flags: [...(short ? [`-${short}`] : []), `--${long}`],
      fallback: fallback === '' ? [] : [fallback],
    }));
    for (const manual of manuals) {
      const shown = table_of(manual, 'Variable').rows.map(([name = '', flags = '', text = '']) => ({
        name: code_spans(name),
        flags: code_spans(flags),
        fallback: code_spans(text),
      }));
      assert.deepEqual(shown, expected, manual.file);
    }
  });

  test('as quinze do README são as dez da especificação e mais cinco, como no manual', () => {
    fronts.forEach((front, language) => {
      const [known = [], shown = []] = [manuals[language] ?? front, front].map((manual) =>
        table_of(manual, 'Variable').rows.map((row) => row.slice(0, 3)),
      );
      assert.deepEqual(shown.slice(0, 10), known.slice(0, 10), front.file);
      const same = known.filter(([name]) => shown.some(([other]) => other === name));
      assert.deepEqual(shown, same, front.file);
      assert.equal(shown.length, 15, front.file);
    });
  });

  test('os limites e as unidades dos números são os que o programa aceita', () => {
    let numbers = 0;
    for (const { name, read } of settings_table) {
      let accepted = '';
      try {
        read('x');
      } catch (error) {
        accepted = (error as Error).message;
      }
      const [, limits = ''] = /^um inteiro de (\d+ a \d+.*)$/.exec(accepted) ?? [];
      if (!limits) continue;
      numbers += 1;
      const expected = [limits.replace(' a ', ' to '), limits];
      manuals.forEach((manual, index) => {
        const row = table_of(manual, 'Variable').rows.find(([cell]) => cell === `\`${name}\``);
        assert.equal(row?.[3], expected[index], `${manual.file}: ${name}`);
      });
    }
    assert.equal(numbers, 12);
  });

  test('os prazos e limites citados são as constantes do programa', () => {
    const texts = manuals.map(({ prose }) => prose.replace(/\s+/g, ' '));
    for (const [constant, ...cited] of cited_limits) {
      assert.ok(program.includes(constant), constant);
      cited.forEach((text, index) => {
        assert.ok(texts[index]?.includes(text), `${constant}: "${text}"`);
      });
    }
  });

  test('toda etiqueta de log está nos manuais, com níveis e campos, e nenhuma a mais', () => {
    const tags = logged_tags();
    for (const manual of manuals) {
      const rows = table_of(manual, 'Tag').rows;
      assert.deepEqual(first_column(manual, 'Tag').sort(), [...tags.keys()].sort(), manual.file);
      for (const [tag = '', levels = '', fields = ''] of rows) {
        const logged = tags.get(tag.replaceAll('`', ''));
        assert.deepEqual(levels.split(', ').sort(), [...(logged?.levels ?? [])].sort(), tag);
        if (!logged || logged.fields.size === 0) continue; // os de "end" são conferidos ao rodar
        assert.deepEqual(code_spans(fields).sort(), [...logged.fields].sort(), tag);
      }
    }
  });

  test('os seis fins são os do programa', () => {
    const [, rules = ''] = /const ending_rules[^{]*\{\n([\s\S]*?)^\};/m.exec(program) ?? [];
    const endings = [...rules.matchAll(/^ {2}(\w+): \{/gm)].map(([, name]) => name);
    assert.equal(endings.length, 6);
    for (const manual of manuals) assert.deepEqual(first_column(manual, 'Ending'), endings);
  });

  test('cada recusa está no manual, com seu status e seu texto', () => {
    const refusals = Object.values(refusal_rules).map(({ status, text }) => [
      String(status),
      `\`${text.replace('%', 'N')}\``,
    ]);
    const fine = ['200', '200–599', '204'].map((status) => [status, '–']);
    for (const manual of manuals) {
      const shown = table_of(manual, 'Status').rows.map((row) => row.slice(0, 2));
      assert.deepEqual(shown, [...fine, ...refusals], manual.file);
    }
  });

  test('as métricas são as do programa, e os status das recusas são todos os que há', () => {
    const expected = metrics_table.map((row) => [row.name, row.type, labels_of(row).join()]);
    const refusals = metrics_table.find(({ name }) => name === 'json_proxy_refusals_total');
    const counted = Object.keys(refusals?.read() ?? {}).map((label) => label.replace(/\D/g, ''));
    for (const manual of manuals) {
      const rows = table_of(manual, 'Metric').rows.map(([name = '', type, labels = '']) => [
        ...code_spans(name),
        type,
        code_spans(labels).join(),
      ]);
      assert.deepEqual(rows, expected, manual.file);
      const shown = table_of(manual, 'Status').rows.map(([cell = '']) => cell);
      const errors = new Set(shown.filter((status) => /^[45]\d\d$/.test(status)));
      assert.deepEqual(counted, [...errors], manual.file);
    }
  });

  test('os campos da tarefa, as palavras de fim e os cabeçalhos recusados conferem', () => {
    const [, record = ''] = /type task_record = \{\n([\s\S]*?)^\};/m.exec(program) ?? [];
    const fields = [...record.matchAll(/^ {2}(\w+)\??:/gm)].map(([, name]) => name);
    const [, words = ''] = /end_words = new Set\(\[(.*?)\]\)/.exec(program) ?? [];
    const patterns = [...program.matchAll(/(?:reserved|body)_header =\s*\/(.*)\/i;/g)];
    const reserved = patterns.map(([, pattern]) => pattern).join('|');
    assert.ok(fields.length > 5 && words && patterns.length === 2);
    for (const manual of manuals) {
      assert.deepEqual(first_column(manual, 'Field').sort(), fields.toSorted(), manual.file);
      const elements = first_column(manual, 'Element of the list').map((word) => `'${word}'`);
      const others = ["'HTTP <status> …'", "'RAW <status> …'", "'HTTP ABORT'"];
      assert.deepEqual(elements, [...words.split(', '), ...others], manual.file);
      const [list = ''] =
        /^- (Refused headers|Cabeçalhos recusados):[\s\S]*?\./m.exec(manual.prose) ?? [];
      const names = code_spans(list);
      assert.equal(names.length, 15);
      for (const name of names) {
        assert.match(name.replace('*', 'x'), new RegExp(reserved, 'i'), `${manual.file}: ${name}`);
      }
    }
  });

  test('os motivos de fatal e redis_down são os que o programa dá, na mesma ordem', () => {
    const explainers = program.match(/^function explain_\w+[\s\S]*?^}/gm) ?? [];
    const texts = [...explainers.join('').matchAll(/(?:\/i?,|hang_up,|\w:)\s+['`]([^;'`]+)/g)];
    const expected = [...new Set(texts.map(([, text]) => text))];
    assert.ok(explainers.length === 2 && expected.length > 15);
    for (const manual of manuals) assert.deepEqual(first_column(manual, 'Reason'), expected);
  });

  test('as mensagens citadas existem no programa', () => {
    for (const manual of manuals) {
      const errors = [...manual.prose.matchAll(/\{"error": "([^".]+)"\}/g)].map(([, text]) => text);
      assert.ok(errors.length > 4, manual.file);
      for (const text of errors) {
        if (text === 'event-driver unavailable') continue; // é do programa original
        assert.ok(program.includes(text ?? ''), `${manual.file}: ${text}`);
      }
    }
  });
});

describe('os manuais e o projeto', () => {
  test('todo comando npm citado existe, e todo comando que existe é citado', () => {
    const public_scripts = Object.keys(package_json.scripts).filter((name) => !/^pre/.test(name));
    for (const manual of manuals) {
      const text = manual.prose + manual.blocks.map((block) => block.text).join('');
      const named = [...text.matchAll(/npm (?:run ([\w:]+)|(test|start))/g)];
      const names = new Set(named.map(([, run, short]) => run ?? short ?? ''));
      assert.deepEqual([...names].sort(), public_scripts.toSorted(), manual.file);
    }
    for (const front of fronts) {
      const text = front.prose + front.blocks.map((block) => block.text).join('');
      const named = [...text.matchAll(/npm run ([\w:]+)/g)].map(([, name = '']) => name);
      for (const name of named) assert.ok(public_scripts.includes(name), `${front.file}: ${name}`);
    }
  });

  test('a entrada é curta: o README cabe em 350 linhas', () => {
    for (const { file } of fronts) {
      const lines = read_file(file, 'utf8').trimEnd().split('\n').length;
      assert.ok(lines <= 350, `${file}: ${lines} linhas`);
    }
  });

  test('o sumário do manual tem todos os títulos, na ordem', () => {
    for (const { file, headings, prose } of manuals) {
      const [summary = ''] = /^- [\s\S]*?^## /m.exec(prose) ?? [];
      const listed = [...summary.matchAll(/\[([^\]]+)\]\(#/g)].map(([, text]) => text);
      assert.deepEqual(
        listed,
        headings.slice(1).map((text) => text.replace(/^#+ /, '')),
        file,
      );
    }
  });

  test('a versão é a mesma no pacote, no programa e no topo do CHANGELOG', () => {
    const changelog = read_file('CHANGELOG.md', 'utf8');
    const [, newest] = /^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$/m.exec(changelog) ?? [];
    assert.equal(newest, version);
    assert.equal(package_json.version, version);
  });

  test('os elos levam a arquivos e títulos que existem', () => {
    for (const manual of pairs.flat()) {
      const links = links_of(manual);
      assert.ok(links.length >= 3, manual.file);
      for (const { target, file, heading } of links) {
        assert.ok(file_exists(file) && heading >= 0, `${manual.file}: ${target}`);
      }
      const files = code_spans(manual.prose).filter((span) => /^(scripts|test)\/\S+$/.test(span));
      for (const file of files) assert.ok(file_exists(file), `${manual.file}: ${file}`);
    }
  });
});

describe('o guia de quem contribui', () => {
  test('cabe em cem linhas, e os comandos que dá existem', () => {
    for (const { file, blocks } of guides) {
      assert.ok(read_file(file, 'utf8').trimEnd().split('\n').length <= 100, file);
      const named = blocks.flatMap(({ text }) => [...text.matchAll(/npm run ([\w:]+)/g)]);
      assert.ok(named.length > 0);
      for (const [, name = ''] of named) assert.ok(name in package_json.scripts, name);
    }
  });

  test('dá os testes de cada seção do programa, na ordem dele, e não esquece nenhum', () => {
    const sections = [...program.matchAll(/^\/\/ ── (.+?) ─/gm)].map(([, name]) => name);
    for (const guide of guides) {
      const shown = table_of(guide, 'Section').rows.map(([name]) => name);
      assert.deepEqual(shown, sections, guide.file);
      const named = new Set(code_spans(guide.prose));
      const files = list_dir('test').filter((name) => name.endsWith('.test.ts'));
      for (const name of files) assert.ok(named.has(`test/${name}`), `${guide.file}: ${name}`);
    }
  });

  test('dá todos os quartos de scripts/, e onde uma configuração nova mexe', () => {
    for (const guide of guides) {
      const rooms = list_dir('scripts').map((name) => `scripts/${name}/`);
      assert.deepEqual(first_column(guide, 'Room').sort(), rooms.sort(), guide.file);
      const [, text = ''] =
        /^## (?:A new setting|Uma configuração nova)\n([^#]*)/m.exec(guide.prose) ?? [];
      const places = code_spans(text).filter((span) => /\.\w+$/.test(span));
      assert.ok(places.length === 6, places.join());
      for (const file of places) assert.ok(read_file(file, 'utf8').includes('HEARTBEAT'), file);
    }
  });
});

for (const pair of pairs) {
  const [original, twin] = pair;
  describe(`os dois idiomas de ${original.file}`, () => {
    test('têm os mesmos títulos, nos mesmos níveis', () => {
      const levels = pair.map(({ headings }) => headings.map((text) => text.replace(/[^#]/g, '')));
      assert.deepEqual(levels[0], levels[1]);
      assert.ok((levels[0]?.length ?? 0) > (pair === guides ? 5 : 8));
    });

    test('têm os mesmos blocos de código, salvo comentários e textos corridos', () => {
      const blocks = pair.map((manual) =>
        manual.blocks.map(({ language, text }) => {
          const code = text.replace(/[ \t]+(#|\/\/) .*$/gm, '');
          return { language, code: language === 'text' ? '' : code };
        }),
      );
      assert.deepEqual(blocks[0], blocks[1]);
      assert.ok((blocks[0]?.length ?? 0) > (pair === guides ? 0 : 7));
    });

    test('têm as mesmas tabelas, com as mesmas linhas e colunas', () => {
      const shapes = pair.map(({ tables }) =>
        tables.map(({ header, rows }) => [header.length, ...rows.map((row) => row.length)]),
      );
      assert.deepEqual(shapes[0], shapes[1]);
      for (const [columns, ...rows] of shapes[0] ?? []) {
        for (const cells of rows) assert.equal(cells, columns);
      }
    });

    test('citam os mesmos nomes, valores e comandos, e levam aos mesmos lugares', () => {
      const translate = (span: string) => translated_spans.get(span) ?? span;
      const expected = code_spans(original.prose).map(translate).sort();
      assert.deepEqual(code_spans(twin.prose).sort(), expected);
      const places = pair.map((manual) =>
        links_of(manual).map(({ file, heading }) => `${file.replace('.pt-BR', '')} ${heading}`),
      );
      assert.deepEqual(places[0], places[1]);
    });
  });
}

describe('os workers de dez linhas', () => {
  test('o de TypeScript atende, e o log do proxy tem os campos que o manual diz', async () => {
    const node = process.execPath;
    const options = ['--import', 'tsx'];
    const { proxy, worker, client } = await start_manual_worker(
      'ts',
      'my_worker.mts',
      node,
      options,
    );
    for (const body of ['olá', '{"b": 2}']) {
      const reply = await fetch_all(proxy, { body });
      const lines = [1, 2, 3].map((n) => `${JSON.stringify({ n, body })}\n`);
      assert.equal(reply.body, lines.join(''));
    }
    assert.deepEqual(await client.keys('*'), []);
    assert.equal(worker.stderr(), '');
    const rows = table_of(manuals[0], 'Tag').rows;
    await proxy.wait_for(/(?: end task=.*\n[\s\S]*){2}/); // o cliente pode ver o fim antes do log
    const lines = proxy.stdout().trimEnd().split('\n');
    assert.equal(lines.length, 7);
    for (const line of lines) {
      const [, tag = '', ...words] = line.split(' ');
      const row = rows.find(([cell]) => cell === `\`${tag}\``) ?? [];
      const is_plain = (name: string) =>
        name !== 'workers' && (!/^(end|wakeup)$/.test(tag) || name !== 'reason');
      const fields = code_spans(row[2] ?? '').filter(is_plain);
      assert.deepEqual(
        words.map((word) => word.split('=', 1)[0]),
        fields,
        line,
      );
    }
  });

  test('o de shell atende', async () => {
    const { proxy, worker, client } = await start_manual_worker('sh', 'my_worker.sh', 'sh');
    const reply = await fetch_all(proxy, { body: 'olá' });
    assert.equal(reply.body, '{"n": 1}\n{"n": 2}\n{"n": 3}\n');
    assert.deepEqual(await client.keys('*'), []);
    assert.equal(worker.stderr(), '');
  });

  test('os do kit atendem, em TypeScript e em shell', async () => {
    const node = process.execPath;
    const options = ['--import', 'tsx'];
    const body = 'olá';
    const expected: Record<string, unknown[]> = {
      ts: [1, 2, 3].map((n) => ({ n, body })),
      sh: [1, 2, 3].map((n) => ({ n })),
    };
    const started = [
      start_manual_worker('ts', 'answer.mts', node, options, 'worker.ts'),
      start_manual_worker('sh', 'answer.sh', 'sh', [], 'worker.sh'),
    ];
    for (const [index, language] of ['ts', 'sh'].entries()) {
      const { proxy, worker, client } = (await started[index]) ?? assert.fail();
      const lines = (await fetch_all(proxy, { body })).body.trimEnd().split('\n');
      assert.deepEqual(
        lines.map((line) => JSON.parse(line)),
        expected[language],
      );
      assert.deepEqual(await client.keys('*'), []);
      assert.equal(worker.stderr(), '');
    }
  });
});

test('o código da página mostra cada linha quando ela chega', async () => {
  const texts = fronts[0].blocks.map(({ text }) => text);
  const code = texts.find((text) => text.includes('await fetch(')) ?? '';
  const redis = await start_redis();
  const { proxy, worker, db } = await start_scene(redis, brisk);
  assert.ok(code.includes('127.0.0.1:8771'));
  const file = path.join(temp_dir(), 'page.mjs');
  write_file(file, code.replace('127.0.0.1:8771', `127.0.0.1:${proxy.port}`));
  const page = start_program(process.execPath, [file]);
  const { task_key, task_list, body } = await worker.next();
  assert.equal(body, 'olá');
  for (const n of [1, 2]) {
    await db.rPush(task_list, JSON.stringify({ n, long: 'á'.repeat(100_000) }));
    await page.wait_for(new RegExp(`n: ${n},`));
  }
  await db.del(task_key);
  assert.equal(await page.exited, 0, page.stderr());
});

describe('um usuário do Redis só com os comandos do manual basta', () => {
  test('para o proxy', async () => {
    const redis = await start_redis();
    const worker = await start_worker(redis);
    const name = await create_user(worker.client, 'The proxy');
    await worker.client.rPush('ndjson_list_0d0a4f6e-0d3c-4b1e-9d53-2f8a4a3c9b11', 'abandonada');
    const server = `redis://${name}:${name}@${redis.server}`;
    const proxy = await start_proxy({ server }, ['-t', '300', '-i', '5', '--ttl', '1']);
    await proxy.wait_for(/ sweep adopted=1 /);
    const silent = await fetch_all(proxy);
    assert.equal(silent.body, '{"error": "timeout"}\n');
    worker.pending.shift();
    const served = fetch_all(proxy);
    const task = await worker.next();
    await worker.client.rPush(task.task_list, ['a', 'EOF']);
    assert.equal((await served).body, 'a\n');
    assert.deepEqual(await denied_objects(worker.client), []);
  });

  test('para o proxy com um stream', async () => {
    const redis = await start_redis();
    const worker = await start_worker(redis);
    const name = await create_user(worker.client, 'The proxy', ['ndjson_jobs'], true);
    const server = `redis://${name}:${name}@${redis.server}`;
    const proxy = await start_metered({ server }, [...brisk, '--stream', 'ndjson_tasks']);
    const reply = fetch_all(proxy);
    const task = await worker.next();
    const waiting = 'json_proxy_queue_tasks{state="waiting"} 1\n';
    await until('uma à espera', async () => {
      return (await fetch_all(proxy.metrics, { path: '/metrics' })).body.includes(waiting);
    });
    await worker.client.rPush(task.task_list, ['a', 'EOF']);
    assert.equal((await reply).body, 'a\n');
    assert.deepEqual(await denied_objects(worker.client), []);
  });

  for (const stream of ['', 'ndjson_tasks']) {
    test(`para um worker do kit${stream && ' que lê um stream'}`, async () => {
      const redis = await start_redis();
      const db = await connect_redis(redis);
      const name = await create_user(db, 'A worker of the kit', ['ndjson_jobs'], stream !== '');
      const proxy = await start_proxy(redis, [...brisk, '--stream', stream]);
      const stopping = new AbortController();
      const server = `redis://${name}:${name}@${redis.server}`;
      const has_run = async (command: string) =>
        (await db.info('commandstats')).includes(`cmdstat_${command}:`);
      const answer = async function* ({ body }: { body: string }) {
        yield body;
        if (stream) await until('um sinal de vida', () => has_run('xclaim'));
        yield body;
      };
      if (stream) {
        // o que um worker que sumiu deixou de uma tarefa que já não existe
        await db.xGroupCreate(stream, 'ndjson_workers', '0', { MKSTREAM: true });
        const id = await db.xAdd(stream, '*', { task_key: 'ndjson_task_a' });
        await db.xReadGroup('ndjson_workers', 'morto', { key: stream, id: '>' });
        const left = { IDLE: 1_000_000 };
        await db.xClaim(stream, 'ndjson_workers', 'morto', 0, id, left);
      }
      const log: string[] = [];
      const options = { redis: server, stream, stop: stopping.signal, backlog: 1 };
      const serving = serve(answer, { ...options, log: (text) => log.push(text) });
      await until('o worker de pé', () => log.some((text) => text.startsWith('ouvindo ')));
      const reply = await fetch_all(proxy, { body: 'olá' });
      stopping.abort();
      await serving;
      assert.equal(reply.body, 'olá\nolá\n');
      assert.equal(await has_run('xrange'), stream !== '');
      assert.deepEqual(await denied_objects(db), []);
    });
  }
});
