/*
 * Os concorrentes: como se descobre se estão instalados, e como sobem com configuração própria, em
 * portas livres. Nenhum faz o que o proxy faz; as notas dizem o que falta a cada um.
 */

import { spawnSync as run } from 'node:child_process';
import { existsSync as file_exists, writeFileSync as write_file } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { free_port, type local_redis, start_program, temp_dir, until } from '../dev/local';
import { command_output, keep_running, type server } from './processes';

/** Onde o Debian põe o módulo. */
const nchan_module = '/usr/lib/nginx/modules/ngx_nchan_module.so';

/** Subidas tentadas: entre escolher a porta livre e usá-la, outro pode tomá-la. */
const start_attempts = 3;

const ready_limit_ms = 5000;

/** Descritores que o nginx pede; cada assinante ocupa um. */
const nginx_connections = 16_000;

/** Os concorrentes, e o que cada um não faz. */
export const peer_notes: Record<string, string> = {
  webdis:
    'GET /SUBSCRIBE/<canal>: não há lista, o que se publica sem ninguém ouvindo se perde; não ' +
    'cria tarefas, não sabe quando o worker terminou; embrulha cada linha num JSON seu; ' +
    'inverte a ordem das linhas que chegam juntas',
  nchan:
    'assinante http-raw-stream, linhas por POST: não há Redis nem tarefa, o worker fala HTTP com ' +
    'o próprio nginx; guarda as mensagens na memória dele; não sabe quando o worker terminou; ' +
    'perde mensagens além de 32.768 num canal no mesmo segundo',
};

/** Diz as versões dos concorrentes instalados, por nome. */
export function find_peers(): Record<string, string> {
  const package_version = (name: string) => {
    // biome-ignore lint/suspicious/noTemplateCurlyInString: a forma é do dpkg-query
    const text = command_output('dpkg-query', '-W', '-f', '${Version}', name);
    return /^\d\S*$/.test(text) ? text : 'versão desconhecida';
  };
  const found: Record<string, string> = {};
  if (command_output('sh', '-c', 'command -v webdis')) found.webdis = package_version('webdis');
  if (command_output('sh', '-c', 'command -v nginx') && file_exists(nchan_module)) {
    found.nchan = `${package_version('libnginx-mod-nchan')}, ${command_output('nginx', '-v')}`;
  }
  return found;
}

/** Instala os concorrentes, ou lança. */
export function install_peers(): void {
  const script = path.join(__dirname, '..', 'dev', 'setup.sh');
  const { status } = run('sh', [script, 'peers'], { stdio: 'inherit' });
  if (status !== 0) throw new Error('os concorrentes não puderam ser instalados');
}

/** Diz se alguém aceita conexões na porta `port`. */
function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect({ port, host: '127.0.0.1' });
    const answer = (accepted: boolean) => {
      socket.destroy();
      resolve(accepted);
    };
    socket.once('connect', () => answer(true));
    socket.once('error', () => answer(false));
  });
}

/** Sobe um concorrente numa porta livre, e o devolve já aceitando conexões. */
async function start_peer(argv: (port: number) => string[]): Promise<server> {
  for (let attempt = 1; ; attempt += 1) {
    const port = await free_port();
    const [command = '', ...args] = argv(port);
    const program = start_program(command, args);
    keep_running(program, 'SIGTERM'); // o nginx morto de vez deixaria os filhos de pé
    const died = () => program.process.exitCode !== null;
    const ready = async () => died() || (await accepts(port));
    await until(`${command} na porta ${port}`, ready, ready_limit_ms);
    if (!died()) return { pid: program.process.pid ?? 0, port, program };
    if (attempt >= start_attempts) throw new Error(`${command} não subiu:\n${program.stderr()}`);
  }
}

/**
 * Sobe o webdis diante de um Redis, com a configuração do pacote, salvo portas e registro;
 * devolve-o.
 */
export function start_webdis(redis: local_redis): Promise<server> {
  return start_peer((http_port) => {
    const dir = temp_dir();
    const file = path.join(dir, 'webdis.json');
    const config = {
      redis_host: '127.0.0.1',
      redis_port: redis.port,
      redis_auth: null,
      http_host: '127.0.0.1',
      http_port,
      threads: 2,
      daemonize: false,
      database: 1,
      acl: [],
      verbosity: 1,
      logfile: path.join(dir, 'webdis.log'),
    };
    write_file(file, JSON.stringify(config));
    return ['webdis', file];
  });
}

/** Sobe o nginx com o nchan, um processo de trabalho, como o proxy; devolve-o. */
export function start_nchan(): Promise<server> {
  return start_peer((port) => {
    const dir = temp_dir();
    const file = path.join(dir, 'nginx.conf');
    const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'];
    const lines = [
      `load_module ${nchan_module};`,
      ...(process.getuid?.() === 0 ? ['user root;'] : []),
      'daemon off; worker_processes 1; error_log stderr;',
      `pid ${dir}/nginx.pid; worker_rlimit_nofile ${nginx_connections};`,
      `events { worker_connections ${nginx_connections}; }`,
      'http {',
      ...temporary.map((name) => `  ${name}_temp_path ${dir}/${name};`),
      '  access_log off; keepalive_requests 100000000; keepalive_timeout 1h;',
      '  nchan_max_reserved_memory 512M;',
      `  server { listen 127.0.0.1:${port} backlog=4096;`,
      '    location ~ ^/sub/(.+)$ {',
      '      nchan_subscriber http-raw-stream; nchan_channel_id $1;',
      '      nchan_subscriber_first_message newest; nchan_subscriber_timeout 0;',
      '    }',
      '    location ~ ^/pub/(.+)$ { nchan_publisher; nchan_channel_id $1;',
      '      nchan_message_timeout 1m; nchan_message_buffer_length 100000; }',
      '  }',
      '}',
    ];
    write_file(file, `${lines.join('\n')}\n`);
    return ['nginx', '-e', 'stderr', '-c', file, '-p', dir];
  });
}
