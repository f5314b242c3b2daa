/*
 * As opções do banco de provas e o plano que elas pedem.
 */

import { bad_option, parse_options, read_names, read_switch } from '../dev/options';
import type { bench_plan } from './context';

/** O que foi pedido na linha de comando. */
export type bench_options = {
  plan: bench_plan;
  only: string[];
  program: string | undefined;
  out: string | undefined;
  install_peers: boolean;
  help: boolean;
};

/** A medição completa: uns dez minutos. */
const full_plan: bench_plan = {
  rounds: 3,
  seconds: 2.5,
  latency_streams: [100, 1000],
  bulk_lines: 1_000_000,
  idle_streams: [1000, 5000, 10_000],
  idle_rest_s: 15,
  idle_cpu_s: 60,
  growth_streams: [10, 100, 1000, 5000],
  peers: true,
};

/** A do dia a dia: menos de um minuto. */
const quick_plan: bench_plan = {
  ...full_plan,
  rounds: 2,
  seconds: 1.5,
  latency_streams: [100],
  bulk_lines: 200_000,
  idle_streams: [1000],
  idle_rest_s: 3,
  idle_cpu_s: 8,
  growth_streams: [10, 1000],
  peers: false,
};

/** As provas de --quick, quando --only não diz outras. */
const quick_scenarios = ['latency', 'tasks', 'bulk', 'idle'];

const option_table = {
  quick: { type: 'boolean' },
  only: { type: 'string' },
  program: { type: 'string' },
  out: { type: 'string' },
  rounds: { type: 'string' },
  seconds: { type: 'string' },
  lines: { type: 'string' },
  streams: { type: 'string' },
  peers: { type: 'string' },
  'install-peers': { type: 'boolean' },
  help: { type: 'boolean', short: 'h' },
} as const;

/** O texto de --help. */
export const help_text = `Uso: npm run bench -- [opções]

  --quick            só latency, tasks, bulk e um idle pequeno, em menos de um minuto
  --only LISTA       só estas provas: latency,tasks,bulk,idle,workers,growth
  --program ARQUIVO  um json-proxy.js já montado; sem isto, monta-se um
  --out PASTA        onde gravar o JSON e os SVG; padrão: scripts/bench/results numa medição
                     completa, em lugar nenhum com --quick ou --only
  --rounds N         quantas voltas
  --seconds S        duração de cada medição de demora e de tarefas, sem o aquecimento
  --lines N          quantas linhas na prova de volume
  --streams LISTA    quantos fluxos na prova de ociosidade, por exemplo 1000,10000
  --peers on|off     medir webdis e nchan, se instalados; padrão: on, e off com --quick
  --install-peers    instala webdis, nginx e nchan com apt-get antes de medir
  -h, --help         esta ajuda
`;

/** Lê um número positivo, o da opção `flag`; inteiro se `is_integer`. */
function read_number(flag: string, text: string, is_integer: boolean): number {
  const value = Number(text);
  if (/^\d{1,9}(\.\d{1,3})?$/.test(text) && value > 0 && (!is_integer || value % 1 === 0)) {
    return value;
  }
  const accepted = is_integer ? 'um inteiro maior que 0' : 'um número maior que 0';
  throw bad_option(flag, text, accepted);
}

/** Dá o plano com os ajustes da linha de comando. */
function adjust_plan(
  plan: bench_plan,
  values: { [name: string]: string | boolean | undefined },
): bench_plan {
  const number = (flag: string, fallback: number, is_integer = true) =>
    values[flag] === undefined ? fallback : read_number(flag, String(values[flag]), is_integer);
  const { peers } = values;
  const streams = values.streams === undefined ? [] : String(values.streams).split(',');
  return {
    ...plan,
    rounds: number('rounds', plan.rounds),
    seconds: number('seconds', plan.seconds, false),
    bulk_lines: number('lines', plan.bulk_lines),
    ...(streams.length > 0 && {
      idle_streams: streams.map((text) => read_number('streams', text, true)),
    }),
    ...(peers !== undefined && { peers: read_switch('peers', String(peers)) }),
  };
}

/** Lê as opções de `argv`; `scenarios`: as provas que existem, na ordem em que rodam. */
export function read_options(argv: string[], scenarios: string[]): bench_options {
  const values = parse_options(argv, option_table);
  const { quick = false, only, program, out } = values;
  const wanted = only?.split(',') ?? (quick ? quick_scenarios : scenarios);
  const default_out = quick || only !== undefined ? undefined : 'scripts/bench/results';
  return {
    plan: adjust_plan(quick ? quick_plan : full_plan, values),
    only: read_names('prova', wanted, scenarios),
    program,
    out: out ?? default_out,
    install_peers: values['install-peers'] === true,
    help: values.help === true,
  };
}
