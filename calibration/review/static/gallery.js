// The gallery: only the tiles in sight exist, however long the list is.

import { settled } from "./dom.js";
import { PAGE, Pages } from "./pages.js";
import { Tile } from "./tile.js";

const GAP = 8;
const CAPTION = 44;
/** Browsers lay out some 30 million pixels; a list beyond is cut, and the page says so. */
const HIGHEST = 16_000_000;

export class Gallery {
  /**
   * root: the scrolling element. what: `{opacity, outline, side}`, shared with the switches.
   * hooks: choose(entry, index), place(index, total, shown), failed(error), idle() -> a promise: nothing is being saved,
   * held(): whether the chosen frame must stay, because it is drawn on.
   */
  constructor(root, what, hooks) {
    this.root = root;
    this.what = what;
    this.hooks = hooks;
    this.canvas = document.createElement("div");
    this.canvas.className = "canvas";
    this.canvas.setAttribute("role", "presentation");
    root.append(this.canvas);
    this.tiles = new Map();
    [this.columns, this.side, this.left, this.step, this.shown] = [1, what.side, GAP, what.side + CAPTION + GAP, 0];
    this.chosen = -1;
    this.wanted = 0;
    this.gone = new Set();
    this.pages = new Pages({ arrived: () => this.draw(), moved: () => this.renew(), failed: hooks.failed });
    this.drawing = 0;
    root.addEventListener("scroll", () => this.soon());
    new ResizeObserver(settled(() => this.layout(), 30)).observe(root);
  }

  soon() {
    this.drawing ||= requestAnimationFrame(() => {
      this.drawing = 0;
      this.draw();
    });
  }

  /** Show another list from its first frame on, or from `index`. */
  async show(query, index = 0) {
    this.gone.clear();
    const mine = (this.wanted += 1);
    this.root.setAttribute("aria-busy", "true");
    try {
      await this.pages.open(query, index);
    } catch (error) {
      this.hooks.failed(error);
      return;
    }
    if (mine !== this.wanted) return;
    this.root.removeAttribute("aria-busy");
    this.chosen = -1;
    this.forget();
    this.layout();
    if (index === 0) this.root.scrollTop = 0;
    if (this.pages.total > 0) await this.choose(Math.min(index, this.pages.total - 1));
    else {
      this.hooks.place(-1, 0, 0);
      this.hooks.choose(null, -1);
    }
  }

  /** The same list anew, as it is now. Frames that a correction took out of it are not counted any more. */
  async renew() {
    if (this.renewing || this.hooks.held()) return;
    this.renewing = true;
    this.hooks.choose(null, -1); // a key meanwhile would reach a frame that may have left the list
    await this.hooks.idle();
    const before = [...this.gone].filter((index) => index < this.chosen).length;
    try {
      await this.show(this.pages.query, Math.max(0, this.chosen - before));
    } finally {
      this.renewing = false;
    }
  }

  forget() {
    for (const tile of this.tiles.values()) tile.remove();
    this.tiles.clear();
  }

  /** Columns, heights and the length of the scroll bar. */
  layout() {
    const width = this.root.clientWidth - GAP;
    if (width > 0) {
      this.columns = Math.max(1, Math.floor(width / (this.what.side + GAP)));
      this.side = Math.min(this.what.side, width - GAP);
      this.left = GAP + Math.floor((width - this.columns * (this.side + GAP)) / 2);
    } // else another view is in front: the tiles keep their places
    const { columns } = this;
    this.step = this.side + CAPTION + GAP;
    this.shown = Math.min(this.pages.total, Math.floor(HIGHEST / this.step) * columns);
    this.canvas.style.height = `${Math.ceil(this.shown / columns) * this.step + GAP}px`;
    for (const [index, tile] of this.tiles) this.place(index, tile);
    this.draw();
  }

  place(index, tile) {
    const row = Math.floor(index / this.columns);
    tile.place(this.left + (index % this.columns) * (this.side + GAP), GAP + row * this.step, this.side);
  }

