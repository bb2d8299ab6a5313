// A beam search's hypotheses as a tree: a column for each step, a row for each hypothesis that was live together.

import { el, number, visible } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";

/** The row of each node: a child goes on in its parent's row, if no better sibling does, or else in the nearest free one. */
export function layout(nodes) {
  const rows = new Array(nodes.length).fill(0);
  const steps = Map.groupBy ? Map.groupBy(nodes.keys(), (i) => nodes[i].step) : grouped(nodes);
  for (const [, members] of [...steps].sort(([a], [b]) => a - b)) {
    const taken = new Set();
    const better = (a, b) => Number(nodes[b].survives) - Number(nodes[a].survives) || nodes[b].logprob - nodes[a].logprob;
    for (const i of [...members].sort(better)) {
      const wanted = nodes[i].parent < 0 ? 0 : rows[nodes[i].parent];
      let row = wanted;
      for (let away = 0; taken.has(row); away++) row = [wanted + away, wanted - away].find((r) => r >= 0 && !taken.has(r)) ?? row;
      taken.add(row);
      rows[i] = row;
    }
  }
  return rows;
}

function grouped(nodes) {
  const steps = new Map();
  nodes.forEach(({ step }, i) => steps.set(step, [...(steps.get(step) ?? []), i]));
  return steps;
}

/** Draws the tree into an element. */
export function drawTree(element, { prompt_text: prompt, nodes, generations }, close) {
  const rows = layout(nodes);
  const said = el("p", { className: "note", role: "status" }, "Point at a token, or use the arrow keys, to follow its hypothesis.");
  const grid = el("div", { className: "grid", role: "group", aria: { label: "Hypotheses by step" } });
  const cells = nodes.map((node, i) => {
    const cell = el("span", {
      className: `node${node.survives ? " survives" : ""}${node.rank === 0 ? " best" : ""}`,
      role: "button",
      tabIndex: i === 0 ? 0 : -1,
      data: { index: i },
    }, visible(node.text), node.rank === null ? null : el("sup", {}, String(node.rank + 1)));
    cell.style.gridColumn = String(node.step);
    cell.style.gridRow = String(rows[i] + 1);
    return cell;
  });
  const lines = document.createElementNS(SVG, "svg");
  lines.setAttribute("aria-hidden", "true");
  grid.append(lines, ...cells);
  const button = el("button", { type: "button" }, "Close");
  button.addEventListener("click", close);
  const dropped = nodes.filter((node) => !node.survives).length;
  element.replaceChildren(
    el("h2", {}, "Hypotheses of beam search"),
    el("p", {}, `${number(nodes.length)} tokens were tried, and ${number(dropped)} of them dropped (grey). `
      + `${number(generations.length)} hypotheses remained (numbered, best first).`),
    el("div", { className: "scroll", tabIndex: -1 }, grid),
    said,
    button,
  );
  element.hidden = false;
  connect(lines, grid, nodes, cells);

  const follow = (i) => {
    const path = new Set();
    for (let at = i; at >= 0; at = nodes[at].parent) path.add(at);
    cells.forEach((cell, at) => cell.classList.toggle("path", path.has(at)));
    const text = [...path].sort((a, b) => a - b).map((at) => nodes[at].text).join("");
    said.textContent = `${fate(nodes[i])} ${prompt}${text}`;
  };
  const move = (i) => {
    if (i === undefined || i < 0) return;
    cells.forEach((cell, at) => (cell.tabIndex = at === i ? 0 : -1));
    cells[i].focus();
  };
  grid.addEventListener("pointerover", (event) => {
    const cell = event.target.closest(".node");
    if (cell) follow(Number(cell.dataset.index));
  });
  grid.addEventListener("focusin", (event) => follow(Number(event.target.closest(".node").dataset.index)));
  grid.addEventListener("keydown", (event) => {
    const i = Number(event.target.closest(".node").dataset.index);
    const column = nodes.map((_, at) => at).filter((at) => nodes[at].step === nodes[i].step).sort((a, b) => rows[a] - rows[b]);
    const to = {
      ArrowLeft: () => nodes[i].parent,
      ArrowRight: () => nodes.map((_, at) => at).filter((at) => nodes[at].parent === i)
        .sort((a, b) => Number(nodes[b].survives) - Number(nodes[a].survives) || nodes[b].logprob - nodes[a].logprob)[0],
      ArrowDown: () => column[column.indexOf(i) + 1],
      ArrowUp: () => column[column.indexOf(i) - 1],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    move(to());
  });
}

function fate(node) {
  const sum = `log-probability ${number(node.logprob, 2)}`;
  if (node.rank !== null) return `Number ${node.rank + 1} of those that remained, ${sum}, score ${number(node.score, 2)}:`;
  if (node.survives) return `Step ${node.step}, ${sum}, went on:`;
  return `Step ${node.step}, ${sum}, dropped:`;
}

/** Draws a line from each node to its parent. */
function connect(lines, grid, nodes, cells) {
  const origin = grid.getBoundingClientRect();
  lines.setAttribute("width", String(grid.scrollWidth));
  lines.setAttribute("height", String(grid.scrollHeight));
  nodes.forEach((node, i) => {
    if (node.parent < 0) return;
    const [from, to] = [cells[node.parent].getBoundingClientRect(), cells[i].getBoundingClientRect()];
    const [x1, y1] = [from.right - origin.left, from.top + from.height / 2 - origin.top];
    const [x2, y2] = [to.left - origin.left, to.top + to.height / 2 - origin.top];
    const middle = (x1 + x2) / 2;
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", `M${x1} ${y1} C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`);
    if (node.survives) path.setAttribute("class", "survives");
    lines.append(path);
  });
}
