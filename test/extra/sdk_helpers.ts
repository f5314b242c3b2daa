/*
 * O que os testes dos clientes de verdade dividem: as bibliotecas que o setup.sh instalou longe do
 * projeto, e um modelo que só diz a próxima palavra quando o teste deixa.
 */

import assert from 'node:assert/strict';
import node_module, { createRequire as create_require } from 'node:module';
import path from 'node:path';
import { buildSync as build_now } from 'esbuild';
import { temp_dir } from '../../scripts/dev/local';
import type { model } from '../../scripts/worker/examples/model';
import { until } from '../harness';
import { guest_dir } from './n8n_helpers';

const root = path.join(__dirname, '../..');

/** A pasta das bibliotecas; quem não rodou o setup.sh fica sem estes testes. */
const sdk_dir = guest_dir('clients');

/** O que cada cliente deve mostrar, um pedaço por vez. */
export const words = ['um ', 'dois ', 'três'];

/** Um cliente: o que ele mostra, aos poucos, até o fim, o erro, ou que `signal` o mande sair. */
export type read_client = (signal: AbortSignal) => AsyncIterable<string>;

/** Como o modelo acaba: bem, com uma exceção depois das palavras, ou nunca. */
type ending = 'well' | 'fail' | 'never';

/**
 * Põe as bibliotecas ao alcance de require, também dos exemplos que as usam.
 * @returns se estão instaladas
 */
export function reach_clients(): boolean {
  if (!sdk_dir) return false;
  const folders = [sdk_dir, root].map((folder) => path.join(folder, 'node_modules'));
  process.env.NODE_PATH = folders.join(path.delimiter);
  Reflect.get(node_module, '_initPaths')(); // lê NODE_PATH de novo
  return true;
}

/**
 * Carrega uma biblioteca instalada.
 * @param name o nome dela
 * @returns o que ela exporta
 */
export function load_client(name: string) {
  return create_require(__filename)(name);
}

/**
 * Carrega um exemplo que usa uma biblioteca que o projeto não tem.
 * @param name o nome dele
 * @returns o que ele exporta
 */
export function load_example(name: string) {
  const outfile = path.join(temp_dir(), `${name}.js`);
  build_now({
    entryPoints: [path.join(root, 'scripts/worker/examples', `${name}.ts`)],
    ...{ outfile, bundle: true, packages: 'external', platform: 'node', format: 'cjs' },
  });
  return load_client(outfile);
}

/**
 * Faz um modelo que o teste conduz.
 * @param ending como acaba
 * @returns o modelo; `open`: deixa sair mais um passo; o estado dele
 */
function make_model(ending: ending) {
  const state = { made: 0, opened: 0, stopped: false, aborted: false };
  let wake = () => {};
  const turn = (n: number, signal: AbortSignal) =>
    new Promise<void>((resolve, reject) => {
      const look = () => state.opened >= n && resolve();
      wake = look;
      signal.addEventListener('abort', () => reject(new Error('o cliente saiu')));
      look();
    });
  const answer: model = async function* (_, signal) {
    signal.addEventListener('abort', () => {
      state.aborted = true;
    });
    try {
      for (const [n, word] of words.entries()) {
        await turn(n, signal);
        state.made += 1;
        yield word;
      }
      await turn(ending === 'never' ? Number.POSITIVE_INFINITY : words.length, signal);
      if (ending === 'fail') throw new Error('acabou');
    } finally {
      state.stopped = true;
    }
  };
  const open = () => {
    state.opened += 1;
    wake();
  };
  return { answer, open, state };
}

/**
 * Confere um cliente: cada pedaço chega antes que o próximo exista; uma exceção no meio da resposta
 * é um erro nele; e, se ele sai, o worker para.
 * @param serve põe um modelo a atender, e diz como o cliente o lê
 */
export async function check_client(serve: (answer: model) => read_client): Promise<void> {
  for (const ending of ['well', 'fail', 'never'] as const) {
    const { answer, open, state } = make_model(ending);
    const leaving = new AbortController();
    const shown: string[] = [];
    const read_all = async () => {
      for await (const piece of serve(answer)(leaving.signal)) {
        if (piece === '') continue;
        shown.push(piece);
        assert.equal(state.made, shown.length, 'o próximo pedaço não existia');
        if (ending === 'never' && shown.length === words.length) leaving.abort();
        open();
      }
    };
    if (ending === 'well') await read_all();
    else if (ending === 'fail') await assert.rejects(read_all(), (error) => !is_assertion(error));
    else await read_all().catch((error) => assert.ok(!is_assertion(error), error));
    assert.deepEqual(shown, words, ending);
    await until('worker parado', () => state.stopped);
    if (ending === 'never') assert.equal(state.aborted, true);
  }
}

/**
 * Diz se um erro é de uma conferência do próprio teste.
 * @param error o erro
 */
function is_assertion(error: unknown): boolean {
  return error instanceof assert.AssertionError;
}
