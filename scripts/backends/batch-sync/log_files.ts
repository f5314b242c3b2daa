/*
 * Onde o agendador registra cada chamada, pela hora de São Paulo.
 */

import path from 'node:path';

/** O fuso do agendador. */
export const time_zone = 'America/Sao_Paulo';

/**
 * Dá o arquivo de log de uma chamada.
 * @param name nome da rota
 * @param at quando foi
 * @returns o caminho, a partir da pasta Logs
 */
export function log_file_of(name: string, at: Date): string {
  const options = { timeZone: time_zone, hourCycle: 'h23' } as const;
  const format = new Intl.DateTimeFormat('pt-BR', {
    ...options,
    ...{ year: 'numeric', month: '2-digit', day: '2-digit', hour: '2-digit', minute: '2-digit' },
  });
  const parts = Object.fromEntries(
    format.formatToParts(at).map(({ type, value }) => [type, value]),
  );
  const { year, month, day = '', hour, minute } = parts;
  const long = new Intl.DateTimeFormat('pt-BR', { ...options, month: 'long' }).format(at);
  const folder = long.charAt(0).toUpperCase() + long.slice(1);
  const file = `${day}_${month}_${year}_${hour}h${minute}_${name}.log`;
  return path.join('Logs', name, folder, day, file);
}
