import {
  type IExecuteFunctions,
  type INodeExecutionData,
  type INodeType,
  type INodeTypeDescription,
  NodeConnectionTypes,
} from 'n8n-workflow';
import { credentialType } from '../../shared/redis';

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
    subtitle: '={{ $parameter["operation"] }}',
    description: 'Sends each item to the HTTP client at once',
    defaults: { name: 'JSON Proxy Line' },
    usableAsTool: true,
    inputs: [NodeConnectionTypes.Main],
    outputs: [NodeConnectionTypes.Main],
    credentials: [{ name: credentialType, required: true }],
    properties: [],
  };

  async execute(this: IExecuteFunctions): Promise<INodeExecutionData[][]> {
    return [this.getInputData()];
  }
}
