/*
 * Um servidor de modelos para o n8n: fala o formato de chat do Ollama e os dois da OpenAI, sempre
 * aos poucos, e diz o que o teste manda para cada pergunta.
 */

import http from 'node:http';
import { on_stop, stir } from '../harness';
import { make_part } from './chat_format';

/** Como o modelo falha: a conexão cortada, o fluxo que só acaba, ou a falta de espaço, dita. */
type failure = 'cut' | 'short' | 'full';

/** Algo que o modelo diz, ou como ele falha. */
export type said = { text: string } | { tool: string; input: object } | failure;

/** O que o modelo faz com uma pergunta. `turn` é 0, e mais 1 depois de cada ferramenta usada. */
export type script = (turn: number, asked: asked) => AsyncIterable<said>;

/** Um pedido, na parte que os formatos têm em comum; e em que formato veio. */
export type asked = {
  stream: boolean;
  messages: { role: string; content: string }[];
  asked_by: string;
};

/** Um pedido que chegou: se a resposta foi lida até o fim, se a conexão fechou. */
export type call = { asked: asked; finished: boolean; closed: boolean };

/** Como cada formato escreve o que o modelo diz. */
type voice = { said: (one: Exclude<said, string>) => string; end: (reason: string) => string };

const line = (part: object) => `${JSON.stringify(part)}\n`;

const ollama: voice = {
  said: (one) => {
    if ('text' in one) return line(make_part({ content: one.text }));
    const call = { name: one.tool, arguments: one.input };
    return line(make_part({ tool_calls: [{ function: call }] }));
  },
  end: (reason) => line({ ...make_part({}, true), done_reason: reason }),
};

/** Dá um evento da OpenAI, com `finish_reason` se é o último. */
function chunk(delta: object, finish_reason: string | null = null): string {
  const choices = [{ index: 0, delta, finish_reason }];
  const base = { id: 'c', object: 'chat.completion.chunk', created: 0, model: 'm' };
  return `data: ${JSON.stringify({ ...base, choices })}\n\n`;
}

const openai: voice = {
  said: (one) => {
    if ('text' in one) return chunk({ role: 'assistant', content: one.text });
    const fields = { name: one.tool, arguments: JSON.stringify(one.input) };
    return chunk({ tool_calls: [{ index: 0, id: 'call_1', type: 'function', function: fields }] });
  },
  end: (reason) => `${chunk({}, reason)}data: [DONE]\n\n`,
};

/** Dá um evento da API responses. */
const event = (type: string, fields: object) =>
  `event: ${type}\ndata: ${JSON.stringify({ type, output_index: 0, ...fields })}\n\n`;

const responses: voice = {
  said: (one) => {
    if ('text' in one) {
      const place = { item_id: 'msg_1', content_index: 0 };
      return event('response.output_text.delta', { ...place, delta: one.text });
    }
    const call = { type: 'function_call', id: 'fc_1', call_id: 'call_1', name: one.tool };
    const item = { ...call, arguments: JSON.stringify(one.input) };
    return event('response.output_item.added', { item });
  },
  end: () => {
    const response = { id: 'resp_1', status: 'completed', model: 'm', output: [] };
    return event('response.completed', { response });
  },
};

/** Um item do que a API responses recebe. */
type item = {
  type?: string;
  role?: string;
  content?: string | { text: string }[];
  output?: string;
};

/** Lê, como conversa, o que a API responses recebe. */
function read_items(items: item[]): asked['messages'] {
  return items.map(({ type, role = '', content, output = '' }) => {
    if (type === 'function_call_output') return { role: 'tool', content: output };
    const parts = typeof content === 'string' ? [{ text: content }] : (content ?? []);
    return { role, content: parts.map(({ text }) => text).join('') };
  });
}

/** Quem fala em cada caminho. */
const voices: Record<string, voice> = { '/api/chat': ollama, '/v1/responses': responses };

/** Diz uma resposta inteira, ou a parte dela que o roteiro manda. */
async function speak(
  voice: voice,
  says: AsyncIterable<said>,
  response: http.ServerResponse,
): Promise<unknown> {
  let reason = 'stop';
  for await (const one of says) {
    if (response.destroyed) return;
    if (one === 'cut') return response.destroy();
    if (one === 'short') return response.end();
    if (one === 'full') reason = 'length';
    else {
      if ('tool' in one) reason = 'tool_calls';
      response.write(voice.said(one));
    }
  }
  return response.end(voice.end(reason));
}

/**
 * Sobe o servidor.
 * @returns `url`; `play`: diz o que fazer quando a última fala do usuário contém um texto; `calls`:
 *   os pedidos a essa pergunta, na ordem em que chegaram
 */
export async function start_models() {
  const scripts = new Map<string, script>();
  const calls: call[] = [];
  const last_of = ({ messages }: asked) => messages.findLast(({ role }) => role === 'user');
  const is_about = (asked: asked, question: string) =>
    (last_of(asked)?.content ?? '').includes(question);
  const serve = async (asked: asked, voice: voice, response: http.ServerResponse) => {
    const call: call = { asked, finished: false, closed: false };
    calls.push(call);
    response.once('close', () => {
      Object.assign(call, { finished: response.writableFinished, closed: true });
      stir();
    });
    stir();
    const question = [...scripts.keys()].find((key) => is_about(asked, key));
    const script = scripts.get(question ?? '');
    const turn = asked.messages.filter(({ role }) => role === 'tool').length;
    if (script) await speak(voice, script(turn, asked), response);
    else response.writeHead(404).end('{"error":{"message":"no such script"}}');
  };
  const server = http.createServer(async (request, response) => {
    const parts: Buffer[] = [];
    for await (const part of request) parts.push(part);
    const body = JSON.parse(Buffer.concat(parts).toString('utf8'));
    const voice = voices[request.url ?? ''] ?? openai;
    const asked_by = voice === ollama ? 'ollama' : 'openai';
    const messages = body.messages ?? read_items(body.input);
    const asked = { stream: body.stream, messages, asked_by };
    serve(asked, voice, response).catch(() => response.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  on_stop(async () => {
    server.closeAllConnections();
    server.close();
  });
  return {
    url: `http://127.0.0.1:${port}`,
    play: (question: string, script: script) => scripts.set(question, script),
    calls: (question: string) => calls.filter(({ asked }) => is_about(asked, question)),
  };
}
