"use strict";
// Places, filters, sorts and exports what Python decided. Whatever comes from data reaches the page as text only.

const page = JSON.parse(document.getElementById("data").textContent);
const PAGE = 15; // rows of a table before "show more"
const LONG = 12; // more rows than these can be filtered
const LIST_ROW = 52; // height of a query in the list, as in the style sheet

// --- small helpers ---------------------------------------------------------------------------------------------------

/** An element; attributes that are false are left out, those that start with "on" are listeners. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const bdi = (text) => el("bdi", {}, text);
const byId = (id) => document.getElementById(id);
const unseen = (text) => el("span", { class: "unseen" }, text);

/** A sentence of ours: `code` between backticks, data between isolates. */
function rich(text) {
  const parts = text.split(/(`[^`]*`|\u2068[^\u2069]*\u2069)/);
  return parts.map((part, k) => (k % 2 ? el(part[0] === "`" ? "code" : "bdi", {}, part.slice(1, -1)) : part));
}

function plural(count, noun, many = `${noun}s`) {
  return `${count} ${count === 1 ? noun : many}`;
}

const collator = new Intl.Collator(undefined, { numeric: true });

/** Ascending; what is missing comes last. */
function compare(a, b) {
  if (a == null || b == null) return (a == null) - (b == null);
  return typeof a === "number" && typeof b === "number" ? a - b : collator.compare(String(a), String(b));
}

function matches(texts, filter) {
  const wanted = filter.trim().toLowerCase();
  return !wanted || texts.some((text) => text.toLowerCase().includes(wanted));
}

// --- state: what the address holds ------------------------------------------------------------------------------------

const TABS = [...document.querySelectorAll("[role=tab]")];
const DEFAULTS = {
  case: "1", view: "queries", query: "", find: "", order: "order", filter: "", sort: "", other: "", cut: "",
};
const FRESH_VIEW = { filter: "", sort: "", other: "" }; // what a change of view forgets
let state = { ...DEFAULTS };

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const read = Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, given.get(name) ?? DEFAULTS[name]]));
  if (!page.cases[read.case - 1]) read.case = DEFAULTS.case;
  if (!TABS.some((tab) => tab.dataset.view === read.view)) read.view = DEFAULTS.view;
  return read;
}

function addressOf(target) {
  const changed = Object.entries(target).filter(([name, value]) => value !== DEFAULTS[name]);
  return `#${new URLSearchParams(changed)}`;
}

/** Change the state; a step that the back button undoes, unless `replace`. */
function go(changes, { replace = false } = {}) {
  state = { ...state, ...changes };
  const address = addressOf(state);
  if (address !== (location.hash || "#")) history[replace ? "replaceState" : "pushState"](null, "", address);
  render();
}

const section = () => page.cases[state.case - 1];
const type = (changes) => go(changes, { replace: true });

// --- parts of views ---------------------------------------------------------------------------------------------------

function picture(number, alt, className = "picture") {
  if (number === undefined) return "";
  const smooth = section().smooth ? " smooth" : "";
  return el("img", { class: className + smooth, src: page.pictures[number], alt, decoding: "async" });
}

