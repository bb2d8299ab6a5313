// The state of the page, which the address holds after its #, so that a link and a reload restore all of it.

export const MOST_COLUMNS = 4;

/** What the page shows at first. */
export function initial(offer) {
  const columns = ["greedy", "top_k", "top_p", "typical"];
  return {
    model: offer.models[0].name,
    prompt: "",
    seed: 0,
    settings: { max_new_tokens: 60 },
    stopAtEnd: true,
    columns: columns.map((method) => ({ method, settings: {}, trail: [] })),
    tab: "sample",
    tree: null, // the index of the column whose tree is shown
    sampled: false, // whether there is text, which is then sampled again: the same seed gives the same text
  };
}

export function encode(state) {
  const bytes = new TextEncoder().encode(JSON.stringify(state));
  const text = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return text.replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

/** The state in a link; what is missing or not of its type is as at first. A link may come from anybody. */
export function decode(text, offer) {
  const state = initial(offer);
  let given;
  try {
    const bytes = Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
    given = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return state;
  }
  if (given === null || typeof given !== "object") return state;
  const take = (name, kind) => {
    if (typeof given[name] === kind) state[name] = given[name];
  };
  take("prompt", "string");
  take("stopAtEnd", "boolean");
  take("sampled", "boolean");
  if (offer.models.some((model) => model.name === given.model)) state.model = given.model;
  if (Number.isSafeInteger(given.seed) && given.seed >= 0) state.seed = given.seed;
  if (given.tab === "report") state.tab = "report";
  state.settings = settingsIn(given.settings, offer.settings);
  if (Array.isArray(given.columns)) {
    const columns = given.columns.flatMap((column) => columnIn(column, offer));
    if (columns.length) state.columns = columns.slice(0, MOST_COLUMNS);
  }
  if (Number.isInteger(given.tree) && given.tree >= 0 && given.tree < state.columns.length) state.tree = given.tree;
  return state;
}

function columnIn(given, offer) {
  const method = offer.methods.find((one) => one.name === given?.method);
  if (!method) return [];
  const trail = Array.isArray(given.trail) ? given.trail.flatMap(branchIn) : [];
  return [{ method: method.name, settings: settingsIn(given.settings, method.settings), trail }];
}

function branchIn(given) {
  const ids = given?.ids;
  if (!Array.isArray(ids) || !ids.length || !ids.every((id) => Number.isInteger(id) && id >= 0)) return [];
  return [{ ids, was: String(given.was ?? ""), now: String(given.now ?? "") }];
}

function settingsIn(given, described) {
  const found = {};
  for (const { name, type } of described) {
    const value = given?.[name];
    const fits = type === "texts" ? Array.isArray(value) && value.every((one) => typeof one === "string")
      : type === "boolean" ? typeof value === "boolean"
      : type === "text" ? typeof value === "string"
      : Number.isFinite(value);
    if (fits) found[name] = value;
  }
  return found;
}
