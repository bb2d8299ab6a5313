// What a column asks for, as Python, as a command, and as the body of a request to /v1/completions.

import { $, el } from "./dom.js";

/**
 * @param job { model, prompt, branchText, ids, method, methodSettings, settings, seed, stopAtEnd }: `model` and `method`
 *   are what the server says of them; `ids` are the token ids of a branch after the prompt, or null
 */
export function asPython(job) {
  const settings = Object.entries({ ...job.method.defaults, ...job.methodSettings });
  const sampler = `minigpt_jax.${job.method.class}(${settings.map(([name, value]) => `${name}=${python(value)}`).join(", ")})`;
  const { stop, ...others } = job.settings;
  const stops = [...(stop ?? []).map(python), ...(job.stopAtEnd ? ["*lm.end_ids"] : [])];
  const given = [
    `sampler=${sampler}`,
    ...Object.entries(others).map(([name, value]) => `${name}=${python(value)}`),
    ...(stops.length ? [`stop=[${stops.join(", ")}]`] : []),
    `seed=${job.seed}`,
  ];
  const step = job.model.step === null ? "" : `, step=${job.model.step}`;
  const prompt = job.ids
    ? `[*lm.tokenizer.encode_batch([${python(job.prompt)}])[0], ${job.ids.join(", ")}]`
    : python(job.prompt);
  return [
    "import minigpt_jax",
    "",
    `lm = minigpt_jax.load(${python(job.model.path)}${step})`,
    "[generation] = lm.generate(",
    `    [${prompt}],`,
    ...given.map((one) => `    ${one},`),
    ")",
    "print(generation.full_text)",
    "",
  ].join("\n");
}

export function asCommand(job) {
  const words = ["./launch.sh", "sample", job.model.path];
  if (job.model.step !== null) words.push("--step", String(job.model.step));
  words.push(`--prompt=${job.ids ? job.branchText : job.prompt}`);
  const settings = Object.entries(job.methodSettings);
  words.push("--sampler", [job.method.name, ...settings.map(([name, value]) => `${name}=${value}`)].join(":"));
  const { stop, ...others } = job.settings;
  for (const [name, value] of Object.entries(others)) words.push(`--${name.replace(/_/g, "-")}`, String(value));
  for (const text of stop ?? []) words.push(`--stop=${text}`);
  if (job.stopAtEnd) words.push("--stop-at-end");
  words.push("--seed", String(job.seed));
  return `${words.map(quoted).join(" ")}\n`;
}

export function asJson(job) {
  const { max_new_tokens: most, stop, ...others } = job.settings;
  const body = {
    model: job.model.name,
    prompt: job.ids ? [...job.promptIds, ...job.ids] : job.prompt,
    sampler: job.method.name,
    ...job.methodSettings,
    ...(most === undefined ? {} : { max_tokens: most }),
    ...others,
    seed: job.seed,
  };
  if (stop) body.stop = stop;
  if (job.stopAtEnd) body.stop_token_ids = job.model.end_ids;
  return `${JSON.stringify(body, null, 2)}\n`;
}

/** A word as a POSIX shell reads it. */
export function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replace(/'/g, "'\\''")}'`;
}

/** A value as a Python literal. */
function python(value) {
  if (typeof value === "boolean") return value ? "True" : "False";
  if (value === null) return "None";
  return Array.isArray(value) ? `[${value.map(python).join(", ")}]` : JSON.stringify(value);
}

/** Offers a text for copying, in a dialog if the browser does not let the page write to the clipboard. */
export async function offer(title, text) {
  const dialog = $("copy");
  const area = el("textarea", { value: text, readOnly: true, rows: Math.min(16, text.split("\n").length + 1) });
  area.spellcheck = false;
  const said = el("span", { className: "note", role: "status" });
  const copy = el("button", { type: "button", className: "primary" }, "Copy");
  copy.addEventListener("click", async () => {
    area.select();
    try {
      await navigator.clipboard.writeText(text);
      said.textContent = "Copied.";
    } catch {
      said.textContent = "The browser does not let the page copy; press Control and C.";
    }
  });
  const close = el("button", { type: "button" }, "Close");
  close.addEventListener("click", () => dialog.close());
  dialog.replaceChildren(el("h2", {}, title), area, el("div", { className: "bar" }, copy, close, said));
  dialog.showModal();
  area.focus();
  area.select();
}
