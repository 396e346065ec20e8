// Light, dark or as the system says. A classic script in the head: the first paint already has the right colours.
'use strict';

(() => {
  const KEY = 'trimaran.theme';
  const ORDER = ['auto', 'light', 'dark'];

  function stored() {
    try {
      return ORDER.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : 'auto';
    } catch {
      return 'auto'; // storage is switched off
    }
  }

  function apply(theme) {
    document.documentElement.dataset.theme = theme;
  }

  apply(stored());

  document.addEventListener('DOMContentLoaded', () => {
    const button = document.getElementById('theme');
    const label = () => {
      button.title = `Colours: ${document.documentElement.dataset.theme}`;
      button.setAttribute('aria-label', button.title);
    };
    label();
    button.addEventListener('click', () => {
      const next = ORDER[(ORDER.indexOf(document.documentElement.dataset.theme) + 1) % ORDER.length];
      apply(next);
      label();
      try {
        localStorage.setItem(KEY, next);
      } catch {
        // it holds for this visit only
      }
    });
  });
})();
