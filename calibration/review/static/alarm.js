// The bar on top: what failed, and whose correction is not saved. A correction that is lost is named until it is made.

import { button, el } from "./dom.js";

const NAMED = 3;

export class Alarm {
  /** root: the bar. open(id): called to show a frame. */
  constructor(root, open) {
    this.root = root;
    this.open = open;
    this.lost = new Map();
    this.clear();
  }

  clear() {
    this.lost.clear();
    [this.why, this.undo, this.other, this.past] = ["", "", "", false];
    this.show();
  }

  /** Something failed that is no correction. It stays until it is closed. */
  failed(error) {
    this.other = error.message;
    this.show();
  }

  /** A correction was not saved; of an undo, frame is null. */
  refused(frame, error) {
    if (frame === null) this.undo = error.message;
    else {
      this.lost.set(frame.id, frame.name);
      [this.why, this.past] = [error.message, false];
    }
    this.show();
  }

  /** A correction was saved, or, without an id, taken back: saving works. */
  saved(id = null) {
    this.lost.delete(id);
    [this.undo, this.past] = ["", true];
    this.show();
  }

  show() {
    const lines = [this.lost.size ? this.unsaved() : null, this.undo || null, this.other || null].filter((line) => line !== null);
    this.root.hidden = lines.length === 0;
    this.root.classList.toggle("past", this.past && this.lost.size > 0 && lines.length === 1);
    const shown = lines.map((line) => el("span", {}, line, " "));
    this.root.replaceChildren(...(lines.length ? [...shown, button("Close", () => this.clear())] : []));
  }

  unsaved() {
    const frames = [...this.lost].slice(-NAMED).reverse();
    const names = frames.map(([id, name], place) => [place ? ", " : "", button(name, () => this.open(id), { title: "Show this frame" })]);
    const more = this.lost.size > NAMED ? ` and ${this.lost.size - NAMED} more` : "";
    return [this.past ? "Saving works again. Still not saved: " : "Not saved: ", ...names.flat(), this.past ? more : `${more}: ${this.why}`];
  }
}
