/*
 * A receita dos manuais para o nginx, com o nginx do sistema na frente do proxy de verdade: as
 * linhas passam uma a uma, o cliente que sai é notado, e o endereço dele chega ao worker.
 */

import assert from 'node:assert/strict';
import { writeFileSync as write_file } from 'node:fs';
import path from 'node:path';
import { describe } from 'node:test';
import {
  brisk,
  end_of,
  fetch_all,
  free_port,
  open_stream,
  see_tombstone,
  start_program,
  start_redis,
  start_scene,
  temp_dir,
  test,
  until,
} from '../harness';
import { read_manual } from '../readme_helpers';

/** O que o nginx guarda em disco, se precisar. */
const temp_kinds = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'];

/**
 * Sobe um nginx com a receita de um manual, apontada para um proxy.
 * @param file o manual
 * @param port porta do proxy
 * @returns a porta do nginx
 */
async function start_nginx(file: string, port: number): Promise<number> {
  const { blocks } = read_manual(file);
  const recipe = blocks.find(({ language }) => language === 'nginx')?.text ?? '';
  assert.match(recipe, /127\.0\.0\.1:8771/);
  const dir = temp_dir();
  const own_port = await free_port();
  const config = path.join(dir, 'nginx.conf');
  const temps = temp_kinds.map((kind) => `${kind}_temp_path ${dir}/${kind};`).join('\n');
  write_file(
    config,
    `${process.getuid?.() === 0 ? 'user root;' : ''}
    daemon off; pid ${dir}/nginx.pid; error_log stderr;
    events {}
    http { access_log off; ${temps}
    server { listen 127.0.0.1:${own_port};
    ${recipe.replace('127.0.0.1:8771', `127.0.0.1:${port}`)} } }`,
  );
  const nginx = start_program('nginx', ['-p', dir, '-c', config], {
    PATH: `${process.env.PATH}:/usr/sbin`,
  });
  await until('nginx no ar', async () => {
    assert.equal(nginx.process.exitCode, null, nginx.stderr());
    return fetch_all({ port: own_port }, { path: '/ping' }).then(
      ({ body }) => body === 'pong',
      () => false,
    );
  });
  return own_port;
}

for (const file of ['MANUAL.md', 'MANUAL.pt-BR.md']) {
  describe(`a receita de ${file}`, { concurrency: true }, () => {
    for (const accept of ['application/x-ndjson', 'text/event-stream']) {
      test(`as linhas passam uma a uma (${accept})`, async () => {
        const redis = await start_redis();
        const { proxy, worker, db } = await start_scene(redis, [...brisk, '--trust-proxy', 'on']);
        const port = await start_nginx(file, proxy.port);
        const headers = { Accept: accept, 'X-Forwarded-For': '192.0.2.1' };
        const stream = open_stream({ port }, { headers, body: 'olá' });
        const task = await worker.next();
        assert.deepEqual([task.body, task.remote_address], ['olá', '127.0.0.1']);
        for (const line of ['1', '2', '3']) {
          await db.rPush(task.task_list, line);
          while (!(await stream.next())?.endsWith(line)); // a próxima só depois de esta chegar
        }
        await db.del(task.task_key);
        await stream.rest();
        assert.equal((await end_of(proxy, task)).lines, '3');
      });
    }

    test('o cliente que sai é notado', async () => {
      const redis = await start_redis();
      const { proxy, worker, db } = await start_scene(redis, brisk);
      const port = await start_nginx(file, proxy.port);
      const stream = open_stream({ port });
      const task = await worker.next();
      stream.leave();
      assert.equal((await end_of(proxy, task)).ending, 'client_gone');
      await see_tombstone(db, task);
    });
  });
}
