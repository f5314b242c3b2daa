/*
 * batch-sync atrás do proxy: as páginas, os lotes até um destino de verdade, um milhão de linhas, o
 * agendador, as mortes.
 */

import assert from 'node:assert/strict';
import { readdirSync as list_dir, readFileSync as read_file } from 'node:fs';
import http from 'node:http';
import type { AddressInfo as address } from 'node:net';
import path from 'node:path';
import { before, describe, test } from 'node:test';
import { log_file_of } from '../../scripts/backends/batch-sync/log_files';
import { on_stop } from '../../scripts/dev/local';
import {
  brisk,
  exit_of,
  fetch_all,
  type local_program,
  type local_redis,
  open_stream,
  type proxy,
  start_program,
  start_proxy,
  start_redis,
  temp_dir,
  until,
} from '../harness';
import {
  ask,
  long_patience_ms,
  type postgres,
  run_backend,
  start_postgres,
  start_system,
} from './backends_helpers';

/** O que o destino faz com cada pedido: responde com um status, ou espera por uma promessa. */
type behavior = (entity: string, attempt: number, body: string) => number | Promise<number>;

const million = 1_000_000;

/** O que todo sistema daqui recebe: nada é escrito na pasta de onde se testa. */
const basics = { FAILED_FOLDER: path.join(temp_dir(), 'failed') };

/** Quanto a memória pode crescer: um milhão de linhas inteiras são centenas de megabytes. */
const max_growth_bytes = 80_000_000;

let redis: local_redis;
let front: proxy;
let database: postgres;
let source_url: string;

/**
 * Sobe uma API de destino.
 * @param behave o que ela responde; `attempt` conta os pedidos com a mesma chave, a partir de 1
 * @returns o endereço
 */
async function start_target(behave: behavior): Promise<string> {
  const attempts = new Map<string, number>();
  const server = http.createServer(async (request, response) => {
    const id = String(request.headers['idempotency-key']);
    const attempt = (attempts.get(id) ?? 0) + 1;
    attempts.set(id, attempt);
    let body = '';
    for await (const text of request.setEncoding('utf8')) body += text;
    response.writeHead(await behave((request.url ?? '').slice(1), attempt, body)).end();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  on_stop(async () => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as address).port}`;
}

/**
 * Sobe um destino que segura o segundo lote que recebe.
 * @returns o endereço; `reached`: espera pelo lote; `accept`: aceita-o
 */
async function start_holding_target() {
  let accept = () => {};
  let batches = 0;
  const url = await start_target(() => {
    batches += 1;
    if (batches !== 2) return 200;
    return new Promise<number>((resolve) => {
      accept = () => resolve(200);
    });
  });
  const reached = () => until('o segundo lote', () => batches >= 2, long_patience_ms);
  return { url, reached, accept: () => accept() };
}

/**
 * Lê as linhas de uma sincronização inteira.
 * @param entity a entidade
 * @returns o valor de cada linha
 */
async function synchronize(entity: string) {
  const reply = await fetch_all(front, { method: 'POST', path: `/${entity}/sincronizar` });
  assert.equal(reply.status, 200);
  assert.equal(reply.headers['content-type'], 'application/x-ndjson');
  return reply.body
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));
}

/** Dá a memória residente de um programa, em bytes. */
function memory_of({ process: { pid } }: local_program): number {
  const [, pages = 0] = read_file(`/proc/${pid}/statm`, 'utf8').split(' ').map(Number);
  return pages * 4096;
}

before(async () => {
  [redis, database] = await Promise.all([start_redis(), start_postgres()]);
  front = await start_proxy(redis, [...brisk, '--grace', '5000', '-t', '10000']);
  source_url = `postgres://postgres@127.0.0.1:${database.port}/postgres`;
  database.sql(`
    CREATE TABLE "GE_EMPRESA" ("NROEMPRESA" integer PRIMARY KEY, "NOMEREDUZIDO" text,
      "CIDADE" text, "UF" text);
    CREATE TABLE "MAP_PRODUTO" ("SEQPRODUTO" integer PRIMARY KEY, "DESCCOMPLETA" text,
      "TXTDESCRICAOREDUZIDA" text, "PRECO" numeric(12,2), "STATUS" text);
    CREATE TABLE "GE_PESSOA" ("SEQPESSOA" integer PRIMARY KEY, "NOMERAZAO" text, "EMAIL" text,
      "DTAINCLUSAO" date);
    CREATE UNLOGGED TABLE "MFL_NOTA" ("SEQNOTA" integer PRIMARY KEY, "NROEMPRESA" integer,
      "SEQPESSOA" integer, "DTAVDA" date, "VLRTOTAL" numeric(14,2));
    INSERT INTO "MAP_PRODUTO" SELECT n * 3, 'Produto ' || n, ' curto ', 10.10, 'A'
      FROM generate_series(1, 2500) AS n;
    INSERT INTO "GE_PESSOA" VALUES (7, ' Ana ', ' ANA@X.COM ', '2020-02-29'),
      (9, 'Zé', NULL, NULL)`);
});

