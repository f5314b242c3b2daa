/*
 * O que a página de um estranho consegue num Chromium de verdade: nada. E o que continua a
 * conseguir quem tem direito: a página de CORS_ORIGIN, e o usuário que segue um link.
 */

import assert from 'node:assert/strict';
import http from 'node:http';
import type { AddressInfo as address_info } from 'node:net';
import { before, describe, test } from 'node:test';
import { on_stop } from '../../scripts/dev/local';
import { brisk, type local_redis, start_redis, start_scene } from '../harness';
import { type browser, skip_browser, start_browser } from './browser';

let chrome: browser;
let redis: local_redis;

before(async () => {
  redis = await start_redis();
  if (!skip_browser) chrome = await start_browser();
});

/**
 * Serve uma página vazia.
 * @param host o nome por que o navegador a conhece
 * @returns a origem dela
 */
async function serve_page(host: string): Promise<string> {
  const server = http.createServer((_request, response) => {
    response.setHeader('Content-Type', 'text/html; charset=utf-8');
    response.end('<!doctype html><title>página</title><body></body>');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  on_stop(async () => {
    server.close();
    server.closeAllConnections();
  });
  return `http://${host}:${(server.address() as address_info).port}`;
}

/** O que uma página tenta; cada expressão só se cumpre quando a resposta chegou. */
const attempts: Record<string, (url: string) => string> = {
  'um POST que não lê a resposta': (url) =>
    `fetch('${url}', { method: 'POST', mode: 'no-cors', body: 'x' }).then(() => true)`,
  'um GET que não lê a resposta': (url) => `fetch('${url}', { mode: 'no-cors' }).then(() => true)`,
  'uma imagem': (url) => `new Promise((resolve) => {
    const image = new Image();
    image.onerror = image.onload = () => resolve(true);
    image.src = '${url}';
  })`,
  'um EventSource': (url) => `new Promise((resolve) => {
    const source = new EventSource('${url}');
    source.onerror = () => resolve(source.readyState === 2);
  })`,
  'um formulário num iframe': (url) => `new Promise((resolve) => {
    document.body.innerHTML = '<iframe name=f></iframe><form method=post target=f></form>';
    document.querySelector('iframe').onload = () => resolve(true);
    document.querySelector('form').action = '${url}';
    document.querySelector('form').submit();
  })`,
};

describe('páginas de outras origens no Chromium', { skip: skip_browser }, () => {
  for (const host of ['127.0.0.1', 'localhost']) {
    test(`de ${host}: nada do que ela tenta vira tarefa, mas um link, sim`, async () => {
      const friend = await serve_page('127.0.0.1');
      const { proxy, worker } = await start_scene(redis, [...brisk, '--cors-origin', friend]);
      const page = await chrome.open(await serve_page(host));
      for (const [title, attempt] of Object.entries(attempts)) {
        assert.equal(await page.evaluate(attempt(`${proxy.url}/x`)), true, title);
      }
      assert.deepEqual(worker.pending, []);
      assert.equal(proxy.stderr().match(/ refused status=403 /g)?.length, 5);
      await page.evaluate(`location.href = '${proxy.url}/link'`);
      assert.equal((await worker.next()).url, '/link');
      const allowed = await chrome.open(friend);
      void allowed.evaluate(`fetch('${proxy.url}/y', { method: 'POST', body: 'x' })`);
      assert.equal((await worker.next()).url, '/y');
    });
  }
});
