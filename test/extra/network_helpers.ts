/*
 * Uma rede de verdade que se pode estragar: um namespace do Linux, ligado ao da máquina por um par
 * de interfaces virtuais (veth). O proxy mora lá dentro; o Redis, o worker e os clientes, do lado
 * de cá. Um pacote perdido é descartado por quem o recebe, nunca por quem o envia: o remetente que
 * soubesse do descarte não se portaria como na rede.
 */

import { execSync as exec_sync } from 'node:child_process';
import { randomBytes as random_bytes, randomInt as random_int } from 'node:crypto';
import { on_stop } from '../../scripts/dev/local';
import { start_proxy, start_redis, start_worker } from '../harness';

/** Um par de interfaces. `near` é o endereço do lado de cá, `far` o de dentro do namespace. */
export type link = ReturnType<typeof make_link>;

/** Um proxy dentro de um namespace, com o seu Redis, o seu worker e a ligação entre eles. */
export type network_scene = Awaited<ReturnType<typeof start_network_scene>>;

/** As redes de quatro endereços que cabem em 198.18.0.0/15, reservada a ensaios (RFC 2544). */
const test_blocks = 2 ** 15;

/** Uma linha lenta: atrasa o que é grande, com fila bastante para não perder nada. */
const slow_line = 'tbf rate 4mbit burst 16kb latency 400ms';

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
 * Roda um comando e espera por ele.
 * @param command uma linha de shell
 * @returns o que ele escreveu
 * @throws Error com o que ele disse, se falhou
 */
function run(command: string): string {
  return exec_sync(command, { stdio: 'pipe', encoding: 'utf8' });
}

/**
 * Cria um namespace e o liga ao da máquina; tudo some em stop_all, mesmo o que ficou pela metade.
 * @returns `launcher`: o comando que roda outro lá dentro; `near` e `far`: os endereços; `lose`:
 *   passa a perder, nos dois sentidos, uma parte dos pacotes de uma porta; `mend`: deixa de perder;
 *   `slow_down`: os dois sentidos ficam lentos; `lost`: quantos pacotes se perderam ao sair do
 *   namespace e ao entrar; `unconfirmed_bytes`: quantos bytes ainda não lhe foram confirmados, de
 *   uma porta ou de todas
 * @throws Error se a máquina não permite
 */
export function make_link() {
  const name = `jp${random_bytes(5).toString('hex')}`;
  const [near_device, far_device] = [`${name}n`, `${name}f`];
  const base = random_int(test_blocks) * 4;
  const network = `198.${18 + (base >> 16)}.${(base >> 8) & 255}`;
  const [near, far] = [`${network}.${(base & 255) + 1}`, `${network}.${(base & 255) + 2}`];
  const inside = `ip netns exec ${name}`;
  on_stop(async () => run(`ip link del ${near_device}; ip netns del ${name}; true`));
  run(`ip netns add ${name}`);
  run(`ip link add ${near_device} type veth peer name ${far_device} netns ${name}`);
  run(`ip addr add ${near}/30 dev ${near_device}`);
  run(`ip link set ${near_device} up`);
  run(`${inside} ip addr add ${far}/30 dev ${far_device}`);
  run(`${inside} ip link set ${far_device} up`);

  /** Muda as duas pontas: o que entra por uma é o que saiu pela outra. */
  const both = (change: string) => {
    const [object, verb, ...rest] = change.split(' ');
    const at = (device: string) => `tc ${object} ${verb} dev ${device} ${rest.join(' ')}`;
    run(at(near_device));
    run(`${inside} ${at(far_device)}`);
  };
  both('qdisc add clsact');
  const lose = (port: number, share = 1) => {
    const bytecode = loss_program(port, share);
    both(`filter add ingress protocol ip bpf direct-action bytecode '${bytecode}'`);
  };
  const count_drops = (report: string) => Number(/clsact[^(]*\(dropped (\d+)/.exec(report)?.[1]);
  return {
    near,
    far,
    launcher: inside.split(' '),
    lose,
    mend: () => both('filter del ingress'),
    slow_down: () => both(`qdisc add root ${slow_line}`),
    lost: () => ({
      outward: count_drops(run(`tc -s qdisc show dev ${near_device}`)),
      inward: count_drops(run(`${inside} tc -s qdisc show dev ${far_device}`)),
    }),
    unconfirmed_bytes: (port = 0) => {
      const filter = port ? `"dport = :${port}"` : '';
      const rows = run(`${inside} ss -Htn state established ${filter}`).matchAll(/^\d+ +(\d+) /gm);
      return [...rows].reduce((sum, [, bytes]) => sum + Number(bytes), 0);
    },
  };
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
  const [inner, worker] = await Promise.all([
    start_proxy({ server }, ['--host', link.far, ...args], env, link.launcher),
    start_worker(redis),
  ]);
  return { link, redis, proxy: { ...inner, host: link.far }, worker, db: worker.client };
}
