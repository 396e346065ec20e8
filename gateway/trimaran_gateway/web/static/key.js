// The API key: asked for when the server wants one, kept until the tab closes.

import { byId } from './dom.js';
import { inTab, load, save } from './storage.js';

export class Keys {
  #asking = null;

  constructor() {
    this.value = load(inTab, 'key', '');
    this.dialog = byId('key-dialog');
    byId('key-cancel').addEventListener('click', () => this.dialog.close('cancel'));
  }

  /** Ask for a key after `refused` was not good; whether there is another now. Callers share one dialog. */
  async ask(refused = this.value) {
    if (!this.#asking && this.value !== refused) return true; // another call has asked meanwhile
    this.#asking ??= this.#show(refused).finally(() => {
      this.#asking = null;
    });
    return this.#asking;
  }

  #show(refused) {
    byId('key-reason').textContent = refused
      ? 'The key in use may be wrong. Another is kept until this tab closes.'
      : 'The server may ask for a key. It is kept until this tab closes.';
    byId('key').value = '';
    this.dialog.returnValue = '';
    this.dialog.showModal();
    return new Promise((resolve) => {
      this.dialog.addEventListener('close', () => resolve(this.#take()), { once: true });
    });
  }

  #take() {
    const typed = byId('key').value.trim();
    byId('key').value = '';
    if (this.dialog.returnValue !== 'ok') return false;
    this.value = typed;
    save(inTab, 'key', typed);
    return true;
  }
}
