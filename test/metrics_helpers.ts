/*
 * As métricas como dados: um proxy com a porta delas aberta, a página lida e conferida, e o que
 * mudou entre duas leituras.
 */

import assert from 'node:assert/strict';
import { readFileSync as read_file } from 'node:fs';
import { metrics_table } from '../json-proxy';
import { fetch_all, free_port, type local_redis, type proxy, start_proxy } from './harness';

/** Entre escolher a porta das métricas e o proxy abri-la, outro pode tomá-la. */
const port_attempts = 5;

/** Uma linha de valor: nome, rótulos e número. */
const series_line = /^([a-z_]+)(?:\{((?:[a-z]+="[^"\\\n]*",?)+)\})? (\S+)$/;

/** O painel do Grafana que vem com o projeto. */
const dashboard_file = 'scripts/deploy/grafana/json-proxy.json';

/** Um quadro do painel, com as suas consultas e legendas. */
type dashboard_panel = { id: number; title: string; targets: { expr: string; legend: string }[] };

/** Um proxy cuja porta de métricas está aberta. */
export type metered_proxy = proxy & { metrics: { port: number } };

/** Os valores de uma página, por série: 'json_proxy_tasks_total{worker="1"}'. */
export type series = Map<string, number>;

/**
 * Sobe um proxy com a porta das métricas aberta.
 * @param redis o Redis
 * @param args argumentos a mais
 * @returns o proxy; `metrics` serve para fetch_all
 */
export async function start_metered(
  redis: Pick<local_redis, 'server'>,
  args: string[] = [],
): Promise<metered_proxy> {
  for (let attempt = 1; ; attempt += 1) {
    const port = await free_port();
    try {
      const proxy = await start_proxy(redis, ['--metrics-port', String(port), ...args]);
      return { ...proxy, metrics: { port } };
    } catch (error) {
      if (attempt >= port_attempts) throw error;
    }
  }
}

/**
 * Diz de que métrica é uma linha de valor.
 * @param name nome da série, sem rótulos
 * @returns a linha da tabela
 */
export function metric_of(name: string) {
  const found = metrics_table.find((row) =>
    row.type === 'histogram'
      ? /_(bucket|sum|count)$/.test(name) && name.replace(/_[a-z]+$/, '') === row.name
      : name === row.name,
  );
  assert.ok(found, `${name} não está na tabela`);
  return found;
}

/**
 * Lê uma página de métricas e confere a forma dela: cada métrica uma vez, com HELP e TYPE antes das
 * suas linhas, e nenhuma linha repetida.
 * @param page o texto
 * @returns os valores por série
 */
export function parse_metrics(page: string): series {
  const values: series = new Map();
  const seen: string[] = [];
  assert.ok(page.endsWith('\n'));
  for (const line of page.trimEnd().split('\n')) {
    const [, kind, name = '', text] = /^# (HELP|TYPE) (\S+) (.+)$/.exec(line) ?? [];
    const row = metrics_table.find((metric) => metric.name === name);
    if (kind === 'HELP') {
      assert.ok(!seen.includes(name), `${name} aparece em dois lugares`);
      seen.push(name);
      assert.equal(text, row?.help);
    } else if (kind === 'TYPE') {
      assert.deepEqual([name, text], [seen.at(-1), row?.type]);
    } else {
      const [, base = '', labels, value] = series_line.exec(line) ?? [];
      assert.equal(metric_of(base).name, seen.at(-1), line);
      const key = labels ? `${base}{${labels}}` : base;
      assert.ok(!values.has(key), `${key} repetida`);
      assert.ok(Number(value) >= 0 && Number.isFinite(Number(value)), line);
      values.set(key, Number(value));
    }
  }
  return values;
}

/**
 * Busca as métricas de um proxy.
 * @param proxy o proxy
 * @returns os valores por série, sem o prefixo comum: 'tasks_total'
 */
export async function read_metrics(proxy: Pick<metered_proxy, 'metrics'>): Promise<series> {
  const { status, headers, body } = await fetch_all(proxy.metrics, { path: '/metrics' });
  assert.equal(status, 200);
  assert.equal(headers['content-type'], 'text/plain; version=0.0.4; charset=utf-8');
  const values = [...parse_metrics(body)];
  return new Map(values.map(([name, value]) => [name.replace(/^json_proxy_/, ''), value]));
}

/**
 * Diz o que um trecho da vida do proxy contou: os contadores que mudaram, e de quanto. Fora ficam o
 * processador e o PING, que andam sozinhos, e as faixas e somas, que dependem da máquina.
 * @param before leitura anterior
 * @param after leitura posterior
 * @returns aumentos por série
 */
export function counted(before: series, after: series): Record<string, number> {
  const is_steady = (name: string) =>
    !/^process_|command="ping"|_bucket\b|_sum\b/.test(name) && /_(total|count)\b/.test(name);
  const changes = [...after].map(([name, value]): [string, number] => [
    name,
    value - (before.get(name) ?? 0),
  ]);
  return Object.fromEntries(changes.filter(([name, by]) => is_steady(name) && by !== 0));
}

/**
 * Dá os rótulos que uma métrica tem.
 * @param row linha da tabela
 * @returns os nomes, na ordem
 */
export function labels_of(row: (typeof metrics_table)[number]): string[] {
  const [labels = ''] = Object.keys(row.read());
  return [...labels.matchAll(/(\w+)="/g)].map(([, name = '']) => name);
}

/**
 * Lê o painel do Grafana.
 * @returns os quadros dele
 */
export function read_dashboard(): dashboard_panel[] {
  const { panels } = JSON.parse(read_file(dashboard_file, 'utf8'));
  return panels.map(({ id, title, targets }: Record<string, unknown>) => ({
    id,
    title,
    targets: (targets as Record<string, string>[]).map((target) => ({
      expr: target.expr,
      legend: target.legendFormat,
    })),
  }));
}
