/*
 * O modelo de mentira dos exemplos, que repete o que ouviu, uma palavra por vez: ponha o seu no
 * lugar. E como se passam os pedidos a um de verdade.
 */

import { setTimeout as sleep } from 'node:timers/promises';

/** Um modelo: do texto que ouve aos pedaços do que responde. */
export type model = (prompt: string, signal: AbortSignal) => AsyncIterable<string>;

/** Uma mensagem de uma conversa, nas formas da OpenAI, da Anthropic e da Vercel. */
export type message = { role: string; content?: string | part[]; parts?: part[] };

type part = { text?: string };

/** O que se usa do corpo de um pedido. */
type chat = { model?: string; stream?: boolean; messages?: message[]; input?: message[] | string };

/** Lê o corpo de um pedido; o que não é JSON é como um que não diz nada. */
export async function read_chat(request: Request): Promise<chat> {
  return ((await request.json().catch(() => undefined)) as chat | undefined) ?? {};
}

/** Repete `prompt`; `signal` o interrompe. */
export async function* echo_model(prompt: string, signal: AbortSignal): AsyncGenerator<string> {
  for (const word of `You said: ${prompt}`.split(/(?<= )/)) {
    yield word;
    await sleep(100, undefined, { signal });
  }
}

/**
 * Junta o texto da última mensagem de uma conversa.
 * @param messages a conversa, ou só um texto
 * @returns o texto; undefined se não há conversa
 */
export function prompt_of(messages?: message[] | string): string | undefined {
  if (typeof messages === 'string') return messages;
  if (!Array.isArray(messages) || messages.length === 0) return undefined;
  const { content, parts } = messages.at(-1) as message;
  if (typeof content === 'string') return content;
  return (content ?? parts ?? []).map(({ text }) => text ?? '').join('');
}

/** Passa um pedido adiante, a OPENAI_BASE_URL, e devolve a resposta. */
export async function pass_on(request: Request): Promise<Response> {
  const { OPENAI_BASE_URL: base = '', OPENAI_API_KEY: key } = process.env;
  const headers = new Headers(request.headers);
  for (const name of ['host', 'connection', 'content-length']) headers.delete(name);
  if (key) headers.set('Authorization', `Bearer ${key}`);
  const path = request.url.replace(/^.*?\/v1\//, '/');
  const body = request.method === 'GET' ? null : await request.arrayBuffer();
  return fetch(base + path, { method: request.method, headers, body, signal: request.signal });
}
