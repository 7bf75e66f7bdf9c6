// Makes elements. Text is always set as text: no string given here is ever read as HTML.

/** el("button", {class: "quiet", onclick: copy}, "Copy"): attributes that are null or false are left out. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** The element of index.html with this id. */
export const byId = (id) => document.getElementById(id);