  /** Make the tiles in sight, drop the others. */
  draw() {
    const { scrollTop, clientHeight } = this.root;
    const first = Math.max(0, Math.floor(scrollTop / this.step) - 1) * this.columns;
    const last = Math.min(this.shown, (Math.ceil((scrollTop + clientHeight) / this.step) + 1) * this.columns);
    for (const [index, tile] of this.tiles) {
      if (index >= first && index < last) continue;
      tile.remove();
      this.tiles.delete(index);
    }
    for (let index = first; index < last; index += 1) this.showTile(index);
    this.fetch(first, last);
  }

  showTile(index) {
    let tile = this.tiles.get(index);
    if (tile === undefined) {
      tile = new Tile(index, this.pages.total, this.what, (place) => this.choose(place));
      this.tiles.set(index, tile);
      this.place(index, tile);
      tile.chosen(index === this.chosen);
      this.canvas.append(tile.root);
    }
    if (tile.entry === null) tile.fill(this.pages.at(index));
  }

  fetch(first, last) {
    let missing = false;
    for (let index = first; index < last; index += PAGE) missing ||= !this.pages.has(Math.floor(index / PAGE));
    missing ||= last > first && !this.pages.has(Math.floor((last - 1) / PAGE));
    // Frames that left the list since would shift all pages to come.
    if (missing && this.gone.size > 0) this.renew();
    else if (last > first) this.pages.want(first, last);
  }

  /** Choose a frame by its place, scroll to it and tell. */
  async choose(index) {
    if (this.shown === 0) return;
    const place = Math.max(0, Math.min(index, this.shown - 1));
    this.tiles.get(this.chosen)?.chosen(false);
    this.chosen = place;
    this.reveal(place);
    this.tiles.get(place)?.chosen(true);
    this.root.setAttribute("aria-activedescendant", `tile-${place}`);
    this.hooks.place(place, this.pages.total, this.shown);
    if (this.pages.at(place) === null) {
      this.hooks.choose(null, place); // a key must not reach the frame that was chosen before
      await this.pages.load(Math.floor(place / PAGE));
    }
    if (this.chosen === place && this.pages.at(place) !== null) this.hooks.choose(this.pages.at(place), place);
  }

  reveal(index) {
    const top = Math.floor(index / this.columns) * this.step;
    if (top < this.root.scrollTop) this.root.scrollTop = top;
    const bottom = top + this.step + GAP - this.root.clientHeight;
    if (bottom > this.root.scrollTop) this.root.scrollTop = bottom;
    this.draw();
  }

  /** How many frames a key moves. */
  stride(key) {
    const page = Math.max(1, Math.floor(this.root.clientHeight / this.step)) * this.columns;
    return { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity }[key];
  }

  move(by) {
    return this.choose(this.chosen + by);
  }

  /** Put a correction (or null) on the tile of a frame; `saving` while the server has not answered. */
  correct(id, corrected, saving = false) {
    for (const [index, entry] of this.pages.entries()) {
      if (entry.id !== id) continue;
      if (!saving) entry.corrected = corrected;
      this.tiles.get(index)?.correct(saving ? entry.corrected : corrected, saving);
      const asked = this.pages.query.corrected;
      const leaves = (asked === "no" && corrected !== null) || (asked === "yes" && corrected === null);
      if (!saving && leaves) this.gone.add(index);
      else if (!saving) this.gone.delete(index);
      return index;
    }
    return -1;
  }

  /** Show on a tile what is known again, after a correction was refused. Returns its place, or -1. */
  restore(id) {
    for (const [index, entry] of this.pages.entries()) {
      if (entry.id !== id) continue;
      this.tiles.get(index)?.correct(entry.corrected);
      return index;
    }
    return -1;
  }

  /** After a switch or the size of the tiles has changed. */
  restyle() {
    for (const tile of this.tiles.values()) tile.layers();
  }
}
