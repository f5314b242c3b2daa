/*
 * O ambiente de quem mexe no programa: um Redis (só dele, salvo se REDIS_SERVER ou -R apontar para
 * um), o proxy direto do fonte, recarregado a cada mudança, o worker de exemplo, e uma página que
 * mostra um pedido, as linhas que chegam e as chaves no Redis. Ctrl-C desce tudo.
 *
 *   npm run dev
 *   npm run dev -- -p 9000 -R 127.0.0.1:6379/1 -P 0     as opções são as do proxy
 */

import path from 'node:path';
import { load_settings } from '../../json-proxy';
import { start_page } from './dev_page';
import { type local_program, start_program, start_redis, stop_all } from './local';

const root = path.join(__dirname, '..', '..');

/** Como começam as outras chaves de uma tarefa, que são fixas: a reserva, e o que REPLAY guarda. */
const fixed_prefixes = ['ndjson_claim_', 'ndjson_sent_'];

/** Para que a página possa cair e voltar, salvo se for pedido outro. */
const replay_args = ['--replay', '60'];

/**
 * Mostra a saída de um programa, linha a linha, com o nome dele na frente.
 * @param name nome curto
 */
function show_output(name: string, program: local_program): void {
  for (const stream of [program.process.stdout, program.process.stderr]) {
    stream?.on('data', (text: string) => {
      process.stdout.write(text.replace(/^(?=.)/gm, `${name.padEnd(6)} │ `));
    });
  }
}

/**
 * Sobe um programa em TypeScript do projeto, fora do grupo do terminal: o Ctrl-C chega só a este
 * script, que desce cada um na ordem certa.
 * @param name nome mostrado
 * @param args argumentos do Node
 * @param env variáveis de ambiente a mais
 * @returns o programa
 */
function start_part(name: string, args: string[], env: NodeJS.ProcessEnv): local_program {
  const program = start_program(process.execPath, ['--import', 'tsx', ...args], env, root, true);
  show_output(name, program);
  return program;
}

/**
 * Serve a página, e diz ao proxy de que origens ela vem.
 * @param gathered texto em vigor de cada configuração
 * @param server o Redis, na forma de REDIS_SERVER
 * @param log_text dá o log do proxy até agora
 * @returns o endereço da página, e o que CORS_ORIGIN deve ser
 */
async function serve_page(
  gathered: ReturnType<typeof load_settings>['gathered'],
  server: string,
  log_text: () => string,
) {
  const text_of = (name: string) => gathered.get(name)?.text ?? '';
  const origins = await start_page({
    redis: { server, password: text_of('REDIS_PASSWORD') },
    prefixes: [text_of('REDIS_PREFIX'), text_of('REDIS_LIST_PREFIX'), ...fixed_prefixes],
    log_text,
  });
  const given = text_of('CORS_ORIGIN');
  return { page: origins[0], cors: [...(given ? [given] : []), ...origins].join(',') };
}

/** Sobe as partes e mostra o que experimentar. */
async function main(): Promise<void> {
  const argv = [...replay_args, ...process.argv.slice(2)];
  const { gathered } = load_settings(argv, process.env);
  const given = gathered.get('REDIS_SERVER');
  const own_redis = given?.source === 'default' ? await start_redis([], { detached: true }) : null;
  const server = own_redis?.server ?? given?.text ?? '';
  const env = { REDIS_SERVER: server, GRACE: process.env.GRACE ?? '1000' };
  const log_text = () => proxy.stdout() + proxy.stderr();
  const { page, cors } = await serve_page(gathered, server, log_text);
  const watching = ['--watch', '--watch-preserve-output'];
  const logged = ['--log-format', 'text', '--log-level', 'info']; // a página lê o log
  const args = ['json-proxy.ts', ...argv, '--cors-origin', cors, ...logged];
  const proxy = start_part('proxy', [...watching, ...args], env);
  const [, url = ''] = await proxy.wait_for(/ listen url=(\S+)\n| fatal .*\n/);
  if (url === '') throw new Error('o proxy não subiu'); // a linha dele, acima, diz por quê
  const names = ['REDIS_PASSWORD', 'REDIS_CHANNEL', 'REDIS_PREFIX', 'REDIS_LIST_PREFIX'];
  const shared = names.map((name) => [name, gathered.get(name)?.text]);
  const worker_env = { ...env, ...Object.fromEntries(shared) };
  const worker = start_part(
    'worker',
    ['scripts/worker/examples/worker-example.ts', '--loop'],
    worker_env,
  );
  await worker.wait_for(/ouvindo/);
  const address = url.replace('//0.0.0.0', '//127.0.0.1');
  console.log(`\nexperimente:  curl -N ${address}/teste -d '{"pergunta": "olá"}'`);
  console.log(`ou na página: ${page}`);
  if (own_redis) console.log(`e olhe:       redis-cli -p ${own_redis.port} -n 1 monitor`);
  console.log('Ctrl-C desce tudo\n');
  const code = await Promise.race([proxy.exited, worker.exited]);
  throw new Error(`uma das partes saiu com ${code}`);
}

/** Se já se está descendo: um segundo Ctrl-C não deixa partes para trás. */
let is_leaving = false;

/**
 * Desce tudo e sai.
 * @param reason o que deu errado; vazio se foi o usuário quem pediu
 */
async function leave(reason: string): Promise<void> {
  if (is_leaving) return;
  is_leaving = true;
  if (reason) console.error(`npm run dev: ${reason}`);
  await stop_all();
  process.exit(reason ? 1 : 0);
}

process.on('SIGINT', () => leave(''));
process.on('SIGTERM', () => leave(''));
main().catch((error) => leave(error.message));
