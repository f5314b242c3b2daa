import {
  type INodeType,
  type INodeTypeDescription,
  type ITriggerFunctions,
  type ITriggerResponse,
  NodeConnectionTypes,
} from 'n8n-workflow';
import { createConnection, credentialType, type RedisCredential } from '../../shared/redis';

export class JsonProxyTrigger implements INodeType {
  description: INodeTypeDescription = {
    displayName: 'JSON Proxy Trigger',
    name: 'jsonProxyTrigger',
    icon: {
      light: 'file:../../icons/jsonProxy.svg',
      dark: 'file:../../icons/jsonProxy.dark.svg',
    },
    group: ['trigger'],
    version: 1,
    subtitle: '={{ $parameter["channel"] }}',
    description: 'Starts the workflow when an HTTP request reaches json-proxy',
    defaults: { name: 'JSON Proxy Trigger' },
    inputs: [],
    outputs: [NodeConnectionTypes.Main],
    credentials: [{ name: credentialType, required: true }],
    properties: [
      {
        displayName: 'Channel',
        name: 'channel',
        type: 'string',
        default: 'ndjson_jobs',
        required: true,
        description: 'The REDIS_CHANNEL of the proxy',
      },
    ],
  };

  async trigger(this: ITriggerFunctions): Promise<ITriggerResponse> {
    const credential = await this.getCredentials<RedisCredential>(credentialType);
    const listener = createConnection(credential, (text) => this.logger.warn(text));
    await listener.connect();
    await listener.subscribe(this.getNodeParameter('channel') as string, (taskKey) =>
      this.emit([[{ json: { task_key: taskKey } }]]),
    );
    return { closeFunction: async () => listener.destroy() };
  }
}
