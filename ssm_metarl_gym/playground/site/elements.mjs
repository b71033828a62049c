// What the page is made of.

/** The element of an id. */
export const find = (id) => document.getElementById(id);

/** A new element. */
export const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

/**
 * A slider with its label and its value, in a row of its own.
 *
 * @param {object} slider Its id, label, unit, low, high and step, and what gives a note below it, if there is one.
 * @param {number} value
 * @param {function} onChange Is told each new value.
 */
export function makeSlider({ id, label, unit, low, high, step, note }, value, onChange) {
  const write = (number) => `${Number(number.toFixed(3))}${unit && ` ${unit}`}`;
  const output = make("output", { for: id }, write(value));
  const input = make("input", { type: "range", id, min: low, max: high, step, value });
  const show = () => {
    output.textContent = write(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  show();
  input.addEventListener("input", () => {
    show();
    onChange(Number(input.value));
  });
  return make(
    "div",
    { class: "slider" },
    make("label", { for: id }, label),
    output,
    input,
    ...(note ? [make("span", { class: "known" }, note(write))] : []),
  );
}
