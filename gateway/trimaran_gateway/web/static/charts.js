// Two small charts: a line over the last minute, and a heat map with one pixel per expert and layer.

import { el, svg } from './dom.js';
import { number } from './format.js';

const WIDTH = 240;
const HEIGHT = 48;
const SPAN_S = 60;

/** A line with the area below it. */
export class Sparkline {
  constructor(name) {
    this.name = name;
    this.area = svg('path', { class: 'area' });
    this.line = svg('path', { class: 'line' });
    this.node = svg(
      'svg',
      { class: 'spark', viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img' },
      this.area, this.line,
    );
  }

  /** `points` are [seconds before now, value], oldest first. */
  update(points) {
    const top = Math.max(1, ...points.map(([, value]) => value)) * 1.1;
    const places = points.map(([age, value]) => [
      (1 - age / SPAN_S) * WIDTH,
      HEIGHT - 1 - (value / top) * (HEIGHT - 2),
    ]);
    const line = places.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join('L');
    this.line.setAttribute('d', places.length > 1 ? `M${line}` : '');
    this.area.setAttribute('d', places.length > 1 ? `M${places[0][0].toFixed(1)} ${HEIGHT}L${line}V${HEIGHT}Z` : '');
    const peak = Math.max(0, ...points.map(([, value]) => value));
    this.node.setAttribute('aria-label', `${this.name} over the last minute, peak ${number(peak)}`);
  }
}

/** Load per expert, relative to an equal share: each layer's mean is the middle colour. */
export class HeatMap {
  #layers = [];

  constructor() {
    this.canvas = el('canvas', { class: 'heat', role: 'img', pointermove: (event) => this.#point(event), pointerleave: () => this.#summarise() });
    this.swatches = ['cold', 'fair', 'hot'].map((name) => el('span', { class: `swatch ${name}` }));
    this.reading = el('p', { class: 'muted reading' });
    this.node = el(
      'div',
      { class: 'heatmap' },
      this.canvas,
      el('div', { class: 'legend muted' }, 'idle', el('span', { class: 'ramp' }, ...this.swatches), '3 × its share'),
      this.reading,
    );
  }

  /** `layers` are {layer, tokens per expert}. */
  update(layers) {
    this.#layers = layers;
    if (!layers.length) return;
    const width = layers[0].tokens.length;
    Object.assign(this.canvas, { width, height: layers.length });
    const image = new ImageData(width, layers.length);
    const ramp = this.swatches.map((swatch) => channels(getComputedStyle(swatch).backgroundColor));
    layers.forEach(({ tokens }, row) => paint(image, row, tokens, ramp));
    this.canvas.getContext('2d').putImageData(image, 0, 0);
    this.canvas.style.height = `${Math.max(36, Math.min(240, layers.length * 12))}px`;
    if (!this.canvas.matches(':hover')) this.#summarise();
  }

  #summarise() {
    const all = this.#layers.flatMap(({ layer, tokens }) => shares(tokens).map((share, expert) => ({ layer, expert, share })));
    if (!all.length) return;
    const top = all.reduce((best, place) => (place.share > best.share ? place : best));
    this.reading.textContent = `Busiest: layer ${top.layer}, expert ${top.expert}, ${number(top.share)} × its share`;
    this.canvas.setAttribute('aria-label', `Tokens per expert and layer. ${this.reading.textContent}`);
  }

  #point(event) {
    const box = this.canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * this.canvas.height);
    const expert = Math.floor(((event.clientX - box.left) / box.width) * this.canvas.width);
    const tokens = this.#layers[row]?.tokens;
    if (tokens?.[expert] === undefined) return;
    this.reading.textContent =
      `Layer ${this.#layers[row].layer}, expert ${expert}: ${number(tokens[expert])} tokens, ${number(shares(tokens)[expert])} × its share`;
  }
}

function shares(tokens) {
  const mean = tokens.reduce((sum, value) => sum + value, 0) / tokens.length;
  return tokens.map((value) => (mean > 0 ? value / mean : 0));
}

function paint(image, row, tokens, [cold, fair, hot]) {
  shares(tokens).forEach((share, expert) => {
    const [from, to, part] = share <= 1 ? [cold, fair, share] : [fair, hot, Math.min(1, (share - 1) / 2)];
    const colour = from.map((value, i) => value + (to[i] - value) * part);
    image.data.set([...colour, 255], 4 * (row * image.width + expert));
  });
}

const channels = (colour) => colour.match(/[\d.]+/g).slice(0, 3).map(Number);
