// Web storage that may be full or switched off: then things last as long as the page.

/** A JSON value in `area` under `name`, or `fallback`. */
export function load(area, name, fallback) {
  try {
    return JSON.parse(area().getItem(`trimaran.${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Whether the value could be kept. */
export function save(area, name, value) {
  try {
    area().setItem(`trimaran.${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export const onDevice = () => localStorage;
export const inTab = () => sessionStorage;
