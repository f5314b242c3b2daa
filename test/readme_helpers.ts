/*
 * Os manuais como dados: títulos, tabelas, blocos de código; e um worker tirado de um deles, no ar
 * contra o proxy de verdade.
 */

import assert from 'node:assert/strict';
import {
  copyFileSync as copy_file,
  symlinkSync as link,
  readFileSync as read_file,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import { marked as markdown } from 'marked';
import { on_stop } from '../scripts/dev/local';
import {
  connect_redis,
  type redis_client,
  start_program,
  start_proxy,
  start_redis,
  temp_dir,
  until,
} from './harness';

/** Um bloco de código; `language` é o que vem depois das três crases. */
export type code_block = { language: string; text: string };

/** Uma tabela; as células vêm sem as barras. */
export type manual_table = { header: string[]; rows: string[][] };

/** Um manual. `headings` como no arquivo, com os "#"; `prose` é tudo o que não está em bloco. */
export type manual = {
  file: string;
  headings: string[];
  blocks: code_block[];
  tables: manual_table[];
  prose: string;
};

const root = path.join(__dirname, '..');

/** O que só há, em cada linguagem, no worker do manual que usa o kit. */
const kit_marks: Record<string, string> = {
  ts: "from './worker.ts'",
  python: 'from worker import',
  sh: 'sh worker.sh',
};

/**
 * Lê um manual.
 * @param file caminho a partir da raiz do projeto, por exemplo "README.md"
 * @returns o manual em partes
 */
export function read_manual(file: string): manual {
  const found: manual = { file, headings: [], blocks: [], tables: [], prose: '' };
  const text_of = (cells: { text: string }[]) => cells.map(({ text }) => text);
  for (const token of markdown.lexer(read_file(path.join(root, file), 'utf8'))) {
    if (token.type === 'code') found.blocks.push({ language: token.lang, text: `${token.text}\n` });
    else found.prose += token.raw;
    if (token.type === 'heading') found.headings.push(token.raw.trimEnd());
    if (token.type === 'table') {
      found.tables.push({ header: text_of(token.header), rows: token.rows.map(text_of) });
    }
  }
  return found;
}

/**
 * Dá o que está entre crases.
 * @param text texto em Markdown
 * @returns os trechos, na ordem
 */
export function code_spans(text: string): string[] {
  return [...text.matchAll(/`([^`]+)`/g)].map(([, span = '']) => span);
}

/**
 * Cria um usuário do Redis só com os direitos que o manual diz bastarem.
 * @param db quem manda no Redis
 * @param who começo da linha da tabela de direitos, no MANUAL.md: "The proxy"
 * @param channels os canais, letra por letra
 * @param has_stream se também os da linha "…, with a stream also"
 * @returns o nome do usuário; a senha é a mesma
 */
export async function create_user(
  db: redis_client,
  who: string,
  channels = ['ndjson_jobs'],
  has_stream = false,
): Promise<string> {
  const { tables } = read_manual('MANUAL.md');
  const { rows = [] } = tables.find(({ header }) => header[0] === 'Who') ?? {};
  const of = (whose: string) => code_spans(rows.find(([cell]) => cell === whose)?.[1] ?? '');
  const more = has_stream ? of(`${who}, with a stream also`) : [];
  const commands = [...of(who), ...more];
  assert.ok(of(who).length >= 9 && (!has_stream || more.length >= 4), who);
  const name = who.toLowerCase().replaceAll(' ', '_');
  const heard = channels.map((channel) => `&${channel}`);
  const rights = ['~ndjson_*', ...heard, '-@all', ...commands.map((one) => `+${one}`)];
  await db.sendCommand(['ACL', 'SETUSER', name, 'on', `>${name}`, ...rights]);
  return name;
}

/**
 * Diz o que o Redis recusou por falta de direitos.
 * @param db quem manda no Redis
 * @returns os comandos, chaves ou canais; sem CLIENT SETINFO, com que a biblioteca se apresenta e
 *   de cuja recusa não cuida
 */
export async function denied_objects(db: redis_client): Promise<(string | undefined)[]> {
  const denied = (await db.sendCommand(['ACL', 'LOG'])) as unknown as string[][];
  const objects = denied.map((entry) => entry[entry.indexOf('object') + 1]);
  return objects.filter((name) => name !== 'client|setinfo');
}

/**
 * Dá o código de um worker do manual, apontado para outro Redis.
 * @param file o manual
 * @param language linguagem do bloco: "ts", "python" ou "sh"
 * @param port porta do Redis, no lugar de 6379
 * @param kit nome do arquivo do kit que ele usa; vazio se é o que não usa nenhum
 * @returns o código
 */
export function worker_code(file: string, language: string, port: number, kit = ''): string {
  const mark = kit ? kit_marks[language] : 'subscribe';
  const found = read_manual(file).blocks.filter(
    (block) => block.language === language && block.text.includes(mark ?? kit),
  );
  assert.equal(found.length, 1, `${file}: ${found.length} workers em ${language}`);
  const code = found[0]?.text ?? '';
  assert.equal(code.split('6379').length, 2, `${file}: o endereço aparece uma vez só`);
  assert.ok(code.trimEnd().split('\n').length <= 10, `${file}: passa de dez linhas`);
  return code.replace('6379', String(port));
}

/**
 * Sobe um Redis, o proxy e um worker dos manuais (o do kit está no MANUAL.md), e espera que ele
 * escute o canal. O worker tem um grupo de processos só dele, que desce inteiro: o de shell é mais
 * de um processo.
 * @param language linguagem do bloco
 * @param file_name nome com que o código é salvo
 * @param command o executável
 * @param args argumentos antes do arquivo
 * @param kit o arquivo do kit a pôr ao lado dele, por exemplo "worker.ts"; vazio se não usa
 * @returns o proxy, o worker e um cliente do Redis
 */
export async function start_manual_worker(
  language: string,
  file_name: string,
  command: string,
  args: string[] = [],
  kit = '',
) {
  const redis = await start_redis();
  const proxy = await start_proxy(redis);
  const client = await connect_redis(redis);
  const dir = temp_dir();
  link(path.join(root, 'node_modules'), path.join(dir, 'node_modules'));
  if (kit) copy_file(path.join(root, 'scripts', 'worker', kit), path.join(dir, kit));
  const file = kit ? 'MANUAL.md' : 'README.md';
  write_file(path.join(dir, file_name), worker_code(file, language, redis.port, kit));
  const worker = start_program(command, [...args, file_name], {}, dir, true);
  on_stop(async () => {
    if (worker.process.exitCode === null) process.kill(-(worker.process.pid ?? 0), 'SIGKILL');
  });
  await until(`worker no canal; ${worker.stderr()}`, async () => {
    assert.equal(worker.process.exitCode, null, worker.stderr());
    return Number((await client.pubSubNumSub('ndjson_jobs')).ndjson_jobs) > 0;
  });
  return { proxy, worker, client };
}
