/*
 * Gráficos de barras horizontais em SVG, escritos como texto: sem navegador, sem nada de fora,
 * legíveis no tema claro e no escuro.
 */

/** De quem é uma barra: o proxy, um piso ou um concorrente. Decide a cor. */
export type bar_kind = 'ours' | 'floor' | 'peer';

/** Uma barra; com `end`, uma faixa de `value` até ele. */
export type bar = { label: string; kind: bar_kind; value: number; end?: number; text: string };

/** Um gráfico. Com `log`, a escala é logarítmica, para faixas que vão de décimos a centenas. */
export type chart = {
  title: string;
  subtitle: string;
  description: string;
  footer: string;
  log?: boolean;
  groups: { label: string; bars: bar[] }[];
};

const width = 760;
const margin = 20;
const label_width = 250;
const text_width = 150;
const bar_height = 16;
const row_height = 24;
const group_gap = 30;
const header_height = 66;
const footer_height = 34;

const plot_left = margin + label_width;
const plot_width = width - plot_left - text_width - margin;

/** A legenda, da direita para a esquerda; `space` é a largura do quadrado e do texto, em px. */
const legend: { kind: bar_kind; label: string; space: number }[] = [
  { kind: 'peer', label: 'other servers', space: 98 },
  { kind: 'floor', label: 'reference, same run', space: 136 },
  { kind: 'ours', label: 'json-proxy', space: 80 },
];

const style = `
  text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
  .card { fill: #ffffff; stroke: #d0d7de; }
  .title { font-size: 16px; font-weight: 600; fill: #1f2328; }
  .group { font-size: 13px; font-weight: 600; fill: #1f2328; }
  .label, .value { font-size: 12px; fill: #1f2328; }
  .note { font-size: 11.5px; fill: #59636e; }
  .track { fill: #eff2f5; }
  .tick { stroke: #d0d7de; stroke-width: 1; }
  .ours { fill: #0969da; }
  .floor { fill: #8c959f; }
  .peer { fill: #bc4c00; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #161b22; stroke: #3d444d; }
    .title, .group, .label, .value { fill: #f0f6fc; }
    .note { fill: #9198a1; }
    .track { fill: #21262d; }
    .tick { stroke: #3d444d; }
    .ours { fill: #4493f8; }
    .floor { fill: #7d8590; }
    .peer { fill: #db6d28; }
  }
`;

/** Dá o texto com as entidades do XML no lugar. */
function escape_xml(text: string): string {
  const entities: Record<string, string> = {
    '&': '&amp;',
    '<': '&lt;',
    '>': '&gt;',
    '"': '&quot;',
  };
  return text.replace(/[&<>"]/g, (character) => entities[character] ?? character);
}

/** Monta um texto de classe `name`, a partir de `x`, com a linha de base em `y`: o `content`. */
function text_element(x: number, y: number, name: string, content: string, anchor = 'start') {
  const where = `x="${x}" y="${y}" text-anchor="${anchor}"`;
  return `<text class="${name}" ${where}>${escape_xml(content)}</text>`;
}

/** Monta um retângulo de classe `name`, com os cantos arredondados por `radius`. */
function rectangle(name: string, box: [number, number, number, number], radius: number): string {
  const [x, y, wide, high] = box.map((value) => Math.round(value * 10) / 10);
  const size = `x="${x}" y="${y}" width="${wide}" height="${high}" rx="${radius}"`;
  return `<rect class="${name}" ${size}/>`;
}

/** Monta a legenda, no canto superior direito, só das cores que aparecem no gráfico. */
function draw_legend(chart: chart): string[] {
  const kinds = new Set(chart.groups.flatMap(({ bars }) => bars.map(({ kind }) => kind)));
  const parts: string[] = [];
  let right = width - margin;
  for (const { kind, label, space } of legend.filter((item) => kinds.has(item.kind))) {
    parts.push(text_element(right, 30, 'note', label, 'end'));
    parts.push(rectangle(kind, [right - space, 21, 10, 10], 2));
    right -= space + 16;
  }
  return parts;
}

/** Cria a escala: leva um valor a px dentro da área das barras; e as potências de dez a marcar. */
function make_scale(chart: chart): { place: (value: number) => number; ticks: number[] } {
  const bars = chart.groups.flatMap((group) => group.bars);
  const values = bars.flatMap(({ value, end }) => (end === undefined ? [value] : [value, end]));
  const largest = Math.max(...values);
  if (!chart.log) return { place: (value) => (value / largest) * plot_width, ticks: [] };
  const low = Math.floor(Math.log10(Math.min(...values)));
  const high = Math.ceil(Math.log10(largest));
  const place = (value: number) => ((Math.log10(value) - low) / (high - low)) * plot_width;
  const ticks = Array.from({ length: high - low + 1 }, (_, index) => 10 ** (low + index));
  return { place, ticks };
}

/** Monta uma barra, ou uma faixa com as duas pontas marcadas, na linha de topo `y`. */
function draw_bar(item: bar, y: number, place: (value: number) => number): string[] {
  const top = y + (row_height - bar_height) / 2;
  const baseline = top + bar_height - 4;
  const start = item.end === undefined ? 0 : place(item.value);
  const length = Math.max(2, place(item.end ?? item.value) - start);
  return [
    text_element(plot_left - 10, baseline, 'label', item.label, 'end'),
    rectangle('track', [plot_left, top, plot_width, bar_height], 3),
    rectangle(item.kind, [plot_left + start, top, length, bar_height], 3),
    text_element(plot_left + plot_width + 10, baseline, 'value', item.text),
  ];
}

/** Monta as marcas de uma escala logarítmica, de `top` a `bottom`. */
function draw_ticks(scale: ReturnType<typeof make_scale>, top: number, bottom: number): string[] {
  return scale.ticks.flatMap((tick) => {
    const x = plot_left + scale.place(tick);
    const line = `<line class="tick" x1="${x}" x2="${x}" y1="${top}" y2="${bottom}"/>`;
    return [
      line,
      text_element(x, bottom + 14, 'note', String(Number(tick.toPrecision(1))), 'middle'),
    ];
  });
}

/** Monta o SVG inteiro; grupos vazios não são aceitos. */
export function draw_chart(chart: chart): string {
  const scale = make_scale(chart);
  const parts: string[] = [];
  let y = header_height;
  for (const { label, bars } of chart.groups) {
    parts.push(text_element(margin, y + 12, 'group', label));
    y += group_gap - 10;
    for (const item of bars) {
      parts.push(...draw_bar(item, y, scale.place));
      y += row_height;
    }
    y += 10;
  }
  const ticks = draw_ticks(scale, header_height + 10, y - 4);
  const height = y + footer_height + (ticks.length > 0 ? 14 : 0);
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" role="img"`,
    `  width="${width}" height="${height}" aria-labelledby="title description">`,
    `<title id="title">${escape_xml(chart.title)}</title>`,
    `<desc id="description">${escape_xml(chart.description)}</desc>`,
    `<style>${style}</style>`,
    rectangle('card', [0.5, 0.5, width - 1, height - 1], 8),
    text_element(margin, 30, 'title', chart.title),
    text_element(margin, 50, 'note', chart.subtitle),
    ...draw_legend(chart),
    ...parts,
    ...ticks,
    text_element(margin, height - 14, 'note', chart.footer),
    '</svg>\n',
  ].join('\n');
}
