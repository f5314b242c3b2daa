/*
 * O que se entrega além do arquivo: o binário com o Node dentro, e o pacote do npm instalado sem
 * rede numa pasta vazia. Cada um roda de verdade, contra um Redis de verdade.
 */

import assert from 'node:assert/strict';
import { execFileSync as run, spawnSync as spawn_sync } from 'node:child_process';
import {
  copyFileSync as copy_file,
  existsSync as file_exists,
  readdirSync as list_dir,
  symlinkSync as make_link,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import { before, describe } from 'node:test';
import { version } from '../../json-proxy';
import { build_binary } from '../../scripts/dev/binary';
import { install_package, pack_project } from '../../scripts/dev/package';
import {
  begin,
  fetch_all,
  type local_redis,
  type proxy,
  start_program,
  start_proxy,
  start_redis,
  start_worker,
  temp_dir,
  test,
  until,
} from '../harness';

const binary = path.join(temp_dir(), 'json-proxy');
let redis: local_redis;

before(async () => {
  redis = await start_redis();
  await build_binary(binary);
});

/**
 * Sobe um programa instalado, numa pasta vazia, e espera que atenda.
 * @param command o programa
 * @param channel canal só dele
 * @param args argumentos a mais
 * @param env variáveis de ambiente a mais
 * @returns o proxy
 */
async function start_installed(
  command: string,
  channel: string,
  args: string[] = [],
  env: NodeJS.ProcessEnv = {},
): Promise<proxy> {
  const basics = ['-p', '0', '--host', '127.0.0.1', '-R', redis.server, '-C', channel];
  const program = start_program(command, [...basics, ...args], env, temp_dir());
  const [, url = '', port = ''] = await program.wait_for(/ listen url=(http:\/\/\S+?:(\d+))\n/);
  return { ...program, url, port: Number(port) };
}

/**
 * Confere que um proxy transmite as linhas uma a uma, e que nada sobra no Redis.
 * @param proxy o proxy
 * @param channel o canal dele
 */
async function check_stream(proxy: proxy, channel: string): Promise<void> {
  const worker = await start_worker(redis, channel);
  const { stream, task } = await begin(proxy, worker, ['{"n": 1}', '{"n": 2}']);
  await worker.client.del(task.task_key);
  assert.deepEqual(await stream.rest(), []);
  await proxy.wait_for(new RegExp(` end task=${task.uuid} ending=done status=200 lines=2 `));
  assert.deepEqual(await worker.client.keys(`*${task.uuid}`), []);
}

/**
 * Espera os processos que atendem.
 * @param proxy o proxy
 * @param count quantos já devem ter ficado prontos, desde o começo
 * @returns o pid de cada um
 */
function ready_processes(proxy: proxy, count: number): Promise<number[]> {
  return until(`${count} processos prontos`, () => {
    const found = [...proxy.stdout().matchAll(/ process_ready worker=\d pid=(\d+)\n/g)];
    return found.length < count ? undefined : found.map(([, pid]) => Number(pid));
  });
}

describe('o binário', () => {
  test('diz a versão, sem Node no PATH, sozinho numa pasta vazia', () => {
    const dir = temp_dir();
    copy_file(binary, path.join(dir, 'json-proxy'));
    const options = { cwd: dir, encoding: 'utf8' as const, env: { PATH: dir } };
    assert.equal(run('json-proxy', ['--version'], options), `${version}\n`);
    assert.match(run('./json-proxy', ['--help'], options), /HTTP_PORT/);
    assert.deepEqual(list_dir(dir), ['json-proxy']);
  });

  test('transmite um fluxo e para com 0, sem nada em stderr', async () => {
    const proxy = await start_installed(binary, 'canal_binario', ['-P', '0']);
    await check_stream(proxy, 'canal_binario');
    assert.equal(await proxy.stop(), 0);
    assert.equal(proxy.stderr(), '');
  });

  test('recusa um argumento desconhecido com 2', async () => {
    const program = start_program(binary, ['--porta', '1']);
    assert.equal(await program.exited, 2);
    assert.match(program.stderr(), /^json-proxy: opção desconhecida: --porta; /);
  });

  for (const how of ['argumento', 'ambiente']) {
    test(`com dois processos, pedidos por ${how}, atende, troca o que morre e para`, async () => {
      const channel = `canal_${how}`;
      const [args, env] = how === 'argumento' ? [['-w', '2'], {}] : [[], { WORKERS: '2' }];
      const proxy = await start_installed(binary, channel, args, env);
      const pids = await ready_processes(proxy, 2);
      await check_stream(proxy, channel);
      await check_stream(proxy, channel); // o cluster reparte em turnos: o outro processo
      assert.match(proxy.stdout(), / end task=\S+ .* worker=1\n/);
      assert.match(proxy.stdout(), / end task=\S+ .* worker=2\n/);
      process.kill(pids[0] ?? 0, 'SIGKILL');
      await ready_processes(proxy, 3);
      assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
      assert.equal(await proxy.stop(), 0);
      const said = proxy.stderr().trimEnd().split('\n');
      const complaints = said.filter((line) => !line.includes(' unclaimed '));
      assert.equal(complaints.length, 1, proxy.stderr());
      assert.match(complaints[0] ?? '', / process_died worker=\d signal=SIGKILL pause=100$/);
    });
  }

  test('não se faz de um executável que não serve', async () => {
    const outfile = path.join(temp_dir(), 'json-proxy');
    const script = path.join(temp_dir(), 'script');
    write_file(script, '#!/bin/sh\n');
    await assert.rejects(build_binary(outfile, script), /este Node não serve.*supported format/s);
    await assert.rejects(build_binary(outfile, '/bin/sh'), /este Node não serve.*sentinel/s);
    assert.ok(!file_exists(outfile));
  });
});

describe('o pacote do npm', () => {
  test('leva só o programa, os manuais e o que se copia, instala-se sem rede, e roda', async () => {
    const tarball = pack_project();
    const listed = run('tar', ['-tzf', tarball], { encoding: 'utf8' }).trim().split('\n').sort();
    const manuals = ['README', 'MANUAL'].flatMap((name) => [`${name}.md`, `${name}.pt-BR.md`]);
    const to_copy = ['images/flow.svg'];
    const workers = ['worker', 'worker/examples'];
    const n8n = ['n8n', 'n8n/redis-nodes'];
    for (const folder of [...workers, ...n8n, 'deploy/systemd', 'deploy/grafana']) {
      const inside = list_dir(`scripts/${folder}`, { withFileTypes: true });
      const found = inside.filter((entry) => entry.isFile()).map(({ name }) => name);
      to_copy.push(...found.map((name) => `${folder}/${name}`));
    }
    const kit = [
      'index.js',
      'index.mjs',
      'index.d.ts',
      'index.d.mts',
      'worker.d.ts',
      'adapters.d.ts',
    ];
    const names = [...manuals, 'CHANGELOG.md', 'LICENSE', 'json-proxy.js', 'package.json'];
    names.push(...kit.map((name) => `kit/${name}`));
    const expected = [...names, ...to_copy.map((name) => `scripts/${name}`)];
    assert.deepEqual(listed, expected.map((name) => `package/${name}`).sort());
    const modules = path.join(install_package(tarball), 'node_modules');
    const visible = list_dir(modules).filter((name) => !name.startsWith('.'));
    assert.deepEqual(visible, ['ndjson-proxy']);
    const command = path.join(modules, '.bin', 'json-proxy');
    assert.equal(run(command, ['-V'], { encoding: 'utf8' }), `${version}\n`);
    const proxy = await start_installed(command, 'canal_pacote');
    await check_stream(proxy, 'canal_pacote');
    assert.equal(await proxy.stop(), 0);
    assert.equal(proxy.stderr(), '');
  });

  test('ndjson-proxy/worker serve a CommonJS e a ESM, com tipos, ao lado do redis', async () => {
    const dir = install_package(pack_project());
    const ours = path.join(__dirname, '../../node_modules');
    for (const name of ['redis', '@redis', '@types', 'undici-types']) {
      make_link(path.join(ours, name), path.join(dir, 'node_modules', name));
    }
    const use = 'serve_fetch((request: Request) => Response.json({ asked: request.method }));\n';
    const files = {
      'answer.mts': `import { serve_fetch } from 'ndjson-proxy/worker';\n${use}`,
      'answer.cts': `import { serve_fetch } from 'ndjson-proxy/worker';\n${use}`,
      'wrong.mts': "import { serve } from 'ndjson-proxy/worker';\nserve(7);\n",
    };
    for (const [name, text] of Object.entries(files)) write_file(path.join(dir, name), text);
    const tsc = path.join(ours, '.bin/tsc');
    const flags = ['--strict', '--module', 'nodenext', '--target', 'es2022', '--types', 'node'];
    run(tsc, [...flags, 'answer.mts', 'answer.cts'], { cwd: dir });
    const refused = spawn_sync(tsc, [...flags, '--noEmit', 'wrong.mts'], { cwd: dir });
    assert.match(String(refused.stdout), /'number' is not assignable/);
    for (const file of ['answer.mjs', 'answer.cjs']) {
      const channel = `canal_${file}`;
      const proxy = await start_proxy(redis, ['-C', channel]);
      const env = { REDIS_SERVER: redis.server, REDIS_CHANNEL: channel };
      const worker = start_program(process.execPath, [file], env, dir);
      await worker.wait_for(/ouvindo/);
      assert.equal((await fetch_all(proxy)).body, '{"asked":"GET"}');
      assert.equal(await worker.stop(), 0);
      assert.equal(worker.stderr(), '');
    }
  });
});
