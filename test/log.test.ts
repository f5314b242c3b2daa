/*
 * As formas do log: texto e JSON têm as mesmas linhas, com as mesmas etiquetas e campos; LOG_LEVEL
 * escolhe quais saem; cores, só num terminal.
 */

import assert from 'node:assert/strict';
import { before, describe } from 'node:test';
import {
  brisk,
  exit_of,
  fetch_all,
  free_port,
  type local_program,
  type local_redis,
  program_file,
  run_proxy,
  start_program,
  start_redis,
  start_worker,
  test,
  until,
} from './harness';

/** Uma linha de log já entendida: os valores como texto, na ordem em que vieram. */
type log_line = { level: string; tag: string; fields: [string, string][] };

/** O que todo objeto tem antes dos campos. */
const json_head = ['time', 'level', 'tag'];

/** Campos que mudam de uma execução para outra. */
const varying = /^(pid|task|ms|url|bytes)$/;

const time_pattern = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

/** O código de cor que precede uma etiqueta: vermelho, amarelo, ciano. */
const color_of = { error: '\x1b[31m', warn: '\x1b[33m', info: '\x1b[36m' };

/** O comando script é outro fora do Linux. */
const no_terminal = process.platform !== 'linux' && 'só no Linux';

let redis: local_redis;

/**
 * Separa as linhas de um log em texto.
 * @param output o que o programa escreveu numa saída
 * @param level a gravidade que vai nessa saída; o texto não a diz
 * @returns as linhas
 */
function read_text(output: string, level: string): log_line[] {
  const lines = output.trimEnd().split('\n').filter(Boolean);
  return lines.map((line) => {
    const [, time = '', tag = '', rest = ''] = /^(\S+) (\w+)(.*)$/.exec(line) ?? [];
    assert.match(time, time_pattern, line);
    const pairs = [...rest.matchAll(/ (\w+)=("(?:[^"\\]|\\.)*"|\S+)/g)];
    const plain = (value: string) => (value.startsWith('"') ? JSON.parse(value) : value);
    const fields = pairs.map(([, name = '', value = '']): [string, string] => [name, plain(value)]);
    return { level, tag, fields };
  });
}

/**
 * Separa as linhas de um log em JSON, e confere a forma de cada uma.
 * @param output o que o programa escreveu numa saída
 * @returns as linhas
 */
function read_json(output: string): log_line[] {
  const lines = output.trimEnd().split('\n').filter(Boolean);
  return lines.map((line) => {
    const object = JSON.parse(line);
    assert.deepEqual(Object.keys(object).slice(0, 3), json_head, line);
    const { time, level, tag, ...fields } = object;
    assert.match(time, time_pattern);
    for (const value of Object.values(fields)) assert.match(typeof value, /^(string|number)$/);
    const pairs = Object.entries(fields).map(([name, value]): [string, string] => [
      name,
      String(value),
    ]);
    return { level, tag, fields: pairs };
  });
}

/**
 * Esconde o que muda de uma execução para outra.
 * @param lines linhas
 * @returns as mesmas, com "*" no lugar
 */
function settle(lines: log_line[]): log_line[] {
  return lines.map(({ level, tag, fields }) => ({
    level,
    tag,
    fields: fields.map(([name, value]) => [name, varying.test(name) ? '*' : value]),
  }));
}

/**
 * Sobe um proxy, faz acontecer linhas de várias gravidades e o para.
 * @param channel canal só dele
 * @param args argumentos a mais
 * @returns o programa, já parado, e a tarefa que ele atendeu
 */
async function live_a_little(channel: string, args: string[]) {
  const port = await free_port();
  const worker = await start_worker(redis, channel);
  const basics = ['-p', String(port), '--host', '127.0.0.1', '-R', redis.server, '-C', channel];
  const program = await run_proxy([...basics, ...brisk, ...args]);
  const proxy = { port };
  const is_up = () => fetch_all(proxy, { path: '/ping' }).catch(() => undefined);
  await until('proxy no ar', async () => (await is_up())?.status === 200);
  const asked = fetch_all(proxy, { path: '/a?segredo=1', body: '{"b": 2}' });
  const task = await worker.next();
  await worker.client.rPush(task.task_list, ['HTTP 999', '{"n": 1}', 'EOF']);
  assert.equal((await asked).body, 'HTTP 999\n{"n": 1}\n');
  const failing = fetch_all(proxy);
  const { task_list } = await worker.next();
  await worker.client.set(task_list, 'não é lista');
  assert.equal((await failing).status, 503);
  assert.equal((await fetch_all(proxy, { headers: { Expect: 'x' } })).status, 417);
  assert.equal(await program.stop(), 0);
  await worker.subscriber.unsubscribe();
  return { program, task };
}

/**
 * Roda o programa num terminal de mentira, o do comando script, até a falha de quem não tem Redis.
 * @param env variáveis de ambiente a mais
 * @returns tudo o que saiu no terminal
 */
async function run_on_terminal(env: NodeJS.ProcessEnv): Promise<string> {
  const command = `exec "${process.execPath}" "${await program_file()}" -p 0 -R 127.0.0.1:1/1`;
  const plain = { NO_COLOR: undefined, TERM: 'xterm', SHELL: '/bin/sh', ...env };
  const program = start_program('script', ['-qec', command, '/dev/null'], plain);
  assert.equal(await exit_of(program), 1);
  return program.stdout().replaceAll('\r\n', '\n');
}

/**
 * Sobe um proxy cujo log é JSON.
 * @param args argumentos a mais
 * @returns o proxy
 */
async function start_json_proxy(args: string[]): Promise<local_program & { port: number }> {
  const basics = ['-p', '0', '--host', '127.0.0.1', '-R', redis.server];
  const program = await run_proxy([...basics, ...brisk, '--log-format', 'json', ...args]);
  const listening = /"tag":"listen","url":"http:\/\/127\.0\.0\.1:(\d+)"\}\n/;
  const [, port] = await program.wait_for(listening);
  return { ...program, port: Number(port) };
}

