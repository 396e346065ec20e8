// How an answer looks: reasoning that folds away, text, tool calls, figures.

import { isOver, isThinking, speed, thinkingSeconds } from './completion.js';
import { copyText } from './copy.js';
import { el, icon, iconButton } from './dom.js';
import { duration, number, plural } from './format.js';
import { Markdown } from './markdown.js';
import { ToolCards } from './tools.js';

const FINISHES = {
  length: 'Cut off at the token limit.',
  stopped: 'Stopped.',
};

export class AssistantView {
  #hasChosen = false;

  /** `actions` are {regenerate, returnResults}. */
  constructor(answer, actions) {
    this.answer = answer;
    this.summary = el('summary');
    this.thoughts = el('div', { class: 'thoughts prose' });
    this.details = el('details', { class: 'reasoning', hidden: true }, this.summary, this.thoughts);
    this.summary.addEventListener('click', () => { this.#hasChosen = true; });
    this.text = el('div', { class: 'prose' });
    this.calls = el('form', { class: 'calls' });
    this.waiting = el('p', { class: 'waiting' }, icon('hulls'), el('span', {}, 'Reading the prompt'));
    this.problem = el('p', { class: 'problem', hidden: true });
    this.facts = el('span', { class: 'facts muted' });
    this.again = iconButton('i-again', 'Regenerate', actions.regenerate);
    this.copy = iconButton('i-copy', 'Copy answer', () => copyText(answer.content));
    this.foot = el('footer', { hidden: true }, this.copy, this.again, this.facts);
    this.node = el(
      'li',
      { class: 'answer' },
      el('h3', { class: 'hidden' }, 'Answer'),
      this.waiting, this.details, this.text, this.calls, this.problem, this.foot,
    );
    this.reasoningText = new Markdown(this.thoughts);
    this.contentText = new Markdown(this.text);
    this.cards = new ToolCards(this.calls, actions.returnResults);
  }

  /** Show the answer as it is now; `isLast` allows what only the last message may do. */
  update(isLast, now) {
    const { answer } = this;
    const isDone = isOver(answer);
    this.node.setAttribute('aria-busy', String(!isDone));
    this.waiting.hidden = isDone || answer.times.first !== null;
    this.#showReasoning(now);
    this.contentText.update(answer.content);
    this.cards.update(answer.calls, isLast && isDone && answer.calls.some((call) => call.result === null));
    this.problem.hidden = !answer.error;
    this.problem.textContent = answer.error ?? '';
    this.foot.hidden = !isDone;
    this.again.hidden = !isLast;
    this.copy.hidden = !answer.content;
    this.facts.textContent = isDone ? facts(answer) : '';
  }

  #showReasoning(now) {
    const { answer } = this;
    if (!answer.reasoning) return;
    const thinks = isThinking(answer);
    const seconds = thinkingSeconds(answer, now);
    const time = seconds < 0.1 ? 'a moment' : duration(seconds); // faster is the network's doing, not the model's
    this.details.hidden = false;
    this.details.classList.toggle('active', thinks);
    this.summary.textContent = thinks ? `Thinking for ${time} …` : `Thought for ${time}`;
    if (!this.#hasChosen) this.details.open = thinks;
    this.reasoningText.update(answer.reasoning.trim());
  }
}

function facts(answer) {
  const { usage, times } = answer;
  const rate = speed(answer);
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  return [
    FINISHES[answer.finish],
    usage && plural(usage.completion_tokens, 'token'),
    rate && `${number(rate)} tokens/s`,
    times.first !== null && `first after ${duration((times.first - times.sent) / 1000)}`,
    usage && `prompt ${usage.prompt_tokens.toLocaleString('en')}${cached ? `, ${cached.toLocaleString('en')} cached` : ''}`,
  ].filter(Boolean).join(' · ');
}
