/*
 * O que as provas compartilham: o plano (quanto medir), as medições feitas e como repeti-las em
 * voltas intercaladas, para que uma máquina que muda de humor no meio não favoreça ninguém.
 */

/** Quanto medir. Durações em segundos. */
export type bench_plan = {
  rounds: number;
  seconds: number;
  latency_streams: number[];
  bulk_lines: number;
  idle_streams: number[];
  idle_rest_s: number;
  idle_cpu_s: number;
  growth_streams: number[];
  peers: boolean;
};

/** Uma medição: números por nome, de uma variante, num caso, numa volta. */
export type measurement = {
  scenario: string;
  case_name: string;
  variant: string;
  round: number;
  values: Record<string, number>;
};

/** O que se dá a cada prova. */
export type bench_context = {
  plan: bench_plan;
  /** Caminho de json-proxy.js. */
  program: string;
  /** Versões dos concorrentes a medir, por nome. */
  peers: Record<string, string>;
  /** Mostra o andamento. */
  step: (text: string) => void;
  /** Guarda uma observação para o relatório. */
  note: (text: string) => void;
  record: (measurement: measurement) => void;
};

/** Algo que se mede em todas as voltas. */
export type trial = {
  case_name: string;
  variant: string;
  is_peer?: boolean;
  run: () => Promise<Record<string, number>>;
};

/** Uma prova. `estimate` em segundos, para a linha de andamento. */
export type scenario = {
  name: string;
  estimate: (plan: bench_plan) => number;
  run: (context: bench_context) => Promise<void>;
};

/**
 * Mede uma vez, na prova `scenario`; devolve undefined se um concorrente falhou, o que vira uma
 * observação. A falha do proxy ou de um piso é lançada.
 */
async function run_trial(
  context: bench_context,
  scenario: string,
  trial: trial,
): Promise<Record<string, number> | undefined> {
  try {
    return await trial.run();
  } catch (error) {
    const [reason = ''] = (error as Error).message.split('\n');
    const what = `${scenario}, ${trial.case_name}, ${trial.variant}`;
    if (!trial.is_peer) throw new Error(`${what}: ${(error as Error).message}`);
    context.note(`${what}: uma volta falhou: ${reason}`);
    return undefined;
  }
}

/**
 * Mede tudo em voltas, A B C, A B C, …, depois de uma que não conta.
 * @param scenario o nome da prova
 * @param warm o que vai na volta que não conta, para chegar aquecido às que contam
 */
export async function run_rounds(
  context: bench_context,
  scenario: string,
  trials: trial[],
  warm: trial[] = [],
): Promise<void> {
  const { rounds } = context.plan;
  for (let round = 0; round <= rounds; round += 1) {
    for (const trial of round === 0 ? warm : trials) {
      const { case_name, variant } = trial;
      const turn = round === 0 ? ', aquecimento' : ` ${round}/${rounds}`;
      context.step(`${scenario}${turn}: ${case_name}, ${variant}`);
      const values = await run_trial(context, scenario, trial);
      if (values && round > 0) context.record({ scenario, case_name, variant, round, values });
    }
  }
}

/** Espera `seconds` segundos. */
export function rest(seconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}
