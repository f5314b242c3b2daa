import assert from 'node:assert/strict';
import net from 'node:net';
import { after, before, beforeEach as before_each, describe } from 'node:test';
import {
  fetch_all,
  freeze_redis,
  type local_redis,
  type proxy,
  start_proxy,
  start_redis,
  test,
  until,
} from './harness';
import {
  assert_error,
  assert_identity,
  open_talk,
  raw_request,
  start_desk,
  type task_desk,
} from './http_helpers';

const max_body = 1000;

const too_large = `request body larger than ${max_body} bytes`;

const malformed = 'malformed request';

/** Tamanho de um envio que não cabe nos buffers da conexão. */
const huge_bytes = 5_000_000;

/** O que os balanceadores usam; nós precisamos durar mais. */
const usual_balancer_s = 75;

const proxy_args = ['-i', '20', '-P', '0', '--grace', '1000', '--maxbody', String(max_body)];

let redis: local_redis;
let main_proxy: proxy;
let desk: task_desk;
let created_before: string[];

/**
 * Confere que nenhuma tarefa foi criada desde o começo do teste, e que o Redis está vazio.
 */
async function assert_nothing_created(): Promise<void> {
  assert.deepEqual(await desk.created(), created_before);
  assert.deepEqual(await desk.client.keys('*'), []);
}

/**
 * Manda um texto que o proxy deve recusar e confere a resposta, que é a única, e o fechamento.
 * @param text o que é enviado
 * @param status status esperado
 * @param messages textos que o campo "error" pode ter
 */
async function assert_last_reply(text: string | Buffer, status: number, ...messages: string[]) {
  const talk = await open_talk(main_proxy, text);
  const reply = await talk.reply();
  const message = messages.find((text) => reply.body.includes(text)) ?? messages[0] ?? '';
  assert_error(reply, status, message);
  assert.equal(reply.headers.connection, 'close');
  await talk.closed();
  assert.equal(talk.leftover(), '');
}

/**
 * Manda um texto que o proxy deve recusar e confere a resposta, o fechamento e o Redis.
 * @param text o que é enviado
 * @param status status esperado
 * @param message texto esperado do campo "error"
 */
async function assert_refused(text: string | Buffer, status: number, message: string) {
  await assert_last_reply(text, status, message);
  await assert_nothing_created();
}

/**
 * Escreve um corpo em pedaços (chunked).
 * @param sizes tamanho de cada pedaço
 * @returns o corpo como vai no socket
 */
function chunked(...sizes: number[]): string {
  return [...sizes, 0].map((size) => `${size.toString(16)}\r\n${'x'.repeat(size)}\r\n`).join('');
}

before(async () => {
  redis = await start_redis();
  main_proxy = await start_proxy(redis, proxy_args);
  desk = await start_desk(redis, main_proxy);
});

after(async () => {
  assert.equal(await main_proxy.stop(), 0);
  assert.match(main_proxy.stdout(), / stop signal=SIGTERM streams=0 /, 'um pedido ficou preso');
  assert.doesNotMatch(main_proxy.stderr(), / (request_error|stream_error|fatal) /);
});

before_each(async () => {
  await desk.client.flushDb(); // o que um teste que falhou deixou não atrapalha os outros
  created_before = await desk.created();
});

describe('Expect', () => {
  const invited = ['Expect: 100-continue'];

  test('100-continue: o convite vem antes do corpo, a tarefa só depois dele', async () => {
    const head = raw_request('POST /convite', [...invited, 'Content-Length: 2']);
    const talk = await open_talk(main_proxy, head);
    const invitation = await talk.reply();
    assert.equal(invitation.status, 100);
    await assert_nothing_created();
    talk.send('oi');
    const task = await desk.task('/convite');
    assert.equal(task.body, 'oi');
    await desk.finish(task, ['{"n":1}']);
    const reply = await talk.reply();
    assert.equal(reply.status, 200);
    assert.equal(reply.body, '{"n":1}\n');
  });

  test('100-continue com corpo grande demais: 413 sem convite', async () => {
    const headers = [...invited, `Content-Length: ${max_body + 1}`];
    await assert_refused(raw_request('POST /g', headers), 413, too_large);
  });

  test('outra expectativa recebe 417', async () => {
    const message = 'only "Expect: 100-continue" is supported';
    await assert_refused(raw_request('GET /a', ['Expect: milagre']), 417, message);
    await assert_refused(raw_request('POST /a', ['Expect: 200-ok'], 'oi'), 417, message);
  });

  test('um cliente HTTP/1.0 nunca recebe 100', async () => {
    const talk = await open_talk(main_proxy, raw_request('POST /c10 HTTP/1.0', invited, 'oi'));
    const task = await desk.task('/c10');
    assert.equal(task.body, 'oi');
    await desk.finish(task, ['{"n":1}']);
    await talk.closed();
    assert.match(talk.text(), /^HTTP\/1\.1 200 /);
  });
});

