import {
  type INodeType,
  type INodeTypeDescription,
  type ISupplyDataFunctions,
  NodeConnectionTypes,
  NodeOperationError,
  type SupplyData,
} from 'n8n-workflow';
import { findTask } from '../../shared/findTask';
import {
  credentialType,
  type RedisConnection,
  type RedisCredential,
  withConnection,
} from '../../shared/redis';
import { breakTask, endTask, pushElements, type Task } from '../../shared/task';
import {
  type AnswerSink,
  attachHandler,
  lineFormat,
  type Model,
  openAiFormat,
  silentFormat,
  TokenCallbacks,
  type TokenFormat,
} from '../../shared/tokens';

/** The head of an answer in events, if nothing was sent before. */
const eventHead = 'RAW 200 {"Content-Type":"text/event-stream; charset=utf-8"}';

/** Gives the format that was chosen for the item `itemIndex`. */
function formatOf(context: ISupplyDataFunctions, itemIndex: number, { uuid }: Task): TokenFormat {
  const name = context.getNodeParameter('format', itemIndex) as string;
  if (name === 'lines') return lineFormat();
  if (name === 'silent') return silentFormat();
  const model = context.getNodeParameter('modelName', itemIndex) as string;
  return openAiFormat({ id: `chatcmpl-${uuid}`, created: Math.floor(Date.now() / 1000), model });
}

export class JsonProxyTokens implements INodeType {
  description: INodeTypeDescription = {
    displayName: 'JSON Proxy Tokens',
    name: 'jsonProxyTokens',
    icon: {
      light: 'file:../../icons/jsonProxy.svg',
      dark: 'file:../../icons/jsonProxy.dark.svg',
    },
    group: ['transform'],
    version: 1,
    subtitle: '={{ $parameter["format"] }}',
    description: 'Sends what a model says to the HTTP client token by token',
    defaults: { name: 'JSON Proxy Tokens' },
    usableAsTool: undefined as never, // it gives a model; n8n's linter wants the word all the same
    inputs: [
      {
        displayName: 'Model',
        maxConnections: 1,
        type: NodeConnectionTypes.AiLanguageModel,
        required: true,
      },
    ],
    outputs: [NodeConnectionTypes.AiLanguageModel],
    outputNames: ['Model'],
    credentials: [{ name: credentialType, required: true }],
    properties: [
      {
        displayName: 'Format',
        name: 'format',
        type: 'options',
        default: 'lines',
        options: [
          {
            name: 'Lines',
            value: 'lines',
            description: '{"token": …} for each token, {"tool": …, "input": …}, and {"answer": …}',
          },
          {
            name: 'OpenAI Chunks',
            value: 'openai',
            description:
              'Events of a chat completion: a raw answer, which a Line node ends with [DONE]',
          },
          {
            name: 'Signs of Life',
            value: 'silent',
            description: 'Nothing is shown: another node sends the whole answer',
          },
        ],
      },
      {
        displayName: 'Model Name',
        name: 'modelName',
        type: 'string',
        default: 'n8n',
        displayOptions: { show: { format: ['openai'] } },
        description: 'The name that the chunks give as their model',
      },
    ],
  };

  async supplyData(this: ISupplyDataFunctions, itemIndex: number): Promise<SupplyData> {
    const model = (await this.getInputConnectionData(
      NodeConnectionTypes.AiLanguageModel,
      itemIndex,
    )) as Model;
    const task = findTask(this, itemIndex);
    const credential = await this.getCredentials<RedisCredential>(credentialType);
    const use = <Result>(work: (client: RedisConnection) => Promise<Result>) =>
      withConnection(credential, work, (text) => this.logger.warn(text));
    const format = formatOf(this, itemIndex, task);
    const sink: AnswerSink = {
      push: async (...elements) => {
        const push = (client: RedisConnection) =>
          pushElements(client, task, format.kind, elements, eventHead);
        if ((await use(push)) === 'sent') return;
        model.client?.abort?.(); // Ollama's would go on with what nobody reads
        throw new NodeOperationError(this.getNode(), 'The client has left', { itemIndex });
      },
      end: async (message) => {
        await use((client) => endTask(client, task, message));
      },
      fail: () => use((client) => breakTask(client, task)),
    };
    attachHandler(model, new TokenCallbacks(sink, format, model._llmType?.() === 'openai'));
    return { response: model };
  }
}
