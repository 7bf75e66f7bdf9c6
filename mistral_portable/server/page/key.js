// The prompt for an API key. Several requests that are refused at once share one prompt.

import { setKey } from "./api.js";
import { byId } from "./elements.js";

let asked = null;

/** refused: whether the last key was. Resolves to whether one was given; it is stored for this tab's session. */
export function askForKey(refused) {
  asked ??= ask(refused).finally(() => (asked = null));
  return asked;
}

function ask(refused) {
  const dialog = byId("key-dialog");
  const field = byId("key");
  field.value = "";
  byId("key-refused").textContent = refused ? "The server does not know this key." : "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      if (field.value.trim()) dialog.close(field.value.trim());
    };
    dialog.onclose = () => {
      if (dialog.returnValue) setKey(dialog.returnValue);
      resolve(dialog.returnValue !== "");
    };
  });
}
