/*
 * As regras de estilo que o linter não alcança: documentação de toda função, ordem de leitura,
 * limites de tamanho, maiúsculas só em configurações, node-redis só na seção do Redis.
 */

import assert from 'node:assert/strict';
import { execFileSync as run } from 'node:child_process';
import { readFileSync as read_file } from 'node:fs';
import { describe, test } from 'node:test';
import { settings_table } from '../json-proxy';

const max_width = 100;
const max_function_lines = 50;
const max_median_lines = 15;

/** Uma função de topo, como está no fonte. `line` e `length` em linhas. */
type source_function = {
  name: string;
  line: number;
  length: number;
  doc: string;
  /** Nome e tipo de cada parâmetro; um parâmetro desmontado conta como "{}". */
  parameters: { name: string; type: string }[];
  returns_value: boolean;
  body: string;
};

/** Os arquivos do projeto que o git conhece ou conheceria. */
const files = run('git', ['ls-files', '--cached', '--others', '--exclude-standard'], {
  encoding: 'utf8',
})
  .split('\n')
  .filter((name) => /\.(ts|py|sh|md)$/.test(name) || name === '.ci/run');

const typescript_files = files.filter((name) => name.endsWith('.ts'));
const program = read_file('json-proxy.ts', 'utf8');

/**
 * Separa os parâmetros de uma assinatura.
 * @param signature texto entre os parênteses
 * @returns nome e começo do tipo de cada um, na ordem; um parâmetro desmontado se chama "{}"
 */
