/*
 * How a node finds the task that its execution answers.
 */

import {
  type IExecuteData,
  type IExecuteFunctions,
  type ISupplyDataFunctions,
  NodeOperationError,
} from 'n8n-workflow';
import { isTask, type Task } from './task';

type Context = IExecuteFunctions | ISupplyDataFunctions;

const triggerType = /\.jsonProxyTrigger$/;

/** Gives the names of the nodes from which ways may lead back to the trigger. */
function startingPoints(context: Context): string[] {
  const executing: IExecuteData | undefined = (context as IExecuteFunctions).getExecuteData?.();
  const sources = Object.values(executing?.source ?? {}).flat();
  const names = [
    context.getNode().name,
    executing?.node?.name, // of a tool or a model, the agent
    ...sources.map((source) => source?.previousNode),
  ];
  return names.filter((name) => name !== undefined);
}

/** Gives the names of the triggers that may have started the execution, the surest first. */
function triggerNames(context: Context): string[] {
  const started = (context as Partial<IExecuteFunctions>).getExecutionContext?.()?.triggerNode;
  const parents = startingPoints(context).flatMap((name) => context.getParentNodes(name));
  const candidates = [...(started ? [started] : []), ...parents];
  const names = candidates.filter(({ type }) => triggerType.test(type)).map(({ name }) => name);
  return [...new Set(names)];
}

/** Gives the task in the first item of the node `name`, as seen from the item `itemIndex`. */
function taskOf(context: Context, name: string, itemIndex: number): unknown {
  try {
    return context.getWorkflowDataProxy(itemIndex).$(name).first().json.task;
  } catch {
    return undefined;
  }
}

/** Gives what the user gave as a task, which may be the JSON of it. */
function parseGiven(given: unknown): unknown {
  if (typeof given !== 'string') return given;
  try {
    return JSON.parse(given);
  } catch {
    return undefined;
  }
}

/** Gives the task that the item `itemIndex` carries, as in a workflow that another has called. */
function carriedTask(context: Context, itemIndex: number): unknown {
  const carried = (context as IExecuteFunctions).getInputData()?.[itemIndex]?.json.task;
  if (isTask(carried)) return carried;
  const parents = startingPoints(context).flatMap((name) => context.getParentNodes(name));
  return parents.map(({ name }) => taskOf(context, name, itemIndex)).find(isTask);
}

/**
 * Finds the task that this execution answers: the trigger's, or the one that the items carry.
 * @param context the node
 * @param itemIndex the item
 * @param given a task that the user chose, if any
 * @returns the task
 * @throws NodeOperationError if there is none
 */
export function findTask(context: Context, itemIndex: number, given?: unknown): Task {
  const names = triggerNames(context);
  const found = names.map((name) => taskOf(context, name, itemIndex)).find(isTask);
  const task = parseGiven(given) ?? found ?? carriedTask(context, itemIndex);
  if (isTask(task)) return task;
  throw new NodeOperationError(context.getNode(), 'No task to answer', {
    itemIndex,
    description:
      'This execution was not started by a JSON Proxy Trigger. In a workflow that another one ' +
      "calls, give it the field <code>task</code> of the trigger's item.",
  });
}
