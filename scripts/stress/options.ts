/*
 * As opções da prova de esforço.
 */

import { bad_option, parse_options, read_names, read_switch } from '../dev/options';
import { fault_names, type planned_fault } from './ledger';

/** O que foi pedido na linha de comando. */
export type stress_options = {
  seconds: number;
  seed: number;
  streams: number;
  program: string | undefined;
  wakeup: boolean;
  replay: boolean;
  stream: boolean;
  faults: planned_fault[];
  help: boolean;
};

const option_table = {
  seconds: { type: 'string', default: '60' },
  seed: { type: 'string' },
  streams: { type: 'string', default: '50' },
  program: { type: 'string' },
  wakeup: { type: 'string', default: 'on' },
  replay: { type: 'string', default: 'off' },
  stream: { type: 'string', default: 'off' },
  faults: { type: 'string' },
  help: { type: 'boolean', short: 'h', default: false },
} as const;

/** O menor e o maior valor de cada número. */
const limits = { seconds: [1, 86_400], streams: [1, 1000], seed: [0, 2 ** 31 - 1] } as const;

/** O texto de --help. */
export const help_text = `Uso: npm run stress -- [opções]

  --seconds S        por quanto tempo provocar falhas; padrão: 60. O aquecimento e a espera pelo que
                     expira no fim vão além disto
  --seed N           a semente; sem isto, sorteia-se uma. A mesma repete o mesmo plano
  --streams N        clientes ao mesmo tempo; padrão: 50
  --program ARQUIVO  um json-proxy.js já montado; sem isto, monta-se um
  --wakeup on|off    com ou sem os avisos do Redis; padrão: on
  --replay on|off    com REPLAY: quem é cortado volta, e nenhuma linha pode faltar; padrão: off
  --stream on|off    os workers leem as tarefas de REDIS_STREAM, e não do canal; padrão: off
  --faults LISTA     só estas falhas, ou none: ${fault_names.slice(0, 5)},
                     ${fault_names.slice(5)}
  -h, --help         esta ajuda

Sai com 0 se nada se perdeu, repetiu, trocou de lugar, travou ou vazou; com 1 se algo disso
aconteceu, e então mostra o que foi, a semente e o comando que repete o plano.
`;

/** Lê o número inteiro da opção `flag`. */
function read_integer(flag: keyof typeof limits, text: string): number {
  const [min, max] = limits[flag];
  const value = Number(text);
  if (/^\d{1,10}$/.test(text) && value >= min && value <= max) return value;
  throw bad_option(flag, text, `um inteiro de ${min} a ${max}`);
}

/** Lê as opções de `argv`; a semente já vem sorteada, se não foi dada. */
export function read_options(argv: string[]): stress_options {
  const values = parse_options(argv, option_table);
  const {
    faults,
    program,
    help,
    seed = String(Math.floor(Math.random() * limits.seed[1])),
  } = values;
  const wanted = faults === 'none' ? [] : (faults?.split(',') ?? fault_names);
  return {
    seconds: read_integer('seconds', values.seconds),
    seed: read_integer('seed', seed),
    streams: read_integer('streams', values.streams),
    program,
    wakeup: read_switch('wakeup', values.wakeup),
    replay: read_switch('replay', values.replay),
    stream: read_switch('stream', values.stream),
    faults: read_names('falha', wanted, fault_names, `none ou ${fault_names}`),
    help,
  };
}

/** Monta o comando que repete um plano. */
export function replay_command(options: stress_options): string {
  const { seed, seconds, streams, wakeup, replay, stream, faults, program } = options;
  const all = faults.length === fault_names.length;
  return [
    `npm run stress -- --seed ${seed} --seconds ${seconds} --streams ${streams}`,
    ...(wakeup ? [] : ['--wakeup off']),
    ...(replay ? ['--replay on'] : []),
    ...(stream ? ['--stream on'] : []),
    ...(all ? [] : [`--faults ${faults.join(',') || 'none'}`]),
    ...(program ? [`--program ${program}`] : []),
  ].join(' ');
}
