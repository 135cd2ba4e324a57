"use strict";
// Places, filters, sorts and exports what Python decided. Whatever comes from data reaches the page as text only.

const page = JSON.parse(document.getElementById("data").textContent);
const PAGE = 15; // rows of a table before "show more",
const SLACK = 5; // which is not worth it for so few
const LONG = 12; // more rows than these can be filtered
const CARD = 280; // characters of a passage before "show all": in a card,
const HEAD = 600; // of the query,
const CELL = 200; // in a table and in the list of queries
const LINES = 8; // the same, whatever its characters
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
  by: "", side: "supports",
};
const FRESH_VIEW = { filter: "", sort: "", other: "" }; // what a change of view forgets
let state = { ...DEFAULTS };

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const read = Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, given.get(name) ?? DEFAULTS[name]]));
  if (!page.cases[read.case - 1]) read.case = DEFAULTS.case;
  if (!TABS.some((tab) => tab.dataset.view === given.get("view"))) read.view = firstView(page.cases[read.case - 1]);
  return read;
}

/** The first view of a case that has something to show. */
function firstView({ views }) {
  const names = TABS.map((tab) => tab.dataset.view);
  return names.find((name) => !views[name].empty) ?? DEFAULTS.view;
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
