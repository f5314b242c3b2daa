/*
 * O banco de provas: mede o proxy ao lado de pisos (o que um servidor ou um cliente sem nada mais
 * consegue na mesma máquina, na mesma medição) e de concorrentes.
 *
 *   npm run bench                        tudo, em uns dez minutos
 *   npm run bench -- --quick             o essencial, em menos de um
 *   npm run bench -- --only tasks,bulk   só algumas provas
 *
 * Não julga: sai com 0 se tudo pôde ser medido, alcance ou não as metas; com 1 se algo falhou ou se
 * alguma linha se perdeu, sobrou ou trocou de lugar.
 */

import { mkdirSync as make_dir, writeFileSync as write_file } from 'node:fs';
import path from 'node:path';
import { built_program } from '../dev/build';
import { run_tool } from '../dev/options';
import { make_progress } from '../dev/progress';
import type { bench_context, measurement, scenario } from './context';
import { draw_charts } from './draw';
import { describe_machine, machine_line } from './machine';
import { type bench_options, help_text, read_options } from './options';
import { find_peers, install_peers, peer_notes } from './peers';
import { build_roles, stop_running } from './processes';
import {
  derive_ratios,
  disturbance_notes,
  limit_line,
  summarize_rows,
  text_report,
} from './report';
import { bulk } from './scenarios/bulk';
import { growth } from './scenarios/growth';
import { idle } from './scenarios/idle';
import { latency } from './scenarios/latency';
import { tasks } from './scenarios/tasks';
import { workers } from './scenarios/workers';

const scenarios: scenario[] = [latency, tasks, bulk, idle, workers, growth];

/** Diz o que cada concorrente não faz, ou que não está instalado. */
function peer_remarks(context: bench_context): string[] {
  const { plan, peers } = context;
  if (!plan.peers) return ['concorrentes: não medidos; --peers on os mede'];
  return Object.entries(peer_notes).map(([name, note]) => {
    const version = peers[name];
    const missing = 'não instalado; npm run bench -- --install-peers o instala';
    return version ? `${name} ${version}: ${note}` : `${name}: ${missing}`;
  });
}

/**
 * Roda as provas pedidas.
 * @returns as medições, as observações e a máquina
 */
async function run_scenarios(options: bench_options) {
  const { plan, only } = options;
  const chosen = scenarios.filter(({ name }) => only.includes(name));
  const expected_s = chosen.reduce((sum, { estimate }) => sum + estimate(plan), 2);
  const progress = make_progress(expected_s);
  progress.step('montando o programa e os papéis');
  await build_roles();
  const rows: measurement[] = [];
  const notes: string[] = [];
  const context: bench_context = {
    plan,
    program: await built_program(options.program),
    peers: plan.peers ? find_peers() : {},
    step: progress.step,
    note: (text) => notes.push(text),
    record: (row) => rows.push(row),
  };
  for (const { run } of chosen) {
    await run(context);
    await stop_running();
  }
  progress.clear();
  notes.push(...peer_remarks(context));
  return { rows, notes, machine: describe_machine(context.program, context.peers) };
}

/**
 * Grava o JSON e os gráficos.
 * @param out a pasta, criada se preciso
 * @param results o que vai no JSON
 * @param charts texto de cada SVG, por nome de arquivo
 */
function write_results(out: string, results: object, charts: Record<string, string>): void {
  make_dir(out, { recursive: true });
  // listas de números numa linha só, como o formatador do projeto as deixaria
  const json = JSON.stringify(results, null, 2).replace(/\[\s+([\d.,\s]+?)\s+\]/g, (_, numbers) => {
    return `[${numbers.split(/,\s+/).join(', ')}]`;
  });
  write_file(path.join(out, 'results.json'), `${json}\n`);
  for (const [name, text] of Object.entries(charts)) write_file(path.join(out, name), text);
}

/**
 * Mede tudo o que foi pedido, mostra o relatório e grava os resultados.
 * @param argv como foi pedido
 */
async function measure(options: bench_options, argv: string[]): Promise<void> {
  const date = new Date().toISOString();
  const { rows, notes, machine } = await run_scenarios(options);
  const summaries = summarize_rows(rows);
  const ratios = derive_ratios(summaries);
  const limits = summaries
    .filter(({ scenario }) => scenario === 'workers')
    .map((item) => limit_line(item, machine.cores));
  const remarks = [...disturbance_notes(summaries), ...limits, ...notes, machine_line(machine)];
  process.stdout.write(text_report(summaries, ratios, remarks));
  if (!options.out) return;
  const command = ['npm run bench', ...(argv.length > 0 ? ['--', ...argv] : [])].join(' ');
  const { plan } = options;
  const results = { date, command, machine, plan, ratios, summaries, notes: remarks, rows };
  write_results(options.out, results, draw_charts(summaries, { machine: machine_line(machine) }));
  console.log(`\ngravado em ${options.out}`);
}

/** Lê as opções de `argv`, mede, e devolve o código de saída. */
async function main(argv: string[]): Promise<number> {
  const options = read_options(
    argv,
    scenarios.map(({ name }) => name),
  );
  if (options.install_peers) install_peers();
  if (options.help) process.stdout.write(help_text);
  else await measure(options, argv);
  return 0;
}

run_tool('bench', 'a medição falhou', main);
