/*
 * message-broker: filas de mensagens, por REST e por GraphQL.
 */

import { type Context as context, Hono as hono } from 'hono';
import { z } from 'zod';
import type { make_client } from '../../worker/worker';
import type { log } from '../common/log';
import {
  answer_lines,
  type bindings as common_bindings,
  http_error,
  limit_rate,
  prepare_app,
  read_body,
  read_query,
} from '../common/web';
import {
  type broker,
  consume,
  create_queue,
  delete_queue,
  deliver,
  publish,
  queue_details,
  queues,
  settle,
} from './broker';
import { make_graphql } from './graphql';
import { list_logs, max_lines, read_log } from './logs';
import { count_requests, type counters, read_stats } from './stats';
import { add_user, log_in, need_role, read_token, refresh_tokens, roles, type user } from './users';

/** O que acompanha cada pedido, depois de se saber quem pede. */
type bindings = common_bindings & Record<'Variables', { user: user }>;

/** De que a API precisa. */
export type parts = {
  broker: broker;
  counters: counters;
  secret: string;
  redis: ReturnType<typeof make_client>;
  rate: { limit: number; seconds: number } | undefined;
  is_development: boolean;
  folders: { data: string; logs: string };
  log: log;
};

/** O limite das tentativas de entrar, por cliente. */
const login_rate = { limit: 10, seconds: 60 };

/** Quantas mensagens por confirmar um fluxo entrega, se não se pede outro número. */
const default_prefetch = 10;

const whole = (min: number, max: number) => z.coerce.number().int().min(min).max(max);
const name = z.string().min(1).max(100);
const forms = {
  login: z.strictObject({ username: name, password: z.string().max(1000) }),
  refresh: z.strictObject({ refresh_token: z.string() }),
  user: z.strictObject({
    username: name,
    password: z.string().min(8).max(1000),
    role: z.enum(roles),
  }),
  queue: z.strictObject({ name: z.string() }),
  message: z.strictObject({ content: z.string() }),
  ack: z.strictObject({ receipt: z.string() }),
  nack: z.strictObject({ receipt: z.string(), requeue: z.boolean().default(true) }),
  stream: z.object({
    prefetch: whole(1, 1000).default(default_prefetch),
    limit: whole(1, Number.MAX_SAFE_INTEGER).optional(),
  }),
  logs: z.object({
    start: whole(1, Number.MAX_SAFE_INTEGER).optional(),
    end: whole(1, Number.MAX_SAFE_INTEGER).optional(),
    tail: whole(1, max_lines).optional(),
    search: z.string().max(200).optional(),
  }),
};

/**
 * Lê um pedaço do caminho.
 * @param c o pedido
 * @param name nome do pedaço
 * @returns o texto
 */
function part_of(c: context, name: string): string {
  return c.req.param(name) ?? '';
}

/**
 * Acrescenta as rotas de quem ainda não tem token.
 * @param app a API
 * @param parts as peças
 */
function add_login(app: hono<bindings>, { broker, secret, redis }: parts): void {
  const limit = limit_rate(redis, 'broker_login', login_rate);
  app.post('/login', limit, async (c) => {
    return c.json(await log_in(broker.store, secret, await read_body(c, forms.login)));
  });
  app.post('/refresh', limit, async (c) => {
    const { refresh_token } = await read_body(c, forms.refresh);
    return c.json(await refresh_tokens(broker.store, secret, refresh_token));
  });
}

/**
 * Exige um token em tudo o que vem depois.
 * @param app a API
 * @param parts as peças
 */
function require_token(app: hono<bindings>, { broker, secret }: parts): void {
  app.use(async (c, next) => {
    const [, token = ''] = /^Bearer (\S+)$/i.exec(c.req.header('Authorization') ?? '') ?? [];
    c.set('user', await read_token(broker.store, secret, token, 'access'));
    await next();
  });
}

/**
 * Acrescenta as rotas das filas e das mensagens.
 * @param app a API
 * @param parts as peças
 */
