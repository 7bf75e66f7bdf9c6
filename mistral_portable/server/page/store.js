// Conversations and settings in the browser's localStorage: an entry for each conversation, so that two tabs that write
// different ones do not undo each other.

const CHAT = "mistral-portable.chat.";
const SETTINGS = "mistral-portable.settings";
export const NO_SETTINGS = { temperature: "", topP: "", maxTokens: "", seed: "", system: "", schema: "", theme: "" };

/** All conversations by id; entries that are damaged are passed over. */
export function loadConversations() {
  const found = new Map();
  for (let index = 0; index < localStorage.length; index++) {
    const key = localStorage.key(index);
    const conversation = key.startsWith(CHAT) ? parse(localStorage.getItem(key)) : null;
    if (isConversation(conversation, key)) found.set(conversation.id, conversation);
  }
  return found;
}

/** Returns whether there was room for it. */
export const saveConversation = (conversation) => write(CHAT + conversation.id, conversation);

export const removeConversation = (id) => localStorage.removeItem(CHAT + id);

export function loadSettings() {
  const stored = parse(localStorage.getItem(SETTINGS)) ?? {};
  const texts = Object.keys(NO_SETTINGS).filter((name) => typeof stored[name] === "string");
  return { ...NO_SETTINGS, ...Object.fromEntries(texts.map((name) => [name, stored[name]])) };
}

/** Returns whether there was room for them. */
export const saveSettings = (settings) => write(SETTINGS, settings);

/** changed: called as (id, conversation) when another tab has written one; conversation is null if it was removed. */
export function onOtherTabs(changed) {
  addEventListener("storage", ({ key, newValue }) => {
    if (!key?.startsWith(CHAT)) return;
    const conversation = parse(newValue);
    if (newValue === null || isConversation(conversation, key)) changed(key.slice(CHAT.length), conversation);
  });
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch (error) {
    if (error.name === "QuotaExceededError") return false;
    throw error;
  }
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

const isConversation = (value, key) =>
  value !== null &&
  typeof value === "object" &&
  CHAT + value.id === key &&
  typeof value.title === "string" &&
  typeof value.updated === "number" &&
  Array.isArray(value.messages) &&
  value.messages.every((one) => one && typeof one.content === "string" && ["user", "assistant"].includes(one.role));
