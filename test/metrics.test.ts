/*
 * A porta das métricas: o que cada fim e cada recusa conta; a queda do Redis, a parada, vários
 * processos; e que nada disso existe sem METRICS_PORT.
 */

import assert from 'node:assert/strict';
import net from 'node:net';
import { before, describe } from 'node:test';
import { metrics_table } from '../json-proxy';
import {
  begin,
  brisk,
  clog_reader,
  end_of,
  exit_of,
  fetch_all,
  freeze_redis,
  goodbye,
  type local_redis,
  long_grace,
  on_stop,
  open_socket,
  type open_stream,
  program_file,
  run_proxy,
  start_proxy,
  start_redis,
  start_worker,
  type task_names,
  test,
  until,
  type worker,
} from './harness';
import {
  counted,
  labels_of,
  type metered_proxy,
  metric_of,
  read_dashboard,
  read_metrics,
  type series,
  start_metered,
} from './metrics_helpers';

/** Um fluxo aberto, e o bastante para fazê-lo terminar. */
type open_case = {
  proxy: metered_proxy;
  worker: worker;
  stream: ReturnType<typeof open_stream>;
  task: task_names;
};

/** Um fim: as opções do proxy, o que leva a ele, e o que ele conta além da tarefa e dele mesmo. */
type ending_case = {
  args?: string[];
  lines?: string[];
  finish: (open: open_case) => Promise<unknown>;
  counts?: Record<string, number>;
};

const ending_cases: Record<string, ending_case> = {
  done: {
    lines: ['a', 'bc'],
    finish: ({ worker, task }) => worker.client.rPush(task.task_list, ['ç\r\n', 'EOF']),
    counts: { sent_lines_total: 3, sent_bytes_total: 8, first_line_seconds_count: 1 },
  },
  timeout: { args: ['-t', '4000'], finish: ({ stream }) => stream.rest() },
  client_gone: { finish: async ({ stream }) => stream.leave() },
  redis_lost: { finish: ({ worker }) => worker.client.flushAll() },
  failed: { finish: ({ worker, task }) => worker.client.set(task.task_list, 'não é lista') },
};

/** Recusas de um proxy que exige a chave "k" e corpos de até 3 bytes: como se chega a cada uma. */
const refusal_cases: [number, (proxy: metered_proxy) => Promise<unknown>][] = [
  [401, (proxy) => fetch_all(proxy)],
  [413, (proxy) => fetch_all(proxy, { body: 'grande', headers: { 'X-Api-Key': 'k' } })],
  [417, (proxy) => fetch_all(proxy, { headers: { Expect: 'x' } })],
  [400, send_nonsense],
];

