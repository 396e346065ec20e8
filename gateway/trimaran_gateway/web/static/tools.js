// Tool calls as cards: what the model wants called, and a field for what the tool said.

import { el, icon } from './dom.js';

export class ToolCards {
  #cards = [];

  /** `onResults(texts)` gets one result per call, in order. */
  constructor(parent, onResults) {
    this.parent = parent;
    this.onResults = onResults;
    this.submit = el('button', { type: 'submit', class: 'strong' }, 'Return results');
  }

  /** `isOpen`: results can be given now. */
  update(calls, isOpen) {
    calls.forEach((call, i) => {
      this.#cards[i] ??= this.#add();
      updateCard(this.#cards[i], call, isOpen);
    });
    if (isOpen && !this.submit.isConnected) this.#openForm();
    if (!isOpen) this.submit.remove();
  }

  #add() {
    const card = {
      name: el('code'),
      given: el('pre', { tabindex: 0 }),
      result: el('pre', { tabindex: 0, hidden: true }),
      field: el('textarea', { rows: 2, placeholder: 'What the tool answered', spellcheck: 'false', class: 'code' }),
    };
    card.label = el('label', { hidden: true }, 'Result', card.field);
    this.parent.append(
      el('section', { class: 'call' }, el('h3', {}, icon('i-tool'), 'Tool call ', card.name), card.given, card.result, card.label),
    );
    return card;
  }

  #openForm() {
    this.parent.append(this.submit);
    this.parent.onsubmit = (event) => {
      event.preventDefault();
      this.onResults(this.#cards.map((card) => card.field.value));
    };
  }
}

function updateCard(card, call, isOpen) {
  card.name.textContent = call.name;
  card.given.textContent = pretty(call.arguments);
  card.label.hidden = !isOpen;
  card.result.hidden = call.result === null;
  card.result.textContent = call.result === null ? '' : `→ ${call.result}`;
}

// Arguments are whole only at the end of their stream.
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
