/*
 * O certificado autoassinado dos manuais, feito com o openssl do sistema, servido pelo proxy.
 */

import assert from 'node:assert/strict';
import { execFileSync as run, spawnSync as try_run } from 'node:child_process';
import { readFileSync as read_file } from 'node:fs';
import path from 'node:path';
import { fetch_all, start_proxy, start_redis, temp_dir, test } from '../harness';
import { read_manual } from '../readme_helpers';

for (const file of ['MANUAL.md', 'MANUAL.pt-BR.md']) {
  test(`o comando de ${file} faz um par que o proxy aceita e em que o curl confia`, async () => {
    const { blocks } = read_manual(file);
    const [command = ''] = blocks.flatMap(({ text }) => text.match(/^openssl req .+$/gm) ?? []);
    const dir = temp_dir();
    run('sh', ['-c', command], { cwd: dir, stdio: 'ignore' });
    const [cert, key] = [path.join(dir, 'cert.pem'), path.join(dir, 'key.pem')];
    const redis = await start_redis();
    const proxy = await start_proxy(redis, ['--tls-cert', cert, '--tls-key', key]);
    const ca = read_file(cert, 'utf8');
    const named = { port: proxy.port, host: 'localhost' };
    assert.equal((await fetch_all(named, { path: '/ping', ca })).body, 'pong');
    const url = `https://localhost:${proxy.port}/ping`;
    const curl = try_run('curl', ['-sS', '-4', '--cacert', cert, url], { encoding: 'utf8' });
    const is_missing = curl.error !== undefined;
    assert.ok(is_missing || curl.stdout === 'pong', curl.stderr);
  });
}
