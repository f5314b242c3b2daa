/*
 * Quem pode o quê: usuários com senha, papéis, e os tokens que os representam (JWT).
 */

import {
  timingSafeEqual as equal_in_time,
  randomBytes as random_bytes,
  scrypt as scrypt_callback,
} from 'node:crypto';
import { promisify } from 'node:util';
import { sign, verify } from 'hono/jwt';
import { http_error } from '../common/web';
import { query, type store, type user_record } from './store';

const scrypt = promisify(scrypt_callback) as (
  password: string,
  salt: Buffer,
  length: number,
) => Promise<Buffer>;

/** Os papéis; cada um pode o que podem os anteriores. */
export const roles = ['read', 'write', 'admin'] as const;

export type role = (typeof roles)[number];

/** Quem pede. */
export type user = { name: string; role: role };

/** Vida de cada token, em segundos. */
const lives = { access: 15 * 60, refresh: 7 * 24 * 3600 } as const;

/** Tamanho do resumo de uma senha, em bytes. */
const hash_bytes = 32;

/** Contra este se confere quem não existe: o tempo da resposta não conta quem existe. */
const nobody = `${'00'.repeat(16)}:${'00'.repeat(hash_bytes)}`;

/**
 * Resume uma senha.
 * @param password a senha
 * @returns sal e resumo
 */
async function hash_password(password: string): Promise<string> {
  const salt = random_bytes(16);
  return `${salt.toString('hex')}:${(await scrypt(password, salt, hash_bytes)).toString('hex')}`;
}

/**
 * Confere uma senha.
 * @param password a senha dada
 * @param stored sal e resumo
 * @returns se confere
 */
async function check_password(password: string, stored: string): Promise<boolean> {
  const [salt = '', hash = ''] = stored.split(':');
  const given = await scrypt(password, Buffer.from(salt, 'hex'), hash_bytes);
  return equal_in_time(given, Buffer.from(hash, 'hex'));
}

/**
 * Acha um usuário.
 * @param store o banco
 * @param name o nome
 * @returns o usuário; undefined se não há
 */
function find_user(store: store, name: string): user_record | undefined {
  return query<user_record>(store, 'SELECT * FROM users WHERE name = ?', name)[0];
}

/**
 * Cria um usuário.
 * @param store o banco
 * @param user nome e papel
 * @param password a senha
 * @throws http_error 409 se o nome já existe
 */
export async function add_user(store: store, { name, role }: user, password: string) {
  const hash = await hash_password(password);
  const sql = `INSERT INTO users (name, password, role) VALUES (?, ?, ?)
    ON CONFLICT DO NOTHING RETURNING name`;
  if (query(store, sql, name, hash, role).length === 0) {
    throw new http_error(409, `the user ${name} already exists`);
  }
}

/**
 * Cria o primeiro administrador, se não há usuários.
 * @param store o banco
 * @param password a senha dele
 * @returns se foi criado
 */
export async function ensure_admin(store: store, password: string): Promise<boolean> {
  if (query(store, 'SELECT 1 FROM users LIMIT 1').length > 0) return false;
  await add_user(store, { name: 'admin', role: 'admin' }, password);
  return true;
}

/**
 * Dá um segredo que todas as cópias dividem, feito na primeira vez: o de quem não configurou um.
 * @param store o banco
 * @returns o segredo
 */
export function shared_secret(store: store): string {
  const made = random_bytes(32).toString('hex');
  query(store, `INSERT INTO secrets VALUES ('jwt', ?) ON CONFLICT DO NOTHING RETURNING name`, made);
  return query<{ value: string }>(store, `SELECT value FROM secrets`)[0]?.value ?? made;
}

/**
 * Faz os dois tokens de um usuário.
 * @param secret o segredo
 * @param user o usuário
 * @returns a resposta de /login
 */
async function make_tokens(secret: string, { name, role }: user) {
  const seconds = Math.floor(Date.now() / 1000);
  const make = (kind: keyof typeof lives) => {
    const claims = { sub: name, role, kind, iat: seconds, exp: seconds + lives[kind] };
    return sign(claims, secret, 'HS256');
  };
  const [access_token, refresh_token] = await Promise.all([make('access'), make('refresh')]);
  return { access_token, refresh_token, token_type: 'bearer', expires_in: lives.access };
}

/**
 * Lê um token. O papel é o que o usuário tem agora, e não o do dia em que o token foi feito.
 * @param store o banco
 * @param secret o segredo
 * @param token o token
 * @param kind de que tipo ele deve ser
 * @returns o usuário
 * @throws http_error 401 se não vale
 */
export async function read_token(
  store: store,
  secret: string,
  token: string,
  kind: keyof typeof lives,
): Promise<user> {
  const claims = await verify(token, secret, 'HS256').catch(() => undefined);
  const user = claims?.kind === kind && find_user(store, String(claims.sub));
  if (!user) throw new http_error(401, `the ${kind} token is missing, wrong or expired`);
  return { name: user.name, role: user.role as role };
}

/**
 * Troca nome e senha por tokens.
 * @param store o banco
 * @param secret o segredo dos tokens
 * @param given o que o cliente deu
 * @returns os tokens
 * @throws http_error 401 se não conferem
 */
export async function log_in(
  store: store,
  secret: string,
  { username, password }: { username: string; password: string },
) {
  const user = find_user(store, username);
  const is_right = await check_password(password, user?.password ?? nobody);
  if (!user || !is_right) throw new http_error(401, 'wrong username or password');
  return make_tokens(secret, user as user);
}

/**
 * Troca um token de renovação por outros.
 * @param store o banco
 * @param secret o segredo dos tokens
 * @param token o token de renovação
 * @returns os tokens
 * @throws http_error 401 se não vale
 */
export async function refresh_tokens(store: store, secret: string, token: string) {
  return make_tokens(secret, await read_token(store, secret, token, 'refresh'));
}

/**
 * Exige um papel.
 * @param user quem pede
 * @param role o papel
 * @throws http_error 403 se ele não o tem
 */
export function need_role(user: user, role: role): void {
  if (roles.indexOf(user.role) < roles.indexOf(role)) {
    throw new http_error(403, `this needs the role ${role}`);
  }
}
