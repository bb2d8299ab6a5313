// The panel of what was possible at a token: the most probable tokens, what the method kept and cut, and the way there.

import { $, el, number, percent, visible } from "./dom.js";
import { bits } from "./tokens.js";

const OPEN_AFTER = 90; // milliseconds, so that the pointer can pass over a text
const CLOSE_AFTER = 250; // so that the pointer can move from the token into the panel

export class Panel {
  constructor() {
    this.element = $("panel");
    this.timer = null;
    this.pinned = false;
    this.returning = false;
    this.anchor = null;
    this.element.addEventListener("pointerenter", () => clearTimeout(this.timer));
    this.element.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.leave());
    this.element.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.close());
    document.addEventListener("pointerdown", (event) => {
      if (!this.element.contains(event.target) && !event.target.closest?.(".token")) this.close();
    });
    let width = innerWidth; // the height of a phone's window changes as its bars come and go
    addEventListener("resize", () => {
      if (innerWidth !== width) this.close();
      width = innerWidth;
    });
  }

  /**
   * Opens the panel at a token, after a moment unless it is pinned.
   * @param look a function that gives { method, position, vocabulary, branch(candidate) }, as a promise
   */
  point(anchor, pinned, look) {
    clearTimeout(this.timer);
    if (this.returning || (this.pinned && !pinned)) return;
    this.timer = setTimeout(() => this.open(anchor, pinned, look), pinned ? 0 : OPEN_AFTER);
  }

  leave() {
    clearTimeout(this.timer);
    if (!this.pinned) this.timer = setTimeout(() => this.close(), CLOSE_AFTER);
  }

  close() {
    clearTimeout(this.timer);
    const inside = this.element.contains(document.activeElement);
    this.element.hidden = true;
    this.anchor?.classList.remove("open");
    if (inside && this.anchor?.isConnected) {
      this.returning = true; // the token that gets the focus back need not open the panel again
      this.anchor.focus();
      this.returning = false;
    }
    this.anchor = null;
    this.pinned = false;
  }

  async open(anchor, pinned, look) {
    if (this.anchor !== anchor) this.close();
    this.anchor = anchor;
    this.pinned = pinned;
    anchor.classList.add("open");
    this.element.replaceChildren(el("p", { className: "note" }, "Looking …"));
    this.element.hidden = false;
    this.place();
    let found;
    try {
      found = await look();
    } catch (error) {
      if (this.anchor === anchor) this.element.replaceChildren(el("p", { className: "error" }, error.message));
      return;
    }
    if (this.anchor !== anchor) return;
    this.element.replaceChildren(...this.content(found));
    this.place();
    if (this.pinned) (this.element.querySelector(".here") ?? this.element.querySelector(".alternative"))?.focus();
  }

  content({ method, position, vocabulary, branch }) {
    const { given, candidates, rank } = position;
    const head = el("p", {}, el("b", {}, visible(given.text)),
      ` is number ${number(rank)}: ${percent(Math.exp(given.logprob))}, ${number(bits(given.logprob), 1)} bits`);
    const close = el("button", { type: "button", className: "close", aria: { label: "Close" } }, "×");
    close.addEventListener("click", () => this.close());
    const rows = candidates.some((one) => one.id === given.id) ? candidates : [...candidates, given];
    const most = Math.exp(candidates[0].logprob);
    const list = el("div", { className: "alternatives" }, el("div", { className: "heads", aria: { hidden: "true" } },
      el("span", {}, "token"), el("span", {}, "model"), el("span", {}, ""), el("span", {}, headOf(method))));
    rows.forEach((one, index) => {
      const cut = one.kept === false;
      const bar = el("span", { className: "fill" });
      bar.style.width = `${(100 * Math.exp(one.logprob)) / most}%`;
      const button = el("button", {
        type: "button",
        className: `alternative${cut ? " cut" : ""}${one.id === given.id ? " here" : ""}${index >= candidates.length ? " far" : ""}`,
        title: one.id === given.id ? "The text goes on from this one." : "Go on from here with this token.",
      },
      el("span", { className: "piece" }, visible(one.text)),
      el("span", { className: "chance" }, percent(Math.exp(one.logprob))),
      el("span", { className: "track" }, bar),
      el("span", { className: "verdict" }, verdictOf(one)));
      button.addEventListener("click", () => {
        if (one.id === given.id) return;
        this.close();
        branch(one);
      });
      list.append(button);
    });
    return [close, head, el("p", { className: "note" }, summary(method, position, vocabulary)), list];
  }

  key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...this.element.querySelectorAll(".alternative")];
    buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length]?.focus();
    event.preventDefault();
  }

  /** Below the token, or above it if there is no room. On narrow screens the style puts the panel at the bottom. */
  place() {
    const box = this.anchor.getClientRects()[0] ?? this.anchor.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.element;
    const below = box.bottom + 6;
    const top = below + height > innerHeight && box.top - 6 - height > 0 ? box.top - 6 - height : below;
    this.element.style.setProperty("--left", `${Math.max(8, Math.min(box.left, innerWidth - width - 8))}px`);
    this.element.style.setProperty("--top", `${Math.max(8, Math.min(top, innerHeight - height - 8))}px`);
    // As a sheet at the bottom it may cover the token.
    const sheet = this.element.getBoundingClientRect();
    if (sheet.bottom >= innerHeight && sheet.top > 0) scrollBy(0, Math.max(0, box.bottom + 12 - sheet.top));
  }
}

const headOf = (method) => (method.name === "contrastive" ? "score" : method.ranks ? "kept" : method.name);

function verdictOf(one) {
  if (one.kept === null) return "";
  if (!one.kept) return "cut";
  if (one.score !== null) return number(one.score, 3);
  return one.chance === null ? "kept" : percent(one.chance);
}

function summary(method, { kept_count: count, kept_mass: mass }, vocabulary) {
  if (method.ranks) return "Kept are those that became hypotheses of the search; the others were dropped.";
  if (count === null) return "This method does not say what it keeps.";
  const tokens = count === 1 ? "1 token" : `${number(count)} tokens`;
  const share = `${tokens} of ${number(vocabulary)}, with ${percent(mass)} of the model’s probability`;
  if (method.name === "contrastive") return `${method.name} compared ${share}, and took the one with the highest score.`;
  return `${method.name} kept ${share}.`;
}
