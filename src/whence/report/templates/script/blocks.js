// Views made of blocks.

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
  let lists = null; // of queries that can be ranked anew
  for (const block of view.blocks) {
    if (block.kind === "reranking") {
      lists = rerankingView(block);
      nodes.push(...lists.nodes);
    } else if (block.kind !== "table") nodes.push(...BLOCKS[block.kind](block));
    else {
      tables.push(tableNode(block));
      const isBeside = (nodes.at(-1) || {}).className === "chart"; // a chart and its numbers share a line where both fit
      nodes.push(isBeside ? el("div", { class: "pair" }, nodes.pop(), tables.at(-1).node) : tables.at(-1).node);
    }
  }
  const filter = search("filter", "Filter the rows", type);
  const long = tables.find((table) => table.isLong);
  if (long) long.bar.prepend(filter.node);
  const update = () => { filter.sync(); [...tables, ...(lists ? [lists] : [])].forEach((part) => part.update()); };
  return {
    nodes, update, step: lists && lists.step, exported: tables[0] && tables[0].exported, filter: long && filter.node,
  };
}
