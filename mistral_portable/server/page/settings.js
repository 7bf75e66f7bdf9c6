// The dialog of settings: its fields are stored as they are typed.

import { parseSchema } from "./body.js";
import { byId } from "./elements.js";
import { loadSettings, NO_SETTINGS, saveSettings } from "./store.js";
import { applyTheme } from "./theme.js";

export class Settings {
  #form = byId("settings-form");

  /** full: called when the browser has no room for them. */
  constructor(full) {
    this.values = loadSettings();
    this.#fill();
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    this.#form.addEventListener("input", () => this.#take(full));
    byId("settings-reset").addEventListener("click", () => {
      this.values = { ...NO_SETTINGS };
      this.#fill();
      this.#take(full);
    });
  }

  #fill() {
    for (const [name, value] of Object.entries(this.values)) this.#form.elements[name].value = value;
    this.#check();
  }

  #take(full) {
    // A number field whose text is no number has the value "": what is sent is what was valid.
    for (const name of Object.keys(NO_SETTINGS)) this.values[name] = this.#form.elements[name].value;
    if (!saveSettings(this.values)) full();
    applyTheme(this.values.theme);
    this.#check();
  }

  #check() {
    const field = this.#form.elements.schema;
    let problem = "";
    try {
      parseSchema(this.values.schema);
    } catch (error) {
      problem = error.message;
    }
    byId("schema-problem").textContent = problem;
    field.setAttribute("aria-invalid", String(problem !== ""));
  }
}
