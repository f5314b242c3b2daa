/*
 * Um endereço do proxy na barra de um navegador de verdade: as linhas são mostradas à medida que
 * chegam, como o worker as escreveu, e não baixadas.
 */

import assert from 'node:assert/strict';
import { before, describe, test } from 'node:test';
import { brisk, end_of, type local_redis, start_redis, start_scene, until } from '../harness';
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
    await db.rPush(task.task_list, lines);
    // O Chromium às vezes só mostra um pedaço quando chega outro; conta que não espere o fim.
    const shown = JSON.stringify(lines.join('\n'));
    await until('linhas à vista com o fluxo aberto', async () => {
      const more = `{"mais": ${lines.length}}`;
      lines.push(more);
      await db.rPush(task.task_list, more);
      return page.evaluate(
        `document.readyState === 'loading' && document.body?.innerText.startsWith(${shown})`,
      );
    });
    assert.equal(await page.evaluate('document.contentType'), 'text/plain');
    await db.del(task.task_key);
    assert.equal((await end_of(proxy, task)).lines, String(lines.length));
    await page.wait_for("document.readyState === 'complete'");
    assert.equal(await page.evaluate('document.body.innerText.trim()'), lines.join('\n'));
  });
});
