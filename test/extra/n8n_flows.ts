/*
 * Workflows feitos para um teste com os nós de scripts/n8n/nodes, e um servidor de portões: um
 * passo que pede um deles fica parado até que o teste o abra.
 */

import http from 'node:http';
import { on_stop, stir, until } from '../harness';
import type { workflow, workflow_node } from './n8n_helpers';

/** Um passo de um workflow: o nó, sem o que todos têm. */
export type step = Pick<workflow_node, 'name' | 'type'> & Partial<workflow_node>;

/** De que nó, por qual saída, a que nó. */
type link = [from: string, output: number, to: string];

/** A credencial dos testes, como está no n8n. */
export const redis_credential = { redis: { id: 'redis00000000001', name: 'json-proxy Redis' } };

/** Onde estão os nós do pacote. */
export const package_name = 'n8n-nodes-json-proxy';

/** Monta o gatilho, no canal `channel`. */
export function trigger(channel: string, parameters: object = {}): step {
  return {
    name: 'Trigger',
    type: `${package_name}.jsonProxyTrigger`,
    parameters: { channel, ...parameters },
    credentials: redis_credential,
  };
}

/** Monta um nó JSON Proxy Line, de nome `name`. */
export function line(name: string, parameters: object = {}): step {
  return {
    name,
    type: `${package_name}.jsonProxyLine`,
    parameters: { ...parameters },
    credentials: redis_credential,
  };
}

/** Monta um nó `name` que só dá os campos de `json`, uma expressão. */
export function give(name: string, json: string): step {
  const parameters = { mode: 'raw', jsonOutput: json, options: {} };
  return { name, type: 'n8n-nodes-base.set', ...{ typeVersion: 3.4 }, parameters };
}

/** Monta um nó `name` que dá um item para cada elemento da lista `field`. */
export function split(name: string, field: string): step {
  const parameters = { fieldToSplitOut: field, options: {} };
  return { name, type: 'n8n-nodes-base.splitOut', parameters };
}

/** Monta um nó `name` que faz um pedido a `url` e dá a resposta. */
export function request(name: string, url: string): step {
  const parameters = { url, options: {} };
  return { name, type: 'n8n-nodes-base.httpRequest', ...{ typeVersion: 4.2 }, parameters };
}

/** Monta as ligações que levam cada passo ao próximo. */
export function chain(steps: step[]): link[] {
  return steps.slice(1).map((next, index): link => [steps[index]?.name ?? '', 0, next.name]);
}

/**
 * Monta um workflow.
 * @param id identificador no n8n, e nome; vai até 16 letras
 * @param steps os passos
 * @param links as ligações; sem elas, cada passo leva ao próximo
 * @param settings o que muda na configuração dele
 * @returns o workflow
 */
export function make_workflow(
  id: string,
  steps: step[],
  links = chain(steps),
  settings: object = {},
): workflow {
  const nodes = steps.map((step, index) => ({
    ...{ id: `${id}-${index}`, typeVersion: 1, parameters: {} },
    position: [index * 220, 0],
    ...step,
  }));
  const connections: workflow['connections'] = {};
  for (const [from, output, to] of links) {
    connections[from] ??= { main: [] };
    const { main = [] } = connections[from];
    while (main.length <= output) main.push([]);
    main[output]?.push({ node: to, type: 'main', index: 0 });
  }
  const more = { settings: { executionOrder: 'v1', ...settings }, active: false };
  const full = id.padEnd(16, '0'); // o n8n fala dos workflows pelo nome
  return { id: full, name: full, nodes, connections, ...more };
}

/**
 * Sobe o servidor de portões.
 * @returns `url`: a de um portão; `reached`: espera que ao menos `count` pedidos parem nele, e diz
 *   quantos são; `open`: deixa passar os que pararam e os próximos
 */
export async function start_gates() {
  const held = new Map<string, http.ServerResponse[]>();
  const open = new Set<string>();
  const answer = (response: http.ServerResponse, name: string) =>
    response.setHeader('Content-Type', 'application/json').end(JSON.stringify({ gate: name }));
  const server = http.createServer((incoming, response) => {
    const name = (incoming.url ?? '').slice(1);
    held.set(name, [...(held.get(name) ?? []), response]);
    if (open.has(name)) answer(response, name);
    stir();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  on_stop(async () => {
    server.closeAllConnections();
    server.close();
  });
  const count = (name: string) => held.get(name)?.length ?? 0;
  return {
    url: (name: string) => `http://127.0.0.1:${port}/${name}`,
    reached: (name: string, least = 1) =>
      until(`portão ${name}`, () => count(name) >= least && count(name)),
    open: (name: string) => {
      open.add(name);
      for (const response of held.get(name) ?? []) answer(response, name);
    },
  };
}
