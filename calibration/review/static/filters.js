// Queues, filters and the order: what /api/frames is asked.

import { byId, el, settled } from "./dom.js";
import { mark } from "./marks.js";

export class Filters {
  /** changed: called with the query. */
  constructor(changed) {
    this.form = byId("filters");
    this.changed = changed;
    const later = settled(() => this.tell(), 250);
    this.form.addEventListener("input", later);
    this.form.addEventListener("reset", () => setTimeout(() => this.tell(), 0));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.tell();
    });
    for (const queue of this.queues()) queue.addEventListener("click", () => this.take(queue.dataset.order));
  }

  queues() {
    return [...this.form.querySelectorAll("[data-order]")];
  }

  /** A queue shows what is not yet corrected, in its order. */
  take(order) {
    this.form.elements.order.value = order || "source";
    this.form.elements.corrected.value = order ? "no" : "";
    this.form.elements.descending.checked = false;
    this.tell();
  }

  /** Boxes to tick for verdicts, classes and lots, from /api/facts; what is ticked stays so. */
  offer({ verdicts, classes, lots }) {
    this.boxes("verdicts", "verdict", Object.entries(verdicts));
    this.boxes("labels", "label", classes.map((name) => [name, null]));
    this.boxes("lots", "lot", lots.map((name) => [name, null]));
  }

  boxes(place, name, choices) {
    const field = byId(place);
    const boxes = [...field.querySelectorAll("input")];
    if (boxes.length === choices.length && choices.every(([value], at) => boxes[at].value === value)) {
      // The same choices: the boxes stay, and with them the focus.
      const counts = [...field.querySelectorAll(".count")];
      if (counts.length > 0) choices.forEach(([, count], at) => (counts[at].textContent = String(count)));
      field.hidden = choices.length === 0;
      return;
    }
    const ticked = new Set([...field.querySelectorAll("input:checked")].map((box) => box.value));
    const rows = choices.map(([value, count]) =>
      el(
        "label",
        { class: "check" },
        el("input", { type: "checkbox", name, value, set: { checked: ticked.has(value) } }),
        name === "lot" ? null : mark(value),
        el("span", {}, value),
        count === null ? null : el("span", { class: "quiet count" }, String(count)),
      ),
    );
    field.replaceChildren(field.querySelector("legend"), ...rows);
    field.hidden = choices.length === 0;
  }

  /** What is asked now. */
  query() {
    const query = {};
    for (const [name, value] of new FormData(this.form)) {
      if (value === "") continue;
      if (["verdict", "label", "lot"].includes(name)) (query[name] ??= []).push(value);
      else query[name] = value;
    }
    return query;
  }

  tell() {
    if (!this.form.checkValidity()) {
      this.form.reportValidity();
      return;
    }
    const query = this.query();
    for (const queue of this.queues()) {
      const all = queue.dataset.order === "" && query.order === "source" && !query.corrected;
      queue.setAttribute("aria-pressed", String(all || (queue.dataset.order === query.order && query.corrected === "no")));
    }
    this.changed(query);
  }
}
