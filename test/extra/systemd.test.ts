/*
 * O serviço do systemd: conferido por systemd-analyze, e rodando com todas as suas restrições sob
 * um systemd de verdade, que sobe isolado (boot_systemd.sh) e roda systemd_guest.sh.
 */

import assert from 'node:assert/strict';
import { execFileSync as run } from 'node:child_process';
import { copyFileSync as copy_file, cpSync as copy_tree, readFileSync as read_file } from 'node:fs';
import path from 'node:path';
import { build_binary } from '../../scripts/dev/binary';
import { exit_of, program_file, start_program, temp_dir, test } from '../harness';

const folder = path.join(__dirname, '..', '..', 'scripts', 'deploy', 'systemd');
const unit = path.join(folder, 'json-proxy.service');

/** A nota de exposição, de 0 a 10, que o serviço não pode alcançar. */
const exposure_limit = 2;

/** Prazo para o systemd subir e o roteiro acabar: leva uns 12 s. */
const boot_limit_ms = 120_000;

/** Código com que boot_systemd.sh diz que esta máquina não permite. */
const not_here = 77;

/** O que o roteiro escreve, salvo o que muda a cada vez. */
const expected_values = {
  enabled: 'enabled',
  installed: 'pong',
  stream: '{"n": 1}',
  CapBnd: '0000000000000000',
  NoNewPrivs: '1',
  Seccomp: '2',
  memory: 'hidden',
  killed: 'pong',
  defaults: 'pong',
  binary: 'pong',
  binary_stream: '{"n": 1}',
  command: '/opt/json-proxy/json-proxy',
  processes: '3',
  redis_back: 'pong',
  stop_result: 'success',
  bad_code: '2',
  bad_restarts: '0',
  uninstalled: 'not-found',
  left: '/etc/json-proxy.env',
  end: 'ok',
};

/** Só o Linux tem systemd. */
const skip = process.platform !== 'linux';

test('systemd-analyze aceita a unidade e lhe dá nota abaixo de 2', { skip }, async (context) => {
  const verify = start_program('systemd-analyze', ['verify', unit]);
  assert.deepEqual([await verify.exited, verify.stdout() + verify.stderr()], [0, '']);
  const args = ['security', '--offline=true', '--no-pager', unit];
  const report = run('systemd-analyze', args, { encoding: 'utf8' });
  const [line, exposure] = /Overall exposure level .*: (\d+\.\d)/.exec(report) ?? [];
  context.diagnostic(String(line));
  assert.ok(Number(exposure) < exposure_limit, report);
});

test('sob o systemd: instala, atende, volta, para, recusa, troca, sai', {
  skip,
}, async (context) => {
  const stage = temp_dir();
  copy_tree(folder, path.join(stage, 'systemd'), { recursive: true });
  copy_file(await program_file(), path.join(stage, 'json-proxy.js'));
  copy_file(path.join(__dirname, 'systemd_guest.sh'), path.join(stage, 'script'));
  await build_binary(path.join(stage, 'json-proxy'));
  const boot = start_program('/bin/sh', [path.join(__dirname, 'boot_systemd.sh'), stage]);
  const code = await exit_of(boot, boot_limit_ms);
  if (code === not_here) return context.skip(boot.stderr());
  assert.equal(code, 0, boot.stderr());
  const log = read_file(path.join(stage, 'log'), 'utf8');
  const values = Object.fromEntries([...log.matchAll(/^(\w+)=(.*)$/gm)].map((m) => [m[1], m[2]]));
  const { Uid: uid, sockets, ...fixed } = values;
  assert.deepEqual(fixed, expected_values, log);
  assert.ok(Number(uid) > 60_000, `o usuário do serviço é ${uid}`);
  assert.ok(Number(sockets) > 0, 'o serviço não lê a tabela de conexões');
  const journal = read_file(path.join(stage, 'journal'), 'utf8').trimEnd().split('\n');
  const entries = journal.map((line) => JSON.parse(line));
  const priority_of = (tag: RegExp) =>
    entries.find(
      ({ MESSAGE, SYSLOG_IDENTIFIER: from }) => from === 'json-proxy' && tag.test(MESSAGE),
    )?.PRIORITY;
  assert.equal(priority_of(/^listen url=/), '6');
  assert.equal(priority_of(/^no_worker task=/), '4');
  assert.equal(priority_of(/^fatal redis=/), '3');
});
