/*
 * O banco de provas: as contas, os gráficos e as opções sobre números dados, e uma medição pequena
 * de verdade. Nenhum número medido é julgado aqui, só que as contas fecham.
 */

import assert from 'node:assert/strict';
import {
  existsSync as file_exists,
  readFileSync as read_file,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import { describe } from 'node:test';
import type { measurement } from '../../scripts/bench/context';
import { draw_charts } from '../../scripts/bench/draw';
import { read_options } from '../../scripts/bench/options';
import {
  derive_ratios,
  format_number,
  limit_line,
  spread_of,
  summarize_rows,
  text_report,
} from '../../scripts/bench/report';
import { make_line, make_meter, read_order, summarize } from '../../scripts/bench/roles/lines';
import { option_error } from '../../scripts/dev/options';
import { program_file, start_program, temp_dir, test } from '../harness';

const root = path.join(__dirname, '..', '..');
const bench = ['--import', 'tsx', 'scripts/bench/bench.ts'];
const scenarios = ['latency', 'tasks', 'bulk', 'idle', 'workers', 'growth'];

/**
 * Monta as voltas de uma variante.
 * @param where prova, caso e variante
 * @param name o nome do número
 * @param numbers um por volta
 * @returns as medições
 */
function make_rows(
  where: [scenario: string, case_name: string, variant: string],
  name: string,
  numbers: number[],
): measurement[] {
  const [scenario, case_name, variant] = where;
  return numbers.map((value, index) => {
    return { scenario, case_name, variant, round: index + 1, values: { [name]: value } };
  });
}

const rows = [
  ...make_rows(['bulk', '1 fluxo', 'json-proxy'], 'rate', [90, 70, 80]),
  ...make_rows(['bulk', '1 fluxo', 'piso lpop 128'], 'rate', [50, 50, 50]),
  ...make_rows(['bulk', '1 fluxo', 'piso lpop 512'], 'rate', [100, 100, 100]),
  ...make_rows(['bulk', '1 fluxo', 'webdis'], 'rate', [20, 16, 10]),
  ...make_rows(['tasks', '50 conexões', 'json-proxy'], 'rate', [599, 599]),
  ...make_rows(['tasks', '50 conexões', 'piso http+redis'], 'rate', [1000, 1000]),
];

/**
 * Roda o banco de provas.
 * @param args opções
 * @returns o código de saída e as saídas
 */
async function run_bench(...args: string[]) {
  const program = start_program(process.execPath, [...bench, ...args], {}, root);
  const code = await program.exited;
  return { code, stdout: program.stdout(), stderr: program.stderr() };
}

/**
 * Confere que um SVG é XML bem formado: toda marca aberta é fechada, na ordem.
 * @param text o SVG
 */
function check_xml(text: string): void {
  const open: string[] = [];
  const rest = text.replace(
    /<(\/?)(\w+)((?: [\w-]+="[^"<&]*"|\s)*)(\/?)>/g,
    (_, closing, name, __, empty) => {
      if (closing) assert.equal(open.pop(), name);
      else if (!empty) open.push(name);
      return '';
    },
  );
  assert.deepEqual(open, []);
  assert.doesNotMatch(rest, /[<>]/);
  assert.doesNotMatch(rest, /&(?!amp;|lt;|gt;|quot;)/);
}

describe('as contas', () => {
  test('a mediana e os extremos', () => {
    assert.deepEqual(spread_of([3, 1, 2]), { median: 2, min: 1, max: 3 });
    assert.deepEqual(spread_of([4, 1, 2, 3]), { median: 2.5, min: 1, max: 4 });
    assert.ok(Number.isNaN(spread_of([]).median));
  });

  test('os percentis', () => {
    const samples = Float64Array.from({ length: 200 }, (_, index) => 200 - index);
    assert.deepEqual(summarize(samples), { p50: 100, p90: 180, p99: 198, max: 200, samples: 200 });
  });

  test('as razões usam medianas, o melhor piso, e só existem com os dois lados', () => {
    const ratios = derive_ratios(summarize_rows(rows));
    assert.deepEqual(
      ratios.map(({ scenario, name, value, met }) => [scenario, name, value, met]),
      [
        ['bulk', '1 fluxo: ÷ melhor piso lpop', 0.8, true],
        ['bulk', '1 fluxo: ÷ webdis', 5, false],
        ['tasks', '÷ piso http+redis', 0.599, false],
      ],
    );
  });

  test('a tabela mostra medianas, extremos, metas e observações', () => {
    const summaries = summarize_rows(rows);
    const text = text_report(summaries, derive_ratios(summaries), ['uma observação']);
    assert.match(text, /^1 fluxo +json-proxy +80,0 +70,0 +90,0$/m);
    assert.match(text, /^bulk +1 fluxo: ÷ melhor piso lpop +0,80 +>= 0,8 +alcançada$/m);
    assert.match(text, /^tasks +÷ piso http\+redis +0,60 +>= 0,6 +NÃO alcançada$/m);
    assert.match(text, /^- uma observação$/m);
  });

  test('o limite é a máquina, um núcleo de alguém, ou a espera', () => {
    const say = (server: number, client: number) => {
      const values = { server_cpu_share: server, client_cpu_share: client };
      const row = { scenario: 'workers', case_name: 'c', variant: 'v', round: 1, values };
      return limit_line(summarize_rows([row])[0] as never, 2);
    };
    assert.match(say(0.95, 0.2), /o limite é um núcleo do proxy \(proxy 95 %/);
    assert.match(say(1.2, 0.7), /o limite é a máquina, 2 núcleos/);
    assert.match(say(0.5, 0.2), /o limite é as esperas/);
  });

  test('os números têm a precisão que importa', () => {
    const shown = [1234567, 123.4, 12.34, 0.567, Number.NaN].map(format_number);
    assert.deepEqual(shown, ['1.234.567', '123', '12,3', '0,57', '–']);
  });
});

describe('as linhas', () => {
  const lines = [0, 1, 2].map((order) => `${make_line(5, order)}\n`);
  const feed = (parts: string[], any_order = false) => {
    const meter = make_meter(1, 3, 0, any_order);
    for (const part of parts) meter.feed(0, Buffer.from(part));
    meter.check(3);
    return meter;
  };

  test('têm todas o mesmo tamanho, são JSON e dizem a ordem', () => {
    for (const [index, line] of lines.entries()) {
      assert.equal(line.length, 101);
      assert.equal(typeof JSON.parse(line).s, 'string');
      assert.equal(read_order(Buffer.from(`xx${line}`), 2), index);
    }
  });

  test('são achadas em qualquer divisão dos pedaços, mesmo embrulhadas', () => {
    const wrapped = JSON.stringify(lines.join(''));
    for (let cut = 0; cut < wrapped.length; cut += 1) {
      assert.equal(feed([wrapped.slice(0, cut), wrapped.slice(cut)]).received(), 3);
    }
  });

  test('perdidas, repetidas ou trocadas são um erro', () => {
    const [a = '', b = '', c = ''] = lines;
    assert.throws(() => feed([a, b]), /2 linhas, não 3/);
    assert.throws(() => feed([a, c]), /veio 2, não 1/);
    assert.throws(() => feed([a, a, b]), /veio 0, não 1/);
    assert.throws(() => feed([a, c, b]), /veio 2, não 1/);
    assert.equal(feed([a, c, b], true).swapped(), 2);
    assert.throws(() => feed([a, c, c], true), /repetidas/);
  });
});

describe('as opções', () => {
  test('o padrão é tudo, gravado; com --quick ou --only nada é gravado sem --out', () => {
    const full = read_options([], scenarios);
    assert.deepEqual(full.only, scenarios);
    assert.equal(full.out, 'scripts/bench/results');
    assert.ok(full.plan.rounds >= 3);
    assert.deepEqual(full.plan.idle_streams, [1000, 5000, 10_000]);
    const quick = read_options(['--quick'], scenarios);
    assert.deepEqual(quick.only, ['latency', 'tasks', 'bulk', 'idle']);
    assert.equal(quick.out, undefined);
    const some = read_options(['--only', 'growth,tasks', '--rounds', '5'], scenarios);
    assert.deepEqual(some.only, ['tasks', 'growth']);
    assert.equal(some.out, undefined);
    assert.equal(some.plan.rounds, 5);
    assert.equal(read_options(['--quick', '--out', 'x'], scenarios).out, 'x');
  });

  test('as erradas são nomeadas, com o que é aceito', () => {
    const wrong: [string[], RegExp][] = [
      [['--fast'], /--fast.*--help/],
      [['tasks'], /tasks.*--help/],
      [['--only', 'tarefas'], /"tarefas"; aceito: latency,tasks,bulk,idle,workers,growth/],
      [['--rounds', '0'], /--rounds inválido: "0"; aceito: um inteiro maior que 0/],
      [['--rounds', '1.5'], /--rounds inválido: "1.5"/],
      [['--seconds', 'x'], /--seconds inválido: "x"; aceito: um número maior que 0/],
      [['--streams', '10,'], /--streams inválido: ""/],
      [['--peers', 'sim'], /--peers inválido: "sim"; aceito: on ou off/],
    ];
    for (const [argv, message] of wrong) {
      assert.throws(
        () => read_options(argv, scenarios),
        (error: Error) => error instanceof option_error && message.test(error.message),
        argv.join(' '),
      );
    }
  });
});

describe('os gráficos', () => {
  test('são SVG bem formado, acessível e sem nada de fora, com o melhor piso só', () => {
    const charts = draw_charts(summarize_rows(rows), { machine: 'CPU <& "x">' });
    assert.deepEqual(Object.keys(charts).sort(), ['bulk.svg', 'tasks.svg']);
    const { 'bulk.svg': bulk = '', 'tasks.svg': tasks = '' } = charts;
    for (const text of [bulk, tasks]) {
      check_xml(text);
      assert.match(text, /<title id="title">.+<\/title>\n<desc id="description">.+<\/desc>/);
      assert.match(text, /viewBox="0 0 \d+ \d+"/);
      assert.doesNotMatch(text.replace('http://www.w3.org/2000/svg', ''), /https?:|href|url\(/);
      assert.match(text, /CPU &lt;&amp; &quot;x&quot;&gt;/);
    }
    assert.match(bulk, />1 stream</);
    assert.equal(bulk.match(/>LPOP client, no HTTP</g)?.length, 1);
    assert.match(bulk, />100</);
    assert.match(tasks, />1,000</);
  });

  test('as faixas de demora têm escala logarítmica', () => {
    const values = { p50: 0.5, p99: 150 };
    const where = {
      scenario: 'latency',
      case_name: '1000 fluxos',
      variant: 'json-proxy',
      round: 1,
    };
    const { 'latency.svg': text = '' } = draw_charts(summarize_rows([{ ...where, values }]), {
      machine: 'm',
    });
    check_xml(text);
    assert.match(text, />1,000 streams</);
    assert.match(text, />0\.50 – 150 ms</);
    for (const tick of ['0.1', '1', '10', '100', '1000']) assert.ok(text.includes(`>${tick}<`));
  });
});

describe('o comando', { concurrency: true }, () => {
  test('um uso errado é uma linha em stderr e código 2', async () => {
    const { code, stdout, stderr } = await run_bench('--fast');
    assert.equal(code, 2);
    assert.equal(stdout, '');
    assert.match(stderr, /^bench: .*--fast.*\n$/);
  });

  test('uma medição pequena fecha as contas e grava JSON e gráficos', async () => {
    const out = path.join(temp_dir(), 'novo');
    const size = ['--rounds', '1', '--seconds', '0.3', '--lines', '20000', '--peers', 'off'];
    const what = ['--only', 'tasks,bulk', '--program', await program_file(), '--out', out];
    const { code, stdout, stderr } = await run_bench(...what, ...size);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /÷ piso http\+redis/);
    assert.match(stdout, /1 fluxo: RAW ÷ linhas/);
    assert.match(stdout, /1 fluxo: REPLAY ÷ sem/);
    const results = JSON.parse(read_file(path.join(out, 'results.json'), 'utf8'));
    const variants = (scenario: string) =>
      results.rows
        .filter((row: measurement) => row.scenario === scenario)
        .map((row: measurement) => row.variant);
    const raw = ['piso lpop 128', 'piso lpop 512', 'piso lpop 1024'];
    const one = ['json-proxy', 'json-proxy raw', 'json-proxy replay', ...raw, 'piso http'];
    assert.deepEqual(variants('tasks'), ['json-proxy', 'piso http+redis']);
    assert.deepEqual(variants('bulk'), [...one, ...one]);
    for (const row of results.rows) assert.ok(row.values.rate > 0, JSON.stringify(row));
    assert.equal(results.machine.node, process.version);
    for (const name of ['tasks.svg', 'bulk.svg'])
      assert.ok(file_exists(path.join(out, name)), name);
  });

  test('uma linha a mais numa resposta é um erro, não um número', async () => {
    const file = path.join(temp_dir(), 'json-proxy.js');
    const source = `const line = JSON.stringify({ s: '@1:1@' }) + '\\n';
      const server = require('http').createServer((request, response) => {
        request.resume().once('end', () => { response.write(line); response.end(line); });
      });
      server.listen(0, '127.0.0.1', () => {
        console.log('x listen url=http://127.0.0.1:' + server.address().port);
      });`;
    write_file(file, source);
    const size = ['--rounds', '1', '--seconds', '0.1', '--peers', 'off'];
    const { code, stdout, stderr } = await run_bench('--only', 'tasks', '--program', file, ...size);
    assert.equal(code, 1);
    assert.equal(stdout, '');
    assert.match(
      stderr,
      /a medição falhou: .*tasks, 50 conexões, json-proxy: .*resposta inesperada/s,
    );
  });
});
