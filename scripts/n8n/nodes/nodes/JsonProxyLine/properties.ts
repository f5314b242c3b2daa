import type { INodeProperties } from 'n8n-workflow';

/** Gives what shows a parameter for the operations `operation`, and with some values of others. */
function shown(operation: string[], more: Record<string, string[]> = {}) {
  return { show: { operation, ...more } };
}

const content: INodeProperties[] = [
  {
    displayName: 'Send',
    name: 'content',
    type: 'options',
    options: [
      { name: 'The Item', value: 'item', description: 'The JSON of each item' },
      { name: 'JSON', value: 'json', description: 'A JSON value, or an expression that gives one' },
      { name: 'Text', value: 'text' },
    ],
    default: 'item',
    displayOptions: shown(['line', 'event']),
  },
  {
    displayName: 'JSON',
    name: 'json',
    type: 'json',
    default: '={{ $json }}',
    description: 'What the client gets',
    displayOptions: shown(['line', 'event'], { content: ['json'] }),
  },
  {
    displayName: 'Text',
    name: 'text',
    type: 'string',
    typeOptions: { rows: 2 },
    default: '',
    description:
      'What the client gets. An empty text sends nothing, and tells the proxy that the answer is still being made.',
    displayOptions: shown(['line', 'event'], { content: ['text'] }),
  },
];

const head: INodeProperties[] = [
  {
    displayName: 'What Follows',
    name: 'framing',
    type: 'options',
    options: [
      { name: 'Lines', value: 'lines', description: 'Each in the form that the client asked for' },
      { name: 'Raw Bytes', value: 'raw', description: 'A page, a file, an event stream' },
    ],
    default: 'lines',
    displayOptions: shown(['head']),
  },
  {
    displayName: 'Status Code',
    name: 'statusCode',
    type: 'number',
    typeOptions: { minValue: 200, maxValue: 599 },
    default: 200,
    displayOptions: shown(['head']),
  },
  {
    displayName: 'Headers',
    name: 'headers',
    type: 'fixedCollection',
    typeOptions: { multipleValues: true },
    placeholder: 'Add Header',
    default: {},
    displayOptions: shown(['head']),
    options: [
      {
        displayName: 'Header',
        name: 'entries',
        values: [
          {
            displayName: 'Name',
            name: 'name',
            type: 'string',
            default: '',
            placeholder: 'Content-Type',
          },
          { displayName: 'Value', name: 'value', type: 'string', default: '' },
        ],
      },
    ],
  },
];

const chunk: INodeProperties[] = [
  {
    displayName: 'Bytes',
    name: 'source',
    type: 'options',
    options: [
      { name: 'Text', value: 'text' },
      { name: 'Binary Data', value: 'binary', description: 'A file of the item' },
    ],
    default: 'text',
    displayOptions: shown(['chunk']),
  },
  {
    displayName: 'Text',
    name: 'chunkText',
    type: 'string',
    typeOptions: { rows: 2 },
    default: '',
    description: 'Sent as it is, without a line break',
    displayOptions: shown(['chunk'], { source: ['text'] }),
  },
  {
    displayName: 'Input Binary Field',
    name: 'binaryPropertyName',
    type: 'string',
    default: 'data',
    required: true,
    hint: 'The name of the input field that holds the file',
    displayOptions: shown(['chunk'], { source: ['binary'] }),
  },
];

const event: INodeProperties[] = [
  {
    displayName: 'Event Fields',
    name: 'eventFields',
    type: 'collection',
    placeholder: 'Add Field',
    default: {},
    displayOptions: shown(['event']),
    options: [
      { displayName: 'Event', name: 'event', type: 'string', default: '', placeholder: 'token' },
      { displayName: 'ID', name: 'id', type: 'string', default: '' },
      {
        displayName: 'Retry (Ms)',
        name: 'retry',
        type: 'number',
        default: 3000,
        description: 'How long the client waits before it connects again',
      },
    ],
  },
];

const end: INodeProperties[] = [
  {
    displayName: 'The Answer Is',
    name: 'outcome',
    type: 'options',
    options: [
      { name: 'Complete', value: 'complete' },
      { name: 'Failed', value: 'failed', description: 'The client gets an error' },
    ],
    default: 'complete',
    displayOptions: shown(['end']),
  },
  {
    displayName: 'Error',
    name: 'error',
    type: 'string',
    default: '',
    required: true,
    placeholder: 'no such order',
    description: 'What the client is told, as <code>{"error": …}</code>',
    displayOptions: shown(['end'], { outcome: ['failed'] }),
  },
];

export const lineProperties: INodeProperties[] = [
  {
    displayName: 'Operation',
    name: 'operation',
    type: 'options',
    noDataExpression: true,
    options: [
      {
        name: 'Check Client',
        value: 'check',
        action: 'Check if the client is still there',
        description: 'Whether somebody still waits for the answer, before a costly step',
      },
      {
        name: 'End',
        value: 'end',
        action: 'End the answer now',
        description: 'Close the answer now, and go on without the client',
      },
      {
        name: 'Send Event',
        value: 'event',
        action: 'Send a server sent event',
        description: 'Send each item as a server-sent event of your own making',
      },
      {
        name: 'Send Head',
        value: 'head',
        action: 'Send status and headers',
        description: 'Choose the status and the headers, before anything else',
      },
      {
        name: 'Send Line',
        value: 'line',
        action: 'Send a line',
        description: 'Send each item as a line, at once',
      },
      {
        name: 'Send Raw Chunk',
        value: 'chunk',
        action: 'Send a raw chunk',
        description: 'Send bytes as they are: a page, a file',
      },
    ],
    default: 'line',
  },
  ...content,
  ...head,
  ...chunk,
  ...event,
  ...end,
  {
    displayName: 'Options',
    name: 'options',
    type: 'collection',
    placeholder: 'Add Option',
    default: {},
    options: [
      {
        displayName: 'Stop if the Client Is Gone',
        name: 'stopIfGone',
        type: 'boolean',
        default: false,
        description: 'Whether to end the execution, with an error, when nobody waits any more',
      },
      {
        displayName: 'Task',
        name: 'task',
        type: 'json',
        default: '={{ $json.task }}',
        description:
          'The task to answer, where it is neither that of the trigger of this execution nor in the items',
      },
    ],
  },
];
