// Tables that can be sorted, filtered and exported.

/** The train examples or queries that a column is about; undefined where its cells are texts or numbers. */
function subjects(column) {
  return { example: section().examples, query: section().views.queries.queries }[column.kind];
}

function shownText(cell, column) {
  const about = subjects(column);
  return about ? about[cell.value].text : cell.text || "";
}

/** What a filter looks at. */
function filteredTexts(cell, column) {
  const about = subjects(column);
  return about ? wordsOf(about[cell.value]) : [cell.text || ""];
}

/** What a row is sorted by. */
function sortValue(cell, column) {
  if (column.kind === "interval") return cell.value[0];
  if (column.kind === "number") return cell.value;
  return shownText(cell, column);
}

/** The values an export writes for a cell; as many as `exportNames` has. */
function exportValues(cell, column) {
  const about = subjects(column);
  if (about) return [idOf(about[cell.value]), ...(haveTexts(about) ? [passageOf(about[cell.value])] : [])];
  if (column.kind === "interval") return cell.value;
  if (column.kind === "number") return [cell.value === undefined ? null : cell.value];
  return [cell.value ?? cell.text ?? ""];
}

function exportNames(column) {
  if (column.kind === "interval") return [column.name, `${column.name} low`, `${column.name} high`];
  return haveTexts(subjects(column) || []) ? [column.name, `${column.name} text`] : [column.name];
}

function cellContent(cell, column) {
  if (column.kind === "example") {
    const example = section().examples[cell.value];
    const text = example.passage === undefined ? "" : passage(passageOf(example), CELL, `train example ${example.text}`);
    return [picture(example.picture, altOf("train example", example), "thumb"), text, el("span", { class: "id" }, bdi(example.text))];
  }
  if (column.kind === "query") {
    const query = section().views.queries.queries[cell.value];
    const address = addressOf({ ...state, ...FRESH_VIEW, view: "queries", query: query.key });
    return [el("a", { href: address }, picture(query.picture, "", "thumb"), bdi(query.text)), ...glimpse(query)];
  }
  const text = cell.strong ? el("strong", {}, cell.text) : bdi(cell.text || "");
  return cell.quiet ? [text, " ", el("span", { class: "quiet interval" }, cell.quiet)] : [text];
}

const isLong = (table) => table.rows.length > LONG;

/** Rows that match the filter, in the order of `state.sort`, which is "table.column" with a minus where descending. */
function shownRows(table) {
  const kept = table.rows.filter((row) =>
    !isLong(table) || matches(row.flatMap((cell, k) => filteredTexts(cell, table.columns[k])), state.filter));
  const [, sign, name, k] = state.sort.match(/^(-?)(.*)\.(\d+)$/) || [];
  if (name !== table.name || !table.columns[k]) return kept;
  const direction = sign ? -1 : 1;
  return kept.sort((a, b) => {
    const [x, y] = [sortValue(a[k], table.columns[k]), sortValue(b[k], table.columns[k])];
    return x == null || y == null ? compare(x, y) : direction * compare(x, y);
  });
}

/** Rows about texts are cards, one below the other. */
function lookOf(table) {
  return table.columns.some((column) => column.kind === "example" && haveTexts(subjects(column))) ? "data gallery passages" : "data";
}

function tableNode(table, { rowClass = () => "", exported = () => exportedTable(table), size = PAGE, look = lookOf(table) } = {}) {
  const count = status();
  const body = el("tbody");
  const head = el("tr");
  let limit = table.rows.length <= size + SLACK ? table.rows.length : size;
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
