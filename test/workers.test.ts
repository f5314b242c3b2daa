/*
 * Vários processos (WORKERS acima de 1): quem atende, o que o log diz, o que acontece quando um
 * deles morre, e a parada. GRACE é de um minuto onde o teste prova que ninguém o espera.
 */

import assert from 'node:assert/strict';
import {
  readdirSync as list_dir,
  readFileSync as read_file,
  renameSync as rename,
  writeFileSync as write_file,
} from 'node:fs';
import { availableParallelism as available_parallelism } from 'node:os';
import path from 'node:path';
import { before, describe } from 'node:test';
import { parse_workers } from '../json-proxy';
import {
  begin,
  brisk,
  check_tombstone,
  closed_port,
  exit_of,
  fetch_all,
  goodbye,
  type local_program,
  type local_redis,
  long_grace,
  open_socket,
  open_stream,
  patience_ms,
  program_file,
  type proxy,
  run_proxy,
  served,
  start_program,
  start_proxy,
  start_redis,
  start_scene,
  start_worker,
  temp_dir,
  test,
  until,
} from './harness';

/** Sobem vários processos cada um; mais que isto ao mesmo tempo disputaria os processadores. */
const tests_at_once = 3;

/** O instante no começo de cada linha. */
const stamp = '\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{3}Z';

/** Um proxy com dois processos, e um worker que ouve o canal dele. */
type scene = Awaited<ReturnType<typeof start_crew>>;

/** Um fluxo começado e a tarefa dele. */
type begun = Awaited<ReturnType<typeof begin>>;

let redis: local_redis;

before(async () => {
  [redis] = await Promise.all([start_redis(), program_file()]);
});

/**
 * Espera que um processo esteja pronto e diz qual é.
 * @param proxy o proxy
 * @param slot número do processo
 * @param times quantas vezes ele já deve ter ficado pronto: 2 é o primeiro substituto
 * @returns o pid do mais novo
 */
function pid_of(proxy: Pick<local_program, 'stdout'>, slot: number, times = 1): Promise<number> {
  const pattern = new RegExp(` process_ready worker=${slot} pid=(\\d+)\n`, 'g');
  const ready = () => {
    const found = [...proxy.stdout().matchAll(pattern)];
    return found.length >= times ? Number(found.at(-1)?.[1]) : undefined;
  };
  return until(`processo ${slot} pronto pela ${times}ª vez`, ready, 3 * patience_ms);
}

/**
 * Sobe um proxy com dois processos, um canal só dele e um worker, e espera pelos dois processos.
 * @param args argumentos a mais para o proxy
 * @param where o Redis
 * @returns o proxy, o worker, um cliente do Redis e o canal
 */
async function start_crew(args: string[] = [], where = redis) {
  const scene = await start_scene(where, [...brisk, '-w', '2', ...args]);
  await pid_of(scene.proxy, 2);
  return scene;
}

/**
 * Diz que processo criou uma tarefa.
 * @param proxy o proxy
 * @param task a tarefa
 * @returns o número do processo
 */
async function slot_of(proxy: proxy, task: begun['task']): Promise<number> {
  const pattern = new RegExp(` task task=${task.uuid} .* worker=(\\d+)\\n`);
  return Number((await proxy.wait_for(pattern))[1]);
}

/**
 * Empurra linhas, termina um fluxo e confere que o cliente recebeu exatamente essas.
 * @param scene o proxy e o worker
 * @param begun o fluxo
 * @param lines as linhas
 */
async function finish({ db }: scene, { stream, task }: begun, lines: string[]): Promise<void> {
  for (const line of lines) await db.rPush(task.task_list, line);
  await db.del(task.task_key);
  assert.deepEqual(await stream.rest(), lines);
  assert.deepEqual(await db.keys(`*${task.uuid}`), []);
}

/**
 * Começa um fluxo em cada um dos dois processos; cada um já recebeu uma linha.
 * @param scene o proxy e o worker
 * @returns o do primeiro e o do segundo
 */
async function begin_on_both(scene: scene): Promise<[begun, begun]> {
  const found = new Map<number, begun>();
  for (let attempt = 0; attempt < 50; attempt += 1) {
    const next = await begin(scene.proxy, scene.worker, ['primeira']);
    const slot = await slot_of(scene.proxy, next.task);
    if (found.has(slot)) await finish(scene, next, []);
    else found.set(slot, next);
    const [first, second] = [found.get(1), found.get(2)];
    if (first && second) return [first, second];
  }
  throw new Error('um dos processos não atende');
}

/**
 * Diz que processos são filhos de outro.
 * @param pid o pai
 * @returns os pids dos que ainda não terminaram
 */
