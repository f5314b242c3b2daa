/*
 * A página de npm run dev: serve dev_page.html numa porta livre, e responde a ela o que o navegador
 * não alcança: as chaves de uma tarefa no Redis e as linhas do log que falam dela. Os pedidos a
 * página faz direto ao proxy, por CORS.
 */

import { readFile as read_file } from 'node:fs/promises';
import http from 'node:http';
import type { AddressInfo as address_info } from 'node:net';
import path from 'node:path';
import { createClient as create_client } from 'redis';
import { parse_redis_server } from '../../json-proxy';
import { on_stop } from './local';

const page_file = path.join(__dirname, 'dev_page.html');

const uuid_pattern = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** O que a página mostra: onde está o Redis, como as chaves começam, o log do proxy até agora. */
type page_source = {
  redis: { server: string; password: string };
  prefixes: string[];
  log_text: () => string;
};

/** O cliente do Redis que olha as chaves. */
type redis_client = Awaited<ReturnType<typeof connect>>;

/**
 * Conecta ao Redis do proxy. Uma queda dele não derruba a página.
 * @param redis o servidor, na forma de REDIS_SERVER, e a senha, que vence a dele
 * @returns o cliente
 */
async function connect({ server, password }: page_source['redis']) {
  const address = parse_redis_server(server);
  const { kind, nodes, tls, socket_path, database, username } = address;
  if (kind !== 'redis') throw new Error('a página só olha um Redis: dê o endereço dele');
  const { host, port } = nodes[0] ?? { host: '', port: 0 };
  const where = socket_path ? { path: socket_path } : { host, port };
  const client = create_client({
    socket: tls ? { ...where, tls: true } : where,
    database,
    disableOfflineQueue: true,
    ...(username && { username }),
    password: password || address.password,
  });
  await client.on('error', () => {}).connect();
  on_stop(async () => client.destroy());
  return client;
}

/**
 * Olha uma chave.
 * @param name nome da chave
 * @returns tipo ("none" se não existe), TTL em s (-1 se não expira), elementos ou bytes
 */
async function look_at(client: redis_client, name: string) {
  const [type, ttl] = await Promise.all([client.type(name), client.ttl(name)]);
  const measure = type === 'list' ? client.lLen(name) : client.strLen(name);
  return { name, type, ttl, size: await measure.catch(() => 0) };
}

/**
 * Dá o endereço atual do proxy: depois de uma recarga a porta pode ser outra.
 * @returns por exemplo "http://127.0.0.1:8771"; vazio se ele ainda não atende
 */
function proxy_url({ log_text }: page_source): string {
  const [, url = ''] = [...log_text().matchAll(/ listen url=(\S+)\n/g)].at(-1) ?? [];
  return url.replace('//0.0.0.0', '//127.0.0.1');
}

/**
 * Responde um pedido da página.
 * @param url caminho e busca
 * @returns HTML em `/`; em `/proxy`, onde ele está; em `/task?uuid=…`, as chaves e o log da tarefa;
 *   undefined para o resto
 */
async function answer(source: page_source, client: redis_client, url: string) {
  const { pathname, searchParams: query } = new URL(url, 'http://page');
  if (pathname === '/') return read_file(page_file); // a cada vez: quem o edita só recarrega
  if (pathname === '/proxy') return JSON.stringify({ url: proxy_url(source) });
  const uuid = query.get('uuid') ?? '';
  if (pathname !== '/task' || !uuid_pattern.test(uuid)) return undefined;
  const keys = await Promise.all(source.prefixes.map((name) => look_at(client, name + uuid)));
  const log = source.log_text().split('\n');
  return JSON.stringify({ keys, log: log.filter((line) => line.includes(uuid)) });
}

/**
 * Serve a página numa porta livre.
 * @returns as origens que o proxy deve aceitar; a primeira é o endereço da página
 */
export async function start_page(source: page_source): Promise<string[]> {
  const client = await connect(source.redis);
  const server = http.createServer(async (request, response) => {
    const body = await answer(source, client, request.url ?? '').catch(() => '');
    const is_page = typeof body === 'object';
    response.writeHead(body === undefined ? 404 : body === '' ? 503 : 200, {
      'Content-Type': is_page ? 'text/html; charset=utf-8' : 'application/json',
      'Cache-Control': 'no-store',
    });
    response.end(body);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  on_stop(async () => {
    server.close();
    server.closeAllConnections();
  });
  const { port } = server.address() as address_info;
  return [`http://127.0.0.1:${port}`, `http://localhost:${port}`];
}
