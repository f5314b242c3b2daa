/*
 * Carregado antes de um programa (node --require), dá ao V8 o código que ele já compilou noutra
 * vez: json-proxy.js tem mais de um megabyte, e os testes o sobem muitas vezes. Só o tempo da
 * subida muda. A cache de um arquivo fica ao lado dele, e a grava quem rodar com
 * JSON_PROXY_RECORD no ambiente.
 */

import {
  existsSync as exists,
  readFileSync as read_file,
  writeFileSync as write_file,
} from 'node:fs';
import module, { createRequire as create_require } from 'node:module';
import path from 'node:path';
import { Script as script } from 'node:vm';

/** Com ela, o que roda grava as caches em vez de as usar. */
const is_recording = process.env.JSON_PROXY_RECORD !== undefined;

const cache_suffix = '.cache';

/** O que o Node não documenta: como um módulo CommonJS é compilado. */
type internals = {
  wrap: (source: string) => string;
  prototype: Record<'_compile', (this: NodeModule, source: string, file: string) => unknown>;
};

const { wrap, prototype } = module as unknown as internals;
const { _compile: compile } = prototype;

prototype._compile = function compile_cached(source, file) {
  const cache = `${file}${cache_suffix}`;
  if (!is_recording && !exists(cache)) return compile.call(this, source, file);
  const options = is_recording ? {} : { cachedData: read_file(cache) };
  const compiled = new script(wrap(source.replace(/^#!.*/, '')), { filename: file, ...options });
  const parts = [this.exports, create_require(file), this, file, path.dirname(file)];
  const result = compiled.runInThisContext().apply(this.exports, parts);
  if (is_recording) process.once('exit', () => write_file(cache, compiled.createCachedData()));
  return result;
};