function children_of(pid: number | undefined): number[] {
  return list_dir('/proc')
    .filter((name) => {
      if (!/^\d+$/.test(name)) return false;
      try {
        const [, state, parent] =
          /\) (\w) (\d+) /.exec(read_file(`/proc/${name}/stat`, 'utf8')) ?? [];
        return Number(parent) === pid && state !== 'Z';
      } catch {
        return false; // terminou enquanto se lia
      }
    })
    .map(Number);
}

/**
 * Espera que um processo, que não é filho do teste, termine.
 * @param pid o processo
 */
async function gone(pid: number): Promise<void> {
  await until(`fim do processo ${pid}`, () => {
    try {
      return / Z /.test(read_file(`/proc/${pid}/stat`, 'utf8'));
    } catch {
      return true;
    }
  });
}

/**
 * Conta as linhas de log com uma etiqueta.
 * @param text a saída
 * @param tag a etiqueta
 * @returns quantas
 */
function count_of(text: string, tag: string): number {
  return text.match(new RegExp(`^${stamp} ${tag}( |$)`, 'gm'))?.length ?? 0;
}

/**
 * Pede que o proxy pare e espera que o supervisor diga que começou.
 * @param proxy o proxy
 * @param signal o sinal
 */
async function ask_to_stop(proxy: proxy, signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
  proxy.process.kill(signal);
  await proxy.wait_for(new RegExp(` stop signal=${signal} grace=\\d+\\n`));
}

/**
 * Espera que o programa inteiro termine sem erro, com o supervisor por último.
 * @param proxy o proxy
 */
async function check_clean_exit(proxy: proxy): Promise<void> {
  assert.equal(await exit_of(proxy), 0); // só depois que o último processo fechou a saída
  assert.match(proxy.stdout(), new RegExp(`\n${stamp} stopped\n$`));
}

test('parse_workers: um número de 1 a 64, ou auto, que é um por núcleo', () => {
  const cores = Math.min(available_parallelism(), 64);
  const accepted: [string, number][] = [
    ['1', 1],
    ['2', 2],
    ['64', 64],
    ['auto', cores],
    ['AUTO', cores],
  ];
  for (const [text, value] of accepted) assert.equal(parse_workers(text), value, text);
  const rejected = ['', ' ', '0', '65', '-1', '1.5', '1e1', ' auto', 'auto ', 'autos', 'todos'];
  for (const text of rejected) {
    const message = 'auto ou um inteiro de 1 a 64';
    assert.throws(() => parse_workers(text), { message }, JSON.stringify(text));
  }
});

