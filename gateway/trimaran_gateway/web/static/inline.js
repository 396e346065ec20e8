// Markdown within a paragraph: code, emphasis, links, formulas. Scans once; what has no end stays as it was typed.

import { el } from './dom.js';

const MAX_DEPTH = 8;
const ESCAPABLE = new Set('\\`*_{}[]()#+-.!|~<>$');
const MARKS = [['**', 'strong'], ['__', 'strong'], ['~~', 'del'], ['*', 'em'], ['_', 'em']];
const URL_AT = /https?:\/\/[^\s<>"'`)\]]*[^\s<>"'`)\].,;:!?]/y;
const FORMULAS = [['\\(', '\\)'], ['\\[', '\\]'], ['$$', '$$']];
const MAX_TARGET = 2000;
const BREAK_AT = /<br *\/?>/iy;
// As Pandoc has it, so that prices are none: no space inside, no digit behind.
const DOLLARS_AT = /\$([^\s$](?:[^$\n]*[^\s$\\])?)\$(?!\d)/y;
const WORD = /[\p{L}\p{N}]/u;

/** Append `text` to `parent` as nodes. */
export function renderInline(text, parent, depth = 0) {
  const endless = new Set(); // marks that are known to have no partner further on
  let plain = '';
  const flush = () => {
    if (plain) parent.append(plain);
    plain = '';
  };
  for (let at = 0; at < text.length; ) {
    const found = depth < MAX_DEPTH ? elementAt(text, at, endless, depth) : null;
    if (found) {
      flush();
      parent.append(found.node);
      at = found.end;
    } else if (text[at] === '\\' && ESCAPABLE.has(text[at + 1])) {
      plain += text[at + 1];
      at += 2;
    } else {
      const length = text[at] === '`' ? runLength(text, at) : 1;
      plain += text.slice(at, at + length);
      at += length;
    }
  }
  flush();
}

function elementAt(text, at, endless, depth) {
  const char = text[at];
  if (char === '`') return codeAt(text, at, endless);
  if (char === '[' || (char === '!' && text[at + 1] === '[')) return linkAt(text, at, endless, depth);
  if (char === 'h' && !WORD.test(text[at - 1] ?? '')) return addressAt(text, at);
  if (char === '*' || char === '_' || char === '~') return markAt(text, at, endless, depth);
  if (char === '\\' || char === '$') return formulaAt(text, at, endless);
  if (char === '<') return breakAt(text, at);
  return null;
}

function codeAt(text, at, endless) {
  const fence = '`'.repeat(runLength(text, at));
  if (endless.has(fence)) return null;
  let close = at + fence.length;
  for (;;) {
    close = text.indexOf(fence, close);
    if (close < 0) {
      endless.add(fence);
      return null;
    }
    const length = runLength(text, close);
    if (length === fence.length) break;
    close += length;
  }
  const code = text.slice(at + fence.length, close).replace(/^ (.*\S.*) $/s, '$1');
  return { node: el('code', {}, code), end: close + fence.length };
}

// A formula stays as it was typed, but its stars and underscores are no emphasis.
function formulaAt(text, at, endless) {
  for (const [open, close] of FORMULAS) {
    if (!text.startsWith(open, at) || endless.has(open)) continue;
    const end = text.indexOf(close, at + open.length);
    if (end > at + open.length) return formula(text.slice(at + open.length, end), end + close.length);
    endless.add(open);
  }
  DOLLARS_AT.lastIndex = at;
  const found = WORD.test(text[at - 1] ?? '') ? null : DOLLARS_AT.exec(text);
  return found && formula(found[1], at + found[0].length);
}

const formula = (source, end) => ({ node: el('code', {}, source.trim()), end });

// Models write it for lines within a cell of a table.
function breakAt(text, at) {
  BREAK_AT.lastIndex = at;
  const found = BREAK_AT.exec(text);
  return found && { node: el('br'), end: at + found[0].length };
}

// Pictures become links too: the page loads nothing from elsewhere.
function linkAt(text, at, endless, depth) {
  if (endless.has('](')) return null;
  const start = text.indexOf('[', at) + 1;
  const middle = text.indexOf('](', start);
  if (middle < 0) {
    endless.add('](');
    return null;
  }
  const end = targetEnd(text, middle + 2);
  if (end < 0 || text.slice(start, middle).includes('\n\n')) return null;
  const target = text.slice(middle + 2, end).trim().split(/\s/)[0];
  const node = link(target);
  if (!node) return null;
  renderInline(text.slice(start, middle) || target, node, depth + 1);
  return { node, end: end + 1 };
}

/** Where the target's bracket closes: those within it come in pairs. */
function targetEnd(text, from) {
  let open = 0;
  for (let at = from; at < Math.min(text.length, from + MAX_TARGET) && text[at] !== '\n'; at += 1) {
    if (text[at] === '(') open += 1;
    if (text[at] === ')' && open-- === 0) return at;
  }
  return text.indexOf(')', from);
}

function addressAt(text, at) {
  URL_AT.lastIndex = at;
  const found = URL_AT.exec(text);
  const node = found && link(found[0]);
  if (!node) return null;
  node.append(found[0]);
  return { node, end: at + found[0].length };
}

function link(target) {
  let url;
  try {
    url = new URL(target);
  } catch {
    return null;
  }
  if (!['http:', 'https:', 'mailto:'].includes(url.protocol)) return null;
  return el('a', { href: url.href, rel: 'noopener noreferrer nofollow', target: '_blank' });
}

function markAt(text, at, endless, depth) {
  for (const [mark, tag] of MARKS) {
    if (!text.startsWith(mark, at) || endless.has(mark)) continue;
    if (!opens(text, at, mark)) continue;
    const close = closing(text, at + mark.length, mark);
    if (close < 0) {
      endless.add(mark);
      continue;
    }
    const node = el(tag);
    renderInline(text.slice(at + mark.length, close), node, depth + 1);
    return { node, end: close + mark.length };
  }
  return null;
}

function opens(text, at, mark) {
  const next = text[at + mark.length];
  if (next === undefined || /\s/.test(next)) return false;
  return mark[0] !== '_' || !WORD.test(text[at - 1] ?? '');
}

function closing(text, from, mark) {
  for (let at = text.indexOf(mark, from + 1); at >= 0; at = text.indexOf(mark, at + 1)) {
    if (/[\s\\]/.test(text[at - 1])) continue;
    if (mark[0] === '_' && WORD.test(text[at + mark.length] ?? '')) continue;
    const longer = text[at + mark.length] === mark[0];
    if (mark.length === 2) return longer ? at + 1 : at; // ***both***: the inner mark ends first
    if (!longer && text[at - 1] !== mark) return at;
  }
  return -1;
}

function runLength(text, at) {
  let end = at;
  while (text[end] === '`') end += 1;
  return end - at;
}
