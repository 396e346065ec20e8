// The side panels: one open at a time; on a phone it covers the page.

import { byId } from './dom.js';

export class Panels {
  #open = null;

  /** `panels` maps a panel's id to what is called with true when it opens and with false when it closes. */
  constructor(panels) {
    this.panels = panels;
    for (const name of Object.keys(panels)) {
      byId(`open-${name}`).addEventListener('click', () => this.toggle(name));
      byId(name).querySelector('[data-close]').addEventListener('click', () => this.close());
    }
  }

  toggle(name) {
    const wasOpen = this.#open === name;
    this.close();
    if (!wasOpen) this.open(name);
  }

  open(name) {
    if (this.#open !== name) this.close();
    this.#open = name;
    this.#show(name, true);
    byId(name).querySelector('[data-close]').focus();
  }

  /** Whether there was one to close. */
  close() {
    const name = this.#open;
    if (!name) return false;
    this.#open = null;
    this.#show(name, false);
    byId(`open-${name}`).focus();
    return true;
  }

  #show(name, isOpen) {
    byId(name).hidden = !isOpen;
    byId(`open-${name}`).setAttribute('aria-expanded', String(isOpen));
    this.panels[name](isOpen);
  }
}
