// The list of conversations; on a narrow page it is a drawer over the rest.

import { byId, el } from "./elements.js";

/** Draws a Chat's conversations into #conversations. */
export class Sidebar {
  #list = byId("conversations");

  constructor(chat) {
    this.chat = chat;
    chat.addEventListener("change", () => this.draw());
    byId("menu").addEventListener("click", () => this.#open(!document.body.classList.contains("drawer")));
    byId("shade").addEventListener("click", () => this.close());
    byId("new").addEventListener("click", () => {
      chat.startNew();
      this.close();
      byId("prompt").focus();
    });
  }

  draw() {
    this.#list.replaceChildren(...this.chat.sorted().map((conversation) => this.#item(conversation)));
  }

  /** Returns whether the drawer was open. */
  close() {
    const open = document.body.classList.contains("drawer");
    this.#open(false);
    return open;
  }

  /** Open the conversation `by` places further down the list. */
  step(by) {
    const all = this.chat.sorted();
    const index = all.findIndex(({ id }) => id === this.chat.current.id);
    const next = all[Math.max(0, index + by)];
    if (next) this.chat.open(next.id);
  }

  #open(open) {
    document.body.classList.toggle("drawer", open);
    byId("menu").setAttribute("aria-expanded", String(open));
  }

  #item({ id, title }) {
    const open = () => {
      this.chat.open(id);
      this.close();
    };
    const remove = () => {
      if (confirm(`Delete the conversation "${title}"?`)) this.chat.remove(id);
    };
    const current = id === this.chat.current.id;
    return el(
      "li",
      { class: this.chat.isRunning(id) ? "running" : null },
      el("button", { type: "button", class: "open", "aria-current": current ? "page" : null, onclick: open }, title),
      el(
        "button",
        { type: "button", class: "delete", "aria-label": `Delete ${title}`, title: "Delete", onclick: remove },
        "×",
      ),
    );
  }
}
