// What several views are made of.

function picture(number, alt, className = "picture") {
  if (number === undefined) return "";
  const smooth = section().smooth ? " smooth" : "";
  return el("img", { class: className + smooth, src: page.pictures[number], alt, decoding: "async" });
}

function altOf(what, example) {
  return `${what} ${example.text}${example.label ? `, ${section().label_name} ${example.label}` : ""}`;
}

/** The text that an example consists of; undefined where it is none. */
const passageOf = (example) => page.passages[example.passage];

const haveTexts = (examples) => examples.some((example) => example.passage !== undefined);

/** What a filter looks at. */
const wordsOf = (example) => [example.text, example.label || "", passageOf(example) || ""];

/** The beginning of a text, with an ellipsis where it goes on. */
function beginning(text, length) {
  const head = text.slice(0, length).split("\n", LINES).join("\n");
  return head.length === text.length ? text : `${head.replace(/[\ud800-\udbff]$/, "").trimEnd()}…`;
}

/** Characters as people count them: a pair of surrogates is one. */
const lengthOf = (text) => text.length - (text.match(/[\ud800-\udbff]/g) || []).length;

/** A passage; where it is long its beginning, and a button that shows all of it. */
function passage(text, length, what) {
  const head = beginning(text, length);
  const words = el("p", { class: "words", dir: "auto" }, text.trim() ? head : el("span", { class: "quiet" }, "empty text"));
  if (head === text) return el("div", { class: "passage" }, words);
  let isWhole = false;
  const show = () => {
    words.textContent = isWhole ? text : head;
    words.classList.toggle("whole", isWhole);
    if (isWhole) words.tabIndex = 0; // the keys scroll what is very long
    else words.removeAttribute("tabindex");
    const saying = isWhole ? "Show less" : `Show all ${lengthOf(text).toLocaleString("en")} characters`;
    button.replaceChildren(saying, unseen(` of ${what}`));
    button.setAttribute("aria-expanded", String(isWhole));
  };
  const button = el("button", { type: "button", class: "all", onclick: () => { isWhole = !isWhole; show(); } });
  show();
  return el("div", { class: "passage" }, words, button);
}

/** The beginning of the passage of an example, if it has one, in a line. */
function glimpse(example) {
  return example.passage === undefined ? [] : [el("span", { class: "glimpse" }, bdi(beginning(passageOf(example), CELL)))];
}

const idOf = (example) => example.whole ?? example.text;

function labelOf(label) {
  return label ? [`${section().label_name} `, bdi(label)] : [];
}

function search(name, label, update) {
  const input = el("input", {
    type: "search", "aria-label": label, placeholder: label, value: state[name], autocomplete: "off", spellcheck: "false",
    oninput: () => update({ [name]: input.value }),
  });
  return { node: input, sync: () => { if (input.value !== state[name]) input.value = state[name]; } };
}

function choice(name, label, options) {
  const entries = options.map(([value, text]) => el("option", { value }, text));
  const select = el("select", { onchange: () => type({ [name]: select.value }) }, ...entries);
  const sync = () => {
    select.value = state[name] || options[0][0];
    if (select.selectedIndex < 0) select.selectedIndex = 0;
  };
  return { node: el("label", { class: "choice" }, `${label} `, select), sync };
}

const status = () => el("p", { class: "quiet status", role: "status", "aria-live": "polite" });

function exportButtons(exported) {
  const button = (kind) =>
    el("button", { type: "button", onclick: () => download(exported(), kind), "data-export": kind }, kind.toUpperCase());
  return el("span", { class: "exports", role: "group", "aria-label": "Export what is shown" }, button("csv"), button("json"));
}

function scoreChip(entry, sign) {
  const chip = el("span", { class: `score ${sign}` }, entry.score_text);
  chip.style.setProperty("--strength", `${entry.strength}%`);
  return chip;
}

function differs(entry) {
  if (!entry.other_label) return [];
  return [" ", el("span", { class: "differs", title: "another label than the query", "aria-hidden": "true" }, "≠"),
    unseen(", another label than the query")];
}

const missingParts = (view) => (view.missing || []).map((text) => el("p", { class: "missing" }, ...rich(text)));

/** A list of which only the rows in sight are in the page. */
function virtualList(label, rowOf, pick) {
  const inner = el("div", { class: "rows" });
  const box = el("div", { class: "list", role: "listbox", tabindex: "0", "aria-label": label }, inner);
  let items = [];
  let selected = -1;
  const draw = () => {
    const first = Math.max(0, Math.floor(box.scrollTop / LIST_ROW) - 4);
    const last = Math.min(items.length, first + Math.ceil(box.clientHeight / LIST_ROW) + 8);
    inner.style.height = `${items.length * LIST_ROW}px`;
    const rows = items.slice(first, last).map((item, k) => row(item, first + k));
    inner.replaceChildren(...rows);
  };
  const row = (item, k) => {
    const node = el("div", {
      class: "row", role: "option", id: `option-${k}`, "aria-selected": String(k === selected),
      "aria-setsize": items.length, "aria-posinset": k + 1, onclick: () => pick(item),
    }, ...rowOf(item));
    node.style.top = `${k * LIST_ROW}px`;
    return node;
  };
  const show = (newItems, newSelected) => {
    [items, selected] = [newItems, newSelected];
    inner.style.height = `${items.length * LIST_ROW}px`;
    const top = selected * LIST_ROW;
    const isSeen = top >= box.scrollTop && top + LIST_ROW <= box.scrollTop + box.clientHeight;
    if (selected >= 0 && !isSeen) box.scrollTop = top - box.clientHeight / 2 + LIST_ROW / 2;
    if (selected >= 0) box.setAttribute("aria-activedescendant", `option-${selected}`);
    else box.removeAttribute("aria-activedescendant");
    draw();
  };
  box.addEventListener("scroll", draw, { passive: true });
  new ResizeObserver(draw).observe(box);
  return { node: box, show };
}
