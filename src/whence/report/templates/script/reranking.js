// The list of a query by uniform weights beside that by other weights, or by the groups that a reader picks.

const NAMED = 3; // groups that are called by name

const numbersOf = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

/** A number with three digits, as Python writes it. */
function figure(value) {
  const size = Math.abs(value);
  const sign = value > 0 ? "+" : value < 0 ? "−" : "";
  if (Number.isInteger(size) && size < 1e6) return `${sign}${size}`;
  if (size >= 1e-3 && size < 1e6) return sign + size.toFixed(Math.max(0, 2 - Math.floor(Math.log10(size))));
  return sign + size.toExponential(2).replace("e-", "e−").replace("e+", "e");
}

/** What `state.by` asks for: a weighting ("w1"), or groups alone ("g0.3"). */
function chosenWeights(block) {
  const groups = state.by.startsWith("g") ? state.by.slice(1).split(".").map(Number) : [];
  const picked = groups.filter((k) => Number.isInteger(k) && k in block.groups && state.by !== "g");
  if (picked.length || !block.weightings.length) {
    const all = picked.length ? picked : block.groups.map((_, k) => k);
    return { picked: all, name: nameOf(block, all), values: block.groups.map((_, k) => Number(all.includes(k))) };
  }
  const at = Number(state.by.slice(1) || block.weightings.length - 1);
  const { name, values } = block.weightings[at] || block.weightings.at(-1);
  return { picked: [], name: `\u2068${name}\u2069 weights`, values };
}

function nameOf(block, picked) {
  if (picked.length === block.groups.length) return "all groups alike";
  if (picked.length > NAMED) return `${picked.length} groups together`;
  return picked.map((k) => `\u2068${block.groups[k]}\u2069`).join(" and ");
}

/** Scores of the examples of a query under weights of the groups; `bound` is what no other example exceeds. */
function rankedBy(query, weights, sign) {
  const [values, ends] = [query.values, sign === "supports" ? query.above : query.below].map(numbersOf);
  const m = weights.length;
  const dot = (from) => weights.reduce((sum, w, k) => (w ? sum + w * from(k) : sum), 0);
  const scores = query.examples.map((_, i) => dot((k) => values[i * m + k]));
  const way = sign === "supports" ? 1 : -1;
  const order = [...scores.keys()].filter((i) => way * scores[i] > 0).sort((a, b) => way * (scores[b] - scores[a]));
  const bound = way * dot((k) => ends[k]);
  const certain = order.filter((i) => way * scores[i] >= bound).length;
  return { scores, order, certain, ranks: new Map(order.map((i, rank) => [i, rank + 1])) };
}

function moveOf(rank, other, k, isAfter) {
  if (!other || other > k) {
    return isAfter ? { text: `new, was below ${k}`, mark: "new" } : { text: `leaves the first ${k}`, mark: "lower" };
  }
  if (other === rank) return { text: "stays", mark: "same" };
  const rises = isAfter ? other > rank : other < rank;
  return { text: `${rises ? "▲" : "▼"} ${isAfter ? "was" : "now"} #${other}`, mark: rises ? "higher" : "lower" };
}

/** The first k of a list as the entries of a side, with their places in the other list. */
function entriesOf(query, mine, other, k, isAfter) {
  const strongest = Math.max(...mine.scores.map(Math.abs));
  return mine.order.slice(0, k).map((i, place) => {
    const [score, example] = [mine.scores[i], section().examples[query.examples[i]]];
    const isOther = section().label_name === "label" && query.label && example.label && query.label !== example.label;
    const entry = {
      train: query.examples[i], rank: place + 1, score, score_text: figure(score), other_label: Boolean(isOther),
      strength: Math.round((100 * Math.abs(score)) / strongest), move: moveOf(place + 1, other.ranks.get(i), k, isAfter),
    };
    return { entry, example, k: i };
  });
}

/** Both lists of a query; `certain` is how many ranks of the second no example outside the page can change. */
function bothLists(block, query) {
  const chosen = chosenWeights(block);
  const before = rankedBy(query, block.groups.map(() => 1), state.side);
  const after = rankedBy(query, chosen.values, state.side);
  const isExact = !chosen.picked.length || chosen.picked.length === block.groups.length;
  return {
    chosen, certain: isExact ? block.k : after.certain,
    before: entriesOf(query, before, after, block.k, false), after: entriesOf(query, after, before, block.k, true),
  };
}

