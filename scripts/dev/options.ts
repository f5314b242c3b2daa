/*
 * As opções de linha de comando das provas longas: como se leem, e como se recusa o que não vale.
 */

import { parseArgs as parse_args, type ParseArgsConfig as parse_config } from 'node:util';

/** Erro de uso: a mensagem é a linha que o usuário lê. */
export class option_error extends Error {}

/** Uma tabela de opções, na forma de parseArgs. */
type option_table = NonNullable<parse_config['options']>;

/**
 * Separa os argumentos.
 * @param argv argumentos sem o nome do programa
 * @param options as opções aceitas
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

/**
 * Recusa o valor de uma opção.
 * @param flag nome longo da opção
 * @param text o texto dado
 * @param accepted o que seria aceito
 * @returns o erro a lançar
 */
export function bad_option(flag: string, text: string, accepted: string): option_error {
  return new option_error(`--${flag} inválido: ${JSON.stringify(text)}; aceito: ${accepted}`);
}

/**
 * Lê uma opção que liga ou desliga.
 * @param flag nome longo da opção
 * @param text o texto dado
 * @returns true se "on"
 * @throws option_error se não é "on" nem "off"
 */
export function read_switch(flag: string, text: string): boolean {
  if (text !== 'on' && text !== 'off') throw bad_option(flag, text, 'on ou off');
  return text === 'on';
}
