// Shares with what they were counted from.

import { percent } from "./dom.js";

/** "93.1 % (27 of 29)". rate: null if nothing was counted, else `{share, of, right}` as /api/summary gives it. */
export function rate(value) {
  if (value === null || value === undefined) return "not known yet";
  if (typeof value === "number") return percent(value);
  if (value.share === null || value.share === undefined) return "not known yet";
  return `${percent(value.share)} (${value.count} of ${value.of})`;
}
