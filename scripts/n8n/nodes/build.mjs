/*
 * Builds dist/: one bundle with every node and the Redis client inside, and beside it, where n8n
 * looks for each node, a file that takes the node from the bundle. One bundle, so that the nodes
 * of a process share their connections.
 */

import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { build } from 'esbuild';

const root = import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname);
const dist = path.join(root, 'dist');
const { n8n } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'));

rmSync(dist, { recursive: true, force: true });
await build({
  absWorkingDir: root,
  entryPoints: ['index.ts'],
  outfile: path.join(dist, 'index.js'),
  bundle: true,
  platform: 'node',
  format: 'cjs',
  target: 'node18.17',
  external: ['n8n-workflow', '@langchain/*'],
  legalComments: 'inline',
  logLevel: 'warning',
});
cpSync(path.join(root, 'icons'), path.join(dist, 'icons'), { recursive: true });
for (const file of n8n.nodes) {
  const name = path.basename(file, '.node.js');
  const source = path.join(root, 'nodes', name, `${name}.node.json`);
  mkdirSync(path.join(root, path.dirname(file)), { recursive: true });
  writeFileSync(path.join(root, file), `exports.${name} = require('../../index.js').${name};\n`);
  cpSync(source, path.join(root, path.dirname(file), `${name}.node.json`));
}