/** A subida e o serviço. */
const serving: Record<string, () => Promise<void>> = {
  'com WORKERS 1 não há outro processo, nem nada a mais no log': async () => {
    const scene = await start_scene(redis, [...brisk, '-w', '1']);
    const begun = await begin(scene.proxy, scene.worker);
    assert.deepEqual(children_of(scene.proxy.process.pid), []);
    await finish(scene, begun, ['1', '2']);
    assert.equal(await scene.proxy.stop(), 0);
    assert.doesNotMatch(scene.proxy.stdout(), /worker|process_/);
    assert.equal(scene.proxy.stderr(), '');
  },

  'os dois atendem na mesma porta, um log só, nada repetido': async () => {
    const own = await start_redis();
    const scene = await start_crew([], own);
    const { proxy, worker, db } = scene;
    const [first_pid, second_pid] = [await pid_of(proxy, 1), await pid_of(proxy, 2)];
    const lines = [
      `start version=\\S+ .* pid=${proxy.process.pid} redis=.* list_prefix=\\S+ .* workers=2`,
      'wakeup mode=tracking worker=1',
      `process_ready worker=1 pid=${first_pid}`,
      `listen url=http://127\\.0\\.0\\.1:${proxy.port}`,
      'wakeup mode=tracking worker=2',
      `process_ready worker=2 pid=${second_pid}`,
    ];
    const expected = lines.map((line) => `${stamp} ${line}\n`).join('');
    assert.match(proxy.stdout(), new RegExp(`^${expected}$`));
    assert.deepEqual(children_of(proxy.process.pid).sort(), [first_pid, second_pid].sort());

    const begun: begun[] = [];
    for (let n = 0; n < 20; n += 1) begun.push(await begin(proxy, worker, [`primeira de ${n}`]));
    const slots = await Promise.all(begun.map(({ task }) => slot_of(proxy, task)));
    assert.deepEqual([...new Set(slots)].sort(), [1, 2]);
    await Promise.all(begun.map((one, n) => finish(scene, one, [`${n} a`, `${n} b`, `${n} c`])));
    assert.deepEqual(await db.keys('*'), []);

    // só os dois falam com o Redis, e só um varre: a varredura vem antes de tudo o que já se viu
    const clients = String(await db.sendCommand(['CLIENT', 'LIST', 'TYPE', 'normal']));
    const proxies = clients.match(/ cmd=(?!client|subscribe)/g)?.length;
    assert.equal(proxies, 2, clients);
    assert.equal(await served(db, 'scan'), 1);

    assert.equal(await proxy.stop(), 0);
    const log = proxy.stdout().trimEnd().split('\n');
    const unsigned = log
      .filter((line) => !/ worker=[12]$/.test(line))
      .map((line) => line.split(' ')[1]);
    assert.deepEqual(unsigned, [
      'start',
      'process_ready',
      'listen',
      'process_ready',
      'stop',
      'stopped',
    ]);
    assert.equal(proxy.stderr(), '');
  },

  'direto do fonte, com o tsx': async () => {
    const args = ['--import', 'tsx', 'json-proxy.ts', '-w', '2', '-p', '0', '--host', '127.0.0.1'];
    const root = path.join(__dirname, '..');
    const program = start_program(process.execPath, [...args, '-R', redis.server], {}, root);
    await pid_of(program, 2);
    const [, port] = await program.wait_for(/ listen url=\S+:(\d+)\n/);
    const replies = [1, 2, 3].map(() => fetch_all({ port: Number(port) }, { path: '/ping' }));
    for (const { body } of await Promise.all(replies)) assert.equal(body, 'pong');
    assert.equal(await program.stop(), 0);
    assert.equal(program.stderr(), '');
  },

  'sob o journald as linhas de todos têm a prioridade na frente': async () => {
    const script = 'export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/$$/fd/1); exec "$0" "$@" 2>&1';
    const args = ['-w', '2', '-p', '0', '--host', '127.0.0.1', '-R', redis.server];
    const command = [process.execPath, await program_file(), ...args];
    const program = start_program('sh', ['-c', script, ...command]);
    await program.wait_for(/process_ready worker=2 .*\n/);
    assert.equal(await program.stop(), 0);
    const tags = program
      .stdout()
      .trimEnd()
      .split('\n')
      .map((line) => line.split(' ')[0]);
    assert.ok(tags.length >= 12, program.stdout());
    for (const tag of tags) assert.match(tag ?? '', /^<6>[a-z_]+$/);
  },

  'um leitor atrasado do log recebe todas as linhas, inteiras': async () => {
    const dir = temp_dir();
    const fifo = path.join(dir, 'log');
    assert.equal(await start_program('mkfifo', [fifo]).exited, 0);
    const reader = start_program('dd', ['status=none', 'bs=512', `if=${fifo}`]); // aos poucos
    const script = 'exec "$0" "$@" 2> "$LOG"';
    const basics = ['-w', '2', '-p', '0', '--host', '127.0.0.1', '-R', redis.server];
    const args = [...basics, '--grace', '0', '--failfast', 'on', '-C', 'jobs_late_log'];
    const command = [process.execPath, await program_file(), ...args];
    const program = start_program('sh', ['-c', script, ...command], { LOG: fifo });
    await pid_of(program, 2);
    const [, port] = await program.wait_for(/ listen url=\S+:(\d+)\n/);
    reader.process.kill('SIGSTOP');
    const count = 1500; // umas 300 vezes o que cabe de uma vez numa pipe, por processo
    for (let n = 0; n < count; n += 50) {
      const asked = Array.from({ length: 50 }, () => fetch_all({ port: Number(port) }));
      for (const { status } of await Promise.all(asked)) assert.equal(status, 503);
    }
    program.process.kill('SIGTERM');
    await program.wait_for(/ stop signal=SIGTERM grace=0\n/);
    reader.process.kill('SIGCONT');
    assert.equal(await exit_of(program), 0);
    assert.equal(await exit_of(reader), 0);
    const lines = reader.stdout().trimEnd().split('\n');
    const whole = new RegExp(`^${stamp} (\\w+) (?:task=(\\S{36}) )?.+ worker=([12])$`);
    const found = lines.map((line) => whole.exec(line) ?? assert.fail(line));
    const unheard = found.filter(([, tag]) => tag === 'no_worker');
    assert.equal(new Set(unheard.map(([, , task]) => task)).size, count);
    assert.equal(unheard.length, count);
    assert.equal(new Set(found.map(([, , , slot]) => slot)).size, 2);
  },
};

/**
 * Roda o programa com dois processos, que deve falhar ao subir, e confere que um só tentou, uma só
 * linha diz por quê, e ninguém ficou.
 * @param args argumentos
 * @param env variáveis de ambiente a mais
 * @returns a linha, da etiqueta em diante
 */
