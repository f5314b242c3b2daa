/*
 * Os comandos em volta do programa: demonstração, desenvolvimento, montagem e exemplos, cada um
 * rodado como o usuário o roda.
 */

import assert from 'node:assert/strict';
import { execFileSync as run } from 'node:child_process';
import {
  appendFileSync as append_file,
  copyFileSync as copy_file,
  cpSync as copy_tree,
  readdirSync as list_dir,
  symlinkSync as make_link,
  readFileSync as read_file,
} from 'node:fs';
import path from 'node:path';
import { before, describe } from 'node:test';
import { version } from '../json-proxy';
import { node_named, read_workflow, redis_workflow_names } from './extra/n8n_helpers';
import {
  closed_port,
  exit_of,
  fetch_all,
  free_port,
  type local_redis,
  open_stream,
  patience_ms,
  program_file,
  start_program,
  start_proxy,
  start_redis,
  temp_dir,
  test,
  tests_at_once,
} from './harness';

/** O npm run dev sobe três programas montados na hora: com meio núcleo demora. */
const dev_limit_ms = 3 * patience_ms;

const root = path.join(__dirname, '..');
const tsx = ['--import', 'tsx'];

let redis: local_redis;

before(async () => {
  redis = await start_redis();
});

describe('comandos', { concurrency: tests_at_once }, () => {
  test('a demonstração mostra cada linha com seu instante e sai com 0', async () => {
    const foreign = { REDIS_PASSWORD: 'x', API_KEY: 'k', LOG_FORMAT: 'json', MAXTIME: '1' };
    const demo = start_program(process.execPath, [...tsx, 'scripts/dev/demo.ts'], foreign, root);
    assert.equal(await demo.exited, 0, demo.stderr());
    const arrivals = [...demo.stdout().matchAll(/^\+(\d+\.\d{3}) s {2}\{"n":(\d)/gm)];
    assert.deepEqual(
      arrivals.map(([, , n]) => n),
      ['1', '2', '3', '4', '5'],
    );
    const [first = 0, last = 0] = [arrivals[0], arrivals[4]].map((found) => Number(found?.[1]));
    assert.ok(last - first > 1, 'as linhas chegaram juntas: não foi streaming');
    assert.match(demo.stdout(), /ending=done status=200 lines=5/);
    assert.equal(demo.stderr(), '');
  });

  test('a demonstração com um arquivo que não existe falha com clareza', async () => {
    const args = [...tsx, 'scripts/dev/demo.ts', '--program', '/nao/existe.js'];
    const demo = start_program(process.execPath, args, {}, root);
    assert.equal(await demo.exited, 1);
    assert.match(demo.stderr(), /a demonstração falhou: /);
  });

  test('dev sobe tudo, mostra o curl que funciona, e Ctrl-C desce tudo', async () => {
    const port = await free_port();
    const names = ['-X', 'pedido:', '-L', 'linhas:']; // o worker também precisa sabê-los
    const args = [...tsx, 'scripts/dev/dev.ts', '-p', String(port), ...names];
    const dev = start_program(
      process.execPath,
      args,
      { REDIS_SERVER: '', LOG_FORMAT: 'json', LOG_LEVEL: 'error' },
      root,
    );
    const [, url = ''] = await dev.wait_for(/experimente: {2}curl -N (\S+) -d/, dev_limit_ms);
    const [, redis_port = ''] = await dev.wait_for(/redis-cli -p (\d+)/);
    const { pathname, port: shown_port } = new URL(url);
    assert.equal(Number(shown_port), port);
    const reply = await fetch_all({ port }, { path: pathname, body: 'oi' });
    assert.equal(reply.body.trim().split('\n').length, 5);
    const [, page = ''] = await dev.wait_for(/ou na página: (\S+)\n/);
    const ask_page = async (target: string) => (await fetch(page + target)).text();
    assert.match(await ask_page('/'), /^<!doctype html>\n<html lang="pt-BR">/);
    assert.equal(JSON.parse(await ask_page('/proxy')).url, `http://127.0.0.1:${port}`);
    const uuid = String(reply.headers['x-task-uuid']);
    const { keys, log } = JSON.parse(await ask_page(`/task?uuid=${uuid}`));
    const key_names = keys.map(({ name, type }: Record<string, string>) => [name, type]);
    const gone = ['pedido:', 'linhas:', 'ndjson_claim_'].map((prefix) => [prefix + uuid, 'none']);
    assert.deepEqual(key_names, [...gone, [`ndjson_sent_${uuid}`, 'list']]); // de REPLAY
    assert.match(log.join('\n'), / task task=\S+ method=POST [\s\S]* end task=\S+ ending=done /);
    for (const wrong of ['/task', '/task?uuid=*', '/x']) {
      assert.equal((await fetch(page + wrong)).status, 404);
    }
    const { headers } = await fetch_all({ port }, { path: '/ping', headers: { origin: page } });
    assert.equal(headers['access-control-allow-origin'], page);
    assert.equal(await dev.stop('SIGINT'), 0);
    assert.throws(() => run('redis-cli', ['-p', redis_port, 'ping'], { stdio: 'pipe' }));
    await assert.rejects(fetch_all({ port }, { path: '/ping' }), { code: 'ECONNREFUSED' });
  });

  test('dev recarrega o proxy quando o fonte muda', async () => {
    const copy = temp_dir();
    for (const name of ['json-proxy.ts', 'package.json', 'tsconfig.json', 'scripts']) {
      copy_tree(path.join(root, name), path.join(copy, name), { recursive: true });
    }
    make_link(path.join(root, 'node_modules'), path.join(copy, 'node_modules'));
    const args = [...tsx, 'scripts/dev/dev.ts', '-p', String(await free_port())];
    const dev = start_program(process.execPath, args, { REDIS_SERVER: redis.server }, copy);
    await dev.wait_for(/Ctrl-C desce tudo/, dev_limit_ms);
    append_file(path.join(copy, 'json-proxy.ts'), '// mudou\n');
    await dev.wait_for(/( listen url=[\s\S]*){2}/, dev_limit_ms);
    assert.equal(await dev.stop('SIGINT'), 0);
  });

  test('dev com a porta tomada sai na hora, com a linha do proxy', async () => {
    const args = [...tsx, 'scripts/dev/dev.ts', '-p', String(redis.port), '--host', '127.0.0.1'];
    const dev = start_program(process.execPath, args, { REDIS_SERVER: redis.server }, root);
    assert.equal(await exit_of(dev, dev_limit_ms), 1);
    assert.match(dev.stdout(), /^proxy {2}│ .* fatal .* reason="a porta já está em uso; .*"\n/m);
    assert.equal(dev.stderr(), 'npm run dev: o proxy não subiu\n');
  });

  test('dev usa o Redis dado e não sobe outro', async () => {
    const port = await free_port();
    const env = { REDIS_SERVER: redis.server, REDIS_CHANNEL: 'canal_dev' };
    const args = [...tsx, 'scripts/dev/dev.ts', '-p', String(port)];
    const dev = start_program(process.execPath, args, env, root);
    await dev.wait_for(/Ctrl-C desce tudo/, dev_limit_ms);
    assert.match(dev.stdout(), new RegExp(`redis=${redis.server} channel=canal_dev`));
    assert.doesNotMatch(dev.stdout(), /redis-cli -p/);
    assert.equal(await dev.stop('SIGINT'), 0);
  });

  test('o arquivo montado roda sozinho numa pasta vazia', async () => {
    const dir = temp_dir();
    copy_file(await program_file(), path.join(dir, 'json-proxy.js'));
    const options = { cwd: dir, encoding: 'utf8' as const };
    assert.equal(run(process.execPath, ['json-proxy.js', '-V'], options), `${version}\n`);
    assert.deepEqual(list_dir(dir), ['json-proxy.js']);
    const alone = start_program(
      process.execPath,
      ['json-proxy.js', '-p', '0', '-R', redis.server],
      {},
      dir,
    );
    const [, port] = await alone.wait_for(/ listen url=\S+:(\d+)\n/);
    assert.equal((await fetch_all({ port: Number(port) }, { path: '/ping' })).body, 'pong');
    assert.equal(await alone.stop(), 0);
  });

  test('o worker de exemplo atende uma tarefa e sai, ou para se o cliente desiste', async () => {
    const names = ['-C', 'canal_exemplo', '-X', 'pedido:', '-L', 'linhas:'];
    const own = await start_proxy(redis, names);
    const args = [
      ...tsx,
      'scripts/worker/examples/worker-example.ts',
      '-R',
      redis.server,
      ...names,
    ];
    const worker = start_program(process.execPath, [...args, '--pause', '5'], {}, root);
    await worker.wait_for(/ouvindo canal_exemplo/, dev_limit_ms);
    const reply = await fetch_all(own, { path: '/x?y=1', body: 'á' });
    const lines = reply.body.trim().split('\n');
    assert.deepEqual(JSON.parse(lines[0] ?? ''), { n: 1, of: 5, url: '/x?y=1', body: 'á' });
    assert.equal(lines.length, 5);
    assert.equal(await worker.exited, 0);
    const slow = start_program(process.execPath, [...args, '--pause', '200'], {}, root);
    await slow.wait_for(/ouvindo/);
    const stream = open_stream(own, { body: 'x' });
    await stream.next();
    stream.leave();
    assert.equal(await slow.exited, 0);
    assert.match((await own.wait_for(/ end .*ending=client_gone.*/))[0], /lines=[12]\b/);
  });

  test('client-curl.sh confere e lê um fluxo; sem proxy diz o que fazer', async () => {
    const own = await start_proxy(redis, ['-C', 'canal_curl']);
    const worker_args = [...tsx, 'scripts/worker/examples/worker-example.ts', '--pause', '1'];
    const env = { REDIS_SERVER: redis.server, REDIS_CHANNEL: 'canal_curl' };
    const worker = start_program(process.execPath, worker_args, env, root);
    await worker.wait_for(/ouvindo/);
    const client = start_program(
      'sh',
      ['scripts/worker/examples/client-curl.sh', '-p', String(own.port)],
      {},
      root,
    );
    assert.equal(await client.exited, 0, client.stderr());
    assert.match(client.stdout(), /^pong\n\{"n":1/);
    assert.equal(client.stdout().trim().split('\n').length, 6);
    const port = String(await closed_port());
    const lost = start_program(
      'sh',
      ['scripts/worker/examples/client-curl.sh'],
      { HTTP_PORT: port },
      root,
    );
    assert.equal(await lost.exited, 1);
    assert.match(lost.stderr(), /sem pong em .* o proxy está de pé\?/);
    const wrong = start_program(
      'sh',
      ['scripts/worker/examples/client-curl.sh', '--porta', '1'],
      {},
      root,
    );
    assert.equal(await wrong.exited, 2);
    assert.match(wrong.stderr(), /opção desconhecida: --porta; aceito: /);
  });

  test('setup.sh recusa uma parte que não conhece', async () => {
    const setup = start_program('sh', ['scripts/dev/setup.sh', 'tudo'], {}, root);
    assert.equal(await setup.exited, 2);
    assert.match(setup.stderr(), /parte desconhecida: tudo; aceito: packages redis/);
  });

  test('sem apt e sem redis-server, uma linha diz o que instalar', async () => {
    const bin = temp_dir();
    const tools = ['sh', 'dirname', 'id', 'env'];
    for (const name of tools) copy_file(run('which', [name]).toString().trim(), `${bin}/${name}`);
    const setup = start_program('/bin/sh', ['scripts/dev/setup.sh', 'redis'], { PATH: bin }, root);
    assert.equal(await setup.exited, 1);
    assert.match(setup.stderr(), /^falta: redis-server\. Instale com: .*apt-get.*brew.*\n$/);
  });
});

test('package.json e fonte dizem a mesma versão, e o pacote não depende de nada', () => {
  const manifest = JSON.parse(read_file(path.join(root, 'package.json'), 'utf8'));
  assert.equal(manifest.version, version);
  assert.equal(manifest.dependencies, undefined, 'a redis já vai dentro de json-proxy.js');
  assert.ok(manifest.files.includes('json-proxy.js'));
});

test('o package-lock.json fixa tudo o que roda, e nada disso tem script de instalação', () => {
  const lock = JSON.parse(read_file(path.join(root, 'package-lock.json'), 'utf8'));
  const packages: Record<string, Record<string, unknown>> = lock.packages;
  const running = new Set<string>();
  const visit = (name: string) => {
    if (running.has(name)) return;
    running.add(name);
    Object.keys(packages[`node_modules/${name}`]?.dependencies ?? {}).forEach(visit);
  };
  visit('redis');
  assert.ok(running.size > 1);
  for (const name of running) {
    const { integrity, hasInstallScript: has_script } = packages[`node_modules/${name}`] ?? {};
    assert.match(name, /^(redis|@redis\/\w[\w-]*)$/);
    assert.match(String(integrity), /^sha512-/);
    assert.equal(has_script, undefined);
  }
});

test('uma tarefa com $$, $& e o mais que o n8n até 1.111 expande chega como é', () => {
  const text = JSON.stringify({ body: "$$ $& $` $' $1 {{ 1 }} \\u0024", headers: { 'X-$': '$' } });
  for (const name of redis_workflow_names) {
    const expression = String(node_named(read_workflow(name), 'Task').parameters.jsonOutput);
    const [, code = ''] = /^=\{\{(.*)\}\}$/s.exec(expression) ?? [];
    const value: string = new Function('$json', `return ${code}`)({ task: text });
    // o Edit Fields de antes trocava a expressão pelo valor dela assim
    const written = expression.slice(1).replace(expression.slice(1), value);
    assert.deepEqual(JSON.parse(written), JSON.parse(text), name);
    assert.deepEqual(JSON.parse(value), JSON.parse(text), name);
  }
});
