/*
 * What a chat model says while it says it, and the shapes in which that reaches the client.
 */

import type { Kind } from './task';

/** Where the elements go. */
export interface AnswerSink {
  /** Pushes elements, in order. Throws if nobody waits for the answer any more. */
  push(...elements: string[]): Promise<void>;
  /** Ends the answer with an error: the part that was read does not pass for the whole. */
  end(message: string): Promise<void>;
  /** Notes that the model has failed, for the case that nothing is pushed after that. */
  fail(): Promise<void>;
}

export interface ToolCall {
  name: string;
  args: unknown;
}

/** Gives the element for each thing that a model says; an empty one is only a sign of life. */
export interface TokenFormat {
  /** How the elements are meant. */
  kind: Kind;
  /** Whether the client reads what the model says, and so would miss the rest. */
  isShown: boolean;
  token(text: string, isFirst: boolean): string;
  toolCall(call: ToolCall, isAfterText: boolean): string;
  answer(text: string, finishReason: string): string;
}

type Info = Record<string, unknown>;

/** What LangChain says of one call of a model, as far as it is read here. */
interface ModelResult {
  generations: Array<
    Array<{
      text?: string;
      generationInfo?: Info;
      message?: { tool_calls?: ToolCall[]; response_metadata?: Info };
    }>
  >;
}

/** One call of the model: what of it has been pushed, and when. */
interface ModelRun {
  text: string;
  pushedAt: number;
}

/** How long nothing is pushed before a sign of life is: the proxy ends a silence of 45 s. */
const LIFE_SIGN_MS = 5000;

/** With an output parser n8n's agent asks for its answer as a call of this tool. */
const FINAL_TOOL = 'format_final_json_response';

/** Names that models give to the two endings that a client must tell apart, in OpenAI's words. */
const FINISH_REASONS: Record<string, string> = {
  max_tokens: 'length',
  MAX_TOKENS: 'length',
  incomplete: 'length',
  length: 'length',
  content_filter: 'content_filter',
  SAFETY: 'content_filter',
};

/** Gives the elements of an answer in lines: {"token"}, {"tool", "input"}, {"answer"}. */
export function lineFormat(): TokenFormat {
  return {
    kind: 'line',
    isShown: true,
    token: (token) => JSON.stringify({ token }),
    toolCall: ({ name, args }) => JSON.stringify({ tool: name, input: args }),
    answer: (answer, finishReason) =>
      JSON.stringify(
        finishReason === 'stop' ? { answer } : { answer, finish_reason: finishReason },
      ),
  };
}

/**
 * Gives the elements of an answer in OpenAI's chunks. A tool call is no `tool_calls`, which the
 * client would take for its own to make: it is shown where reasoning is.
 */
export function openAiFormat(base: { id: string; created: number; model: string }): TokenFormat {
  const chunk = (delta: object, finish_reason: string | null = null) => {
    const choices = [{ index: 0, delta, finish_reason }];
    return `data: ${JSON.stringify({ ...base, object: 'chat.completion.chunk', choices })}\n\n`;
  };
  return {
    kind: 'raw',
    isShown: true,
    token: (content, isFirst) => chunk(isFirst ? { role: 'assistant', content } : { content }),
    toolCall: ({ name, args }, isAfterText) =>
      chunk({
        reasoning_content: `${name} ${JSON.stringify(args ?? {})}\n`,
        ...(isAfterText && { content: '\n\n' }), // what the model says next is another message
      }),
    answer: (_text, finishReason) => chunk({}, finishReason),
  };
}

/** Gives signs of life only, for an answer that is sent whole at the end. */
export function silentFormat(): TokenFormat {
  return { kind: 'line', isShown: false, token: () => '', toolCall: () => '', answer: () => '' };
}

/** Reads how a call ended from the field that the provider uses; '' if it does not say. */
function finishReasonOf(...infos: Array<Info | undefined>): string {
  const names = [
    'finish_reason',
    'finishReason',
    'done_reason',
    'stop_reason',
    'stopReason',
    'status',
  ];
  const found = infos.flatMap((info) => names.map((name) => info?.[name]));
  return found.find((value): value is string => typeof value === 'string' && value !== '') ?? '';
}