async function failed_start(args: string[], env: NodeJS.ProcessEnv = {}): Promise<string> {
  const basics = ['-w', '2', '-p', '0', '--host', '127.0.0.1', '-R', redis.server];
  const program = await run_proxy([...basics, ...args], env);
  assert.equal(await exit_of(program), 1);
  assert.equal(count_of(program.stdout(), 'start'), 1);
  assert.doesNotMatch(program.stdout() + program.stderr(), /worker=2|process_|listen/);
  const [, line = ''] = new RegExp(`^${stamp} (fatal [^\n]+)\n$`).exec(program.stderr()) ?? [];
  assert.ok(line, program.stderr());
  return line;
}

/** O que impede o programa de subir. */
const starting: Record<string, () => Promise<void>> = {
  'porta em uso: uma linha, código 1, ninguém insiste': async () => {
    const port = String(redis.port);
    const line = await failed_start(['-p', port]);
    assert.match(line, /^fatal host=127\.0\.0\.1 port=\d+ reason="a porta já .*" worker=1$/);
  },

  'Redis fora do ar: uma linha, código 1, ninguém insiste': async () => {
    const line = await failed_start(['-R', `127.0.0.1:${await closed_port()}/1`]);
    assert.match(line, /^fatal redis=\S+ reason="ninguém escuta nesse endereço; .*" worker=1$/);
  },

  'o primeiro processo morto por um sinal antes de atender: uma linha, código 1': async () => {
    const own = await start_redis();
    own.process.kill('SIGSTOP');
    try {
      const program = await run_proxy(['-w', '2', '-p', '0', '-R', own.server]);
      await program.wait_for(/ start /);
      const child = await until('filho', () => children_of(program.process.pid)[0]);
      process.kill(child, 'SIGKILL');
      assert.equal(await exit_of(program), 1);
      assert.match(program.stderr(), /^\S+ fatal reason="o primeiro processo .*: SIGKILL"\n$/);
      assert.equal(program.stdout().split('\n').length, 2);
    } finally {
      own.process.kill('SIGCONT');
    }
  },

  'configuração ruim: código 2, uma linha, nenhum processo': async () => {
    for (const [args, shown] of [
      [['-w', '0'], 'WORKERS (-w) inválido: "0"; aceito: auto ou um inteiro de 1 a 64'],
      [['-w', '2', '-p', 'x'], 'HTTP_PORT (-p) inválido: "x"; aceito: um inteiro de 0 a 65535'],
    ] as const) {
      const program = await run_proxy([...args]);
      assert.equal(await exit_of(program), 2);
      assert.equal(program.stderr(), `json-proxy: ${shown}\n`);
      assert.equal(program.stdout(), '');
    }
  },

  'sinal antes de o primeiro atender: sai com 0': async () => {
    const own = await start_redis();
    own.process.kill('SIGSTOP');
    try {
      const program = await run_proxy(['-w', '2', '-p', '0', '-R', own.server]);
      await until('filho', () => children_of(program.process.pid).length > 0);
      program.process.kill('SIGTERM');
      assert.equal(await exit_of(program), 0);
      assert.match(
        program.stdout(),
        / start [\s\S]* stop signal=SIGTERM grace=10000\n[\s\S]* stopped\n$/,
      );
      assert.equal(program.stderr(), '');
    } finally {
      own.process.kill('SIGCONT');
    }
  },

  'sinal antes de o primeiro acabar de carregar, direto do fonte: sai com 0': async () => {
    const args = ['--import', 'tsx', 'json-proxy.ts', '-w', '2', '-p', '0', '-R', redis.server];
    const program = start_program(process.execPath, args, {}, path.join(__dirname, '..'));
    await program.wait_for(/ start /);
    await until('filho', () => children_of(program.process.pid).length > 0);
    program.process.kill('SIGTERM');
    assert.equal(await exit_of(program, 3 * patience_ms), 0);
    assert.doesNotMatch(program.stdout(), /process_ready/);
    assert.equal(program.stderr(), '');
  },

  'o supervisor morto com kill -9 antes de o primeiro atender: ninguém fica': async () => {
    const own = await start_redis();
    own.process.kill('SIGSTOP');
    try {
      const program = await run_proxy(['-w', '2', '-p', '0', '-R', own.server]);
      const child = await until('filho', () => children_of(program.process.pid)[0]);
      program.process.kill('SIGKILL');
      await exit_of(program);
      await gone(child);
      assert.equal(program.stderr(), '');
    } finally {
      own.process.kill('SIGCONT');
    }
  },
};

