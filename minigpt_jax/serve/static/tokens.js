// A text as its tokens: shaded by the model's surprise, to be pointed at, tapped, or reached by the arrow keys.

import { el, number, percent } from "./dom.js";

export const MOST_BITS = 12;
export const bits = (logprob) => -logprob / Math.LN2;

/** Shades an element by a surprise in bits. */
export function shade(element, value) {
  element.style.setProperty("--surprise", Math.min(Math.max(value / MOST_BITS, 0), 1).toFixed(3));
}

export class Tokens {
  /**
   * @param label what the text is, for those who hear it
   * @param listener { point(at, element, pinned), leave() }: a token is pointed at, or no longer
   */
  constructor(label, listener) {
    this.promptIds = [];
    this.ids = [];
    this.pieces = [];
    this.logprobs = [];
    this.spans = [];
    this.gaps = []; // the spaces before the tokens, which stay without a shade
    this.listener = listener;
    this.focused = 0;
    this.prompt = el("span", { className: "prompt" });
    this.body = el("span", { role: "group", aria: { label } });
    this.element = el("div", { className: "text" }, this.prompt, this.body);
    this.body.addEventListener("pointerover", (event) => this.hovered(event));
    this.body.addEventListener("pointerout", (event) => event.pointerType === "mouse" && listener.leave());
    this.body.addEventListener("click", (event) => this.chosen(event.target));
    this.body.addEventListener("focusin", (event) => this.focusedOn(event.target));
    this.body.addEventListener("keydown", (event) => this.key(event));
  }

  clear() {
    this.prompt.textContent = "";
    this.update({ from: 0, tokens: [], pieces: [], logprobs: [] });
    this.focused = 0;
  }

  /** Takes the tokens from number `from` on. The first `branch` ones are those that the user has chosen. */
  update({ prompt_text, prompt_ids, from, tokens, pieces, logprobs }, branch = 0) {
    if (prompt_text !== undefined) [this.prompt.textContent, this.promptIds] = [prompt_text, prompt_ids];
    for (const list of [this.ids, this.pieces, this.logprobs]) list.length = from;
    for (const node of [...this.spans.splice(from), ...this.gaps.splice(from)]) node.remove();
    tokens.forEach((id, i) => {
      this.ids.push(id);
      this.pieces.push(pieces[i]);
      this.logprobs.push(logprobs?.[i] ?? null);
      const at = from + i;
      const gap = document.createTextNode(/^\s+(?=\S)/.exec(pieces[i])?.[0] ?? "");
      const span = el("span", {
        className: at === branch - 1 ? "token turn" : at < branch ? "token given" : "token",
        role: "button",
        tabIndex: at === this.focused ? 0 : -1,
        data: { at },
        aria: { haspopup: "dialog" },
      }, pieces[i].slice(gap.length) || "∅");
      if (!pieces[i]) span.classList.add("silent");
      this.spans.push(span);
      this.gaps.push(gap);
      this.describe(at);
      this.body.append(gap, span);
    });
    if (this.focused >= this.spans.length) this.focused = 0;
    if (this.spans.length) this.spans[this.focused].tabIndex = 0;
  }

  /** Takes the log-probabilities of the first tokens, which were not known before. */
  learn(logprobs) {
    logprobs.forEach((logprob, at) => {
      this.logprobs[at] = logprob;
      this.describe(at);
    });
  }

  describe(at) {
    const logprob = this.logprobs[at];
    if (logprob === null) return;
    shade(this.spans[at], bits(logprob));
    this.spans[at].setAttribute("aria-description", `${percent(Math.exp(logprob))}, ${number(bits(logprob), 1)} bits`);
  }

  /** The mean surprise in bits, or null. */
  meanBits() {
    const known = this.logprobs.filter((one) => one !== null);
    return known.length ? known.reduce((sum, one) => sum + bits(one), 0) / known.length : null;
  }

  hovered(event) {
    const span = event.target.closest(".token");
    if (span && event.pointerType === "mouse") this.listener.point(Number(span.dataset.at), span, false);
  }

  chosen(target) {
    const span = target.closest(".token");
    if (!span) return;
    this.moveTo(Number(span.dataset.at));
    this.listener.point(Number(span.dataset.at), span, true);
  }

  focusedOn(target) {
    const span = target.closest(".token");
    if (span?.matches(":focus-visible")) this.listener.point(Number(span.dataset.at), span, false);
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) this.moveTo(this.focused + step);
    else if (event.key === "Home") this.moveTo(0);
    else if (event.key === "End") this.moveTo(this.spans.length - 1);
    else if (event.key === "ArrowDown") this.moveTo(this.inLine(1));
    else if (event.key === "ArrowUp") this.moveTo(this.inLine(-1));
    else if (event.key === "Enter" || event.key === " ") this.chosen(event.target);
    else return;
    event.preventDefault();
  }

  moveTo(at) {
    if (at < 0 || at >= this.spans.length) return;
    this.spans[this.focused].tabIndex = -1;
    this.focused = at;
    this.spans[at].tabIndex = 0;
    this.spans[at].focus();
  }

  /** The nearest token of the next line (1) or the line before (-1). */
  inLine(direction) {
    const box = (span) => span.getClientRects()[span.getClientRects().length - 1] ?? span.getBoundingClientRect();
    const here = box(this.spans[this.focused]);
    let best = this.focused;
    let least = Infinity;
    for (let at = this.focused + direction; at >= 0 && at < this.spans.length; at += direction) {
      const there = box(this.spans[at]);
      const lines = Math.round(((there.top - here.top) / here.height) * direction);
      if (lines < 1) continue;
      const distance = lines * 10000 + Math.abs(there.left - here.left);
      if (distance < least) [best, least] = [at, distance];
      else if (lines > 1) break;
    }
    return best;
  }
}
