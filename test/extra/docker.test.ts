/*
 * O Dockerfile e o compose.yaml sem Docker: o buildah monta a imagem sobre uma base feita aqui, e
 * os comandos do compose rodam como processos comuns, com os arquivos dela.
 */

import assert from 'node:assert/strict';
import { spawnSync as run } from 'node:child_process';
import {
  chmodSync as chmod,
  cpSync as copy_tree,
  readdirSync as list_dir,
  mkdirSync as make_dir,
  symlinkSync as make_link,
  readFileSync as read_file,
  realpathSync as real_path,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import { before } from 'node:test';
import {
  fetch_all,
  free_port,
  start_program,
  start_redis,
  temp_dir,
  test,
  until,
} from '../harness';

const root = path.join(__dirname, '..', '..');
const compose = read_file(path.join(root, 'scripts/deploy/docker/compose.yaml'), 'utf8');

/** Onde ficam, na base, os certificados em que esta máquina confia além dos do Node. */
const certificates = '/etc/extra.crt';

/** Onde o Docker põe o segredo. */
const secret_path = '/run/secrets/redis_password';

/** O que a imagem declara, na forma do Docker. */
type image_config = Record<'User' | 'StopSignal', string> &
  Record<'Entrypoint', string[]> &
  Record<'Healthcheck', Record<'Test', string[]>>;

/** Uma imagem montada: a raiz de um contêiner dela, quem põe um comando nele, e o que declara. */
type image = {
  dir: string;
  config: image_config;
  inside: (command: string[], env?: NodeJS.ProcessEnv) => [string, string[]];
};

/** Pastas que a base precisa ter. */
const base_dirs = ['bin', 'etc', 'home/node', 'root', 'tmp', 'usr/bin', 'usr/lib'];

let images: Record<'proxy' | 'worker', image>;

/**
 * Diz por que o buildah não montaria imagens aqui.
 * @returns o motivo; false se as monta
 */
function why_no_buildah(): string | false {
  if (process.getuid?.() !== 0) return 'só root monta imagens sem mais preparo';
  if (run('buildah', ['--version']).status !== 0) return 'falta o buildah';
  return run('unshare', ['--mount', 'true']).status === 0 ? false : 'sem namespaces de montagem';
}

/**
 * Acha um programa no PATH.
 * @param name o nome
 * @returns o caminho do arquivo, sem elos
 * @throws AssertionError se não há
 */
function find_program(name: string): string {
  const found = run('which', [name], { encoding: 'utf8' }).stdout.trim();
  assert.notEqual(found, '', `falta o ${name}: sh scripts/dev/setup.sh buildah busybox`);
  return real_path(found);
}

/**
 * Prepara uma base no lugar da node:24-alpine, que vem de um registro de imagens: o Node e o npm
 * desta máquina, o busybox, que também é o shell e o wget da outra, e as bibliotecas deles.
 * @returns a pasta
 */
function make_base(): string {
  const dir = temp_dir();
  for (const name of base_dirs) make_dir(path.join(dir, name), { recursive: true });
  const busybox = find_program('busybox');
  copy_tree(busybox, path.join(dir, 'bin/busybox'));
  copy_tree(process.execPath, path.join(dir, 'usr/bin/node'));
  const applets = run('busybox', ['--list'], { encoding: 'utf8' }).stdout.trim().split('\n');
  for (const name of applets) {
    if (name !== 'busybox') make_link('busybox', path.join(dir, 'bin', name));
  }
  make_link('/bin/env', path.join(dir, 'usr/bin/env'));
  const npm = path.join(find_program('npm'), '../..');
  copy_tree(npm, path.join(dir, 'usr/lib/npm'), { recursive: true, dereference: true });
  make_link('/usr/lib/npm/bin/npm-cli.js', path.join(dir, 'usr/bin/npm'));
  const needed = run('ldd', [process.execPath, busybox], { encoding: 'utf8' }).stdout;
  for (const [library = ''] of new Set(needed.match(/\/\S+\.so\S*/g)).entries()) {
    make_dir(path.join(dir, path.dirname(library)), { recursive: true });
    copy_tree(library, path.join(dir, library), { dereference: true });
  }
  const users = 'root:x:0:0::/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n';
  write_file(path.join(dir, 'etc/passwd'), users);
  write_file(path.join(dir, 'etc/group'), 'root:x:0:\nnode:x:1000:\n');
  chmod(path.join(dir, 'tmp'), 0o1777);
  return dir;
}

/**
 * Prepara o buildah numa pasta só dele.
 * @returns os argumentos que vêm antes dos de um comando dele
 */
function prepare_buildah(): string[] {
  const dir = temp_dir();
  const policy = path.join(dir, 'policy.json');
  write_file(policy, '{"default": [{"type": "insecureAcceptAnything"}]}');
  const names = path.join(dir, 'registries.conf');
  write_file(names, 'unqualified-search-registries = ["docker.io"]\n');
  process.env.CONTAINERS_REGISTRIES_CONF = names;
  process.env.BUILDAH_ISOLATION = 'chroot';
  const places = ['--root', path.join(dir, 'root'), '--runroot', path.join(dir, 'run')];
  return [...places, '--storage-driver', 'vfs']; // copia a base a cada passo, mas não monta nada
}

/**
 * Roda um comando do buildah até o fim.
 * @param args os argumentos, com os de prepare_buildah
 * @returns o que ele escreveu
 * @throws AssertionError com o que ele disse em stderr
 */
function buildah(...args: string[]): string {
  const { status, stdout, stderr } = run('buildah', args, { cwd: root, encoding: 'utf8' });
  assert.equal(status, 0, `buildah ${args.join(' ')}: ${stdout}${stderr}`);
  return stdout.trim();
}

/**
 * Monta as imagens do Dockerfile sobre a base daqui, e abre um contêiner de cada uma.
 * @returns as imagens
 */
function build_images(): typeof images {
  const where = prepare_buildah();
  const base = buildah(...where, 'from', 'scratch');
  buildah(...where, 'copy', base, make_base(), '/');
  buildah(...where, 'config', '--env', 'PATH=/usr/bin:/bin', base);
  const { NODE_EXTRA_CA_CERTS: trusted } = process.env;
  if (trusted) {
    buildah(...where, 'copy', base, trusted, certificates);
    buildah(...where, 'config', '--env', `NODE_EXTRA_CA_CERTS=${certificates}`, base);
  }
  buildah(...where, 'commit', base, 'docker.io/library/node:daqui');
  const local = ['--pull-never', '--format', 'docker', '--build-arg', 'NODE=daqui'];
  const build = (name: string, ...target: string[]): image => {
    const file = ['-f', 'scripts/deploy/docker/Dockerfile', '-t', name, '.'];
    buildah(...where, 'bud', ...local, ...target, ...file);
    const { Docker: docker } = JSON.parse(buildah(...where, 'inspect', '--type', 'image', name));
    const container = buildah(...where, 'from', '--pull-never', name);
    const inside: image['inside'] = (command, env = {}) => {
      const variables = Object.entries(env).flatMap(([key, value]) => ['--env', `${key}=${value}`]);
      return ['buildah', [...where, 'run', ...variables, container, '--', ...command]];
    };
    return { dir: buildah(...where, 'mount', container), config: docker.config, inside };
  };
  return { proxy: build('json-proxy'), worker: build('worker', '--target', 'worker') };
}

/**
 * Dá o comando de um serviço do compose.
 * @param service nome do serviço
 * @returns o comando de shell
 */
function compose_command(service: string): string {
  const pattern = new RegExp(
    `^  ${service}:\\n[\\s\\S]*?      - -c\\n      - \\|\\n((?: {8}.*\\n)+)`,
    'm',
  );
  const [, block = ''] = pattern.exec(compose) ?? [];
  assert.notEqual(block, '', service);
  return block.replace(/^ {8}/gm, '').replaceAll('$$', '$');
}

/**
 * Espera que uma prova de saúde dê o resultado.
 * @param command o comando
 * @param args os argumentos
 * @param healthy o resultado
 */
async function health_is(command: string, args: string[], healthy: boolean): Promise<void> {
  let seen = '';
  await until(`saúde ${healthy}`, () => {
    const { status, stderr } = run(command, args, { encoding: 'utf8' });
    seen = `${status} ${stderr}`;
    return (status === 0) === healthy;
  }).catch((error) => assert.fail(`${error.message}; último: ${seen}`));
}

/**
 * Sobe o programa da imagem, como o Docker o subiria.
 * @param env as variáveis
 * @returns a porta em que atende, o pid, e `stop`: manda o sinal da imagem e dá o código de saída
 */
async function start_image(env: NodeJS.ProcessEnv) {
  const { config, inside } = images.proxy;
  const proxy = start_program(...inside(config.Entrypoint, env));
  const [, pid] = await proxy.wait_for(/ start version=.* pid=(\d+) /);
  const [, port] = await proxy.wait_for(/ listen url=\S+:(\d+)\n/);
  const stop = () => {
    process.kill(Number(pid), config.StopSignal); // o buildah não o repassa, como o Docker faz
    return proxy.exited;
  };
  return { port: Number(port), pid: Number(pid), stop };
}

const skip = why_no_buildah();

before(() => {
  if (!skip) images = build_images();
});

test('a imagem: sem root, com STOPSIGNAL, e só o programa; a saúde segue o Redis', {
  skip,
}, async () => {
  const { dir, config, inside } = images.proxy;
  assert.equal(config.User, 'node');
  assert.deepEqual(list_dir(path.join(dir, 'opt/json-proxy')), ['json-proxy.js']);
  const redis = await start_redis();
  const env = { HTTP_PORT: String(await free_port()), REDIS_SERVER: redis.server };
  const proxy = await start_image(env);
  assert.match(read_file(`/proc/${proxy.pid}/status`, 'utf8'), /^Uid:\t1000\t1000\t/m);
  const [kind, health = ''] = config.Healthcheck.Test;
  assert.equal(kind, 'CMD-SHELL');
  const check = inside(['sh', '-c', health], env);
  await health_is(...check, true);
  await redis.stop();
  await health_is(...check, false);
  assert.equal(await proxy.stop(), 0);
});

test('o compose: o Redis com senha e em disco, o proxy e o worker servem um pedido', {
  skip,
}, async () => {
  const secret = path.join(temp_dir(), 'senha');
  write_file(secret, 'segredo\n');
  const redis_port = await free_port();
  const [data, tools] = [temp_dir(), temp_dir()];
  const entrypoint = `#!/bin/sh\nexec "$@" --port ${redis_port} --bind 127.0.0.1 --dir ${data}\n`;
  write_file(path.join(tools, 'docker-entrypoint.sh'), entrypoint, { mode: 0o755 });
  const redis_command = compose_command('redis').replaceAll(secret_path, secret);
  const redis = start_program('sh', ['-c', redis_command], {
    PATH: `${tools}:${process.env.PATH}`,
  });
  await redis.wait_for(/Ready to accept connections/);
  const [, health = ''] = /test: (REDISCLI_AUTH.*)\n/.exec(compose) ?? [];
  const check = health.replaceAll('$$', '$').replace('redis-cli', `redis-cli -p ${redis_port}`);
  await health_is('sh', ['-c', check.replaceAll(secret_path, secret)], true);
  await health_is('sh', ['-c', check.replaceAll(secret_path, '/dev/null')], false);
  const arrangement = run('redis-cli', ['-p', String(redis_port), 'config', 'get', 'appendonly'], {
    env: { ...process.env, REDISCLI_AUTH: 'segredo' },
    encoding: 'utf8',
  });
  assert.equal(arrangement.stdout, 'appendonly\nyes\n');
  for (const { dir } of Object.values(images)) {
    make_dir(path.join(dir, path.dirname(secret_path)), { recursive: true });
    copy_tree(secret, path.join(dir, secret_path));
  }
  const env = { REDIS_SERVER: `127.0.0.1:${redis_port}/1` };
  const { port } = await start_image({ ...env, REDIS_PASSWORD_FILE: secret_path, HTTP_PORT: '0' });
  const command = ['sh', '-c', compose_command('worker')];
  const worker = start_program(...images.worker.inside(command, env));
  await worker.wait_for(/ouvindo/);
  const reply = await fetch_all({ port }, { path: '/demo', body: 'oi' });
  assert.equal(reply.body.trimEnd().split('\n').length, 5, reply.body);
  assert.equal(await redis.stop(), 0, 'o Redis não recebeu o sinal da parada');
});
