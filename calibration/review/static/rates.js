// Shares with what they were counted from: `{value, count, of}`, value null where nothing was counted.

import { percent } from "./dom.js";

/** "93.1 % (27 of 29)". */
export function rate(found) {
  if (!found || found.value === null) return "not known yet";
  return `${percent(found.value)} (${found.count} of ${found.of})`;
}

/** The change between two shares in points of per cent; "" where one is not known. */
export function change(before, after) {
  if (typeof before?.value !== "number" || typeof after?.value !== "number") return "";
  const points = 100 * (after.value - before.value);
  return points === 0 ? "·" : `${points > 0 ? "+" : "−"}${Math.abs(points).toFixed(1)}`;
}
