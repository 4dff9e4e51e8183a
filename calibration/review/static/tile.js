// One frame of the gallery: picture, map and outline on top of each other, and a line of text.

import { mapOf, outlineOf, pictureOf } from "./api.js";
import { el, fixed, length } from "./dom.js";
import { mark } from "./marks.js";

/** Milliseconds that a tile must stay in sight before its picture is asked for: a fast scroll asks for none. */
const REST = 40;

function layer(kind) {
  return el("img", { class: kind, alt: "", draggable: "false" });
}

export class Tile {
  /** what: `{opacity, outline}`, what the pictures show. choose: called with the index of a tile that is clicked. */
  constructor(index, total, what, choose) {
    this.index = index;
    this.what = what;
    this.entry = null;
    this.picture = layer("picture");
    this.map = layer("map");
    this.outline = layer("outline");
    this.stack = el("span", { class: "stack" }, this.picture, this.map, this.outline);
    this.name = el("span", { class: "name" });
    this.verdict = el("span", { class: "verdict" });
    this.badge = el("span", { class: "badge" });
    this.root = el(
      "div",
      { class: "tile", role: "option", id: `tile-${index}`, "aria-selected": "false", "aria-setsize": total, "aria-posinset": index + 1, on: { click: () => choose(index) } },
      this.stack,
      this.verdict,
      this.name,
      this.badge,
    );
    this.picture.addEventListener("load", () => this.layers());
    for (const image of [this.picture, this.map, this.outline]) {
      image.addEventListener("load", () => image.classList.add("there"));
      image.addEventListener("error", () => image.classList.remove("there"));
    }
  }

  place(x, y, width) {
    this.root.style.transform = `translate(${x}px, ${y}px)`;
    this.root.style.width = `${width}px`;
    this.stack.style.height = `${width}px`;
  }

  /** Show an entry of /api/frames; `null` while it is not there yet. */
  fill(entry) {
    if (entry === null) return;
    const fresh = this.entry === null || this.entry.id !== entry.id;
    this.entry = entry;
    this.root.classList.toggle("failed", entry.error !== null);
    this.verdict.replaceChildren(mark(entry.verdict), ` ${entry.verdict ?? "failed"} ${entry.confidence === null ? "" : fixed(entry.confidence, 2)}`);
    this.name.textContent = entry.name;
    this.root.title = [entry.name, entry.error, entry.size_nm === null ? null : length(entry.size_nm)].filter(Boolean).join("\n");
    this.correct(entry.corrected);
    if (fresh && entry.error === null) this.timer = setTimeout(() => (this.picture.src = pictureOf(entry.id)), REST);
  }

  /** Show a correction, or that there is none. */
  correct(corrected, saving = false) {
    if (this.entry === null) return;
    this.badge.textContent = saving ? "saving" : corrected ? `${corrected.mask ? "✎ " : "✓ "}${corrected.new}` : "";
    this.root.classList.toggle("corrected", corrected !== null || saving);
    this.root.setAttribute("aria-label", this.words(corrected));
  }

  words(corrected) {
    const { name, verdict, confidence, error } = this.entry;
    const answer = error === null ? `${verdict}, confidence ${fixed(confidence, 2)}` : `failed: ${error}`;
    return `${name}, ${answer}${corrected ? `, corrected to ${corrected.new}` : ""}`;
  }

  /** Ask for the layers that are switched on; the picture comes first. */
  layers() {
    if (this.entry === null || this.entry.error !== null || !this.picture.complete || !this.picture.naturalWidth) return;
    if (this.what.opacity > 0 && !this.map.src) this.map.src = mapOf(this.entry.id);
    if (this.what.outline && !this.outline.src) this.outline.src = outlineOf(this.entry.id);
  }

  chosen(yes) {
    this.root.setAttribute("aria-selected", String(yes));
  }

  /** Take it away, and what it still waits for. */
  remove() {
    clearTimeout(this.timer);
    for (const image of [this.picture, this.map, this.outline]) image.removeAttribute("src");
    this.root.remove();
  }
}
