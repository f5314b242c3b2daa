/*
 * Um endereço do proxy na barra de um navegador de verdade: as linhas são mostradas à medida que
 * chegam, como o worker as escreveu, e não baixadas.
 */

import assert from 'node:assert/strict';
import { before, describe, test } from 'node:test';
import { brisk, end_of, type local_redis, start_redis, start_scene } from '../harness';
import { type browser, skip_browser, start_browser } from './browser';

let chrome: browser;
let redis: local_redis;

before(async () => {
  redis = await start_redis();
  if (!skip_browser) chrome = await start_browser();
});

describe('a barra de endereço do Chromium', { skip: skip_browser }, () => {
  test('mostra cada linha na hora, e as mesmas no fim', async () => {
    const { proxy, worker, db } = await start_scene(redis, brisk);
    const page = await chrome.open('data:text/html,nada');
    void page.ask('Page.navigate', { url: `${proxy.url}/pergunta?x=1` });
    const task = await worker.next();
    assert.equal(task.url, '/pergunta?x=1');
    assert.match(task.headers.Accept ?? '', /^text\/html,/);
    const lines = ['{"n": 1}', 'olá, <b>mundo</b> & companhia', '{"n": 3}'];
    for (const [index, line] of lines.entries()) {
      await db.rPush(task.task_list, line);
      const shown = JSON.stringify(lines.slice(0, index + 1).join('\n'));
      await page.wait_for(`document.body?.innerText.trim() === ${shown}`);
    }
    assert.equal(await page.evaluate('document.contentType'), 'text/plain');
    await db.del(task.task_key);
    assert.equal((await end_of(proxy, task)).lines, '3');
    await page.wait_for("document.readyState === 'complete'");
    assert.equal(await page.evaluate('document.body.innerText.trim()'), lines.join('\n'));
  });
});
