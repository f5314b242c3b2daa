/*
 * O que os quatro sistemas dividem: o TypeScript estrito, a demonstração que se confere, os
 * arquivos do Docker.
 */

import assert from 'node:assert/strict';
import { spawnSync as run } from 'node:child_process';
import { existsSync as file_exists, readFileSync as read_file } from 'node:fs';
import path from 'node:path';
import { describe, test } from 'node:test';
import { run_backend } from './backends_helpers';

const folder = 'scripts/backends';
const systems = ['payload-store', 'message-broker', 'task-list', 'batch-sync'];

describe('os sistemas', () => {
  test('passam pelo compilador', () => {
    const compiler = path.resolve('node_modules/.bin/tsc');
    const { status, stdout } = run(compiler, ['-p', folder], { encoding: 'utf8' });
    assert.equal(status, 0, stdout);
  });

  for (const name of systems) {
    test(`npm run backend -- ${name} --check`, async () => {
      const { code, output } = await run_backend('backend.ts', [name, '--check', '--port', '0']);
      assert.equal(code, 0, output);
      assert.match(output, /\n\d+ pedidos, todos certos\n/);
    });
  }

  test('um nome que não há diz quais há', async () => {
    const { code, output } = await run_backend('backend.ts', ['nothing']);
    assert.equal(code, 2);
    for (const name of systems) assert.ok(output.includes(name));
  });

  test('o que os arquivos do Docker citam existe, e só o proxy é publicado', () => {
    const dockerfile = read_file(`${folder}/Dockerfile`, 'utf8');
    const cited = [...dockerfile.matchAll(/scripts\/[\w/.-]+\.(?:ts|json)/g)].map(([file]) => file);
    assert.ok(cited.length >= 6);
    for (const file of cited) assert.ok(file_exists(file), file);
    for (const name of ['payload-store', 'task-list']) {
      const compose = read_file(`${folder}/${name}/compose.yaml`, 'utf8');
      for (const [, file = ''] of compose.matchAll(/dockerfile: ([\w/.-]+)/g)) {
        assert.ok(file_exists(file), file);
      }
      for (const [, target] of compose.matchAll(/target: ([\w-]+)/g)) {
        assert.ok(dockerfile.includes(` AS ${target}\n`), target);
      }
    }
    const compose = read_file(`${folder}/task-list/compose.yaml`, 'utf8');
    const services = compose.split(/\n(?= {2}\w+:\n)/);
    const published = services.filter((service) => /\n {4}ports:/.test(service));
    assert.deepEqual(
      published.map((service) => service.trim().split(':')[0]),
      ['proxy'],
    );
  });
});
