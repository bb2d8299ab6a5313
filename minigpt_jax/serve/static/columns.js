// A column: a method with its settings, its text, and the branches that were taken in it.

import { Refused, post, stream } from "./api.js";
import { asCommand, asJson, asPython, offer } from "./copy.js";
import { el, number, tell, visible } from "./dom.js";
import { fields } from "./fields.js";
import { Tokens } from "./tokens.js";

export class Column {
  /**
   * @param page { state, offer, panel, changed(), sampleOne(column), remove(column), showTree(column), removable() }
   * @param state this column's part of the page's state, which is changed in place
   */
  constructor(page, state) {
    this.page = page;
    this.state = state;
    this.stopper = null;
    this.sampled = null; // what the text was asked for by
    this.found = []; // what the server says of each position of the text
    this.asking = null;
    this.element = el("article", { className: "column" });
    this.build();
  }

  get method() {
    return this.page.offer.methods.find((one) => one.name === this.state.method);
  }

  get branch() {
    return this.state.trail.at(-1)?.ids ?? [];
  }

  build() {
    const select = el("select", { aria: { label: "Method" } },
      ...this.page.offer.methods.map(({ name }) => el("option", { value: name }, name)));
    select.value = this.state.method;
    select.addEventListener("change", () => {
      this.state.method = select.value;
      this.state.settings = {};
      this.reset();
      this.build();
      this.page.changed();
    });
    const remove = el("button", { type: "button", className: "close", title: "Remove this column", aria: { label: "Remove this column" } }, "×");
    remove.addEventListener("click", () => this.page.remove(this));
    remove.hidden = !this.page.removable();
    this.fields = fields(this.method.settings, this.state.settings, () => this.page.changed());
    this.error = el("p", { className: "error", role: "alert", hidden: true });
    this.trail = el("ol", { className: "trail", aria: { label: "Branches" } });
    this.tokens = new Tokens(`Text of ${this.state.method}`, {
      point: (at, span, pinned) => this.page.panel.point(span, pinned, () => this.look(at)),
      leave: () => this.page.panel.leave(),
    });
    this.said = el("p", { className: "note said", role: "status" });
    this.tree = el("button", { type: "button", hidden: !this.method.ranks }, "Hypotheses");
    this.tree.addEventListener("click", () => this.page.showTree(this));
    const copies = [["Python", asPython], ["Command", asCommand], ["JSON", asJson]].map(([name, as]) => {
      const button = el("button", { type: "button", title: `Copy as ${name}` }, name);
      button.addEventListener("click", () => offer(`${this.state.method} as ${name}`, as(this.job())));
      return button;
    });
    this.element.replaceChildren(
      el("div", { className: "head" }, select, remove),
      el("p", { className: "note" }, this.method.description),
      el("div", { className: "fields" }, ...this.fields.elements),
      this.error, this.trail, this.tokens.element, this.said,
      el("div", { className: "bar actions" }, this.tree, el("span", { className: "note" }, "Copy as"), ...copies),
    );
    this.showTrail();
  }

  /** What the server is asked for. */
  body() {
    const { state } = this.page;
    return {
      model: state.model,
      prompt: state.prompt,
      branch: this.branch,
      method: this.state.method,
      method_settings: { ...this.state.settings },
      settings: { ...state.settings, seed: state.seed },
      stop_at_end: state.stopAtEnd,
    };
  }

  job() {
    const { state, offer: { models } } = this.page;
    const ids = this.branch.length ? this.branch : null;
    return {
      model: models.find((one) => one.name === state.model),
      prompt: state.prompt,
      branchText: this.tokens.prompt.textContent + this.tokens.pieces.slice(0, this.branch.length).join(""),
      ids,
      promptIds: this.tokens.promptIds,
      method: this.method,
      methodSettings: this.state.settings,
      settings: state.settings,
      seed: state.seed,
      stopAtEnd: state.stopAtEnd,
    };
  }

  reset() {
    this.cancel();
    this.sampled = null;
    this.found = [];
    this.asking = null;
    this.tokens.clear();
    this.said.textContent = "";
    this.fields.clear();
    tell(this.error, null);
  }

  /** Marks a text that other settings would change. */
  markStale() {
    const stale = this.sampled !== null && JSON.stringify(this.sampled) !== JSON.stringify(this.body());
    this.element.classList.toggle("stale", stale);
    this.element.title = stale ? "The settings have changed since this text was sampled." : "";
  }

  cancel() {
    this.stopper?.abort();
    this.stopper = null;
  }

