/*
 * A página de npm run dev num Chromium, como uma pessoa a usa: escreve um pedido, vê as linhas
 * chegarem, o fim, as chaves e o log; em NDJSON e em eventos; desiste no meio, ou cai e volta.
 *
 *   SCREENSHOT=scripts/images/dev-page.png npm run test:extra -- dev_page     refaz a do manual
 */

import assert from 'node:assert/strict';
import { writeFileSync as write_file } from 'node:fs';
import path from 'node:path';
import { before, describe } from 'node:test';
import { free_port, start_program, test, until } from '../harness';
import { browser_limit_ms, type page, skip_browser, start_browser } from './browser';

/** O maior tamanho de uma imagem do manual, em bytes. */
const max_image_bytes = 200_000;

const root = path.join(__dirname, '..', '..');

let tab: page;

before(async () => {
  if (skip_browser) return;
  const flags = ['-p', String(await free_port()), '--maxbody', '1000'];
  const args = ['--import', 'tsx', 'scripts/dev/dev.ts', ...flags];
  const dev = start_program(process.execPath, args, { REDIS_SERVER: '' }, root);
  const [, address = ''] = await dev.wait_for(/ou na página: (\S+)\n/);
  const browser = await start_browser();
  tab = await browser.open(address, { width: 1180, height: 780 });
  await see('proxy', /^http/);
});

/**
 * Preenche o formulário e envia.
 * @param fields o que mudar nele, por id; `accept` escolhe o formato
 */
async function send(fields: { method: string; path: string; body: string; accept: string }) {
  await tab.evaluate(`
    for (const [id, value] of Object.entries(${JSON.stringify(fields)})) {
      document.getElementById('form').elements[id].value = value;
    }
    document.getElementById('form').dispatchEvent(new Event('input'));
    document.getElementById('send').click();
  `);
}

/**
 * Lê uma parte da página.
 * @param id id do elemento
 * @returns o texto dele
 */
function text_of(id: string): Promise<string> {
  return tab.evaluate(`document.getElementById('${id}').textContent`);
}

/**
 * Espera que uma parte da página diga algo.
 * @param id id do elemento
 * @param pattern o que se espera
 */
async function see(id: string, pattern: RegExp): Promise<void> {
  await until(`${pattern} em ${id}`, async () => pattern.test(await text_of(id)), browser_limit_ms);
}

/**
 * Lê as linhas de uma tabela da página.
 * @param table id do corpo da tabela
 * @returns o texto de cada célula, por linha
 */
function rows_of(table: string): Promise<string[][]> {
  return tab.evaluate(`
    [...document.getElementById('${table}').rows]
      .map((row) => [...row.cells].map((cell) => cell.textContent))
  `);
}

/**
 * Espera o fim que o log do proxy diz.
 * @param ending o fim
 * @returns as linhas mostradas (instante, espera e texto), e o histórico das chaves e do log, junto
 */
async function see_end(ending: string) {
  await see('ending', new RegExp(`^${ending}$`));
  const history = (await rows_of('history')).map(([, what]) => what).join('\n');
  return { lines: await rows_of('lines'), history };
}

describe('a página de npm run dev', { skip: skip_browser }, () => {
  const form = { method: 'POST', path: '/teste', body: 'olá <b>', accept: 'application/x-ndjson' };
  const expected = [1, 2, 3, 4, 5].map((n) =>
    JSON.stringify({ n, of: 5, url: '/teste', body: form.body }),
  );

  test('NDJSON: as linhas com seus instantes, o fim, as chaves e o log', async () => {
    await send(form);
    await see('keys', /ndjson_task_/);
    const { lines, history } = await see_end('done');
    const seconds = lines.map(([at = '']) =>
      Number(/^\+(\d+,\d{3}) s$/.exec(at)?.[1]?.replace(',', '.')),
    );
    assert.deepEqual(
      lines.map(([, , text]) => text),
      expected,
    );
    const [first = 0, last = 0] = [seconds[0], seconds.at(-1)];
    assert.ok(last - first > 1, `as linhas chegaram juntas: ${seconds}`);
    for (const what of [/^tarefa: existe, \d+ bytes$/m, /^tarefa: não existe$/m, /^end task=/m]) {
      assert.match(history, what);
    }
    assert.match(await text_of('head'), /^HTTP 200 OK\n/);
    assert.match(
      await text_of('curl'),
      /^curl -N 'http:\/\/\S+\/teste' -H 'Accept: application\/x-ndjson' -d 'olá <b>'$/,
    );
  });

  test('eventos: um por linha, com o seu lugar, e "end"; e a imagem do manual', async () => {
    await send({ ...form, body: 'olá', accept: 'text/event-stream' });
    const { lines } = await see_end('done');
    const texts = lines.map(([, , text]) => text);
    assert.match(texts[0] ?? '', /^id: [0-9a-f-]{36}:1\ndata: \{"n":1,/);
    assert.equal(texts.length, 6);
    assert.match(texts[5] ?? '', /^id: [0-9a-f-]{36}\nevent: end\ndata: \{"ending": "done"\}$/);
    const image = await tab.screenshot();
    assert.ok(image.length > 20_000 && image.length < max_image_bytes, `${image.length} bytes`);
    if (process.env.SCREENSHOT) write_file(path.join(root, process.env.SCREENSHOT), image);
  });

  test('desistir: o fim é client_gone, e da tarefa fica a lista que expira', async () => {
    await send({ ...form, method: 'GET' });
    await tab.wait_for("document.getElementById('lines').rows.length === 2");
    await tab.evaluate("document.getElementById('stop').click()");
    const { lines } = await see_end('client_gone');
    assert.ok(lines.length < 5);
    await see('history', /lista: existe, \d elemento/);
    const [, list = []] = await rows_of('keys');
    assert.match(list.join(' '), /ndjson_list_\S+ list \d elementos? \d+ s$/);
  });

  for (const accept of [form.accept, 'text/event-stream']) {
    test(`cair e voltar: cada linha vem uma vez, em ordem (${accept})`, async () => {
      await send({ ...form, accept });
      for (const count of [1, 3]) {
        await tab.wait_for(`document.getElementById('lines').rows.length === ${count}`);
        await tab.evaluate("document.getElementById('fall').click()");
      }
      const { lines, history } = await see_end('done');
      const texts = lines.map(([, , text = '']) => text.replace(/^id: .*\ndata: /, ''));
      assert.deepEqual(texts.slice(0, 5), expected);
      assert.match(history, /caiu; volta em Last-Event-ID: [0-9a-f-]{36}:3\n/);
    });
  }

  test('um pedido recusado mostra o status e o erro', async () => {
    await send({ ...form, body: 'x'.repeat(1001) });
    await see('ending', /^recusado$/);
    assert.match(await text_of('head'), /^HTTP 413 Payload Too Large\n/);
    const [[, , text] = []] = await rows_of('lines');
    assert.equal(text, '{"error": "request body larger than 1000 bytes"}');
  });
});
