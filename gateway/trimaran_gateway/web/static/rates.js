// Reports over the last minute, and what they say about speed: counters only ever grow, so rates are differences.

const WINDOW_S = 60;
const SMOOTH_S = 3;

export class History {
  #reports = [];

  /** A restarted engine counts from zero: then the past is forgotten. */
  add(report) {
    if (this.latest && restarted(this.latest, report)) this.#reports = [];
    if (this.latest && report.time <= this.latest.time) return; // another panel asked a moment ago
    this.#reports.push(report);
    while (report.time - this.#reports[0].time > WINDOW_S) this.#reports.shift();
  }

  clear() {
    this.#reports = [];
  }

  get latest() {
    return this.#reports.at(-1) ?? null;
  }

  /** Per second over the last few seconds; `null` if it is not reported. `read` takes a report. */
  rate(read) {
    const { latest } = this;
    if (!latest || read(latest) === undefined) return null;
    const before = this.#reports.findLast((report) => latest.time - report.time >= SMOOTH_S) ?? this.#reports[0];
    return slope(before, latest, read);
  }

  /** The rate between each two reports, as [seconds before now, rate]. */
  rates(read) {
    const pairs = this.#reports.slice(1).map((report, i) => [this.#reports[i], report]);
    return pairs.map(([before, report]) => [this.latest.time - report.time, slope(before, report, read)]);
  }

  /** How much a counter grew within the window. */
  growth(read) {
    const [first] = this.#reports;
    return (read(this.latest) ?? 0) - (read(first) ?? 0);
  }

  /** A histogram's mean within the window, or since the start when nothing happened; `null` without samples. */
  mean(name) {
    const now = this.latest?.histograms[name];
    if (!now) return null;
    const then = this.#reports[0].histograms[name] ?? { count: 0, sum: 0 };
    const count = now.count - then.count;
    return count > 0 ? (now.sum - then.sum) / count : now.sum / now.count;
  }

  /** Tokens per expert, layer by layer: of the window, or since the start when nothing happened. */
  heat() {
    const now = this.latest?.heat ?? [];
    const before = new Map(this.#reports[0]?.heat.map(({ layer, tokens }) => [layer, tokens]));
    const grown = now.map(({ layer, tokens }) => ({
      layer,
      tokens: tokens.map((value, expert) => value - (before.get(layer)?.[expert] ?? 0)),
    }));
    return grown.some(({ tokens }) => tokens.some((value) => value > 0)) ? grown : now;
  }
}

export const counter = (name) => (report) => report.counters[name];
export const gauge = (name) => (report) => report.gauges[name];

function slope(before, after, read) {
  const seconds = after.time - before.time;
  return seconds > 0 ? Math.max(0, (read(after) - (read(before) ?? 0)) / seconds) : 0;
}

function restarted(before, after) {
  return Object.entries(after.counters).some(([name, value]) => value < before.counters[name]);
}
