/*
 * A parte da sonda que roda dentro do processo examinado, carregada antes do programa por
 * NODE_OPTIONS. A cada SIGUSR2 recolhe o lixo e escreve em stderr uma linha "probe {...}".
 */

import { writeSync as write_now } from 'node:fs';
import v8 from 'node:v8';
import { runInNewContext as run_in_new_context } from 'node:vm';
import type { probe_reading } from './probe';

v8.setFlagsFromString('--expose-gc');
const collect_garbage = run_in_new_context('gc') as () => void;

const stderr_fd = 2;

/**
 * Mede o processo depois de recolher o lixo, duas vezes: a primeira solta o que só finaliza.
 * @returns a leitura
 */
function read_process(): probe_reading {
  collect_garbage();
  collect_garbage();
  const { used_heap_size, external_memory } = v8.getHeapStatistics();
  const resources: Record<string, number> = {};
  for (const name of process.getActiveResourcesInfo()) {
    resources[name] = (resources[name] ?? 0) + 1;
  }
  const { rss } = process.memoryUsage();
  return { heap_bytes: used_heap_size + external_memory, rss_bytes: rss, resources };
}

process.on('SIGUSR2', () => write_now(stderr_fd, `probe ${JSON.stringify(read_process())}\n`));