  /** Samples this column's text. Returns the server's refusal if it is about what all columns share. */
  async sample() {
    this.reset();
    const stopper = (this.stopper = new AbortController());
    this.sampled = this.body();
    this.markStale();
    const branch = this.branch.length;
    const began = performance.now();
    this.said.textContent = this.method.streams ? "Sampling …" : `Searching … ${this.method.name} shows its text at the end.`;
    this.element.classList.add("busy");
    let reason = null;
    try {
      await stream("/api/sample", this.sampled, stopper.signal, (line) => {
        if (stopper !== this.stopper) return;
        if (line.error) throw new Refused(line.error.message, line.error.field);
        if (line.step !== undefined) {
          this.step = line.step;
          this.page.sawStep(line.step);
        }
        this.tokens.update(line, branch);
        reason = line.finish_reason ?? null;
        if (!reason && this.method.streams && this.tokens.ids.length > branch) {
          this.said.textContent = `${number(this.tokens.ids.length - branch)} tokens …`;
        }
      });
      this.said.textContent = this.summary(reason, (performance.now() - began) / 1000);
      this.learn();
    } catch (error) {
      if (error.name === "AbortError") {
        if (stopper === this.stopper || this.stopper === null) this.said.textContent = "Stopped.";
        return null;
      }
      this.said.textContent = "";
      if (error.field && this.fields.show(error.field, error.message)) return null;
      if (error.field) return error;
      tell(this.error, error.message);
      if (error.status === 401) return error;
    } finally {
      if (stopper === this.stopper || this.stopper === null) this.element.classList.remove("busy");
      if (stopper === this.stopper) this.stopper = null;
    }
    return null;
  }

  summary(reason, seconds) {
    const count = this.tokens.ids.length - this.branch.length;
    const ends = { stop: "it ended by itself", length: "it reached the limit", banned: "no token was left to draw" };
    const mean = this.tokens.meanBits();
    return [
      `${number(count)} token${count === 1 ? "" : "s"}`,
      mean === null ? null : `${number(mean, 2)} bits each`,
      ends[reason],
      `${number(seconds, 1)} s`,
    ].filter(Boolean).join(" · ");
  }

  /** Asks what was possible, before anybody points at a token; also for the shade of a branch's tokens. */
  async learn() {
    try {
      await this.look(0);
      this.tokens.learn(this.found.slice(0, this.branch.length).map((one) => one.given.logprob));
    } catch {
      // They stay without a shade; the panel tells why.
    }
  }

  /** What was possible at a position. */
  async look(at) {
    const tokens = this.tokens.ids.slice();
    if (!this.found[at]) {
      this.asking ??= this.inspect(this.sampled, tokens).finally(() => (this.asking = null));
      await this.asking;
    }
    if (!this.found[at]) return this.look(at); // the text has grown meanwhile
    return {
      method: this.method,
      position: this.found[at],
      vocabulary: this.vocabulary,
      branch: (candidate) => this.take(at, candidate),
    };
  }

  async inspect(sampled, tokens) {
    const { branch } = sampled;
    // The tokens of a branch were chosen after the prompt; what follows was sampled after both.
    const parts = [[[], branch], [branch, tokens.slice(branch.length)]].filter(([, part]) => part.length);
    const answers = await Promise.all(
      parts.map(([before, part]) => post("/api/inspect", { ...sampled, branch: before, tokens: part })));
    if (this.sampled !== sampled) throw new Refused("The text has changed meanwhile.");
    const { step } = answers[0];
    if (step !== this.step) throw new Refused(`The model is at step ${number(step)} by now. Sample again.`);
    this.found = answers.flatMap((one) => one.positions);
    this.vocabulary = answers[0].vocabulary;
  }

  /** Goes on from a token in place of the one at a position. */
  take(at, candidate) {
    const ids = [...this.tokens.ids.slice(0, at), candidate.id];
    const kept = this.state.trail.filter((one) => one.ids.length <= at);
    this.state.trail = [...kept, { ids, was: this.tokens.pieces[at], now: candidate.text }];
    this.showTrail();
    this.page.sampleOne(this);
  }

  showTrail() {
    const { trail } = this.state;
    this.trail.hidden = !trail.length;
    this.trail.replaceChildren(...trail.map(({ ids, was, now }) =>
      el("li", {}, `token ${ids.length}: ${visible(was)} → ${visible(now)}`)));
    if (!trail.length) return;
    const undo = el("button", { type: "button" }, "Undo");
    undo.addEventListener("click", () => {
      trail.pop();
      this.showTrail();
      this.page.sampleOne(this);
    });
    this.trail.append(el("li", {}, undo));
  }
}
