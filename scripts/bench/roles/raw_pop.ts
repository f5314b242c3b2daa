/*
 * O piso sem HTTP da prova de volume: um cliente que retira as mesmas listas com LPOP em lotes,
 * pela biblioteca que o proxy usa, até que se esvaziem.
 */

import { createClient as create_client, RESP_TYPES as resp_types } from 'redis';
import { line_bytes } from './lines';
import { clock, clock_per_ms, serve_role } from './role';

/**
 * Cria o cliente do Redis da porta `port`, banco `database`, ainda sem conectar, e o que devolve
 * Buffers.
 */
function make_client(port: number, database: number) {
  const client = create_client({
    socket: { host: '127.0.0.1', port },
    database,
    RESP: 2,
    commandOptions: { timeout: 0 }, // sem o prazo da biblioteca, que custa
  });
  client.on('error', (error) => {
    throw error;
  });
  return { client, buffers: client.withTypeMapping({ [resp_types.BLOB_STRING]: Buffer }) };
}

const state = { clients: undefined as ReturnType<typeof make_client> | undefined };

/** Conecta. */
async function connect(where: { port: number; database: number }): Promise<void> {
  state.clients = make_client(where.port, where.database);
  await state.clients.client.connect();
}

/**
 * Esvazia as listas preload_0, preload_1…, todas ao mesmo tempo na mesma conexão; devolve segundos,
 * ou lança se a conta não fecha.
 */
async function run(args: { lists: number; lines_each: number; count: number }): Promise<number> {
  const { buffers } = state.clients ?? {};
  if (!buffers) throw new Error('sem conexão');
  const empty_list = async (key: string) => {
    let lines = 0;
    for (;;) {
      const popped = await buffers.lPopCount(key, args.count);
      if (!popped) break;
      for (const line of popped) lines += Number(line.byteLength === line_bytes);
    }
    if (lines !== args.lines_each) throw new Error(`${lines} linhas, não ${args.lines_each}`);
  };
  const started_at = clock();
  await Promise.all(Array.from({ length: args.lists }, (_, list) => empty_list(`preload_${list}`)));
  return (clock() - started_at) / clock_per_ms / 1000;
}

serve_role({ connect, run });
