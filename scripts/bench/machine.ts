/*
 * Onde e com o que se mediu.
 */

import { readFileSync as read_file } from 'node:fs';
import os from 'node:os';
import { command_output } from './processes';

/** A máquina e as versões de tudo o que foi medido. Memória em MiB. */
export type machine_facts = {
  cpu: string;
  cores: number;
  memory_mib: number;
  kernel: string;
  node: string;
  redis: string;
  program: string;
  peers: Record<string, string>;
};

/** Dá os fatos da máquina; `program` é o caminho de json-proxy.js. */
export function describe_machine(program: string, peers: Record<string, string>): machine_facts {
  const cpus = os.cpus();
  const redis_text = command_output('redis-server', '--version');
  return {
    cpu: cpus[0]?.model.trim() ?? 'desconhecido',
    cores: cpus.length,
    memory_mib: Math.round(os.totalmem() / 2 ** 20),
    kernel: `${os.type()} ${os.release()}`,
    node: process.version,
    redis: /v=(\S+)/.exec(redis_text)?.[1] ?? redis_text,
    program: command_output(process.execPath, program, '--version'),
    peers,
  };
}

/** Monta uma linha em inglês sobre a máquina, para o rodapé dos gráficos. */
export function machine_line(facts: machine_facts): string {
  const { cpu, cores, node, redis, program } = facts;
  return `${cpu}, ${cores} cores · Node ${node} · Redis ${redis} · json-proxy ${program}`;
}

/**
 * Diz quantos descritores um processo pode abrir, que o Node pede sozinho; infinito onde não se
 * pode ler.
 */
export function open_files_limit(): number {
  try {
    const text = read_file('/proc/self/limits', 'utf8');
    const limit = /^Max open files\s+\S+\s+(\d+)/m.exec(text)?.[1];
    return limit === undefined ? Infinity : Number(limit);
  } catch {
    return Infinity;
  }
}