describe('HTTP/1.0', () => {
  const wishes = [[], ['Connection: keep-alive'], ['Connection: TE', 'TE: chunked']];
  for (const headers of wishes) {
    test(`fluxo sem chunked, que acaba quando a conexão fecha [${headers}]`, async () => {
      const talk = await open_talk(main_proxy, raw_request('POST /f10 HTTP/1.0', headers, 'oi'));
      const task = await desk.task('/f10');
      assert.equal(task.headers.Host, undefined);
      await desk.finish(task, ['{"n":1}', '{"n":"dois"}']);
      await talk.closed();
      const reply = await talk.reply();
      assert.equal(reply.status, 200);
      assert_identity(reply);
      assert.equal(reply.headers['x-task-uuid'], task.uuid);
      assert.equal(reply.headers['transfer-encoding'], undefined);
      assert.equal(reply.headers['content-length'], undefined);
      assert.equal(reply.headers.connection, 'close');
      assert.equal(reply.body, '{"n":1}\n{"n":"dois"}\n');
    });
  }

  test('o que vier depois do pedido não contamina as linhas', async () => {
    const extra = 'lixo\r\n\r\n';
    const talk = await open_talk(main_proxy, raw_request('GET /lixo10 HTTP/1.0') + extra);
    await desk.finish(await desk.task('/lixo10'), ['{"n":1}']);
    await talk.closed();
    assert.equal((await talk.reply()).body, '{"n":1}\n');
  });

  test('/ping', async () => {
    const talk = await open_talk(main_proxy, raw_request('GET /ping HTTP/1.0'));
    assert.equal((await talk.reply()).body, 'pong');
    await talk.closed();
    assert.equal(talk.leftover(), '');
  });
});

describe('a conexão', () => {
  test('keep-alive: dois fluxos na mesma conexão, e o prazo anunciado', async () => {
    const talk = await open_talk(main_proxy);
    for (const path of ['/primeiro', '/segundo']) {
      talk.send(raw_request(`POST ${path}`, [], path));
      const task = await desk.task(path);
      await desk.finish(task, [`"${path}"`]);
      const reply = await talk.reply();
      assert.equal(reply.body, `"${path}"\n`);
      assert.equal(reply.headers['transfer-encoding'], 'chunked');
      assert.equal(reply.headers.connection, 'keep-alive');
      const [, seconds] = /^timeout=(\d+)$/.exec(reply.headers['keep-alive'] ?? '') ?? [];
      assert.ok(Number(seconds) > usual_balancer_s, `Keep-Alive ${reply.headers['keep-alive']}`);
    }
  });

  test('Connection: close é respeitado, e nada depois dele é atendido', async () => {
    const first = raw_request('GET /ultimo', ['Connection: close']);
    const talk = await open_talk(main_proxy, first + raw_request('GET /depois'));
    await desk.finish(await desk.task('/ultimo'), ['{"n":1}']);
    const reply = await talk.reply();
    assert.equal(reply.headers.connection, 'close');
    assert.equal(reply.body, '{"n":1}\n');
    await talk.closed();
    assert.equal((await desk.created()).length, created_before.length + 1);
    assert.doesNotMatch(talk.leftover(), / 200 /);
  });

  test('Upgrade é ignorado: o pedido é uma tarefa, em HTTP, e a conexão fecha depois', async () => {
    const websocket = ['Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Key: eA=='];
    const http2 = ['Connection: Upgrade, HTTP2-Settings', 'Upgrade: h2c', 'HTTP2-Settings: AAM'];
    for (const [index, headers] of [websocket, http2].entries()) {
      for (const body of ['', 'oi']) {
        const path = `/upgrade/${index}/${body}`;
        const talk = await open_talk(main_proxy, raw_request(`POST ${path}`, headers, body));
        const task = await desk.task(path);
        assert.equal(task.body, body);
        assert.equal(task.headers.Upgrade, headers[1]?.slice('Upgrade: '.length));
        await desk.finish(task, ['{"n":1}']);
        const reply = await talk.reply();
        assert.equal(reply.status, 200);
        assert.equal(reply.headers.connection, 'close');
        assert.equal(reply.body, '{"n":1}\n');
        await talk.closed();
      }
    }
  });

  test('CONNECT recebe 501', async () => {
    const request = raw_request('CONNECT outro.test:443');
    await assert_refused(request, 501, 'CONNECT is not supported');
    await main_proxy.wait_for(/ refused status=501 /);
  });

  test('CONNECT de quem some, mesmo atrás de um fluxo, não derruba o programa', async () => {
    const own_proxy = await start_proxy(redis, proxy_args);
    const connect = raw_request('CONNECT outro.test:443');
    const alone = await open_talk(own_proxy, connect);
    await alone.reply();
    alone.socket.resetAndDestroy();
    for (const how of ['RST', 'FIN']) {
      const talk = await open_talk(own_proxy, raw_request(`GET /tunel/${how}`) + connect);
      const task = await desk.task(`/tunel/${how}`);
      assert.equal((await fetch_all(own_proxy, { path: '/ping' })).body, 'pong');
      if (how === 'RST') talk.socket.resetAndDestroy();
      else talk.destroy();
      await own_proxy.wait_for(new RegExp(` end task=${task.uuid} ending=client_gone `));
      assert.equal((await fetch_all(own_proxy, { path: '/ping' })).body, 'pong');
    }
    assert.equal(await own_proxy.stop(), 0);
    assert.match(own_proxy.stdout(), / stop signal=SIGTERM streams=0 /, 'um pedido ficou preso');
  });
});

