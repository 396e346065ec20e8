// The message field: grows with its text, sends on Enter, edits earlier messages.

import { byId } from './dom.js';

const MAX_ROWS_PX = 260;

export class Composer {
  #editing = null;

  /** `onSend(text, index)` gets the text, and the index of the edited message or `null`. */
  constructor({ onSend, onStop }) {
    this.field = byId('prompt');
    this.onSend = onSend;
    this.isBusy = false;
    byId('composer').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#send();
    });
    byId('stop').addEventListener('click', onStop);
    byId('cancel-edit').addEventListener('click', () => this.cancelEdit());
    this.field.addEventListener('input', () => this.#resize());
    this.field.addEventListener('keydown', (event) => this.#key(event));
  }

  focus() {
    this.field.focus();
  }

  /** While an answer comes in there is a stop button instead of the send button. */
  setBusy(isBusy) {
    const hadFocus = document.activeElement === byId(isBusy ? 'send' : 'stop');
    this.isBusy = isBusy;
    byId('send').hidden = isBusy;
    byId('stop').hidden = !isBusy;
    this.#resize();
    if (hadFocus) this.focus();
  }

  edit(text, index) {
    this.#editing = index;
    byId('editing').hidden = false;
    this.#setText(text);
    this.focus();
  }

  /** Whether an edit was under way. */
  cancelEdit() {
    if (this.#editing === null) return false;
    this.#editing = null;
    byId('editing').hidden = true;
    this.#setText('');
    this.focus();
    return true;
  }

  #key(event) {
    const isTouch = matchMedia('(pointer: coarse)').matches;
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing || isTouch) return;
    event.preventDefault();
    this.#send();
  }

  #send() {
    const text = this.field.value.trim();
    if (!text || this.isBusy || this.onSend(text, this.#editing) === false) return;
    this.#editing = null;
    byId('editing').hidden = true;
    this.#setText('');
  }

  #setText(text) {
    this.field.value = text;
    this.#resize();
  }

  #resize() {
    byId('send').disabled = !this.field.value.trim();
    this.field.style.height = 'auto';
    this.field.style.height = `${Math.min(this.field.scrollHeight, MAX_ROWS_PX)}px`;
  }
}
