/*
 * O kit como pacote: import { serve, serve_fetch } from 'ndjson-proxy/worker'. Quem o copia usa
 * worker.ts e adapters.ts, e não precisa deste arquivo.
 */

export { type fetch_handler, serve_fetch, stream_response } from './adapters';
export {
  type handler,
  head,
  proxy_flags,
  raw,
  serve,
  type settings,
  sse,
  type task,
} from './worker';
