// Short notices at the edge of the page.

import { byId, el, icon } from './dom.js';

const STAY_MS = 8000;

/** Show `text`; `action` is {label, run}. Errors stay until they are closed. */
export function toast(text, { kind = 'note', action = null } = {}) {
  const close = () => box.remove();
  const box = el(
    'div',
    { class: `toast ${kind}`, role: kind === 'error' ? 'alert' : 'status' },
    el('span', {}, text),
    action && el('button', { type: 'button', class: 'link', click: () => { close(); action.run(); } }, action.label),
    el('button', { type: 'button', class: 'small', title: 'Close', 'aria-label': 'Close notice', click: close }, icon('i-close')),
  );
  const toasts = byId('toasts');
  toasts.append(box);
  while (toasts.children.length > 3) toasts.firstChild.remove();
  if (kind !== 'error') setTimeout(close, STAY_MS);
}
