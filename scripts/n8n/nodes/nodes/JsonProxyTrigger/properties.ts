import type { INodeProperties } from 'n8n-workflow';

const methods = ['DELETE', 'GET', 'PATCH', 'POST', 'PUT'];

export const triggerProperties: INodeProperties[] = [
  {
    displayName: 'Channel',
    name: 'channel',
    type: 'string',
    default: 'ndjson_jobs',
    required: true,
    description: 'Where the proxy announces requests: its REDIS_CHANNEL',
  },
  {
    displayName: 'Path',
    name: 'path',
    type: 'string',
    default: '',
    placeholder: '/orders/:number',
    description:
      'Only requests to this path start the workflow; empty for all. <code>:name</code> stands for a part of it, <code>*</code> for anything. What is not meant is left to the other workflows on the channel.',
  },
  {
    displayName: 'HTTP Methods',
    name: 'methods',
    type: 'multiOptions',
    options: methods.map((name) => ({ name, value: name })),
    default: [],
    description: 'Only these requests start the workflow; none chosen for all',
  },
  {
    displayName:
      'Send what the client should see with a <b>JSON Proxy Line</b> node, wherever it is known. When the execution ends, so does the answer; if it fails, the client gets an error.',
    name: 'notice',
    type: 'notice',
    default: '',
  },
  {
    displayName: 'Options',
    name: 'options',
    type: 'collection',
    placeholder: 'Add Option',
    default: {},
    options: [
      {
        displayName: 'Error Text',
        name: 'errorText',
        type: 'string',
        default: '',
        description:
          'What the client is told when the workflow fails, instead of the message of the node that failed',
      },
      {
        displayName: 'Signs of Life',
        name: 'signsOfLife',
        type: 'boolean',
        default: true,
        description:
          'Whether to tell the proxy, while the execution runs, that the answer is still being made. Without it the proxy gives up after its MAXTIME of silence.',
      },
      {
        displayName: 'Stream',
        name: 'stream',
        type: 'string',
        default: '',
        placeholder: 'ndjson_tasks',
        description:
          'The REDIS_STREAM of the proxy, if it has one: requests that come while n8n is down wait there. Needs Redis 6.2 or newer.',
      },
      {
        displayName: 'Tasks at Once',
        name: 'tasksAtOnce',
        type: 'number',
        typeOptions: { minValue: -1 },
        default: -1,
        description:
          'How many requests are answered at the same time; the others wait, or go to other workers. Use -1 for no limit.',
      },
    ],
  },
];
