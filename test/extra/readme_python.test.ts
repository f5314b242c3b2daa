/*
 * Os workers em Python dos manuais, com e sem o kit, com a redis-py do Debian, contra o proxy de
 * verdade.
 */

import assert from 'node:assert/strict';
import { fetch_all, test } from '../harness';
import { start_manual_worker } from '../readme_helpers';

const examples = [
  { title: 'o worker de dez linhas em Python atende', file: 'my_worker.py', kit: '' },
  { title: 'o do kit em Python também', file: 'answer.py', kit: 'worker.py' },
];

for (const { title, file, kit } of examples) {
  test(title, async () => {
    const python = '/usr/bin/python3';
    const { proxy, worker, client } = await start_manual_worker('python', file, python, [], kit);
    for (const body of ['olá', '{"b": 2}']) {
      const reply = await fetch_all(proxy, { body });
      const lines = reply.body.trimEnd().split('\n');
      const expected = [1, 2, 3].map((n) => ({ n, body }));
      assert.deepEqual(
        lines.map((line) => JSON.parse(line)),
        expected,
      );
    }
    assert.deepEqual(await client.keys('*'), []);
    assert.equal(worker.stderr(), '');
  });
}
