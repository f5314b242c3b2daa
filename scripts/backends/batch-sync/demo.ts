/*
 * A demonstração de batch-sync: 2.500 produtos inventados, e um destino que recusa o segundo lote
 * duas vezes, e o terceiro de clientes para sempre.
 */

import path from 'node:path';
import type { demo } from '../common/demo';

const failures = { produtos: { 2: [503, 429] }, clientes: { 3: [400] } };

export const batch_sync: demo = {
  port: 8000,
  prepare: (folder) => {
    const { FAILED_FOLDER = path.join(folder, 'failed') } = process.env;
    const system = { FAILED_FOLDER, TARGET_FAILS: JSON.stringify(failures), PAUSE_MS: '100' };
    return { proxy: {}, system, shell: {} };
  },
  steps: [
    {
      title: 'three products, after the first hundred',
      curl: '"$URL/produtos?pular=100&limite=3"',
      status: 200,
      answer: /"SEQPRODUTO":101.*"SEQPRODUTO":103/,
    },
    { title: 'too large', curl: '"$URL/produtos?limite=501"', status: 422, answer: /"limite"/ },
    {
      title: 'all products, a line for each batch; the second is refused twice',
      curl: '-N -X POST "$URL/produtos/sincronizar"',
      status: 200,
      answer: /"batch":2,"rows":1000,"total":2000,"ms":\d+,"attempts":3\}\n[^\n]*\n\{"done":true,/,
    },
    {
      title: 'all clients; the third batch is refused for good, and kept in a file',
      curl: '-N -X POST "$URL/clientes/sincronizar"',
      status: 200,
      answer: /"error":"HTTP 400","file":.*\n\{"done":true.*"sent":2000,"failed":500/,
    },
    {
      title: 'all branches',
      curl: '-N -X POST "$URL/filiais/sincronizar"',
      status: 200,
      answer: /\n\{"done":true.*"sent":50,"failed":0/,
    },
    {
      title: 'the API',
      curl: '"$URL/openapi.json"',
      status: 200,
      answer: /"\/vendas\/sincronizar"/,
    },
  ],
};
