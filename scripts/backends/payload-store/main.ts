/*
 * payload-store, que ouve em 8890.
 *
 *   API_SECRET_KEY=… npx tsx main.ts
 *
 * REDIS_SERVER, ou REDIS_HOST e REDIS_PORT; REDIS_PASSWORD; API_SECRET_KEY; LOG_FOLDER.
 */

import { run_system } from '../common/system';
import { main } from './program';

run_system('payload-store', main);
