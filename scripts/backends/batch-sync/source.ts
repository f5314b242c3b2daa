/*
 * A origem dos dados, atrás de uma interface de duas perguntas. Aqui ela é um PostgreSQL, ou um
 * PGlite com dados inventados; a de quem descreveu o sistema é um Oracle, que não se tem aqui: para
 * ele bastaria outra open_source.
 */

import { type database, open_pglite, open_postgres } from '../common/database';
import type { log } from '../common/log';
import { entities, type entity, type row } from './entities';

/** A origem. `after` percorre pela chave: cada lote custa o mesmo, o primeiro ou o milésimo. */
export type source = {
  kind: string;
  page: (entity: entity, skip: number, limit: number) => Promise<row[]>;
  after: (entity: entity, key: row[string] | undefined, limit: number) => Promise<row[]>;
  close: () => Promise<void>;
};

/** O que cada coluna dos dados inventados tem, a partir de n, o número da linha. */
const sample_values: Record<string, string> = {
  NROEMPRESA: '(n - 1) % 50 + 1',
  NOMEREDUZIDO: "'Filial ' || n",
  CIDADE: "'Cidade ' || n % 90",
  UF: "(ARRAY['SP','RJ','MG','PR'])[n % 4 + 1]",
  SEQPRODUTO: 'n',
  DESCCOMPLETA: "'Produto de teste número ' || n",
  TXTDESCRICAOREDUZIDA: "' Produto ' || n || ' '",
  PRECO: '(n % 9000) / 100.0 + 1',
  STATUS: "CASE WHEN n % 10 = 0 THEN 'I' ELSE 'A' END",
  SEQPESSOA: 'n',
  NOMERAZAO: "'Cliente ' || n",
  EMAIL: "CASE WHEN n % 7 > 0 THEN 'Cliente' || n || '@Example.com' END",
  DTAINCLUSAO: "date '2020-01-01' + n % 2000",
  SEQNOTA: 'n',
  DTAVDA: "date '2024-01-01' + n % 500",
  VLRTOTAL: '(n % 100000) / 100.0 + 5',
};

/** Prazo de uma consulta, em milissegundos: um lote de uma tabela grande pode demorar. */
const query_limit_ms = 60_000;

/** Linhas inventadas de cada entidade: filiais são sempre poucas. */
const few_rows = 50;

/**
 * Escreve os nomes das colunas; datas e decimais saem em texto, sem que o JavaScript os arredonde.
 * @param entity a entidade
 * @returns a lista de um SELECT
 */
function column_list({ columns }: entity): string {
  const cast = (type: string) => (/^(?:date|numeric)/.test(type) ? '::text' : '');
  const names = Object.entries(columns).map(
    ([name, type]) => `"${name}"${cast(type)} AS "${name}"`,
  );
  return names.join(', ');
}

/**
 * Faz as tabelas que faltam, com dados inventados.
 * @param database o banco
 * @param rows quantas linhas em cada uma, menos filiais
 */
export async function fill_source(database: database, rows: number): Promise<void> {
  for (const { name, table, key, columns } of entities) {
    const types = Object.entries(columns).map(([column, type]) => `"${column}" ${type}`);
    const values = Object.keys(columns).map((column) => sample_values[column]);
    const count = name === 'filiais' ? few_rows : rows;
    await database.query(`CREATE TABLE "${table}" (${types.join(', ')}, PRIMARY KEY ("${key}"))`);
    const made = `SELECT ${values.join(', ')} FROM generate_series(1, ${count}) AS n`;
    await database.query(`INSERT INTO "${table}" ${made}`);
  }
}

/**
 * Abre a origem.
 * @param url o PostgreSQL; vazio é um PGlite na memória
 * @param sample_rows quantas linhas inventar nele
 * @param log o log
 * @returns a origem
 */
export async function open_source(url: string, sample_rows: number, log: log): Promise<source> {
  const database = url
    ? open_postgres({ connectionString: url }, query_limit_ms, log)
    : await open_pglite('', log);
  if (!url) await fill_source(database, sample_rows);
  const select = (entity: entity) => `SELECT ${column_list(entity)} FROM "${entity.table}"`;
  return {
    kind: database.kind,
    page: (entity, skip, limit) => {
      const sql = `${select(entity)} ORDER BY "${entity.key}" LIMIT $1 OFFSET $2`;
      return database.query<row>(sql, [limit, skip]);
    },
    after: (entity, key, limit) => {
      const where = key === undefined ? '' : `WHERE "${entity.key}" > $2`;
      const sql = `${select(entity)} ${where} ORDER BY "${entity.key}" LIMIT $1`;
      return database.query<row>(sql, key === undefined ? [limit] : [limit, key]);
    },
    close: database.close,
  };
}