describe('batch-sync no PostgreSQL', () => {
  test('páginas de até 500, e 422 além delas', async () => {
    const target = await start_target(() => 200);
    const system = await start_system('batch-sync', redis, {
      ...{ ...basics, SOURCE_URL: source_url, TARGET_URL: target, SYNC_RATE: '8/600' },
    });
    const first = await ask(front, 'GET /produtos');
    assert.deepEqual([first.value.pular, first.value.limite], [0, 100]);
    assert.equal(first.value.itens.length, 100);
    const third = await ask(front, 'GET /produtos?pular=100&limite=50');
    const numbers = third.value.itens.map((row: Record<string, unknown>) => row.SEQPRODUTO);
    assert.deepEqual([numbers.length, numbers[0], numbers.at(-1)], [50, 303, 450]);
    assert.equal(third.value.itens[0].PRECO, '10.10');
    for (const query of ['limite=501', 'limite=0', 'pular=-1', 'pular=x']) {
      const refused = await ask(front, `GET /clientes?${query}`);
      assert.equal(refused.status, 422, query);
      assert.equal(refused.value.detail[0].loc[1], query.split('=')[0]);
    }
    const docs = await ask(front, 'GET /docs');
    assert.match(docs.body, /<code>\/vendas\/sincronizar<\/code>/);
    assert.equal((await ask(front, 'GET /openapi.json')).value.openapi, '3.0.0');
    const over = await ask(front, 'GET /filiais');
    assert.equal(over.status, 429);
    assert.ok(Number(over.headers['retry-after']) > 0);
    assert.equal((await synchronize('filiais')).length, 1, 'o limite é só dos GET');
    await system.stop();
  });

  test('cada lote é traduzido, e insiste; o que não é aceito fica num arquivo', async () => {
    const received: Record<string, unknown[]> = {};
    const folder = path.join(temp_dir(), 'failed');
    const target = await start_target((entity, attempt, body) => {
      const records = JSON.parse(body);
      const first = records[0].ID_PRODUTO;
      if (first === 3003 && attempt <= 2) return attempt === 1 ? 503 : 429;
      if (first === 6003) return 400;
      received[entity] = [...(received[entity] ?? []), ...records];
      return 200;
    });
    const env = { ...basics, SOURCE_URL: source_url, TARGET_URL: target, PAUSE_MS: '10' };
    const system = await start_system('batch-sync', redis, { ...env, FAILED_FOLDER: folder });
    const lines = await synchronize('produtos');
    const brief = lines.map(({ batch, rows, total, attempts }) => [batch, rows, total, attempts]);
    assert.deepEqual(brief.slice(0, 3), [
      [1, 1000, 1000, 1],
      [2, 1000, 2000, 3],
      [3, 500, 2500, 1],
    ]);
    const { ms, ...sum } = lines[3];
    assert.ok(ms >= 0);
    const counts = { batches: 3, rows: 2500, sent: 2000, failed: 500 };
    assert.deepEqual(sum, { done: true, entity: 'produtos', ...counts });
    assert.equal(received.produtos?.length, 2000);
    assert.deepEqual(received.produtos?.[0], {
      ...{ ID_PRODUTO: 3, TXTDESCRICAO: 'Produto 1', TXTDESCRICAORESUMIDA: 'curto' },
      ...{ VLR_PRECO: '10.10', ATIVO: true },
    });
    assert.equal(lines[2].error, 'HTTP 400');
    const kept = JSON.parse(read_file(lines[2].file, 'utf8'));
    assert.equal(path.dirname(lines[2].file), folder);
    assert.deepEqual([kept.error, kept.records.length], ['HTTP 400', 500]);
    await synchronize('clientes');
    assert.deepEqual(received.clientes, [
      { ID_CLIENTE: 7, NOME: 'Ana', EMAIL: 'ana@x.com', DATA_CADASTRO: '2020-02-29' },
      { ID_CLIENTE: 9, NOME: 'Zé', EMAIL: null, DATA_CADASTRO: null },
    ]);
    await system.stop();
  });

  test('cada linha chega antes de o próximo lote ser aceito; o cliente vê um kill -9', async () => {
    const folder = path.join(temp_dir(), 'failed');
    const { url: target, reached, accept } = await start_holding_target();
    const env = { ...basics, SOURCE_URL: source_url, TARGET_URL: target, FAILED_FOLDER: folder };
    const victim = await start_system('batch-sync', redis, env);
    const stream = open_stream(front, { method: 'POST', path: '/produtos/sincronizar' });
    assert.match((await stream.next(long_patience_ms)) ?? '', /^\{"batch":1,/);
    const heir = await start_system('batch-sync', redis, env);
    await reached();
    await victim.stop('SIGKILL');
    await assert.rejects(stream.rest(long_patience_ms), 'uma parte passou por inteira');
    accept();
    const lines = await synchronize('produtos');
    assert.equal(lines.at(-1).done, true);
    await heir.stop();
  });

  test('com SIGTERM o que está em curso vai até o fim', async () => {
    const { url: target, reached, accept } = await start_holding_target();
    const env = { ...basics, SOURCE_URL: source_url, TARGET_URL: target };
    const system = await start_system('batch-sync', redis, env);
    const stream = open_stream(front, { method: 'POST', path: '/produtos/sincronizar' });
    await stream.next(long_patience_ms);
    await reached();
    system.process.kill('SIGTERM');
    accept();
    const rest = await stream.rest(long_patience_ms);
    assert.match(rest.at(-1) ?? '', /^\{"done":true,.*"sent":2500,"failed":0/);
    assert.equal(await exit_of(system, long_patience_ms), 0);
  });

  test('a origem que cai no meio corta a resposta', async () => {
    let batches = 0;
    const target = await start_target(async () => {
      batches += 1;
      if (batches === 1) await database.stop('SIGINT');
      return 200;
    });
    const env = { ...basics, SOURCE_URL: source_url, TARGET_URL: target };
    const system = await start_system('batch-sync', redis, env);
    const asked = fetch_all(front, { method: 'POST', path: '/produtos/sincronizar' });
    await assert.rejects(asked, 'uma parte passou por inteira');
    database = await start_postgres(database);
    assert.equal((await synchronize('produtos')).at(-1).sent, 2500);
    await system.stop();
  });

  test('um milhão de linhas, na memória de um lote', async () => {
    database.sql(`INSERT INTO "MFL_NOTA" SELECT n, n % 50, n % 9000, date '2024-01-01' + n % 500,
      n % 100000 / 100.0 FROM generate_series(1, ${million}) AS n`);
    const seen = { rows: 0, sum: 0 };
    const target = await start_target((_, __, body) => {
      for (const { ID_VENDA: id } of JSON.parse(body)) {
        seen.rows += 1;
        seen.sum += id;
      }
      return 200;
    });
    const env = { ...basics, SOURCE_URL: source_url, TARGET_URL: target };
    const system = await start_system('batch-sync', redis, env);
    const stream = open_stream(front, { method: 'POST', path: '/vendas/sincronizar' });
    let early = 0;
    let last = '';
    for (let line = await stream.next(long_patience_ms); line !== undefined; ) {
      last = line;
      if (line.startsWith('{"batch":100,')) early = memory_of(system);
      line = await stream.next(long_patience_ms);
    }
    const growth = memory_of(system) - early;
    assert.match(last, /^\{"done":true,"entity":"vendas","batches":1000,"rows":1000000,/);
    assert.deepEqual(seen, { rows: million, sum: (million * (million + 1)) / 2 });
    assert.ok(early > 0 && growth < max_growth_bytes, `cresceu ${growth} bytes`);
    await system.stop();
  });
});

describe('o agendador', () => {
  test('--now chama as quatro pelo proxy e registra o que dizem, e o que faltou', async () => {
    const target = await start_target(() => 200);
    database.sql('TRUNCATE "MFL_NOTA"');
    const env = { ...basics, SOURCE_URL: source_url, TARGET_URL: target };
    const system = await start_system('batch-sync', redis, env);
    const folder = temp_dir();
    const settings = { PROXY_URL: front.url, LOGS_FOLDER: folder };
    const run = await run_backend('batch-sync/monitor.ts', ['--now'], settings);
    assert.equal(run.code, 0, run.output);
    const files = list_dir(path.join(folder, 'Logs'), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.log'))
      .sort();
    const name = /^Rota_(\w+)\/[A-Z][a-zç]+\/(\d\d)\/\2_\d\d_\d{4}_\d\dh\d\d_Rota_\1\.log$/;
    for (const file of files) assert.match(file, name);
    const routes = files.map((file) => file.split('/')[0]);
    assert.deepEqual(routes, ['Rota_Clientes', 'Rota_Filial', 'Rota_Produtos', 'Rota_Vendas']);
    const log = read_file(path.join(folder, 'Logs', files[2] ?? ''), 'utf8');
    assert.match(log, /HTTP 200\n.*\{"batch":1,[^\n]*\n(.*\n)*.*\{"done":true,.*\n.* terminou\n$/);
    await system.stop();
    const alone = await run_backend('batch-sync/monitor.ts', ['--now'], {
      ...{ PROXY_URL: 'http://127.0.0.1:9', LOGS_FOLDER: folder },
    });
    assert.equal(alone.code, 1);
    assert.match(alone.output, /a rota falhou/);
  });
});

describe('quando e onde', () => {
  test('a próxima chamada é à 01:00 de São Paulo, e SIGTERM encerra a espera', async () => {
    const monitor = path.resolve('scripts/backends/batch-sync/monitor.ts');
    const program = start_program(process.execPath, ['--import', 'tsx', monitor]);
    await program.wait_for(/aguardando a hora next="\d{4}-\d\d-\d\dT04:00:00\.000Z"/);
    program.process.kill('SIGTERM');
    assert.equal(await exit_of(program, long_patience_ms), 0);
  });

  test('o arquivo é o da hora de lá, com o mês por extenso', () => {
    const cases = [
      ['2024-07-15T04:00:00Z', 'Julho/15/15_07_2024_01h00'],
      ['2024-03-01T02:59:00Z', 'Fevereiro/29/29_02_2024_23h59'],
      ['2025-03-09T03:05:00Z', 'Março/09/09_03_2025_00h05'],
    ] as const;
    for (const [at, place] of cases) {
      const file = log_file_of('Rota_Produtos', new Date(at));
      assert.equal(file, `Logs/Rota_Produtos/${place}_Rota_Produtos.log`);
    }
  });
});

describe('batch-sync sem nada configurado', () => {
  test('recusa configurações que não servem', async () => {
    const cases: [NodeJS.ProcessEnv, RegExp][] = [
      [{ TARGET_FAILS: '{' }, /^batch-sync: TARGET_FAILS inválido/],
      [{ SYNC_RATE: '60' }, /^batch-sync: SYNC_RATE inválido: "60"; aceito: pedidos\/segundos/],
    ];
    for (const [env, reason] of cases) {
      const refused = await run_backend('batch-sync/main.ts', [], env);
      assert.equal(refused.code, 2);
      assert.match(refused.output, reason);
    }
  });
});
