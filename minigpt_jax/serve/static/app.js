// The page: the prompt, what all columns share, the columns, the tabs and the link.

import { get, post, setKey } from "./api.js";
import { Column } from "./columns.js";
import { $, el, number, tell } from "./dom.js";
import { fields } from "./fields.js";
import { Panel } from "./panel.js";
import { MOST_COLUMNS, decode, encode, initial } from "./state.js";
import { MOST_BITS, shade } from "./tokens.js";
import { drawTree } from "./tree.js";

const page = {
  offer: null,
  state: null,
  columns: [],
  panel: new Panel(),
  changed: () => writeLink(),
  removable: () => page.state.columns.length > 1,
  remove(column) {
    column.cancel();
    page.state.columns.splice(page.columns.indexOf(column), 1);
    closeTree();
    build();
    page.changed();
  },
  sampleOne: (column) => sample([column]),
  showTree: (column) => showTree(column),
  /** The checkpoint that a text came from, which may be newer than the page. */
  sawStep(step) {
    page.offer.models.find((one) => one.name === page.state.model).step = step;
    showFacts();
  },
};
let shared = null;
let written = "";

async function start() {
  tell($("failure"), null);
  try {
    page.offer = await get("/api/models");
  } catch (error) {
    tell($("failure"), error.message);
    $("key-form").hidden = error.status !== 401;
    return;
  }
  $("key-form").hidden = true;
  for (const method of page.offer.methods) {
    method.defaults = Object.fromEntries(
      method.settings.filter((one) => one.default !== null).map((one) => [one.name, one.default]));
  }
  $("model").replaceChildren(...page.offer.models.map(({ name }) => el("option", { value: name }, name)));
  $("model").disabled = page.offer.models.length === 1;
  read();
}

/** Takes the state from the address, and shows it. */
function read() {
  const text = location.hash.slice(1);
  page.state = text ? decode(text, page.offer) : initial(page.offer);
  written = text;
  $("prompt").value = page.state.prompt;
  $("seed").value = page.state.seed;
  $("model").value = page.state.model;
  build();
  showTab(page.state.tab);
  if (page.state.sampled) {
    const { tree } = page.state;
    sample(page.columns);
    if (tree !== null) showTree(page.columns[tree]);
  }
}

function build() {
  page.panel.close();
  page.columns.forEach((column) => column.cancel());
  const old = new Map(page.columns.map((column) => [column.state, column]));
  page.columns = page.state.columns.map((state) => old.get(state) ?? new Column(page, state));
  $("columns").replaceChildren(...page.columns.map((column) => column.element));
  page.columns.forEach((column) => (column.element.querySelector(".close").hidden = !page.removable()));
  $("add").hidden = page.columns.length >= MOST_COLUMNS;
  const end = { name: "stop_at_end", type: "boolean", default: true, help: "End a text where the model ends its document." };
  const values = { ...page.state.settings, stop_at_end: page.state.stopAtEnd };
  shared = fields([...page.offer.settings, end], values, () => {
    const { stop_at_end: stopAtEnd, ...settings } = values;
    Object.assign(page.state, { stopAtEnd, settings });
    writeLink();
  });
  $("shared").replaceChildren(...shared.elements);
  showFacts();
}

function showFacts() {
  const model = page.offer.models.find((one) => one.name === page.state.model);
  $("facts").textContent = `${model.step === null ? "" : `step ${number(model.step)} · `}`
    + `${number(model.vocabulary)} tokens · window of ${number(model.window)}`;
}

async function sample(columns) {
  page.panel.close();
  tell($("error-prompt"), null);
  shared.clear();
  if (page.state.tree !== null && columns.includes(page.columns[page.state.tree])) closeTree();
  page.state.sampled = true;
  writeLink();
  $("busy").hidden = false;
  $("stop").disabled = false;
  $("said").textContent = "";
  const refusals = await Promise.all(columns.map((column) => column.sample()));
  if (page.columns.some((column) => column.stopper)) return; // others have been started meanwhile
  $("columns").dataset.rounds = Number($("columns").dataset.rounds ?? 0) + 1; // for who waits for the texts, as tests do
  $("busy").hidden = true;
  $("stop").disabled = true;
  const refusal = refusals.find(Boolean);
  if (!refusal) {
    $("said").textContent = "";
  } else if (refusal.status === 401) {
    $("key-form").hidden = false;
  } else if (shared.show(refusal.field, refusal.message)) {
    $("more").open = true;
  } else {
    tell($("error-prompt"), refusal.message);
  }
}

