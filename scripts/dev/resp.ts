/*
 * O leitor das mensagens do Redis nas provas longas: o da biblioteca, que é também o do proxy, e
 * acha portanto as mesmas mensagens que ele nos mesmos bytes.
 */

import { Decoder as decoder } from '@redis/client/dist/lib/RESP/decoder';

/**
 * Cria um leitor, que recebe os bytes em pedaços quaisquer: respostas, ou comandos. Um erro do
 * Redis é uma resposta, instância de Error; os avisos do RESP 3, que ninguém pediu, são
 * descartados.
 */
export function make_reader(on_reply: (reply: unknown) => void): (chunk: Buffer) => void {
  const reader = new decoder({
    onReply: on_reply,
    onErrorReply: on_reply,
    onPush: () => {},
    getTypeMapping: () => ({}),
  });
  return (chunk) => reader.write(chunk);
}
