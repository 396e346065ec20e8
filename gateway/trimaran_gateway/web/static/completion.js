// One answer, put together from the chunks of its stream.

/** A fresh assistant message. Times are in milliseconds of the page's clock, `null` until they happen. */
export function emptyAnswer(now) {
  return {
    role: 'assistant',
    content: '',
    reasoning: '',
    calls: [],
    finish: null,
    error: null,
    usage: null,
    times: { sent: now, first: null, last: null, thought: null },
  };
}

/** Add a chunk; the answer is changed in place. */
export function addChunk(answer, chunk, now) {
  if (chunk.usage) answer.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const delta = choice.delta ?? {};
  const reasoning = delta.reasoning_content ?? delta.reasoning ?? '';
  const content = delta.content ?? '';
  if (reasoning || content || delta.tool_calls) {
    answer.times.first ??= now;
    answer.times.last = now;
  }
  answer.reasoning += reasoning;
  if ((content || delta.tool_calls) && answer.reasoning) answer.times.thought ??= now;
  answer.content += content;
  for (const part of delta.tool_calls ?? []) addCall(answer.calls, part);
  if (choice.finish_reason) answer.finish = choice.finish_reason;
}

/** Whether the model reasons and has not begun its answer. */
export function isThinking(answer) {
  return answer.reasoning !== '' && answer.times.thought === null && !isOver(answer);
}

export const isOver = (answer) => answer.finish !== null || answer.error !== null;

/** How long it reasoned (so far), in seconds. */
export function thinkingSeconds(answer, now) {
  const { first, last, thought } = answer.times;
  return ((thought ?? (isOver(answer) ? last : now)) - first) / 1000;
}

/** Tokens per second after the first, or `null` when they came too fast to tell. */
export function speed(answer) {
  const tokens = answer.usage?.completion_tokens ?? 0;
  const seconds = (answer.times.last - answer.times.first) / 1000;
  return tokens > 1 && seconds > 0.1 ? (tokens - 1) / seconds : null;
}

function addCall(calls, part) {
  const index = part.index ?? calls.length;
  calls[index] ??= { id: '', name: '', arguments: '', result: null };
  const call = calls[index];
  if (part.id) call.id = part.id;
  if (part.function?.name) call.name = part.function.name;
  call.arguments += part.function?.arguments ?? '';
}
