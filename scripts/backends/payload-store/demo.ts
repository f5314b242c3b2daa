/*
 * A demonstração de payload-store.
 */

import { randomUUID as random_uuid } from 'node:crypto';
import path from 'node:path';
import type { demo } from '../common/demo';

const key = '-H "X-API-KEY: $API_SECRET_KEY"';

export const payload_store: demo = {
  port: 8890,
  prepare: (folder) => {
    const { API_SECRET_KEY = random_uuid(), LOG_FOLDER = path.join(folder, 'log') } = process.env;
    return { proxy: {}, system: { API_SECRET_KEY, LOG_FOLDER }, shell: { API_SECRET_KEY } };
  },
  steps: [
    {
      title: 'an input',
      curl: `"$URL/save_input?uuid=abc123" ${key} -d '{"usuario": "Maria", "valor": 120}'`,
      ...{ status: 200, answer: /"saved":"input"/ },
    },
    {
      title: 'its output, with a number that JavaScript would round',
      curl: `"$URL/save_output?uuid=abc123" ${key} -d '{"n": 12345678901234567890}'`,
      ...{ status: 200, answer: /"saved":"output"/ },
    },
    {
      title: 'both',
      curl: `"$URL/get_payload?uuid=abc123" ${key}`,
      status: 200,
      answer: /^\{"input": \{"usuario": "Maria", .*"output": \{"n": 12345678901234567890\}\}/,
    },
    { title: 'an unknown uuid', curl: `"$URL/get_payload?uuid=nobody" ${key}`, status: 404 },
    { title: 'no uuid', curl: `-X POST "$URL/save_input" ${key} -d '{}'`, status: 400 },
    { title: 'no JSON', curl: `"$URL/save_input?uuid=abc123" ${key} -d '{"a":'`, status: 400 },
    { title: 'no key', curl: '"$URL/get_payload?uuid=abc123"', status: 401 },
  ],
};
