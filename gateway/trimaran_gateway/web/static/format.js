// Numbers for people.

const round = (value, digits) => value.toLocaleString('en', { maximumFractionDigits: digits });

/** Bytes per second in decimal units, as memory makers state them. */
export function bandwidth(value) {
  return value >= 1e9 ? `${number(value / 1e9)} GB/s` : `${number(value / 1e6)} MB/s`;
}

/** Three digits or so: 0.12, 4.31, 38.2, 1,204. */
export function number(value) {
  return round(value, value >= 100 ? 0 : value >= 10 ? 1 : 2);
}

/** Seconds as µs, ms, s or min. */
export function duration(seconds) {
  if (seconds < 1e-3) return `${round(seconds * 1e6, 0)} µs`;
  if (seconds < 1) return `${round(seconds * 1e3, seconds < 0.1 ? 1 : 0)} ms`;
  if (seconds < 60) return `${round(seconds, 1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
}

/** Bytes in binary units. */
export function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let power = 0;
  while (value >= 1024 && power < units.length - 1) {
    value /= 1024;
    power += 1;
  }
  return `${number(value)} ${units[power]}`;
}

/** Counts as 21.4 M or 671 B. */
export function count(value) {
  for (const [size, unit] of [[1e12, 'T'], [1e9, 'B'], [1e6, 'M'], [1e3, 'K']]) {
    if (value >= size) return `${number(value / size)} ${unit}`;
  }
  return number(value);
}

export const percent = (share) => `${round(share * 100, share < 0.1 ? 1 : 0)} %`;

export const plural = (n, word) => `${n.toLocaleString('en')} ${word}${n === 1 ? '' : 's'}`;
