/*
 * Os workflows de scripts/n8n, conferidos com as descrições dos nós que o n8n publica, pelo código
 * com que o editor dele os confere: nenhum nó, versão, parâmetro ou credencial que o n8n não tenha.
 */

import assert from 'node:assert/strict';
import { readFileSync as read_file } from 'node:fs';
import { createRequire as create_require } from 'node:module';
import path from 'node:path';
import { describe, test } from 'node:test';
import { buildSync as build_now } from 'esbuild';
import { temp_dir } from '../harness';
import {
  guest_dir,
  node_named,
  read_workflow,
  redis_workflow_names,
  type workflow,
  workflow_names,
  type workflow_node,
} from './n8n_helpers';

/** Um parâmetro, ou uma credencial, como o n8n os descreve. */
type property = { name: string; type: string; options?: { value?: unknown }[] };
type credential = { name: string; required?: boolean };

/** A descrição de um nó. */
type description = {
  name: string;
  version: number | number[];
  properties: property[];
  credentials?: credential[];
  outputs: unknown;
} & Partial<Record<'usableAsTool', unknown>>;

/** Lê os parâmetros de um nó como o editor os lê: só os que existem e aparecem. */
type read_parameters = (
  properties: property[],
  values: object,
  with_defaults: boolean,
  with_hidden: boolean,
  node: workflow_node,
  description: description,
) => Record<string, unknown> | null;

/** Diz o que o editor marcaria em vermelho num nó; null se nada. */
type find_issues = (
  properties: property[],
  node: workflow_node,
  description: description,
) => object | null;

/** Diz se algo aparece no editor, com os parâmetros como estão. */
type is_shown = (
  values: object,
  what: property | credential,
  node: workflow_node,
  description: description,
) => boolean;

/** O que se usa do pacote n8n-workflow. */
type node_helpers = Record<'getNodeParameters', read_parameters> &
  Record<'getNodeParametersIssues', find_issues> &
  Record<'displayParameter', is_shown>;

/** Os nós do projeto, lidos como estão escritos: o pacote é deles. */
const own_package = 'n8n-nodes-json-proxy';

/** O que o n8n acrescenta a um nó que se usa como ferramenta de um agente. */
const tool_properties = ['descriptionType', 'toolDescription'];

const found_dir = guest_dir('n8n-nodes');
assert.ok(found_dir, 'faltam as descrições: sh scripts/dev/setup.sh n8n-nodes');
const dir = found_dir;

const helpers: node_helpers = create_require(path.join(dir, 'x.js'))('n8n-workflow').NodeHelpers;

/**
 * Lê as descrições dos nós de um pacote.
 * @param name nome do pacote
 * @returns as descrições
 */
function read_descriptions(name: string): description[] {
  const file = path.join(dir, 'nodes', name, 'package', 'dist', 'types', 'nodes.json');
  return JSON.parse(read_file(file, 'utf8'));
}

const packages = new Map(
  ['n8n-nodes-base', '@n8n/n8n-nodes-langchain'].map((name) => [name, read_descriptions(name)]),
);

/** Lê as descrições dos nós do projeto. */
function read_own_descriptions(): description[] {
  const outfile = path.join(temp_dir(), 'nodes.js');
  const alias = { 'n8n-workflow': create_require(path.join(dir, 'x.js')).resolve('n8n-workflow') };
  const entry = path.join(__dirname, '..', '..', 'scripts', 'n8n', 'nodes', 'index.ts');
  build_now({ entryPoints: [entry], outfile, alias, bundle: true, platform: 'node' });
  const made: Record<string, new () => { description: description }> =
    create_require(__filename)(outfile);
  return Object.values(made).map((node) => new node().description);
}

packages.set(own_package, read_own_descriptions());

/**
 * Acha a descrição do tipo e da versão de um nó.
 * @param node o nó
 * @returns a descrição; a de uma ferramenta é a do nó de que ela é feita
 * @throws AssertionError se o n8n não tem esse tipo, ou não tem essa versão dele
 */
function describe_node(node: workflow_node): description {
  const [, package_name = '', type = ''] = /^(.*)\.(\w+)$/.exec(node.type) ?? [];
  const candidates = packages.get(package_name) ?? [];
  const is_version = ({ version }: description) => [version].flat().includes(node.typeVersion);
  const find = (name: string) => candidates.find((one) => one.name === name && is_version(one));
  const tool = find(type.replace(/Tool$/, ''));
  const found = find(type) ?? (tool?.usableAsTool ? tool : undefined);
  assert.ok(found, `${node.name}: o n8n não tem ${node.type} na versão ${node.typeVersion}`);
  return found;
}

/**
 * Confere o valor de um parâmetro: uma das opções, onde elas são fixas, e do tipo dele.
 * @param property o parâmetro
 * @param value o valor
 * @returns se o n8n o entenderia
 */
function is_accepted(property: property, value: unknown): boolean {
  const { type, options = [] } = property;
  if (typeof value === 'string' && value.startsWith('=')) return true; // uma expressão
  if (type === 'boolean' || type === 'number') return typeof value === type;
  const is_fixed = type === 'options' && options.length > 0; // as de fora são listas de modelos
  return !is_fixed || options.some((option) => option.value === value);
}

/**
 * Confere os parâmetros de um nó: todos existem, aparecem com os outros como estão, e são aceitos.
 * @param node o nó
 * @returns os que aparecem, com os que ficaram no padrão
 * @throws AssertionError
 */
