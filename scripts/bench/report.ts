/*
 * O que se conclui das medições: medianas com os extremos, razões ao lado das metas, e a tabela.
 */

import type { measurement } from './context';

/** A mediana de um número em todas as voltas, com os extremos. */
export type spread = { median: number; min: number; max: number };

/** As medições de uma variante num caso, resumidas. */
export type summary = {
  scenario: string;
  case_name: string;
  variant: string;
  rounds: number;
  values: Record<string, spread>;
};

/** Uma razão entre resumos e a meta dela. `met` é undefined sem meta. */
export type ratio = {
  scenario: string;
  name: string;
  value: number;
  target: string;
  met: boolean | undefined;
};

/** Como mostrar uma coluna: título, e o número em texto. */
type column = { key: string; title: string; show: (value: number) => string };

/** Fração a partir da qual um núcleo conta como ocupado por inteiro. */
const busy_share = 0.9;

/** Fração de um núcleo que programas alheios podem gastar sem que a medição perca o valor. */
const quiet_share = 0.25;

/** Dá mediana, menor e maior de `numbers`; NaN se não há nenhum. */
export function spread_of(numbers: number[]): spread {
  const sorted = numbers.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  const low = sorted[Math.ceil(middle) - 1] ?? Number.NaN;
  const high = sorted[Math.floor(middle)] ?? Number.NaN;
  const [min = Number.NaN] = sorted;
  return { median: (low + high) / 2, min, max: sorted.at(-1) ?? Number.NaN };
}

/** Junta as medições por prova, caso e variante, na ordem em que apareceram. */
export function summarize_rows(rows: measurement[]): summary[] {
  const groups = new Map<string, measurement[]>();
  for (const row of rows) {
    const key = [row.scenario, row.case_name, row.variant].join('\n');
    groups.set(key, [...(groups.get(key) ?? []), row]);
  }
  return [...groups.values()].map((group) => {
    const [first] = group as [measurement];
    const names = Object.keys(first.values);
    const values = names.map((name) => [
      name,
      spread_of(group.map((row) => row.values[name] ?? Number.NaN)),
    ]);
    const { scenario, case_name, variant } = first;
    const rounds = group.length;
    return { scenario, case_name, variant, rounds, values: Object.fromEntries(values) };
  });
}

/**
 * Dá a mediana do número `value`, de uma `variant`, num `case_name`, de um `scenario`; NaN se não
 * foi medido.
 */
export function median_of(
  summaries: summary[],
  scenario: string,
  case_name: string,
  variant: string,
  value: string,
): number {
  const found = summaries.find(
    (item) =>
      item.scenario === scenario && item.case_name === case_name && item.variant === variant,
  );
  return found?.values[value]?.median ?? Number.NaN;
}

/** Cria a razão `name` do `scenario`: compara `value` com a meta `target`, se há `sense`. */
function compare(
  scenario: string,
  name: string,
  value: number,
  sense: '<=' | '>=' | '' = '',
  target = 0,
): ratio {
  if (!sense) return { scenario, name, value, target: '', met: undefined };
  const met = sense === '<=' ? value <= target : value >= target;
  return { scenario, name, value, target: `${sense} ${target}`, met };
}

/** Dá as razões da demora. */
function latency_ratios(summaries: summary[]): ratio[] {
  const cases = new Set(
    summaries.filter((item) => item.scenario === 'latency').map((item) => item.case_name),
  );
  return [...cases].flatMap((case_name, index) => {
    const of = (variant: string, value: string) =>
      median_of(summaries, 'latency', case_name, variant, value);
    const cpu = (variant: string) => of(variant, 'server_cpu_us');
    const p50 = of('json-proxy', 'p50');
    const floors = of('piso blpop', 'p50') + of('piso http', 'p50');
    const is_target = index === 0; // as metas são do primeiro caso; os outros só se mostram
    const say = (name: string, value: number, target: number) =>
      compare('latency', `${case_name}: ${name}`, value, is_target ? '<=' : '', target);
    return [
      say('p50 ÷ (piso blpop + piso http)', p50 / floors, 1.5),
      say('p50 ÷ p50 do webdis', p50 / of('webdis', 'p50'), 1.1),
      say('p99 ÷ p50', of('json-proxy', 'p99') / p50, 15),
      say('p50, REPLAY ÷ sem', of('json-proxy replay', 'p50') / p50, 1.15),
      say('µs por linha ÷ piso à mão', cpu('json-proxy') / cpu('piso à mão'), 1.25),
    ];
  });
}

