/*
 * Um modelo com a API da Anthropic (messages), aos poucos ou de uma vez.
 *
 *   npx tsx scripts/worker/examples/anthropic.ts
 */

import { type fetch_handler, serve_fetch, stream_response } from '../adapters';
import { sse } from '../worker';
import { echo_model, type model, prompt_of, read_chat } from './model';

/** Os contadores que o cliente espera, e que um modelo de mentira não tem. */
const usage = { input_tokens: 0, output_tokens: 0 };

/** Devolve os eventos de uma mensagem: `words`, com o que é comum em `base`. */
async function* message_events(words: AsyncIterable<string>, base: object) {
  const event = (type: string, fields: object = {}) => sse({ type, ...fields }, { event: type });
  const block = { type: 'text', text: '' };
  yield event('message_start', { message: { ...base, content: [], stop_reason: null, usage } });
  yield event('content_block_start', { index: 0, content_block: block });
  for await (const text of words) {
    yield event('content_block_delta', { index: 0, delta: { type: 'text_delta', text } });
  }
  const delta = { stop_reason: 'end_turn', stop_sequence: null };
  yield event('content_block_stop', { index: 0 });
  yield event('message_delta', { delta, usage }) + event('message_stop');
}

/** Devolve a função que responde com um modelo, `answer`. */
export function anthropic_api(answer: model): fetch_handler {
  const refuse = (status: number, type: string, message: string) =>
    Response.json({ type: 'error', error: { type, message } }, { status });
  return async (request, { uuid: id }) => {
    const { pathname } = new URL(request.url);
    if (pathname !== '/v1/messages') return refuse(404, 'not_found_error', pathname);
    const asked = await read_chat(request);
    const prompt = prompt_of(asked.messages);
    const wrong = 'messages: a list is required';
    if (prompt === undefined) return refuse(400, 'invalid_request_error', wrong);
    const base = { id, type: 'message', role: 'assistant', model: asked.model ?? 'echo' };
    const words = answer(prompt, request.signal);
    if (asked.stream) return stream_response(message_events(words, base));
    let text = '';
    for await (const word of words) text += word;
    const content = [{ type: 'text', text }];
    return Response.json({ ...base, content, stop_reason: 'end_turn', usage });
  };
}

if (require.main === module) void serve_fetch(anthropic_api(echo_model));