describe('pedidos enfileirados (pipelining)', () => {
  test('a segunda tarefa só nasce quando o primeiro fluxo terminou', async () => {
    const pair = raw_request('POST /um', [], 'um') + raw_request('PUT /dois', [], 'dois');
    const talk = await open_talk(main_proxy, pair);
    const first = await desk.task('/um');
    assert.equal((await desk.created()).length, created_before.length + 1);
    await desk.client.rPush(first.task_list, ['{"n":1}']);
    await talk.wait_for(/\{"n":1\}/);
    assert.equal((await desk.created()).length, created_before.length + 1);
    await desk.finish(first, ['{"n":2}']);
    const second = await desk.task('/dois');
    assert.equal(await desk.client.exists([first.task_key, first.task_list]), 0);
    assert.equal(second.method, 'PUT');
    assert.equal(second.body, 'dois');
    await desk.finish(second, ['{"n":3}']);
    const replies = [await talk.reply(), await talk.reply()];
    assert.deepEqual(
      replies.map(({ headers, body }) => [headers['x-task-uuid'], body]),
      [
        [first.uuid, '{"n":1}\n{"n":2}\n'],
        [second.uuid, '{"n":3}\n'],
      ],
    );
    assert.equal(talk.leftover(), '');
    assert.deepEqual(await desk.client.keys('*'), []);
  });

  test('respostas imediatas também esperam a vez', async () => {
    const queue = ['GET /fila', 'GET /ping', 'HEAD /x', 'OPTIONS /x', 'GET /ping?2'];
    const talk = await open_talk(main_proxy, queue.map((line) => raw_request(line)).join(''));
    const task = await desk.task('/fila');
    await desk.client.rPush(task.task_list, ['{"n":1}']);
    await talk.wait_for(/\{"n":1\}/);
    assert.equal((await desk.created()).length, created_before.length + 1);
    await desk.finish(task, ['{"n":2}']);
    assert.equal((await talk.reply()).body, '{"n":1}\n{"n":2}\n');
    assert.equal((await talk.reply()).body, 'pong');
    assert.equal((await talk.reply(false)).headers['content-type'], 'application/x-ndjson');
    assert.equal((await talk.reply()).status, 204);
    assert.equal((await talk.reply()).body, 'pong');
  });

  for (const how of ['FIN', 'RST']) {
    test(`o cliente sai (${how}) no primeiro: os outros dois nunca viram tarefa`, async () => {
      const paths = ['/a', '/b', '/c'].map((path) => `/sai-${how}${path}`);
      const bodies = paths.map((path) => raw_request(`POST ${path}`, [], 'oi'));
      const talk = await open_talk(main_proxy, bodies.join(''));
      const task = await desk.task(paths[0] ?? '');
      if (how === 'FIN') talk.destroy();
      else talk.socket.resetAndDestroy();
      await main_proxy.wait_for(new RegExp(` end task=${task.uuid} ending=client_gone `));
      assert.deepEqual(await desk.created(), [...created_before, task.task_key]);
      assert.deepEqual(await desk.client.keys('*'), [task.task_list]);
      assert.ok((await desk.client.ttl(task.task_list)) > 0);
    });
  }

  test('64 pedidos podem esperar; com mais um a conexão cai, e nada mais vira tarefa', async () => {
    const own_proxy = await start_proxy(redis, ['-C', 'jobs_cheia', '-P', '0']);
    const own_desk = await start_desk(redis, own_proxy, 'jobs_cheia');
    const rest = raw_request('GET /ping').repeat(63);
    const full = await open_talk(own_proxy, raw_request('GET /cheia') + rest);
    await own_desk.finish(await own_desk.task('/cheia'), ['{"n":1}']);
    assert.equal((await full.reply()).body, '{"n":1}\n');
    for (let n = 0; n < 63; n += 1) assert.equal((await full.reply()).body, 'pong');
    const created = await own_desk.created();
    const more = await open_talk(own_proxy, raw_request('GET /demais') + rest);
    const task = await own_desk.task('/demais');
    more.send(raw_request('GET /tarefa'));
    await more.closed();
    await own_proxy.wait_for(/ pipeline_cut address=127\.0\.0\.1 waiting=64\n/);
    await own_proxy.wait_for(new RegExp(` end task=${task.uuid} ending=client_gone `));
    assert.deepEqual(await own_desk.created(), [...created, task.task_key]);
    assert.equal(await own_proxy.stop(), 0);
    assert.match(own_proxy.stdout(), / stop signal=SIGTERM streams=0 /, 'um pedido ficou preso');
  });

  const broken: [string, string, number, string][] = [
    ['lixo', 'isto não é HTTP\r\n\r\n', 400, malformed],
    ['um pedido sem Host', 'GET / HTTP/1.1\r\n\r\n', 400, 'missing Host header'],
    ['cabeçalhos enormes', raw_request('GET /', [`X: ${'x'.repeat(20_000)}`]), 431, 'large'],
    ['um corpo grande demais', raw_request('PUT /', [], 'x'.repeat(max_body + 1)), 413, too_large],
    ['CONNECT', raw_request('CONNECT a:1'), 501, 'CONNECT is not supported'],
  ];
  for (const [title, text, status, message] of broken) {
    test(`${title} atrás de um fluxo: ele termina intacto, e então vem o ${status}`, async () => {
      const path = `/intacto/${status}/${encodeURIComponent(title)}`;
      const talk = await open_talk(main_proxy, raw_request(`GET ${path}`) + text);
      const task = await desk.task(path);
      await desk.client.rPush(task.task_list, ['{"n":1}']);
      await talk.wait_for(/\{"n":1\}/);
      await desk.finish(task, ['{"n":2}', '{"n":3}']);
      assert.equal((await talk.reply()).body, '{"n":1}\n{"n":2}\n{"n":3}\n');
      const refused = await talk.reply();
      assert_error(refused, status, status === 431 ? 'request headers too large' : message);
      if (status !== 413) await talk.closed();
      assert.deepEqual(await desk.created(), [...created_before, task.task_key]);
    });
  }
});

