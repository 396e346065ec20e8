// What happens between the user and the server: send, stop, regenerate, edit, return tool results.

import { addChunk, emptyAnswer } from './completion.js';
import { speak } from './dom.js';
import { MessageList } from './messages.js';
import { toast } from './toast.js';

const TICK_MS = 250;

export class Chat {
  #abort = null;

  /**
   * `modelName()` is the model to ask for; `onBusy(isBusy)` hears when an answer begins and ends, `onFailure()` when
   * one fails.
   */
  constructor({ api, conversation, settings, modelName, onBusy, onFailure, onEdit }) {
    Object.assign(this, { api, conversation, settings, modelName, onBusy, onFailure });
    this.view = new MessageList(conversation, {
      regenerate: () => this.regenerate(),
      returnResults: (texts) => this.returnResults(texts),
      edit: (index) => this.#abort === null && onEdit(conversation.messages[index].content, index),
    });
    this.view.update();
    this.view.toEnd();
  }

  /** Whether the message was taken. `index` is that of the message it replaces, with all that follow. */
  send(text, index = null) {
    if (this.#abort || !this.#canSend()) return false;
    if (index !== null) this.conversation.cut(index);
    this.conversation.add({ role: 'user', content: text });
    this.#run();
    return true;
  }

  regenerate() {
    if (this.#abort || !this.#canSend()) return;
    if (this.conversation.last?.role === 'assistant') this.conversation.cut(this.conversation.messages.length - 1);
    this.#run();
  }

  returnResults(texts) {
    if (this.#abort || !this.#canSend()) return;
    this.conversation.last.calls.forEach((call, i) => { call.result = texts[i]; });
    this.#run();
  }

  /** Whether there was something to stop. */
  stop() {
    this.#abort?.abort();
    return this.#abort !== null;
  }

  /** The page is being closed: keep what there is, for nothing more will come. */
  leave() {
    this.stop();
    this.#keep();
  }

  /** Start again; the notice can bring the conversation back. */
  clear() {
    this.stop();
    const old = this.conversation.messages.splice(0);
    this.#keep();
    this.view.update();
    if (old.length) toast('A new conversation.', { action: { label: 'Undo', run: () => this.#restore(old) } });
  }

  #restore(messages) {
    this.stop();
    this.conversation.messages.splice(0, Infinity, ...messages);
    this.#keep();
    this.view.update();
    this.view.toEnd();
  }

  #canSend() {
    const field = this.settings.problem;
    if (field) toast(`${field.closest('label').firstChild.textContent.trim()}: ${field.validationMessage}`, { kind: 'error' });
    return field === null;
  }

  async #run() {
    const body = {
      model: this.modelName(),
      messages: this.conversation.wire(this.settings.system),
      stream: true,
      stream_options: { include_usage: true },
      ...this.settings.body,
    };
    const answer = emptyAnswer(performance.now());
    this.conversation.add(answer);
    this.view.update();
    this.view.toEnd();
    const abort = (this.#abort = new AbortController());
    this.onBusy(true);
    speak('Waiting for the answer.');
    const ticks = setInterval(() => this.view.updateLast(), TICK_MS);
    try {
      await this.#receive(body, answer, abort.signal);
    } catch (error) {
      this.#failed(answer, error);
    } finally {
      clearInterval(ticks);
      this.#abort = null;
      this.#keep();
      this.view.update();
      this.onBusy(false);
    }
    speak(answer.error ? `The answer failed: ${answer.error}` : 'The answer is complete.');
  }

  async #receive(body, answer, signal) {
    let isDrawn = true;
    for await (const chunk of this.api.chat(body, signal)) {
      addChunk(answer, chunk, performance.now());
      if (!isDrawn) continue;
      isDrawn = false; // many chunks may come between two frames; one drawing serves them all
      requestAnimationFrame(() => {
        isDrawn = true;
        this.view.updateLast();
      });
    }
    answer.finish ??= 'stop';
  }

  #failed(answer, error) {
    if (error.name === 'AbortError') {
      answer.finish = 'stopped';
      return;
    }
    answer.error = error.message; // it is shown where the answer would be
    this.onFailure();
  }

  #keep() {
    if (!this.conversation.save()) toast('The browser could not keep this conversation: its storage is full or switched off.');
  }
}