/** A morte de um processo. */
const dying: Record<string, () => Promise<void>> = {
  'kill -9 num processo: os fluxos do outro seguem, outro o substitui, a pausa cresce':
    async () => {
      const scene = await start_crew();
      const { proxy, db, worker } = scene;
      const [kept, cut] = await begin_on_both(scene);
      const survivor = await pid_of(proxy, 1);
      for (const [round, pause] of [100, 200, 400].entries()) {
        const pid = await pid_of(proxy, 2, round + 1);
        process.kill(pid, 'SIGKILL');
        await proxy.wait_for(new RegExp(` process_died worker=2 signal=SIGKILL pause=${pause}\n`));
        await db.rPush(kept.task.task_list, `morte ${round}`);
        assert.equal(await kept.stream.next(), `morte ${round}`);
        assert.notEqual(await pid_of(proxy, 2, round + 2), pid);
      }
      await assert.rejects(cut.stream.rest());
      const fresh = await begin_on_both(scene);
      await Promise.all(fresh.map((one) => finish(scene, one, ['a', 'b', 'c'])));
      await finish(scene, kept, ['penúltima', 'última']);
      assert.equal(await pid_of(proxy, 1), survivor);
      await proxy.stop();
      assert.equal(proxy.stderr().trimEnd().split('\n').length, 3, proxy.stderr());
      assert.equal(count_of(proxy.stdout(), 'listen'), 1);
      assert.deepEqual(worker.pending, []);
      await db.del(cut.task.task_key);
    },

  'erro inesperado num processo: a linha fatal é dele, e outro o substitui': async () => {
    const preload = path.join(temp_dir(), 'bomb.cjs');
    write_file(preload, "process.on('SIGUSR2', () => { throw new Error('bum'); });\n");
    const env = { NODE_OPTIONS: `--require ${preload}` };
    const proxy = await start_proxy(redis, ['-w', '2'], env);
    process.kill(await pid_of(proxy, 2), 'SIGUSR2');
    await pid_of(proxy, 2, 2);
    const fatal = `${stamp} fatal reason="Error: bum.*" worker=2`;
    const died = `${stamp} process_died worker=2 code=1 pause=100`;
    assert.match(proxy.stderr(), new RegExp(`^${fatal}\n${died}\n$`));
    assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
    assert.equal(await proxy.stop(), 0);
  },

  'substituto que não entende as configurações: sai, e outro serve quando elas voltam':
    async () => {
      const file = path.join(temp_dir(), 'chaves');
      write_file(file, 'chave');
      const proxy = await start_proxy(redis, ['-w', '2', '--api-key-file', file]);
      const second = await pid_of(proxy, 2);
      rename(file, `${file}.fora`);
      process.kill(second, 'SIGKILL');
      await proxy.wait_for(/ process_died worker=2 code=2 pause=200\n/);
      rename(`${file}.fora`, file);
      await pid_of(proxy, 2, 2);
      assert.match(proxy.stderr(), /^json-proxy: API_KEY_FILE .* inválido: /m);
      assert.equal(await proxy.stop(), 0);
    },

  'a pausa recomeça depois que um substituto viveu bastante': async () => {
    const preload = path.join(temp_dir(), 'clock.cjs');
    // Só aqui o relógio é adiantado: o teste não pode esperar um minuto.
    const jump = `const real = performance.now.bind(performance); let ahead = 0;
      performance.now = () => real() + ahead;
      process.on('SIGUSR2', () => { ahead += 60_000; console.log('adiantado'); });\n`;
    write_file(preload, jump);
    const proxy = await start_proxy(redis, ['-w', '2'], { NODE_OPTIONS: `--require ${preload}` });
    const kill_second = async (round: number) => {
      process.kill(await pid_of(proxy, 2, round), 'SIGKILL');
      await until('registro', () => count_of(proxy.stderr(), 'process_died') === round);
    };
    await kill_second(1);
    await kill_second(2);
    await pid_of(proxy, 2, 3);
    proxy.process.kill('SIGUSR2');
    await proxy.wait_for(/^adiantado\n/m);
    await kill_second(3);
    await kill_second(4);
    const pauses = proxy.stderr().match(/(?<=SIGKILL pause=)\d+/g);
    assert.deepEqual(pauses, ['100', '200', '100', '200']);
    assert.equal(await proxy.stop(), 0);
  },

  'o sistema não deixa subir um substituto: tenta-se de novo': async () => {
    const preload = path.join(temp_dir(), 'poor.cjs');
    // Só aqui a criação de processos é trocada: o terceiro não tem memória, o quarto não tem nem
    // executável; o Node conta um pela exceção, o outro pelo evento "error".
    const poor = `const { prototype } = require('node:child_process').ChildProcess;
      const { spawn } = prototype; let count = 0;
      prototype.spawn = function (options) {
        count += 1;
        if (count === 3) throw Object.assign(new Error('spawn ENOMEM'), { code: 'ENOMEM' });
        return spawn.call(this, count === 4 ? { ...options, file: '/nada' } : options);
      };\n`;
    write_file(preload, poor);
    const proxy = await start_proxy(redis, ['-w', '2'], { NODE_OPTIONS: `--require ${preload}` });
    process.kill(await pid_of(proxy, 2), 'SIGKILL');
    await pid_of(proxy, 2, 2);
    const ends = proxy.stderr().match(/(?<=process_died )worker=.*/g);
    assert.deepEqual(ends, [
      'worker=2 signal=SIGKILL pause=100',
      'worker=2 code=ENOMEM pause=200',
      'worker=2 code=ENOENT pause=400',
    ]);
    assert.equal((await fetch_all(proxy, { path: '/ping' })).body, 'pong');
    assert.equal(await proxy.stop(), 0);
  },

  'os dois mortos: o programa volta a atender': async () => {
    const scene = await start_crew();
    const { proxy } = scene;
    for (const slot of [1, 2]) process.kill(await pid_of(proxy, slot), 'SIGKILL');
    for (const slot of [1, 2]) await pid_of(proxy, slot, 2);
    // sem nenhum deles a porta se fecha; com HTTP_PORT 0, a nova pode ser outra, e o log o diz
    const found = [...proxy.stdout().matchAll(/ listen url=\S+:(\d+)\n/g)].at(-1);
    const moved = { ...scene, proxy: { ...proxy, port: Number(found?.[1]) } };
    const fresh = await begin_on_both(moved);
    await Promise.all(fresh.map((one) => finish(moved, one, ['a', 'b'])));
    assert.equal(await proxy.stop(), 0);
  },

  'a conexão entregue a um processo que morre sem aceitá-la é fechada': async () => {
    const scene = await start_crew(long_grace);
    const { proxy, channel } = scene;
    const [kept, cut] = await begin_on_both(scene);
    const pid = await pid_of(proxy, 2);
    process.kill(pid, 'SIGSTOP');
    const sockets = await Promise.all([1, 2, 3, 4].map(() => open_socket(proxy.port)));
    for (const socket of sockets) socket.send('GET /ping HTTP/1.1\r\nHost: a\r\n\r\n');
    const answered = () => sockets.filter((socket) => socket.text().endsWith('pong'));
    await until('três respostas', () => answered().length === 3);
    process.kill(pid, 'SIGKILL');
    const [waiting] = sockets.filter((socket) => !answered().includes(socket));
    await waiting?.closed();
    await assert.rejects(cut.stream.rest());
    await pid_of(proxy, 2, 2);
    // e ele não segura a porta depois
    await ask_to_stop(proxy);
    const successor = await start_proxy(redis, ['-C', channel, '-p', String(proxy.port)]);
    await finish(scene, kept, ['última']);
    await check_clean_exit(proxy);
    await successor.stop();
    await scene.db.del(cut.task.task_key);
  },

  'Redis fora do ar mais tarde: quem morre é trocado sem fim, e tudo volta com ele': async () => {
    const own = await start_redis();
    const scene = await start_crew([], own);
    const { proxy } = scene;
    const survivor = await pid_of(proxy, 1);
    await own.stop('SIGKILL');
    await proxy.wait_for(/ redis_down .* worker=1\n/);
    await proxy.wait_for(/ redis_down .* worker=2\n/);
    process.kill(await pid_of(proxy, 2), 'SIGKILL');
    await proxy.wait_for(/ process_died worker=2 code=1 pause=400\n/);
    const died = proxy.stderr().match(/(?:fatal redis|process_died).*/g) ?? [];
    const fatal = /^fatal redis=\S+ reason="ninguém escuta .*" worker=2$/;
    assert.equal(died[0], 'process_died worker=2 signal=SIGKILL pause=100');
    assert.match(died[1] ?? '', fatal);
    assert.equal(died[2], 'process_died worker=2 code=1 pause=200');
    assert.match(died[3] ?? '', fatal);
    assert.equal((await fetch_all(proxy, { path: '/ping' })).status, 500);
    await start_redis([], { port: own.port, dir: own.dir });
    await pid_of(proxy, 2, 2);
    await proxy.wait_for(/ redis_up .* worker=1\n/);
    const worker = await start_worker(own, scene.channel);
    const revived = { ...scene, worker, db: worker.client };
    const fresh = await begin_on_both(revived);
    await Promise.all(fresh.map((one) => finish(revived, one, ['a', 'b'])));
    assert.equal(await pid_of(proxy, 1), survivor);
    assert.equal(await proxy.stop(), 0);
  },

  'parada durante uma pausa: ela não é esperada, e ninguém mais sobe': async () => {
    const preload = path.join(temp_dir(), 'slow.cjs');
    // Só aqui a pausa é esticada, para mais do que o teste espera.
    const slow = `const timers = require('node:timers/promises'); const real = timers.setTimeout;
      timers.setTimeout = (ms, ...rest) => real(ms * 1000, ...rest);\n`;
    write_file(preload, slow);
    const proxy = await start_proxy(redis, ['-w', '2'], { NODE_OPTIONS: `--require ${preload}` });
    process.kill(await pid_of(proxy, 2), 'SIGKILL');
    await proxy.wait_for(/ process_died worker=2 signal=SIGKILL pause=100\n/);
    await ask_to_stop(proxy);
    await check_clean_exit(proxy);
    assert.equal(proxy.stdout().match(/ wakeup .* worker=2\n/g)?.length, 1);
  },
};

