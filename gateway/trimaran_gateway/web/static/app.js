// Puts the page together.

import { Api } from './api.js';
import { Chat } from './chat.js';
import { Composer } from './composer.js';
import { Conversation } from './conversation.js';
import { byId } from './dom.js';
import { Keys } from './key.js';
import { LivePanel } from './live.js';
import { Panels } from './panels.js';
import { Settings } from './settings.js';
import { EngineStatus } from './status.js';

const keys = new Keys();
const api = new Api(keys);
const status = new EngineStatus(api);
const live = new LivePanel(api, (report) => status.show(report));
const panels = new Panels({ live: (isOpen) => live.setOpen(isOpen), settings: () => {} });
const composer = new Composer({
  onSend: (text, index) => chat.send(text, index),
  onStop: () => chat.stop(),
});
const chat = new Chat({
  api,
  conversation: new Conversation(),
  settings: new Settings(),
  modelName: () => status.model,
  onBusy: (isBusy) => composer.setBusy(isBusy),
  onFailure: () => status.refresh(false),
  onEdit: (text, index) => composer.edit(text, index),
});

byId('new').addEventListener('click', () => {
  chat.clear();
  composer.cancelEdit();
  composer.focus();
});
byId('change-key').addEventListener('click', () => keys.ask().then((isNew) => isNew && status.refresh()));
byId('starters').addEventListener('click', (event) => {
  if (event.target.closest('button') && chat.send(event.target.textContent)) focusWithKeyboard(); // the button is gone
});
// Browsers cut connections between the first and the second; some phones send only the second.
for (const event of ['beforeunload', 'pagehide']) addEventListener(event, () => chat.leave());

// On a phone the keyboard would cover the page.
function focusWithKeyboard() {
  if (!matchMedia('(pointer: coarse)').matches) composer.focus();
}

document.addEventListener('keydown', (event) => {
  if (byId('key-dialog').open || event.isComposing) return;
  if (event.key === 'Escape' && (chat.stop() || composer.cancelEdit() || panels.close())) event.preventDefault();
  const isTyping = event.target.matches('input, textarea, select');
  if (event.key === '/' && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    composer.focus();
  }
});

status.refresh();
focusWithKeyboard();
