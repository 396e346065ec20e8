// The conversation: a list of messages, kept on this device, and its form on the wire.

import { isOver } from './completion.js';
import { load, onDevice, save } from './storage.js';

export class Conversation {
  constructor() {
    const kept = load(onDevice, 'conversation', []);
    this.messages = Array.isArray(kept) ? kept.filter(isMessage) : [];
    for (const message of this.messages) endUnfinished(message);
  }

  /** Whether it could be kept. */
  save() {
    return save(onDevice, 'conversation', this.messages);
  }

  add(message) {
    this.messages.push(message);
  }

  /** Drop the message at `index` and all that follow. */
  cut(index) {
    this.messages.length = Math.min(index, this.messages.length);
  }

  get last() {
    return this.messages.at(-1);
  }

  /** Messages for the API. Earlier reasoning stays here: models are not trained to read it again. */
  wire(system) {
    const lead = system ? [{ role: 'system', content: system }] : [];
    return lead.concat(...this.messages.map(wireMessage));
  }
}

function wireMessage(message) {
  if (message.role === 'user') return [{ role: 'user', content: message.content }];
  if (!message.content && !message.calls.length) return []; // it failed before it began
  if (!message.calls.length) return [{ role: 'assistant', content: message.content }];
  const calls = message.calls.map((call) => ({
    id: call.id,
    type: 'function',
    function: { name: call.name, arguments: call.arguments },
  }));
  const answered = message.calls.filter((call) => call.result !== null);
  const results = answered.map((call) => ({ role: 'tool', tool_call_id: call.id, content: call.result }));
  return [{ role: 'assistant', content: message.content || null, tool_calls: calls }, ...results];
}

// The page was closed while this answer came in.
function endUnfinished(message) {
  if (message.role === 'assistant' && !isOver(message)) message.finish = 'stopped';
}

// What was kept may be from another version of the page.
function isMessage(message) {
  if (message?.role === 'user') return typeof message.content === 'string';
  const texts = [message?.content, message?.reasoning];
  return texts.every((text) => typeof text === 'string') && Array.isArray(message.calls) && Boolean(message.times);
}