before(async () => {
  [redis] = await Promise.all([start_redis(), program_file()]);
});

describe('o log em texto e em JSON', { concurrency: 3 }, () => {
  test('as mesmas linhas, na mesma ordem, com as mesmas etiquetas e campos', async () => {
    const text = await live_a_little('jobs_log', []);
    const json = await live_a_little('jobs_log', ['--log-format', 'json']);
    const [out, err] = [json.program.stdout(), json.program.stderr()].map(read_json);
    assert.deepEqual(settle(out ?? []), settle(read_text(text.program.stdout(), 'info')));
    const by_tag = new Map((err ?? []).map(({ tag, level }) => [tag, level]));
    const levels = { head_as_line: 'warn', stream_error: 'error', end: 'error', refused: 'warn' };
    assert.deepEqual(Object.fromEntries(by_tag), levels);
    const spoken = read_text(text.program.stderr(), '').map((line) => {
      return { ...line, level: by_tag.get(line.tag) ?? '' };
    });
    assert.deepEqual(settle(err ?? []), settle(spoken));
    assert.doesNotMatch(json.program.stdout() + json.program.stderr(), /segredo/);
  });

  test('em JSON números são números, e um texto longo é cortado como no outro', async () => {
    const proxy = await start_json_proxy(['-C', 'jobs_none']);
    const path = `/${'x'.repeat(400)}`;
    const gone = fetch_all(proxy, { path, headers: { Expect: 'x' } });
    assert.equal((await gone).status, 417);
    const [, line = ''] = await proxy.wait_for(/^(.*"tag":"refused".*)\n/m);
    const refused = JSON.parse(line);
    assert.strictEqual(refused.status, 417);
    assert.equal(refused.path, path.slice(0, 300));
    assert.equal(refused.reason, 'only "Expect: 100-continue" is supported');
  });

  test('controles que um terminal obedece e quebras que não são LF saem escapados', async () => {
    const head = 'HTTP 200 {"a\\u009b2Jb":1,"c\\u2028d":1,"e\\u2029\\u007f\\u0085":1}';
    for (const format of ['text', 'json']) {
      const channel = `jobs_strange_${format}`;
      const args = ['-C', channel, '--log-format', format, '-p', '0', '--host', '127.0.0.1'];
      const program = await run_proxy([...args, ...brisk, '-R', redis.server]);
      const worker = await start_worker(redis, channel);
      const [, port] = await program.wait_for(/http:\/\/127\.0\.0\.1:(\d+)/);
      const asked = fetch_all({ port: Number(port) });
      await worker.client.rPush((await worker.next()).task_list, [head, 'EOF']);
      assert.equal((await asked).status, 200);
      assert.equal(await program.stop(), 0);
      const names = 'a\\u009b2Jb,c\\u2028d,e\\u2029\\u007f\\u0085';
      assert.ok(program.stderr().includes(format === 'json' ? `"${names}"` : `names="${names}"`));
    }
  });

  test('de recusas iguais 100 ganham linha; das demais, na parada, se diz a soma', async () => {
    const proxy = await start_json_proxy(['-C', 'jobs_none']);
    for (let n = 0; n < 120; n += 1) await fetch_all(proxy, { headers: { Expect: 'x' } });
    assert.equal(await proxy.stop(), 0);
    const lines = read_json(proxy.stderr());
    assert.deepEqual(lines.map(({ tag }) => tag).splice(99), ['refused', 'refused_more']);
    const more = [
      ['status', '417'],
      ['count', '20'],
    ];
    assert.deepEqual(lines.at(-1)?.fields, more);
    assert.deepEqual(lines[0]?.fields.at(-1), ['address', '127.0.0.1']);
  });

  test('com vários processos, worker é um número no fim de cada objeto', async () => {
    const proxy = await start_json_proxy(['-C', 'jobs_two', '-w', '2', '-t', '100']);
    await proxy.wait_for(/"tag":"process_ready","worker":2,/);
    assert.equal((await fetch_all(proxy)).body, '{"error": "timeout"}\n');
    const [line] = await proxy.wait_for(/^.*"tag":"end".*\n/m);
    assert.match(line, /,"ending":"timeout","status":200,.*,"worker":[12]\}\n$/);
  });

  test('sob o journald o JSON é só JSON', async () => {
    const script = 'export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/$$/fd/1); exec "$0" "$@" 2>&1';
    const args = ['-p', '0', '-R', '127.0.0.1:1/1', '--log-format', 'json'];
    const command = ['-c', script, process.execPath, await program_file(), ...args];
    const program = start_program('sh', command);
    assert.equal(await exit_of(program), 1);
    const tags = read_json(program.stdout()).map(({ level, tag }) => `${level} ${tag}`);
    assert.deepEqual(tags, ['info start', 'error fatal']);
  });
});

