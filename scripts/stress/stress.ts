/*
 * A prova de esforço: muitos clientes, muitos workers e muitas falhas, ao acaso mas por semente,
 * com o programa de verdade, um Redis de verdade e um intermediário que sabe o que cortou.
 *
 *   npm run stress                                um minuto, com uma semente sorteada
 *   npm run stress -- --seconds 600 --seed 42     dez minutos de um plano que se pode repetir
 *   npm run stress -- --faults cut,freeze         só algumas falhas
 *
 * Sai com 0 se nenhuma linha se perdeu, repetiu ou trocou de lugar, nenhum cliente ficou preso, e
 * nada ficou no Redis nem no proxy; com 1, e o comando que repete o plano, se não.
 */

import { run_tool } from '../dev/options';
import { take_probe } from '../dev/probe';
import { make_progress } from '../dev/progress';
import { type client_context, make_visit } from './client';
import { provoke_faults } from './faults';
import { type ledger, make_ledger, sort_absences } from './ledger';
import { help_text, read_options, replay_command, type stress_options } from './options';
import { plan_visit, requests_per_visit } from './plan';
import { type findings, text_report } from './report';
import { choose_settings, type scene, set_scene } from './scene';
import { settle } from './settle';
import { start_crew } from './worker';

/** Visitas por cliente no aquecimento, sem falhas, antes da primeira medição da memória. */
const warm_visits = 2;

/** Um atraso deste tamanho num temporizador quer dizer que a máquina parou a prova. */
const stall = { every_ms: 100, limit_ms: 600 };

/** Anota no livro os momentos em que a máquina não deixou a prova andar. */
function watch_stalls(book: ledger): void {
  let last = performance.now();
  setInterval(() => {
    const from = last;
    last = performance.now();
    if (last - from > stall.limit_ms) book.faults.push({ kind: 'stall', from, to: last });
  }, stall.every_ms).unref();
}

/**
 * Faz visitas, `at_once` ao mesmo tempo, cada uma com o número seguinte, até que ele seja
 * undefined.
 */
async function make_visits(
  context: client_context,
  at_once: number,
  numbers: () => number | undefined,
): Promise<void> {
  const visitor = async () => {
    for (let visit = numbers(); visit !== undefined; visit = numbers()) {
      await make_visit(context, plan_visit(context.seed, visit));
    }
  };
  await Promise.all(Array.from({ length: at_once }, visitor));
}

/**
 * Roda a prova numa cena montada: aquece, provoca, espera o fim, confere; devolve o que se
 * concluiu.
 */
async function run(
  options: stress_options,
  scene: scene,
  step: (text: string) => void,
): Promise<findings> {
  const { book, port } = scene;
  const { seed, streams, seconds, faults } = options;
  const request_of = (stream: number) => {
    const visit = plan_visit(seed, Math.floor(stream / requests_per_visit));
    return visit.requests[stream % requests_per_visit];
  };
  const crew = await start_crew(scene.redis.port, { seed, book, request_of }, options.stream);
  const idle = await take_probe(scene.proxy);
  const context = { seed, port, book };
  let visits = 0;
  const count_to = (limit: number) => () => (visits < limit ? visits++ : undefined);
  step('aquecendo, sem falhas');
  await make_visits(context, streams, count_to(streams * warm_visits));
  const warm = await take_probe(scene.proxy);
  const started_at = performance.now();
  const end_at = started_at + seconds * 1000;
  await Promise.all([
    make_visits(context, streams, () => (performance.now() < end_at ? visits++ : undefined)),
    provoke_faults(scene, seed, faults, end_at, step),
  ]);
  step('esperando o que ainda corre e o que expira');
  const elapsed_s = (performance.now() - started_at) / 1000;
  const leaks = await settle(scene, crew, idle, warm);
  const { lost, doubts } = scene.relay;
  // com REPLAY o que vinha numa resposta cortada é lido de novo: nada explica que falte
  const [cut, doubted] = options.replay ? [new Map(), new Map()] : [lost, doubts];
  return { seconds: elapsed_s, leaks, ...sort_absences(book, cut, doubted) };
}

/** Monta a cena, roda a prova e mostra o relatório. */
async function stress(options: stress_options): Promise<number> {
  console.log(`semente ${options.seed}: ${replay_command(options)}`);
  const settings = choose_settings(options);
  console.log(`proxy: ${settings.args.join(' ')}`);
  const book = make_ledger(settings.maxtime_ms, !options.wakeup, options.replay);
  const progress = make_progress(options.seconds + 2 * settings.ttl_s);
  progress.step('montando a cena');
  const scene = await set_scene(options, settings, book);
  watch_stalls(book);
  const findings = await run(options, scene, progress.step);
  progress.clear();
  process.stdout.write(text_report(options, book, findings));
  if (book.failure_count === 0) return 0;
  for (const text of book.failures) console.log(`FALHA: ${text}`);
  console.log(`para repetir: ${replay_command(options)}`);
  return 1;
}

/** Lê as opções de `argv`, roda a prova, e devolve o código de saída. */
async function main(argv: string[]): Promise<number> {
  const options = read_options(argv);
  if (!options.help) return stress(options);
  process.stdout.write(help_text);
  return 0;
}

run_tool('stress', 'a prova não chegou ao fim', main);