/**
 * Faz pedidos sem parar, oito por vez, até que o proxy não aceite mais.
 * @param proxy o proxy
 * @returns quantos foram atendidos; todos terminam, de um modo ou de outro
 */
async function knock(proxy: proxy): Promise<number> {
  let answered = 0;
  const one = async () => {
    try {
      for (;;) {
        const { status } = await fetch_all(proxy, { path: '/ping' });
        if (status !== 200) return;
        answered += 1;
      }
    } catch {
      // recusada ou fechada: ele parou
    }
  };
  await Promise.all(Array.from({ length: 8 }, one));
  return answered;
}

/** A parada. */
const stopping: Record<string, () => Promise<void>> = {
  'SIGTERM sob carga: um fluxo termina a tempo, o outro é cortado com a última linha': async () => {
    const scene = await start_crew(['--grace', '3000']);
    const { proxy, db } = scene;
    const [quick, slow] = await begin_on_both(scene);
    const knocking = knock(proxy);
    await until('pedidos', async () => (await fetch_all(proxy, { path: '/ping' })).body === 'pong');
    await ask_to_stop(proxy);
    await finish(scene, quick, ['segunda', 'terceira']);
    assert.deepEqual(await slow.stream.rest(), [goodbye]);
    await check_clean_exit(proxy);
    assert.ok((await knocking) > 0);
    await check_tombstone(db, slow.task);
    for (const slot of [1, 2]) {
      const asked = ` stop signal=SIGTERM streams=\\d+ grace=3000 worker=${slot}\n`;
      const obeyed = ` stopped streams=0 worker=${slot}\n`;
      assert.match(proxy.stdout(), new RegExp(`${asked}[\\s\\S]*${obeyed}`));
    }
    assert.match(
      proxy.stdout(),
      new RegExp(` end task=${quick.task.uuid} ending=done .* worker=1\n`),
    );
    assert.match(
      proxy.stdout(),
      new RegExp(` end task=${slow.task.uuid} ending=shutdown .* worker=2\n`),
    );
    assert.doesNotMatch(proxy.stderr(), /fatal|died|error/);
  },

  'a porta fica livre na hora, mesmo com um processo travado': async () => {
    const scene = await start_crew(long_grace);
    const { proxy, worker, db, channel } = scene;
    const [first, second] = await begin_on_both(scene);
    const hung = await pid_of(proxy, 2);
    process.kill(hung, 'SIGSTOP');
    try {
      await ask_to_stop(proxy);
      const successor = await start_proxy(redis, ['-C', channel, '-p', String(proxy.port)]);
      const fresh = open_stream(successor);
      const task = await worker.next();
      await db.rPush(task.task_list, ['nova', 'EOF']);
      assert.deepEqual(await fresh.rest(), ['nova']);
      await successor.stop();
    } finally {
      process.kill(hung, 'SIGCONT');
    }
    await finish(scene, first, ['segunda', 'terceira']);
    await finish(scene, second, ['segunda', 'terceira']);
    await check_clean_exit(proxy);
    assert.equal(proxy.stderr(), '');
  },

  'segundo sinal: todos saem na hora': async () => {
    const scene = await start_crew(long_grace);
    const { proxy, db } = scene;
    const begun = await begin_on_both(scene);
    const pids = [await pid_of(proxy, 1), await pid_of(proxy, 2)];
    await ask_to_stop(proxy);
    proxy.process.kill('SIGINT');
    assert.equal(await exit_of(proxy), 130);
    for (const pid of pids) await gone(pid);
    assert.match(proxy.stderr(), new RegExp(`^${stamp} killed signal=SIGINT\n$`));
    assert.doesNotMatch(proxy.stdout(), / stopped/);
    for (const { stream, task } of begun) {
      await assert.rejects(stream.rest());
      await db.del(task.task_key);
    }
  },

  'Ctrl-C num terminal chega ao grupo inteiro e conta uma vez só': async () => {
    const channel = 'jobs_terminal';
    const args = ['-p', '0', '--host', '127.0.0.1', '-R', redis.server, '-C', channel, '-w', '2'];
    const command = [await program_file(), ...args, ...brisk, ...long_grace];
    const program = start_program(process.execPath, command, {}, temp_dir(), true);
    await pid_of(program, 2);
    const [, url = '', port] = await program.wait_for(/ listen url=(\S+:(\d+))\n/);
    const worker = await start_worker(redis, channel);
    const proxy: proxy = { ...program, url, port: Number(port) };
    const scene = { proxy, worker, db: worker.client, channel };
    const [first, second] = await begin_on_both(scene);
    process.kill(-(program.process.pid ?? 0), 'SIGINT');
    await program.wait_for(/ stop signal=SIGINT grace=600000\n/);
    await program.wait_for(/ stop signal=SIGINT streams=1 grace=600000 worker=1\n/);
    await program.wait_for(/ stop signal=SIGINT streams=1 grace=600000 worker=2\n/);
    await finish(scene, first, ['segunda', 'terceira']);
    await finish(scene, second, ['segunda', 'terceira']);
    await check_clean_exit(proxy);
    assert.equal(program.stderr(), '');
  },

  'SIGTERM e SIGINT num processo só não o param': async () => {
    const scene = await start_crew();
    const { proxy } = scene;
    const begun = await begin_on_both(scene);
    const pid = await pid_of(proxy, 2);
    process.kill(pid, 'SIGTERM');
    process.kill(pid, 'SIGINT');
    await Promise.all(begun.map((one) => finish(scene, one, ['segunda', 'terceira'])));
    const fresh = await begin_on_both(scene);
    await Promise.all(fresh.map((one) => finish(scene, one, [])));
    assert.equal(await pid_of(proxy, 2), pid);
    assert.equal(await proxy.stop(), 0);
    assert.equal(proxy.stderr(), '');
  },

  'o supervisor morto com kill -9: os fluxos terminam, a porta se abre, ninguém fica': async () => {
    const scene = await start_crew(long_grace);
    const { proxy, channel } = scene;
    const [first, second] = await begin_on_both(scene);
    const pids = [await pid_of(proxy, 1), await pid_of(proxy, 2)];
    // os dois têm uma conexão a caminho, cuja resposta não terá a quem chegar
    for (const pid of pids) process.kill(pid, 'SIGSTOP');
    const open_files = () => list_dir(`/proc/${proxy.process.pid}/fd`).length;
    const before = open_files();
    const late = await Promise.all([1, 2, 3].map(() => open_socket(proxy.port)));
    await until('conexões aceitas', () => open_files() >= before + late.length);
    proxy.process.kill('SIGKILL');
    await gone(proxy.process.pid ?? 0);
    for (const pid of pids) process.kill(pid, 'SIGCONT');
    for (const socket of late) await socket.closed();
    await proxy.wait_for(/ stop signal=disconnect streams=1 grace=600000 worker=1\n/);
    await proxy.wait_for(/ stop signal=disconnect streams=1 grace=600000 worker=2\n/);
    const successor = await start_proxy(redis, ['-C', channel, '-p', String(proxy.port)]);
    await finish(scene, first, ['segunda', 'terceira']);
    await finish(scene, second, ['segunda', 'terceira']);
    await exit_of(proxy);
    for (const pid of pids) await gone(pid);
    for (const slot of [1, 2]) {
      assert.match(proxy.stdout(), new RegExp(` stopped streams=0 worker=${slot}\n`));
    }
    assert.equal(proxy.stderr(), '');
    await successor.stop();
  },

  'o supervisor morto com kill -9 e GRACE esgotado: a última linha chega': async () => {
    const scene = await start_crew(['--grace', '0']);
    const { proxy, db } = scene;
    const begun = await begin_on_both(scene);
    proxy.process.kill('SIGKILL');
    for (const { stream, task } of begun) {
      assert.deepEqual(await stream.rest(), [goodbye]);
      await check_tombstone(db, task);
    }
    await exit_of(proxy);
    assert.equal(proxy.stderr(), '');
  },
};

for (const [title, tests] of Object.entries({
  'vários processos atendem': serving,
  'vários processos não conseguem subir': starting,
  'um processo morre': dying,
  'vários processos param': stopping,
})) {
  describe(title, { concurrency: tests_at_once }, () => {
    for (const [name, run] of Object.entries(tests)) test(name, run);
  });
}
