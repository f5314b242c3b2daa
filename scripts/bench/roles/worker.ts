/*
 * O worker das provas: ouve o canal das tarefas e faz, com cada uma, o que a prova pede. Fala com o
 * Redis sem biblioteca, para pesar pouco nos núcleos que divide com o que é medido.
 */

import { make_reader } from '../../dev/resp';
import { make_line, run_pace } from './lines';
import { connect_lines, connect_local, encode, type line_link } from './resp';
import { clock, serve_role } from './role';

const task_prefix = 'ndjson_task_';
const list_prefix = 'ndjson_list_';

/** Linhas por RPUSH ao preparar listas grandes. */
const preload_chunk = 1000;

/** Um argumento vazio, como `encode` o escreve. */
const empty_word = '$0\r\n\r\n';

/** O que fazer com uma tarefa: guardar o UUID, responder uma linha, ou dar a lista pronta. */
type task_mode = 'hold' | 'reply' | 'fill';

const state = {
  link: undefined as line_link | undefined,
  mode: 'hold' as task_mode,
  held: [] as string[],
  heard: 0,
  when_heard: () => {},
};

/** Dá a conexão de escrita. */
function ready_link(): line_link {
  if (!state.link) throw new Error('sem conexão: falta a chamada "connect"');
  return state.link;
}

/**
 * Atende as tarefas anunciadas numa leva, com uma escrita só.
 * @param uuids as tarefas
 */
function take_tasks(uuids: string[]): void {
  const { mode, held } = state;
  let text = '';
  for (const uuid of uuids) {
    const done = encode('DEL', task_prefix + uuid);
    if (mode === 'hold') held.push(uuid);
    else if (mode === 'reply') {
      text += encode('RPUSH', list_prefix + uuid, make_line(0, 0)) + done;
    } else text += encode('RENAME', `preload_${state.heard}`, list_prefix + uuid) + done;
    state.heard += 1;
  }
  if (text) ready_link().send(text, 2 * uuids.length);
  state.when_heard();
}

/** Liga o worker a um Redis. */
async function connect(where: { port: number; database: number; channel: string }): Promise<void> {
  state.link = await connect_lines(where.port, where.database);
  const socket = await connect_local(where.port);
  const uuids: string[] = [];
  const read = make_reader((message) => {
    const [kind, , task_key = ''] = message as string[];
    if (kind === 'message') uuids.push(task_key.slice(task_prefix.length));
  });
  socket.on('data', (chunk: Buffer) => {
    read(chunk);
    take_tasks(uuids.splice(0));
  });
  const subscribed = new Promise((resolve) => socket.once('data', resolve));
  socket.write(encode('SUBSCRIBE', where.channel));
  await subscribed;
}

/** Escolhe o que fazer com as próximas tarefas, e esquece as anteriores. */
function set_mode(args: { mode: task_mode }): void {
  state.mode = args.mode;
  state.held = [];
  state.heard = 0;
}

/** Espera o anúncio de algumas tarefas, desde o último set_mode. */
async function wait_tasks(args: { count: number }): Promise<void> {
  await new Promise<void>((resolve) => {
    state.when_heard = () => {
      if (state.heard >= args.count) resolve();
    };
    state.when_heard();
  });
  if (state.heard > args.count) throw new Error(`${state.heard} tarefas, não ${args.count}`);
}

/**
 * Envia linhas no ritmo pedido.
 * @param args fluxos, ritmo, voltas, o comando (RPUSH ou PUBLISH) e o prefixo das chaves, ao qual
 *   se junta o número do fluxo; sem prefixo, as listas das tarefas guardadas
 */
async function pace(args: {
  streams: number;
  pace_ms: number;
  rounds: number;
  command?: string;
  prefix?: string;
}): Promise<void> {
  const { streams, pace_ms, rounds, command = 'RPUSH', prefix } = args;
  const link = ready_link();
  const keys = Array.from({ length: streams }, (_, stream) =>
    prefix === undefined ? `${list_prefix}${state.held[stream]}` : `${prefix}${stream}`,
  );
  const heads = keys.map((key) => encode(command, key, '').slice(0, -empty_word.length));
  await run_pace(streams, pace_ms, rounds, (stream, round) => {
    const line = make_line(clock(), round);
    link.send(`${heads[stream]}$${line.length}\r\n${line}\r\n`, 1);
  });
  await link.settled();
}

/** Apaga as chaves das tarefas guardadas: é assim que um worker diz que terminou. */
async function finish_tasks(): Promise<void> {
  for (const uuid of state.held.splice(0)) {
    ready_link().send(encode('DEL', task_prefix + uuid), 1);
  }
  await ready_link().settled();
}

/**
 * Publica linhas o mais depressa que o Redis aceita, revezando os canais.
 * @param args quantos fluxos, quantas linhas em cada um, e o prefixo dos canais
 * @returns o instante do começo, de `clock`
 */
async function burst(args: {
  streams: number;
  lines_each: number;
  prefix: string;
}): Promise<number> {
  const started_at = clock();
  const total = args.streams * args.lines_each;
  for (let first = 0; first < total; first += preload_chunk) {
    const size = Math.min(preload_chunk, total - first);
    const commands = Array.from({ length: size }, (_, offset) => {
      const index = first + offset;
      const line = make_line(0, Math.floor(index / args.streams));
      return encode('PUBLISH', `${args.prefix}${index % args.streams}`, line);
    });
    ready_link().send(commands.join(''), size);
    await ready_link().settled();
  }
  return started_at;
}

/** Empurra uma linha para algumas das tarefas guardadas, sorteadas, e as encerra. */
async function poke(args: { count: number }): Promise<void> {
  const { held } = state;
  if (held.length < args.count) throw new Error(`só ${held.length} tarefas guardadas`);
  for (let index = 0; index < args.count; index += 1) {
    const [uuid] = held.splice(Math.floor(Math.random() * held.length), 1);
    const push = encode('RPUSH', `${list_prefix}${uuid}`, make_line(clock(), 0));
    ready_link().send(push + encode('DEL', `${task_prefix}${uuid}`), 2);
  }
  await ready_link().settled();
}

/**
 * Enche uma lista modelo com linhas numeradas.
 * @param args nome da lista e quantas linhas
 */
async function seed(args: { name: string; lines: number; head?: string }): Promise<void> {
  const { head } = args;
  ready_link().send(encode('DEL', args.name), 1);
  if (head) ready_link().send(encode('RPUSH', args.name, head), 1);
  const after = head ? '\n' : ''; // com cabeça é RAW: a quebra da linha é do worker
  for (let first = 0; first < args.lines; first += preload_chunk) {
    const size = Math.min(preload_chunk, args.lines - first);
    const lines = Array.from({ length: size }, (_, offset) => make_line(0, first + offset) + after);
    ready_link().send(encode('RPUSH', args.name, ...lines), 1);
    await ready_link().settled();
  }
}

/**
 * Copia um modelo para preload_0, preload_1…, que a prova consome.
 * @param args nome do modelo e quantas listas
 */
async function preload(args: { name: string; lists: number }): Promise<void> {
  for (let list = 0; list < args.lists; list += 1) {
    ready_link().send(encode('COPY', args.name, `preload_${list}`, 'REPLACE'), 1);
  }
  await ready_link().settled();
}

serve_role({ connect, set_mode, wait_tasks, pace, finish_tasks, burst, poke, seed, preload });
