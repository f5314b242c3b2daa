import {
  type IDataObject,
  type IExecuteFunctions,
  type INodeExecutionData,
  type INodeType,
  type INodeTypeDescription,
  NodeConnectionTypes,
  NodeOperationError,
} from 'n8n-workflow';
import { findTask } from '../../shared/findTask';
import {
  credentialType,
  type RedisConnection,
  type RedisCredential,
  withConnection,
} from '../../shared/redis';
import { endTask, isWanted, type Kind, pushElements, type Task } from '../../shared/task';
import { chunkHead, eventHead, eventOf, headOf, lineOfJson, lineOfText } from './elements';
import { lineProperties } from './properties';

/** How the elements of each operation are pushed. */
const kinds: Record<string, Kind> = { line: 'line', head: 'head', event: 'raw', chunk: 'raw' };

/** Gives the text of the item `index`: its JSON, another, or a text of the user's. */
function contentOf(context: IExecuteFunctions, index: number): string {
  const content = context.getNodeParameter('content', index) as string;
  if (content === 'text') return String(context.getNodeParameter('text', index) ?? '');
  if (content === 'json') return lineOfJson(context.getNodeParameter('json', index));
  return JSON.stringify(context.getInputData()[index]?.json ?? {});
}

/** Gives the element that the item `index` becomes in an `operation`. */
async function elementOf(context: IExecuteFunctions, operation: string, index: number) {
  if (operation === 'head') {
    const entries = context.getNodeParameter('headers.entries', index, []) as never[];
    const framing = context.getNodeParameter('framing', index) as string;
    return headOf(framing, context.getNodeParameter('statusCode', index) as number, entries);
  }
  if (operation === 'event') {
    const fields = context.getNodeParameter('eventFields', index, {}) as IDataObject;
    return eventOf(contentOf(context, index), fields);
  }
  if (operation === 'chunk') {
    const source = context.getNodeParameter('source', index) as string;
    if (source === 'text') return String(context.getNodeParameter('chunkText', index) ?? '');
    const name = context.getNodeParameter('binaryPropertyName', index) as string;
    return context.helpers.getBinaryDataBuffer(index, name);
  }
  const text = contentOf(context, index);
  const isText = context.getNodeParameter('content', index) === 'text';
  return isText ? lineOfText(text) : text;
}

/** Says if a task still has a client, after doing the `operation` for the item `index`. */
async function act(
  context: IExecuteFunctions,
  client: RedisConnection,
  operation: string,
  task: Task,
  index: number,
): Promise<boolean> {
  if (operation === 'check') return isWanted(client, task);
  if (operation === 'end') {
    const isFailed = context.getNodeParameter('outcome', index) === 'failed';
    const error = isFailed ? String(context.getNodeParameter('error', index)) : '';
    return endTask(client, task, isFailed ? error || 'failed' : '');
  }
  const element = await elementOf(context, operation, index);
  const firstHead = operation === 'event' ? eventHead : chunkHead;
  const kind = kinds[operation] ?? 'line';
  return (await pushElements(client, task, kind, [element], firstHead)) === 'sent';
}

/** Gives what the item `index` becomes: itself or, for an agent, whether the client `isThere`. */
function outputOf(context: IExecuteFunctions, isThere: boolean, index: number) {
  const pairedItem = { item: index };
  if (context.isToolExecution?.()) {
    const response = isThere ? 'sent to the client' : 'not sent: the client is gone';
    return { json: { response }, pairedItem };
  }
  return { ...(context.getInputData()[index] ?? { json: {} }), pairedItem };
}

const main = NodeConnectionTypes.Main;
const outputNames = ['there', 'gone'];
const twoOutputs = outputNames.map((name) => `{ type: "${main}", displayName: "${name}" }`);

export class JsonProxyLine implements INodeType {
  description: INodeTypeDescription = {
    displayName: 'JSON Proxy Line',
    name: 'jsonProxyLine',
    icon: {
      light: 'file:../../icons/jsonProxy.svg',
      dark: 'file:../../icons/jsonProxy.dark.svg',
    },
    group: ['output'],
    version: 1,
    subtitle:
      '={{ { line: "send line", head: "send head", event: "send event", chunk: "send raw chunk", check: "check client", end: "end" }[$parameter["operation"]] }}',
    description: 'Shows something to the HTTP client of json-proxy at once',
    defaults: { name: 'JSON Proxy Line' },
    usableAsTool: true,
    inputs: [NodeConnectionTypes.Main],
    outputs: `={{ $parameter["operation"] === "check" ? [${twoOutputs}] : ["${main}"] }}`,
    credentials: [{ name: credentialType, required: true }],
    properties: lineProperties,
  };

  async execute(this: IExecuteFunctions): Promise<INodeExecutionData[][]> {
    const operation = this.getNodeParameter('operation', 0) as string;
    const outputs: INodeExecutionData[][] = operation === 'check' ? [[], []] : [[]];
    const credential = await this.getCredentials<RedisCredential>(credentialType);
    const log = (text: string) => this.logger.warn(`${this.getNode().name}: ${text}`);
    const each = async (client: RedisConnection, index: number) => {
      const { task: given, stopIfGone } = this.getNodeParameter(
        'options',
        index,
        {},
      ) as IDataObject;
      const task = findTask(this, index, given);
      const isThere = await act(this, client, operation, task, index);
      if (!isThere && stopIfGone)
        throw new NodeOperationError(this.getNode(), 'The client is gone');
      const output = operation === 'check' && !isThere ? outputs[1] : outputs[0];
      output?.push(outputOf(this, isThere, index));
    };
    const all = async (client: RedisConnection) => {
      for (let index = 0; index < this.getInputData().length; index += 1) {
        try {
          await each(client, index);
        } catch (error) {
          if (!this.continueOnFail()) {
            throw new NodeOperationError(this.getNode(), error as Error, { itemIndex: index });
          }
          const json = { error: (error as Error).message };
          outputs[0]?.push({ json, pairedItem: { item: index } });
        }
      }
    };
    await withConnection(credential, all, log);
    return outputs;
  }
}
