/*
 * O formato de chat do Ollama, que os workers destes testes falam.
 */

/**
 * Dá um pedaço de resposta do Ollama.
 * @param message o que o modelo diz: `content`, `tool_calls`
 * @param done se é o último
 * @returns o pedaço, que em JSON é uma linha
 */
export function make_part(message: object, done = false) {
  return {
    model: 'm',
    created_at: new Date().toISOString(),
    message: { role: 'assistant', content: '', ...message },
    done,
    ...(done && { done_reason: 'stop' }),
  };
}
