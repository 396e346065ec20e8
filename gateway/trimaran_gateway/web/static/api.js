// Calls to the server that this page came from.

import { readEvents } from './sse.js';

/** The server's refusal, in its own words. `status` is 0 when it could not be reached. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export class Api {
  /** `keys` gives the key, and asks for one when the server wants it. */
  constructor(keys) {
    this.keys = keys;
  }

  /** The figures for the live panel. Without `mayAsk`, a missing key is an error like any other. */
  async live({ mayAsk = false } = {}) {
    const response = await this.#request('/internal/live', { mayAsk });
    return response.json();
  }

  /** The chunks of a streamed chat completion. */
  async *chat(body, signal) {
    const response = await this.#request('/v1/chat/completions', {
      mayAsk: true,
      signal,
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(body),
    });
    try {
      for await (const data of readEvents(response.body)) {
        if (data === '[DONE]') return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(chunk.error.message, 500);
        yield chunk;
      }
    } catch (error) {
      if (error instanceof ApiError || error.name === 'AbortError') throw error;
    }
    throw new ApiError('The connection ended before the answer did.');
  }

  async #request(path, { mayAsk, headers = {}, ...rest }) {
    for (;;) {
      const key = this.keys.value;
      const authorization = key ? { Authorization: `Bearer ${key}` } : {};
      const response = await send(path, { ...rest, headers: { ...headers, ...authorization } });
      if (response.ok) return response;
      const message = await reason(response);
      if (response.status === 401 && mayAsk && (await this.keys.ask(key))) continue;
      throw new ApiError(message, response.status);
    }
  }
}

async function send(path, init) {
  try {
    return await fetch(path, init);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('The server cannot be reached.');
  }
}

async function reason(response) {
  try {
    const { error } = await response.json();
    return (typeof error === 'string' ? error : error.message) || `The server answered ${response.status}.`;
  } catch {
    return `The server answered ${response.status}.`;
  }
}
