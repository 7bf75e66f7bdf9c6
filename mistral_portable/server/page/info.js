// The dialog of the model: its shape, its memory, and what its attention sees.

import { request } from "./api.js";
import { byId, el } from "./elements.js";
import { scalePicture, tokenPicture } from "./picture.js";

const EXAMPLE = "Once upon a time there was a little dog.";

/** Show the dialog with the server's present figures. text: the one whose attention is drawn first. */
export async function showInfo(text) {
  const dialog = byId("info-dialog");
  const box = byId("info");
  box.replaceChildren(el("p", { class: "note" }, "Loading…"));
  dialog.showModal();
  try {
    const info = await (await request("info")).json();
    box.replaceChildren(facts(info), memory(info.memory), windows(info), await tokens(text || EXAMPLE));
  } catch (error) {
    box.replaceChildren(el("p", { class: "error", role: "alert" }, error.message));
  }
}

function facts(info) {
  const experts = info.experts ? `, ${info.experts} experts` : "";
  return table("Shape", [
    ["Name", info.model],
    ["Backend", `${info.backend}, ${info.dtype}`],
    ["Layers", `${info.layers} of width ${count(info.hidden_size)}${experts}`],
    ["Heads", `${info.heads}, ${info.key_value_heads} for keys and values`],
    ["Vocabulary", `${count(info.vocabulary)} tokens${info.tokenizer ? `, ${info.tokenizer}` : ""}`],
    ["Context", `${count(info.max_context)} tokens`],
  ]);
}

function memory(bytes) {
  return table("Memory", [
    ["Most so far", bytes.peak_bytes ? size(bytes.peak_bytes) : "not known"],
    ["Keys and values", `${size(bytes.cache_bytes)}, ${size(bytes.cache_in_use_bytes)} in use`],
    ["For each token", size(bytes.token_bytes)],
    ["Buffers", size(bytes.scratch_bytes)],
  ]);
}

function windows({ windows: all, max_context: context, layers }) {
  const figures = all.map(({ window, layers: some }) =>
    el(
      "figure",
      {},
      scalePicture(window, context),
      el(
        "figcaption",
        {},
        `${some} of ${layers} layers: `,
        el("strong", {}, window === null ? "no window" : `window ${count(window)}`),
      ),
    ),
  );
  const text = `Down: ${count(context)} tokens that look. Across: what each sees of those before it.`;
  return section(
    "Attention, to scale",
    el("p", { class: "note" }, text),
    el("div", { class: "figures-row" }, ...figures),
  );
}

async function tokens(text) {
  const field = el("textarea", { rows: "2", maxlength: "4000", "aria-label": "Text whose attention is drawn" });
  field.value = text.slice(0, 4000);
  const target = el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Attention of each token" });
  let latest = 0;
  const draw = async () => {
    const number = ++latest;
    const drawn = field.value ? await pictures(field.value) : [];
    if (number === latest) target.replaceChildren(...drawn);
  };
  field.addEventListener("input", draw);
  await draw();
  return section("Attention, token by token", field, target);
}

async function pictures(text) {
  try {
    const { tokens, panels, left_out: rest } = await (await request("info/attention", { text })).json();
    const drawn = panels.map((panel) =>
      el(
        "figure",
        {},
        tokenPicture(tokens, panel),
        el("figcaption", {}, panel.window === null ? "No window" : `Window ${count(panel.window)}`),
      ),
    );
    return rest ? [...drawn, el("p", { class: "note" }, `${count(rest)} more tokens are not drawn.`)] : drawn;
  } catch (error) {
    return [el("p", { class: "error", role: "alert" }, error.message)];
  }
}

function table(title, rows) {
  const lines = rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]);
  return section(title, el("dl", {}, ...lines));
}

const section = (title, ...parts) => el("section", {}, el("h3", {}, title), ...parts);
const count = (number) => number.toLocaleString();

function size(bytes) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  const unit = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  return `${(bytes / 1024 ** unit).toLocaleString(undefined, { maximumFractionDigits: unit ? 1 : 0 })} ${units[unit]}`;
}
