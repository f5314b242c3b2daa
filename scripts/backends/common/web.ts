/*
 * O que as quatro APIs têm em comum: erros em JSON, corpos em JSON, uma linha de log por pedido e o
 * limite por cliente.
 */

import type { Context as context, Hono as hono, MiddlewareHandler as middleware } from 'hono';
import { HTTPException as http_exception } from 'hono/http-exception';
import type { ContentfulStatusCode as status_code } from 'hono/utils/http-status';
import type { ZodType as form, output } from 'zod';
import type { make_client, task } from '../../worker/worker';
import type { log } from './log';

/** De quanto em quanto tempo se dá sinal de vida num fluxo sem linhas, em milissegundos. */
const alive_ms = 5000;

/** O que acompanha cada pedido: a tarefa, que sabe de onde ele veio. */
export type bindings = Record<'Bindings', { task?: task }>;

/** Uma API. */
export type app = hono<bindings>;

/** Erro que o cliente deve ler: {"error": mensagem}, com o status. */
export class http_error extends http_exception {
  /**
   * @param status o status
   * @param message o que o cliente lê
   * @param headers cabeçalhos a mais
   */
  constructor(
    status: status_code,
    message: string,
    readonly headers: Record<string, string> = {},
  ) {
    super(status, { message });
  }
}

/**
 * Responde a um erro. O que ninguém previu não é contado ao cliente, só ao log.
 * @param error o erro
 * @param c o pedido
 * @param log o log
 * @returns a resposta
 */
export function answer_error(error: unknown, c: context, log: log): Response {
  if (error instanceof http_exception) {
    const headers = error instanceof http_error ? error.headers : {};
    return c.json({ error: error.message }, error.status as status_code, headers);
  }
  const { stack } = error as Error;
  log.error('o pedido falhou', { method: c.req.method, path: c.req.path, error: stack });
  return c.json({ error: 'internal error' }, 500);
}

/**
 * Registra cada pedido: método, caminho sem a consulta, status e quanto levou.
 * @param log o log
 * @returns o passo
 */
export function log_requests(log: log): middleware {
  return async (c, next) => {
    const started_at = performance.now();
    await next();
    const ms = Math.round(performance.now() - started_at);
    const { method, path } = c.req;
    log.info('pedido', { method, path, status: c.res.status, ms });
  };
}

/**
 * Prepara uma API: os erros em JSON e o log dos pedidos.
 * @param app a API, ainda sem rotas
 * @param log o log
 * @returns a mesma API
 */
export function prepare_app<kind extends bindings>(app: hono<kind>, log: log): hono<kind> {
  app.use(log_requests(log));
  app.notFound((c) => c.json({ error: `no such route: ${c.req.method} ${c.req.path}` }, 404));
  app.onError((error, c) => answer_error(error, c, log));
  return app;
}

/**
 * Lê o corpo como texto que é JSON.
 * @param c o pedido
 * @returns o texto, byte a byte o que veio, e o valor dele
 * @throws http_error 400 se não é UTF-8 ou não é JSON
 */
export async function read_json(c: context): Promise<{ text: string; value: unknown }> {
  try {
    const bytes = await c.req.arrayBuffer();
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    return { text, value: JSON.parse(text) };
  } catch {
    throw new http_error(400, 'the body is not valid JSON');
  }
}

/**
 * Confere a forma do que o cliente deu.
 * @param schema a forma
 * @param value o que ele deu
 * @returns o valor
 * @throws http_error 400: a mensagem diz o campo e o motivo
 */
function check_form<schema extends form>(schema: schema, value: unknown): output<schema> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const reasons = parsed.error.issues.map(({ path, message }) => {
    return path.length > 0 ? `${path.join('.')}: ${message}` : message;
  });
  throw new http_error(400, reasons.join('; '));
}

/**
 * Lê o corpo na forma que a rota pede.
 * @param c o pedido
 * @param schema a forma
 * @returns o valor
 * @throws http_error 400 se não é JSON, ou não tem a forma
 */
export async function read_body<schema extends form>(
  c: context,
  schema: schema,
): Promise<output<schema>> {
  return check_form(schema, (await read_json(c)).value);
}

/**
 * Lê a consulta na forma que a rota pede.
 * @param c o pedido
 * @param schema a forma
 * @returns o valor
 * @throws http_error 400 se não tem a forma
 */
export function read_query<schema extends form>(c: context, schema: schema): output<schema> {
  return check_form(schema, c.req.query());
}

/** Conta mais um pedido na janela, e diz quantos são e quanto falta para ela acabar. */
const rate_script = `
  local count = redis.call('INCR', KEYS[1])
  if count == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
  return {count, redis.call('TTL', KEYS[1])}`;

/**
 * Limita os pedidos de cada endereço, somados os de todas as cópias do sistema.
 * @param redis onde se conta
 * @param name nome do que é limitado, começo da chave
 * @param rate quantos, em quantos segundos; undefined não limita
 * @returns o passo: 429 com Retry-After além do limite
 */
export function limit_rate(
  redis: ReturnType<typeof make_client>,
  name: string,
  rate: { limit: number; seconds: number } | undefined,
): middleware<bindings> {
  return async (c, next) => {
    if (!rate) return next();
    const keys = [`${name}_${c.env.task?.remote_address ?? ''}`];
    const reply = redis.eval(rate_script, { keys, arguments: [String(rate.seconds)] });
    const [count = 0, left = 0] = (await reply) as number[];
    if (count <= rate.limit) return next();
    const headers = { 'Retry-After': String(Math.max(left, 1)) };
    throw new http_error(429, `at most ${rate.limit} requests in ${rate.seconds} s`, headers);
  };
}

/**
 * Responde com linhas de JSON, cada uma quando existe. Uma exceção do gerador corta a resposta: o
 * cliente a vê como um erro, e não como um fim. (O stream() de hono/streaming a termina como se
 * estivesse inteira.) Enquanto não há linha, um pedaço vazio diz ao proxy que se está vivo.
 * @param c o pedido
 * @param make faz o gerador; o signal aborta quando ninguém espera mais
 * @returns a resposta
 */
export function answer_lines(
  c: context,
  make: (signal: AbortSignal) => AsyncGenerator<unknown>,
): Response {
  const leaving = new AbortController();
  const lines = make(AbortSignal.any([leaving.signal, c.req.raw.signal]));
  let next: Promise<IteratorResult<unknown>> | undefined;
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      next ??= lines.next();
      let timer: NodeJS.Timeout | undefined;
      const silence = new Promise<undefined>((resolve) => {
        timer = setTimeout(resolve, alive_ms, undefined);
      });
      const result = await Promise.race([next, silence]).finally(() => clearTimeout(timer));
      if (!result) return controller.enqueue(new Uint8Array(0));
      next = undefined;
      if (result.done) return controller.close();
      controller.enqueue(Buffer.from(`${JSON.stringify(result.value)}\n`));
    },
    async cancel(reason) {
      leaving.abort(reason);
      await next?.catch(() => {});
      await lines.return(undefined);
    },
  });
  return c.body(body, 200, { 'Content-Type': 'application/x-ndjson' });
}
