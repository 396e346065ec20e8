// Parameters of the next answer. An empty field is not sent: the server's default holds.

import { byId } from './dom.js';
import { load, onDevice, save } from './storage.js';

const NUMBERS = ['temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed'];

export class Settings {
  constructor() {
    this.form = byId('settings-form');
    const kept = load(onDevice, 'settings', {});
    for (const field of this.#fields()) field.value = kept[field.name] ?? '';
    this.form.addEventListener('submit', (event) => event.preventDefault());
    this.form.addEventListener('input', () => this.#changed());
    this.form.addEventListener('reset', () => setTimeout(() => this.#changed()));
    this.#checkTools();
  }

  get system() {
    return this.form.elements.system.value.trim();
  }

  /** The first field that cannot be sent, or `null`. */
  get problem() {
    return this.#fields().find((field) => !field.checkValidity()) ?? null;
  }

  /** Fields of the request's body. */
  get body() {
    const values = this.form.elements;
    const numbers = NUMBERS.filter((name) => values[name].value !== '').map((name) => [name, values[name].valueAsNumber]);
    const thinking = values.thinking.value;
    const tools = values.tools.value.trim();
    return {
      ...Object.fromEntries(numbers),
      ...(thinking && { chat_template_kwargs: { enable_thinking: thinking === 'on' } }),
      ...(tools && { tools: JSON.parse(tools) }),
    };
  }

  #fields() {
    return [...this.form.elements].filter((field) => field.name);
  }

  #changed() {
    this.#checkTools();
    save(onDevice, 'settings', Object.fromEntries(this.#fields().map((field) => [field.name, field.value])));
  }

  #checkTools() {
    const field = this.form.elements.tools;
    field.setCustomValidity(toolsProblem(field.value.trim()));
  }
}

function toolsProblem(text) {
  if (!text) return '';
  try {
    return Array.isArray(JSON.parse(text)) ? '' : 'Tools must be a JSON list.';
  } catch (error) {
    return `Tools are not JSON: ${error.message}`;
  }
}
