/*
 * As métricas lidas por quem as lê de verdade: o promtool confere a página, as consultas do painel
 * e os alertas do manual; um Prometheus as recolhe, e cada quadro do painel mostra algo.
 */

import assert from 'node:assert/strict';
import { spawnSync as run } from 'node:child_process';
import { writeFileSync as write_file } from 'node:fs';
import path from 'node:path';
import { before, describe } from 'node:test';
import { metrics_table } from '../../json-proxy';
import {
  brisk,
  fetch_all,
  free_port,
  type local_redis,
  program_file,
  start_program,
  start_redis,
  start_worker,
  temp_dir,
  test,
  until,
} from '../harness';
import { type metered_proxy, read_dashboard, start_metered } from '../metrics_helpers';
import { read_manual } from '../readme_helpers';

/** O Prometheus recolhe duas vezes antes que uma taxa exista; o resto é folga. */
const collected_ms = 40_000;

let redis: local_redis;

/**
 * Roda o promtool.
 * @param args argumentos
 * @param input o que vai na entrada dele
 * @returns o código de saída e tudo o que ele disse
 */
function promtool(args: string[], input = '') {
  const { status, stdout, stderr } = run('promtool', args, { input, encoding: 'utf8' });
  return { status, said: stdout + stderr };
}

/**
 * Sobe um proxy com métricas, que atende um fluxo de uma linha e recusa um pedido.
 * @param channel canal só dele
 * @param args argumentos a mais
 * @returns o proxy
 */
async function busy_proxy(channel: string, args: string[]): Promise<metered_proxy> {
  const worker = await start_worker(redis, channel);
  const proxy = await start_metered(redis, ['-C', channel, ...brisk, ...args]);
  await serve(proxy, worker);
  return proxy;
}

/**
 * Atende um fluxo de uma linha, e recusa um pedido.
 * @param proxy o proxy
 * @param worker o worker
 */
async function serve(proxy: metered_proxy, worker: Awaited<ReturnType<typeof start_worker>>) {
  const asked = fetch_all(proxy);
  const { task_list } = await worker.next();
  await worker.client.rPush(task_list, ['linha', 'EOF']);
  assert.equal((await asked).body, 'linha\n');
  assert.equal((await fetch_all(proxy, { headers: { Expect: 'x' } })).status, 417);
}

/**
 * Dá as consultas do painel como o Grafana as manda.
 * @returns título do quadro e consulta
 */
function dashboard_queries(): [string, string][] {
  const variables: Record<string, string> = { job: '.*', instance: '.*', __rate_interval: '4s' };
  return read_dashboard().flatMap(({ title, targets }) =>
    targets.map(({ expr }): [string, string] => [
      title,
      expr.replace(/\$(\w+)/g, (_, name) => variables[name] ?? ''),
    ]),
  );
}

/**
 * Sobe um Prometheus que recolhe as métricas de um proxy a cada segundo.
 * @param proxy o proxy
 * @returns função que faz uma consulta e diz quantas séries ela deu
 */
async function start_prometheus({ metrics }: metered_proxy) {
  const dir = temp_dir();
  const config = path.join(dir, 'prometheus.yml');
  const targets = `[{targets: ["127.0.0.1:${metrics.port}"]}]`;
  const scrape = `{job_name: json-proxy, scrape_interval: 1s, static_configs: ${targets}}`;
  write_file(config, `scrape_configs: [${scrape}]\n`);
  const port = await free_port();
  const address = `127.0.0.1:${port}`;
  const args = [`--config.file=${config}`, `--storage.tsdb.path=${dir}/data`];
  start_program('prometheus', [...args, `--web.listen-address=${address}`]);
  return async (query: string): Promise<number> => {
    const asked = `/api/v1/query?query=${encodeURIComponent(query)}`;
    const reply = await fetch_all({ port }, { path: asked }).catch(() => undefined);
    const results = reply?.status === 200 ? JSON.parse(reply.body).data.result : [];
    return results.filter(({ value }: { value: [number, string] }) => value[1] !== 'NaN').length;
  };
}

before(async () => {
  [redis] = await Promise.all([start_redis(), program_file()]);
});

describe('o promtool', { concurrency: 2 }, () => {
  for (const processes of ['1', '2']) {
    test(`não tem reparos à página (WORKERS ${processes})`, async () => {
      const proxy = await busy_proxy(`promtool_${processes}`, ['-w', processes]);
      const body = await until('contas dos processos', async () => {
        const page = await fetch_all(proxy.metrics, { path: '/metrics' });
        return /tasks_total/.test(page.body) ? page.body : undefined; // vêm a cada segundo
      });
      assert.deepEqual(promtool(['check', 'metrics'], body), { status: 0, said: '' });
      const spoiled = body.replaceAll('tasks_total', 'tasks');
      assert.notEqual(promtool(['check', 'metrics'], spoiled).status, 0, 'ele veria um erro');
    });
  }

  test('entende as consultas do painel', () => {
    const rules = dashboard_queries().map(([, expr], n) => ({ record: `regra:${n}`, expr }));
    const file = path.join(temp_dir(), 'rules.yml');
    write_file(file, JSON.stringify({ groups: [{ name: 'painel', rules }] }));
    const { status, said } = promtool(['check', 'rules', file]);
    assert.equal(status, 0, said);
    assert.match(said, new RegExp(`SUCCESS: ${rules.length} rules found`));
  });

  test('entende os alertas do manual, que só citam métricas que há', () => {
    const { blocks } = read_manual('MANUAL.md');
    const rules = blocks.find(({ text }) => text.includes('alert:'))?.text ?? '';
    const file = path.join(temp_dir(), 'alerts.yml');
    write_file(file, rules);
    const { status, said } = promtool(['check', 'rules', file]);
    assert.equal(status, 0, said);
    const known = metrics_table.map(({ name }) => name);
    const named = rules.match(/json_proxy_\w+/g) ?? [];
    assert.equal(named.length, rules.match(/alert:/g)?.length);
    for (const name of named) assert.ok(known.includes(name), name);
  });
});

test('um Prometheus recolhe as métricas, e cada quadro do painel mostra algo', async () => {
  const worker = await start_worker(redis, 'prometheus');
  const args = ['-C', 'prometheus', ...brisk, '-w', '2'];
  const proxy = await start_metered(redis, args);
  const series_of = await start_prometheus(proxy);
  const shows = async (query: string) => {
    await serve(proxy, worker); // as taxas só existem enquanto algo acontece
    return (await series_of(query)) > 0;
  };
  await until('série', () => shows('sum(json_proxy_tasks_total) > 0'), collected_ms);
  for (const [title, query] of dashboard_queries()) {
    await until(`${title}: ${query}`, () => shows(query), collected_ms);
  }
});
