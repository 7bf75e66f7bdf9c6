// Light or dark. index.html loads this module before anything is drawn, so that a page does not flash.

import { loadSettings } from "./store.js";

/** theme: "light", "dark", or "" for the system's. */
export function applyTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

applyTheme(loadSettings().theme);
