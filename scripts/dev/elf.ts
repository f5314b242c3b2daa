/*
 * Põe um recurso dentro de um executável ELF, onde o Node o procura (man 5 elf; as constantes são
 * as do postject, a ferramenta que a documentação do Node sugere). O recurso é uma nota, num
 * segmento novo no fim do arquivo; a tabela de segmentos, que não tem onde crescer, vai com ela.
 *
 *   cabeçalho │ tabela velha │ o programa, intacto │ tabela nova │ nota: nome, recurso
 *        └────────────────────────────────────────────▲
 */

/** Tipos de segmento: carregado na memória, nota, e a própria tabela. */
const segment_types = { load: 1, note: 4, table: 6 };

/** Só leitura. */
const read_only = 4;

/** Onde estão, no cabeçalho, o lugar da tabela de segmentos e quantos são. */
const header_at = { table: 32, count: 56 };

/** Assinatura de um ELF de 64 bits, little-endian: x86-64 e arm64. */
const signature = Buffer.from('\x7fELF\x02\x01', 'latin1');

const header_bytes = 64;
const segment_bytes = 56;
const note_header_bytes = 12;
const note_align = 4;

/** A maior página de memória do Linux (arm64); um segmento que começa nela serve a todas. */
const page_bytes = 0x10000;

/** O que o Node troca de 0 para 1 em si mesmo para saber que leva um programa. */
const fuse = 'NODE_SEA_FUSE_fce680ab2cc467b6e072b8b5df1996b2:';

/** Uma linha da tabela: um trecho do arquivo e onde ele fica na memória. */
type segment = {
  type: number;
  flags: number;
  offset: number;
  address: number;
  bytes: number;
  memory: number;
  align: number;
};

/**
 * Arredonda para cima.
 * @param value número
 * @param step o múltiplo
 * @returns o menor múltiplo que não é menor que o número
 */
function round_up(value: number, step: number): number {
  return Math.ceil(value / step) * step;
}

/**
 * Lê a tabela de segmentos.
 * @param elf o executável
 * @returns os segmentos, na ordem
 */
function read_segments(elf: Buffer): segment[] {
  const table = Number(elf.readBigUInt64LE(header_at.table));
  return Array.from({ length: elf.readUInt16LE(header_at.count) }, (_, index) => {
    const at = table + index * segment_bytes;
    const field = (position: number) => Number(elf.readBigUInt64LE(at + position));
    return {
      type: elf.readUInt32LE(at),
      flags: elf.readUInt32LE(at + 4),
      offset: field(8),
      address: field(16),
      bytes: field(32),
      memory: field(40),
      align: field(48),
    };
  });
}

/**
 * Escreve uma tabela de segmentos.
 * @param segments os segmentos, na ordem
 * @returns os bytes
 */
function write_segments(segments: segment[]): Buffer {
  const table = Buffer.alloc(segments.length * segment_bytes);
  segments.forEach(({ type, flags, offset, address, bytes, memory, align }, index) => {
    const at = index * segment_bytes;
    table.writeUInt32LE(type, at);
    table.writeUInt32LE(flags, at + 4);
    // o endereço físico, o segundo, não conta no Linux; por costume repete o virtual
    [offset, address, address, bytes, memory, align].forEach((value, field) => {
      table.writeBigUInt64LE(BigInt(value), at + 8 * (field + 1));
    });
  });
  return table;
}

/**
 * Monta uma nota.
 * @param name nome, pelo qual ela é achada
 * @param resource conteúdo
 * @returns os bytes: tamanhos, nome e conteúdo
 */
function make_note(name: string, resource: Buffer): Buffer {
  const title = `${name}\0`;
  const content_at = note_header_bytes + round_up(title.length, note_align);
  const note = Buffer.alloc(content_at + round_up(resource.length, note_align));
  note.writeUInt32LE(title.length, 0);
  note.writeUInt32LE(resource.length, 4);
  note.write(title, note_header_bytes, 'latin1');
  resource.copy(note, content_at);
  return note;
}

/**
 * Acrescenta uma nota a um executável. O segmento novo fica acima de todos os outros, e no arquivo
 * à mesma distância deles que na memória: núcleos anteriores ao 5.18 supõem isso da tabela.
 * @param elf o executável
 * @param name nome da nota
 * @param resource conteúdo dela
 * @returns o executável novo
 */
function add_note(elf: Buffer, name: string, resource: Buffer): Buffer {
  const segments = read_segments(elf);
  const loaded = segments.filter(({ type }) => type === segment_types.load);
  const base = (loaded[0]?.address ?? 0) - (loaded[0]?.offset ?? 0);
  const top = Math.max(...loaded.map(({ address, memory }) => address + memory));
  const offset = round_up(Math.max(elf.length, top - base), page_bytes);
  const table_bytes = (segments.length + 2) * segment_bytes;
  const note = make_note(name, resource);
  const part = (type: number, start: number, bytes: number, align: number): segment => {
    const at = offset + start;
    return { type, flags: read_only, offset: at, address: base + at, bytes, memory: bytes, align };
  };
  const moved = segments.map((found) =>
    found.type === segment_types.table ? part(found.type, 0, table_bytes, found.align) : found,
  );
  const after_loaded = segments.findLastIndex(({ type }) => type === segment_types.load) + 1;
  const load = part(segment_types.load, 0, table_bytes + note.length, page_bytes);
  moved.splice(after_loaded, 0, load); // os carregados vêm juntos, por endereço crescente
  moved.push(part(segment_types.note, table_bytes, note.length, note_align));
  const padding = Buffer.alloc(offset - elf.length);
  const result = Buffer.concat([elf, padding, write_segments(moved), note]);
  result.writeBigUInt64LE(BigInt(offset), header_at.table);
  result.writeUInt16LE(moved.length, header_at.count);
  return result;
}

/**
 * Põe um programa preparado por `node --experimental-sea-config` numa cópia do Node.
 * @param node o executável do Node
 * @param blob o programa preparado
 * @returns o executável que é o programa
 * @throws Error se este Node não serve
 */
export function embed_program(node: Buffer, blob: Buffer): Buffer {
  const is_elf = node.length > header_bytes && signature.equals(node.subarray(0, signature.length));
  if (!is_elf) throw new Error('só executáveis do Linux (ELF de 64 bits)');
  const fuse_at = node.indexOf(`${fuse}0`);
  if (fuse_at < 0) {
    throw new Error('este Node não pode levar um programa; use um de nodejs.org, do 20 em diante');
  }
  const result = add_note(node, 'NODE_SEA_BLOB', blob);
  result.write('1', fuse_at + fuse.length);
  return result;
}
