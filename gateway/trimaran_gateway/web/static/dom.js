// Making elements. Text always becomes text nodes: nothing that a model or a server says is ever parsed as HTML.

const SVG = 'http://www.w3.org/2000/svg';

/** An element; properties that are functions become listeners, `null` and `false` are left out. */
export function el(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same for SVG. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

/** One of the page's symbols. */
export function icon(name) {
  return svg('svg', { 'aria-hidden': 'true' }, svg('use', { href: `#${name}` }));
}

/** A small button with a symbol and, for those who cannot see it, a name. */
export function iconButton(name, label, onClick) {
  return el('button', { type: 'button', class: 'small', title: label, 'aria-label': label, click: onClick }, icon(name));
}

export const byId = (id) => document.getElementById(id);

/** Say something to screen readers. */
export function speak(text) {
  byId('spoken').textContent = text;
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
