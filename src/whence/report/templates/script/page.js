// The page around the views; theme and keys.

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
