// The engine's state in the header. Asked for until the engine is ready, then left to the live panel and to errors.

import { byId } from './dom.js';
import { count } from './format.js';

const AGAIN_MS = 2000;
const READY = ['ready', 'degraded'];

export class EngineStatus {
  /** The name to ask the API for; undefined until the server has told it, and then any will do. */
  model = undefined;
  #timer = 0;

  constructor(api) {
    this.api = api;
    byId('state').addEventListener('click', () => this.refresh());
  }

  /** Ask now, and again while the engine is not ready. The first question may ask for a key. */
  async refresh(mayAsk = true) {
    clearTimeout(this.#timer);
    try {
      const report = await this.api.live({ mayAsk });
      this.show(report);
      if (!READY.includes(report.engine.state)) this.#again();
    } catch (error) {
      this.#set(error.status === 401 ? 'locked' : 'unreachable', error.status === 401 ? 'needs a key' : 'not reachable', error.message);
      if (error.status !== 401) this.#again();
    }
  }

  /** Show the state that a report tells of. */
  show({ engine, model }) {
    this.model = model.name;
    byId('welcome-model').textContent = introduction(model, engine);
    const progress = engine.state === 'loading' ? ` ${Math.floor(engine.progress * 100)} %` : '';
    const text = engine.state === 'ready' ? model.name : `${engine.state}${progress}`;
    this.#set(engine.state, text, engine.detail || `The engine is ${engine.state}.`);
  }

  #again() {
    this.#timer = setTimeout(() => (document.hidden ? this.#again() : this.refresh(false)), AGAIN_MS);
  }

  #set(state, text, detail) {
    byId('state').dataset.state = state;
    byId('state').title = detail;
    byId('state-text').textContent = text;
  }
}

function introduction({ name, parameters, quantization }, { context_length: context }) {
  return [
    name,
    parameters && `${count(parameters)} weights`,
    quantization,
    context && `${context.toLocaleString('en')} tokens of context`,
  ].filter(Boolean).join(' · ');
}
