// The view of the labels.

function labelsView(view) {
  const { table } = view;
  const cut = () => Math.min(Math.max(Math.round(Number(state.cut)) || view.start, 1), table.rows.length);
  const rank = (row) => row[0].value;
  const selected = () => shownRows(table).filter((row) => rank(row) <= cut());
  const exported = () => ({ ...exportedTable(table, selected()), name: "suspicious labels" });
  const { picture: pictured, passage: written } = section().examples[table.rows[0][1].value];
  const rows = tableNode(table, {
    rowClass: (row) => (rank(row) <= cut() ? "selected" : "unselected"),
    exported, size: 60, look: pictured !== undefined && written === undefined ? "data gallery" : lookOf(table),
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
