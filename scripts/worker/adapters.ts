/*
 * Uma aplicação que já fala HTTP como worker: quem atende é uma função de Request a Response, como
 * a de Hono, GraphQL Yoga, itty-router ou qualquer outra que siga o fetch. Copie-o com worker.ts.
 *
 *   import { serve_fetch } from './adapters';
 *
 *   serve_fetch(app.fetch);
 *   serve_fetch((request) => Response.json({ asked: request.url }));
 *
 * A tarefa vira um Request, e a Response vai ao cliente byte por byte, aos poucos, sem que se
 * acumule mais do que o cliente lê. `request.signal` aborta, e o corpo é cancelado, se ele sai.
 * Uma exceção antes do primeiro byte é um 500; depois dele o cliente vê a conexão cortada.
 */

import { raw, serve, type settings, type task } from './worker';

/** Quem responde. A tarefa vem também, para o que um Request não tem: `remote_address`, `uuid`. */
export type fetch_handler = (request: Request, task: task) => Response | Promise<Response>;

/** O que fetch() já desfez ao ler de outro servidor; repassado, faria o cliente ler errado. */
const decoded_headers = ['content-encoding', 'content-length'];

/**
 * Faz o Request de uma tarefa. Um GET não leva corpo, que o fetch não lhe permite.
 * @param task a tarefa
 * @param signal aborta quando o cliente sai
 * @returns o pedido, com a URL absoluta que o cliente usou
 * @throws TypeError se o fetch não aceita a URL, o método ou um cabeçalho
 */
export function make_request(task: task, signal: AbortSignal): Request {
  const { method, headers, body, body_encoding = 'utf8' } = task;
  const scheme = headers['X-Forwarded-Proto'] === 'https' ? 'https' : 'http';
  const url = new URL(`${scheme}://${headers.Host || 'localhost'}${task.url}`);
  const has_body = method !== 'GET' && method !== 'HEAD' && body !== '';
  const content = has_body ? { body: Buffer.from(body, body_encoding) } : {};
  return new Request(url, { method, headers, signal, ...content });
}

/**
 * Escreve a cabeça de uma Response.
 * @param response a resposta
 * @returns o elemento; Set-Cookie vai uma vez para cada
 */
function head_of(response: Response): string {
  const headers: Record<string, string | string[]> = Object.fromEntries(response.headers);
  const cookies = response.headers.getSetCookie();
  if (cookies.length > 0) headers['set-cookie'] = cookies;
  if (response.url) for (const name of decoded_headers) delete headers[name];
  return raw(response.status, headers);
}

/**
 * Chama a função, e espera que o corpo dê um primeiro sinal, se o der logo: o que falha até aí
 * ainda pode ser um 500.
 * @param handler a função
 * @param request o pedido
 * @param task a tarefa
 * @returns a cabeça, o leitor do corpo e a primeira leitura dele; sem corpo, só a cabeça
 * @throws o que a função ou o corpo lançarem; TypeError se o que ela deu não é uma Response
 */
async function begin_response(handler: fetch_handler, request: Request, task: task) {
  const response = await handler(request, task);
  if (!(response?.status >= 200)) throw new TypeError('the handler must return a Response');
  const reader = response.body?.getReader();
  const first = reader?.read();
  await Promise.race([first, new Promise((resolve) => setImmediate(resolve))]);
  first?.catch(() => {}); // de agora em diante, quem a lê é que ouve
  return { head: head_of(response), reader, first };
}

/**
 * Faz uma Response que vai aos poucos.
 * @param parts os pedaços, por exemplo um gerador de sse(); um erro nele corta a conexão
 * @param type o Content-Type
 * @returns a resposta
 */
export function stream_response(
  parts: AsyncIterable<string | Uint8Array>,
  type = 'text/event-stream',
): Response {
  const iterator = parts[Symbol.asyncIterator]();
  const encoder = new TextEncoder();
  const body = new ReadableStream<Uint8Array>({
    pull: async (controller) => {
      const { done, value } = await iterator.next();
      if (done) controller.close();
      else controller.enqueue(typeof value === 'string' ? encoder.encode(value) : value);
    },
    cancel: async () => {
      await iterator.return?.();
    },
  });
  return new Response(body, { headers: { 'Content-Type': type } });
}

/**
 * Faz uma resposta de erro.
 * @param status o status
 * @param error o que o cliente lê
 * @returns os elementos
 */
function refusal(status: number, error: string): string[] {
  return [raw(status, { 'Content-Type': 'application/json' }), JSON.stringify({ error })];
}

/**
 * Põe uma função de Request a Response a atender as tarefas.
 * @param handler a função
 * @param options o que muda dos padrões, como em serve()
 * @returns uma promessa cumprida quando tudo parou
 */
export function serve_fetch(
  handler: fetch_handler,
  options: Partial<settings> = {},
): Promise<void> {
  const log = options.log ?? ((text) => console.log(`worker: ${text}`));
  return serve(async function* (task, signal) {
    const told = (error: Error) => {
      log(`${task.uuid} falhou: ${error?.stack ?? error}`);
    };
    let request: Request;
    try {
      request = make_request(task, signal);
    } catch (error) {
      told(error as Error);
      return yield* refusal(400, 'bad request');
    }
    const begun = await begin_response(handler, request, task).catch(told);
    if (!begun) return yield* refusal(500, 'internal server error');
    const { head, reader, first } = begun;
    const cancel = () => reader?.cancel(signal.reason).catch(() => {});
    signal.addEventListener('abort', cancel);
    try {
      yield head;
      for (let part = await first; part && !part.done; part = await reader?.read())
        yield part.value;
    } finally {
      cancel(); // um corpo que ninguém lê até o fim para de ser feito
    }
  }, options);
}
