// Elements. What users type, and what models write, only ever becomes text nodes and properties, never markup.

/** An element with properties and children. A property that is undefined is left out; `data` and `aria` are objects. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (name === "data") Object.assign(element.dataset, value);
    else if (name === "aria") for (const [key, one] of Object.entries(value)) element.setAttribute(`aria-${key}`, one);
    else if (name === "role" || name === "list") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const $ = (id) => document.getElementById(id);

/** Shows a message in an element, or hides the element if there is none. */
export function tell(element, message) {
  element.textContent = message ?? "";
  element.hidden = !message;
}

export const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** A probability in percent, with at least two figures. */
export function percent(value) {
  if (value > 0 && value < 0.0001) return "<0.01%";
  return `${number(100 * value, value >= 0.1 ? 1 : 2)}%`;
}

/** A token's text with its spaces made visible. */
export function visible(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";
}
