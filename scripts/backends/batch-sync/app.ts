/*
 * batch-sync: leva filiais, produtos, clientes e vendas da origem à API de destino, em lotes, e
 * conta cada lote a quem pediu, numa linha, quando ele é aceito.
 */

import { createRoute as create_route, OpenAPIHono as open_api_hono, z } from '@hono/zod-openapi';
import type { make_client } from '../../worker/worker';
import { answer_lines, type bindings, limit_rate, prepare_app } from '../common/web';
import { docs_page } from './docs';
import { entities, type entity } from './entities';
import { type sync_parts, synchronize } from './sync';

/** Maior página de um GET, em linhas. */
const max_page = 500;

/** De que a API precisa. `rate`: limite dos GET; undefined não limita. */
export type parts = sync_parts & {
  redis: ReturnType<typeof make_client>;
  rate: { limit: number; seconds: number } | undefined;
};

const page_query = z.object({
  pular: z.coerce.number().int().min(0).default(0).openapi({ description: 'rows to skip' }),
  limite: z.coerce
    .number()
    .int()
    .min(1)
    .max(max_page)
    .default(100)
    .openapi({
      description: `rows to give, at most ${max_page}`,
    }),
});

const page = z.object({ pular: z.int(), limite: z.int(), itens: z.array(z.any()) });

/** Um erro da forma dos parâmetros. */
const refusal = z.object({
  detail: z.array(z.object({ loc: z.array(z.union([z.string(), z.int()])), msg: z.string() })),
});

/** O que o POST responde, na documentação. */
const progress_lines = `One line of JSON for each batch: {"batch", "rows", "total", "ms",
"attempts"}, with "error" and "file" if the target did not accept it. The last line sums up:
{"done": true, "entity", "batches", "rows", "sent", "failed", "ms"}. An answer without it is not
whole.`;

/**
 * Descreve uma rota de leitura.
 * @param entity a entidade
 * @returns a rota
 */
function page_route({ name }: entity) {
  return create_route({
    method: 'get',
    path: `/${name}`,
    summary: `A page of ${name}, as they are in the source`,
    request: { query: page_query },
    responses: {
      200: { description: 'The page', content: { 'application/json': { schema: page } } },
      422: { description: 'Bad query', content: { 'application/json': { schema: refusal } } },
    },
  });
}

/**
 * Descreve uma rota de sincronização.
 * @param entity a entidade
 * @returns a rota
 */
function sync_route({ name }: entity) {
  return create_route({
    method: 'post',
    path: `/${name}/sincronizar`,
    summary: `Send all ${name} to the target API, in batches`,
    responses: {
      200: {
        description: progress_lines,
        content: { 'application/x-ndjson': { schema: z.string() } },
      },
    },
  });
}

/**
 * Acrescenta as duas rotas de uma entidade.
 * @param app a API
 * @param entity a entidade
 * @param parts a origem, o destino e o que mais for preciso
 */
function add_entity(app: open_api_hono<bindings>, entity: entity, parts: parts): void {
  app.openapi(page_route(entity), async (c) => {
    const { pular, limite } = c.req.valid('query');
    const itens = await parts.source.page(entity, pular, limite);
    return c.json({ pular, limite, itens }, 200);
  });
  app.openapi(sync_route(entity), (c) => {
    return answer_lines(c, (signal) => synchronize(parts, entity, signal)) as never;
  });
}

/**
 * Faz a API.
 * @param parts a origem, o destino e o que mais for preciso
 * @returns a API
 */
export function make_app(parts: parts): open_api_hono<bindings> {
  const app = new open_api_hono<bindings>({
    defaultHook: (result, c) => {
      if (result.success) return undefined;
      const detail = result.error.issues.map(({ path, message }) => {
        return { loc: [result.target, ...path.map(String)], msg: message };
      });
      return c.json({ detail }, 422);
    },
  });
  prepare_app(app, parts.log);
  app.get('*', limit_rate(parts.redis, 'batch_sync_rate', parts.rate));
  for (const entity of entities) add_entity(app, entity, parts);
  const info = { title: 'batch-sync', version: '1.0.0' };
  app.doc('/openapi.json', { openapi: '3.0.0', info });
  app.get('/docs', (c) => c.html(docs_page(app.getOpenAPIDocument({ openapi: '3.0.0', info }))));
  return app;
}
