/*
 * A demonstração de task-list.
 */

import path from 'node:path';
import type { demo } from '../common/demo';

const json = "-H 'Content-Type: application/json'";

export const task_list: demo = {
  port: 5000,
  prepare: (folder) => {
    const { DATA_FOLDER = path.join(folder, 'data') } = process.env;
    return { proxy: {}, system: { DATA_FOLDER }, shell: {} };
  },
  steps: [
    { title: 'what there is', curl: '"$URL/"', status: 200, answer: /"GET \/tasks"/ },
    {
      title: 'all of it works',
      curl: '"$URL/health"',
      status: 200,
      answer: /"database":"healthy","cache":"healthy"/,
    },
    { title: 'the cache, emptied', curl: '-X POST "$URL/cache/clear"', status: 200 },
    { title: 'all tasks', curl: '"$URL/tasks"', status: 200, answer: /"source":"database"/ },
    { title: 'and again', curl: '"$URL/tasks"', status: 200, answer: /"source":"cache"/ },
    {
      title: 'a new one',
      curl: `"$URL/tasks" ${json} -d '{"title": "Escrever README", "status": "in_progress"}'`,
      ...{ status: 201, answer: /"message":"Task created successfully"/ },
      save: { name: 'ID', field: 'id' },
    },
    {
      title: 'the list is read anew',
      curl: '"$URL/tasks"',
      status: 200,
      answer: /"source":"database".*Escrever README/,
    },
    {
      title: 'the task is done',
      curl: `-X PUT "$URL/tasks/$ID" ${json} -d '{"status": "completed"}'`,
      ...{ status: 200, answer: /"status":"completed"/ },
    },
    { title: 'one task', curl: '"$URL/tasks/$ID"', status: 200, answer: /"source":"database"/ },
    { title: 'from the cache', curl: '"$URL/tasks/$ID"', status: 200, answer: /"source":"cache"/ },
    { title: 'gone', curl: '-X DELETE "$URL/tasks/$ID"', status: 200 },
    { title: 'not there', curl: '"$URL/tasks/$ID"', status: 404, answer: /"error":"no task/ },
    {
      title: 'no title',
      curl: `"$URL/tasks" ${json} -d '{"status": "pending"}'`,
      ...{ status: 400, answer: /"error":"title/ },
    },
    { title: 'the cache', curl: '"$URL/cache/stats"', status: 200, answer: /"keyspace_hits"/ },
  ],
};