/** Hears what a model says and pushes it, in LangChain's form of a callback handler. */
export class TokenCallbacks {
  readonly name = 'json-proxy-tokens';

  /** A model that can stream does it for this handler, even when it is asked for the whole. */
  readonly lc_prefer_streaming = true;

  /** The model waits for each push: tokens stay in order, and none is later than the answer. */
  readonly awaitHandlers = true;

  /** A push that fails ends the run. */
  readonly raiseError = true;

  private readonly runs = new Map<string, ModelRun>();

  constructor(
    private readonly sink: AnswerSink,
    private readonly format: TokenFormat,
    private readonly mustSayWhyItEnded: boolean,
  ) {}

  async handleChatModelStart(_model: unknown, _messages: unknown, runId: string) {
    this.runs.set(runId, { text: '', pushedAt: Date.now() });
    await this.sink.push('');
  }

  async handleLLMStart(model: unknown, prompts: unknown, runId: string) {
    await this.handleChatModelStart(model, prompts, runId);
  }

  async handleLLMNewToken(token: string, _index: unknown, runId: string) {
    const run = this.runs.get(runId);
    if (!run) return;
    if (token === '' && Date.now() - run.pushedAt < LIFE_SIGN_MS) return;
    await this.pushText(run, token);
  }

  async handleLLMEnd(result: ModelResult, runId: string) {
    const run = this.runs.get(runId);
    this.runs.delete(runId);
    if (!run) return;
    const [generation] = result.generations[0] ?? []; // read before n8n's own handler trims it
    const { message, generationInfo, text = '' } = generation ?? {};
    const reason = finishReasonOf(generationInfo, message?.response_metadata);
    if (reason === 'error' || (reason === '' && this.mustSayWhyItEnded)) {
      const told = 'The model broke off: its answer has no end';
      if (this.format.isShown) await this.sink.end(told);
      throw new Error(told);
    }
    const calls = message?.tool_calls ?? [];
    const final = calls.find(({ name }) => name === FINAL_TOOL);
    const whole = final ? JSON.stringify(final.args) : text;
    const rest = whole.startsWith(run.text) ? whole.slice(run.text.length) : '';
    if (rest !== '') await this.pushText(run, rest);
    const isAnswer = final !== undefined || calls.length === 0;
    const elements = isAnswer
      ? [this.format.answer(whole, FINISH_REASONS[reason] ?? 'stop')]
      : calls.map((call, index) => this.format.toolCall(call, index === 0 && run.text !== ''));
    await this.sink.push(...elements);
  }

  async handleLLMError(error: unknown, runId: string) {
    const run = this.runs.get(runId);
    this.runs.delete(runId);
    if (!run) return;
    if (run.text === '' || !this.format.isShown) return this.sink.fail();
    // What was shown cannot be taken back: a fallback model would begin anew behind it.
    await this.sink.end(error instanceof Error ? error.message : String(error));
  }

  private async pushText(run: ModelRun, text: string) {
    const element = text === '' ? '' : this.format.token(text, run.text === '');
    run.text += text;
    run.pushedAt = Date.now();
    await this.sink.push(element);
  }
}

/** What is used of a LangChain model. */
export interface Model {
  callbacks?: unknown[] | { handlers?: unknown[] };
  bindTools?: ModelMaker;
  withConfig?: ModelMaker;
  bound?: Model;
  _llmType?: () => string;
  client?: { abort?: () => void };
}

type ModelMaker = (...args: unknown[]) => Model;

/** Gives the handlers that a model has. */
function handlersOf({ callbacks }: Model): unknown[] {
  return Array.isArray(callbacks) ? callbacks : (callbacks?.handlers ?? []);
}

/**
 * Makes a model speak to a handler, before n8n's own. Some models make another of themselves when
 * tools are given to them, from the fields of their constructor: that one is made to speak too.
 */
export function attachHandler(model: Model, handler: TokenCallbacks): void {
  if (handlersOf(model).includes(handler)) return;
  model.callbacks = [handler, ...handlersOf(model)];
  for (const name of ['bindTools', 'withConfig'] as const) {
    const make = model[name];
    if (!make) continue;
    model[name] = (...args) => {
      const made = make.apply(model, args);
      attachHandler(made.bound ?? made, handler);
      return made;
    };
  }
}
