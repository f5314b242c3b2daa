/*
 * O Dockerfile e o compose.yaml sem Docker: cada passo da imagem é executado numa pasta, com o que
 * o .dockerignore deixa passar, e os comandos do compose rodam como processos comuns.
 */

import assert from 'node:assert/strict';
import { spawnSync as run } from 'node:child_process';
import {
  cpSync as copy_tree,
  mkdirSync as make_dir,
  symlinkSync as make_link,
  readFileSync as read_file,
  rmSync as remove,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import { before, test } from 'node:test';
import { fetch_all, free_port, start_program, start_redis, temp_dir, until } from '../harness';

const root = path.join(__dirname, '..', '..');
const dockerfile = read_file(path.join(root, 'scripts/docker/Dockerfile'), 'utf8');
const compose = read_file(path.join(root, 'scripts/docker/compose.yaml'), 'utf8');

/** Onde o Docker põe o segredo. */
const secret_path = '/run/secrets/redis_password';

/** Uma etapa da imagem: a pasta que faz de raiz do contêiner, e o que a etapa declara. */
type stage = { dir: string; workdir: string; declared: Map<string, string> };

let stages: Map<string, stage>;
let tools: string;

/**
 * Copia o que o Docker mandaria: o que o .dockerignore deixa passar.
 * @returns a pasta
 */
function build_context(): string {
  const dir = temp_dir();
  const rules = read_file(path.join(root, '.dockerignore'), 'utf8').trim().split('\n');
  const [everything, ...rest] = rules.filter((rule) => !rule.startsWith('#'));
  assert.equal(everything, '*');
  for (const rule of rest) {
    if (!rule.startsWith('!')) remove(path.join(dir, rule), { recursive: true });
    else
      copy_tree(path.join(root, rule.slice(1)), path.join(dir, rule.slice(1)), { recursive: true });
  }
  return dir;
}

/**
 * Executa um passo de uma etapa.
 * @param at a etapa; muda
 * @param verb a instrução
 * @param text o resto da linha
 * @param context a pasta do contexto
 * @param done as etapas prontas
 * @throws AssertionError se o passo falha ou não é conhecido
 */
function take_step(at: stage, verb: string, text: string, context: string, done: typeof stages) {
  const place = (name: string) =>
    path.join(at.dir, name.startsWith('/') ? name : path.join(at.workdir, name));
  if (verb === 'WORKDIR') {
    at.workdir = text;
    make_dir(place('.'), { recursive: true });
  } else if (verb === 'COPY') {
    const [, from, names = ''] = /^(?:--from=(\w+) )?(.*)$/.exec(text) ?? [];
    const source = from ? (done.get(from)?.dir ?? '') : context;
    const sources = names.split(' ');
    const target = sources.pop() ?? '';
    for (const name of sources) {
      const to = target.endsWith('/') ? path.join(target, path.basename(name)) : target;
      copy_tree(path.join(source, name), place(to), { recursive: true });
    }
  } else if (verb === 'RUN') {
    const { status, stderr } = run('sh', ['-c', text], { cwd: place('.'), encoding: 'utf8' });
    assert.equal(status, 0, `${text}: ${stderr}`);
  } else {
    const declarations = ['USER', 'EXPOSE', 'STOPSIGNAL', 'HEALTHCHECK', 'ENTRYPOINT', 'CMD'];
    assert.ok(declarations.includes(verb), `instrução que o teste não conhece: ${verb}`);
    at.declared.set(verb, text);
  }
}

/**
 * Executa o Dockerfile.
 * @returns as etapas, por nome; a última chama-se ""
 */
function build_image(): Map<string, stage> {
  const context = build_context();
  const done: typeof stages = new Map();
  let at: stage | undefined;
  const joined = dockerfile.replace(/^#.*\n/gm, '').replace(/ *\\\n */g, ' ');
  for (const [, verb = '', text = ''] of joined.matchAll(/^([A-Z]+) (.*)$/gm)) {
    if (verb === 'ARG') continue;
    if (verb === 'FROM') {
      const [base = '', , name = ''] = text.split(' ');
      const { dir = temp_dir(), workdir = '/' } = done.get(base) ?? {};
      assert.ok(done.has(base) || base.startsWith('node:'), `base desconhecida: ${base}`);
      at = { dir, workdir, declared: new Map() };
      done.set(name, at);
    } else if (at) {
      take_step(at, verb, text, context, done);
    }
  }
  return done;
}

/**
 * Dá o comando de um serviço do compose, com o segredo e os endereços daqui.
 * @param service nome do serviço
 * @param secret arquivo com a senha
 * @returns o comando de shell
 */
function compose_command(service: string, secret: string): string {
  const pattern = new RegExp(
    `^  ${service}:\\n[\\s\\S]*?      - -c\\n      - \\|\\n((?: {8}.*\\n)+)`,
    'm',
  );
  const [, block = ''] = pattern.exec(compose) ?? [];
  assert.notEqual(block, '', service);
  return block.replace(/^ {8}/gm, '').replaceAll('$$', '$').replaceAll(secret_path, secret);
}

/**
 * Espera que uma prova de saúde dê o resultado.
 * @param command a prova, em shell
 * @param env variáveis de ambiente a mais
 * @param healthy o resultado
 */
async function health_is(command: string, env: NodeJS.ProcessEnv, healthy: boolean): Promise<void> {
  const search = `${tools}:${process.env.PATH}`;
  const options = { env: { ...process.env, PATH: search, ...env }, encoding: 'utf8' as const };
  let seen = '';
  await until(`saúde ${healthy}`, () => {
    const { status, stderr } = run('sh', ['-c', command], options);
    seen = `${status} ${stderr}`;
    return (status === 0) === healthy;
  }).catch((error) => assert.fail(`${error.message}; último: ${seen}`));
}

/**
 * Dá a prova de saúde da imagem.
 * @returns o comando de shell
 */
function image_health(): string {
  const [, command = ''] =
    /CMD (.*)$/.exec(stages.get('')?.declared.get('HEALTHCHECK') ?? '') ?? [];
  return command;
}

before(() => {
  tools = temp_dir();
  const busybox = run('which', ['busybox'], { encoding: 'utf8' }).stdout.trim();
  assert.notEqual(busybox, '', 'falta o busybox: sh scripts/setup.sh busybox');
  make_link(busybox, path.join(tools, 'wget'));
  stages = build_image();
});

test('a imagem: sem root, com STOPSIGNAL, e só o programa; a saúde segue o Redis', async () => {
  const { dir = '', declared = new Map() } = stages.get('') ?? {};
  assert.equal(declared.get('USER'), 'node');
  const entry: string[] = JSON.parse(declared.get('ENTRYPOINT') ?? '[]');
  assert.deepEqual(entry, ['node', '/opt/json-proxy/json-proxy.js']);
  const redis = await start_redis();
  const port = String(await free_port());
  const env = { HTTP_PORT: port, REDIS_SERVER: redis.server };
  const proxy = start_program(process.execPath, [path.join(dir, entry[1] ?? '')], env);
  await proxy.wait_for(/ listen url=/);
  await health_is(image_health(), env, true);
  await redis.stop();
  await health_is(image_health(), env, false);
  assert.equal(await proxy.stop(declared.get('STOPSIGNAL')), 0);
});

test('o compose: o Redis com senha e em disco, o proxy e o worker servem um pedido', async () => {
  const secret = path.join(temp_dir(), 'senha');
  write_file(secret, 'segredo\n');
  const redis_port = await free_port();
  const data = temp_dir();
  const entrypoint = `#!/bin/sh\nexec "$@" --port ${redis_port} --bind 127.0.0.1 --dir ${data}\n`;
  write_file(path.join(tools, 'docker-entrypoint.sh'), entrypoint, { mode: 0o755 });
  const server = `127.0.0.1:${redis_port}/1`;
  const redis = start_program('sh', ['-c', compose_command('redis', secret)], {
    PATH: `${tools}:${process.env.PATH}`,
  });
  await redis.wait_for(/Ready to accept connections/);
  const [, health = ''] = /test: (REDISCLI_AUTH.*)\n/.exec(compose) ?? [];
  const check = health.replaceAll('$$', '$').replace('redis-cli', `redis-cli -p ${redis_port}`);
  await health_is(check.replaceAll(secret_path, secret), {}, true);
  await health_is(check.replaceAll(secret_path, '/dev/null'), {}, false);
  const arrangement = run('redis-cli', ['-p', String(redis_port), 'config', 'get', 'appendonly'], {
    env: { ...process.env, REDISCLI_AUTH: 'segredo' },
    encoding: 'utf8',
  });
  assert.equal(arrangement.stdout, 'appendonly\nyes\n');
  const file = path.join(stages.get('')?.dir ?? '', 'opt/json-proxy/json-proxy.js');
  const settings = { REDIS_SERVER: server, REDIS_PASSWORD_FILE: secret, HTTP_PORT: '0' };
  const proxy = start_program(process.execPath, [file], settings);
  const [, port] = await proxy.wait_for(/ listen url=\S+:(\d+)\n/);
  const { dir = '', workdir = '' } = stages.get('worker') ?? {};
  const command = compose_command('worker', secret);
  const worker = start_program('sh', ['-c', command], { REDIS_SERVER: server }, dir + workdir);
  await worker.wait_for(/ouvindo/);
  const reply = await fetch_all({ port: Number(port) }, { path: '/demo', body: 'oi' });
  assert.equal(reply.body.trimEnd().split('\n').length, 5, reply.body);
  assert.equal(await redis.stop(), 0, 'o Redis não recebeu o sinal da parada');
});
