/*
 * As opções da prova de esforço.
 */

import { bad_option, option_error, parse_options, read_switch } from '../dev/options';
import { fault_names } from './faults';
import type { planned_fault } from './ledger';

/** O que foi pedido na linha de comando. */
export type stress_options = {
  seconds: number;
  seed: number;
  streams: number;
  program: string | undefined;
  wakeup: boolean;
  faults: planned_fault[];
  help: boolean;
};

const option_table = {
  seconds: { type: 'string' },
  seed: { type: 'string' },
  streams: { type: 'string' },
  program: { type: 'string' },
  wakeup: { type: 'string' },
  faults: { type: 'string' },
  help: { type: 'boolean', short: 'h' },
} as const;

const max_seed = 2 ** 31 - 1;

/** O que se aceita de cada número: o padrão e os extremos. */
const number_limits = {
  seconds: { fallback: 60, min: 1, max: 86_400 },
  streams: { fallback: 50, min: 1, max: 1000 },
};

/** O texto de --help. */
export const help_text = `Uso: npm run stress -- [opções]

  --seconds S        por quanto tempo provocar falhas; padrão: 60. O aquecimento e a espera pelo que
                     expira no fim vão além disto
  --seed N           a semente; sem isto, sorteia-se uma. A mesma repete o mesmo plano
  --streams N        clientes ao mesmo tempo; padrão: 50
  --program ARQUIVO  um json-proxy.js já montado; sem isto, monta-se um
  --wakeup on|off    com ou sem os avisos do Redis; padrão: on
  --faults LISTA     só estas falhas, ou none: ${fault_names.slice(0, 5)},
                     ${fault_names.slice(5)}
  -h, --help         esta ajuda

Sai com 0 se nada se perdeu, repetiu, trocou de lugar, travou ou vazou; com 1 se algo disso
aconteceu, e então mostra o que foi, a semente e o comando que repete o plano.
`;

/**
 * Lê um número inteiro.
 * @param flag a opção, para a mensagem
 * @param text o texto dado
 * @param min menor valor aceito
 * @param max maior valor aceito
 * @returns o número
 * @throws option_error
 */
function read_integer(flag: string, text: string, min: number, max: number): number {
  const value = Number(text);
  if (/^\d{1,10}$/.test(text) && value >= min && value <= max) return value;
  throw bad_option(flag, text, `um inteiro de ${min} a ${max}`);
}

/**
 * Lê a lista de falhas.
 * @param text o texto dado; undefined são todas
 * @returns as falhas, na ordem da tabela
 * @throws option_error
 */
function read_faults(text: string | undefined): planned_fault[] {
  if (text === undefined) return fault_names;
  const wanted = text === 'none' ? [] : text.split(',');
  const unknown = wanted.find((name) => !fault_names.includes(name as planned_fault));
  if (unknown === undefined) return fault_names.filter((name) => wanted.includes(name));
  const accepted = `none ou ${fault_names}`;
  throw new option_error(`falha desconhecida: ${JSON.stringify(unknown)}; aceito: ${accepted}`);
}

/**
 * Lê as opções.
 * @param argv argumentos sem o nome do programa
 * @returns o que foi pedido; a semente já sorteada, se não foi dada
 * @throws option_error em opção desconhecida ou valor inválido
 */
export function read_options(argv: string[]): stress_options {
  const values = parse_options(argv, option_table);
  const number = (flag: keyof typeof number_limits) => {
    const { fallback, min, max } = number_limits[flag];
    const text = values[flag];
    return text === undefined ? fallback : read_integer(flag, text, min, max);
  };
  const { wakeup = 'on', seed = String(Math.floor(Math.random() * max_seed)) } = values;
  return {
    seconds: number('seconds'),
    seed: read_integer('seed', seed, 0, max_seed),
    streams: number('streams'),
    program: values.program,
    wakeup: read_switch('wakeup', wakeup),
    faults: read_faults(values.faults),
    help: values.help === true,
  };
}

/**
 * Escreve o comando que repete um plano.
 * @param options o que foi pedido
 * @returns o comando
 */
export function replay_command(options: stress_options): string {
  const { seed, seconds, streams, wakeup, faults, program } = options;
  const all = faults.length === fault_names.length;
  return [
    `npm run stress -- --seed ${seed} --seconds ${seconds} --streams ${streams}`,
    ...(wakeup ? [] : ['--wakeup off']),
    ...(all ? [] : [`--faults ${faults.join(',') || 'none'}`]),
    ...(program ? [`--program ${program}`] : []),
  ].join(' ');
}
