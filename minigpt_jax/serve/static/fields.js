// Fields for settings, made from what the server says of them.

import { el, tell } from "./dom.js";

let made = 0;

/**
 * Fields for the described settings. `values` is changed in place, and `changed` is called after each change. A field
 * that is left empty means the default.
 * @returns the elements, and a function (name, message) that shows a message at a field and says whether it could
 */
export function fields(described, values, changed) {
  const errors = new Map();
  const elements = described.map((setting) => {
    const id = `field-${++made}`;
    const error = el("span", { className: "error", id: `${id}-error`, hidden: true });
    errors.set(setting.name, error);
    const input = inputFor(setting, values[setting.name]);
    input.id = id;
    input.name = setting.name;
    input.setAttribute("aria-describedby", error.id);
    input.addEventListener(setting.type === "boolean" ? "change" : "input", () => {
      const value = valueOf(setting, input);
      tell(error, input.validity.badInput ? "This is not a number." : null);
      if (value === null) delete values[setting.name];
      else values[setting.name] = value;
      changed();
    });
    const label = el("label", { htmlFor: id, title: setting.help }, words(setting.name));
    return el("div", { className: `field ${setting.type}` }, label, input, error);
  });
  const show = (name, message) => {
    if (!errors.has(name)) return false;
    tell(errors.get(name), message);
    return true;
  };
  const clear = () => errors.forEach((error) => tell(error, null));
  return { elements, show, clear };
}

function inputFor(setting, value) {
  if (setting.type === "texts") {
    return el("textarea", { rows: 1, value: (value ?? []).join("\n"), placeholder: "one per line", title: setting.help });
  }
  if (setting.type === "boolean") {
    return el("input", { type: "checkbox", checked: value ?? setting.default, title: setting.help });
  }
  const placeholder = setting.default === null ? "none" : String(setting.default);
  if (setting.type === "text") return el("input", { type: "text", value: value ?? "", placeholder, title: setting.help });
  return el("input", {
    type: "number",
    step: setting.type === "integer" ? "1" : "any",
    value: value ?? "",
    inputMode: setting.type === "integer" ? "numeric" : "decimal",
    placeholder,
    title: setting.help,
  });
}

function valueOf(setting, input) {
  if (setting.type === "boolean") return input.checked;
  if (setting.type === "texts") {
    const lines = input.value.split("\n").filter((line) => line);
    return lines.length ? lines : null;
  }
  if (input.value === "") return null;
  return setting.type === "text" ? input.value : Number(input.value);
}

const words = (name) => name.replace(/_/g, " ");
