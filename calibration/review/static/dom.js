// Elements by call. Texts become text nodes, so names of files and classes are never read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    } else if (name === "set") {
      Object.assign(node, value);
    } else {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** An HTML element. attributes: `on` holds handlers, `set` properties; null and false leave an attribute out. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export const byId = (id) => document.getElementById(id);

/** A number with `digits` decimals; a dash where there is none. */
export function fixed(value, digits = 3) {
  return typeof value === "number" && Number.isFinite(value) ? value.toFixed(digits) : "–";
}

/** A share in [0, 1] as per cent. */
export function percent(value) {
  return typeof value === "number" && Number.isFinite(value) ? `${(100 * value).toFixed(1)} %` : "–";
}

/** A length in nm with three digits, in µm from 1000 nm on. */
export function length(nm) {
  if (typeof nm !== "number" || !Number.isFinite(nm)) return "–";
  return nm >= 1000 ? `${(nm / 1000).toPrecision(3)} µm` : `${Number(nm.toPrecision(3))} nm`;
}

/** A button. attributes as of `el`. */
export function button(label, action, attributes = {}) {
  return el("button", { type: "button", ...attributes, on: { click: action } }, label);
}

/** A table with a caption for screen readers. rows: lists of cells; the first cell of a row is its heading. */
export function table(caption, headings, rows) {
  const head = el("tr", {}, headings.map((text) => el("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...others]) =>
    el("tr", {}, el("th", { scope: "row" }, first), others.map((cell) => (cell instanceof Element && cell.tagName === "TD" ? cell : el("td", {}, cell)))),
  );
  return el("table", {}, el("caption", {}, caption), el("thead", {}, head), el("tbody", {}, body));
}

/** Calls `action` once nothing has asked for it for `delay` ms. */
export function settled(action, delay) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), delay);
  };
}

const PREFIX = "sem-clip-review-";

/** A choice of the user that outlives the page; `otherwise` where the browser keeps none. */
export function kept(name, otherwise) {
  try {
    return localStorage.getItem(PREFIX + name) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(PREFIX + name, String(value));
  } catch {
    // A browser that keeps nothing shows the defaults the next time.
  }
}
