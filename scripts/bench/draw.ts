/*
 * Que gráficos se tira dos resumos. As legendas são em inglês, porque ficam no MANUAL.md.
 */

import type { summary } from './report';
import { type bar, type bar_kind, type chart, draw_chart } from './svg';

/** O que mostrar no rodapé: onde e quando se mediu. */
export type chart_setting = { machine: string };

/** Como se chama cada variante nos gráficos. */
const english_labels: [RegExp, string][] = [
  [/^json-proxy, wakeup off$/, 'json-proxy, wake-ups off'],
  [/^json-proxy raw$/, 'json-proxy, RAW'],
  [/^json-proxy replay$/, 'json-proxy, REPLAY'],
  [/^piso blpop$/, 'BLPOP client, no HTTP'],
  [/^piso http\+redis$/, 'bare node:http, same Redis work'],
  [/^piso http$/, 'bare node:http, no Redis'],
  [/^piso à mão$/, 'hand-made proxy, bare lines only'],
  [/^piso lpop (\d+)$/, 'LPOP client, no HTTP'],
  [/^webdis$/, 'webdis SUBSCRIBE'],
  [/^nchan$/, 'nginx with nchan'],
];

/** Dá o nome em inglês de `variant`. */
function english_label(variant: string): string {
  return english_labels.find(([pattern]) => pattern.test(variant))?.[1] ?? variant;
}

/** Dá o nome em inglês de `case_name`: "100 streams" de "100 fluxos". */
function english_case(case_name: string): string {
  return case_name
    .replace(/\d{4,}/, (digits) => Number(digits).toLocaleString('en-US'))
    .replace(/fluxos$/, 'streams')
    .replace(/fluxo$/, 'stream')
    .replace(/conexões$/, 'connections');
}

/** Diz de quem é `variant`: do proxy, de um piso ou de um concorrente. */
function kind_of(variant: string): bar_kind {
  if (variant.startsWith('json-proxy')) return 'ours';
  return variant.startsWith('piso') ? 'floor' : 'peer';
}

/** Dá `value` à maneira inglesa: "1,234", "12.3" ou "0.38". */
function english_number(value: number): string {
  if (value >= 1000) return Math.round(value).toLocaleString('en-US');
  return value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2);
}

/** Dá `value`, por segundo, abreviado: "1.23 M", "48 k". */
function english_rate(value: number): string {
  if (value >= 1e6) return `${(value / 1e6).toFixed(2)} M`;
  return value >= 1e4 ? `${Math.round(value / 1000)} k` : english_number(value);
}

/** Separa só o melhor dos pisos que variam o tamanho do lote. */
function best_raw(items: summary[]): summary[] {
  const is_raw = ({ variant }: summary) => variant.startsWith('piso lpop');
  const rate = (item: summary) => item.values.rate?.median ?? 0;
  const [best] = items.filter(is_raw).toSorted((a, b) => rate(b) - rate(a));
  return items.filter((item) => !is_raw(item) || item === best);
}

/**
 * Monta os grupos de um gráfico, um por caso, sem os vazios e sem aqueles em que falta alguém, que
 * não comparam nada.
 */
function make_groups(
  summaries: summary[],
  make_bar: (item: summary) => Pick<bar, 'value' | 'end' | 'text'> | undefined,
): chart['groups'] {
  const cases = [...new Set(summaries.map(({ case_name }) => case_name))];
  const groups = cases.map((case_name) => {
    const items = best_raw(summaries.filter((item) => item.case_name === case_name));
    const bars = items.flatMap((item): bar[] => {
      const made = make_bar(item);
      const { variant } = item;
      return made ? [{ label: english_label(variant), kind: kind_of(variant), ...made }] : [];
    });
    const is_whole = bars.length === items.length;
    return { label: english_case(case_name), bars: is_whole ? bars : [] };
  });
  return groups.filter(({ bars }) => bars.length > 0);
}

/** Dá a mediana do número `name`, se há. */
function median(item: summary, name: string): number | undefined {
  const value = item.values[name]?.median;
  return value !== undefined && Number.isFinite(value) && value > 0 ? value : undefined;
}

/** Cria o que make_groups quer, a partir do número `name`. */
function simple_bar(name: string, show: (value: number) => string) {
  return (item: summary) => {
    const value = median(item, name);
    return value === undefined ? undefined : { value, text: show(value) };
  };
}

/** Dá a faixa de demoras de um resumo, da mediana ao percentil 99. */
function delay_range(item: summary) {
  const [value, end] = [median(item, 'p50'), median(item, 'p99')];
  if (value === undefined || end === undefined) return undefined;
  return { value, end, text: `${english_number(value)} – ${english_number(end)} ms` };
}

/** Os gráficos, por prova. */
const drawings: Record<
  string,
  Pick<chart, 'title' | 'subtitle' | 'log'> & {
    bar: Parameters<typeof make_groups>[1];
  }
> = {
  latency: {
    title: 'Line latency, p50 to p99',
    subtitle: "From the worker's push to the client's socket, 1,000 lines/s in all; less is better",
    log: true,
    bar: delay_range,
  },
  bulk: {
    title: 'Bulk, lines of 100 bytes per second',
    subtitle: 'A big result, with PAUSE 0; more is better',
    bar: simple_bar('rate', english_rate),
  },
  tasks: {
    title: 'One-line tasks per second',
    subtitle: 'Request, task, one line, end; default settings; more is better',
    bar: simple_bar('rate', english_number),
  },
  idle: {
    title: 'Memory of an idle stream',
    subtitle: 'kB (1000 bytes) of resident memory over the empty process; less is better',
    bar: simple_bar('rss_kb', (value) => `${english_number(value)} kB`),
  },
};

/** Monta os gráficos que os resumos permitem: texto de cada SVG, por nome de arquivo. */
export function draw_charts(summaries: summary[], setting: chart_setting): Record<string, string> {
  const files: Record<string, string> = {};
  for (const [scenario, drawing] of Object.entries(drawings)) {
    const items = summaries.filter((item) => item.scenario === scenario);
    const groups = make_groups(items, drawing.bar);
    if (groups.length === 0) continue;
    const rounds = Math.max(...items.map((item) => item.rounds));
    const measured = rounds > 1 ? `Median of ${rounds} rounds` : 'One measurement';
    const footer = `${measured} · ${setting.machine}`;
    const spoken = groups.map(({ label, bars }) =>
      [`${label}:`, bars.map((item) => `${item.label} ${item.text}`).join('; ')].join(' '),
    );
    const description = `${drawing.subtitle}. ${spoken.join('. ')}.`;
    files[`${scenario}.svg`] = draw_chart({ ...drawing, description, footer, groups });
  }
  return files;
}
