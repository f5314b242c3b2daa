/*
 * As falhas que só a rede produz: pacotes que se perdem sem que ninguém feche nada. Cada teste tem
 * o seu namespace, o seu Redis e o seu proxy. Onde não se podem criar namespaces, são pulados.
 */

import assert from 'node:assert/strict';
import { describe } from 'node:test';
import { probe_env, take_probe } from '../../scripts/dev/probe';
import {
  begin,
  brisk,
  clog_reader,
  delay,
  end_of,
  fetch_all,
  type http_reply,
  open_socket,
  open_stream,
  type proxy,
  type redis_client,
  see_tombstone,
  type task_names,
  test,
  until,
} from '../harness';
import { raw_request } from '../http_helpers';
import {
  type link,
  type network_scene,
  start_network_scene,
  why_no_network,
} from './network_helpers';

/** Um cliente de quem se conhece cada byte e a porta. */
type raw_client = Awaited<ReturnType<typeof open_socket>>;

/** Bem maior que a duração de um teste: nenhum fluxo acaba por si. */
const forever = ['-t', '120000'];

/** Uma conexão muda é trocada em 15 s; o resto é folga. */
const swap_limit_ms = 75_000;

/** O prometido para notar um cliente que sumiu é 60 s; uma conexão ociosa comum dura 76 s. */
const vanish_limit_ms = 70_000;

/** Prazo para notar um cliente que não confirma o que recebe: MAXTIME, aqui de 10 s, e folga. */
const unread_limit_ms = 75_000;

/** Uma recusa vem em 2 s, antes de a conexão calada ser largada, e se confere a ordem; folga. */
const refusal_limit_ms = 60_000;

/** Quanto dura a queda do caminho até o Redis. */
const outage_ms = 20_000;

/** Prazo para tudo voltar depois dela: o TCP espera cada vez mais antes de tentar de novo. */
const recovery_limit_ms = 60_000;

/** Muito mais que o tempo em que uma resposta do Redis dispensa o PING antes de uma tarefa. */
const stale_answer_ms = 100;

/** Prazo de uma resposta inteira numa rede que perde um pacote em cada cinco. */
const lossy_limit_ms = 100_000;

/** Um teste que passa disto não vai terminar. */
const limits = { timeout: 150_000 };

/** O que cada cliente já tinha feito quando sumiu: o que enviou e o que esperou chegar. */
const vanishing: Record<string, { text: string; seen: RegExp }> = {
  'no meio de um fluxo': { text: raw_request('GET /fluxo'), seen: /200 OK/ },
  'ocioso depois de um pedido': { text: raw_request('GET /ping'), seen: /pong/ },
  'no meio do corpo': {
    text: raw_request('POST /corpo', ['Content-Length: 1000']).concat('metade'),
    seen: /^/,
  },
  'no meio dos cabeçalhos': { text: 'GET /cabecalhos HTTP/1.1\r\nHost: ', seen: /^/ },
  'sem dizer nada': { text: '', seen: /^/ },
};

/**
 * Conta os sockets TCP que o proxy mantém.
 * @param proxy um proxy que se pode sondar
 * @returns o total, com a conexão do Redis
 */
async function sockets_of(proxy: proxy): Promise<number> {
  return (await take_probe(proxy)).resources.TCPSocketWrap ?? 0;
}

/**
 * Espera que o proxy mantenha só tantos sockets.
 * @param proxy um proxy que se pode sondar
 * @param count quantos
 * @param ms prazo
 */
async function wait_sockets(proxy: proxy, count: number, ms?: number): Promise<void> {
  const is_down = async () => {
    await delay(500); // cada sonda para o processo para recolher o lixo
    return (await sockets_of(proxy)) === count;
  };
  await until(`${count} sockets`, is_down, ms);
}

/**
 * Dá a porta do lado do proxy na conexão dele com o Redis.
 * @param db cliente do Redis
 * @param link a ligação
 * @returns a porta
 */
async function redis_flow(db: redis_client, link: link): Promise<number> {
  const clients = String(await db.sendCommand(['CLIENT', 'LIST']));
  const ports = [...clients.matchAll(/ addr=([\d.]+):(\d+) /g)]
    .filter(([, address]) => address === link.far)
    .map(([, , port]) => Number(port));
  assert.equal(ports.length, 1, clients);
  return ports[0] as number;
}

/**
 * Abre uma conexão crua com o proxy.
 * @param proxy o proxy
 * @param text o que enviar logo ao abrir
 * @returns a conexão
 */
async function connect_client(proxy: proxy, text: string): Promise<raw_client> {
  const client = await open_socket(proxy.port, proxy.host);
  if (text !== '') client.send(text);
  return client;
}

/**
 * Some com um cliente: nada mais do que ele ou o proxy enviem um ao outro chega.
 * @param link a ligação
 * @param client a conexão dele
 */
