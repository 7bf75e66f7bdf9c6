// The messages of the conversation, and their buttons.

import { ending, figures } from "./answer.js";
import { byId, el } from "./elements.js";
import { copy, markdown } from "./markdown.js";

/** Draws a Chat's current conversation into #messages. attempt: runs an action and shows what it throws. */
export class Messages {
  #list = byId("messages");
  #drawn = 0; // milliseconds that the last drawing of an answer took
  #timer = 0;

  constructor(chat, attempt) {
    this.chat = chat;
    this.attempt = attempt;
    chat.addEventListener("change", () => this.draw());
    chat.addEventListener("progress", ({ detail }) => detail === chat.current && this.#drawSoon());
  }

  draw() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    const { messages } = this.chat.current;
    this.#keepAtEnd(() =>
      this.#list.replaceChildren(...messages.map((message, index) => this.#article(message, index))),
    );
    byId("welcome").hidden = messages.length > 0;
  }

  /** Open the editor of the last message of the user. */
  editLast() {
    const index = this.chat.current.messages.findLastIndex(({ role }) => role === "user");
    if (index >= 0 && !this.chat.isRunning()) this.#edit(index);
  }

  // A long answer takes longer to draw: it is drawn less often, so that half of the time is left for all else.
  #drawSoon() {
    if (this.#timer) return;
    this.#timer = setTimeout(
      () => {
        this.#timer = 0;
        const began = performance.now();
        this.#drawLast();
        this.#drawn = performance.now() - began;
      },
      Math.max(40, this.#drawn),
    );
  }

  #drawLast() {
    const index = this.chat.current.messages.length - 1;
    const old = this.#list.lastElementChild;
    if (index < 0 || !old) return;
    const open = old.querySelector("details.reasoning")?.open;
    const article = this.#article(this.chat.current.messages[index], index);
    if (open) article.querySelector("details.reasoning").open = true;
    this.#keepAtEnd(() => old.replaceWith(article));
  }

  #keepAtEnd(change) {
    const box = byId("scroll");
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 80;
    change();
    if (atEnd) box.scrollTop = box.scrollHeight;
  }

  #article(message, index) {
    const parts = message.role === "user" ? this.#question(message, index) : this.#answer(message, index);
    const label = message.role === "user" ? "You" : "Answer";
    return el("article", { class: message.role, "aria-label": label }, ...parts);
  }

  #question({ content }, index) {
    const edit = button("Edit", () => this.#edit(index));
    edit.disabled = this.chat.isRunning();
    return [el("div", { class: "text" }, content), el("div", { class: "actions" }, edit, copyButton(content))];
  }

  #answer(answer, index) {
    const running = !answer.finish;
    const again = button("Regenerate", () => this.attempt(() => this.chat.regenerate(index)));
    again.disabled = this.chat.isRunning();
    return [
      answer.reasoning ? reasoning(answer) : null,
      el("div", { class: "text" }, markdown(answer.content)),
      ...(answer.toolCalls ?? []).filter(Boolean).map(toolCall),
      running ? el("div", { class: "writing", role: "img", "aria-label": "is being written" }) : null,
      ending(answer) ? el("p", { class: "note" }, ending(answer)) : null,
      answer.error ? el("p", { class: "error", role: "alert" }, answer.error) : null,
      running
        ? null
        : el(
            "div",
            { class: "actions" },
            again,
            copyButton(answer.content),
            el("span", { class: "figures" }, figures(answer)),
          ),
    ];
  }

  #edit(index) {
    const text = this.chat.current.messages[index].content;
    const field = el("textarea", {
      "aria-label": "Edit the message",
      rows: String(Math.min(12, text.split("\n").length + 1)),
    });
    field.value = text;
    const send = () => field.value.trim() && this.attempt(() => this.chat.edit(index, field.value.trim()));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        this.draw();
      }
    });
    const buttons = el(
      "div",
      { class: "actions" },
      button("Send", send),
      button("Cancel", () => this.draw()),
    );
    this.#list.children[index].replaceChildren(field, buttons);
    this.#list.children[index].classList.add("editing");
    field.focus();
  }
}

const button = (name, onclick) => el("button", { type: "button", class: "quiet", onclick }, name);

function copyButton(text) {
  const made = button("Copy", () => copy(made, text));
  return made;
}

function reasoning({ reasoning, content, finish }) {
  const title = finish || content ? "Reasoning" : "Thinking…";
  return el(
    "details",
    { class: "reasoning" },
    el("summary", {}, title),
    el("div", { class: "text" }, markdown(reasoning)),
  );
}

function toolCall({ name, arguments: given }) {
  return el(
    "section",
    { class: "tool-call", "aria-label": `Tool call: ${name}` },
    el("p", { class: "tool-name" }, "Calls ", el("code", {}, name)),
    el("pre", { tabindex: "0", role: "region", "aria-label": `Arguments of ${name}` }, indented(given)),
  );
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // not complete yet
  }
}
