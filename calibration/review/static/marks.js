// A colour and a shape for each verdict: no difference is told by colour alone.

import { svg } from "./dom.js";

const SHAPES = [
  "M2 2h10v10h-10z", // square
  "M7 1l6 11h-12z", // triangle
  "M7 0l7 7l-7 7l-7-7z", // diamond
  "M5 1h4v4h4v4h-4v4h-4v-4h-4v-4h4z", // plus
  "M7 13l-6-11h12z", // triangle downwards
  "M2 1l5 4l5-4l1 1l-4 5l4 5l-1 1l-5-4l-5 4l-1-1l4-5l-4-5z", // cross
];
const CIRCLE = "M7 1a6 6 0 1 0 0.01 0z";
const RING = "M7 1a6 6 0 1 0 0.01 0zM7 4a3 3 0 1 1 -0.01 0z";
const COLOURS = 8;

let order = [];

/** The classes, whose place gives shape and colour; the first is good. */
export function setClasses(classes) {
  order = classes;
}

/** The CSS class of a verdict's colour. */
export function tone(verdict) {
  const place = order.indexOf(verdict);
  if (place === 0) return "tone-good";
  if (place > 0) return `tone-${(place - 1) % COLOURS}`;
  return verdict === null ? "tone-failed" : "tone-open";
}

/** The outline of a verdict's shape in a box of 14 x 14. */
export function shape(verdict) {
  const place = order.indexOf(verdict);
  if (place === 0) return CIRCLE;
  return place > 0 ? SHAPES[(place - 1) % SHAPES.length] : RING;
}

/** The mark of a verdict. */
export function mark(verdict) {
  const path = svg("path", { d: shape(verdict), "fill-rule": "evenodd" });
  return svg("svg", { class: `mark ${tone(verdict)}`, viewBox: "0 0 14 14", "aria-hidden": "true" }, path);
}
