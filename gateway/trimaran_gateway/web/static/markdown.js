// A useful part of Markdown, as DOM nodes: headings, lists, code, quotes, tables, rules, formulas as they were typed.

import { el, iconButton } from './dom.js';
import { renderInline } from './inline.js';
import { copyText } from './copy.js';

const MAX_DEPTH = 6;
const MAX_FORMULA_LINES = 60;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)(.*)$/;
const TASK = /^\[([ xX])\]\s+/;
const FORMULA = /^ {0,3}(\\\[|\$\$)/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

/** Text that grows: `update` renders only the blocks that changed since the last call. */
export class Markdown {
  #blocks = [];

  constructor(parent) {
    this.parent = parent;
  }

  update(text) {
    const blocks = splitBlocks(text.split('\n'));
    let same = 0;
    while (same < blocks.length && same < this.#blocks.length && equal(blocks[same], this.#blocks[same])) same += 1;
    for (const block of this.#blocks.slice(same)) block.node.remove();
    const kept = this.#blocks.slice(0, same);
    for (const block of blocks.slice(same)) {
      block.node = renderBlock(block, 0);
      this.parent.append(block.node);
      kept.push(block);
    }
    this.#blocks = kept;
  }
}

const equal = (a, b) => a.kind === b.kind && a.lines.length === b.lines.length && a.lines.every((line, i) => line === b.lines[i]);

/** Lines as blocks of {kind, lines, …}; every block type knows its own end. */
function splitBlocks(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = blockAt(lines, at);
    blocks.push(block);
    at += block.lines.length;
  }
  return blocks;
}

function blockAt(lines, at) {
  const line = lines[at];
  if (FENCE.test(line)) return fenced(lines, at);
  if (HEADING.test(line)) return { kind: 'heading', lines: [line] };
  if (RULE.test(line)) return { kind: 'rule', lines: [line] };
  if (QUOTE.test(line)) return { kind: 'quote', lines: linesWhile(lines, at, (other) => QUOTE.test(other)) };
  if (ITEM.test(line)) return { kind: 'list', lines: listLines(lines, at) };
  const formula = formulaLines(lines, at);
  if (formula) return { kind: 'formula', lines: formula };
  if (isTable(lines, at)) return { kind: 'table', lines: linesWhile(lines, at, (other) => other.includes('|')) };
  return { kind: 'paragraph', lines: paragraphLines(lines, at) };
}

function linesWhile(lines, at, test) {
  let end = at;
  while (end < lines.length && test(lines[end])) end += 1;
  return lines.slice(at, end);
}

function fenced(lines, at) {
  const [, fence, language] = FENCE.exec(lines[at]);
  const isEnd = (line) => line.trim().startsWith(fence) && line.trim() === fence[0].repeat(line.trim().length);
  let end = at + 1;
  while (end < lines.length && !isEnd(lines[end])) end += 1;
  return { kind: 'code', language, lines: lines.slice(at, end + 1), isClosed: end < lines.length };
}

/** The lines of a displayed formula, from `\\[` to `\\]` or between two `$$`; `null` if none begins here. */
function formulaLines(lines, at) {
  const open = FORMULA.exec(lines[at])?.[1];
  if (!open) return null;
  const close = open === '$$' ? '$$' : '\\]';
  for (let end = at; end < Math.min(lines.length, at + MAX_FORMULA_LINES) && lines[end].trim(); end += 1) {
    const place = lines[end].indexOf(close, end === at ? lines[at].indexOf(open) + open.length : 0);
    if (place >= 0) return lines[end].slice(place + close.length).trim() ? null : lines.slice(at, end + 1);
  }
  return null;
}

const indentOf = (line) => line.length - line.trimStart().length;

function listLines(lines, at) {
  const base = indentOf(lines[at]);
  const isOrdered = /^\s*\d/.test(lines[at]);
  const belongs = (line) => {
    if (indentOf(line) > base + 1) return true;
    const item = ITEM.exec(line);
    return item !== null && /\d/.test(item[2]) === isOrdered && !RULE.test(line);
  };
  let end = at + 1;
  for (let next = end; next < lines.length; next += 1) {
    if (!lines[next].trim()) continue;
    const isLazy = next === end && startsNothing(lines, next);
    if (!belongs(lines[next]) && !isLazy) break;
    end = next + 1;
  }
  return lines.slice(at, end);
}

const isTable = (lines, at) =>
  lines[at].includes('|') && (lines[at + 1] ?? '').includes('-') && lines[at + 1].includes('|') && TABLE_RULE.test(lines[at + 1]);

function startsNothing(lines, at) {
  const line = lines[at];
  return ![FENCE, HEADING, RULE, QUOTE, ITEM].some((start) => start.test(line)) && !isTable(lines, at) && !formulaLines(lines, at);
}

function paragraphLines(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && startsNothing(lines, end)) end += 1;
  return lines.slice(at, end);
}

// --- nodes ---

function renderBlock(block, depth) {
  switch (block.kind) {
    case 'code':
      return renderCode(block);
    case 'heading':
      return renderHeading(block.lines[0]);
    case 'rule':
      return el('hr');
    case 'quote':
      return nested(el('blockquote'), block.lines.map((line) => line.replace(QUOTE, '')), depth);
    case 'list':
      return renderList(block.lines, depth);
    case 'table':
      return renderTable(block.lines);
    case 'formula':
      return el('div', { class: 'formula', tabindex: 0 }, el('code', {}, block.lines.join('\n').trim().slice(2, -2).trim()));
    default:
      return renderText(el('p'), block.lines);
  }
}

function nested(parent, lines, depth) {
  if (depth >= MAX_DEPTH) return renderText(parent, lines);
  const blocks = splitBlocks(lines);
  // An item with one paragraph, first, is the usual tight one: no paragraph box around it.
  if (parent.tagName === 'LI' && blocks[0]?.kind === 'paragraph' && blocks.slice(1).every((block) => block.kind !== 'paragraph')) {
    renderText(parent, blocks.shift().lines);
  }
  parent.append(...blocks.map((block) => renderBlock(block, depth + 1)));
  return parent;
}

function renderText(parent, lines) {
  renderInline(lines.map((line) => line.trim()).join('\n'), parent);
  return parent;
}

// The page's own headings end at h2.
function renderHeading(line) {
  const [, marks, text] = HEADING.exec(line);
  return renderText(el(`h${Math.min(6, marks.length + 2)}`), [text]);
}

function renderCode({ language, lines, isClosed }) {
  const code = lines.slice(1, isClosed ? -1 : undefined).join('\n');
  return el(
    'figure',
    { class: 'codeblock' },
    el('figcaption', {}, el('span', {}, language || 'text'), iconButton('i-copy', 'Copy code', () => copyText(code))),
    el('pre', { tabindex: 0 }, el('code', {}, code)),
  );
}

function renderList(lines, depth) {
  const [, , marker] = ITEM.exec(lines[0]);
  const isOrdered = /\d/.test(marker);
  const list = isOrdered ? el('ol', { start: parseInt(marker, 10) }) : el('ul');
  for (const item of splitItems(lines)) list.append(renderItem(item, depth));
  return list;
}

function renderItem([first, ...rest], depth) {
  const task = TASK.exec(first);
  if (!task) return nested(el('li'), [first, ...rest], depth);
  const box = task[1] === ' ' ? '☐ ' : '☑ ';
  return nested(el('li', { class: 'task' }), [box + first.slice(task[0].length), ...rest], depth);
}

function splitItems(lines) {
  const base = indentOf(lines[0]);
  const items = [];
  let indent = 0;
  for (const line of lines) {
    const item = indentOf(line) <= base + 1 ? ITEM.exec(line) : null;
    if (item) {
      indent = item[1].length + item[2].length + Math.min(item[3].length || 1, 4);
      items.push([item[4]]);
    } else {
      items.at(-1).push(line.slice(Math.min(indent, indentOf(line))));
    }
  }
  return items;
}

function renderTable(lines) {
  const [head, rule, ...rows] = lines.map(splitCells);
  const sides = rule.map((cell) => (/^:-+:$/.test(cell) ? 'center' : /-:$/.test(cell) ? 'end' : null));
  const row = (cells, tag) =>
    el('tr', {}, ...head.map((_, i) => renderText(el(tag, { class: sides[i] }), [cells[i] ?? ''])));
  return el(
    'div',
    { class: 'table', tabindex: 0 },
    el('table', {}, el('thead', {}, row(head, 'th')), el('tbody', {}, ...rows.map((cells) => row(cells, 'td')))),
  );
}

const splitCells = (line) =>
  line.trim().replace(/^\|/, '').replace(/\|$/, '').split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll('\\|', '|'));
