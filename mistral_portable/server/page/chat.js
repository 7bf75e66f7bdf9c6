// The conversations, and the answers that are being written: one at most in each conversation. No elements here.

import { newAnswer, addChunk } from "./answer.js";
import { request } from "./api.js";
import { requestBody } from "./body.js";
import { events } from "./events.js";
import { loadConversations, onOtherTabs, removeConversation, saveConversation } from "./store.js";

const TITLE = 60;
const SAVE_EVERY = 1000; // milliseconds, while an answer is written

export class Chat extends EventTarget {
  #running = new Map(); // id -> AbortController

  /** settings: a function that returns the present ones. Events: "change", "progress" (text was added), "full". */
  constructor(settings) {
    super();
    this.settings = settings;
    this.model = "";
    this.conversations = loadConversations();
    for (const { messages } of this.conversations.values()) {
      for (const message of messages)
        if (message.role === "assistant" && !message.finish) message.finish = "interrupted";
    }
    this.current = this.sorted()[0] ?? blank();
    onOtherTabs((id, conversation) => this.#follow(id, conversation));
    addEventListener("pagehide", () => this.#leave());
  }

  /** The latest first. */
  sorted() {
    return [...this.conversations.values()].sort((a, b) => b.updated - a.updated);
  }

  isRunning(id = this.current.id) {
    return this.#running.has(id);
  }

  startNew() {
    this.current = blank();
    this.#changed();
  }

  open(id) {
    this.current = this.conversations.get(id) ?? this.current;
    this.#changed();
  }

  remove(id) {
    this.stop(id);
    this.conversations.delete(id);
    removeConversation(id);
    if (this.current.id === id) this.current = this.sorted()[0] ?? blank();
    this.#changed();
  }

  /** Throws SettingsError before anything has changed. */
  send(text) {
    this.#ask(this.current.messages.length, { role: "user", content: text });
  }

  /** Put a text in place of message `index`, a user's; what followed goes. Throws SettingsError. */
  edit(index, text) {
    this.#ask(index, { role: "user", content: text });
  }

  /** Ask again for the answer `index`; what followed goes. Throws SettingsError. */
  regenerate(index) {
    this.#ask(index - 1, this.current.messages[index - 1]);
  }

  stop(id = this.current.id) {
    this.#running.get(id)?.abort();
  }

  #ask(index, message) {
    if (this.isRunning()) return;
    const conversation = this.current;
    const messages = [...conversation.messages.slice(0, index), message];
    const body = requestBody(messages, this.settings(), this.model);
    const answer = newAnswer();
    conversation.messages = [...messages, answer];
    conversation.title ||= titleOf(message.content);
    this.conversations.set(conversation.id, conversation);
    this.#save(conversation);
    this.#run(conversation, answer, body);
    this.#changed();
  }

  async #run(conversation, answer, body) {
    const controller = new AbortController();
    this.#running.set(conversation.id, controller);
    try {
      await this.#stream(conversation, answer, body, controller.signal);
      if (!answer.finish) throw new Error("The connection ended before the answer did.");
    } catch (error) {
      if (answer.finish === "interrupted") return;
      const stopped = controller.signal.aborted;
      answer.finish = stopped ? "stopped" : "error";
      answer.error = stopped ? null : error.message;
    }
    this.#running.delete(conversation.id);
    if (this.conversations.get(conversation.id) === conversation) this.#save(conversation);
    this.#changed();
  }

  // The browser breaks off the requests of a page that is left: that is no error of theirs.
  #leave() {
    for (const id of this.#running.keys()) {
      const conversation = this.conversations.get(id);
      conversation.messages.at(-1).finish = "interrupted";
      this.#save(conversation);
    }
    this.#running.clear();
  }

  async #stream(conversation, answer, body, signal) {
    const response = await request("v1/chat/completions", body, signal);
    let saved = Date.now();
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      addChunk(answer, JSON.parse(data));
      this.dispatchEvent(new CustomEvent("progress", { detail: conversation }));
      if (Date.now() - saved > SAVE_EVERY) {
        this.#save(conversation);
        saved = Date.now();
      }
    }
  }

  #save(conversation) {
    conversation.updated = Date.now();
    if (!saveConversation(conversation)) this.dispatchEvent(new Event("full"));
  }

  // Another tab has changed a conversation; one that this tab is writing stays its own.
  #follow(id, conversation) {
    if (this.isRunning(id)) return;
    if (conversation) this.conversations.set(id, conversation);
    else this.conversations.delete(id);
    if (this.current.id === id) this.current = conversation ?? blank();
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

// randomUUID needs a secure context, which a server in the local network is not.
const blank = () => ({
  id: [...crypto.getRandomValues(new Uint32Array(4))].map((word) => word.toString(36)).join(""),
  title: "",
  updated: Date.now(),
  messages: [],
});

function titleOf(text) {
  const line = text.trim().split("\n", 1)[0];
  return line.length > TITLE ? `${line.slice(0, TITLE)}…` : line;
}
