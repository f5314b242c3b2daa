/*
 * Um Chromium sem janela, conduzido pelo protocolo dele (CDP) num par de pipes: mensagens em JSON
 * separadas por um byte zero. Nenhuma biblioteca é preciso.
 */

import { spawnSync as run, spawn } from 'node:child_process';
import type { Readable as readable, Writable as writable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { on_stop } from '../../scripts/dev/local';
import { temp_dir, until } from '../harness';

/** Uma resposta do navegador; o que ele conta sem ser perguntado não tem `id`. */
type browser_message = {
  id?: number;
  result?: Record<string, unknown>;
  error?: { message: string };
};

/** Uma página aberta. */
export type page = Awaited<ReturnType<typeof open_page>>;

/** Um navegador no ar. */
export type browser = Awaited<ReturnType<typeof start_browser>>;

/** Os nomes que o Chromium tem por aí. */
const executables = ['chromium', 'chromium-headless-shell', 'chromium-browser', 'google-chrome'];

/** O primeiro que está instalado, ou undefined. */
export const chromium = executables.find((name) => run(name, ['--version']).status === 0);

/** Por que um teste do navegador é pulado; false se não é. */
export const skip_browser = !chromium && 'sem Chromium: sh scripts/dev/setup.sh chromium';

/** O Firefox desta máquina, e por que pular os testes que precisam dele. */
export const firefox = ['firefox-esr', 'firefox'].find(
  (name) => run(name, ['--version']).status === 0,
);
export const skip_firefox = !firefox && 'sem Firefox: sh scripts/dev/setup.sh firefox';

/** Prazo de uma espera pelo navegador, que divide a máquina com tudo o que os testes sobem. */
export const browser_limit_ms = 30_000;

/** Prazo para o navegador sair depois do pedido, antes do SIGKILL. */
const exit_limit_ms = 5000;

/**
 * Fala CDP por um par de pipes.
 * @param to por onde vão os comandos
 * @param from por onde vêm as respostas
 * @returns `call`: manda um comando e espera o resultado
 */
function speak_cdp(to: writable, from: readable) {
  const waiting = new Map<number, (message: browser_message) => void>();
  let last_id = 0;
  let received = '';
  to.on('error', () => {}); // um navegador que morre é visto por quem espera a resposta
  from.setEncoding('utf8').on('data', (text: string) => {
    const parts = (received + text).split('\0');
    received = parts.pop() ?? '';
    for (const part of parts) {
      const message: browser_message = JSON.parse(part);
      waiting.get(message.id ?? 0)?.(message);
      waiting.delete(message.id ?? 0);
    }
  });
  const call = async (method: string, params: object = {}, session_id?: string) => {
    last_id += 1;
    const id = last_id;
    let answer: browser_message | undefined;
    waiting.set(id, (message) => {
      answer = message;
    });
    to.write(`${JSON.stringify({ id, method, params, sessionId: session_id })}\0`);
    const { error, result = {} } = await until(method, () => answer, browser_limit_ms);
    if (error) throw new Error(`${method}: ${error.message}`);
    return result;
  };
  return { call };
}

/**
 * Abre uma página e espera que ela carregue.
 * @param call manda um comando ao navegador
 * @param url endereço
 * @param size largura e altura em pontos
 * @returns `evaluate`: roda JavaScript nela e dá o valor; `wait_for`: espera um valor verdadeiro;
 *   `screenshot`: um PNG
 */
async function open_page(
  call: ReturnType<typeof speak_cdp>['call'],
  url: string,
  size: { width: number; height: number },
) {
  const { targetId: target_id } = await call('Target.createTarget', { url: 'about:blank' });
  const attach = { targetId: target_id, flatten: true };
  const { sessionId: session } = await call('Target.attachToTarget', attach);
  const ask = (method: string, params: object = {}) => call(method, params, String(session));
  await ask('Emulation.setDeviceMetricsOverride', { ...size, deviceScaleFactor: 1, mobile: false });
  const evaluate = async <result>(expression: string): Promise<result> => {
    const options = { expression, awaitPromise: true, returnByValue: true };
    const { result, exceptionDetails: failure } = await ask('Runtime.evaluate', options);
    if (failure) throw new Error(`${expression}: ${JSON.stringify(failure)}`);
    return (result as { value: result }).value;
  };
  const wait_for = <result>(expression: string, ms = browser_limit_ms) =>
    until(`${expression} em ${url}`, () => evaluate<result>(expression), ms);
  const { errorText: problem } = await ask('Page.navigate', { url });
  if (problem) throw new Error(`${url}: ${problem}`);
  await wait_for("location.href !== 'about:blank' && document.readyState === 'complete'");
  const screenshot = async () => {
    const { data } = await ask('Page.captureScreenshot', { format: 'png' });
    return Buffer.from(String(data), 'base64');
  };
  return { evaluate, wait_for, screenshot, ask };
}

/**
 * Sobe o Chromium sem janela. Como root ele só roda sem a caixa de areia.
 * @returns `open`: abre uma página
 */
export async function start_browser() {
  const args = ['--headless', '--remote-debugging-pipe', `--user-data-dir=${temp_dir()}`];
  const quiet = ['--no-first-run', '--disable-gpu', '--disable-dev-shm-usage', '--hide-scrollbars'];
  const sandbox = process.getuid?.() === 0 ? ['--no-sandbox'] : [];
  const child = spawn(chromium ?? '', [...args, ...quiet, ...sandbox], {
    stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
  });
  const exited = new Promise<void>((resolve) => {
    child.once('exit', () => resolve());
    child.once('error', () => resolve());
  });
  const [, , , to, from] = child.stdio;
  const { call } = speak_cdp(to as writable, from as readable);
  on_stop(async () => {
    await call('Browser.close').catch(() => {});
    await Promise.race([exited, sleep(exit_limit_ms, undefined, { ref: false })]);
    child.kill('SIGKILL');
  });
  await call('Browser.getVersion');
  return {
    open: (url: string, size = { width: 1200, height: 800 }) => open_page(call, url, size),
  };
}