/** Dá as razões do volume. */
function bulk_ratios(summaries: summary[]): ratio[] {
  const bulk = summaries.filter((item) => item.scenario === 'bulk');
  const cases = new Set(bulk.map((item) => item.case_name));
  return [...cases].flatMap((case_name) => {
    const of = (variant: string) => median_of(bulk, 'bulk', case_name, variant, 'rate');
    const raw = bulk
      .filter((item) => item.case_name === case_name && item.variant.startsWith('piso lpop'))
      .map((item) => item.values.rate?.median ?? Number.NaN);
    return [
      compare(
        'bulk',
        `${case_name}: ÷ melhor piso lpop`,
        of('json-proxy') / Math.max(...raw),
        '>=',
        0.8,
      ),
      compare(
        'bulk',
        `${case_name}: RAW ÷ linhas`,
        of('json-proxy raw') / of('json-proxy'),
        '>=',
        1,
      ),
      compare(
        'bulk',
        `${case_name}: REPLAY ÷ sem`,
        of('json-proxy replay') / of('json-proxy'),
        '>=',
        0.35,
      ),
      compare('bulk', `${case_name}: ÷ piso http`, of('json-proxy') / of('piso http')),
      compare('bulk', `${case_name}: ÷ webdis`, of('json-proxy') / of('webdis'), '>=', 8),
    ];
  });
}

/** Dá as razões das tarefas. */
function task_ratios(summaries: summary[]): ratio[] {
  const found = summaries.filter((item) => item.scenario === 'tasks');
  const of = (variant: string) =>
    found.find((item) => item.variant === variant)?.values.rate?.median ?? Number.NaN;
  const value = of('json-proxy') / of('piso http+redis');
  return found.length > 0 ? [compare('tasks', '÷ piso http+redis', value, '>=', 0.6)] : [];
}

/** As metas da ociosidade valem daqui para cima: com poucos fluxos pesa a folga do heap. */
const target_idle_streams = 10_000;

/** Dá o que a ociosidade promete, no maior número de fluxos medido. */
function idle_ratios(summaries: summary[]): ratio[] {
  const found = summaries.filter((item) => item.scenario === 'idle');
  const largest = found.filter((item) => item.variant === 'json-proxy').at(-1);
  if (!largest) return [];
  const of = (value: string) => largest.values[value]?.median ?? Number.NaN;
  const { case_name } = largest;
  const floor = median_of(found, 'idle', case_name, 'piso http', 'rss_kb');
  const is_target = Number.parseInt(case_name, 10) >= target_idle_streams;
  const say = (name: string, value: number, target: number) =>
    compare('idle', `${case_name}: ${name}`, value, is_target ? '<=' : '', target);
  return [
    say('kB por fluxo (RSS)', of('rss_kb'), 22),
    compare('idle', `${case_name}: kB por fluxo ÷ piso http`, of('rss_kb') / floor),
    say('% de um núcleo, proxy', 100 * of('server_cpu'), 5),
    say('% de um núcleo, Redis', 100 * of('redis_cpu'), 3),
  ];
}

/** Dá as razões que as medições permitem: as que têm os dois lados. */
export function derive_ratios(summaries: summary[]): ratio[] {
  const all = [latency_ratios, bulk_ratios, task_ratios, idle_ratios];
  return all.flatMap((derive) => derive(summaries)).filter(({ value }) => Number.isFinite(value));
}

/** Dá `value` com três algarismos, ou inteiro com os milhares separados; "–" se não há. */
export function format_number(value: number): string {
  if (!Number.isFinite(value)) return '–';
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString('pt-BR');
  if (Math.abs(value) >= 100) return value.toFixed(0);
  return value.toFixed(Math.abs(value) >= 10 ? 1 : 2).replace('.', ',');
}

/** Dá a fração `value` como porcentagem: "4,2". */
function format_share(value: number): string {
  return format_number(100 * value);
}

/** Cria a coluna do número `key`, de título `title`. */
function column(key: string, title: string, show = format_number): column {
  return { key, title, show };
}

const cpu_columns = [column('server_cpu_us', 'µs servidor'), column('redis_cpu_us', 'µs Redis')];

const share_columns = [
  column('server_cpu_share', '% servidor', format_share),
  column('redis_cpu_share', '% Redis', format_share),
  column('client_cpu_share', '% cliente', format_share),
  column('worker_cpu_share', '% worker', format_share),
];

const latency_columns = [
  column('p50', 'p50 ms'),
  column('p90', 'p90 ms'),
  column('p99', 'p99 ms'),
  column('max', 'maior ms'),
];

/** As colunas de cada prova; a primeira é a que mostra também os extremos. */
const columns: Record<string, column[]> = {
  latency: [...latency_columns, ...cpu_columns],
  tasks: [column('rate', 'tarefas/s'), ...latency_columns, ...cpu_columns, ...share_columns],
  bulk: [
    column('rate', 'linhas/s'),
    ...cpu_columns,
    ...share_columns,
    column('out_of_order', 'fora de ordem'),
  ],
  idle: [
    column('rss_kb', 'kB/fluxo RSS'),
    column('pss_kb', 'kB/fluxo Pss'),
    column('redis_kb', 'kB/fluxo Redis'),
    column('server_cpu', '% núcleo servidor', format_share),
    column('redis_cpu', '% núcleo Redis', format_share),
    column('empty_mb', 'MB vazio'),
  ],
  workers: [column('rate', 'por segundo'), ...cpu_columns, ...share_columns],
  growth: [...cpu_columns, ...latency_columns],
};

