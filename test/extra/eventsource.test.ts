/*
 * O EventSource de um navegador de verdade contra o proxy: o trecho do manual, o fim que a página
 * ouve, e o que acontece quando ela não fecha a tempo ou o proxy cai: nunca uma segunda tarefa.
 */

import assert from 'node:assert/strict';
import http from 'node:http';
import type { AddressInfo as address_info } from 'node:net';
import { text as read_text } from 'node:stream/consumers';
import { before, describe } from 'node:test';
import {
  brisk,
  end_of,
  type local_redis,
  on_stop,
  start_cutter,
  start_program,
  start_proxy,
  start_redis,
  start_scene,
  temp_dir,
  test,
  until,
} from '../harness';
import { read_manual } from '../readme_helpers';
import {
  type browser,
  browser_limit_ms,
  firefox,
  skip_browser,
  skip_firefox,
  start_browser,
} from './browser';

let chrome: browser;
let redis: local_redis;

before(async () => {
  redis = await start_redis();
  if (!skip_browser) chrome = await start_browser();
});

/**
 * Serve uma página, de outra origem que não a do proxy.
 * @param script dá o que ela roda
 * @returns o endereço, e o que ela mandou por POST
 */
async function serve_page(script = () => '') {
  const posted: string[] = [];
  const server = http.createServer(async (request, response) => {
    if (request.method === 'POST') posted.push(await read_text(request));
    response.setHeader('Content-Type', 'text/html; charset=utf-8');
    response.end(`<!doctype html><title>página</title><script>${script()}</script>`);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  on_stop(async () => {
    server.close();
    server.closeAllConnections();
  });
  return { origin: `http://127.0.0.1:${(server.address() as address_info).port}`, posted };
}

/**
 * Sobe um proxy que aceita uma página, e a abre.
 * @returns o proxy com o seu worker, a origem e a página
 */
async function start_visit() {
  const { origin } = await serve_page();
  const scene = await start_scene(redis, [...brisk, '--cors-origin', origin]);
  return { ...scene, origin, page: await chrome.open(origin) };
}

/** Uma página que não ouve "end" e nunca fecha. */
const careless_page = (url: string) => `
  globalThis.seen = [];
  globalThis.source = new EventSource('${url}');
  source.onmessage = (event) => seen.push(event.data);
  source.onerror = () => seen.push('estado ' + source.readyState);
`;

describe('EventSource no Chromium', { skip: skip_browser, concurrency: true }, () => {
  test('o trecho do manual recebe cada linha na hora, e fecha no fim', async () => {
    const blocks = read_manual('MANUAL.md').blocks;
    const code = blocks.find(({ text }) => text.includes('new EventSource('))?.text ?? '';
    assert.ok(code.trimEnd().split('\n').length <= 5, code);
    const { proxy, worker, db, page } = await start_visit();
    await page.evaluate(`
      globalThis.shown = [];
      console.log = (...values) => shown.push(values);
      ${code.replace('http://127.0.0.1:8771', proxy.url).replace('const ', 'globalThis.')}
    `);
    const task = await worker.next();
    assert.equal(task.headers.Accept, 'text/event-stream');
    for (const n of [1, 2, 3]) {
      await db.rPush(task.task_list, JSON.stringify({ n, texto: 'olá' }));
      await page.wait_for(`shown.length === ${n}`);
    }
    await db.del(task.task_key);
    await page.wait_for('source.readyState === EventSource.CLOSED');
    const shown = await page.evaluate('shown');
    const lines = [1, 2, 3].map((n) => [{ n, texto: 'olá' }]);
    assert.deepEqual(shown, [...lines, ['done']]);
    assert.equal((await end_of(proxy, task)).ending, 'done');
  });

  test('um erro no meio é uma linha comum, e "end" diz qual foi', async () => {
    const { proxy, worker, db, page } = await start_visit();
    await page.evaluate(`
      ${careless_page(proxy.url)}
      source.addEventListener('end', (event) => {
        source.close();
        seen.push([event.data, event.lastEventId]);
      });
    `);
    const task = await worker.next();
    await db.rPush(task.task_list, '1');
    await page.wait_for('seen.length === 1');
    proxy.process.kill('SIGTERM');
    await page.wait_for('source.readyState === EventSource.CLOSED');
    const last = '{"error": "server shutting down"}';
    assert.deepEqual(await page.evaluate('seen'), [
      '1',
      last,
      ['{"ending": "shutdown"}', task.uuid],
    ]);
  });

  test('uma página que não fecha volta uma vez, leva 204 e desiste', async () => {
    const { proxy, worker, db, page } = await start_visit();
    await page.evaluate(careless_page(proxy.url));
    const task = await worker.next();
    await db.rPush(task.task_list, ['1', 'EOF']);
    await page.wait_for('source.readyState === EventSource.CLOSED');
    assert.deepEqual(await page.evaluate('seen'), ['1', 'estado 0', 'estado 2']);
    assert.deepEqual(worker.pending, []);
    assert.equal(proxy.stdout().split(' task task=').length, 2);
  });

  test('o proxy morre depois da primeira linha: quem volta leva 204', async () => {
    const { proxy, worker, db, page, origin, channel } = await start_visit();
    await page.evaluate(careless_page(proxy.url));
    const task = await worker.next();
    await db.rPush(task.task_list, '1');
    await page.wait_for('source.readyState === 1 && seen.length === 1');
    await proxy.stop('SIGKILL');
    const args = ['-C', channel, '-p', String(proxy.port), '--cors-origin', origin];
    const heir = await start_proxy(redis, args);
    await page.wait_for('source.readyState === EventSource.CLOSED');
    assert.deepEqual(worker.pending, []);
    assert.doesNotMatch(heir.stdout(), / task task=/);
  });

  test('com a página fechada a tarefa é cancelada', async () => {
    const { proxy, worker, db, page } = await start_visit();
    await page.evaluate(careless_page(proxy.url));
    const task = await worker.next();
    await db.rPush(task.task_list, '1');
    await page.wait_for('source.readyState === EventSource.OPEN');
    await page.ask('Page.close');
    assert.equal((await end_of(proxy, task)).ending, 'client_gone');
  });
});

/** Empurra as linhas de 1 a 300, e corta a conexão cinco vezes, cada uma com algumas a caminho. */
async function push_and_cut(visit: Awaited<ReturnType<typeof start_relayed>>): Promise<void> {
  const { proxies, relay, page, db, task } = visit;
  for (let round = 0; round < 6; round += 1) {
    const lines = Array.from({ length: 50 }, (_, index) => String(50 * round + index + 1));
    await db.rPush(task.task_list, lines);
    await page.wait_for(`seen.length > ${50 * round}`);
    if (round < 5) relay.cut(proxies[round % proxies.length]?.port);
  }
  await db.del(task.task_key);
}

/** Sobe três proxies com REPLAY atrás de um intermediário, e devolve a página que roda `script`. */
async function start_relayed(script: (url: string) => string) {
  const { origin } = await serve_page();
  const args = [...brisk, '--cors-origin', origin, '--replay', '60'];
  const { proxy, worker, db } = await start_scene(redis, args);
  const proxies = [await start_proxy(redis, args), await start_proxy(redis, args), proxy];
  const relay = await start_cutter(proxy.port);
  const page = await chrome.open(origin);
  const url = `http://127.0.0.1:${relay.port}`;
  await page.evaluate(`globalThis.seen = []; ${script(url)}; undefined`);
  return { proxies, relay, origin, page, url, db, task: await worker.next() };
}

/** As linhas que push_and_cut empurra, e o fim. */
const all_lines = [...Array.from({ length: 300 }, (_, index) => String(index + 1)), 'fim'];

describe('com REPLAY', { skip: skip_browser, concurrency: true }, () => {
  const watch = (url: string) => `
    globalThis.source = new EventSource('${url}');
    source.onmessage = (event) => seen.push(event.data);
    source.addEventListener('end', () => { source.close(); seen.push('fim'); });`;

  test('um EventSource cortado cinco vezes, e uma página aberta no meio, veem tudo', async () => {
    const visit = await start_relayed(watch);
    const { page, origin, proxies, db, task } = visit;
    await db.rPush(task.task_list, '0');
    await page.wait_for('seen.shift()');
    const late = await chrome.open(origin);
    await late.evaluate(
      `globalThis.seen = []; ${watch(`${proxies[0]?.url}/?lastEventId=${task.uuid}:0`)}`,
    );
    await push_and_cut(visit);
    await page.wait_for("seen.at(-1) === 'fim'");
    assert.deepEqual(await page.evaluate('seen'), all_lines);
    await late.wait_for("seen.at(-1) === 'fim'");
    assert.deepEqual(await late.evaluate('seen'), ['0', ...all_lines]);
  });

  test('o fetch do manual, cortado cinco vezes, volta cada vez a outro proxy', async () => {
    const [english, portuguese] = ['MANUAL.md', 'MANUAL.pt-BR.md'].map((file) => {
      const { blocks } = read_manual(file);
      return blocks.find(({ text }) => text.includes('function* lines_of('))?.text ?? '';
    });
    assert.equal(english, portuguese);
    assert.ok(english && english.trimEnd().split('\n').length <= 26, english);
    const visit = await start_relayed(
      (url) => `${english}
      (async () => {
        for await (const line of lines_of('${url}', { method: 'POST', body: 'x' })) seen.push(line);
        seen.push('fim');
      })().catch((error) => seen.push(String(error)))`,
    );
    await push_and_cut(visit);
    await visit.page.wait_for("seen.at(-1) === 'fim'");
    assert.deepEqual(await visit.page.evaluate('seen'), all_lines);
    const returns = visit.proxies.map(({ stdout }) => stdout().split(' replay task=').length - 1);
    assert.deepEqual(returns, [2, 2, 1]);
  });
});

describe('EventSource no Firefox', { skip: skip_firefox }, () => {
  test('uma página que não fecha volta uma vez, leva 204 e desiste', async () => {
    let url = '';
    const told = `
      const tell = (what) => fetch('/', { method: 'POST', body: what });
      source.addEventListener('message', ({ data, lastEventId }) => tell(data + lastEventId));
      source.addEventListener('error', () => tell('estado ' + source.readyState));`;
    const { origin, posted } = await serve_page(() => careless_page(url) + told);
    const { proxy, worker, db } = await start_scene(redis, [...brisk, '--cors-origin', origin]);
    url = proxy.url;
    const args = ['--headless', '--no-remote', '--profile', temp_dir(), origin];
    start_program(firefox ?? '', args, { HOME: temp_dir() });
    const task = await worker.next(browser_limit_ms);
    await db.rPush(task.task_list, ['1', 'EOF']);
    await until('desistência', () => posted.includes('estado 2'), browser_limit_ms);
    assert.deepEqual(posted.toSorted(), [`1${task.uuid}`, 'estado 0', 'estado 2']);
    assert.deepEqual(worker.pending, []);
    assert.equal(proxy.stdout().split(' task task=').length, 2);
  });
});
