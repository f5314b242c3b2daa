// Self-hosted n8n only: a node that keeps a connection needs timers, which n8n Cloud does not allow.
import { configWithoutCloudSupport } from '@n8n/node-cli/eslint';

export default configWithoutCloudSupport;