/** Junta as células de `lines` em colunas: as duas primeiras à esquerda, as outras à direita. */
function align(lines: string[][]): string {
  const widths = (lines[0] ?? []).map((_, index) =>
    Math.max(...lines.map((cells) => cells[index]?.length ?? 0)),
  );
  const pad = (cell: string, index: number) =>
    index < 2 ? cell.padEnd(widths[index] ?? 0) : cell.padStart(widths[index] ?? 0);
  return lines.map((cells) => cells.map(pad).join('  ').trimEnd()).join('\n');
}

/** Monta a tabela da prova `scenario`, com título. */
function scenario_table(scenario: string, summaries: summary[]): string {
  const shown = (columns[scenario] ?? []).filter(({ key }) =>
    summaries.some((item) => Number.isFinite(item.values[key]?.median)),
  );
  const [first] = shown;
  const header = ['caso', 'variante', ...shown.map(({ title }) => title), 'de', 'a'];
  const lines = summaries.map(({ case_name, variant, values }) => {
    const cells = shown.map(({ key, show }) => show(values[key]?.median ?? Number.NaN));
    const { min = Number.NaN, max = Number.NaN } = values[first?.key ?? ''] ?? {};
    return [case_name, variant, ...cells, format_number(min), format_number(max)];
  });
  return `\n${scenario}\n${align([header, ...lines])}`;
}

/**
 * Dá uma observação por prova em que outros programas pesaram: todo processo que trabalha é contado
 * pelo nome.
 */
export function disturbance_notes(summaries: summary[]): string[] {
  const scenarios = [...new Set(summaries.map(({ scenario }) => scenario))];
  return scenarios.flatMap((scenario) => {
    const shares = summaries
      .filter((item) => item.scenario === scenario)
      .map((item) => item.values.others_cpu_share?.max ?? 0);
    const worst = Math.max(0, ...shares.filter(Number.isFinite));
    if (worst < quiet_share) return [];
    const percent = Math.round(100 * worst);
    return [
      `${scenario}: a máquina não estava quieta, outros gastaram até ${percent} % de um núcleo`,
    ];
  });
}

/**
 * Diz o que limitou uma medição, numa máquina de `cores` núcleos, pelo que cada processo gastou.
 */
export function limit_line(item: summary, cores: number): string {
  const names: [string, string][] = [
    ['server', 'proxy'],
    ['redis', 'Redis'],
    ['client', 'cliente'],
    ['worker', 'worker'],
    ['others', 'outros'],
  ];
  const shares = names.map(([key, label]) => {
    const share = item.values[`${key}_cpu_share`]?.median ?? 0;
    return { label, share };
  });
  const total = shares.reduce((sum, { share }) => sum + share, 0);
  const [busiest] = shares.slice(0, -1).toSorted((a, b) => b.share - a.share);
  let limit = 'as esperas entre eles';
  if (busiest && busiest.share >= busy_share) limit = `um núcleo do ${busiest.label}`;
  if (total >= cores * busy_share) limit = `a máquina, ${cores} núcleos`;
  const spent = shares.map(({ label, share }) => `${label} ${Math.round(100 * share)} %`);
  return `${item.case_name}, ${item.variant}: o limite é ${limit} (${spent.join(', ')})`;
}

/** Monta a tabela das razões. */
function ratio_table(ratios: ratio[]): string {
  const verdict = (met: boolean | undefined) => {
    if (met === undefined) return '';
    return met ? 'alcançada' : 'NÃO alcançada';
  };
  const lines = ratios.map(({ scenario, name, value, target, met }) => {
    const cells = [scenario, name, format_number(value), target.replace('.', ','), verdict(met)];
    return cells;
  });
  return `\nrazões e metas\n${align([['prova', 'razão', 'valor', 'meta', ''], ...lines])}`;
}

/** Monta o relatório inteiro: as tabelas e as observações `notes`. */
export function text_report(summaries: summary[], ratios: ratio[], notes: string[]): string {
  const scenarios = [...new Set(summaries.map(({ scenario }) => scenario))];
  const tables = scenarios.map((name) =>
    scenario_table(
      name,
      summaries.filter(({ scenario }) => scenario === name),
    ),
  );
  const remarks = notes.length > 0 ? `\nobservações\n${notes.map((t) => `- ${t}`).join('\n')}` : '';
  const found = ratios.length > 0 ? ratio_table(ratios) : '';
  return `${[...tables, found, remarks].filter(Boolean).join('\n')}\n`;
}
