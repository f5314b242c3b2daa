/*
 * Dois Redis e três sentinels, em portas livres. Um sentinel é o próprio redis-server: o pacote
 * redis-sentinel do Debian só acrescenta um nome, um exemplo e um serviço, de que aqui não se
 * precisa.
 */

import { writeFileSync as write_file } from 'node:fs';
import path from 'node:path';
import {
  connect_redis,
  free_port,
  type local_redis,
  start_program,
  start_redis,
  temp_dir,
  until,
} from '../harness';

/** O nome por que os sentinels conhecem o primário. */
export const primary_name = 'principal';

/** Silêncio até um sentinel dar o primário por morto; e quantos deles têm de concordar. */
const election = { down_ms: 1000, quorum: 2, sentinels: 3 };

/** O que está no ar. */
export type sentinel_scene = Awaited<ReturnType<typeof start_sentinels>>;

/**
 * Sobe um sentinel.
 * @param primary o Redis que ele vigia
 * @param options linhas a mais do arquivo dele
 * @returns a porta
 */
async function start_sentinel(primary: local_redis, options: string[]): Promise<number> {
  const [dir, port] = [temp_dir(), await free_port()];
  const file = path.join(dir, 'sentinel.conf');
  const lines = [
    `port ${port}`,
    'bind 127.0.0.1',
    `dir ${dir}`,
    `sentinel monitor ${primary_name} 127.0.0.1 ${primary.port} ${election.quorum}`,
    `sentinel down-after-milliseconds ${primary_name} ${election.down_ms}`,
    `sentinel failover-timeout ${primary_name} 5000`,
    ...options,
  ];
  write_file(file, `${lines.join('\n')}\n`);
  const program = start_program('redis-server', [file, '--sentinel'], {}, dir);
  await program.wait_for(/\+monitor master/);
  return port;
}

/**
 * Sobe dois Redis, um réplica do outro, e três sentinels que já se conhecem.
 * @param redis_args opções dos dois Redis
 * @param sentinel_lines linhas a mais dos arquivos dos sentinels
 * @returns os dois; `sentinels`, as portas deles; `server`, na forma de REDIS_SERVER, no banco
 *   1; `moved_from`: espera que o primário já não seja o desta porta
 */
export async function start_sentinels(redis_args: string[] = [], sentinel_lines: string[] = []) {
  const args = ['--repl-diskless-sync-delay', '0', ...redis_args];
  const first = await start_redis(args);
  const second = await start_redis([...args, '--replicaof', '127.0.0.1', String(first.port)]);
  const sentinels: number[] = [];
  for (let n = 0; n < election.sentinels; n += 1) {
    sentinels.push(await start_sentinel(first, sentinel_lines));
  }
  const watcher = await connect_redis({ port: sentinels[0] ?? 0 }, 0);
  const ask = async (what: string) => {
    return (await watcher.sendCommand(['SENTINEL', what, primary_name])) as unknown[];
  };
  const admin = await connect_redis(first);
  await until('uma réplica em dia, e sentinels que se conhecem', async () => {
    const counts = [(await ask('SENTINELS')).length + 1, (await ask('REPLICAS')).length];
    const is_synced = /slave0:.*state=online/.test(await admin.info('replication'));
    return is_synced && `${counts}` === `${election.sentinels},1`;
  });
  const moved_from = (port: number) =>
    until('outro primário', async () => {
      return Number((await ask('GET-MASTER-ADDR-BY-NAME'))[1]) !== port;
    });
  const places = sentinels.map((port) => `127.0.0.1:${port}`).join(',');
  const server = `sentinel://${places}/${primary_name}/1`;
  return { first, second, sentinels, server, moved_from };
}
