// The clipboard; browsers offer it on secure origins only, so there is the old way too.

import { el } from './dom.js';
import { toast } from './toast.js';

/** Copy and say so. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast('Copied.');
  } catch {
    toast(copySelected(text) ? 'Copied.' : 'The browser does not let this page copy.');
  }
}

function copySelected(text) {
  const area = el('textarea', { class: 'hidden', 'aria-hidden': 'true' });
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand('copy');
  area.remove();
  return copied;
}
