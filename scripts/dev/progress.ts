/*
 * A linha de andamento, em stderr: uma só, reescrita, num terminal; uma por passo, fora dele.
 */

/** Um mostrador do andamento. */
export type progress = { step: (text: string) => void; clear: () => void };

/**
 * Escreve uma duração.
 * @param seconds segundos
 * @returns por exemplo "1 min 05 s"
 */
function format_duration(seconds: number): string {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, '0')} s`;
}

/**
 * Cria o mostrador.
 * @param expected_s quanto se espera que tudo dure, em segundos
 * @returns o mostrador; `clear` apaga a linha de um terminal
 */
export function make_progress(expected_s: number, target = process.stderr): progress {
  const started_at = performance.now();
  const width = () => Math.max(20, (target.columns ?? 80) - 1);
  const step = (text: string) => {
    const elapsed = format_duration((performance.now() - started_at) / 1000);
    const line = `[${elapsed} de uns ${format_duration(expected_s)}] ${text}`;
    target.write(target.isTTY ? `\r\x1b[2K${line.slice(0, width())}` : `${line}\n`);
  };
  const clear = () => {
    if (target.isTTY) target.write('\r\x1b[2K');
  };
  return { step, clear };
}
