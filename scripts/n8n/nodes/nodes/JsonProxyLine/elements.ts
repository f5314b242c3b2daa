/*
 * What goes into the list of a task, made of what the user chose.
 */

import type { IDataObject } from 'n8n-workflow';

/** Texts that the proxy would take for an order: the end, the cut, a head. */
const orders = /^\s*(?:EOF|EOL|END-OF-FILE|END-OF-LIST|HTTP ABORT)\s*$|^\s*(?:HTTP|RAW)[ \t]+\d/;

/** Gives a text as a line: as it is or, if the proxy would take it for an order, as JSON. */
export function lineOfText(text: string): string {
  return orders.test(text) ? JSON.stringify(text) : text;
}

/** Gives the JSON of a value; a text that already is JSON stays as it is. */
export function lineOfJson(value: unknown): string {
  if (typeof value === 'string') {
    try {
      return JSON.stringify(JSON.parse(value)); // one line, however it was written
    } catch {
      return JSON.stringify(value);
    }
  }
  return JSON.stringify(value ?? null);
}

/**
 * Writes the head of an answer.
 * @param framing "lines" or "raw"
 * @param status 200 to 599
 * @param entries the headers; a name that comes more than once is repeated
 * @returns the element, as 'RAW 200 {"Content-Type":"text/html"}'
 */
export function headOf(
  framing: string,
  status: number,
  entries: { name: string; value: unknown }[],
): string {
  const headers = new Map<string, string[]>();
  for (const { name, value } of entries) {
    if (name.trim() === '') continue;
    headers.set(name.trim(), [...(headers.get(name.trim()) ?? []), String(value)]);
  }
  const given = [...headers].map(([name, values]) => [
    name,
    values.length === 1 ? values[0] : values,
  ]);
  const word = framing === 'raw' ? 'RAW' : 'HTTP';
  return `${word} ${status} ${JSON.stringify(Object.fromEntries(given))}`;
}

/** The head that goes before the first event, if none was sent. */
export const eventHead =
  'RAW 200 {"Content-Type":"text/event-stream","Cache-Control":"no-store, no-transform"}';

/** The head that goes before the first chunk, if none was sent. */
export const chunkHead = 'RAW 200 {"Content-Type":"application/octet-stream"}';

/**
 * Writes a server-sent event.
 * @param data its text, of one line or more
 * @param fields its name, its id, and the ms that the client waits before it connects again
 * @returns as 'event: token\ndata: {"a":1}\n\n'
 * @throws Error if a field has a line break, which would begin another
 */
export function eventOf(data: string, fields: IDataObject): string {
  const names = ['event', 'id', 'retry'].filter((name) => (fields[name] ?? '') !== '');
  const broken = names.find((name) => /[\r\n]/.test(String(fields[name])));
  if (broken) throw new Error(`There is a line break in the field ${broken}`);
  const before = names.map((name) => `${name}: ${fields[name]}\n`);
  const lines = data.split(/\r\n|\r|\n/).map((line) => `data: ${line}\n`);
  return `${before.join('')}${lines.join('')}\n`;
}
