/*
 * Um n8n de verdade, importado e publicado pela linha de comando dele, com ou sem o pacote de nós
 * de scripts/n8n/nodes, que se instala como o n8n o instala.
 */

import assert from 'node:assert/strict';
import { execFileSync as run } from 'node:child_process';
import {
  existsSync as exists,
  mkdirSync as make_dir,
  readFileSync as read_file,
  rmSync as remove,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import {
  type connect_redis,
  end_of,
  free_port,
  type local_program,
  type open_stream,
  type proxy,
  start_program,
  task_named,
  type task_names,
  temp_dir,
  until,
} from '../harness';
import { type page, start_browser } from './browser';
import { guest_dir, type workflow } from './n8n_helpers';

const dir = guest_dir('n8n');

/** Com que o pacote dos nós é montado. */
const tools = path.join(__dirname, '..', '..', 'scripts', 'n8n', 'nodes', 'node_modules');

/** Por que os testes que usam um n8n são pulados, se o são. */
export const skip_n8n = dir && exists(tools) ? false : 'sem n8n: npm run test:n8n o instala';

/** Quanto o n8n pode demorar a criar o banco dele, e a subir. */
const start_limit_ms = 180_000;

/** Quanto um workflow pode demorar, com a máquina muito ocupada. */
export const run_limit_ms = 150_000;

/** O que um n8n tem ao subir. `has_nodes`: o pacote de nós do projeto. */
export type n8n_contents = {
  credentials: object[];
  workflows: workflow[];
  has_nodes?: boolean;
  env?: NodeJS.ProcessEnv;
};

/** Um n8n que roda. `again` sobe outro, com a mesma pasta, depois que este desceu. */
export type n8n_guest = {
  url: string;
  program: local_program;
  again: () => Promise<n8n_guest>;
};

const package_dir = path.join(__dirname, '..', '..', 'scripts', 'n8n', 'nodes');

/**
 * Roda um comando do n8n até o fim.
 * @param env o ambiente dele
 * @param args o comando
 */
async function run_n8n(env: NodeJS.ProcessEnv, args: string[]): Promise<void> {
  const command = start_program(path.join(dir ?? '', 'node_modules/.bin/n8n'), args, env);
  assert.equal(await command.exited, 0, command.stdout() + command.stderr());
}

/**
 * Publica workflows, como publish:workflow o faz: este comando só publica um, e cada um sobe um n8n
 * inteiro.
 * @param home a pasta do n8n
 * @param ids os workflows
 */
function publish(home: string, ids: string[]): void {
  const script = `
    const { Database } = require('sqlite3');
    const [file, ...ids] = process.argv.slice(1);
    const db = new Database(file);
    const marks = ids.map(() => '?').join();
    const change = 'UPDATE workflow_entity SET active = 1, activeVersionId = versionId';
    db.run(change + ' WHERE id IN (' + marks + ')', ids, function (error) {
      if (error || this.changes !== ids.length) throw error ?? new Error(this.changes + ' changes');
    });`;
  const args = ['-e', script, path.join(home, '.n8n', 'database.sqlite'), ...ids];
  if (ids.length > 0) run(process.execPath, args, { cwd: dir });
}

/**
 * Monta e empacota os nós.
 * @param folder onde pôr o pacote
 * @returns o caminho dele
 */
export function pack_nodes(folder: string): string {
  const args = ['pack', '--silent', '--pack-destination', folder];
  const said = run('npm', args, { cwd: package_dir, encoding: 'utf8' }).trim().split('\n');
  return path.join(folder, said.at(-1) ?? '');
}

/**
 * Instala os nós na pasta de um n8n, com os passos da tela de nós da comunidade depois do download:
 * o pacote é aberto na pasta, perde as dependências de quem o monta, e o npm instala as demais.
 * @param home a pasta do n8n
 */
function install_nodes(home: string): void {
  const nodes = path.join(home, '.n8n', 'nodes');
  const target = path.join(nodes, 'node_modules', 'n8n-nodes-json-proxy');
  make_dir(target, { recursive: true });
  const file = pack_nodes(home);
  run('tar', ['-xzf', file, '-C', target, '--strip-components=1']);
  remove(file);
  const manifest = path.join(target, 'package.json');
  const kept = JSON.parse(read_file(manifest, 'utf8'));
  for (const name of ['devDependencies', 'peerDependencies']) delete kept[name];
  write_file(manifest, JSON.stringify(kept));
  const flags = '--audit=false --fund=false --bin-links=false --install-strategy=shallow';
  const more = '--ignore-scripts=true --package-lock=false --offline';
  run('npm', ['install', ...`${flags} ${more}`.split(' ')], { cwd: target, stdio: 'ignore' });
  const dependencies = { [kept.name]: kept.version };
  write_file(
    path.join(nodes, 'package.json'),
    JSON.stringify({ name: 'installed-nodes', private: true, dependencies }),
  );
}

/**
 * Sobe um n8n cuja pasta está pronta, e espera que ele escute.
 * @param env o ambiente dele
 * @param ids os workflows publicados
 * @returns o n8n
 */
async function run_guest(env: NodeJS.ProcessEnv, ids: string[]): Promise<n8n_guest> {
  const program = start_program(path.join(dir ?? '', 'node_modules/.bin/n8n'), ['start'], env);
  await program.wait_for(/Editor is now accessible/, start_limit_ms);
  for (const id of ids) {
    await program.wait_for(new RegExp(`Activated workflow "${id}"`), start_limit_ms);
  }
  const url = `http://127.0.0.1:${env.N8N_PORT}`;
  return { url, program, again: () => run_guest(env, ids) };
}

/**
 * Sobe um n8n com credenciais e workflows, e espera que ele escute os canais.
 * @param contents as credenciais, na forma de import:credentials; os workflows, com identificador
 * @returns o n8n
 */
export async function start_n8n(contents: n8n_contents): Promise<n8n_guest> {
  const { credentials, workflows, has_nodes = false } = contents;
  const home = temp_dir();
  const env = {
    N8N_USER_FOLDER: home,
    N8N_LISTEN_ADDRESS: '127.0.0.1',
    N8N_PORT: String(await free_port()),
    N8N_RUNNERS_BROKER_PORT: String(await free_port()),
    N8N_DIAGNOSTICS_ENABLED: 'false',
    N8N_VERSION_NOTIFICATIONS_ENABLED: 'false',
    N8N_TEMPLATES_ENABLED: 'false',
    N8N_PERSONALIZATION_ENABLED: 'false',
    N8N_SECURE_COOKIE: 'false',
    ...contents.env,
  };
  if (has_nodes) install_nodes(home);
  const folder = path.join(home, 'workflows');
  make_dir(folder);
  for (const one of workflows) {
    write_file(path.join(folder, `${one.id}.json`), JSON.stringify(one));
  }
  write_file(path.join(home, 'credentials.json'), JSON.stringify(credentials));
  await run_n8n(env, ['import:credentials', `--input=${home}/credentials.json`]);
  await run_n8n(env, ['import:workflow', '--separate', `--input=${folder}`]);
  const ids = workflows.map(({ id = '' }) => id).filter((id) => !id.startsWith('draft'));
  publish(home, ids);
  return run_guest(env, ids);
}

/** O dono do n8n. */
const owner = { email: 'a@b.com', firstName: 'A', lastName: 'B', password: 'Senha12345' };

/**
 * Cria o dono do n8n e fala com ele como o editor.
 * @param url o endereço do n8n
 * @returns uma função que faz um pedido e dá o campo `data` da resposta
 */
export async function open_session(url: string) {
  const kind = { 'Content-Type': 'application/json' };
  const setup = { method: 'POST', headers: kind, body: JSON.stringify(owner) };
  const { headers: given } = await fetch(`${url}/rest/owner/setup`, setup);
  const headers = { ...kind, Cookie: (given.getSetCookie()[0] ?? '').split(';')[0] ?? '' };
  // biome-ignore lint/suspicious/noExplicitAny: o que o n8n responde
  return async (method: string, place: string, content?: object): Promise<any> => {
    const body = content ? { body: JSON.stringify(content) } : {};
    const response = await fetch(`${url}/rest/${place}`, { method, headers, ...body });
    const text = await response.text();
    assert.ok(response.ok, `${method} ${place}: ${response.status} ${text}`);
    return JSON.parse(text).data;
  };
}

/**
 * Entra como o dono do n8n, que cria se ainda não há, e abre um workflow.
 * @param url o endereço do n8n
 * @param id o workflow, e um nó a abrir: "id/nó"; um novo, se não é dado
 * @returns a página do editor
 */
export async function open_editor(url: string, id = 'new'): Promise<page> {
  const browser = await start_browser();
  const page = await browser.open(url, { width: 1500, height: 860 });
  const login = { emailOrLdapLoginId: owner.email, password: owner.password };
  const asked = [
    ['owner/setup', owner],
    ['login', login],
  ].map(([place, content]) => {
    const headers = { 'Content-Type': 'application/json' };
    const request = { method: 'POST', headers, body: JSON.stringify(content) };
    return `await fetch('/rest/${place}', ${JSON.stringify(request)}).then(({ ok }) => ok)`;
  });
  assert.equal(await page.evaluate(`(async () => ${asked.join(' || ')})()`), true);
  await page.evaluate(`location.href = '/workflow/${id}'`);
  await page.wait_for(`document.querySelector('[data-test-id="canvas-wrapper"]')`, run_limit_ms);
  return page;
}

/** Um fluxo aberto por um teste. */
type stream = ReturnType<typeof open_stream>;

/** Dá as chaves da tarefa de um fluxo. */
export async function task_of(stream: stream): Promise<task_names> {
  return task_named(String((await stream.head()).headers['x-task-uuid']));
}

/** Confere como um fluxo, já lido até o fim, terminou, e que não deixou chave alguma. */
export async function see_clean_end(
  db: Awaited<ReturnType<typeof connect_redis>>,
  proxy: proxy,
  stream: stream,
): Promise<void> {
  const task = await task_of(stream);
  assert.equal((await end_of(proxy, task)).ending, 'done');
  await until('nenhuma chave', async () => (await db.keys(`*${task.uuid}`)).length === 0);
}
