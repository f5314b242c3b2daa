/*
 * A demonstração de message-broker, com HTTPS: o certificado é feito na hora.
 */

import path from 'node:path';
import type { demo } from '../common/demo';
import { ensure_certificate } from './certificate';

const json = "-H 'Content-Type: application/json'";

/** O que vai em dois dos corpos, com as barras que o shell ou o JSON pedem. */
const mutation = 'mutation { publish(queue: \\"orders\\", content: \\"second\\") { id status } }';
const receipt = '{\\"receipt\\": \\"$RECEIPT\\"}';

const token = '-H "Authorization: Bearer $TOKEN"';

export const message_broker: demo = {
  port: 8777,
  prepare: async (folder) => {
    const { DATA_FOLDER = path.join(folder, 'data'), LOG_FOLDER = path.join(folder, 'log') } =
      process.env;
    const certificate = await ensure_certificate(path.join(DATA_FOLDER, 'certificate'));
    const { TLS_CERT = '' } = certificate;
    const system = { DATA_FOLDER, LOG_FOLDER };
    return { proxy: certificate, system, shell: { TLS_CERT }, curl: '--cacert "$TLS_CERT"' };
  },
  steps: [
    {
      title: 'a token',
      curl: `"$URL/login" ${json} -d '{"username": "admin", "password": "admin"}'`,
      ...{ status: 200, answer: /"refresh_token"/ },
      save: { name: 'TOKEN', field: 'access_token' },
    },
    { title: 'without it', curl: '"$URL/queues"', status: 401 },
    {
      title: 'a queue',
      curl: `"$URL/queues" ${token} ${json} -d '{"name": "orders"}'`,
      ...{ status: 201, answer: /"name":"orders"/ },
    },
    {
      title: 'a message',
      curl: `"$URL/queues/orders/messages" ${token} ${json} -d '{"content": "first"}'`,
      ...{ status: 201, answer: /"status":"pending"/ },
    },
    {
      title: 'another, by GraphQL',
      curl: `"$URL/graphql" ${token} ${json} -d '{"query": "${mutation}"}'`,
      ...{ status: 200, answer: /"status":"pending"/ },
    },
    {
      title: 'the first comes first',
      curl: `-X POST "$URL/queues/orders/consume" ${token}`,
      ...{ status: 200, answer: /"content":"first","status":"processing"/ },
      save: { name: 'RECEIPT', field: 'receipt' },
    },
    {
      title: 'it is done',
      curl: `"$URL/queues/orders/messages/1/ack" ${token} ${json} -d "${receipt}"`,
      ...{ status: 200, answer: /"status":"processed"/ },
    },
    {
      title: 'the others, as they come (here it ends after one)',
      curl: `-N "$URL/queues/orders/stream?limit=1" ${token}`,
      ...{ status: 200, answer: /"content":"second"/ },
    },
    {
      title: 'the queue',
      curl: `"$URL/queues/orders" ${token}`,
      ...{ status: 200, answer: /"pending":0,"processing":1,"processed":1,"failed":0/ },
    },
    {
      title: 'the system',
      curl: `"$URL/stats" ${token}`,
      ...{ status: 200, answer: /"requests_by_route".*"messages_total":2/ },
    },
    {
      title: 'the logs',
      curl: `"$URL/logs" ${token}`,
      ...{ status: 200, answer: /message-broker-\d+-\d+-\d+\.json/ },
    },
    { title: 'deleted', curl: `-X DELETE "$URL/queues/orders" ${token}`, status: 204 },
  ],
};
