/*
 * Uma rede de verdade que se pode estragar: um namespace do Linux, ligado ao da máquina por um par
 * de interfaces virtuais (veth). O proxy mora lá dentro; o Redis, o worker e os clientes, do lado
 * de cá. Um pacote perdido é descartado por quem o recebe, nunca por quem o envia: o remetente que
 * soubesse do descarte não se portaria como na rede.
 */

import { execFileSync as run } from 'node:child_process';
import { randomBytes as random_bytes, randomInt as random_int } from 'node:crypto';
import { on_stop } from '../../scripts/local';
import { start_proxy, start_redis, start_worker } from '../harness';

/** Um par de interfaces. `near` é o endereço do lado de cá, `far` o de dentro do namespace. */
export type link = ReturnType<typeof make_link>;

/** Um proxy dentro de um namespace, com o seu Redis, o seu worker e a ligação entre eles. */
export type network_scene = Awaited<ReturnType<typeof start_network_scene>>;

/** As redes de quatro endereços que cabem em 198.18.0.0/15, reservada a ensaios (RFC 2544). */
const test_blocks = 2 ** 15;

/** Uma linha lenta: atrasa o que é grande, com fila bastante para não perder nada. */
const slow_line = ['tbf', 'rate', '4mbit', 'burst', '16kb', 'latency', '400ms'];

/**
 * Escreve, na linguagem do BPF clássico, um filtro que perde parte dos pacotes TCP de uma porta,
 * seja a de origem, seja a de destino. As posições contam o cabeçalho Ethernet (14 bytes) e o IPv4
 * sem opções (20).
 * @param port a porta
 * @param share a parte que se perde, de 0 a 1
 * @returns o programa, na forma que o tc lê
 */
function loss_program(port: number, share: number): string {
  const threshold = Math.round(share * (2 ** 32 - 1));
  const steps = [
    '40 0 0 34', // porta de origem
    `21 2 0 ${port}`,
    '40 0 0 36', // porta de destino
    `21 0 2 ${port}`,
    '32 0 0 4294963256', // número sorteado
    `37 0 1 ${threshold}`,
    '6 0 0 4294967295', // passa
    '6 0 0 2', // perde-se
  ];
  return `${steps.length},${steps.join(',')}`;
}

/**
 * Desfaz uma ligação, inteira ou pela metade.
 * @param near_device interface do lado de cá
 * @param name nome do namespace
 */
function remove_link(near_device: string, name: string): void {
  const steps = [
    ['link', 'del', near_device],
    ['netns', 'del', name],
  ];
  for (const step of steps) {
    try {
      run('ip', step, { stdio: 'pipe' });
    } catch {
      // não chegou a existir
    }
  }
}

/**
 * Cria um namespace e o liga ao da máquina; tudo some em stop_all.
 * @returns `name`: o namespace; `near` e `far`: os endereços; `lose`: passa a perder, nos dois
 *   sentidos, uma parte dos pacotes de uma porta; `mend`: deixa de perder; `slow_down`: os dois
 *   sentidos ficam lentos; `lost`: quantos pacotes se perderam ao sair do namespace e ao entrar;
 *   `unconfirmed_bytes`: quantos o outro lado ainda não confirmou a quem está no namespace
 * @throws Error se a máquina não permite
 */
export function make_link() {
  const name = `jp${random_bytes(5).toString('hex')}`;
  const devices = { near: `${name}n`, far: `${name}f` };
  const base = random_int(test_blocks) * 4;
  const address = (n: number) =>
    `198.${18 + (base >> 16)}.${(base >> 8) & 255}.${(base & 255) + n}`;
  const [near, far] = [address(1), address(2)];
  const inside = ['netns', 'exec', name];
  const ip = (...args: string[]) => run('ip', args, { stdio: 'pipe' });
  const tc_both = (make_args: (device: string) => string[]) => {
    run('tc', make_args(devices.near), { stdio: 'pipe' });
    ip(...inside, 'tc', ...make_args(devices.far));
  };
  on_stop(async () => remove_link(devices.near, name));
  ip('netns', 'add', name);
  ip('link', 'add', devices.near, 'type', 'veth', 'peer', 'name', devices.far, 'netns', name);
  ip('addr', 'add', `${near}/30`, 'dev', devices.near);
  ip('link', 'set', devices.near, 'up');
  ip('-n', name, 'addr', 'add', `${far}/30`, 'dev', devices.far);
  ip('-n', name, 'link', 'set', devices.far, 'up');
  tc_both((device) => ['qdisc', 'add', 'dev', device, 'clsact']);
  const lose = (port: number, share = 1) => {
    const filter = [
      'protocol',
      'ip',
      'bpf',
      'direct-action',
      'bytecode',
      loss_program(port, share),
    ];
    tc_both((device) => ['filter', 'add', 'dev', device, 'ingress', ...filter]);
  };
  const mend = () => tc_both((device) => ['filter', 'del', 'dev', device, 'ingress']);
  const slow_down = () =>
    tc_both((device) => ['qdisc', 'add', 'dev', device, 'root', ...slow_line]);
  const unconfirmed_bytes = () => {
    const sockets = ip(...inside, 'ss', '-Htn', 'state', 'established')
      .toString()
      .trim();
    const queues = sockets.split('\n').map((line) => Number(line.split(/ +/)[1] ?? 0));
    return queues.reduce((sum, bytes) => sum + bytes, 0);
  };
  const drops = (report: Buffer) => Number(/clsact[^(]*\(dropped (\d+)/.exec(String(report))?.[1]);
  const lost = () => ({
    outward: drops(run('tc', ['-s', 'qdisc', 'show', 'dev', devices.near])),
    inward: drops(ip(...inside, 'tc', '-s', 'qdisc', 'show', 'dev', devices.far)),
  });
  return { name, near, far, lose, mend, slow_down, lost, unconfirmed_bytes };
}

/**
 * Diz por que esta máquina não deixa fazer redes de ensaio.
 * @returns uma frase com o motivo, ou false se deixa
 */
export function why_no_network(): string | false {
  try {
    make_link().lose(1);
    return false;
  } catch (error) {
    const reason = (error as Error).message.trim().split('\n').at(-1);
    return `esta máquina não deixa criar redes de ensaio (root? Linux? iproute2?): ${reason}`;
  }
}

/**
 * Sobe um proxy dentro de um namespace só dele, e um Redis e um worker do lado de cá.
 * @param args argumentos a mais para o proxy
 * @param env variáveis de ambiente a mais para o proxy
 * @returns tudo isso, e um cliente do Redis que, como o worker, não passa pela ligação
 */
export async function start_network_scene(args: string[], env: NodeJS.ProcessEnv = {}) {
  const link = make_link();
  const redis = await start_redis(['--bind', '127.0.0.1', link.near, '--protected-mode', 'no']);
  const server = `${link.near}:${redis.port}/1`;
  const launcher = ['ip', 'netns', 'exec', link.name];
  const [inner, worker] = await Promise.all([
    start_proxy({ server }, ['--host', link.far, ...args], env, launcher),
    start_worker(redis),
  ]);
  return { link, redis, proxy: { ...inner, host: link.far }, worker, db: worker.client };
}
