/*
 * O que os testes do n8n dividem: as pastas que o setup.sh prepara, e os workflows de scripts/n8n.
 */

import { existsSync as exists, readFileSync as read_file } from 'node:fs';
import { homedir } from 'node:os';
import path from 'node:path';

/** Um nó de um workflow, na forma em que o n8n o exporta. */
export type workflow_node = {
  name: string;
  type: string;
  parameters: Record<string, unknown>;
  credentials?: Record<string, { id: string | null; name: string }>;
} & Record<'typeVersion', number> &
  Partial<Record<'onError', string> & Record<'alwaysOutputData' | 'executeOnce', boolean>>;

/** Para onde vai cada saída de um nó, por tipo de ligação: main, ai_tool, ai_languageModel. */
type outputs = Record<string, { node: string; type: string; index: number }[][]>;

/** Um workflow, idem. */
export type workflow = {
  id?: string;
  name: string;
  nodes: workflow_node[];
  connections: Record<string, outputs>;
};

/** Os que o projeto oferece, só com nós do n8n. */
export const redis_workflow_names = ['redis-nodes/stream-lines', 'redis-nodes/stream-agent'];

/** Os que ele oferece com os seus nós. */
export const workflow_names = ['stream-lines', 'stream-steps', 'stream-agent', 'openai'];

const scripts = path.join(__dirname, '..', '..', 'scripts');

/**
 * Lê um workflow do projeto.
 * @param name nome do arquivo, sem a extensão
 * @returns uma cópia só de quem pediu
 */
export function read_workflow(name: string): workflow {
  return JSON.parse(read_file(path.join(scripts, 'n8n', `${name}.json`), 'utf8'));
}

/**
 * Acha um nó.
 * @param workflow o workflow
 * @param name o nome do nó
 * @returns o nó
 * @throws Error se não há
 */
export function node_named(workflow: workflow, name: string): workflow_node {
  const node = workflow.nodes.find((candidate) => candidate.name === name);
  if (!node) throw new Error(`${workflow.name} não tem o nó ${name}`);
  return node;
}

/**
 * Diz onde o setup.sh põe um convidado.
 * @param name a parte do setup.sh que o instala: "n8n-nodes" ou "n8n"
 * @returns a pasta; undefined se não foi instalado
 */
export function guest_dir(name: string): string | undefined {
  const setup = read_file(path.join(scripts, 'dev', 'setup.sh'), 'utf8');
  const [, version] = new RegExp(`^${name.replace('-', '_')}=(.*)$`, 'm').exec(setup) ?? [];
  const cache = process.env.XDG_CACHE_HOME || path.join(homedir(), '.cache');
  const dir = path.join(cache, 'json-proxy', `${name}-${version}`);
  return exists(dir) ? dir : undefined;
}
