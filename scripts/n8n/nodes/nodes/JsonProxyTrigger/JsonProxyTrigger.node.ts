import {
  type INodeType,
  type INodeTypeDescription,
  type ITriggerFunctions,
  type ITriggerResponse,
  NodeConnectionTypes,
} from 'n8n-workflow';
import { credentialType, type RedisCredential } from '../../shared/redis';
import { Listener } from './listener';
import { triggerProperties } from './properties';

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
    subtitle: '={{ $parameter["path"] || $parameter["channel"] }}',
    description: 'Starts the workflow when an HTTP request reaches json-proxy',
    eventTriggerDescription: 'Waiting for a request to json-proxy',
    defaults: { name: 'JSON Proxy Trigger' },
    triggerPanel: {
      header: '',
      executionsHelp: {
        inactive:
          '<b>While building your workflow</b>, click the "execute step" button, then send a request to json-proxy. The execution shows up in this editor, and the client gets its answer.<br /><br /><b>Once you\'re happy with your workflow</b>, publish it. Then every request starts an execution. These show up in the <a data-key="executions">executions list</a>, but not in the editor.',
        active:
          '<b>While building your workflow</b>, click the "execute step" button, then send a request to json-proxy. The editor takes it, although the published workflow listens too; the next one is answered by the published workflow again.',
      },
      activationHint:
        'Once you’ve finished building your workflow, publish it to have it listen continuously (you just won’t see those executions here).',
    },
    inputs: [],
    outputs: [NodeConnectionTypes.Main],
    credentials: [{ name: credentialType, required: true }],
    properties: triggerProperties,
  };

  async trigger(this: ITriggerFunctions): Promise<ITriggerResponse> {
    const options = this.getNodeParameter('options', {}) as Record<string, unknown>;
    const listener = new Listener(this, {
      credential: await this.getCredentials<RedisCredential>(credentialType),
      channel: this.getNodeParameter('channel') as string,
      filter: {
        path: this.getNodeParameter('path', '') as string,
        methods: this.getNodeParameter('methods', []) as string[],
      },
      limit: Number(options.tasksAtOnce ?? -1),
      signsOfLife: options.signsOfLife !== false,
      errorText: String(options.errorText ?? ''),
      stream: String(options.stream ?? ''),
    });
    const closeFunction = async () => listener.close();
    if (this.getMode() === 'manual') {
      return { closeFunction, manualTriggerFunction: () => listener.open() };
    }
    await listener.open();
    return { closeFunction };
  }
}
