// Puts the parts of the page together.

import { onUnauthorized, request } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { byId } from "./elements.js";
import { showInfo } from "./info.js";
import { askForKey } from "./key.js";
import { Messages } from "./messages.js";
import { Settings } from "./settings.js";
import { listen } from "./shortcuts.js";
import { Sidebar } from "./sidebar.js";

const FULL = "The browser's storage is full: what is new is lost when the page closes. Delete some conversations.";

function notify(text) {
  byId("notice-text").textContent = text;
  byId("notice").hidden = !text;
}

/** Run an action, show what it throws; returns whether it threw nothing. */
function attempt(action) {
  try {
    action();
    notify("");
    return true;
  } catch (error) {
    notify(error.message);
    return false;
  }
}

onUnauthorized(askForKey);
const settings = new Settings(() => notify(FULL));
const chat = new Chat(() => settings.values);
const messages = new Messages(chat, attempt);
const sidebar = new Sidebar(chat);
new Composer(chat, attempt, () => messages.editLast());

// A reader of screens hears that an answer begins and ends, not each of its pieces.
let running = false;
chat.addEventListener("change", () => {
  byId("title").textContent = chat.current.title || "New conversation";
  document.title = chat.current.title ? `${chat.current.title} - mistral_portable` : "mistral_portable";
  if (chat.isRunning() !== running) {
    running = chat.isRunning();
    byId("status").textContent = running ? "The answer is being written." : "The answer is complete.";
  }
});
chat.addEventListener("full", () => notify(FULL));

function regenerateLast() {
  const { messages: all } = chat.current;
  if (all.at(-1)?.role === "assistant") attempt(() => chat.regenerate(all.length - 1));
}

const openInfo = () => showInfo(chat.current.messages.findLast(({ role }) => role === "user")?.content);
const openDialog = (id) => byId(id).showModal();
byId("open-info").addEventListener("click", openInfo);
byId("open-settings").addEventListener("click", () => openDialog("settings-dialog"));
byId("open-shortcuts").addEventListener("click", () => openDialog("shortcuts-dialog"));
byId("notice-close").addEventListener("click", () => notify(""));
for (const close of document.querySelectorAll("dialog .close")) {
  close.addEventListener("click", () => close.closest("dialog").close());
}

listen({
  "/": () => byId("prompt").focus(),
  "?": () => openDialog("shortcuts-dialog"),
  Escape: () => sidebar.close() || chat.stop(),
  "Alt+KeyN": () => byId("new").click(),
  "Alt+KeyR": regenerateLast,
  "Alt+KeyS": () => openDialog("settings-dialog"),
  "Alt+KeyI": openInfo,
  "Alt+ArrowUp": () => sidebar.step(-1),
  "Alt+ArrowDown": () => sidebar.step(1),
});

chat.dispatchEvent(new Event("change"));
byId("prompt").focus();

try {
  const { data } = await (await request("v1/models")).json();
  chat.model = data[0]?.id ?? "";
  byId("model").textContent = chat.model;
} catch (error) {
  notify(error.message);
}
