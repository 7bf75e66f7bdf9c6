// Keys that work everywhere on the page. Letters go by their place (`code`), as Alt changes what they write on a Mac.

/** actions: by "Alt+KeyN", "Escape" or a character, which counts outside of fields only. */
export function listen(actions) {
  addEventListener("keydown", (event) => {
    if (event.isComposing || event.ctrlKey || event.metaKey) return;
    // A dialog closes itself by Escape, and nothing behind it is to be changed.
    if (document.querySelector("dialog[open]")) return;
    const inField = event.target.matches("input, textarea, select");
    const name = event.altKey ? `Alt+${event.code}` : event.key;
    if (inField && !event.altKey && name.length === 1) return;
    if (!actions[name]) return;
    event.preventDefault();
    actions[name]();
  });
}
