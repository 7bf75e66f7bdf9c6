// The field for the next message, and its button, which sends or stops.

import { byId } from "./elements.js";

/** attempt: runs an action, shows what it throws, and returns whether it threw nothing. */
export class Composer {
  #field = byId("prompt");
  #button = byId("send");

  constructor(chat, attempt, editLast) {
    this.chat = chat;
    this.attempt = attempt;
    chat.addEventListener("change", () => this.#draw());
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (chat.isRunning()) chat.stop();
      else this.#send();
    });
    this.#field.addEventListener("input", () => this.#fit());
    this.#field.addEventListener("keydown", (event) => {
      // Enter also ends a word of an input method (Japanese, say), which is not to be sent.
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!chat.isRunning()) this.#send();
      } else if (event.key === "ArrowUp" && !event.altKey && this.#field.value === "") {
        event.preventDefault();
        editLast();
      }
    });
  }

  #send() {
    const text = this.#field.value.trim();
    if (!text || !this.attempt(() => this.chat.send(text))) return;
    this.#field.value = "";
    this.#fit();
  }

  #fit() {
    this.#field.style.height = "auto";
    this.#field.style.height = `${this.#field.scrollHeight}px`;
  }

  #draw() {
    const running = this.chat.isRunning();
    this.#button.textContent = running ? "Stop" : "Send";
    this.#button.classList.toggle("stop", running);
  }
}
