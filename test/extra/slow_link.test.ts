/*
 * Conexões lentas com o Redis, que não se confundem com as que se calaram: uma linha enorme que
 * demora a chegar, uma conexão nova que emperra antes de servir.
 */

import assert from 'node:assert/strict';
import net from 'node:net';
import {
  begin,
  brisk,
  end_of,
  fetch_all,
  on_stop,
  open_socket,
  start_proxy,
  start_redis,
  start_worker,
  test,
  until,
} from '../harness';

/** Bytes por segundo em que uma linha demora o dobro do silêncio de que o proxy desconfia. */
const trickle = { bytes: 100_000, every_ms: 100, line_bytes: 13_000_000 };

/** Um atraso maior que o primeiro intervalo entre tentativas de reconexão. */
const latency_ms = 120;

const long_patience_ms = 60_000;

/** O que o intermediário faz com uma conexão, pelo número dela, a partir de 1. */
type treatment = 'plain' | 'slow' | 'mute' | 'late';

/**
 * Põe um intermediário TCP na frente do Redis.
 * @param port porta do Redis
 * @param treat o que fazer com cada conexão
 * @returns o endereço dele, quantas conexões já houve, e como cortar as de agora
 */
async function start_relay(port: number, treat: (count: number) => treatment) {
  const sockets: net.Socket[] = [];
  let count = 0;
  const relay = net.createServer((near) => {
    count += 1;
    const how = treat(count);
    const far = net.connect(port, '127.0.0.1');
    sockets.push(near, far);
    for (const socket of [near, far]) socket.on('error', () => {});
    near.once('close', () => far.destroy());
    far.once('close', () => near.destroy());
    if (how === 'mute') near.resume();
    else near.pipe(far);
    if (how === 'plain') far.pipe(near);
    if (how === 'late') far.on('data', (chunk) => setTimeout(() => near.write(chunk), latency_ms));
    if (how !== 'slow') return;
    const timer = setInterval(() => {
      const chunk = far.read(Math.min(trickle.bytes, far.readableLength));
      if (chunk) near.write(chunk);
    }, trickle.every_ms);
    near.once('close', () => clearInterval(timer));
  });
  await new Promise<void>((resolve) => relay.listen(0, '127.0.0.1', resolve));
  on_stop(async () => {
    relay.close();
    for (const socket of sockets) socket.destroy();
  });
  return {
    server: `127.0.0.1:${(relay.address() as net.AddressInfo).port}/1`,
    count: () => count,
    cut: () => {
      for (const socket of sockets.splice(0)) socket.destroy();
    },
  };
}

test('uma linha que demora a chegar do Redis chega inteira, na mesma conexão', async () => {
  const redis = await start_redis();
  const relay = await start_relay(redis.port, () => 'slow');
  const proxy = await start_proxy({ server: relay.server }, [...brisk, '-t', '120000']);
  const worker = await start_worker(redis);
  const client = await open_socket(proxy.port);
  client.send('GET / HTTP/1.1\r\nHost: a\r\n\r\n');
  const task = await worker.next();
  const lines = ['primeira', 'x'.repeat(trickle.line_bytes), 'última'];
  await worker.client.multi().rPush(task.task_list, lines).del(task.task_key).exec();
  const { bytes, ending } = await (async () => {
    await until('fim da resposta', () => client.text().endsWith('\r\n0\r\n\r\n'), long_patience_ms);
    return end_of(proxy, task);
  })();
  const expected = lines.reduce((sum, line) => sum + Buffer.byteLength(line) + 1, 0);
  assert.deepEqual([ending, bytes], ['done', String(expected)]);
  assert.doesNotMatch(proxy.stderr(), / redis_down /);
});

test('uma conexão nova que emperra é trocada, e a anterior não volta ao lado dela', async () => {
  const redis = await start_redis();
  const relay = await start_relay(redis.port, (count) =>
    count === 1 ? 'plain' : count === 2 ? 'mute' : 'late',
  );
  const proxy = await start_proxy({ server: relay.server }, [...brisk, '-t', '120000']);
  const worker = await start_worker(redis);
  const { stream, task } = await begin(proxy, worker, ['antes']);
  relay.cut();
  await proxy.wait_for(/ redis_up /, long_patience_ms);
  await worker.client.rPush(task.task_list, ['depois', 'EOF']);
  assert.deepEqual(await stream.rest(), ['depois']);
  assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
  const clients = await worker.client.sendCommand(['CLIENT', 'LIST', 'TYPE', 'normal']);
  const names = String(clients).match(/ db=1 .*/g) ?? [];
  assert.equal(names.length, 2, `${clients}`); // o proxy e este teste
});
