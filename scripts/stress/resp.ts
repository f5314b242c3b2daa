/*
 * O bastante do protocolo do Redis (RESP 2 e 3) para saber onde cada mensagem começa e acaba, e o
 * começo de cada texto dentro dela, sem guardar linhas de megabytes.
 */

/** Uma mensagem inteira: o byte do tipo, e o começo de cada texto que ela traz, na ordem. */
export type resp_message = { type: string; texts: string[] };

/** Quanto se guarda de cada texto: cabem o nome de uma lista e a ficha de uma linha. */
const kept_bytes = 64;

const line_feed = 0x0a;

/** Quantos valores traz cada item contado no cabeçalho dos tipos compostos. */
const values_per_item: Record<string, number> = { '*': 1, '~': 1, '>': 1, '%': 2 };

/**
 * Cria um leitor de mensagens. Recebe os bytes em pedaços quaisquer.
 * @param on_message chamada a cada mensagem completa, com a posição, no pedaço dado por último, do
 *   byte seguinte ao fim dela
 * @returns função que recebe o próximo pedaço
 */
export function make_scanner(
  on_message: (message: resp_message, end: number) => void,
): (chunk: Buffer) => void {
  let header = '';
  let message: resp_message = { type: '', texts: [] };
  const left = { values: 0, text: 0, kept: 0 };
  const end_value = (end: number) => {
    left.values -= 1;
    if (left.values === 0) on_message(message, end);
  };
  const read_header = (end: number) => {
    const [type = ''] = header;
    const size = Number(header.slice(1));
    header = '';
    if (left.values === 0) {
      message = { type, texts: [] };
      left.values = 1;
    }
    if (/[$=!]/.test(type) && size >= 0) {
      left.text = size + '\r\n'.length;
      left.kept = Math.min(size, kept_bytes);
      message.texts.push('');
      return;
    }
    left.values += Math.max(size, 0) * (values_per_item[type] ?? 0) || 0;
    end_value(end);
  };
  const read_text = (chunk: Buffer, at: number): number => {
    const end = Math.min(chunk.length, at + left.text);
    const kept = chunk.toString('latin1', at, Math.min(end, at + left.kept));
    message.texts.push(message.texts.pop() + kept);
    left.kept -= kept.length;
    left.text -= end - at;
    if (left.text === 0) end_value(end);
    return end;
  };
  return (chunk) => {
    for (let at = 0; at < chunk.length; ) {
      if (left.text > 0) {
        at = read_text(chunk, at);
        continue;
      }
      const found = chunk.indexOf(line_feed, at);
      const end = found < 0 ? chunk.length : found + 1;
      header += chunk.toString('latin1', at, end);
      at = end;
      if (found >= 0) {
        header = header.trimEnd();
        read_header(end);
      }
    }
  };
}