function stop() {
  page.columns.forEach((column) => column.cancel());
  $("busy").hidden = true;
  $("stop").disabled = true;
}

async function showTree(column) {
  page.state.tree = page.columns.indexOf(column);
  writeLink();
  const area = $("tree");
  area.hidden = false;
  area.replaceChildren(el("p", { className: "note" }, "Searching …"));
  try {
    const found = await post("/api/beam", column.sampled ?? column.body());
    if (page.columns[page.state.tree] === column) drawTree(area, found, closeTree);
  } catch (error) {
    area.replaceChildren(el("p", { className: "error" }, error.message));
  }
}

function closeTree() {
  page.state.tree = null;
  $("tree").hidden = true;
  writeLink();
}

function showTab(name) {
  page.state.tab = name;
  for (const one of ["sample", "report"]) {
    const chosen = one === name;
    $(`tab-${one}`).setAttribute("aria-selected", String(chosen));
    $(`tab-${one}`).tabIndex = chosen ? 0 : -1;
    $(`view-${one}`).hidden = !chosen;
  }
  if (name === "report") {
    showReport();
  }
  writeLink();
}

/** Shows the report of the run, made anew each time: the run may be in training. */
async function showReport() {
  const { model } = page.state;
  const area = $("view-report");
  area.replaceChildren(el("p", { className: "note" }, "Drawing …"));
  try {
    const { address } = await post("/api/report", { model });
    if (page.state.model === model) area.replaceChildren(el("iframe", { src: address, title: `The report of ${model}` }));
  } catch (error) {
    area.replaceChildren(el("p", { className: "error" }, error.message));
  }
}

function writeLink() {
  page.columns.forEach((column) => column.markStale());
  const text = encode(page.state);
  if (text === written) return;
  written = text;
  history.replaceState(null, "", `#${text}`);
}

function listen() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    sample(page.columns);
  });
  $("prompt").addEventListener("input", () => {
    page.state.prompt = $("prompt").value;
    forgetBranches();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
  });
  $("seed").addEventListener("input", () => {
    const seed = Number($("seed").value);
    if (Number.isSafeInteger(seed) && seed >= 0) page.state.seed = seed;
    writeLink();
  });
  $("again").addEventListener("click", () => {
    page.state.seed += 1;
    $("seed").value = page.state.seed;
    sample(page.columns);
  });
  $("stop").addEventListener("click", stop);
  $("add").addEventListener("click", () => {
    page.state.columns.push({ method: page.offer.methods[0].name, settings: {}, trail: [] });
    build();
    writeLink();
    page.columns.at(-1).element.querySelector("select").focus();
  });
  $("link").addEventListener("click", async () => {
    writeLink();
    try {
      await navigator.clipboard.writeText(location.href);
      $("said").textContent = "The link is copied. It holds all of the page.";
    } catch {
      $("said").textContent = "The browser does not let the page copy; take the link from its address bar.";
    }
  });
  $("model").addEventListener("change", () => {
    page.state.model = $("model").value;
    forgetBranches();
    page.columns.forEach((column) => column.reset());
    build();
    showTab(page.state.tab);
  });
  const tabs = ["sample", "report"];
  for (const name of tabs) {
    $(`tab-${name}`).addEventListener("click", () => showTab(name));
    $(`tab-${name}`).addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const other = tabs.find((one) => one !== name);
      showTab(other);
      $(`tab-${other}`).focus();
    });
  }
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setKey($("key").value);
    start();
  });
  addEventListener("hashchange", () => location.hash.slice(1) !== written && page.offer && read());
  const scale = $("legend").querySelector(".scale");
  for (let value = 0; value <= MOST_BITS; value += 3) {
    const step = el("span", { className: "token" }, value === MOST_BITS ? `${value}+ bits` : String(value));
    shade(step, value);
    scale.append(step);
  }
}

/** A branch continues a prompt and a model; another of either has none. */
function forgetBranches() {
  for (const column of page.columns) {
    column.state.trail = [];
    column.showTrail();
  }
  writeLink();
}

listen();
start();