function find_parameters(signature: string): source_function['parameters'] {
  let flat = signature.replace(/=>/g, '');
  for (let before = ''; before !== flat; ) {
    before = flat;
    flat = flat.replace(
      /\{[^{}[\]()<>]+\}|\[[^{}[\]()<>]*\]|\([^{}[\]()<>]*\)|<[^[\]()<>]*>/g,
      '{}',
    );
  }
  return flat
    .split(',')
    .map((part) => /^\s*(?:\.{3})?([\w{}]+)\??(?:: (\w+)(?![\w.[]))?/.exec(part) ?? [])
    .map(([, name = '', type = '']) => ({ name, type }))
    .filter(({ name }) => name !== '');
}

/**
 * Acha as funções de topo de um fonte formatado pelo biome: começam na coluna zero e terminam na
 * primeira linha que é só "}".
 * @param source o fonte
 * @returns as funções, na ordem
 */
function find_functions(source: string): source_function[] {
  const pattern =
    /(\/\*\*(?:(?!\*\/)[\s\S])*\*\/\n)?^(?:export )?(?:async )?function (\w+)(?:<\w+(?: extends \w+)?>)?\(([\s\S]*?)\)(?:: ([^\n]+?))? \{\n([\s\S]*?)^\}/gm;
  return [...source.matchAll(pattern)].map((found) => {
    const [text, doc = '', name = '', signature = '', type = '', body = ''] = found;
    return {
      name,
      line: source.slice(0, found.index + doc.length).split('\n').length,
      length: text.slice(doc.length).split('\n').length,
      doc,
      parameters: find_parameters(signature),
      returns_value: type
        ? !/^(Promise<)?(void|never)\b/.test(type)
        : /^ {2}return [^;]/m.test(body),
      body,
    };
  });
}

/**
 * Tira as linhas de comentário de um fonte, para que só o código conte.
 * @param source o fonte
 * @returns o fonte sem elas
 */
function strip_comments(source: string): string {
  return source.replace(/^ *(?:\/\/|\/\*|\*).*$|(?<= )\/\/ .*$/gm, '');
}

describe('estilo', () => {
  test('toda função de topo, em todo arquivo, está documentada', () => {
    let count = 0;
    for (const file of typescript_files) {
      const source = read_file(file, 'utf8');
      const declared = source.match(/^(?:export )?(?:async )?function /gm)?.length ?? 0;
      const functions = find_functions(source);
      assert.equal(functions.length, declared, `${file}: funções que o teste não reconhece`);
      for (const { name, line, doc, parameters, returns_value } of functions) {
        const where = `${file}:${line} ${name}`;
        assert.match(doc, /^\/\*\*(\n \*)? \S/, `${where}: sem documentação`);
        const tagged = [...doc.matchAll(/@param (\w+)/g)].map(([, parameter]) => parameter);
        const known = parameters.map(({ name }) => name);
        const strange = known.includes('{}')
          ? []
          : tagged.filter((name = '') => !known.includes(name));
        assert.deepEqual(strange, [], `${where}: @param a mais`);
        for (const { name: parameter, type } of parameters) {
          // de um tipo com nome, o tipo diz; e o contrato dos leitores de texto está acima deles
          if (!/^(string|number|boolean)$/.test(type) || /^(text|\{\})$/.test(parameter)) continue;
          const is_named = tagged.includes(parameter) || doc.includes(`\`${parameter}\``);
          assert.ok(is_named, `${where}: falta dizer o que é ${parameter}`);
        }
        // "Dá", "Lê", "Diz se": a primeira palavra já é o que se devolve; em inglês, nos nós do n8n
        const gives =
          /@returns|devolve|\/\*\*\s+(\* )?(Dá|Lê|Diz|Monta|Cria|Separa|Junta|Gives|Reads|Says)(?![a-zà-ú])/i;
        if (returns_value) assert.match(doc, gives, `${where}: falta @returns`);
        count += 1;
      }
    }
    assert.ok(count > 80, `só ${count} funções encontradas`);
  });

  test('funções em Python e em shell também', () => {
    for (const file of files.filter((name) => name.endsWith('.py'))) {
      const source = read_file(file, 'utf8');
      const functions = [...source.matchAll(/^( *)def (\w+)\([\s\S]*?\):\n(.*)\n/gm)];
      assert.ok(functions.length > 0);
      for (const [, , name, next = ''] of functions) {
        assert.match(next, /"""/, `${file}: ${name} sem documentação`);
      }
    }
    for (const file of files.filter((name) => name.endsWith('.sh'))) {
      const lines = read_file(file, 'utf8').split('\n');
      lines.forEach((line, index) => {
        if (!/^\w+\(\) \{/.test(line)) return;
        assert.match(lines[index - 1] ?? '', /^# /, `${file}:${index + 1} sem documentação`);
      });
    }
  });

  test('linhas de até 100 colunas, funções de até 50 linhas, mediana de até 15', () => {
    for (const file of files.filter((name) => !name.endsWith('.md'))) {
      const lines = read_file(file, 'utf8').split('\n');
      lines.forEach((line, index) => {
        const is_regex = /^ *\/\^?.*\/[a-z]*[;,]$/.test(line);
        // o linter do n8n só entende os textos dos nós se são um só literal
        const is_text =
          /n8n\/nodes\/.*\.ts$/.test(file) && /^ *(\? |: )?['"`].*['"`]\S*$/.test(line);
        const is_narrow = [...line].length <= max_width || is_regex || is_text;
        assert.ok(is_narrow, `${file}:${index + 1} é larga demais`);
      });
    }
    const lengths = find_functions(program).map(({ length }) => length);
    lengths.sort((a, b) => a - b);
    assert.ok((lengths.at(-1) ?? 0) <= max_function_lines, `a maior tem ${lengths.at(-1)} linhas`);
    const median = lengths[Math.floor(lengths.length / 2)] ?? 0;
    assert.ok(median <= max_median_lines, `a mediana é ${median}`);
  });

  test('nada aponta para cima: toda função está acima de quem a chama', () => {
    const code = strip_comments(program);
    const upward = find_functions(program).filter(({ name }) => {
      const defined_at = code.search(new RegExp(`function ${name}\\b`));
      const used_at = code.search(new RegExp(`(?<!function |[\\w-]|[^.]\\.)${name}\\b(?![:-])`));
      return used_at < defined_at;
    });
    assert.deepEqual(
      upward.map(({ name }) => name),
      [],
    );
  });

  test('as seções vêm na ordem em que os dados fluem, cada uma com sua intenção', () => {
    const banners = [...program.matchAll(/^\/\/ ── (.+?) ─+\n((?:\/\/ .*\n)+)/gm)];
    const names = banners.map(([, name]) => name);
    assert.deepEqual(names, [
      'Configurações',
      'Log e tempo',
      'Contadores',
      'Redis',
      'HTTP',
      'Tarefa',
      'Elementos',
      'Fluxo',
      'Pedido',
      'Métricas',
      'Leitura das configurações',
      'Vida do processo',
    ]);
    for (const [, name, text = ''] of banners) {
      const lines = text.trimEnd().split('\n').length;
      assert.ok(lines >= 2 && lines <= 4, `${name}: a intenção tem ${lines} linhas`);
    }
  });

  test('só as configurações são globais em maiúsculas, e todas elas', () => {
    const globals = [...program.matchAll(/^(?:export )?(?:let|const|var) ([A-Z][A-Z0-9_]*)\b/gm)];
    const names = globals.map(([, name]) => name).sort();
    // as que só dizem de que arquivo vem outra não têm valor próprio
    const own = settings_table.map(({ name }) => name).filter((name) => !name.endsWith('_FILE'));
    assert.deepEqual(names, own.sort());
  });

  test('a node-redis só é chamada em funções redis_*', () => {
    const callers = find_functions(program)
      .filter(({ body }) => /\b(client|buffers)\b\s*\??\.\s*\w+|create_client\(/.test(body))
      .map(({ name }) => name);
    assert.ok(callers.length > 5);
    for (const name of callers) assert.match(name, /^redis_/);
  });
});
