/*
 * Every node of the package. A new one stands in nodes/<Name>/<Name>.node.ts with its codex,
 * <Name>.node.json, beside it; is exported here; and has its line under "n8n" in package.json.
 */

export { JsonProxyLine } from './nodes/JsonProxyLine/JsonProxyLine.node';
export { JsonProxyTokens } from './nodes/JsonProxyTokens/JsonProxyTokens.node';
export { JsonProxyTrigger } from './nodes/JsonProxyTrigger/JsonProxyTrigger.node';
