/*
 * Mostra o programa inteiro funcionando, e sai: sobe um Redis, o proxy e um worker em portas
 * livres, faz um pedido e mostra cada linha com o instante em que chegou.
 *
 *   npm run demo
 *   npm run demo -- --program caminho/json-proxy.js     usa um arquivo já montado, ou o binário
 */

import path from 'node:path';
import { parseArgs as parse_args } from 'node:util';
import { built_program } from './build';
import { forget_settings, start_program, start_redis, stop_all } from './local';

const { values } = parse_args({ options: { program: { type: 'string' } } });

/**
 * Faz um pedido e mostra cada linha quando chega.
 * @param url endereço do pedido
 * @returns quantas linhas chegaram
 */
async function show_stream(url: string): Promise<number> {
  const question = '{"pergunta": "olá"}';
  console.log(`\n$ curl -N ${url} -d '${question}'`);
  const started_at = performance.now();
  const response = await fetch(url, { method: 'POST', body: question });
  const type = response.headers.get('content-type');
  console.log(`HTTP ${response.status} ${type}; cada linha com o instante em que chegou:`);
  let lines = 0;
  const decoder = new TextDecoder();
  for await (const chunk of response.body ?? []) {
    const seconds = ((performance.now() - started_at) / 1000).toFixed(3);
    for (const line of decoder.decode(chunk, { stream: true }).split('\n').filter(Boolean)) {
      lines += 1;
      console.log(`+${seconds} s  ${line}`);
    }
  }
  console.log(`+${((performance.now() - started_at) / 1000).toFixed(3)} s  (fim)\n`);
  return lines;
}

/**
 * Sobe tudo, mostra um fluxo e desce tudo.
 * @returns código de saída: 0 se as linhas chegaram
 */
async function main(): Promise<number> {
  const redis = await start_redis();
  console.log(`Redis   ${redis.server} (só desta demonstração)`);
  const file = await built_program(values.program);
  const is_binary = !file.endsWith('.js');
  const args = ['-p', '0', '--host', '127.0.0.1', '-R', redis.server];
  const proxy = start_program(
    is_binary ? file : process.execPath,
    is_binary ? args : [file, ...args],
  );
  const [, url = ''] = await proxy.wait_for(/ listen url=(\S+)\n/);
  console.log(`proxy   ${url}`);
  const worker_file = path.join(__dirname, '..', 'worker', 'examples', 'worker-example.ts');
  const worker_args = ['--import', 'tsx', worker_file, '-R', redis.server];
  const worker = start_program(process.execPath, worker_args);
  await worker.wait_for(/ouvindo/);
  console.log('worker  scripts/worker/examples/worker-example.ts');
  const lines = await show_stream(`${url}/demo`);
  console.log('O que o proxy registrou:');
  await proxy.wait_for(/ end task=.*\n/);
  console.log(proxy.stdout().replace(/^/gm, '  ').trimEnd());
  console.log('\nO mesmo à mão, e um worker seu: README.pt-BR.md. Numa página: npm run dev');
  return lines > 0 ? 0 : 1;
}

forget_settings();
main()
  .catch((error) => {
    console.error(`a demonstração falhou: ${error.message}`);
    return 1;
  })
  .then(async (code) => {
    await stop_all();
    process.exit(code);
  });