describe('MAXBODY', () => {
  const in_chunks = ['Transfer-Encoding: chunked'];

  test('um corpo do tamanho exato é aceito, com e sem Content-Length', async () => {
    const body = 'x'.repeat(max_body);
    const exact = [
      raw_request('POST /exato/0', [], body),
      raw_request('POST /exato/1', in_chunks) + chunked(max_body - 1, 1),
    ];
    for (const [index, text] of exact.entries()) {
      const talk = await open_talk(main_proxy, text);
      const task = await desk.task(`/exato/${index}`);
      assert.equal(task.body, body);
      await desk.finish(task);
      assert.equal((await talk.reply()).status, 200);
    }
  });

  test('um byte a mais é recusado, e a conexão de quem já mandou tudo continua', async () => {
    const over = [
      raw_request('POST /', [], 'x'.repeat(max_body + 1)),
      raw_request('POST /', in_chunks) + chunked(max_body, 1),
    ];
    for (const text of over) {
      const talk = await open_talk(main_proxy, text);
      assert_error(await talk.reply(), 413, too_large);
      await assert_nothing_created();
    }
  });

  const huge: [string, string, string][] = [
    ['por Content-Length', `Content-Length: ${huge_bytes}`, 'x'.repeat(huge_bytes)],
    ['chunked', 'Transfer-Encoding: chunked', chunked(...Array(500).fill(huge_bytes / 500))],
  ];
  for (const [title, header, body] of huge) {
    test(`5 MB ${title}, mandados de uma vez: a resposta chega, a conexão fecha`, async () => {
      await assert_refused(raw_request('POST /', [header]) + body, 413, too_large);
    });

    test(`5 MB ${title}: a resposta chega com o envio ainda no começo`, async () => {
      const sent = body.length / 10;
      const talk = await open_talk(
        main_proxy,
        raw_request('POST /', [header]) + body.slice(0, sent),
      );
      const reply = await talk.reply();
      assert_error(reply, 413, too_large);
      assert.equal(reply.headers.connection, 'close');
      talk.send(body.slice(sent));
      await talk.closed();
      assert.equal(talk.leftover(), '');
      await assert_nothing_created();
    });
  }

  test('quem para de mandar depois da recusa também perde a conexão', async () => {
    const head = raw_request('POST /', [`Content-Length: ${huge_bytes}`]);
    await assert_refused(`${head}só um pouco`, 413, too_large);
  });
});

