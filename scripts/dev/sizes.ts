/*
 * Mede o que se entrega: o tamanho do arquivo montado, do binário e do pacote do npm; quanto cada
 * um leva do comando até atender, e a memória que ocupa então.
 *
 *   npm run sizes
 */

import { statSync as file_stats, readFileSync as read_file } from 'node:fs';
import path from 'node:path';
import { build_binary } from './binary';
import { build_program } from './build';
import {
  forget_settings,
  type local_redis,
  start_program,
  start_redis,
  stop_all,
  temp_dir,
} from './local';
import { install_package, pack_project } from './package';

/** De quantas partidas se tira a mediana. */
const starts = 9;

/** Uma forma de entrega: o arquivo que se copia, e o comando que o roda. */
type delivery = { name: string; file: string; command: string[] };

/** O que se mediu de uma partida. */
type start = { ms: number; megabytes: number };

/**
 * Faz as três formas de entrega, numa pasta temporária.
 * @returns as três
 */
async function make_deliveries(): Promise<delivery[]> {
  const dir = temp_dir();
  const [file, binary] = [path.join(dir, 'json-proxy.js'), path.join(dir, 'json-proxy')];
  await build_program(file);
  await build_binary(binary);
  const tarball = pack_project();
  const installed = path.join(install_package(tarball), 'node_modules', '.bin', 'json-proxy');
  return [
    { name: 'json-proxy.js', file, command: [process.execPath, file] },
    { name: 'bin/json-proxy', file: binary, command: [binary] },
    { name: path.basename(tarball), file: tarball, command: [installed] },
  ];
}

/**
 * Sobe o programa, espera que atenda, e o desce.
 * @param command o comando que o roda
 * @returns o tempo até atender e a memória residente
 */
async function measure_start(command: string[], redis: local_redis): Promise<start> {
  const [executable = '', ...args] = command;
  const began_at = performance.now();
  const program = start_program(executable, [...args, '-p', '0', '-R', redis.server]);
  await program.wait_for(/ listen url=/);
  const ms = performance.now() - began_at;
  const status = read_file(`/proc/${program.process.pid}/status`, 'utf8');
  const [, kilobytes] = /^VmRSS:\s+(\d+) kB/m.exec(status) ?? [];
  await program.stop();
  return { ms, megabytes: (Number(kilobytes) * 1024) / 1e6 };
}

/**
 * Dá a mediana.
 * @param values números
 */
function median(values: number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

/**
 * Mede tudo e mostra uma tabela. As partidas se alternam, para que a máquina pese igual em todas.
 */
async function main(): Promise<void> {
  const redis = await start_redis();
  const deliveries = await make_deliveries();
  const measured = deliveries.map((): start[] => []);
  for (let round = 0; round < starts; round += 1) {
    for (const [index, { command }] of deliveries.entries()) {
      measured[index]?.push(await measure_start(command, redis));
    }
  }
  console.log('| Entrega | Tamanho | Até atender | Memória |\n|---|---|---|---|');
  for (const [index, { name, file }] of deliveries.entries()) {
    const found = measured[index] ?? [];
    const size = (file_stats(file).size / 1e6).toFixed(2);
    const ms = Math.round(median(found.map((start) => start.ms)));
    const megabytes = Math.round(median(found.map((start) => start.megabytes)));
    console.log(`| ${name} | ${size} MB | ${ms} ms | ${megabytes} MB |`);
  }
}

forget_settings();
main()
  .catch((error) => {
    console.error(`a medição falhou: ${error.message}`);
    process.exitCode = 1;
  })
  .finally(stop_all);
