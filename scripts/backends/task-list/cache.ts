/*
 * O cache das tarefas no Redis. Um cache fora do ar deixa tudo mais lento, e nunca errado:
 *
 *   ler       acha, ou não acha e guarda o que leu do banco por 60 s
 *   escrever  antes: apaga as chaves e ergue um aviso, com que ninguém lê nem guarda nada
 *             depois: muda a versão, apaga as chaves e o aviso
 *
 * Quem leu do banco antes de uma escrita tem a versão velha, e não guarda mais. Quem morre no meio
 * de uma escrita deixa o aviso, que expira. Se o cache cai durante uma escrita, esta cópia não o
 * usa até tê-lo limpado; outra cópia, se só esta o perdeu, pode ler por até 60 s o que havia.
 */

import type { make_client } from '../../worker/worker';
import type { log } from '../common/log';

/** Vida do que é guardado, em segundos. */
const cache_ttl = 60;

/** Vida do aviso de escrita: mais do que um comando no banco pode levar. */
const writing_ttl = 30;

/** Quanto se espera pelo cache antes de seguir sem ele, em milissegundos. */
const cache_patience_ms = 500;

const names = {
  all: 'all_tasks',
  one: 'task_',
  version: 'tasks_version',
  writing: 'tasks_writing',
};

/** Guarda só se ninguém escreveu desde a leitura. */
const store_script = `
  if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
  if (redis.call('GET', KEYS[2]) or '0') ~= ARGV[1] then return 0 end
  redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
  return 1`;

type client = ReturnType<typeof make_client>;

/** O que se sabe do cache. `dirty`: chaves que ele pode ter erradas, de escritas que não soube. */
export type cache = { redis: client; log: log; dirty: Set<string> };

/** O que se achou, e a versão que estava em vigor. */
type finding = { text: string | null; version: string | undefined };

/**
 * Dá a chave de uma tarefa, ou da lista de todas.
 * @param id número da tarefa; sem ele, todas
 * @returns a chave
 */
export function cache_key(id?: number): string {
  return id === undefined ? names.all : names.one + id;
}

/**
 * Pede algo ao cache, sem depender dele.
 * @param cache o cache
 * @param ask o pedido
 * @returns a resposta; undefined se ele está fora do ar ou demora
 */
async function ask_cache<result>(
  { redis, log }: cache,
  ask: (redis: client) => Promise<result>,
): Promise<result | undefined> {
  if (!redis.isReady) return undefined;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('o cache não responde')), cache_patience_ms);
  });
  const asked = ask(redis);
  asked.catch(() => {}); // a resposta que vem depois do prazo não interessa mais
  try {
    return await Promise.race([asked, late]);
  } catch (error) {
    log.warn('sem cache', { error: (error as Error).message });
    return undefined;
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Limpa o que pode estar errado no cache.
 * @param cache o cache
 * @returns se nada mais está
 */
async function clean_dirty(cache: cache): Promise<boolean> {
  const keys = [...cache.dirty];
  if (keys.length === 0) return true;
  const cleaned = await ask_cache(cache, (redis) => {
    return redis
      .multi()
      .incr(names.version)
      .del([...keys, names.writing])
      .exec();
  });
  if (!cleaned) return false;
  for (const key of keys) cache.dirty.delete(key);
  return true;
}

/**
 * Procura no cache.
 * @param cache o cache
 * @param key a chave
 * @returns o texto, se há, e a versão em vigor, com que se pode guardar; undefined se não se pode
 */
export async function find_cached(cache: cache, key: string): Promise<finding> {
  const nothing = { text: null, version: undefined };
  if (!(await clean_dirty(cache))) return nothing;
  const found = await ask_cache(cache, (redis) => {
    return redis.mGet([key, names.version, names.writing]);
  });
  if (!found) return nothing;
  const [text = null, version, writing] = found;
  if (writing != null) return nothing;
  cache.log.info(text === null ? 'cache miss' : 'cache hit', { key });
  return { text, version: version ?? '0' };
}

/**
 * Guarda o que se leu do banco.
 * @param cache o cache
 * @param key a chave
 * @param text o valor
 * @param version a versão em vigor antes da leitura
 */
export async function store_cached(
  cache: cache,
  key: string,
  text: string,
  version: string | undefined,
): Promise<void> {
  if (version === undefined) return;
  const keys = [key, names.version, names.writing];
  const values = [version, text, String(cache_ttl)];
  const stored = await ask_cache(cache, (redis) => {
    return redis.eval(store_script, { keys, arguments: values });
  });
  if (stored) cache.log.info('cache set', { key, seconds: cache_ttl });
}

/**
 * Escreve no banco, com o cache avisado antes e limpo depois.
 * @param cache o cache
 * @param id número da tarefa que muda; sem ele, uma nova
 * @param write a escrita
 * @returns o que a escrita devolveu
 * @throws o que a escrita lançar
 */
export async function write_through<result>(
  cache: cache,
  id: number | undefined,
  write: () => Promise<result>,
): Promise<result> {
  const keys = [cache_key(), ...(id === undefined ? [] : [cache_key(id)])];
  await ask_cache(cache, (redis) => {
    return redis.multi().set(names.writing, '1', { EX: writing_ttl }).del(keys).exec();
  });
  try {
    return await write();
  } finally {
    for (const key of keys) cache.dirty.add(key);
    await clean_dirty(cache);
  }
}

/**
 * Apaga do cache só o que é deste sistema: o Redis é também o do proxy.
 * @param cache o cache
 * @returns quantas chaves; undefined se o cache está fora do ar
 */
export function clear_cache(cache: cache): Promise<number | undefined> {
  return ask_cache(cache, async (redis) => {
    let removed = await redis.del(names.all);
    for await (const keys of redis.scanIterator({ MATCH: `${names.one}*`, COUNT: 1000 })) {
      if (keys.length > 0) removed += await redis.del(keys);
    }
    return removed;
  });
}

/**
 * Lê as estatísticas do Redis.
 * @param cache o cache
 * @returns cinco delas; undefined se o cache está fora do ar
 */
export async function cache_stats(cache: cache) {
  const info = await ask_cache(cache, (redis) => redis.info());
  if (info === undefined) return undefined;
  const field = (name: string) => new RegExp(`^${name}:(.*?)\r?$`, 'm').exec(info)?.[1] ?? '';
  return {
    connected_clients: Number(field('connected_clients')),
    used_memory_human: field('used_memory_human'),
    total_commands_processed: Number(field('total_commands_processed')),
    keyspace_hits: Number(field('keyspace_hits')),
    keyspace_misses: Number(field('keyspace_misses')),
  };
}

/**
 * Diz se o cache responde.
 * @param cache o cache
 * @returns se responde
 */
export async function is_cache_up(cache: cache): Promise<boolean> {
  return (await ask_cache(cache, (redis) => redis.ping())) !== undefined;
}
