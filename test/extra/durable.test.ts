/*
 * As tarefas num stream (REDIS_STREAM) e o kit em Python, com a redis-py do Debian.
 */

import path from 'node:path';
import { before } from 'node:test';
import { durable_scenes, type kit_options } from '../durable_scenes';
import { type local_redis, start_program, start_redis } from '../harness';

/** O Python do sistema; outro, por exemplo com uma redis-py mais nova, pela variável PYTHON. */
const python = process.env.PYTHON || '/usr/bin/python3';

const kit = path.join(__dirname, '../../scripts/worker');

let redis: local_redis;

before(async () => {
  redis = await start_redis();
});

/** Põe um worker de pé, num processo; devolve o programa. */
async function spawn({ server, channel, stream, name, takeover, gates }: kit_options) {
  const worker = start_program(python, [path.join(__dirname, 'kit_worker.py')], {
    PYTHONPATH: kit,
    REDIS_SERVER: server,
    REDIS_CHANNEL: channel,
    REDIS_STREAM: stream,
    NAME: name,
    TAKEOVER: String(takeover),
    GATES: gates,
  });
  await worker.wait_for(/ouvindo/);
  return worker;
}

durable_scenes('o kit em Python', { tasks: 1, spawn, start: spawn }, () => redis);
