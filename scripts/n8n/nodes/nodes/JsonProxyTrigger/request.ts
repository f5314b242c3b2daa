/*
 * A request, as the proxy stores it, and as the trigger emits it.
 */

import type { IBinaryKeyData, IDataObject, INodeExecutionData } from 'n8n-workflow';
import type { Task } from '../../shared/task';

/** A task, as the proxy stores it. */
export type StoredTask = {
  uuid: string;
  task_key: string;
  task_list: string;
  request_time: number;
  method: string;
  url: string;
  remote_address: string;
  headers: Record<string, string>;
  body: string;
  body_encoding?: 'base64';
};

/** What a request must be like; empty fields do not count. */
export type Filter = { path: string; methods: string[] };

/** Makes n8n's binary data of bytes. */
export type KeepBinary = (
  bytes: Buffer,
  fileName?: string,
  mimeType?: string,
) => Promise<IBinaryKeyData[string]>;

/** Content types whose bodies are bytes, even where they happen to be valid UTF-8. */
const binaryTypes =
  /^(image\/(?!svg)|audio\/|video\/|font\/|application\/(octet-stream|pdf|zip|gzip))/;

/** Content types of JSON, and those that curl and careless clients give to it. */
const jsonTypes = /^application\/([\w.-]+\+)?json\b/;
const careless = /^($|text\/plain\b|application\/x-www-form-urlencoded\b)/;

/** Reads the JSON of a task; undefined if it is none. */
export function parseTask(text: string): StoredTask | undefined {
  try {
    const task = JSON.parse(text);
    const names = ['uuid', 'task_key', 'task_list', 'method', 'url'];
    return names.every((name) => typeof task?.[name] === 'string') ? task : undefined;
  } catch {
    return undefined;
  }
}

/** Reads the `url` of a request, which may be a path or a whole URL. */
function parseUrl(url: string): URL {
  try {
    return new URL(url, 'http://proxy');
  } catch {
    return new URL('http://proxy/');
  }
}

/** Gives the text that a part of a URL stands for, or the part if it stands for none. */
function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/**
 * Compares a path with a pattern.
 * @param pattern as "/orders/:id" or "/files/*"; empty for every path
 * @param path the path, as in the URL
 * @returns what stands where the pattern has names; undefined if the path is another
 */
export function matchPath(pattern: string, path: string): Record<string, string> | undefined {
  if (pattern.trim() === '') return {};
  const names: string[] = [];
  const source = pattern
    .trim()
    .replace(/^\/?/, '/')
    .replace(/\/$/, '')
    .replace(/[.+?^${}()|[\]\\]/g, '\\$&')
    .replace(/\*/g, '.*')
    .replace(/\/:(\w+)/g, (_, name: string) => {
      names.push(name);
      return '/([^/]+)';
    });
  const found = new RegExp(`^${source}/?$`).exec(path);
  return found
    ? Object.fromEntries(names.map((name, index) => [name, decode(found[index + 1] ?? '')]))
    : undefined;
}

/**
 * Compares a request with a filter.
 * @param filter the filter
 * @param task the task
 * @returns what stands where the path has names; undefined if the request is not meant
 */
export function matchRequest(filter: Filter, task: StoredTask): Record<string, string> | undefined {
  const { methods, path } = filter;
  if (methods.length > 0 && !methods.includes(task.method.toUpperCase())) return undefined;
  const { pathname } = parseUrl(task.url);
  return matchPath(path, pathname) ?? matchPath(path, decode(pathname));
}

/** Gives fields by name; a name that comes more than once has a list. */
function fieldsOf(pairs: Iterable<[string, unknown]>): IDataObject {
  const fields = new Map<string, unknown>();
  for (const [name, value] of pairs) {
    const before = fields.get(name);
    const list = Array.isArray(before) ? before : [before];
    fields.set(name, before === undefined ? value : [...list, value]);
  }
  return Object.fromEntries(fields) as IDataObject;
}

/** Gives the JSON in a body of a `type`; undefined if it has none. */
function parseJson(type: string, text: string): unknown {
  if (!jsonTypes.test(type) && !(careless.test(type) && /^\s*[{[]/.test(text))) return undefined;
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** What a body becomes. */
type Content = { json: IDataObject; binary?: IBinaryKeyData };

/** Reads a form with files, of a `type` with a boundary: fields, and each file as binary data. */
async function readForm(type: string, body: Buffer, keep: KeepBinary): Promise<Content> {
  const response = new Response(new Uint8Array(body), { headers: { 'Content-Type': type } });
  const fields: [string, unknown][] = [];
  const binary: IBinaryKeyData = {};
  for (const [name, value] of await response.formData()) {
    if (typeof value === 'string') fields.push([name, value]);
    else {
      const bytes = Buffer.from(await value.arrayBuffer());
      const unused = name in binary ? `${name}_${Object.keys(binary).length}` : name;
      binary[unused] = await keep(bytes, value.name, value.type || undefined);
    }
  }
  return { json: { form: fieldsOf(fields) }, binary };
}

/** Reads a body of a `type`: JSON becomes fields, bytes become binary data, the rest is text. */
async function readBody(type: string, task: StoredTask, keep: KeepBinary): Promise<Content> {
  const body = Buffer.from(task.body ?? '', task.body_encoding === 'base64' ? 'base64' : 'utf8');
  if (/^multipart\/form-data\b/.test(type)) {
    const form = await readForm(type, body, keep).catch(() => undefined);
    if (form) return form;
  }
  if (body.length > 0 && (task.body_encoding === 'base64' || binaryTypes.test(type))) {
    return { json: {}, binary: { data: await keep(body, undefined, type.split(';')[0]) } };
  }
  const parsed = parseJson(type, task.body);
  const json: IDataObject = { body: (parsed === undefined ? task.body : parsed) as string };
  if (/^application\/x-www-form-urlencoded\b/.test(type)) {
    json.form = fieldsOf(new URLSearchParams(task.body));
  }
  return { json };
}

/**
 * Makes the item that the trigger emits.
 * @param stored the request
 * @param params what stands where the path of the filter has names
 * @param task what the other nodes need to answer
 * @param keep makes n8n's binary data of bytes
 * @returns the item
 */
export async function toItem(
  stored: StoredTask,
  params: Record<string, string>,
  task: Task,
  keep: KeepBinary,
): Promise<INodeExecutionData> {
  const pairs = Object.entries(stored.headers ?? {});
  const headers = fieldsOf(pairs.map(([name, value]) => [name.toLowerCase(), value]));
  const type = String(headers['content-type'] ?? '').toLowerCase();
  const kept = /^multipart\//.test(type) ? String(headers['content-type']) : type; // its boundary
  const { json, binary } = await readBody(kept, stored, keep);
  const { pathname, searchParams } = parseUrl(stored.url);
  return {
    json: {
      ...{ method: stored.method, path: decode(pathname), params },
      ...{ query: fieldsOf(searchParams), headers },
      ...json,
      ...{ url: stored.url, remoteAddress: stored.remote_address },
      requestTime: new Date(stored.request_time * 1000).toISOString(),
      task,
    },
    ...(binary && { binary }),
  };
}
