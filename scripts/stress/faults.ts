/*
 * As falhas: o que se sorteia de cada uma, e como se provoca. Uma de cada vez, com calma entre
 * elas; quem lê o livro sabe quando cada uma começou e acabou.
 */

import { delay, until } from '../dev/local';
import { fault_names, type fault_record, type planned_fault } from './ledger';
import { type dice, roll } from './random';
import { insist } from './redis';
import { dismiss_proxy, kill_proxy, restart_redis, type scene } from './scene';

/** Uma falha planejada: depois de quanta calma ela vem, quanto dura, e um número de 0 a 1. */
export type fault_plan = { kind: planned_fault; calm_ms: number; ms: number; share: number };

/** Uma linha da tabela: peso no sorteio, duração sorteada em ms, o que dizer e o que fazer. */
type fault_rule = {
  weight: number;
  ms: [min: number, max: number];
  say: string;
  run: (scene: scene, plan: fault_plan, dice: dice) => Promise<void>;
};

/** Quanto o proxy pode demorar a trocar uma conexão que se calou. */
const replace_limit_ms = 40_000;

/** A calma entre duas falhas. */
const calm_ms = { min: 100, max: 4000 };

const fault_table: Record<planned_fault, fault_rule> = {
  cut: {
    weight: 30,
    ms: [0, 0],
    say: 'corta a conexão com o Redis',
    run: ({ relay }, { share }) => relay.cut(share),
  },
  storm: {
    weight: 8,
    ms: [500, 3000],
    say: 'corta a conexão muitas vezes',
    run: async ({ relay }, { ms }, dice) => {
      for (let left = ms; left > 0; ) {
        const wait_ms = dice.integer(30, 300);
        await relay.cut(dice.integer(0, 100) / 100);
        await delay(wait_ms);
        left -= wait_ms;
      }
    },
  },
  freeze: {
    weight: 14,
    ms: [300, 4000],
    say: 'congela o Redis',
    run: ({ redis }, { ms }) => freeze(redis, ms),
  },
  stuck: {
    weight: 2,
    ms: [6000, 13_000],
    say: 'congela o Redis por muito tempo',
    run: ({ redis }, { ms }) => freeze(redis, ms),
  },
  restart: {
    weight: 10,
    ms: [0, 2000],
    say: 'derruba o Redis, que volta com os dados',
    run: (scene, { ms, share }) =>
      restart_redis(scene, share < 0.7 ? 'SIGKILL' : 'SIGTERM', ms, true),
  },
  wipe: {
    weight: 4,
    ms: [0, 1000],
    say: 'derruba o Redis, que volta vazio',
    run: (scene, { ms }) => restart_redis(scene, 'SIGKILL', ms, false),
  },
  flush: {
    weight: 4,
    ms: [0, 0],
    say: 'FLUSHALL',
    run: async ({ admin }) => void (await insist(() => admin.flushAll())),
  },
  oom: {
    weight: 10,
    ms: [200, 1500],
    say: 'deixa o Redis sem memória',
    run: async ({ admin }, { ms }) => {
      await insist(() => admin.configSet({ maxmemory: '1' }));
      await delay(ms);
      await insist(() => admin.configSet({ maxmemory: '0' }));
    },
  },
  mute: {
    weight: 3,
    ms: [0, 0],
    say: 'cala a conexão com o Redis, sem fechar',
    run: async ({ relay }) => {
      const { opened } = relay.counts();
      relay.mute();
      await until('troca da conexão', () => relay.counts().opened > opened, replace_limit_ms);
    },
  },
  kill: {
    weight: 4,
    ms: [0, 0],
    say: 'mata o proxy com SIGKILL',
    run: async (scene) => {
      await kill_proxy(scene);
      await scene.start_proxy();
    },
  },
  handover: {
    weight: 8,
    ms: [0, 0],
    say: 'SIGTERM no proxy, com um sucessor na mesma porta',
    run: async (scene) => {
      const { proxy } = scene;
      scene.departures.push(dismiss_proxy(scene));
      await proxy.wait_for(/ stop signal=/);
      await scene.start_proxy();
    },
  },
};

/** Congela o Redis por `ms` milissegundos. */
async function freeze(redis: scene['redis'], ms: number): Promise<void> {
  redis.process.kill('SIGSTOP');
  await delay(ms);
  redis.process.kill('SIGCONT');
}

/**
 * Planeja a falha de número `index`, entre as que se pode sortear; devolve sempre o mesmo para a
 * mesma semente `seed`.
 */
export function plan_fault(seed: number, index: number, kinds: planned_fault[]): fault_plan {
  const dice = roll(seed, 'falha', index);
  const rules = fault_names.filter((name) => kinds.includes(name));
  const tickets = rules.flatMap((name) => Array(fault_table[name].weight).fill(name));
  const kind = dice.pick(tickets as planned_fault[]);
  const [min, max] = fault_table[kind].ms;
  return {
    kind,
    calm_ms: dice.integer(calm_ms.min, calm_ms.max),
    ms: dice.integer(min, max),
    share: dice.integer(0, 1000) / 1000,
  };
}

/**
 * Provoca falhas, uma depois da outra, até a hora de parar.
 * @param seed a semente
 * @param until_ms quando parar, no relógio monotônico
 */
export async function provoke_faults(
  scene: scene,
  seed: number,
  kinds: planned_fault[],
  until_ms: number,
  step: (text: string) => void,
): Promise<void> {
  for (let index = 0; kinds.length > 0; index += 1) {
    const plan = plan_fault(seed, index, kinds);
    if (performance.now() + plan.calm_ms >= until_ms) break;
    await delay(plan.calm_ms);
    const { say, run } = fault_table[plan.kind];
    const record: fault_record = { kind: plan.kind, from: performance.now(), to: Infinity };
    scene.book.faults.push(record);
    step(`${say}${plan.ms > 0 ? `, ${plan.ms} ms` : ''}`);
    await run(scene, plan, roll(seed, 'falha em curso', index));
    record.to = performance.now();
  }
}
