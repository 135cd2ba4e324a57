// The view of the queries.

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
  const found = view.queries.filter((query) => matches(wordsOf(query), state.find));
  return found.sort(ORDERS[state.order] || ORDERS.order);
}

function selectedQuery(view, listed) {
  return view.queries.find((query) => query.key === state.query) || listed[0] || view.queries[0];
}

/** The entries of a side that are shown, in their order; `k` is their place in the feature rows. */
function shownEntries(side) {
  const all = side.entries.map((entry, k) => ({ entry, k, example: section().examples[entry.train] }));
  const kept = all.filter(({ entry, example }) =>
    matches(wordsOf(example), state.filter) && (!state.other || entry.other_label));
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
  const [name, label] = [bdi(query.text), labelOf(query.label)];
  const parts = query.passage === undefined
    ? [el("span", { class: "id" }, name), el("span", { class: "quiet" }, ...label)]
    : [...glimpse(query), el("span", { class: "quiet" }, name, ...(label.length ? [", ", ...label] : []))];
  const lines = el("span", { class: "lines" }, ...parts);
  return [picture(query.picture, "", "thumb"), lines, el("span", { class: "quiet strongest" }, query.strongest_text)];
}

const measured = (query) => `Measure: ${query.measure}. Strongest score ${query.strongest_text}.`;

function queryHead(query, listed, words = measured(query)) {
  const at = listed.indexOf(query);
  const step = (by, text, label) => el("button", {
    type: "button", "aria-label": label, title: label, disabled: !listed[at + by], onclick: () => current.step(by),
  }, text);
  const facts = el("p", { class: "quiet" }, ...rich(words));
  const name = el("h2", {}, "Query ", bdi(query.text));
  const label = query.label ? [el("p", { class: "label" }, `${section().label_name} `, el("strong", {}, bdi(query.label)))] : [];
  return el("header", { class: "query-head" }, picture(query.picture, altOf("query", query), "picture large"),
    el("div", { class: "about" }, name, ...label, facts),
    el("div", { class: "steps" }, step(-1, "‹", "Previous query (k)"), step(1, "›", "Next query (j)")),
    query.passage === undefined ? "" : passage(passageOf(query), HEAD, `query ${query.text}`));
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

function sideNode(query, side, shown = shownEntries(side), words = `${side.share} of the total`) {
  const heading = el("h3", {}, el("span", { class: `swatch ${side.sign}`, "aria-hidden": "true" }), side.name,
    el("span", { class: "quiet" }, ` ${words}`));
  let content;
  if (!side.entries.length) content = el("p", { class: "quiet" }, `No train example ${side.sign} this query.`);
  else if (!shown.length) content = el("p", { class: "quiet" }, "None matches the filter.");
  else if (shown.some(({ example }) => example.passage !== undefined)) content = cards(shown, side);
  else if (shown.some(({ example }) => example.picture !== undefined)) content = tiles(shown, side);
  else content = featureTable(query, side, shown);
  return el("section", { class: "side", "data-sign": side.sign }, heading, content);
}

function entryFacts({ entry, example }, side) {
  return [scoreChip(entry, side.sign), el("span", { class: "label" }, ...labelOf(example.label), ...differs(entry)),
    el("span", { class: "quiet" }, `#${entry.rank}, `, ...placeOf(entry)),
    el("span", { class: "quiet id", title: example.text }, bdi(example.text))];
}

/** The share of an entry, or where it stands in the other list. */
function placeOf(entry) {
  return entry.move ? [el("span", { class: `move ${entry.move.mark}` }, entry.move.text)] : [entry.share_text];
}

function tiles(shown, side) {
  const tile = (item) => el("li", {}, picture(item.example.picture, altOf("train example", item.example)), ...entryFacts(item, side));
  return el("ol", { class: "tiles" }, ...shown.map(tile));
}

/** Texts below each other, with their pictures where they are captions. */
function cards(shown, side) {
  const card = (item) => el("li", {}, picture(item.example.picture, altOf("train example", item.example)),
    el("div", { class: "facts" }, ...entryFacts(item, side)),
    passage(passageOf(item.example), CARD, `train example ${item.example.text}`));
  return el("ol", { class: "cards" }, ...shown.map(card));
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
    line(shown[0].entry.move ? "other list" : "share", "", ({ entry }) => placeOf(entry)),
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
  const [ofQuery, ofExamples] = [view.queries, section().examples].map(haveTexts);
  const columns = ["query", "side", "rank", "train", section().label_name, "score", "share", ...names,
    ...(ofQuery ? ["query text"] : []), ...(ofExamples ? ["text"] : [])];
  const rows = query.sides.flatMap((side) => shownEntries(side).map(({ entry, example, k }) => [
    idOf(query), side.sign, entry.rank, idOf(example), example.label || "", entry.score, entry.share,
    ...(side.features || []).map((feature) => feature.values[k + 1]),
    ...(ofQuery ? [passageOf(query)] : []), ...(ofExamples ? [passageOf(example)] : []),
  ]));
  return { name: `query ${query.text}`, columns, rows };
}
