/*
 * Um chat para a página feita com o AI SDK da Vercel (useChat): o UI message stream dele.
 *
 *   npx tsx scripts/worker/examples/ai-ui.ts
 *
 * Na página:
 *
 *   const transport = new DefaultChatTransport({ api: 'http://127.0.0.1:8771/api/chat' });
 *   const { messages, sendMessage } = useChat({ transport });
 */

import { type fetch_handler, serve_fetch, stream_response } from '../adapters';
import { sse } from '../worker';
import { echo_model, type model, prompt_of, read_chat } from './model';

/** Devolve as partes de uma mensagem: `words`, na que se chama `id`. */
async function* ui_events(words: AsyncIterable<string>, id: string) {
  yield sse({ type: 'start', messageId: id }) + sse({ type: 'text-start', id });
  for await (const delta of words) yield sse({ type: 'text-delta', id, delta });
  yield sse({ type: 'text-end', id }) + sse({ type: 'finish' }) + sse('[DONE]');
}

/** Devolve a função que responde com um modelo, `answer`. */
export function ai_ui_api(answer: model): fetch_handler {
  return async (request, { uuid }) => {
    const { messages } = await read_chat(request);
    const prompt = prompt_of(messages);
    if (prompt === undefined) return new Response('messages: a list is required', { status: 400 });
    const response = stream_response(ui_events(answer(prompt, request.signal), uuid));
    response.headers.set('x-vercel-ai-ui-message-stream', 'v1');
    return response;
  };
}

if (require.main === module) void serve_fetch(ai_ui_api(echo_model));