function altOf(what, example) {
  return `${what} ${example.text}${example.label ? `, ${section().label_name} ${example.label}` : ""}`;
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

// --- the view of the queries ------------------------------------------------------------------------------------------

const ORDERS = {
  order: () => 0,
  id: (a, b) => compare(a.text, b.text),
  label: (a, b) => compare(a.label, b.label),
  strongest: (a, b) => b.strongest - a.strongest,
};
const SORTS = {
  score: (a, b) => a.entry.rank - b.entry.rank,
  id: (a, b) => compare(a.example.text, b.example.text),
  label: (a, b) => compare(a.example.label, b.example.label),
};

function listedQueries(view) {
  const found = view.queries.filter((query) => matches([query.text, query.label], state.find));
  return found.sort(ORDERS[state.order] || ORDERS.order);
}

function selectedQuery(view, listed) {
  return view.queries.find((query) => query.key === state.query) || listed[0] || view.queries[0];
}

/** The entries of a side that are shown, in their order; `k` is their place in the feature rows. */
function shownEntries(side) {
  const all = side.entries.map((entry, k) => ({ entry, k, example: section().examples[entry.train] }));
  const kept = all.filter(({ entry, example }) =>
    matches([example.text, example.label || ""], state.filter) && (!state.other || entry.other_label));
  return kept.sort(SORTS[state.sort] || SORTS.score);
}

function queriesView(view) {
  const find = search("find", "Find a query", type);
  const order = choice("order", "Order", [
    ["order", "as scored"], ["id", "id"], ["label", section().label_name], ["strongest", "strongest score"],
  ]);
  const count = status();
  const list = virtualList("Queries", queryRow, (query) => go({ query: query.key }));
  const controls = entryControls(() => exportedEntries(view));
  const detail = el("div", { class: "detail" }, controls.node);
  const hints = view.hints.length ? [el("details", { class: "hints quiet" }, el("summary", {}, "What the marks mean"),
    ...view.hints.map((hint) => el("p", {}, hint)))] : [];
  const update = () => {
    const listed = listedQueries(view);
    const query = selectedQuery(view, listed);
    [find, order, ...controls.parts].forEach((part) => part.sync());
    count.textContent = `${listed.length} of ${plural(view.queries.length, "query", "queries")}`;
    list.show(listed, listed.indexOf(query));
    // The controls stay in the page: a filter that is taken out and put back loses its focus at every letter.
    [...detail.children].filter((node) => node !== controls.node).forEach((node) => node.remove());
    controls.node.before(queryHead(query, listed));
    controls.node.after(...query.sides.map((side) => sideNode(query, side)));
    controls.say(query);
  };
  const step = (by) => {
    const listed = listedQueries(view);
    const next = listed[listed.indexOf(selectedQuery(view, listed)) + by];
    if (next) go({ query: next.key });
  };
  const aside = el("aside", { class: "queries", "aria-label": "Queries" }, find.node, order.node, count, list.node);
  const intro = el("p", { class: "quiet" }, view.summary);
  const nodes = [intro, ...hints, el("div", { class: "split" }, aside, detail)];
  return { nodes, update, step, exported: () => exportedEntries(view), filter: controls.filter };
}

function queryRow(query) {
  const lines = el("span", { class: "lines" }, el("span", { class: "id" }, bdi(query.text)),
    el("span", { class: "quiet" }, ...labelOf(query.label)));
  return [picture(query.picture, "", "thumb"), lines, el("span", { class: "quiet strongest" }, query.strongest_text)];
}

function queryHead(query, listed) {
  const at = listed.indexOf(query);
  const step = (by, text, label) => el("button", {
    type: "button", "aria-label": label, title: label, disabled: !listed[at + by], onclick: () => current.step(by),
  }, text);
  const facts = el("p", { class: "quiet" }, ...rich(`Measure: ${query.measure}. Strongest score ${query.strongest_text}.`));
  const name = el("h2", {}, "Query ", bdi(query.text));
  const label = query.label ? [el("p", { class: "label" }, `${section().label_name} `, el("strong", {}, bdi(query.label)))] : [];
  return el("header", { class: "query-head" }, picture(query.picture, altOf("query", query), "picture large"),
    el("div", { class: "about" }, name, ...label, facts),
    el("div", { class: "steps" }, step(-1, "‹", "Previous query (k)"), step(1, "›", "Next query (j)")));
}

function entryControls(exported) {
  const filter = search("filter", "Filter train examples", type);
  const box = el("input", { type: "checkbox", onchange: () => type({ other: box.checked ? "1" : "" }) });
  const other = { sync: () => { box.checked = state.other === "1"; } };
  const sort = choice("sort", "Sort by", [["score", "score"], ["id", "id"], ["label", section().label_name]]);
  const count = status();
  const say = (query) => {
    const all = query.sides.reduce((sum, side) => sum + side.entries.length, 0);
    const shown = query.sides.reduce((sum, side) => sum + shownEntries(side).length, 0);
    count.textContent = shown === all ? `${plural(all, "train example")}` : `${shown} of ${plural(all, "train example")}`;
  };
  const otherLabel = el("label", { class: "choice" }, box, ` other ${section().label_name} only`);
  const hasOthers = section().label_name === "label" ? [otherLabel] : [];
  const node = el("div", { class: "controls" }, filter.node, ...hasOthers, sort.node, exportButtons(exported), count);
  return { node, parts: [filter, other, sort], say, filter: filter.node };
}

function sideNode(query, side) {
  const shown = shownEntries(side);
  const heading = el("h3", {}, el("span", { class: `swatch ${side.sign}`, "aria-hidden": "true" }), side.name,
    el("span", { class: "quiet" }, ` ${side.share} of the total`));
  let content;
  if (!side.entries.length) content = el("p", { class: "quiet" }, `No train example ${side.sign} this query.`);
  else if (!shown.length) content = el("p", { class: "quiet" }, "None matches the filter.");
  else if (shown.some(({ example }) => example.picture !== undefined)) content = tiles(shown, side);
  else content = featureTable(query, side, shown);
  return el("section", { class: "side", "data-sign": side.sign }, heading, content);
}

function tiles(shown, side) {
  const tile = ({ entry, example }) => el("li", {}, picture(example.picture, altOf("train example", example)),
    scoreChip(entry, side.sign), el("span", { class: "label" }, ...labelOf(example.label), ...differs(entry)),
    el("span", { class: "quiet" }, `#${entry.rank}, ${entry.share_text}`),
    el("span", { class: "quiet id", title: example.text }, bdi(example.text)));
  return el("ol", { class: "tiles" }, ...shown.map(tile));
}

/** Examples as columns beside the query, features as rows. */
function featureTable(query, side, shown) {
  const line = (name, queryCell, cellOf, className) => el("tr", { class: className || false },
    el("th", { scope: "row" }, bdi(name)), el("td", { class: "query" }, queryCell),
    ...shown.map((item) => el("td", {}, ...cellOf(item))));
  const head = el("tr", {}, el("th", { scope: "col" }, "rank"), el("th", { scope: "col", class: "query" }, "query"),
    ...shown.map(({ entry }) => el("th", { scope: "col" }, `#${entry.rank}`)));
  const lines = [
    line("id", el("span", { class: "id" }, bdi(query.text)), ({ example }) => [el("span", { class: "id" }, bdi(example.text))]),
    line("score", "", ({ entry }) => [scoreChip(entry, side.sign)]),
    line("share", "", ({ entry }) => [entry.share_text]),
  ];
  if (query.label || shown.some(({ example }) => example.label)) {
    lines.push(line(section().label_name, bdi(query.label || ""),
      ({ entry, example }) => [bdi(example.label || ""), ...differs(entry)], "target"));
  }
  for (const feature of side.features || []) {
    lines.push(line(feature.name, feature.query, ({ k }) => marked(feature.cells[k])));
  }
  const caption = el("caption", { class: "unseen" }, `${side.name} of query ${query.text}`);
  const table = el("table", { class: "compare" }, caption, el("thead", {}, head), el("tbody", {}, ...lines));
  return scroller(`${side.name} of query ${query.text}`, table);
}

function marked([text, mark]) {
  if (!mark) return [text];
  return [el("strong", { class: mark }, text, el("span", { "aria-hidden": "true" }, mark === "higher" ? "▲" : "▼"),
    unseen(`, ${mark} than the query`))];
}

function scroller(label, ...children) {
  return el("div", { class: "scroll", role: "region", "aria-label": label, tabindex: "0" }, ...children);
}

function exportedEntries(view) {
  const query = selectedQuery(view, listedQueries(view));
  const names = (query.sides.find((side) => (side.features || []).length) || { features: [] }).features.map((f) => f.name);
  const columns = ["query", "side", "rank", "train", section().label_name, "score", "share", ...names];
  const rows = query.sides.flatMap((side) => shownEntries(side).map(({ entry, example, k }) => [
    idOf(query), side.sign, entry.rank, idOf(example), example.label || "", entry.score, entry.share,
    ...(side.features || []).map((feature) => feature.values[k + 1]),
  ]));
  return { name: `query ${query.text}`, columns, rows };
}

// --- tables that can be sorted, filtered and exported -------------------------------------------------------------------

function shownText(cell, column) {
  if (column.kind === "example") return section().examples[cell.value].text;
  if (column.kind === "query") return section().views.queries.queries[cell.value].text;
  return cell.text || "";
}

/** What a row is sorted by. */
function sortValue(cell, column) {
  if (column.kind === "interval") return cell.value[0];
  if (column.kind === "number") return cell.value;
  return shownText(cell, column);
}

/** The values an export writes for a cell; as many as `exportNames` has. */
function exportValues(cell, column) {
  if (column.kind === "example") return [idOf(section().examples[cell.value])];
  if (column.kind === "query") return [idOf(section().views.queries.queries[cell.value])];
  if (column.kind === "interval") return cell.value;
  if (column.kind === "number") return [cell.value === undefined ? null : cell.value];
  return [cell.value ?? cell.text ?? ""];
}

function exportNames(column) {
  return column.kind === "interval" ? [column.name, `${column.name} low`, `${column.name} high`] : [column.name];
}

function cellContent(cell, column) {
  if (column.kind === "example") {
    const example = section().examples[cell.value];
    return [picture(example.picture, altOf("train example", example), "thumb"), el("span", { class: "id" }, bdi(example.text))];
  }
  if (column.kind === "query") {
    const query = section().views.queries.queries[cell.value];
    const address = addressOf({ ...state, ...FRESH_VIEW, view: "queries", query: query.key });
    return [el("a", { href: address }, picture(query.picture, "", "thumb"), bdi(query.text))];
  }
  const text = cell.strong ? el("strong", {}, cell.text) : bdi(cell.text || "");
  return cell.quiet ? [text, " ", el("span", { class: "quiet interval" }, cell.quiet)] : [text];
}

const isLong = (table) => table.rows.length > LONG;

/** Rows that match the filter, in the order of `state.sort`, which is "table.column" with a minus where descending. */
function shownRows(table) {
  const kept = table.rows.filter((row) =>
    !isLong(table) || matches(row.map((cell, k) => shownText(cell, table.columns[k])), state.filter));
  const [, sign, name, k] = state.sort.match(/^(-?)(.*)\.(\d+)$/) || [];
  if (name !== table.name || !table.columns[k]) return kept;
  const direction = sign ? -1 : 1;
  return kept.sort((a, b) => {
    const [x, y] = [sortValue(a[k], table.columns[k]), sortValue(b[k], table.columns[k])];
    return x == null || y == null ? compare(x, y) : direction * compare(x, y);
  });
}

function tableNode(table, { rowClass = () => "", exported = () => exportedTable(table), size = PAGE, look = "data" } = {}) {
  const count = status();
  const body = el("tbody");
  const head = el("tr");
  let limit = size;
  const more = el("button", { type: "button", class: "more", onclick: () => { limit += Math.max(size, 60); update(); } });
  const update = () => {
    const rows = shownRows(table);
    head.replaceChildren(...table.columns.map((column, k) => headCell(table, column, k)));
    body.replaceChildren(...rows.slice(0, limit).map((row) => rowNode(table, row, rowClass(row))));
    more.hidden = rows.length <= limit;
    more.textContent = `Show more (${limit} of ${rows.length} shown)`;
    count.textContent = rows.length === table.rows.length ? plural(rows.length, "row")
      : `${rows.length} of ${plural(table.rows.length, "row")}`;
  };
  const bar = el("div", { class: "controls bar" }, count, exportButtons(exported));
  const node = el("table", { class: look, role: "table", "data-table": table.name }, el("caption", { class: "unseen" }, table.caption),
    el("thead", {}, head), body);
  return { node: el("div", { class: "block" }, bar, scroller(table.caption, node), more), bar, update, exported, isLong: isLong(table) };
}

function headCell(table, column, k) {
  const key = `${table.name}.${k}`;
  const direction = { [key]: "ascending", [`-${key}`]: "descending" }[state.sort] || "none";
  const next = { none: column.kind === "text" ? key : `-${key}`, ascending: `-${key}`, descending: key }[direction];
  const button = el("button", { type: "button", class: "sort", onclick: () => type({ sort: next }) }, bdi(column.name));
  return el("th", { scope: "col", "aria-sort": direction, class: column.kind || "text" }, button);
}

function rowNode(table, row, className) {
  const cells = row.map((cell, k) => {
    const kind = table.columns[k].kind || "text";
    const attributes = { class: kind, role: k ? "cell" : "rowheader", scope: k ? false : "row", "data-name": table.columns[k].name };
    return el(k ? "td" : "th", attributes, ...cellContent(cell, table.columns[k]));
  });
  return el("tr", { class: className || false, role: "row" }, ...cells);
}

function exportedTable(table, rows = shownRows(table)) {
  return {
    name: table.name,
    columns: table.columns.flatMap(exportNames),
    rows: rows.map((row) => row.flatMap((cell, k) => exportValues(cell, table.columns[k]))),
  };
}

// --- views made of blocks ---------------------------------------------------------------------------------------------

const BLOCKS = {
  heading: (block) => [el("h2", {}, block.text)],
  text: (block) => [el("p", { class: block.quiet ? "quiet" : false }, ...rich(block.text))],
  notes: (block) => [el("ul", { class: "notes" }, ...block.notes.map((note) => el("li", {}, bdi(note))))],
  command: (block) => [el("div", { class: "command" }, el("code", {}, bdi(block.text)), copyButton(() => block.text))],
  chart: (block) => [chartNode(block)],
};

function chartNode(block) {
  const drawing = el("div", { role: "img", "aria-label": block.label });
  drawing.append(byId(`chart-${block.chart}`).content.cloneNode(true));
  const caption = block.caption ? [el("figcaption", { class: "quiet" }, block.caption)] : [];
  return el("figure", { class: `chart${block.wide ? " wide" : ""}` }, scroller(block.label, drawing), ...caption);
}

function blocksView(view) {
  const tables = [];
  const nodes = [];
  for (const block of view.blocks) {
    if (block.kind !== "table") nodes.push(...BLOCKS[block.kind](block));
    else {
      tables.push(tableNode(block));
      const isBeside = (nodes.at(-1) || {}).className === "chart"; // a chart and its numbers share a line where both fit
      nodes.push(isBeside ? el("div", { class: "pair" }, nodes.pop(), tables.at(-1).node) : tables.at(-1).node);
    }
  }
  const filter = search("filter", "Filter the rows", type);
  const long = tables.find((table) => table.isLong);
  if (long) long.bar.prepend(filter.node);
  const update = () => { filter.sync(); tables.forEach((table) => table.update()); };
  return { nodes, update, exported: tables[0] && tables[0].exported, filter: long && filter.node };
}

// --- the view of the labels -------------------------------------------------------------------------------------------

function labelsView(view) {
  const { table } = view;
  const cut = () => Math.min(Math.max(Math.round(Number(state.cut)) || view.start, 1), table.rows.length);
  const rank = (row) => row[0].value;
  const selected = () => shownRows(table).filter((row) => rank(row) <= cut());
  const exported = () => ({ ...exportedTable(table, selected()), name: "suspicious labels" });
  const isPictured = section().examples[table.rows[0][1].value].picture !== undefined;
  const rows = tableNode(table, {
    rowClass: (row) => (rank(row) <= cut() ? "selected" : "unselected"),
    exported, size: 60, look: isPictured ? "data gallery" : "data",
  });
  const filter = search("filter", "Filter the labels", type);
  const slider = el("input", {
    type: "range", min: 1, max: table.rows.length, step: 1, "aria-label": "How many labels are selected",
    oninput: () => type({ cut: slider.value }),
  });
  const number = el("input", {
    type: "number", min: 1, max: table.rows.length, "aria-label": "How many labels are selected, as a number",
    onchange: () => type({ cut: number.value }),
  });
  const verdict = el("p", { class: "verdict", role: "status", "aria-live": "polite" });
  const ids = el("textarea", { readonly: true, rows: 6, "aria-label": "Ids of the selected labels, one a line" });
  const update = () => {
    filter.sync();
    slider.value = cut();
    if (document.activeElement !== number) number.value = cut();
    verdict.textContent = cutWords(view, cut());
    ids.value = selected().map((row) => idOf(section().examples[row[1].value])).join("\n");
    rows.update();
  };
  const control = el("div", { class: "cut" }, el("label", {}, "Select the most suspicious ", number), slider);
  const list = el("details", { class: "ids" }, el("summary", {}, "Selected ids as text"), ids, copyButton(() => ids.value));
  const nodes = [el("p", {}, view.summary), control, verdict, el("div", { class: "controls" }, filter.node), list,
    el("p", { class: "quiet" }, "Exports and ids hold the selected labels that match the filter."), rows.node];
  return { nodes, update, exported, filter: filter.node };
}

/** How many are selected, and how many of them are known to be wrong. */
function cutWords(view, cut) {
  const total = view.wrong.length;
  const head = `${cut} of ${plural(total, "label")} selected: score ${view.scores[cut - 1]} or more.`;
  if (!view.knows_truth) return head;
  const wrong = (verdicts) => verdicts.filter((verdict) => verdict === true).length;
  const chosen = view.wrong.slice(0, cut);
  const known = chosen.filter((verdict) => verdict != null).length;
  const [found, all] = [wrong(chosen), wrong(view.wrong)];
  const precision = known ? ` (precision ${(found / known).toFixed(2)})` : "";
  const recall = all ? ` ${found} of the ${all} wrong ones are found (recall ${(found / all).toFixed(2)}).` : "";
  return `${head} ${found} of ${known} with known truth are wrong${precision}.${recall}`;
}

// --- export and copy --------------------------------------------------------------------------------------------------

function csvField(value) {
  const text = value == null ? "" : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const WRITERS = {
  csv: ({ columns, rows }) => [columns, ...rows].map((row) => row.map(csvField).join(",")).join("\r\n") + "\r\n",
  json: ({ columns, rows }) =>
    JSON.stringify(rows.map((row) => Object.fromEntries(row.map((value, k) => [columns[k], value]))), null, 1),
};
const MIME = { csv: "text/csv;charset=utf-8", json: "application/json" };

/** The same names, numbered where one repeats: a feature may be called "score". */
function distinct(names) {
  return names.map((name, k) => {
    const before = names.slice(0, k).filter((other) => other === name).length;
    return before ? `${name} (${before + 1})` : name;
  });
}

function download({ name, columns, rows }, kind) {
  const file = `${name.replaceAll(/[^\p{L}\p{N}_-]+/gu, "-").slice(0, 60)}.${kind}`;
  const text = WRITERS[kind]({ columns: distinct(columns), rows });
  const address = URL.createObjectURL(new Blob([text], { type: MIME[kind] }));
  el("a", { href: address, download: file }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function copyButton(textOf) {
  const button = el("button", { type: "button", onclick: async () => {
    const isCopied = await copy(textOf());
    button.textContent = isCopied ? "Copied" : "Select and copy by hand";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  } }, "Copy");
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.body.appendChild(el("textarea", { class: "unseen" }));
    area.value = text;
    area.select();
    const isCopied = document.execCommand("copy"); // where a page from the disk has no clipboard of its own
    area.remove();
    return isCopied;
  }
}

// --- the page around the views ----------------------------------------------------------------------------------------

let current = null; // the view in the panel
let built = "";

const emptyView = (view) => ({ nodes: [el("p", { class: "empty" }, ...rich(view.empty))], update: () => {} });

function builderOf(view) {
  if (view.empty) return emptyView;
  return { queries: queriesView, labels: labelsView }[state.view] || blocksView;
}

function build() {
  const view = section().views[state.view];
  current = builderOf(view)(view);
  byId("panel").replaceChildren(...missingParts(view), ...current.nodes);
  byId("panel").setAttribute("aria-labelledby", `tab-${state.view}`);
  byId("measure").replaceChildren(...rich(section().banner));
  byId("missing").hidden = !section().missing.length;
  byId("missing").replaceChildren(el("strong", {}, "Not everything is here"),
    el("ul", {}, ...section().missing.map((text) => el("li", {}, ...rich(text)))));
  for (const tab of TABS) {
    const isCurrent = tab.dataset.view === state.view;
    tab.setAttribute("aria-selected", String(isCurrent));
    tab.tabIndex = isCurrent ? 0 : -1;
    tab.classList.toggle("nothing", Boolean(section().views[tab.dataset.view].empty));
    if (isCurrent) showTab(tab);
  }
  [...byId("cases").children].forEach((button, k) => button.setAttribute("aria-current", String(k === state.case - 1)));
}

/** On a phone the tabs are a strip that scrolls sideways; `scrollIntoView` would move the page as well. */
function showTab(tab) {
  const strip = byId("tabs"), [inner, outer] = [tab, strip].map((node) => node.getBoundingClientRect());
  strip.scrollLeft += inner.left + inner.width / 2 - outer.left - outer.width / 2;
}

function render() {
  const place = `${state.case} ${state.view}`;
  if (place !== built) build();
  built = place;
  current.update();
}

const openView = (view) => go({ ...FRESH_VIEW, view });

function openCase(k) {
  go({ ...DEFAULTS, view: state.view, case: String(k) });
}

function setUpCases() {
  if (page.cases.length < 2) return;
  byId("cases").replaceChildren(...page.cases.map((one, k) =>
    el("button", { type: "button", title: one.title, onclick: () => openCase(k + 1) }, bdi(one.title))));
}

function setUpTabs() {
  TABS.forEach((tab, k) => {
    tab.addEventListener("click", () => openView(tab.dataset.view));
    tab.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      const next = TABS[(k + by + TABS.length) % TABS.length];
      openView(next.dataset.view);
      next.focus();
    });
  });
}

// --- theme and keys ---------------------------------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];

/** The chosen theme, kept where the browser lets a page from the disk keep anything. */
function theme(chosen) {
  try {
    if (chosen) localStorage.setItem("whence-theme", chosen);
    else chosen = localStorage.getItem("whence-theme");
  } catch { /* not kept */ }
  chosen = THEMES.includes(chosen) ? chosen : "auto";
  document.documentElement.dataset.theme = chosen;
  byId("theme").textContent = `Theme: ${chosen}`;
}

function nextTheme() {
  theme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
}

const KEYS = {
  j: () => current.step && current.step(1),
  k: () => current.step && current.step(-1),
  "/": () => current.filter && current.filter.focus(),
  e: () => current.exported && download(current.exported(), "csv"),
  t: nextTheme,
  "?": () => byId("help").showModal(),
};
TABS.forEach((tab, k) => { KEYS[k + 1] = () => openView(tab.dataset.view); });

const isTyping = (target) => target.matches("input:not([type=checkbox], [type=range]), textarea, select");

function onKey(event) {
  if (event.key === "Escape" && !byId("help").open) document.activeElement.blur();
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open || isTyping(event.target)) return;
  const inList = event.target.matches("[role=listbox]") && { ArrowDown: "j", ArrowUp: "k" }[event.key];
  const action = Object.hasOwn(KEYS, inList || event.key) && KEYS[inList || event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

function start() {
  setUpCases();
  setUpTabs();
  theme();
  byId("theme").addEventListener("click", nextTheme);
  byId("help-button").addEventListener("click", KEYS["?"]);
  byId("skip").addEventListener("click", (event) => { event.preventDefault(); byId("panel").focus(); });
  byId("banner").open = !matchMedia("(max-width: 600px)").matches;
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", () => { state = readAddress(); render(); });
  state = readAddress();
  render();
  document.documentElement.dataset.ready = "true";
}

start();