function add_queues(app: hono<bindings>, { broker }: parts): void {
  app.get('/queues', (c) => c.json({ queues: queues(broker, c.get('user')) }));
  app.post('/queues', async (c) => {
    const { name } = await read_body(c, forms.queue);
    return c.json(create_queue(broker, c.get('user'), name), 201);
  });
  app.get('/queues/:name', (c) => {
    return c.json(queue_details(broker, c.get('user'), part_of(c, 'name')));
  });
  app.delete('/queues/:name', (c) => {
    delete_queue(broker, c.get('user'), part_of(c, 'name'));
    return c.body(null, 204);
  });
  app.post('/queues/:name/messages', async (c) => {
    const { content } = await read_body(c, forms.message);
    return c.json(publish(broker, c.get('user'), part_of(c, 'name'), content), 201);
  });
  app.post('/queues/:name/consume', (c) => {
    const message = consume(broker, c.get('user'), part_of(c, 'name'));
    return message ? c.json(message) : c.body(null, 204);
  });
  const settled = (
    c: context<bindings>,
    receipt: string,
    status: 'processed' | 'pending' | 'failed',
  ) => {
    const settlement = { queue: part_of(c, 'name'), id: Number(part_of(c, 'id')), receipt };
    return c.json(settle(broker, c.get('user'), settlement, status));
  };
  app.post('/queues/:name/messages/:id{\\d{1,15}}/ack', async (c) => {
    return settled(c, (await read_body(c, forms.ack)).receipt, 'processed');
  });
  app.post('/queues/:name/messages/:id{\\d{1,15}}/nack', async (c) => {
    const { receipt, requeue } = await read_body(c, forms.nack);
    return settled(c, receipt, requeue ? 'pending' : 'failed');
  });
  app.get('/queues/:name/stream', (c) => {
    const options = read_query(c, forms.stream);
    const [user, queue] = [c.get('user'), part_of(c, 'name')];
    queue_details(broker, user, queue);
    need_role(user, 'write');
    return answer_lines(c, (signal) => deliver(broker, user, queue, options, signal));
  });
}

/**
 * Acrescenta as rotas de quem administra e de quem observa.
 * @param app a API
 * @param parts as peças
 */
function add_management(app: hono<bindings>, { broker, counters, folders }: parts): void {
  app.post('/users', async (c) => {
    need_role(c.get('user'), 'admin');
    const { username, password, role } = await read_body(c, forms.user);
    await add_user(broker.store, { name: username, role }, password);
    return c.json({ username, role }, 201);
  });
  app.get('/stats', async (c) => {
    need_role(c.get('user'), 'read');
    return c.json(await read_stats(counters, broker.store, folders.data));
  });
  app.get('/logs', async (c) => {
    need_role(c.get('user'), 'admin');
    return c.json({ files: await list_logs(folders.logs) });
  });
  app.get('/logs/:file', async (c) => {
    need_role(c.get('user'), 'admin');
    return c.json(await read_log(folders.logs, part_of(c, 'file'), read_query(c, forms.logs)));
  });
}

/**
 * Faz a API.
 * @param parts as peças
 * @returns a API
 */
export function make_app(parts: parts): hono<bindings> {
  const { counters, redis, rate, log, broker, is_development } = parts;
  const app = prepare_app(new hono<bindings>(), log);
  app.use(count_requests(counters));
  app.use(limit_rate(redis, 'broker_rate', rate));
  app.get('/', (c) => {
    const routes = app.routes.filter(({ method }) => method !== 'ALL');
    return c.json({
      name: 'message-broker',
      routes: routes.map((at) => `${at.method} ${at.path}`),
    });
  });
  add_login(app, parts);
  const graphql = make_graphql(broker, is_development);
  app.get('/graphql', (c) => {
    const is_page = is_development && /text\/html/.test(c.req.header('Accept') ?? '');
    if (!is_page) throw new http_error(405, 'POST to /graphql', { Allow: 'POST' });
    return graphql(c.req.raw, { name: '', role: 'read' });
  });
  require_token(app, parts);
  app.post('/graphql', (c) => graphql(c.req.raw, c.get('user')));
  add_queues(app, parts);
  add_management(app, parts);
  return app;
}
