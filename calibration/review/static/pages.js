// The list behind the gallery: pages of entries, the latest used kept.

import { get } from "./api.js";

export const PAGE = 100;
const KEPT = 60;

export class Pages {
  /** arrived: called when entries came; moved: when the list is another one than before; failed: with an error. */
  constructor({ arrived, moved, failed }) {
    this.hooks = { arrived, moved, failed };
    this.query = {};
    this.clear();
  }

  clear() {
    this.aborter?.abort();
    this.aborter = new AbortController();
    this.total = 0;
    this.kept = new Map();
    this.loading = new Map();
  }

  /** Start on another list and wait for the page that holds `index`. */
  async open(query, index) {
    this.clear();
    this.query = query;
    const { signal } = this.aborter;
    const first = await this.ask(Math.floor(index / PAGE), signal);
    this.total = first.total;
    if (index >= first.total && first.total > 0) return this.open(query, first.total - 1);
    this.keep(Math.floor(index / PAGE), first.frames);
    return first.total;
  }

  ask(number, signal) {
    return get("/api/frames", { ...this.query, offset: number * PAGE, limit: PAGE }, signal);
  }

  keep(number, frames) {
    this.kept.delete(number);
    this.kept.set(number, frames);
    for (const oldest of this.kept.keys()) {
      if (this.kept.size <= KEPT) break;
      this.kept.delete(oldest);
    }
  }

  /** The entry at `index`, or null if it is not here. */
  at(index) {
    return this.kept.get(Math.floor(index / PAGE))?.[index % PAGE] ?? null;
  }

  has(number) {
    return this.kept.has(number) || this.loading.has(number);
  }

  /** Fetch the pages that hold `first` to `last`, the last one left out. */
  want(first, last) {
    for (let number = Math.floor(first / PAGE); number * PAGE < last; number += 1) if (!this.has(number)) this.load(number);
  }

  /** Fetch one page; once it is there, it is kept. */
  load(number) {
    if (this.kept.has(number)) return Promise.resolve();
    if (this.loading.has(number)) return this.loading.get(number);
    const { signal } = this.aborter;
    const coming = this.ask(number, signal)
      .then(({ total, frames }) => {
        if (signal.aborted) return;
        if (total !== this.total) this.hooks.moved();
        else {
          this.keep(number, frames);
          this.hooks.arrived();
        }
      })
      .catch((error) => {
        if (!signal.aborted) this.hooks.failed(error);
      })
      .finally(() => {
        if (!signal.aborted) this.loading.delete(number);
      });
    this.loading.set(number, coming);
    return coming;
  }

  /** All entries that are here, with their index. */
  *entries() {
    for (const [number, frames] of this.kept) for (const [place, entry] of frames.entries()) yield [number * PAGE + place, entry];
  }
}