function vanish(link: link, client: raw_client): void {
  const { localPort: port } = client.socket;
  assert.ok(port, 'o proxy já tinha fechado a conexão');
  link.lose(port);
}

/**
 * Espera o fim de um fluxo.
 * @param proxy o proxy
 * @param task a tarefa
 * @param ms prazo
 * @returns o fim e o número de linhas, como estão no log
 */
async function outcome_of(proxy: proxy, task: task_names, ms?: number) {
  await proxy.wait_for(new RegExp(` end task=${task.uuid} .*\\n`), ms);
  const { ending, lines } = await end_of(proxy, task);
  return [ending, lines];
}

/**
 * Confere que a rede perdeu pacotes e que o proxy ainda atende e para sem queixas.
 * @param scene o proxy e a ligação
 * @param inward_losses quantos pacotes devem ter-se perdido a caminho do proxy, no mínimo
 */
async function check_sound({ link, proxy }: network_scene, inward_losses = 0): Promise<void> {
  const { outward, inward } = link.lost();
  assert.ok(outward > 0 && inward >= inward_losses, `perdidos: ${outward} e ${inward}`);
  assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
  assert.equal(await proxy.stop(), 0);
  assert.doesNotMatch(proxy.stderr(), /\bat \S+ \(|stream_error|request_error|fatal|Warning/);
}

/**
 * Confere que um pedido novo é atendido do começo ao fim.
 * @param scene o proxy e o worker
 */
async function check_new_request({ proxy, worker, db }: network_scene): Promise<void> {
  const { stream, task } = await begin(proxy, worker, ['nova']);
  await db.del(task.task_key);
  assert.deepEqual(await stream.rest(), []);
  assert.deepEqual(await outcome_of(proxy, task), ['done', '1']);
}

/**
 * A conexão do proxy com o Redis se cala, e só ela: outra é possível.
 * @param args argumentos a mais para o proxy
 */
async function silence_redis(args: string[]): Promise<void> {
  const scene = await start_network_scene([...brisk, ...forever, ...args], await probe_env());
  const { link, proxy, worker, db } = scene;
  const at_rest = await sockets_of(proxy);
  const begun = [];
  for (let n = 0; n < 5; n += 1) begun.push(await begin(proxy, worker, [`antes ${n}`]));
  link.lose(await redis_flow(db, link));
  const pushed = ['durante 1', 'durante 2', 'durante 3'];
  for (const { task } of begun) await db.rPush(task.task_list, pushed);
  for (const { stream, task } of begun) {
    for (const line of pushed) assert.equal(await stream.next(swap_limit_ms), line);
    await db.rPush(task.task_list, ['depois', 'EOF']);
    assert.deepEqual(await stream.rest(), ['depois']);
    assert.deepEqual(await outcome_of(proxy, task), ['done', '5']);
  }
  assert.equal(proxy.stderr().match(/ redis_down /g)?.length, 1);
  assert.equal(proxy.stdout().match(/ redis_up /g)?.length, 1);
  await check_new_request(scene);
  assert.deepEqual(await db.keys('*'), []);
  await wait_sockets(proxy, at_rest);
  await check_sound(scene);
}

/**
 * O caminho inteiro até o Redis perde tudo, por um tempo.
 * @param scene o proxy, o Redis e a ligação
 */
async function cut_path({ link, redis, proxy, worker }: network_scene): Promise<void> {
  link.lose(redis.port);
  const { length: logged } = proxy.stderr();
  await delay(stale_answer_ms);
  const restored = delay(outage_ms).then(link.mend); // a queda dura isto; nada espera por ela
  const refused: Record<string, http_reply> = {};
  for (const path of ['/', '/ping']) {
    void fetch_all(proxy, { path }).then((reply) => {
      refused[path] = reply;
    });
  }
  const reply = await until('recusa', () => refused['/'], refusal_limit_ms);
  const ping = await until('recusa do /ping', () => refused['/ping'], refusal_limit_ms);
  assert.doesNotMatch(proxy.stderr().slice(logged), / redis_down /, 'largada antes da recusa');
  assert.deepEqual([reply.status, reply.body], [504, '{"error": "redis does not answer"}\n']);
  assert.equal(ping.status, 500);
  await restored;
  const is_back = async () => (await fetch_all(proxy, { path: '/ping' })).status === 200;
  await until('volta do Redis', is_back, recovery_limit_ms);
  assert.deepEqual(worker.pending, []);
}

/**
 * Clientes somem no meio de tudo o que podem estar fazendo, menos um, que só está calado.
 * @param closes se eles ainda fecham a conexão, sem que ninguém o saiba
 */
async function vanish_all(closes: boolean): Promise<void> {
  const scene = await start_network_scene([...brisk, ...forever], await probe_env());
  const { link, proxy, worker, db } = scene;
  const at_rest = await sockets_of(proxy);
  const alive = await begin(proxy, worker, ['1']);
  const clients: raw_client[] = [];
  for (const { text, seen } of Object.values(vanishing)) {
    const client = await connect_client(proxy, text);
    await client.wait_for(seen);
    clients.push(client);
  }
  const task = await worker.next();
  await until('todos na conta', async () => {
    return (await sockets_of(proxy)) === at_rest + clients.length + 1;
  });
  await until('tudo confirmado', () => link.unconfirmed_bytes() === 0);
  for (const client of clients) {
    vanish(link, client);
    if (closes) client.destroy();
  }
  assert.deepEqual(await outcome_of(proxy, task, vanish_limit_ms), ['client_gone', '0']);
  await see_tombstone(db, task);
  await wait_sockets(proxy, at_rest + 1, vanish_limit_ms);
  await db.rPush(alive.task.task_list, ['2', 'EOF']);
  assert.deepEqual(await alive.stream.rest(), ['2']);
  await check_new_request(scene);
  await wait_sockets(proxy, at_rest);
  await check_sound(scene, closes ? clients.length : 0);
}

/** Os testes; cada um é independente dos outros. */
const tests: Record<string, () => Promise<void>> = {
  'só a conexão com o Redis se cala: os fluxos seguem noutra': () => silence_redis([]),

  'só ela se cala, com WAKEUP off: o mesmo': () => silence_redis(['--wakeup', 'off']),

  '20 s sem caminho até o Redis: pedidos recusados, fluxos de MAXTIME longo seguem': async () => {
    const scene = await start_network_scene([...brisk, ...forever]);
    const { proxy, worker, db } = scene;
    const { stream, task } = await begin(proxy, worker, ['antes']);
    const pushed = ['durante 1', 'durante 2'];
    await Promise.all([cut_path(scene), db.rPush(task.task_list, pushed)]);
    await db.rPush(task.task_list, ['depois', 'EOF']);
    assert.deepEqual(await stream.rest(recovery_limit_ms), [...pushed, 'depois']);
    assert.deepEqual(await outcome_of(proxy, task), ['done', '4']);
    await check_new_request(scene);
    assert.deepEqual(await db.keys('*'), []);
    await check_sound(scene);
  },

  '20 s sem ele: fluxos de MAXTIME menor recebem o erro, e nada fica deles': async () => {
    const scene = await start_network_scene([...brisk, '-t', '10000']);
    const { proxy, worker, db } = scene;
    const { stream, task } = await begin(proxy, worker, ['antes']);
    const [lines] = await Promise.all([stream.rest(recovery_limit_ms), cut_path(scene)]);
    assert.deepEqual(lines, ['{"error": "redis lost"}']);
    assert.deepEqual(await outcome_of(proxy, task), ['redis_lost', '1']);
    await see_tombstone(db, task);
    await check_new_request(scene);
    await check_sound(scene);
  },

  'clientes somem sem fechar: nada fica deles; quem só está calado continua': () =>
    vanish_all(false),

  'clientes fecham, mas o FIN se perde: o mesmo': () => vanish_all(true),

  'cliente some com o socket cheio: notado em MAXTIME': async () => {
    const scene = await start_network_scene([...brisk, '-t', '10000']);
    const { link, proxy, worker, db } = scene;
    const client = await connect_client(proxy, raw_request('GET /'));
    const task = await worker.next();
    client.socket.pause();
    await clog_reader(db, task, proxy);
    vanish(link, client);
    assert.equal((await outcome_of(proxy, task, unread_limit_ms))[0], 'client_gone');
    await see_tombstone(db, task);
    await check_sound(scene);
  },

  'uma rede lenta que perde pacotes não perde nem repete linhas': async () => {
    const scene = await start_network_scene([...brisk, ...forever]);
    const { link, redis, proxy, worker, db } = scene;
    link.slow_down();
    link.lose(proxy.port, 0.2);
    link.lose(redis.port, 0.05);
    const lines = Array.from({ length: 200 }, (_, n) => `linha ${n} ${'x'.repeat(100)}`);
    const body = 'y'.repeat(20_000);
    const serve = async () => {
      const stream = open_stream(proxy, { body });
      const task = await worker.next(lossy_limit_ms);
      assert.equal(task.body, body);
      for (const line of lines) await db.rPush(task.task_list, line);
      await db.del(task.task_key);
      assert.deepEqual(await outcome_of(proxy, task, lossy_limit_ms), ['done', '200']);
      assert.deepEqual(await stream.rest(lossy_limit_ms), lines);
    };
    await Promise.all([1, 2, 3, 4, 5].map(serve));
    assert.deepEqual(await db.keys('*'), []);
    link.mend();
    await check_sound(scene);
  },
};

describe('a rede', { concurrency: true, skip: why_no_network() }, () => {
  for (const [title, run] of Object.entries(tests)) test(title, limits, run);
});
