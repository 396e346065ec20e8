// The live panel: asks every second, but only while it is open and the page is in sight.

import { byId, el } from './dom.js';
import { History } from './rates.js';
import { SECTIONS } from './sections.js';

const EVERY_MS = 1000;

export class LivePanel {
  #timer = 0;
  #watch = 0;
  #isOpen = false;
  #sections = null;

  /** `onReport` hears of every report. */
  constructor(api, onReport) {
    this.api = api;
    this.onReport = onReport;
    this.history = new History();
    this.trouble = el('p', { class: 'problem', role: 'status', hidden: true });
    document.addEventListener('visibilitychange', () => this.#restart());
  }

  setOpen(isOpen) {
    this.#isOpen = isOpen;
    if (isOpen) this.history.clear();
    this.#sections ??= this.#build();
    this.#restart();
  }

  #build() {
    const sections = SECTIONS.map((make) => make());
    byId('live-body').append(this.trouble, ...sections.map((section) => section.node));
    return sections;
  }

  #restart() {
    clearTimeout(this.#timer);
    this.#watch += 1; // ends the loop whose question is under way
    if (this.#isOpen && !document.hidden) this.#poll(this.#watch);
  }

  // A new question only after the last answer: a slow server is not asked more often than it answers.
  async #poll(watch) {
    await this.#ask();
    if (watch === this.#watch) this.#timer = setTimeout(() => this.#poll(watch), EVERY_MS);
  }

  async #ask() {
    try {
      this.#show(await this.api.live());
      this.trouble.hidden = true;
    } catch (error) {
      this.trouble.hidden = false;
      this.trouble.textContent = error.message;
    }
  }

  #show(report) {
    this.onReport(report);
    this.history.add(report);
    for (const section of this.#sections) section.node.hidden = !section.update(this.history);
  }
}
