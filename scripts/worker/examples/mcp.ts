/*
 * Um servidor MCP (Streamable HTTP) com o SDK oficial: uma ferramenta que conta, e avisa a cada
 * passo.
 *
 *   npm install @modelcontextprotocol/sdk zod
 *   npx tsx scripts/worker/examples/mcp.ts
 *
 * Cada pedido se basta (sem sessão), e assim qualquer número de workers o atende.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { McpServer as mcp_server } from '@modelcontextprotocol/sdk/server/mcp.js';
import * as web from '@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js';
import { z } from 'zod';
import { serve_fetch } from '../adapters';

const { WebStandardStreamableHTTPServerTransport: http_transport } = web;

/** Um passo da ferramenta: espera o de número `n`, ou o cliente sair. */
export type step = (n: number, signal: AbortSignal) => Promise<unknown>;

/** Monta um servidor com a ferramenta `count`, que dá um passo por vez com `take`. */
function make_server(take: step) {
  const server = new mcp_server({ name: 'json-proxy-example', version: '1.0.0' });
  const inputs = { to: z.number().int().min(1).max(100) };
  const about = { description: 'Counts, and says each number as it comes', inputSchema: inputs };
  server.registerTool('count', about, async ({ to }, extra) => {
    const progress_token = extra._meta?.progressToken;
    for (let n = 1; n <= to; n += 1) {
      await take(n, extra.signal);
      const params = { progressToken: progress_token ?? 0, progress: n, total: to };
      if (progress_token === undefined) continue;
      await extra.sendNotification({ method: 'notifications/progress', params });
    }
    return { content: [{ type: 'text', text: `Counted to ${to}` }] };
  });
  return server;
}

/** Devolve a função que atende; `take` dá um passo da ferramenta. */
export function mcp_api(take: step) {
  return async (request: Request): Promise<Response> => {
    if (request.method !== 'POST') return new Response(null, { status: 405 });
    const [server, transport] = [make_server(take), new http_transport()];
    request.signal.addEventListener('abort', () => server.close());
    await server.connect(transport);
    return transport.handleRequest(request);
  };
}

if (require.main === module) {
  void serve_fetch(mcp_api((_, signal) => sleep(300, undefined, { signal })));
}
