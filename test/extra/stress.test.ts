/*
 * A prova de esforço: a mesma semente dá o mesmo plano, uma rodada curta fecha as contas, e um
 * programa com defeito é apanhado, com o fluxo e a semente para repetir.
 */

import assert from 'node:assert/strict';
import { readFileSync as read_file, writeFileSync as write_file } from 'node:fs';
import path from 'node:path';
import { describe } from 'node:test';
import { option_error } from '../../scripts/dev/options';
import { make_reader } from '../../scripts/dev/resp';
import { plan_fault } from '../../scripts/stress/faults';
import { fault_names } from '../../scripts/stress/ledger';
import { read_options, replay_command } from '../../scripts/stress/options';
import { plan_visit, plan_work } from '../../scripts/stress/plan';
import { program_file, start_program, temp_dir, test } from '../harness';

const root = path.join(__dirname, '..', '..');
const stress = ['--import', 'tsx', 'scripts/stress/stress.ts'];

/** Uma rodada que acaba logo, e em que quase todo fluxo chega ao fim. */
const short = ['--seconds', '1', '--streams', '8'];

/** Onde o proxy aceita uma linha, no arquivo montado, e o que cada defeito faz ali. */
const accepted_line = 'lines.push(line);';
const defects = {
  perde: ['if (stream.elements !== 6) lines.push(line);', 'perdida'],
  repete: ['lines.push(line); if (stream.elements === 6) lines.push(line);', 'de novo'],
} as const;

/**
 * Roda a prova de esforço.
 * @param args opções
 * @returns o código de saída e as saídas
 */
async function run_stress(...args: string[]) {
  const program = start_program(process.execPath, [...stress, ...args], {}, root);
  const code = await program.exited;
  return { code, stdout: program.stdout(), stderr: program.stderr() };
}

/**
 * Monta uma cópia do programa com um defeito.
 * @param defect o que fica no lugar de aceitar uma linha
 * @returns o caminho da cópia
 */
async function broken_program(defect: string): Promise<string> {
  const source = read_file(await program_file(), 'utf8');
  assert.equal(source.split(accepted_line).length, 2, 'o programa mudou; o defeito não cabe mais');
  const file = path.join(temp_dir(), 'json-proxy.js');
  write_file(file, source.replace(accepted_line, `{ ${defect} }`));
  return file;
}

describe('o plano', () => {
  test('a mesma semente dá o mesmo, em qualquer ordem; outra, outro', () => {
    const plan = (seed: number, order: number[]) => {
      const parts = order.map((n) => [
        n,
        plan_visit(seed, n),
        plan_work(seed, n, 5000),
        plan_fault(seed, n, fault_names),
      ]);
      return JSON.stringify(parts.toSorted(([a], [b]) => Number(a) - Number(b)));
    };
    const order = Array.from({ length: 300 }, (_, n) => n);
    assert.equal(plan(7, order), plan(7, order.toReversed()));
    assert.notEqual(plan(7, order), plan(8, order));
  });

  test('em algumas centenas de visitas há de tudo', () => {
    const numbers = Array.from({ length: 500 }, (_, n) => n);
    const requests = numbers.flatMap((n) => plan_visit(1, n).requests);
    const works = numbers.map((n) => plan_work(1, n, 5000));
    const kinds = new Set(requests.map(({ kind }) => kind));
    assert.deepEqual([...kinds].sort(), ['broken', 'head', 'ping', 'stream']);
    const leaves = new Set(requests.map(({ leave }) => leave?.when));
    assert.deepEqual([...leaves].sort(), ['half_sent', 'lines', 'ms', undefined]);
    assert.deepEqual([...new Set(works.map(({ ending }) => ending))].sort(), [
      'del',
      'eof',
      'silence',
    ]);
    assert.ok(works.some(({ sizes }) => sizes.length === 0));
    assert.ok(works.some(({ sizes }) => sizes.length > 200));
    assert.ok(works.some(({ sizes }) => sizes.some((size) => size >= 1_000_000)));
    assert.ok(requests.some(({ slow }) => slow));
    const faults = new Set(numbers.map((n) => plan_fault(1, n, fault_names).kind));
    assert.deepEqual([...faults].sort(), fault_names.toSorted());
  });
});

