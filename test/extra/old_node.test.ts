/*
 * Num Node velho demais, o que as distribuições ainda trazem, o programa montado diz que não serve.
 */

import assert from 'node:assert/strict';
import { spawnSync as run } from 'node:child_process';
import { existsSync as exists } from 'node:fs';
import { homedir as home_dir } from 'node:os';
import path from 'node:path';
import { before, describe, test } from 'node:test';
import { program_file } from '../harness';

const cache = process.env.XDG_CACHE_HOME ?? path.join(home_dir(), '.cache');
const folder = path.join(cache, 'json-proxy', 'old-nodes-1');

/** Por que os testes são pulados; false se não são. */
const skip = !exists(folder) && 'sem eles: sh scripts/dev/setup.sh old-nodes; só no Linux';

const message = 'json-proxy: precisa do Node 20 ou mais novo; este é o ';

let program: string;

before(async () => {
  program = await program_file();
});

describe('um Node velho demais', { skip }, () => {
  for (const node of ['v14.21.3', 'v16.20.2', 'v18.20.4']) {
    test(`o ${node} é recusado com uma linha`, () => {
      const { status, stdout, stderr } = run(path.join(folder, node), [program, '--version']);
      const said = [status, String(stdout), String(stderr)];
      assert.deepEqual(said, [2, '', `${message}${node}\n`]);
    });
  }

  test('o v12.22.12 não o entende, e a linha em que tropeça diz por quê', () => {
    const { status, stdout, stderr } = run(path.join(folder, 'v12.22.12'), [program, '--version']);
    assert.deepEqual([status, String(stdout)], [1, '']);
    const [place = '', line = '', caret = '', , name = ''] = String(stderr).split('\n');
    assert.ok(place.endsWith('.js:3') && line.includes(message), String(stderr));
    assert.match(caret, /^ +\^/);
    assert.match(name, /^SyntaxError/);
  });
});
