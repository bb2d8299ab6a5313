// Requests to the server that the page came from.

/** A mistake that the server tells of. `field` is the setting that it is about, if it is about one. */
export class Refused extends Error {
  constructor(message, field, status) {
    super(message);
    this.field = field;
    this.status = status;
  }
}

const KEY = "minigpt-api-key";
export const setKey = (key) => sessionStorage.setItem(KEY, key);

export async function get(path) {
  return (await request(path, {})).json();
}

export async function post(path, body, signal) {
  return (await request(path, { method: "POST", body: JSON.stringify(body), signal })).json();
}

/** Calls `take` with each JSON line of the answer as it arrives. */
export async function stream(path, body, signal, take) {
  const response = await request(path, { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) take(JSON.parse(line));
  }
}

async function request(path, options) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  let told = {};
  try {
    told = (await response.json()).error ?? {};
  } catch {
    // an answer that is no JSON has nothing to tell
  }
  throw new Refused(told.message ?? `The server answers with status ${response.status}.`, told.field, response.status);
}