function rerankingView(block) {
  const queryOf = () => block.queries.find((query) => query.key === state.query) || block.queries[0];
  const queries = choice("query", "Query", block.queries.map((query) => [query.key, query.text]));
  const side = choice("side", "List", [["supports", "supporters"], ["opposes", "opposers"]]);
  const weightings = block.weightings.map(({ name }, k) => [`w${k}`, `${name} weights`]);
  const by = choice("by", "Compare uniform weights with", [...weightings, ["groups", "groups picked below"]]);
  const picks = groupPicks(block);
  const said = status();
  const detail = el("div", { class: "detail", "data-lists": block.method }, said);
  const exported = () => exportedLists(block, queryOf());
  const compared = weightings.length ? [by.node] : [];
  const controls = el("div", { class: "controls lists" }, queries.node, side.node, ...compared, exportButtons(exported));
  const update = () => {
    const query = queryOf();
    const lists = bothLists(block, query);
    queries.sync();
    side.sync();
    syncBy(by.node.querySelector("select"), block, lists.chosen);
    picks.sync(lists.chosen);
    said.replaceChildren(...rich(listWords(lists, block.k)));
    const head = queryHead(query, block.queries, `Lists by ${lists.chosen.name} beside those by uniform weights.`);
    detail.replaceChildren(head, said,
      listNode(query, "Before", lists.before, "uniform weights"), listNode(query, "After", lists.after, lists.chosen.name));
  };
  const step = (move) => {
    const next = block.queries[block.queries.indexOf(queryOf()) + move];
    if (next) go({ query: next.key });
  };
  const nodes = [el("p", {}, ...rich(block.summary)), controls, picks.node, detail];
  return { nodes, update, step, exported };
}

/** "groups" stands for any choice of groups, and is nothing that one can go to without one. */
function syncBy(select, block, chosen) {
  select.querySelector("[value=groups]").disabled = !chosen.picked.length;
  select.value = chosen.picked.length ? "groups" : state.by || `w${block.weightings.length - 1}`;
  if (select.selectedIndex < 0) select.value = `w${block.weightings.length - 1}`;
}

function groupPicks(block) {
  const boxes = block.groups.map((name, k) => el("input", { type: "checkbox", value: k, onchange: () => pick() }));
  const pick = () => {
    const picked = boxes.filter((box) => box.checked).map((box) => box.value);
    type({ by: picked.length ? `g${picked.join(".")}` : "" });
  };
  const pickAll = (checked) => { boxes.forEach((box) => { box.checked = checked; }); pick(); };
  const all = (checked) => el("button", { type: "button", onclick: () => pickAll(checked) }, checked ? "all" : "none");
  const labels = boxes.map((box, k) => el("label", {}, box, bdi(block.groups[k])));
  const node = el("fieldset", { class: "picks" }, el("legend", {}, "Rank by these groups alone"),
    el("div", { class: "boxes" }, ...labels), el("div", { class: "both" }, all(true), all(false)));
  const sync = (chosen) => boxes.forEach((box, k) => { box.checked = chosen.picked.includes(k); });
  return { node, sync };
}

function listNode(query, name, entries, words) {
  const side = { sign: state.side, name, entries: entries.map(({ entry }) => entry), features: query.features };
  const node = sideNode(query, side, entries, "");
  node.querySelector("h3 .quiet").replaceChildren(" ", ...rich(`${noun()}s by ${words}`));
  node.dataset.list = name.toLowerCase();
  return node;
}

const noun = () => (state.side === "supports" ? "supporter" : "opposer");

function listWords({ after, certain, chosen }, k) {
  const fresh = after.filter(({ entry }) => entry.move.mark === "new").length;
  const moved = after.filter(({ entry }) => ["higher", "lower"].includes(entry.move.mark)).length;
  if (!after.length) return `No ${noun()} by ${chosen.name}.`;
  const are = fresh === 1 ? "is" : "are";
  const words = `Of ${plural(after.length, noun())} by ${chosen.name}, ${fresh} ${are} new and ${moved} moved.`;
  if (certain >= after.length) return words;
  const which = certain ? `Only the first ${plural(certain, "rank is", "ranks are")} certain` : "No rank is certain";
  return `${words} ${which}: a train example that is not in this page could stand before the others.`;
}

function exportedLists(block, query) {
  const { chosen, before, after } = bothLists(block, query);
  const plain = (text) => text.replaceAll(/[\u2068\u2069]/g, "");
  const columns = ["query", "weights", "side", "rank", "train", section().label_name, "score", "other list"];
  const rowsOf = (entries, name) => entries.map(({ entry, example }) =>
    [idOf(query), plain(name), state.side, entry.rank, idOf(example), example.label || "", entry.score, entry.move.text]);
  const rows = [...rowsOf(before, "uniform weights"), ...rowsOf(after, chosen.name)];
  return { name: `lists of query ${query.text}`, columns, rows };
}
