/*
 * O que todo papel do banco de provas tem em comum: é um processo filho que atende chamadas pelo
 * canal do Node (IPC), que fica calado enquanto se mede.
 */

/** Uma chamada, como vem do processo principal. */
type role_call = { id: number; name: string; args: unknown };

/** O que um papel sabe fazer, por nome. */
export type role_handlers = Record<string, (args: never) => unknown>;

/**
 * Atende as chamadas do processo principal até que ele suma. O que um atendente lança volta como
 * erro da chamada.
 * @param handlers o que o papel sabe fazer
 */
export function serve_role(handlers: role_handlers): void {
  process.on('message', async ({ id, name, args }: role_call) => {
    try {
      const handler = handlers[name] as ((args: unknown) => unknown) | undefined;
      if (!handler) throw new Error(`chamada desconhecida: ${name}`);
      process.send?.({ id, result: await handler(args) });
    } catch (error) {
      process.send?.({ id, error: String((error as Error).stack) });
    }
  });
  process.on('disconnect', () => process.exit(0));
  process.on('SIGINT', () => {}); // um Ctrl-C chega a todos; quem encerra os papéis é o principal
}

/**
 * Lê o relógio monotônico, que todos os processos da máquina compartilham, em décimos de
 * microssegundo.
 */
export function clock(): number {
  return Number(process.hrtime.bigint() / 100n);
}

/** Quantas unidades de `clock` fazem um milissegundo. */
export const clock_per_ms = 10_000;

/** Faz algo para cada índice abaixo de `count`, `at_once` de cada vez. */
export async function in_groups(
  count: number,
  at_once: number,
  action: (index: number) => Promise<unknown>,
): Promise<void> {
  for (let first = 0; first < count; first += at_once) {
    const size = Math.min(at_once, count - first);
    await Promise.all(Array.from({ length: size }, (_, offset) => action(first + offset)));
  }
}
