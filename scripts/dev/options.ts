/*
 * A linha de comando das provas longas: como as opções se leem, como se recusa o que não vale, e o
 * único caminho por que uma prova acaba.
 */

import { parseArgs as parse_args, type ParseArgsConfig as parse_config } from 'node:util';
import { forget_settings, run_to_exit } from './local';

/** Erro de uso: a mensagem é a linha que o usuário lê. */
export class option_error extends Error {}

/** Uma tabela de opções, na forma de parseArgs. */
type option_table = NonNullable<parse_config['options']>;

/** Código de saída de erro de uso. */
const usage_exit_code = 2;

/**
 * Separa os argumentos `argv`, sem o nome do programa.
 * @returns os textos dados, por opção
 * @throws option_error em opção desconhecida, sem valor, ou argumento solto
 */
export function parse_options<table extends option_table>(argv: string[], options: table) {
  try {
    return parse_args({ args: argv, options }).values;
  } catch (error) {
    const [reason = ''] = (error as Error).message.split(/\. |\n/);
    throw new option_error(`${reason}; --help mostra as opções aceitas`);
  }
}

/** Monta o erro que recusa um valor. `flag`: o nome longo; `accepted`: o que seria aceito. */
export function bad_option(flag: string, text: string, accepted: string): option_error {
  return new option_error(`--${flag} inválido: ${JSON.stringify(text)}; aceito: ${accepted}`);
}

/** Lê uma opção `flag`, que liga ou desliga. */
export function read_switch(flag: string, text: string): boolean {
  if (text !== 'on' && text !== 'off') throw bad_option(flag, text, 'on ou off');
  return text === 'on';
}

/**
 * Lê uma lista de nomes, cada um entre os conhecidos.
 * @param what o que cada nome é, para a mensagem
 * @returns os pedidos, na ordem dos conhecidos
 */
export function read_names<name extends string>(
  what: string,
  wanted: readonly string[],
  known: readonly name[],
  accepted = String(known),
): name[] {
  const unknown = wanted.find((item) => !known.includes(item as name));
  if (unknown === undefined) return known.filter((item) => wanted.includes(item));
  throw new option_error(`${what} desconhecida: ${JSON.stringify(unknown)}; aceito: ${accepted}`);
}

/**
 * Roda uma prova e sai com o código que ela devolve; com 2, e uma linha, se foi mal pedida; com 1
 * se não chegou ao fim. As configurações do proxy que houver no ambiente não a alcançam.
 * @param name o comando, para as mensagens
 * @param failed o que dizer se ela não chega ao fim
 */
export function run_tool(
  name: string,
  failed: string,
  main: (argv: string[]) => Promise<number>,
): void {
  forget_settings();
  run_to_exit(async () => {
    try {
      return await main(process.argv.slice(2));
    } catch (error) {
      if (error instanceof option_error) console.error(`${name}: ${error.message}`);
      else console.error(`\n${failed}:`, error);
      return error instanceof option_error ? usage_exit_code : 1;
    }
  });
}