// Ao mesmo tempo: nenhum destes pedidos cria tarefa, e alguns esperam a conexão fechar.
describe('o que o analisador do Node recusa', { concurrency: 8 }, () => {
  const host = 'Host: h\r\n';
  const wrong_version = 'only HTTP/1.0 and HTTP/1.1 are supported';
  const bad_url = 'the URL has characters that must be percent-encoded';
  const not_https = 'this port speaks HTTP, not HTTPS';
  const many = Array.from({ length: 3000 }, (_, index) => `X-${index}: v`);
  const requests: [string, string | Buffer, number?, string?][] = [
    ['linha que não é HTTP', 'isto não é HTTP\r\n\r\n'],
    ['método desconhecido', `VOAR / HTTP/1.1\r\n${host}\r\n`],
    ['sem alvo', `GET HTTP/1.1\r\n${host}\r\n`, 400, bad_url],
    ['espaço no alvo', `GET /a b HTTP/1.1\r\n${host}\r\n`],
    ['versão desconhecida', `GET / HTTP/3.0\r\n${host}\r\n`],
    ['HTTP/2 direto', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'],
    ['TLS numa porta sem TLS', Buffer.from('160301020001', 'hex'), 400, not_https],
    ['nome de cabeçalho com espaço', raw_request('GET /', ['X Y: z'])],
    ['cabeçalho sem dois-pontos', raw_request('GET /', ['cabecalho'])],
    ['NUL num valor', raw_request('GET /', ['X: a\0b'])],
    ['Content-Length que não é número', raw_request('POST /', ['Content-Length: dois'])],
    ['dois Content-Length', raw_request('POST /', ['Content-Length: 1'], 'oi')],
    ['tamanho e chunked', raw_request('POST /', ['Transfer-Encoding: chunked'], 'oi')],
    ['sem Host', 'GET / HTTP/1.1\r\nX: y\r\n\r\n', 400, 'missing Host header'],
    ['HTTP/2.0 num pedido comum', `GET / HTTP/2.0\r\n${host}\r\n`, 505, wrong_version],
    ['sem versão', `GET /\r\n${host}\r\n`, 505, wrong_version],
    ['um cabeçalho enorme', raw_request('GET /', [`X: ${'x'.repeat(20_000)}`]), 431],
    ['muitos cabeçalhos', raw_request('GET /', many), 431],
    ['um alvo enorme', raw_request(`GET /${'x'.repeat(20_000)}`), 431],
    ['5 MB de cabeçalho', raw_request('GET /', [`X: ${'x'.repeat(huge_bytes)}`]), 431],
  ];
  for (const [title, text, status = 400, message] of requests) {
    test(`${title}: ${status} em JSON, e a conexão fecha`, async () => {
      const usual = status === 431 ? 'request headers too large' : malformed;
      await assert_refused(text, status, message ?? usual);
    });
  }

  const stubborn: [string, string, number][] = [
    ['lixo', 'isto não é HTTP\r\n\r\n', 400],
    ['CONNECT', raw_request('CONNECT outro.test:443'), 501],
  ];
  for (const [title, text, status] of stubborn) {
    test(`${title} de quem não fecha o seu lado: o proxy fecha os dois`, async () => {
      const socket = net.connect({ port: main_proxy.port, allowHalfOpen: true });
      let received = '';
      let is_over = false;
      socket.setEncoding('latin1').on('data', (data) => {
        received += data;
      });
      socket.on('error', () => {});
      socket.once('close', () => {
        is_over = true;
      });
      socket.write(text);
      await until('fim do lado do proxy', () => socket.readableEnded);
      assert.match(received, new RegExp(`^HTTP/1\\.1 ${status} `));
      await until('a escrita falhar', () => {
        socket.write('x');
        return is_over;
      });
    });
  }

  const head = raw_request('POST /meio', ['Transfer-Encoding: chunked']);
  const bodies: [string, string, number, string][] = [
    ['pedaço sem tamanho', 'zz\r\nlixo', 400, malformed],
    ['pedaço mais longo que o dito', '2\r\noi e mais\r\n', 400, malformed],
    ['extensão enorme', `2;${'x'.repeat(20_000)}\r\n`, 413, 'chunk extensions too large'],
    ['rodapé enorme', `0\r\nX: ${'x'.repeat(20_000)}`, 431, 'request headers too large'],
  ];
  for (const [title, body, status, message] of bodies) {
    test(`corpo com ${title}: ${status} em JSON, e a conexão fecha`, async () => {
      await assert_refused(head + body, status, message);
    });
  }
});

// Um intermediário que lesse a fronteira de outro modo veria dois pedidos onde há um, ou o inverso.
/** Mais cabeçalhos do que o Node guarda por si. */
const crowd = Array.from({ length: 1500 }, (_, n) => `a${n}:`);

describe('contrabando: onde acaba um pedido nunca é duvidoso', { concurrency: 8 }, () => {
  const in_chunks = 'Transfer-Encoding: chunked';
  const ambiguous = ['unsupported Transfer-Encoding', 'more than one Host header'];
  let cargo = 0;

  const assert_stopped = async (headers: string[], body: string) => {
    cargo += 1;
    const path = `/contrabando/${cargo}/`; // os testes correm juntos: cada um procura só o seu
    const text = raw_request(`POST ${path}`, headers) + body + raw_request(`GET ${path}`);
    await assert_last_reply(Buffer.from(text, 'latin1'), 400, malformed, ...ambiguous);
    await desk.created();
    assert.doesNotMatch(main_proxy.stdout(), new RegExp(` task .* path=${path} `));
  };

  const framings: [string, string[]][] = [
    ['tamanho, depois chunked', ['Content-Length: 5', in_chunks]],
    ['chunked, depois tamanho', [in_chunks, 'Content-Length: 5']],
    ['dois tamanhos iguais', ['Content-Length: 5', 'Content-Length: 5']],
    ...['5, 5', '5 5', '+5', '-5', '0x5', '', '99999999999999999999'].map(
      (length): [string, string[]] => [`tamanho "${length}"`, [`Content-Length: ${length}`]],
    ),
    ...['xchunked', 'chunked ,', ', chunked', 'chunked, identity', 'identity, chunked', ''].map(
      (coding): [string, string[]] => [`codificação "${coding}"`, [`Transfer-Encoding: ${coding}`]],
    ),
    ...['gzip, chunked', 'chunked, gzip', 'chunked, chunked', 'identity', 'gzip', '"chunked"'].map(
      (coding): [string, string[]] => [`codificação ${coding}`, [`Transfer-Encoding: ${coding}`]],
    ),
    ['chunked com parâmetro', ['Transfer-Encoding: chunked;a=b']],
    ['chunked com tabulação no meio', ['Transfer-Encoding: chun\tked']],
    ['chunked depois de uma tabulação vertical', ['Transfer-Encoding: \x0bchunked']],
    ['chunked antes de um byte alto', ['Transfer-Encoding: chunked\xa0']],
    ['chunked, e identity noutra linha', [in_chunks, 'Transfer-Encoding: identity']],
    ['identity, e chunked noutra linha', ['Transfer-Encoding: identity', in_chunks]],
    ['xchunked, e chunked noutra linha', ['Transfer-Encoding: xchunked', in_chunks]],
    ['codificação vazia e tamanho', ['Transfer-Encoding:', 'Content-Length: 5']],
    ['espaço antes dos dois-pontos do tamanho', ['Content-Length : 5']],
    ['espaço antes dos dois-pontos da codificação', ['Transfer-Encoding : chunked']],
    ['tabulação antes dos dois-pontos', ['Transfer-Encoding\t: chunked']],
    ['cabeçalho recuado', [' Transfer-Encoding: chunked']],
    ['cabeçalho dobrado', ['X: a\r\n Transfer-Encoding: chunked', 'Content-Length: 5']],
    ['valor dobrado', ['Transfer-Encoding:\r\n chunked']],
    ['nome com NUL', ['Transfer-Encoding\0: chunked']],
    ['nome vazio', [': a', 'Content-Length: 5']],
    ['CR solto num valor', ['X: a\rTransfer-Encoding: chunked', 'Content-Length: 5']],
    ['CR solto no fim dos cabeçalhos', ['Content-Length: 5\r']],
    ['LF solto entre cabeçalhos', ['X: a\nTransfer-Encoding: chunked', 'Content-Length: 5']],
    ['dois Host', ['Host: outro.test', 'Content-Length: 5']],
    ['dois Host, com 1500 cabeçalhos no meio', [...crowd, 'Host: outro.test']],
    ['codificação atrás de 1500 cabeçalhos', [...crowd, 'Transfer-Encoding: gzip, chunked']],
  ];
  for (const [title, headers] of framings) {
    test(`${title}: 400, e o corpo não vira outro pedido`, async () => {
      await assert_stopped(headers, '0\r\n\r\n');
    });
  }

  test('linhas terminadas só por LF: 400', async () => {
    const text = raw_request('POST /a', ['Content-Length: 5']).replaceAll('\r\n', '\n');
    await assert_last_reply(text + raw_request('GET /a'), 400, malformed);
  });

  test('chunked em HTTP/1.0: 400', async () => {
    const text = raw_request('POST /a', [in_chunks]).replace('HTTP/1.1', 'HTTP/1.0');
    await assert_last_reply(`${text}0\r\n\r\n`, 400, 'unsupported Transfer-Encoding');
  });

  const sizes = ['+0', '-0', '0x0', ' 0', '0 ', '10000000000000000', '2\r\noiXX\r\n0'];
  const chunks: [string, string][] = [
    ...sizes.map((size): [string, string] => [
      `tamanho ${JSON.stringify(size)}`,
      `${size}\r\n\r\n`,
    ]),
    ['LF solto depois do tamanho', '0\n\r\n'],
    ['LF solto depois dos dados', '2\r\noi\n0\r\n\r\n'],
    ['LF solto no fim', '0\r\n\n'],
    ['LF solto na extensão', '2;\nxx\r\n22\r\nyy\r\n0\r\n\r\n'],
    ['CR solto na extensão', '2;\rxx\r\n22\r\n0\r\n\r\n'],
    ['tamanho no rodapé', '0\r\nContent-Length: 50\r\n\r\n'],
    ['codificação no rodapé', '0\r\nTransfer-Encoding: chunked\r\n\r\n'],
  ];
  for (const [title, body] of chunks) {
    test(`pedaços com ${title}: 400, e o resto não vira outro pedido`, async () => {
      await assert_stopped([in_chunks], body);
    });
  }
});

describe('o que vem atrás de um pedido', () => {
  test('1500 cabeçalhos chegam todos à tarefa', async () => {
    const talk = await open_talk(main_proxy, raw_request('GET /muitos', crowd));
    const task = await desk.task('/muitos');
    assert.equal(task.headers.A1499, '');
    await desk.finish(task);
    assert.equal((await talk.reply()).status, 200);
  });

  const hidden = raw_request('GET /contrabando');
  const size = `Content-Length: ${hidden.length}`;
  const hex = hidden.length.toString(16);

  const carriers: [string, string][] = [
    ['um GET com corpo', raw_request('GET /leva/0', [size]) + hidden],
    [
      'pedaços, com tabulação e maiúsculas',
      raw_request('POST /leva/1', ['TRANSFER-ENCODING:\tCHUNKED']) +
        `${hex};a=b\r\n${hidden}\r\n0\r\n\r\n`,
    ],
  ];
  for (const [index, [title, text]] of carriers.entries()) {
    test(`um pedido dentro do corpo é só corpo: ${title}`, async () => {
      const talk = await open_talk(main_proxy, text);
      const task = await desk.task(`/leva/${index}`);
      assert.equal(task.body, hidden);
      await desk.finish(task, ['{"n":1}']);
      assert.equal((await talk.reply()).body, '{"n":1}\n');
      assert.deepEqual(await desk.created(), [...created_before, task.task_key]);
      assert.equal(talk.leftover(), '');
    });
  }

  test('a resposta que fecha a conexão é a última: nada atrás dela vira tarefa', async () => {
    const first = raw_request('GET /ultima10 HTTP/1.0', ['Connection: keep-alive']);
    const talk = await open_talk(main_proxy, first + hidden);
    const task = await desk.task('/ultima10');
    await desk.finish(task, ['{"n":1}']);
    await talk.closed();
    assert.equal((await talk.reply()).body, '{"n":1}\n');
    assert.deepEqual(await desk.created(), [...created_before, task.task_key]);
  });

  test('atrás de um Upgrade, no mesmo pacote: é atendido, ou a conexão fecha logo', async () => {
    const upgrade = raw_request('GET /sobe', ['Connection: Upgrade', 'Upgrade: websocket']);
    const talk = await open_talk(main_proxy, upgrade + raw_request('GET /ping'));
    await desk.finish(await desk.task('/sobe'), ['{"n":1}']);
    const reply = await talk.reply();
    assert.equal(reply.body, '{"n":1}\n');
    if (reply.headers.connection === 'close') await talk.closed();
    else assert.equal((await talk.reply()).body, 'pong');
  });

  test('quem encerra o seu lado com um pedido pela metade na fila perde a conexão', async () => {
    const half = `${raw_request('POST /pela-metade', ['Content-Length: 9'])}metad`;
    await freeze_redis(redis);
    try {
      const talk = await open_talk(main_proxy, raw_request('GET /ping') + half);
      talk.socket.end();
      assert.equal((await talk.reply()).status, 500); // só depois de ele ver que o cliente saiu
      await talk.closed();
    } finally {
      redis.process.kill('SIGCONT');
    }
    await assert_nothing_created();
  });
});

describe('o corpo aos poucos', () => {
  test('chega em pedaços separados no tempo e vira tarefa inteiro', async () => {
    const body = '{"texto": "aos poucos, é"}';
    const length = `Content-Length: ${Buffer.byteLength(body)}`;
    const talk = await open_talk(main_proxy, raw_request('POST /poucos', [length]));
    talk.socket.setNoDelay();
    for (const byte of Buffer.from(body)) {
      // O proxy atende outro pedido entre um byte e outro: eles não chegam juntos.
      assert.equal((await fetch_all(main_proxy, { method: 'OPTIONS' })).status, 204);
      assert.equal((await desk.client.keys('*')).length, 0);
      talk.send(Buffer.of(byte));
    }
    const task = await desk.task('/poucos');
    assert.equal(task.body, body);
    await desk.finish(task);
    assert.equal((await talk.reply()).status, 200);
  });

  const halves: [string, string][] = [
    ['com Content-Length', `${raw_request('POST /meio', ['Content-Length: 100'])}metade`],
    ['chunked', `${raw_request('POST /meio', ['Transfer-Encoding: chunked'])}ff\r\nmetade`],
    ['convidado', raw_request('POST /meio', ['Content-Length: 9', 'Expect: 100-continue'])],
  ];
  for (const [title, text] of halves) {
    for (const how of ['FIN', 'RST']) {
      test(`o cliente sai (${how}) no meio do corpo ${title}: nenhuma tarefa`, async () => {
        const talk = await open_talk(main_proxy, text);
        if (title === 'convidado') assert.equal((await talk.reply()).status, 100);
        else assert.equal((await fetch_all(main_proxy, { path: '/ping' })).body, 'pong');
        if (how === 'FIN') talk.destroy();
        else talk.socket.resetAndDestroy();
        await assert_nothing_created();
        assert.equal(main_proxy.process.exitCode, null);
      });
    }
  }
});

describe('o log', () => {
  test('nada de corpo, valor de cabeçalho ou busca da URL, nem nas recusas', async () => {
    const secret = 'Segredo-7391';
    const query = `?chave=${secret}`;
    const headers = [`Authorization: ${secret}`, `Cookie: ${secret}`];
    const accepted = raw_request(`POST /com-log${query}`, headers, secret);
    const talk = await open_talk(main_proxy, accepted);
    const task = await desk.task(`/com-log${query}`);
    assert.equal(task.body, secret);
    await desk.finish(task);
    await talk.reply();
    const refused = [
      raw_request(`POST /recusa/413${query}`, headers, secret.repeat(max_body)),
      raw_request(`POST /recusa/417${query}`, [...headers, `Expect: ${secret}`], secret),
      `GET /recusa/400${query} HTTP/1.1\r\n${headers.join('\r\n')}\r\n\r\n`,
      raw_request(`GET http://u:${secret}@h/recusa/absoluta${query}`, ['Expect: x']),
      `GET /${secret} HTTP/1.1\r\n${secret}\r\n\r\n`,
      `${secret} / HTTP/1.1\r\n\r\n`,
      raw_request('GET /', [`X: ${secret.repeat(2000)}`]),
      raw_request(`CONNECT ${secret}:1`),
    ];
    for (const text of refused) {
      const refused_talk = await open_talk(main_proxy, text);
      assert.ok((await refused_talk.reply()).status >= 400);
    }
    await main_proxy.wait_for(new RegExp(` task=${task.uuid} method=POST path=/com-log body=12 `));
    for (const name of ['413', '417', '400', 'absoluta']) {
      await main_proxy.wait_for(
        new RegExp(` refused status=\\d+ method=\\w+ path=/recusa/${name} `),
      );
    }
    assert.doesNotMatch(main_proxy.stdout() + main_proxy.stderr(), new RegExp(secret, 'i'));
  });
});
