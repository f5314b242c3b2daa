/*
 * As quatro entidades. Cada modelo espelha as colunas da origem: se o banco muda, ele muda. Cada
 * função de tradução dá o registro na forma da API de destino: se ela muda, a função muda.
 */

/** As colunas de cada tabela da origem, com os tipos dela. */
const columns = {
  filiais: { NROEMPRESA: 'integer', NOMEREDUZIDO: 'text', CIDADE: 'text', UF: 'text' },
  produtos: {
    SEQPRODUTO: 'integer',
    DESCCOMPLETA: 'text',
    TXTDESCRICAOREDUZIDA: 'text',
    PRECO: 'numeric(12,2)',
    STATUS: 'text',
  },
  clientes: { SEQPESSOA: 'integer', NOMERAZAO: 'text', EMAIL: 'text', DTAINCLUSAO: 'date' },
  vendas: {
    SEQNOTA: 'integer',
    NROEMPRESA: 'integer',
    SEQPESSOA: 'integer',
    DTAVDA: 'date',
    VLRTOTAL: 'numeric(14,2)',
  },
} as const;

/** Uma linha de uma tabela: datas e decimais vêm em texto, sem que o JavaScript os arredonde. */
type row_of<name extends keyof typeof columns> = {
  [column in keyof (typeof columns)[name]]: (typeof columns)[name][column] extends 'integer'
    ? number
    : string | null;
};

/** Uma linha de qualquer tabela da origem. */
export type row = Record<string, string | number | null>;

/** O que muda de uma entidade para outra. `key`: coluna única, pela qual se percorre a tabela. */
export type entity = {
  name: string;
  table: string;
  key: string;
  columns: Record<string, string>;
  translate(row: row): Record<string, unknown>;
};

/**
 * Arruma um valor para o destino: sem espaços em volta, e um texto vazio é nulo.
 * @param value o valor da origem
 * @returns o valor
 */
function tidy(value: string | null): string | null {
  return value?.trim() || null;
}

/**
 * Traduz uma filial.
 * @param filial a linha da origem
 * @returns o registro do destino
 */
function translate_filial(filial: row_of<'filiais'>) {
  return {
    ID_FILIAL: filial.NROEMPRESA,
    NOME_FILIAL: tidy(filial.NOMEREDUZIDO),
    LOCALIDADE: [tidy(filial.CIDADE), tidy(filial.UF)].filter(Boolean).join('/'),
  };
}

/**
 * Traduz um produto.
 * @param produto a linha da origem
 * @returns o registro do destino; o preço segue em texto, sem arredondar
 */
function translate_produto(produto: row_of<'produtos'>) {
  return {
    ID_PRODUTO: produto.SEQPRODUTO,
    TXTDESCRICAO: tidy(produto.DESCCOMPLETA),
    TXTDESCRICAORESUMIDA: tidy(produto.TXTDESCRICAOREDUZIDA),
    VLR_PRECO: produto.PRECO,
    ATIVO: produto.STATUS === 'A',
  };
}

/**
 * Traduz um cliente.
 * @param cliente a linha da origem
 * @returns o registro do destino
 */
function translate_cliente(cliente: row_of<'clientes'>) {
  return {
    ID_CLIENTE: cliente.SEQPESSOA,
    NOME: tidy(cliente.NOMERAZAO),
    EMAIL: tidy(cliente.EMAIL)?.toLowerCase() ?? null,
    DATA_CADASTRO: cliente.DTAINCLUSAO,
  };
}

/**
 * Traduz uma venda.
 * @param venda a linha da origem
 * @returns o registro do destino; o valor segue em texto, sem arredondar
 */
function translate_venda(venda: row_of<'vendas'>) {
  return {
    ID_VENDA: venda.SEQNOTA,
    ID_FILIAL: venda.NROEMPRESA,
    ID_CLIENTE: venda.SEQPESSOA,
    DATA_VENDA: venda.DTAVDA,
    VLR_TOTAL: venda.VLRTOTAL,
  };
}

/** As entidades. */
export const entities: entity[] = [
  {
    ...{ name: 'filiais', table: 'GE_EMPRESA', key: 'NROEMPRESA' },
    ...{ columns: columns.filiais, translate: translate_filial },
  },
  {
    ...{ name: 'produtos', table: 'MAP_PRODUTO', key: 'SEQPRODUTO' },
    ...{ columns: columns.produtos, translate: translate_produto },
  },
  {
    ...{ name: 'clientes', table: 'GE_PESSOA', key: 'SEQPESSOA' },
    ...{ columns: columns.clientes, translate: translate_cliente },
  },
  {
    ...{ name: 'vendas', table: 'MFL_NOTA', key: 'SEQNOTA' },
    ...{ columns: columns.vendas, translate: translate_venda },
  },
];