describe('as opções', () => {
  test('o comando que repete o plano é lido de volta como o mesmo pedido', () => {
    const given: string[][] = [
      ['--seed', '5'],
      ['--seconds', '9', '--streams', '3', '--wakeup', 'off', '--faults', 'cut,freeze'],
      ['--stream', 'on', '--faults', 'none', '--program', 'x.js'],
    ];
    for (const argv of given) {
      const options = read_options(argv);
      const [, text = ''] = replay_command(options).split(' -- ');
      assert.deepEqual(read_options(text.split(' ')), options);
    }
  });

  test('as erradas são nomeadas, com o que é aceito', () => {
    const wrong: [string[], RegExp][] = [
      [['--fast'], /--fast.*--help/],
      [['--seconds', '0'], /--seconds inválido: "0"; aceito: um inteiro de 1 a /],
      [['--seed', '-1'], /--seed/],
      [['--wakeup', 'sim'], /--wakeup inválido: "sim"; aceito: on ou off/],
      [['--faults', 'cut,azar'], /"azar"; aceito: none ou cut,/],
    ];
    for (const [argv, message] of wrong) {
      assert.throws(
        () => read_options(argv),
        (error: Error) => error instanceof option_error && message.test(error.message),
        argv.join(' '),
      );
    }
  });
});

test('o leitor do protocolo acha as mesmas mensagens em qualquer divisão dos bytes', () => {
  const big = 'y'.repeat(3000);
  const parts: [string, unknown?][] = [
    ['*3\r\n$4\r\nLPOP\r\n$5\r\nção\r\n$2\r\n16\r\n', ['LPOP', 'ção', '16']],
    ['+OK\r\n', 'OK'],
    ['>2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n'],
    ['$-1\r\n', null],
    ['_\r\n', null],
    ['*0\r\n', []],
    [`*2\r\n$0\r\n\r\n$3000\r\n${big}\r\n`, ['', big]],
    [':7\r\n', 7],
  ];
  const bytes = Buffer.from(parts.map(([text]) => text).join(''));
  const expected = parts.filter((part) => part.length > 1).map(([, reply]) => reply);
  for (const size of [1, 2, 3, 7, 64, 1000, bytes.length]) {
    const found: unknown[] = [];
    const read = make_reader((reply) => found.push(reply));
    for (let at = 0; at < bytes.length; at += size) read(bytes.subarray(at, at + size));
    assert.deepEqual(found, expected);
  }
});

describe('o comando', { concurrency: true }, () => {
  test('um uso errado é uma linha em stderr e código 2', async () => {
    const { code, stdout, stderr } = await run_stress('--fast');
    assert.deepEqual([code, stdout], [2, '']);
    assert.match(stderr, /^stress: .*--fast.*\n$/);
  });

  const round = async (...extra: string[]) => {
    const what = ['--seed', '7', '--faults', 'cut,freeze,handover', ...extra];
    const program = ['--program', await program_file()];
    const { code, stdout, stderr } = await run_stress(...short, ...what, ...program);
    assert.equal(code, 0, `${stdout}${stderr}`);
    assert.match(stdout, /^semente 7: npm run stress -- --seed 7 /);
    const figure = (name: string) =>
      Number(new RegExp(`^ *${name} +([\\d.]+)$`, 'm').exec(stdout)?.[1]);
    assert.ok(figure('fluxos') > 0 && figure('linhas') > 0 && figure('inteiro') > 0, stdout);
    const zeros = ['perdidas', 'repetidas', 'fora de ordem'].map((name) => `linhas ${name}`);
    const left = ['chaves', 'sockets', 'temporizadores'].map((name) => `${name} que ficaram`);
    for (const name of [...zeros, ...left, 'violações']) assert.equal(figure(name), 0, name);
  };

  test('uma rodada curta, com falhas, fecha as contas e diz a semente', () => round());

  test('e outra, em que os workers leem um stream', () => round('--stream', 'on'));

  for (const [name, [defect, complaint]] of Object.entries(defects)) {
    test(`um programa que ${name} uma linha é apanhado`, async () => {
      const file = await broken_program(defect);
      const what = ['--seed', '7', '--faults', 'none', '--program', file];
      const { code, stdout } = await run_stress(...short, ...what);
      assert.equal(code, 1, stdout);
      assert.match(stdout, new RegExp(`^FALHA: fluxo \\d+: .*${complaint}`, 'm'));
      assert.match(stdout, /^para repetir: npm run stress -- --seed 7 --seconds 1 --streams 8 /m);
    });
  }
});
