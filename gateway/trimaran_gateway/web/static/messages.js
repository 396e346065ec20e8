// The list of messages; it follows its end unless the reader has scrolled away.

import { AssistantView } from './assistant.js';
import { byId, el, iconButton } from './dom.js';

const NEAR_PX = 80;

export class MessageList {
  #views = [];

  /** `actions` are {regenerate(), returnResults(texts), edit(index)}. */
  constructor(conversation, actions) {
    this.conversation = conversation;
    this.actions = actions;
    this.list = byId('messages');
    this.scroller = byId('scroll');
  }

  /** Show all messages; those that are shown already are only brought up to date. */
  update() {
    const { messages } = this.conversation;
    const follows = this.#isAtEnd();
    const same = this.#views.findIndex((view, i) => view.message !== messages[i]);
    for (const view of same < 0 ? [] : this.#views.splice(same)) view.node.remove();
    for (const message of messages.slice(this.#views.length)) this.#add(message);
    this.#views.forEach((view, i) => view.update?.(i === messages.length - 1, performance.now()));
    byId('welcome').hidden = messages.length > 0;
    if (follows) this.toEnd();
  }

  /** Bring only the last message up to date: for every chunk of a stream. */
  updateLast() {
    const follows = this.#isAtEnd();
    this.#views.at(-1)?.update?.(true, performance.now());
    if (follows) this.toEnd();
  }

  toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  #isAtEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR_PX;
  }

  #add(message) {
    const index = this.#views.length;
    const view = message.role === 'user' ? this.#userView(message, index) : this.#assistantView(message);
    this.#views.push(view);
    this.list.append(view.node);
  }

  #assistantView(message) {
    const view = new AssistantView(message, this.actions);
    return { message, node: view.node, update: (isLast, now) => view.update(isLast, now) };
  }

  #userView(message, index) {
    const node = el(
      'li',
      { class: 'question' },
      el('h3', { class: 'hidden' }, 'You'),
      el('div', { class: 'bubble' }, message.content),
      iconButton('i-edit', 'Edit message', () => this.actions.edit(index)),
    );
    return { message, node };
  }
}
