/*
 * A página que mostra a API: o documento OpenAPI em HTML, sem nada que venha de outro servidor.
 */

import { html } from 'hono/html';

/** O que se mostra de uma operação do documento. */
type operation = {
  summary?: string;
  parameters?: {
    name?: string;
    schema?: { default?: unknown; maximum?: number };
    description?: string;
  }[];
  responses: Record<string, { description?: string }>;
};

/** O documento, no que interessa aqui. */
type api_document = { info: { title: string }; paths?: Record<string, unknown> };

/**
 * Mostra uma operação.
 * @param path o caminho
 * @param method o método
 * @param operation a operação
 * @returns o HTML
 */
function operation_section(path: string, method: string, operation: operation) {
  const { summary, parameters = [], responses } = operation;
  const rows = parameters.map(({ name, schema, description }) => {
    const about = [description, schema?.default !== undefined && `default ${schema.default}`];
    return html`<tr><td><code>${name}</code></td><td>${about.filter(Boolean).join('; ')}</td></tr>`;
  });
  const answers = Object.entries(responses).map(([status, { description }]) => {
    return html`<tr><td>${status}</td><td>${description}</td></tr>`;
  });
  return html`<section>
    <h2><b>${method.toUpperCase()}</b> <code>${path}</code></h2>
    <p>${summary}</p>
    <table>${rows}${answers}</table>
    ${method === 'get' ? html`<p><a href="${path}">try it</a></p>` : ''}
  </section>`;
}

/**
 * Faz a página.
 * @param api o documento OpenAPI
 * @returns o HTML
 */
export function docs_page(api: api_document) {
  const sections = Object.entries(api.paths ?? {}).flatMap(([path, methods]) => {
    return Object.entries(methods as Record<string, operation>).map(([method, operation]) => {
      return operation_section(path, method, operation);
    });
  });
  return html`<!doctype html>
<html lang="en">
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width">
  <title>${api.info.title}</title>
  <style>
    body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto }
    section { border-top: 1px solid #ccc; margin: 1rem 0 }
    td { padding: 0 1rem 0 0; vertical-align: top }
  </style>
  <h1>${api.info.title}</h1>
  <p>The same as an <a href="/openapi.json">OpenAPI document</a>.</p>
  ${sections}
</html>`;
}