function check_parameters(node: workflow_node): Record<string, unknown> {
  const found = describe_node(node);
  const { properties } = found;
  const own = Object.entries(node.parameters).filter(
    ([name]) => !(node.type.endsWith('Tool') && tool_properties.includes(name)),
  );
  const values = Object.fromEntries(own);
  const kept = helpers.getNodeParameters(properties, values, true, false, node, found) ?? {};
  for (const [name, value] of own) {
    assert.deepEqual(kept[name], value, `${node.name}: ${name} não existe assim nesse nó`);
    const shown = properties.filter(
      (property) => property.name === name && helpers.displayParameter(kept, property, node, found),
    );
    const is_valid = shown.some((property) => is_accepted(property, value));
    assert.ok(is_valid, `${node.name}: ${name}: ${value}`);
  }
  assert.equal(helpers.getNodeParametersIssues(properties, node, found), null, node.name);
  return kept;
}

/**
 * Confere que um nó tem as credenciais que pede, e só elas.
 * @param node o nó
 * @param kept os parâmetros dele
 * @throws AssertionError
 */
function check_credentials(node: workflow_node, kept: object): void {
  const found = describe_node(node);
  const wanted = (found.credentials ?? []).filter(
    (one) => one.required && helpers.displayParameter(kept, one, node, found),
  );
  assert.deepEqual(
    Object.keys(node.credentials ?? {}),
    wanted.map(({ name }) => name),
    node.name,
  );
}

/**
 * Confere que cada ligação sai de uma saída que existe e chega a um nó que existe.
 * @param workflow o workflow
 * @throws AssertionError
 */
function check_connections(workflow: workflow): void {
  for (const [name, kinds] of Object.entries(workflow.connections)) {
    const node = node_named(workflow, name);
    const { outputs } = describe_node(node);
    const error_output = node.onError === 'continueErrorOutput' ? 1 : 0;
    // as saídas que uma expressão dá não se contam
    const main_outputs = Array.isArray(outputs) ? outputs.length + error_output : Infinity;
    for (const [kind, targets] of Object.entries(kinds)) {
      if (kind === 'main') assert.ok(targets.length <= main_outputs, `${name}: saídas demais`);
      for (const { node: target } of targets.flat()) node_named(workflow, target);
    }
  }
}

/**
 * Segue as ligações principais.
 * @param workflow o workflow
 * @param from o nó de que se parte
 * @param output a saída dele por onde se segue
 * @returns os nomes dos nós a que se chega
 */
function reached(workflow: workflow, from: string, output: number): string[] {
  const seen = new Set<string>();
  const follow = (targets: { node: string }[] = []) => {
    for (const { node } of targets.filter((target) => !seen.has(target.node))) {
      seen.add(node);
      for (const next of workflow.connections[node]?.main ?? []) follow(next);
    }
  };
  follow(workflow.connections[from]?.main?.[output]);
  return [...seen];
}

for (const name of [...redis_workflow_names, ...workflow_names]) {
  describe(`${name}.json`, () => {
    const workflow = read_workflow(name);

    test('nós, parâmetros, credenciais e ligações são os do n8n', () => {
      for (const node of workflow.nodes) check_credentials(node, check_parameters(node));
      check_connections(workflow);
    });

    test('nada de uma instalação: nem identificador de credencial, nem dados de teste', () => {
      const text = JSON.stringify(workflow);
      const credentials = workflow.nodes.flatMap((node) => Object.values(node.credentials ?? {}));
      assert.ok(credentials.every(({ id }) => id === null));
      assert.doesNotMatch(text, /instanceId|webhookId|versionId/);
    });
  });
}

for (const name of redis_workflow_names) {
  describe(`${name}.json, a parte de cima`, () => {
    const workflow = read_workflow(name);

    test('todo Push é no fim da lista', () => {
      const pushes = workflow.nodes.filter(({ parameters }) => parameters.operation === 'push');
      assert.ok(pushes.length >= 2);
      for (const { name, parameters } of pushes) assert.equal(parameters.tail, true, name);
    });

    test('os passos só acabam no nó que os chama, e de lá só há dois caminhos até Finish', () => {
      const { onError, alwaysOutputData } = node_named(workflow, 'Answer');
      assert.deepEqual([onError, alwaysOutputData], ['continueRegularOutput', true]);
      assert.deepEqual(reached(workflow, 'Answer', 0).slice(0, 1), ['Failed']);
      assert.deepEqual(reached(workflow, 'Failed', 0), ['Push the error', 'Finish']);
      assert.deepEqual(reached(workflow, 'Failed', 1), ['Finish']);
      const steps = reached(workflow, 'Task to answer', 0);
      assert.ok(steps.length >= 2, steps.join());
      for (const step of steps) assert.equal(node_named(workflow, step).onError, undefined, step);
    });
  });
}

describe('a conferência', () => {
  const cases: [string, (node: workflow_node) => void][] = [
    ['um tipo que não existe', (node) => Object.assign(node, { type: 'n8n-nodes-base.redi' })],
    ['uma versão que não existe', (node) => Object.assign(node, { typeVersion: 9 })],
    [
      'uma operação que não existe',
      ({ parameters }) => Object.assign(parameters, { operation: 'x' }),
    ],
    ['um parâmetro a mais', ({ parameters }) => Object.assign(parameters, { head: true })],
    ['um parâmetro de outra operação', ({ parameters }) => Object.assign(parameters, { ttl: 5 })],
    ['um parâmetro que falta', ({ parameters }) => delete parameters.messageData],
    ['um valor de outro tipo', ({ parameters }) => Object.assign(parameters, { tail: 'sim' })],
  ];
  for (const [what, spoil] of cases) {
    test(`apanha ${what}`, () => {
      const node = node_named(read_workflow('redis-nodes/stream-lines'), 'Push the line');
      check_parameters(node);
      spoil(node);
      assert.throws(() => check_parameters(node));
    });
  }
});
