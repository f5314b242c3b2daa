/*
 * Sonda: diz quanta memória, quantos sockets e quantos temporizadores um processo do Node guarda,
 * sem que o programa examinado mude em nada.
 */

import path from 'node:path';
import { build } from 'esbuild';
import { type local_program, temp_dir, until } from './local';

/**
 * O que um processo guarda. `resources` conta, por tipo ("TCPSocketWrap", "Timeout"…), o que mantém
 * vivo o laço de eventos.
 */
export type probe_reading = {
  heap_bytes: number;
  rss_bytes: number;
  resources: Record<string, number>;
};

/**
 * Prepara o ambiente em que um processo do Node pode ser sondado.
 * @returns variáveis de ambiente para o processo filho
 */
export async function probe_env(): Promise<NodeJS.ProcessEnv> {
  const outfile = path.join(temp_dir(), 'probe.js');
  const entry = path.join(__dirname, 'probe-inside.ts');
  await build({ entryPoints: [entry], outfile, bundle: true, platform: 'node', format: 'cjs' });
  return { NODE_OPTIONS: `--require ${outfile}` };
}

/**
 * Sonda um processo que subiu com `probe_env`.
 * @returns a leitura, de depois de recolhido o lixo
 */
export async function take_probe(
  program: Pick<local_program, 'process' | 'stderr'>,
): Promise<probe_reading> {
  const readings = () => [...program.stderr().matchAll(/^probe (\{.*\})\n/gm)];
  const { length: before } = readings();
  program.process.kill('SIGUSR2');
  const [, text = ''] = await until('leitura da sonda', () => readings()[before]);
  return JSON.parse(text);
}