describe('LOG_LEVEL', { concurrency: 3 }, () => {
  const expected: Record<string, { out: boolean; tags: string[] }> = {
    warn: { out: false, tags: ['end', 'head_as_line', 'refused', 'stream_error'] },
    error: { out: false, tags: ['end', 'stream_error'] },
    info: { out: true, tags: ['end', 'head_as_line', 'refused', 'stream_error'] },
  };
  for (const [level, { out, tags }] of Object.entries(expected)) {
    test(`${level}: sai o que é dessa gravidade, e o mais grave`, async () => {
      const { program } = await live_a_little(`jobs_${level}`, ['--log-level', level]);
      assert.equal(program.stdout() !== '', out, program.stdout());
      const found = new Set(read_text(program.stderr(), '').map(({ tag }) => tag));
      assert.deepEqual([...found].sort(), tags);
    });
  }

  test('um erro de uso é sempre uma linha de texto', async () => {
    const env = { LOG_FORMAT: 'json', LOG_LEVEL: 'error', HTTP_PORT: 'x' };
    const program = await run_proxy([], env);
    assert.equal(await exit_of(program), 2);
    assert.match(program.stderr(), /^json-proxy: HTTP_PORT \(ambiente\) inválido: "x"; .*\n$/);
  });
});

describe('cores', { concurrency: 3, skip: no_terminal }, () => {
  test('num terminal a etiqueta tem a cor da gravidade', async () => {
    const output = await run_on_terminal({});
    for (const [level, tag] of [
      ['info', 'start'],
      ['error', 'fatal'],
    ] as const) {
      assert.ok(output.includes(` ${color_of[level]}${tag}\x1b[0m `), JSON.stringify(output));
    }
  });
  const plain: [string, NodeJS.ProcessEnv][] = [
    ['NO_COLOR as recusa', { NO_COLOR: '1' }],
    ['um terminal que não as tem', { TERM: 'dumb' }],
    ['o JSON não as tem', { LOG_FORMAT: 'json' }],
  ];
  for (const [title, env] of plain) {
    test(title, async () => {
      const output = await run_on_terminal(env);
      assert.ok(!output.includes('\x1b'), JSON.stringify(output));
      assert.match(output, /start/);
    });
  }
  test('NO_COLOR vazia não recusa', async () => {
    assert.ok((await run_on_terminal({ NO_COLOR: '' })).includes(color_of.error));
  });
});
