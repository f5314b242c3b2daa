/*
 * A demonstração de um sistema: de que ele precisa para subir, e os pedidos que o mostram.
 */

/** Um pedido. `curl`: os argumentos, como num terminal, com $URL e o que `save` guardou. */
export type step = {
  title: string;
  curl: string;
  /** O status que se espera, e o que a resposta deve ter. */
  status: number;
  answer?: RegExp;
  /** Guarda um campo de texto da resposta numa variável, para os próximos pedidos. */
  save?: { name: string; field: string };
};

/** O ambiente do proxy e do sistema, e o dos pedidos: variáveis e argumentos a mais do curl. */
export type stage = {
  proxy: Record<string, string>;
  system: Record<string, string>;
  shell: Record<string, string>;
  curl?: string;
};

/** Uma demonstração. `prepare` faz o que falta numa pasta vazia. */
export type demo = {
  port: number;
  prepare: (folder: string) => stage | Promise<stage>;
  steps: step[];
};
