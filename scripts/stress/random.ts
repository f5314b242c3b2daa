/*
 * Os dados do sorteio. Cada decisão vem de (semente, assunto, número), e não da ordem em que as
 * coisas acontecem: a mesma semente dá sempre o mesmo plano, por mais que a máquina se atrase.
 */

/** Um sorteador: cada chamada gasta um número da sequência dele. */
export type dice = {
  /** Inclui os dois extremos. */
  integer: (min: number, max: number) => number;
  /** Idem, mas prefere os menores. */
  skewed: (min: number, max: number) => number;
  chance: (probability: number) => boolean;
  pick: <item>(items: readonly item[]) => item;
};

/** As constantes do FNV-1a de 32 bits. */
const fnv = { offset: 0x811c9dc5, prime: 0x01000193 };

/** Resume o texto `text` num inteiro de 32 bits sem sinal (FNV-1a), e o devolve. */
function hash_text(text: string): number {
  let hash = fnv.offset;
  for (const byte of Buffer.from(text)) hash = Math.imul(hash ^ byte, fnv.prime);
  return hash >>> 0;
}

/** Cria um sorteador (mulberry32) para a semente `seed`, o assunto `purpose` e o número `index`. */
export function roll(seed: number, purpose: string, index: number): dice {
  let state = hash_text(`${seed}/${purpose}/${index}`);
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const integer = (min: number, max: number) => min + Math.floor(next() * (max - min + 1));
  return {
    integer,
    skewed: (min, max) => min + Math.floor((max - min + 1) ** next()) - 1,
    chance: (probability) => next() < probability,
    pick: (items) => items[integer(0, items.length - 1)] as (typeof items)[number],
  };
}