/** O que a porta responde: método, caminho, status e corpo. */
const page_cases: [string, string, number, RegExp][] = [
  ['GET', '/live', 200, /^live\n$/],
  ['GET', '/ready', 200, /^ready\n$/],
  ['GET', '/ready?x=1', 200, /^ready\n$/],
  ['GET', '/metrics', 200, /^# HELP json_proxy_info /],
  ['HEAD', '/metrics', 200, /^$/],
  ['POST', '/metrics', 405, /^method not allowed\n$/],
  ['DELETE', '/live', 405, /^method not allowed\n$/],
  ['OPTIONS', '/ready', 405, /^method not allowed\n$/],
  ['GET', '/', 404, /^not found\n$/],
  ['GET', '/ping', 404, /^not found\n$/],
  ['GET', '/metrics/', 404, /^not found\n$/],
  ['POST', '/constructor', 404, /^not found\n$/],
];

/**
 * Manda ao proxy algo que não é HTTP.
 * @param proxy o proxy
 */
async function send_nonsense({ port }: metered_proxy): Promise<void> {
  const socket = await open_socket(port);
  socket.send('isto não é HTTP\r\n\r\n');
  await socket.closed();
}

let redis: local_redis;
let scenes = 0;

/**
 * Sobe um proxy com métricas e um worker, num canal só deles.
 * @param args argumentos a mais para o proxy
 * @param where o Redis
 * @returns os dois
 */
async function set_scene(args: string[] = [], where = redis) {
  scenes += 1;
  const channel = `metrics_${scenes}`;
  const [proxy, worker] = await Promise.all([
    start_metered(where, ['-C', channel, ...brisk, ...args]),
    start_worker(where, channel),
  ]);
  return { proxy, worker };
}

/**
 * Busca o status de uma página da porta das métricas.
 * @param proxy o proxy
 * @param path caminho
 * @returns o status
 */
async function status_of(proxy: metered_proxy, path: string): Promise<number> {
  return (await fetch_all(proxy.metrics, { path })).status;
}

/**
 * Espera que uma página da porta das métricas tenha um status.
 * @param proxy o proxy
 * @param path caminho
 * @param status o status
 */
async function status_becomes(proxy: metered_proxy, path: string, status: number): Promise<void> {
  await until(`${path} ${status}`, async () => (await status_of(proxy, path)) === status);
}

/**
 * Lê as métricas até que digam algo: de vários processos, cada um conta o seu a cada segundo.
 * @param proxy o proxy
 * @param is_there o que se espera delas
 * @returns a leitura que o diz
 */
async function metrics_when(
  proxy: metered_proxy,
  is_there: (values: series) => boolean,
): Promise<series> {
  let values: series = new Map();
  await until('métricas', async () => {
    values = await read_metrics(proxy);
    return is_there(values);
  });
  return values;
}

/**
 * Soma uma métrica por todos os processos.
 * @param values leitura
 * @param name nome da série, sem rótulos
 * @returns a soma, e quantos processos a dão
 */
function total(values: series, name: string): [number, number] {
  const found = [...values].filter(([key]) => key.replace(/\{.*/, '') === name);
  return [found.reduce((sum, [, value]) => sum + value, 0), found.length];
}

/**
 * Atende um fluxo de uma linha, do começo ao fim.
 * @param proxy o proxy
 * @param worker o worker
 */
async function serve_one(proxy: metered_proxy, worker: worker): Promise<void> {
  const { stream, task } = await begin(proxy, worker, ['linha']);
  await worker.client.rPush(task.task_list, 'EOF');
  assert.deepEqual(await stream.rest(), []);
  await proxy.wait_for(new RegExp(` end task=${task.uuid} ending=done .*\n`));
}

/**
 * Acha o processo de um número, entre os de um proxy.
 * @param proxy o proxy
 * @param slot o número
 * @returns o pid
 */
async function process_of(proxy: metered_proxy, slot: number): Promise<number> {
  const [, pid] = await proxy.wait_for(new RegExp(` process_ready worker=${slot} pid=(\\d+)\\n`));
  return Number(pid);
}

before(async () => {
  [redis] = await Promise.all([start_redis(), program_file()]);
});

describe('contas', { concurrency: 3 }, () => {
  for (const [ending, { args, lines, finish, counts }] of Object.entries(ending_cases)) {
    test(`um fluxo que termina em ${ending}`, async () => {
      const where = ending === 'redis_lost' ? await start_redis() : redis;
      const { proxy, worker } = await set_scene(args, where);
      const before = await read_metrics(proxy);
      const open = { proxy, worker, ...(await begin(proxy, worker, lines)) };
      const during = await read_metrics(proxy);
      if (ending !== 'timeout') {
        assert.deepEqual([before.get('streams'), during.get('streams')], [0, 1]);
        assert.equal(during.get('connections'), 1);
        assert.equal(total(during, 'stream_endings_total')[0], 0);
      }
      await finish(open);
      assert.equal((await end_of(proxy, open.task)).ending, ending);
      const after = await read_metrics(proxy);
      assert.equal(after.get('streams'), 0);
      assert.deepEqual(counted(before, after), {
        tasks_total: 1,
        [`stream_endings_total{ending="${ending}"}`]: 1,
        ...counts,
        'redis_seconds_count{command="create"}': 1,
      });
    });
  }

  test('um fluxo cortado pela parada, e a porta que ainda responde', async () => {
    const { proxy, worker } = await set_scene(['--grace', '100']);
    const { stream, task } = await begin(proxy, worker, ['1']);
    await stream.pause();
    await clog_reader(worker.client, task, proxy); // quem não lê segura o processo mais um pouco
    const cut = await begin(proxy, worker);
    const stopped = proxy.stop();
    assert.deepEqual(await cut.stream.rest(), [goodbye]);
    const ended = 'stream_endings_total{ending="shutdown"}';
    await until('fim contado', async () => ((await read_metrics(proxy)).get(ended) ?? 0) >= 1);
    assert.equal(await stopped, 0);
  });

  test('recusas, por status', async () => {
    const { proxy } = await set_scene(['--api-key', 'k', '--maxbody', '3']);
    for (const [status, refuse] of refusal_cases) {
      const before = await read_metrics(proxy);
      await refuse(proxy);
      await proxy.wait_for(new RegExp(` refused status=${status} .*\n`));
      const changes = counted(before, await read_metrics(proxy));
      assert.deepEqual(changes, { [`refusals_total{status="${status}"}`]: 1 });
    }
  });

  test('com FAILFAST, uma tarefa que ninguém ouve: criada, recusada, sem fim', async () => {
    const proxy = await start_metered(redis, ['-C', 'ninguem', '--failfast', 'on']);
    const before = await read_metrics(proxy);
    assert.equal((await fetch_all(proxy)).status, 503);
    assert.deepEqual(counted(before, await read_metrics(proxy)), {
      tasks_total: 1,
      'refusals_total{status="503"}': 1,
      'redis_seconds_count{command="create"}': 1,
    });
  });

  test('o tempo até a primeira linha e o do Redis caem na faixa certa', async () => {
    const { proxy, worker } = await set_scene(['--head-wait', '1000']);
    const { stream, task } = await begin(proxy, worker);
    await stream.head(); // sem linhas, os cabeçalhos saem depois de 1 s
    assert.equal(await status_of(proxy, '/ready'), 200); // a esta pergunta sempre responde um PING
    await worker.client.rPush(task.task_list, ['1', 'EOF']);
    assert.deepEqual(await stream.rest(), ['1']);
    const values = await read_metrics(proxy);
    const sum = values.get('first_line_seconds_sum') ?? 0;
    assert.ok(sum >= 0.99, `${sum} s`);
    assert.equal(values.get('first_line_seconds_bucket{le="0.5"}'), 0);
    assert.equal(values.get('first_line_seconds_bucket{le="+Inf"}'), 1);
    const buckets = [...values].filter(([name]) => /^first_line_seconds_bucket/.test(name));
    for (const [name, count] of buckets) {
      const bound = Number(/le="([\d.]+)"/.exec(name)?.[1] ?? Infinity);
      assert.equal(count, Number(sum <= bound), name);
    }
    const create = values.get('redis_seconds_sum{command="create"}') ?? 0;
    assert.ok(create > 0 && create < sum, `${create} s`);
    assert.ok((values.get('redis_seconds_count{command="ping"}') ?? 0) >= 1);
  });
});

describe('a porta', { concurrency: 3 }, () => {
  test('responde só o que é dela', async () => {
    const { proxy } = await set_scene();
    await proxy.wait_for(
      new RegExp(` metrics url=http://127.0.0.1:${proxy.metrics.port}/metrics\n`),
    );
    for (const [method, path, status, body] of page_cases) {
      const reply = await fetch_all(proxy.metrics, { method, path });
      assert.equal(reply.status, status, `${method} ${path}`);
      assert.match(reply.body, body);
      assert.equal(reply.headers.allow, status === 405 ? 'GET, HEAD' : undefined);
    }
    const values = await read_metrics(proxy);
    assert.equal(total(values, 'refusals_total')[0], 0, 'não são pedidos de clientes');
    assert.equal(values.get('connections'), 0);
  });

  test('sem METRICS_PORT não existe, e os caminhos dela são tarefas como os outros', async () => {
    const worker = await start_worker(redis, 'plain');
    const proxy = await start_proxy(redis, ['-C', 'plain', ...brisk], { METRICS_PORT: '' });
    for (const path of ['/metrics', '/live', '/ready']) {
      const asked = fetch_all(proxy, { path });
      const task = await worker.next();
      assert.equal(task.url, path);
      await worker.client.rPush(task.task_list, ['1', 'EOF']);
      assert.equal((await asked).body, '1\n');
    }
    assert.doesNotMatch(proxy.stdout(), / metrics /);
  });

  test('e com ela também', async () => {
    const { proxy, worker } = await set_scene();
    const asked = fetch_all(proxy, { path: '/metrics' });
    const task = await worker.next();
    assert.equal(task.url, '/metrics');
    await worker.client.rPush(task.task_list, 'EOF');
    assert.equal((await asked).body, '');
  });

  for (const processes of ['1', '2']) {
    test(`tomada por outro, o programa diz e sai com 1 (WORKERS ${processes})`, async () => {
      const taken = net.createServer().listen(0, '127.0.0.1');
      on_stop(async () => taken.close());
      await new Promise((resolve) => taken.once('listening', resolve));
      const { port } = taken.address() as net.AddressInfo;
      const args = ['-p', '0', '-R', redis.server, '-w', processes];
      const program = await run_proxy([...args, '--metrics-port', String(port)]);
      assert.equal(await exit_of(program), 1);
      const reason = 'a porta já está em uso; escolha outra em METRICS_PORT (--metrics-port)';
      const line = ` fatal host=127.0.0.1 port=${port} reason="${reason}"\n`;
      assert.ok(program.stderr().endsWith(line), program.stderr());
      assert.equal(program.stderr().split('\n').length, 2);
    });
  }
});

describe('pronto ou não', { concurrency: 3 }, () => {
  test('com o Redis fora, não; de volta, sim, e a reconexão conta', async () => {
    const own = await start_redis();
    const { proxy } = await set_scene([], own);
    const up = await read_metrics(proxy);
    const state = (values: series) => [
      values.get('redis_connected'),
      values.get('redis_reconnections_total'),
    ];
    assert.deepEqual(state(up), [1, 0]);
    assert.equal(up.get('wakeup_mode{mode="tracking"}'), 1);
    assert.equal(await status_of(proxy, '/ready'), 200);
    await own.stop();
    await proxy.wait_for(/ redis_down /);
    assert.equal(await status_of(proxy, '/ready'), 503);
    assert.equal(await status_of(proxy, '/live'), 200);
    assert.deepEqual(state(await read_metrics(proxy)), [0, 0]);
    await start_redis([], own);
    await proxy.wait_for(/ redis_up /);
    await status_becomes(proxy, '/ready', 200);
    assert.deepEqual(state(await read_metrics(proxy)), [1, 1]);
  });

  test('com o Redis só de leitura, não: nenhuma tarefa seria guardada', async () => {
    const own = await start_redis();
    const { proxy, worker } = await set_scene([], own);
    assert.equal(await status_of(proxy, '/ready'), 200);
    await worker.client.sendCommand(['REPLICAOF', '127.0.0.1', '1']);
    assert.equal((await fetch_all(proxy)).status, 503);
    assert.equal(await status_of(proxy, '/ready'), 503);
    await worker.client.sendCommand(['REPLICAOF', 'NO', 'ONE']);
    await status_becomes(proxy, '/ready', 200);
  });

  test('com o Redis congelado, não; as outras páginas não esperam por ele', async () => {
    const own = await start_redis();
    const { proxy } = await set_scene([], own);
    await freeze_redis(own);
    const ready = status_of(proxy, '/ready');
    assert.equal(await status_of(proxy, '/live'), 200);
    await read_metrics(proxy);
    assert.equal(await ready, 503);
    own.process.kill('SIGCONT');
    await status_becomes(proxy, '/ready', 200);
  });

  test('durante a parada, não; a porta fecha com o processo', async () => {
    const { proxy, worker } = await set_scene(long_grace);
    const { stream, task } = await begin(proxy, worker, ['1']);
    const stopped = proxy.stop();
    await proxy.wait_for(/ stop signal=SIGTERM /);
    assert.equal(await status_of(proxy, '/ready'), 503);
    assert.equal(await status_of(proxy, '/live'), 200);
    assert.equal((await read_metrics(proxy)).get('streams'), 1);
    await worker.client.rPush(task.task_list, 'EOF');
    assert.deepEqual(await stream.rest(), []);
    assert.equal(await stopped, 0);
    await assert.rejects(fetch_all(proxy.metrics, { path: '/live' }), { code: 'ECONNREFUSED' });
  });

  test('uma conexão ociosa na porta não segura a parada', async () => {
    const { proxy } = await set_scene();
    const socket = await open_socket(proxy.metrics.port);
    socket.send('GET /live HTTP/1.1\r\nHost: x\r\n\r\n');
    await socket.wait_for(/live\n/);
    assert.equal(await proxy.stop(), 0);
    await socket.closed();
  });

  test('o modo em vigor vale 1, o outro 0', async () => {
    const { proxy } = await set_scene(['--wakeup', 'off']);
    const values = await read_metrics(proxy);
    assert.equal(values.get('wakeup_mode{mode="polling"}'), 1);
    assert.equal(values.get('wakeup_mode{mode="tracking"}'), 0);
  });
});

describe('vários processos', { concurrency: 3 }, () => {
  test('as contas de cada um, assinadas, somam o que aconteceu', async () => {
    const { proxy, worker } = await set_scene(['-w', '2']);
    await process_of(proxy, 2);
    for (let n = 0; n < 4; n += 1) await serve_one(proxy, worker);
    const values = await metrics_when(
      proxy,
      (now) => total(now, 'stream_endings_total')[0] === 4, // o que se conta por último
    );
    assert.deepEqual(total(values, 'tasks_total'), [4, 2]);
    assert.deepEqual(total(values, 'sent_lines_total'), [4, 2]);
    assert.equal(total(values, 'stream_endings_total')[0], 4);
    for (const slot of [1, 2]) {
      assert.equal(values.get(`tasks_total{worker="${slot}"}`), 2, 'repartidas por igual');
      assert.equal(values.get(`redis_connected{worker="${slot}"}`), 1);
    }
    assert.equal(total(values, 'process_start_time_seconds')[1], 3, 'e o supervisor');
    assert.equal(values.get('process_deaths_total{worker="0"}'), 0);
    assert.equal(values.has('streams{worker="0"}'), false, 'que não atende ninguém');
  });

  test('um que morre é contado, e o substituto recomeça do zero', async () => {
    const { proxy, worker } = await set_scene(['-w', '2']);
    const pid = await process_of(proxy, 2);
    for (let n = 0; n < 2; n += 1) await serve_one(proxy, worker);
    process.kill(pid, 'SIGKILL');
    await proxy.wait_for(/ process_died worker=2 /);
    await until(
      'substituto',
      () => proxy.stdout().match(/ process_ready worker=2 /g)?.length === 2,
    );
    const values = await metrics_when(proxy, (now) => total(now, 'tasks_total')[1] === 2);
    assert.equal(values.get('process_deaths_total{worker="0"}'), 1);
    assert.equal(values.get('tasks_total{worker="1"}'), 1);
    assert.equal(values.get('tasks_total{worker="2"}'), 0);
    await status_becomes(proxy, '/ready', 200);
  });

  test('um que trava fica de fora, e não se está pronto', async () => {
    const { proxy } = await set_scene(['-w', '2']);
    const pid = await process_of(proxy, 2);
    await metrics_when(proxy, (now) => total(now, 'tasks_total')[1] === 2);
    await status_becomes(proxy, '/ready', 200);
    process.kill(pid, 'SIGSTOP');
    await status_becomes(proxy, '/ready', 503);
    assert.equal(await status_of(proxy, '/live'), 200);
    assert.deepEqual(total(await read_metrics(proxy), 'tasks_total'), [0, 1]);
    process.kill(pid, 'SIGCONT');
    await status_becomes(proxy, '/ready', 200);
    assert.equal(total(await read_metrics(proxy), 'tasks_total')[1], 2);
  });

  test('com o Redis fora não se está pronto', async () => {
    const own = await start_redis();
    const { proxy } = await set_scene(['-w', '2'], own);
    await status_becomes(proxy, '/ready', 200);
    await own.stop();
    await status_becomes(proxy, '/ready', 503);
    assert.equal(await status_of(proxy, '/live'), 200);
  });

  test('durante a parada não se está pronto, e só o supervisor responde', async () => {
    const { proxy, worker } = await set_scene(['-w', '2', ...long_grace]);
    await process_of(proxy, 2);
    const { stream, task } = await begin(proxy, worker, ['1']);
    const stopped = proxy.stop();
    await proxy.wait_for(/ stop signal=SIGTERM grace=\d+\n/);
    assert.equal(await status_of(proxy, '/ready'), 503);
    assert.equal(await status_of(proxy, '/live'), 200);
    assert.deepEqual(total(await read_metrics(proxy), 'info'), [1, 1], 'só a do supervisor');
    await worker.client.rPush(task.task_list, 'EOF');
    assert.deepEqual(await stream.rest(), []);
    assert.equal(await stopped, 0);
    assert.equal(proxy.stderr(), '');
  });
});

describe('o painel do Grafana', () => {
  const panels = read_dashboard();

  test('só usa métricas e rótulos que existem, e usa todas as métricas', () => {
    const used = new Set<string>();
    for (const { title, targets } of panels) {
      assert.ok(targets.length > 0, title);
      for (const { expr, legend } of targets) {
        const named = [...expr.matchAll(/json_proxy_\w+/g)].map(([name]) => metric_of(name));
        assert.ok(named.length > 0, expr);
        for (const { name } of named) used.add(name);
        const [of_scrape, le] = [['job', 'instance', 'worker'], 'le'];
        const known = [...of_scrape, le, ...named.flatMap(labels_of)];
        const grouped = [...expr.matchAll(/ by \(([^)]*)\)/g)].map(([, list = '']) => list);
        const shown = [...legend.matchAll(/\{\{(\w+)\}\}/g)].map(([, label]) => label);
        const chosen = [...expr.matchAll(/(\w+)=~?"/g)].map(([, label]) => label);
        for (const label of [...grouped.flatMap((list) => list.split(', ')), ...shown, ...chosen]) {
          assert.ok(known.includes(label ?? ''), `${title}: ${label}`);
        }
      }
    }
    assert.deepEqual([...used].sort(), metrics_table.map(({ name }) => name).sort());
  });

  test('cada quadro tem um número só seu', () => {
    assert.equal(new Set(panels.map(({ id }) => id)).size, panels.length);
  });
});
