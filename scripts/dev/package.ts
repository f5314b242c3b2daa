/*
 * Empacota o projeto com `npm pack` e instala o pacote numa pasta vazia, sem rede, como quem o
 * recebeu: o programa já leva tudo dentro, e não há dependência a baixar.
 */

import { execFileSync as run } from 'node:child_process';
import {
  cpSync as copy_tree,
  readdirSync as list_dir,
  mkdirSync as make_dir,
  symlinkSync as make_link,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import { temp_dir } from './local';

const root = path.join(__dirname, '..', '..');

/** O que não vai na cópia do projeto: o que é montado, e o que é grande. */
const left_out = new Set(['.git', 'node_modules', 'json-proxy.js', 'bin', 'kit']);

/**
 * Roda o npm.
 * @param args argumentos
 * @param cwd diretório de trabalho
 * @returns o que ele escreveu na saída padrão
 * @throws Error se ele falhou
 */
function run_npm(args: string[], cwd: string): string {
  return run('npm', args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

/**
 * Empacota uma cópia do projeto, na qual o programa ainda não foi montado. As bibliotecas são as
 * daqui, e contam como recém-instaladas: o `prepack` monta, e não instala.
 * @returns o caminho do pacote
 */
export function pack_project(): string {
  const copy = temp_dir();
  for (const name of list_dir(root).filter((entry) => !left_out.has(entry))) {
    copy_tree(path.join(root, name), path.join(copy, name), {
      recursive: true,
      preserveTimestamps: true,
    });
  }
  const modules = path.join(root, 'node_modules');
  make_dir(path.join(copy, 'node_modules'));
  for (const name of list_dir(modules).filter((entry) => entry !== '.package-lock.json')) {
    make_link(path.join(modules, name), path.join(copy, 'node_modules', name));
  }
  write_file(path.join(copy, 'node_modules', '.package-lock.json'), '{}');
  const lines = run_npm(['pack', '--silent'], copy).trim().split('\n'); // o prepack também fala
  return path.join(copy, lines.at(-1) ?? '');
}

/**
 * Instala um pacote numa pasta vazia, sem rede e sem o que o npm já tenha baixado.
 * @param file o pacote
 * @returns a pasta
 */
export function install_package(file: string): string {
  const dir = temp_dir();
  const cache = ['--offline', '--cache', temp_dir()];
  run_npm(['install', '--silent', '--no-audit', '--no-fund', ...cache, file], dir);
  return dir;
}
