/*
 * Um modelo com a API da OpenAI: models, chat completions e responses, aos poucos ou de uma vez.
 *
 *   npx tsx scripts/worker/examples/openai.ts
 *
 * O modelo é de mentira. Com OPENAI_BASE_URL (por exemplo https://api.openai.com/v1) os pedidos são
 * passados adiante, com OPENAI_API_KEY, se ela existe, no lugar da chave do cliente.
 */

import { type fetch_handler, serve_fetch, stream_response } from '../adapters';
import { sse } from '../worker';
import { echo_model, type model, pass_on, prompt_of, read_chat } from './model';

/** Devolve os eventos de chat/completions: `words`, com o que é comum a todos em `base`. */
async function* chat_events(words: AsyncIterable<string>, base: object) {
  const object = 'chat.completion.chunk';
  const chunk = (delta: object, finish_reason: string | null = null) =>
    sse({ ...base, object, choices: [{ index: 0, delta, finish_reason }] });
  yield chunk({ role: 'assistant', content: '' });
  for await (const content of words) yield chunk({ content });
  yield chunk({}, 'stop') + sse('[DONE]');
}

/** Monta a saída da API responses: `text`, e em que pé está, `status`. */
function output_of(text: string, status: string) {
  const content = [{ type: 'output_text', text, annotations: [] }];
  return { id: 'msg_1', type: 'message', role: 'assistant', status, content };
}

/** Devolve os eventos de responses, como chat_events. */
async function* response_events(words: AsyncIterable<string>, base: object) {
  let [sequence_number, text] = [0, ''];
  const event = (type: string, fields: object) =>
    sse({ type, sequence_number: sequence_number++, output_index: 0, ...fields }, { event: type });
  const place = { item_id: 'msg_1', content_index: 0, logprobs: [] };
  const begun = output_of('', 'in_progress');
  yield event('response.created', { response: { ...base, status: begun.status, output: [] } });
  yield event('response.output_item.added', { item: { ...begun, content: [] } });
  yield event('response.content_part.added', { ...place, part: begun.content[0] });
  for await (const delta of words) {
    text += delta;
    yield event('response.output_text.delta', { ...place, delta });
  }
  const item = output_of(text, 'completed');
  yield event('response.output_text.done', { ...place, text });
  yield event('response.output_item.done', { item });
  yield event('response.completed', { response: { ...base, status: 'completed', output: [item] } });
}

/** Devolve a função que responde com um modelo, `answer`. */
export function openai_api(answer: model): fetch_handler {
  const refuse = (status: number, message: string) =>
    Response.json({ error: { message, type: 'invalid_request_error', code: null } }, { status });
  return async (request, { uuid: id, request_time }) => {
    const { pathname } = new URL(request.url);
    const models = [{ id: 'echo', object: 'model', created: 0, owned_by: 'json-proxy' }];
    if (pathname === '/v1/models') return Response.json({ object: 'list', data: models });
    const is_chat = pathname === '/v1/chat/completions';
    if (!is_chat && pathname !== '/v1/responses') return refuse(404, `no such route: ${pathname}`);
    const asked = await read_chat(request);
    const prompt = prompt_of(asked.messages ?? asked.input);
    if (prompt === undefined) return refuse(400, 'messages or input: a text or a list is required');
    const [created, words] = [Math.floor(request_time), answer(prompt, request.signal)];
    const base = { id, model: asked.model ?? 'echo', created };
    const response = { ...base, object: 'response', created_at: created };
    if (asked.stream) {
      return stream_response(is_chat ? chat_events(words, base) : response_events(words, response));
    }
    let content = '';
    for await (const word of words) content += word;
    const [status, output] = ['completed', [output_of(content, 'completed')]];
    if (!is_chat) return Response.json({ ...response, status, output });
    const choices = [{ index: 0, message: { role: 'assistant', content }, finish_reason: 'stop' }];
    return Response.json({ ...base, object: 'chat.completion', choices });
  };
}

const { OPENAI_BASE_URL: real_model } = process.env;
if (require.main === module) void serve_fetch(real_model ? pass_on : openai_api(echo_model));
