/*
 * Um cluster de seis nós em portas livres: três mestres, cada um com a sua réplica, feito pelo
 * redis-cli.
 */

import { connect_redis, free_port, type local_redis, start_program, start_redis } from '../harness';

/** Quantos nós, metade deles réplicas, e o silêncio até darem um por morto. */
const shape = { nodes: 6, replicas: 1, timeout_ms: 2000 };

/** Um nó e quem ele é, como CLUSTER NODES o mostra. */
export type cluster_node = local_redis & { id: string; is_master: boolean; slots: string };

/** O que está no ar. */
export type cluster_scene = Awaited<ReturnType<typeof start_cluster>>;

/**
 * Roda o redis-cli até o fim.
 * @param args argumentos
 * @returns o que ele escreveu
 * @throws Error se ele falha
 */
export async function run_cli(args: string[]): Promise<string> {
  const program = start_program('redis-cli', args);
  const code = await program.exited;
  const output = program.stdout() + program.stderr();
  if (code !== 0) throw new Error(`redis-cli ${args.join(' ')}: ${output}`);
  return output;
}

/**
 * Sobe os nós e faz deles um cluster.
 * @returns os nós; `server`, na forma de REDIS_SERVER; `look`: os nós como estão agora
 */
export async function start_cluster() {
  const nodes: local_redis[] = [];
  for (let n = 0; n < shape.nodes; n += 1) {
    const options = ['--cluster-enabled', 'yes', '--cluster-port', String(await free_port())];
    const timing = ['--cluster-node-timeout', String(shape.timeout_ms)];
    nodes.push(await start_redis([...options, ...timing, '--repl-diskless-sync-delay', '0']));
  }
  const places = nodes.map(({ port }) => `127.0.0.1:${port}`);
  const made = ['--cluster-replicas', String(shape.replicas), '--cluster-yes'];
  await run_cli(['--cluster', 'create', ...places, ...made]);
  const look = async (): Promise<cluster_node[]> => {
    const alive = nodes.filter(({ process: child }) => child.signalCode === null);
    const client = await connect_redis(alive[0] ?? { port: 0 }, 0);
    const found = String(await client.sendCommand(['CLUSTER', 'NODES']));
    client.destroy();
    return nodes.map((node) => {
      const line =
        found.split('\n').find((text) => text.includes(` 127.0.0.1:${node.port}@`)) ?? '';
      const [id = '', , flags = '', , , , , , ...slots] = line.split(' ');
      const is_master = flags.includes('master') && !flags.includes('fail');
      return { ...node, id, is_master, slots: slots.join(' ') };
    });
  };
  return { nodes, look, server: `cluster://${places.slice(0, 3).join(',')}` };
}
