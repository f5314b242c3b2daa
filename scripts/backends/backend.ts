/*
 * Sobe um dos quatro sistemas inteiro: um Redis, o proxy na porta do sistema, e o sistema.
 *
 *   npm run backend -- payload-store              e mostra os pedidos a experimentar
 *   npm run backend -- payload-store --check      faz os pedidos, mostra as respostas, e sai
 *   npm run backend -- payload-store --port 0     noutra porta; 0 escolhe uma livre
 *
 * Com REDIS_SERVER usa esse Redis; as outras variáveis são as de cada sistema.
 */

import path from 'node:path';
import { parseArgs as parse_args } from 'node:util';
import { build_program } from '../dev/build';
import { forget_settings, run_to_exit, start_program, start_redis, temp_dir } from '../dev/local';
import { batch_sync } from './batch-sync/demo';
import type { demo, stage, step } from './common/demo';
import { message_broker } from './message-broker/demo';
import { payload_store } from './payload-store/demo';
import { task_list } from './task-list/demo';

const demos: Record<string, demo> = {
  'payload-store': payload_store,
  'message-broker': message_broker,
  'task-list': task_list,
  'batch-sync': batch_sync,
};

/** Código de saída de um erro de uso. */
const usage_exit_code = 2;

/** Prazo para o sistema ficar pronto: numa pasta vazia o PGlite leva segundos de processador. */
const system_limit_ms = 120_000;

/** O que sobe: onde atende, e com que os pedidos se fazem. */
type scene = stage & { url: string };

/**
 * Sobe o Redis, o proxy e o sistema.
 * @param name nome do sistema
 * @param demo a demonstração dele
 * @param port a porta do proxy
 * @returns onde atende
 */
async function start_scene(name: string, demo: demo, port: string): Promise<scene> {
  const { REDIS_SERVER: given, REDIS_PASSWORD = '' } = process.env;
  forget_settings();
  const redis = { REDIS_SERVER: given ?? (await start_redis()).server, REDIS_PASSWORD };
  const stage = await demo.prepare(temp_dir());
  const program = path.join(temp_dir(), 'json-proxy.js');
  await build_program(program);
  const proxy_args = [program, '-p', port, '--host', '127.0.0.1'];
  const proxy = start_program(process.execPath, proxy_args, { ...redis, ...stage.proxy });
  const [, url = ''] = await proxy.wait_for(/ listen url=(\S+)\n/);
  const system_args = ['--import', 'tsx', path.join(__dirname, name, 'main.ts')];
  const system = start_program(process.execPath, system_args, { ...redis, ...stage.system });
  await system.wait_for(/ouvindo/, system_limit_ms);
  console.log(`Redis    ${redis.REDIS_SERVER}\nproxy    ${url}\nsistema  ${name}\n`);
  system.process.stdout?.pipe(process.stderr);
  return { ...stage, url };
}

/**
 * Escreve o comando de um pedido, para um terminal.
 * @param scene onde atende
 * @param step o pedido
 * @returns a linha
 */
function command_of({ curl = '' }: scene, step: step): string {
  const line = ['curl -sS', curl, step.curl].filter(Boolean).join(' ');
  if (!step.save) return line;
  const { name, field } = step.save;
  return `${name}=$(${line} | sed -En 's/.*"${field}":"?([^",}]+).*/\\1/p'); echo $${name}`;
}

/**
 * Mostra os pedidos.
 * @param scene onde atende
 * @param steps os pedidos
 */
function show_steps(scene: scene, steps: step[]): void {
  const variables = Object.entries({ URL: scene.url, ...scene.shell });
  console.log(variables.map(([name, value]) => `${name}=${value}`).join('\n'));
  for (const step of steps) {
    console.log(`\n# ${step.title}: ${step.status}\n${command_of(scene, step)}`);
  }
}

/**
 * Faz os pedidos, como estão escritos, e mostra as respostas.
 * @param scene onde atende
 * @param steps os pedidos
 * @returns quantas respostas não eram as esperadas
 */
async function run_steps(scene: scene, steps: step[]): Promise<number> {
  const variables: Record<string, string> = { URL: scene.url, ...scene.shell };
  let wrong = 0;
  for (const step of steps) {
    const status_line = "-w '\\nHTTP %{http_code}'";
    const line = ['curl -sS', status_line, scene.curl, step.curl].filter(Boolean).join(' ');
    const curl = start_program('sh', ['-c', line], variables);
    await curl.exited;
    const [, answer = '', status = ''] = /^([\s\S]*)\nHTTP (\d+)$/.exec(curl.stdout()) ?? [];
    console.log(`# ${step.title}\n$ ${command_of(scene, step)}`);
    console.log(`HTTP ${status}\n${answer.trimEnd()}${curl.stderr()}`);
    const is_right = Number(status) === step.status && (!step.answer || step.answer.test(answer));
    if (!is_right) {
      wrong += 1;
      console.log(`ERRADO: esperado ${step.status} ${step.answer ?? ''}`);
    }
    console.log('');
    if (!step.save) continue;
    const { name, field } = step.save;
    variables[name] = new RegExp(`"${field}":"?([^",}]+)`).exec(answer)?.[1] ?? '';
  }
  console.log(wrong === 0 ? `${steps.length} pedidos, todos certos` : `${wrong} errados`);
  return wrong;
}

/**
 * Roda a demonstração pedida.
 * @returns o código de saída
 */
async function main(): Promise<number> {
  const { values, positionals } = parse_args({
    allowPositionals: true,
    options: { check: { type: 'boolean', default: false }, port: { type: 'string' } },
  });
  const [name = ''] = positionals;
  const demo = demos[name];
  if (!demo) {
    console.error(`uso: npm run backend -- ${Object.keys(demos).join(' | ')} [--check] [--port N]`);
    return usage_exit_code;
  }
  const scene = await start_scene(name, demo, values.port ?? String(demo.port));
  if (values.check) return (await run_steps(scene, demo.steps)) === 0 ? 0 : 1;
  show_steps(scene, demo.steps);
  return new Promise<number>(() => {}); // até um Ctrl-C
}

run_to_exit(main);
