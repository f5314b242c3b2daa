/*
 * Os arquivos do serviço do systemd, conferidos com o programa, e o script que os instala, numa
 * pasta. O que precisa do systemd está em test/extra/systemd.test.ts.
 */

import assert from 'node:assert/strict';
import { execFileSync as run } from 'node:child_process';
import {
  chmodSync as change_mode,
  statSync as file_stats,
  symlinkSync as make_link,
  readFileSync as read_file,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import { describe } from 'node:test';
import { settings_table, version } from '../json-proxy';
import { program_file, start_program, temp_dir, test } from './harness';

const folder = path.join(__dirname, '..', 'scripts', 'deploy', 'systemd');
const unit = read_file(path.join(folder, 'json-proxy.service'), 'utf8');
const environment = read_file(path.join(folder, 'json-proxy.env'), 'utf8');
const program = read_file(path.join(__dirname, '..', 'json-proxy.ts'), 'utf8');

/** Onde o script põe cada coisa. */
const places = {
  program: 'opt/json-proxy/json-proxy.js',
  unit: 'etc/systemd/system/json-proxy.service',
  settings: 'etc/json-proxy.env',
};

/**
 * Lê um valor da unidade.
 * @param name por exemplo "RestartSec"
 * @returns o texto
 */
function unit_value(name: string): string {
  const [, value] = new RegExp(`^${name}=(.*)$`, 'm').exec(unit) ?? [];
  assert.ok(value !== undefined, `a unidade não diz ${name}`);
  return value;
}

/**
 * Lê um número que o programa tem por constante.
 * @param name nome da constante
 * @returns o número
 */
function constant(name: string): number {
  const [, text] = new RegExp(`^const ${name} = ([\\d_]+);`, 'm').exec(program) ?? [];
  assert.ok(text, `o programa não tem ${name}`);
  return Number(text.replaceAll('_', ''));
}

/**
 * Dá o padrão de uma configuração.
 * @param name nome da configuração
 * @returns o padrão
 */
function fallback_of(name: string): number {
  return Number(settings_table.find((row) => row.name === name)?.fallback);
}

/**
 * Faz uma pasta com um comando "node" dentro, para pôr no começo do PATH.
 * @param body o que ele faz, em shell
 * @returns a pasta
 */
function node_dir(body: string): string {
  const dir = temp_dir();
  write_file(path.join(dir, 'node'), `#!/bin/sh\n${body}\n`, { mode: 0o755 });
  return dir;
}

/** Um "node" que não mora na pasta de ninguém, como pode ser o que roda os testes. */
const any_node = node_dir(`exec "${process.execPath}" "$@"`);

/**
 * Roda o script de instalação numa pasta.
 * @param root a pasta
 * @param args argumentos
 * @param search onde procurar comandos
 * @returns o código de saída e o que foi escrito
 */
async function install(root: string, args: string[], search = `${any_node}:${process.env.PATH}`) {
  const script = path.join(folder, 'install.sh');
  const shell = start_program('/bin/sh', [script, ...args], { DESTDIR: root, PATH: search });
  return { code: await shell.exited, stdout: shell.stdout(), stderr: shell.stderr() };
}

describe('arquivos do systemd', () => {
  test('o de configurações tem todas, na ordem, com o padrão e uma linha que as explica', () => {
    const [, ...entries] = environment.trimEnd().split('\n\n');
    const expected = settings_table.map(({ name, fallback, help }) => {
      return `# ${help}\n#${name}=${fallback}`;
    });
    assert.deepEqual(entries, expected);
  });

  test('a parada espera por GRACE, pela despedida e pelo log; há arquivos para MAXTASKS', () => {
    const stop_ms = fallback_of('GRACE') + constant('farewell_ms') + constant('log_limit_ms');
    const allowed_ms = 1000 * Number(unit_value('TimeoutStopSec'));
    assert.ok(allowed_ms >= stop_ms, `${allowed_ms} ms para uma parada de até ${stop_ms} ms`);
    assert.ok(Number(unit_value('LimitNOFILE')) > 2 * fallback_of('MAXTASKS'));
  });

  test('tenta-se de novo para sempre, menos depois de um erro de configuração', () => {
    assert.equal(unit_value('Restart'), 'always');
    assert.equal(unit_value('StartLimitIntervalSec'), '0');
    assert.equal(Number(unit_value('RestartPreventExitStatus')), constant('usage_exit_code'));
  });
});

describe('install.sh', { concurrency: true }, () => {
  test('instala, respeita as configurações numa reinstalação, e desinstala', async () => {
    const root = temp_dir();
    const at = (place: keyof typeof places) => path.join(root, places[place]);
    const first = await install(root, [await program_file()]);
    assert.deepEqual([first.code, first.stderr], [0, '']);
    assert.match(first.stdout, new RegExp(`^json-proxy ${version} instalado: `));
    assert.deepEqual(read_file(at('program')), read_file(await program_file()));
    assert.equal(read_file(at('settings'), 'utf8'), environment);
    assert.equal(file_stats(at('settings')).mode & 0o777, 0o600);
    const installed = read_file(at('unit'), 'utf8');
    const command = `ExecStart=${any_node}/node /opt/json-proxy/json-proxy.js`;
    assert.equal(installed, unit.replace(/^ExecStart=.*/m, command));
    write_file(at('settings'), 'PAUSE=0\n');
    change_mode(at('settings'), 0o644);
    const again = await install(root, [await program_file()]);
    assert.match(again.stdout, /json-proxy\.env já existia e ficou como estava, só o dono a lê\n/);
    assert.equal(file_stats(at('settings')).mode & 0o777, 0o600);
    assert.equal(read_file(at('settings'), 'utf8'), 'PAUSE=0\n');
    const gone = await install(root, ['--uninstall']);
    assert.deepEqual([gone.code, gone.stderr], [0, '']);
    assert.throws(() => file_stats(path.join(root, 'opt/json-proxy')), { code: 'ENOENT' });
    assert.throws(() => file_stats(at('unit')), { code: 'ENOENT' });
    assert.equal(read_file(at('settings'), 'utf8'), 'PAUSE=0\n');
  });

  test('recusa com clareza o que não serve, e não instala nada', async () => {
    const root = temp_dir();
    const other = path.join(temp_dir(), 'outro.js');
    write_file(other, '#!/usr/bin/env node\nprocess.exit(3);\n');
    const good = await program_file();
    const no_node = temp_dir();
    for (const name of ['dirname', 'head', 'readlink']) {
      make_link(run('which', [name]).toString().trim(), path.join(no_node, name));
    }
    const old_node = `${node_dir('exit 1')}:${process.env.PATH}`;
    const cases: [string[], number, RegExp, string?][] = [
      [['--desinstalar'], 2, /opção desconhecida: --desinstalar; aceito: /],
      [['a', 'b'], 2, /no máximo um argumento/],
      [['/nao/existe.js'], 1, /não há \/nao\/existe\.js; faça-o com: npm run build/],
      [[other], 1, /outro\.js não é o json-proxy/],
      [[good], 1, /falta o Node 20 ou mais novo/, no_node],
      [[good], 1, /node é antigo; o json-proxy precisa do Node 20/, old_node],
    ];
    for (const [args, code, message, search] of cases) {
      const result = await install(root, args, search);
      assert.equal(result.code, code, args.join(' '));
      assert.match(result.stderr, message);
      assert.throws(() => file_stats(path.join(root, 'opt')), { code: 'ENOENT' });
    }
  });
});
