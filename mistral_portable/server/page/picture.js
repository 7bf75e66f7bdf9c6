// Pictures of what attention sees, as SVG: rows are the tokens that look, columns those that are seen.

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  if (text !== undefined) element.textContent = text;
  return element;
}

const words = (window) => (window === null ? "all before it" : `the last ${window.toLocaleString()}`);

/** The whole context to scale, which a window makes a band. window: tokens, or null. */
export function scalePicture(window, context) {
  const side = 200;
  const width = window === null ? side : Math.max(1.5, (Math.min(window, context) / context) * side);
  const label = `Of ${context.toLocaleString()} tokens each sees ${words(window)}.`;
  const svg = shape("svg", {
    viewBox: `0 0 ${side} ${side}`,
    class: "attention scale",
    role: "img",
    "aria-label": label,
  });
  svg.append(
    shape("rect", { width: side, height: side, class: "hidden" }),
    // The corners: the first token, the first one whose window is full, and the band's end.
    shape("polygon", { points: `0,0 ${side},${side} ${side - width},${side} 0,${width}`, class: "seen" }),
  );
  return svg;
}

/** A cell for each pair of tokens. panel: {window, first}, of /info/attention. */
export function tokenPicture(tokens, { window, first }) {
  const cell = 14;
  const names = tokens.map((token) => JSON.stringify(token).slice(1, -1));
  const left = 7.4 * Math.max(...names.map(({ length }) => length)) + 10;
  const [width, height] = [left + tokens.length * cell, tokens.length * cell];
  const label = `${tokens.length} tokens, each of which sees ${words(window)}.`;
  const svg = shape("svg", {
    viewBox: `0 0 ${width} ${height}`,
    width,
    height,
    class: "attention",
    role: "img",
    "aria-label": label,
  });
  names.forEach((name, row) => {
    const y = row * cell;
    svg.append(shape("text", { x: left - 6, y: y + cell - 3.5, "text-anchor": "end" }, name));
    svg.append(
      shape("rect", { x: left, y, width: tokens.length * cell - 2, height: cell - 2, rx: 2, class: "hidden" }),
    );
    const from = left + first[row] * cell;
    svg.append(
      shape("rect", { x: from, y, width: (row - first[row] + 1) * cell - 2, height: cell - 2, rx: 2, class: "seen" }),
    );
    svg.append(shape("rect", { x: left + row * cell, y, width: cell - 2, height: cell - 2, rx: 2, class: "self" }));
  });
  return svg;
}
