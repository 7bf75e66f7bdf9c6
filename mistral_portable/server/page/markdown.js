// Markdown to elements. Answers are untrusted: what a model writes is sanitised, and loads nothing.

import { Marked } from "./vendor/marked.esm.js";
import DOMPurify from "./vendor/purify.es.mjs";
import { el } from "./elements.js";

const escaped = (text) =>
  text.replace(/[&<>"']/g, (found) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[found]);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    // An image would ask its server for it, and so tell what was said: it becomes a link.
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
    // HTML in an answer is shown as it was written: models write about HTML more often than in it.
    html: ({ text }) => escaped(text),
  },
});

const RULES = {
  ALLOWED_TAGS: [
    ..."a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre strong table tbody td th thead tr ul".split(" "),
    "input",
  ],
  ALLOWED_ATTR: ["href", "align", "start", "type", "checked", "disabled"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  // DOMPurify holds every other attribute against that rule, too.
  ADD_URI_SAFE_ATTR: ["align", "start", "type", "checked", "disabled"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer");
  }
  // The boxes of task lists are the only inputs.
  if (node.nodeName === "INPUT") {
    if (node.getAttribute("type") !== "checkbox") node.remove();
    node.setAttribute("disabled", "");
    node.setAttribute("aria-label", node.hasAttribute("checked") ? "done" : "to do");
  }
});

/** A fragment of the document for untrusted HTML, of which the tags and attributes of Markdown are left. */
export const sanitised = (html) => DOMPurify.sanitize(html, RULES);

/** A node of the document for a text in Markdown; the text as it is if it cannot be read. */
export function markdown(text) {
  let fragment;
  try {
    fragment = sanitised(marked.parse(text));
  } catch {
    // A thousand quotations in each other, say: too deep for the stack.
    return el("div", { class: "as-it-is" }, text);
  }
  for (const block of fragment.querySelectorAll("pre")) addCopyButton(block);
  for (const table of fragment.querySelectorAll("table")) {
    const box = el("div", { class: "wide", role: "region", tabindex: "0", "aria-label": "Table" });
    table.replaceWith(box);
    box.append(table);
  }
  return fragment;
}

function addCopyButton(block) {
  const code = block.textContent;
  const button = el("button", { type: "button", class: "copy-code", onclick: () => copy(button, code) }, "Copy");
  const box = el("div", { class: "code" });
  block.replaceWith(box);
  // What scrolls can be reached by keyboard.
  for (const [name, value] of [
    ["tabindex", "0"],
    ["role", "region"],
    ["aria-label", "Code"],
  ]) {
    block.setAttribute(name, value);
  }
  box.append(block, button);
}

/** Puts a text on the clipboard, and says so on the button for a moment. */
export async function copy(button, text) {
  const name = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => (button.textContent = name), 1500);
}
