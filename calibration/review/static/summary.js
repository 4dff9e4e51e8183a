// Counts of the whole store, and what another operating point would change.

import { get } from "./api.js";
import { button, byId, el, fixed, settled, table } from "./dom.js";
import { mark } from "./marks.js";
import { rate } from "./rates.js";

const SHOWN = 60;

export class Summary {
  /** hooks: open(id), failed(error). */
  constructor(hooks) {
    this.hooks = hooks;
    this.root = byId("view-summary");
    this.counts = el("div", { class: "cards" });
    this.point = el("section", { class: "card wide", "aria-labelledby": "point-title" });
    this.root.append(this.counts, this.point);
    this.ask = settled(() => this.preview(), 200);
  }

  async show() {
    try {
      const found = await get("/api/summary");
      this.present = found;
      this.counts.replaceChildren(this.rates(found), this.pareto(found.pareto), this.confusion(found.confusion));
      this.sliders(found.operating_point);
      this.preview();
    } catch (error) {
      this.hooks.failed(error);
    }
  }

  rates({ purity, coverage }) {
    return el(
      "section",
      { class: "card" },
      el("h2", {}, "Against what was corrected"),
      el("dl", { class: "facts big" }, el("dt", {}, "Purity"), el("dd", { id: "purity" }, rate(purity)), el("dt", {}, "Coverage"), el("dd", { id: "coverage" }, rate(coverage))),
      el("p", { class: "quiet" }, "Purity: of the decided frames that were corrected or confirmed, the share that was right. Coverage: the share of all frames that are decided."),
    );
  }

  pareto(bars) {
    const most = Math.max(1, ...bars.map(({ count }) => count));
    const total = bars.reduce((sum, { count }) => sum + count, 0);
    let so_far = 0;
    const rows = bars.map(({ class: name, count, corrected }) => {
      so_far += count;
      const bar = el("span", { class: "length" });
      bar.style.width = `${(100 * count) / most}%`;
      return [[mark(name), ` ${name}`], el("td", { class: "bar" }, bar), String(count), `${((100 * so_far) / Math.max(1, total)).toFixed(0)} %`, String(corrected)];
    });
    return el("section", { class: "card" }, el("h2", {}, "Pareto"), table("Frames by verdict, the most frequent first", ["Verdict", "", "Frames", "Sum", "Corrected"], rows));
  }

  confusion({ classes, rows, verdicts }) {
    const most = Math.max(1, ...rows.flat());
    const cell = (count, same) => {
      const td = el("td", { class: same ? "same" : "other" }, count ? String(count) : "·");
      td.style.setProperty("--share", `${Math.round((60 * count) / most)}%`);
      return td;
    };
    const names = verdicts ?? classes;
    const body = rows.map((counts, row) => [[mark(names[row]), ` ${names[row]}`], ...counts.map((count, column) => cell(count, names[row] === classes[column]))]);
    const inside = body.length ? table("Rows: the runtime's verdict. Columns: the class it was corrected to.", ["", ...classes], body) : el("p", { class: "quiet" }, "Nothing is corrected yet.");
    return el("section", { class: "card" }, el("h2", {}, "Confusion"), el("div", { class: "scroll confusion" }, inside));
  }

  // The operating point: sliders, and what they would change. Nothing is stored.

  sliders(point) {
    this.inputs = new Map();
    const rows = [
      this.slider("defect_threshold", "Defect threshold", point.defect_threshold, 1),
      this.slider("novelty_threshold", "Unknown above a novelty of", point.novelty_threshold, 2, true),
      ...Object.entries(point.confidence_thresholds).map(([name, value]) => this.slider(`reject.${name}`, [mark(name), ` ${name} is decided from`], value, 1)),
    ];
    this.review = el("input", { type: "checkbox", set: { checked: point.review_disagreement }, on: { change: () => this.ask() } });
    this.point.replaceChildren(
      el("h2", { id: "point-title" }, "Another operating point"),
      el("p", { class: "quiet" }, "What it would change in this store. Nothing is stored here: `sem-clip operating-point` does that."),
      el("div", { class: "sliders" }, rows, el("label", { class: "check" }, this.review, " left undecided where class and score disagree")),
      button("Back to the present one", () => this.show()),
      (this.outcome = el("div", { role: "status", "aria-live": "polite" })),
    );
  }

  /** open: whether it can be switched off (null). */
  slider(name, label, value, highest, open = false) {
    const number = el("output", {}, value === null ? "never" : fixed(value));
    const range = el("input", { type: "range", min: 0, max: highest, step: 0.001, value: value ?? highest, disabled: value === null });
    this.inputs.set(name, () => (range.disabled ? "none" : range.value));
    range.addEventListener("input", () => {
      number.textContent = fixed(Number(range.value));
      this.ask();
    });
    const toggle = open
      ? el("label", { class: "check" }, el("input", { type: "checkbox", set: { checked: value !== null }, on: { change: (event) => this.toggled(event, range, number) } }), " on")
      : null;
    return el("div", { class: "slider" }, el("label", {}, el("span", {}, label), range), number, toggle);
  }

  toggled(event, range, number) {
    range.disabled = !event.target.checked;
    number.textContent = range.disabled ? "never" : fixed(Number(range.value));
    this.ask();
  }

  query() {
    const query = { review_disagreement: this.review.checked };
    for (const [name, read] of this.inputs) query[name] = read();
    return query;
  }

  async preview() {
    this.aborter?.abort();
    this.aborter = new AbortController();
    const { signal } = this.aborter;
    try {
      const moved = await get("/api/operating-point", this.query(), signal);
      if (!signal.aborted) this.outcome.replaceChildren(...this.compared(moved));
    } catch (error) {
      if (error.name !== "AbortError" && !signal.aborted) this.outcome.replaceChildren(el("p", { class: "alarm" }, error.message));
    }
  }

  compared(moved) {
    const now = Object.fromEntries(this.present.pareto.map(({ class: name, count }) => [name, count]));
    const names = [...new Set([...Object.keys(now), ...Object.keys(moved.verdicts)])];
    const rows = names.map((name) => {
      const [before, after] = [now[name] ?? 0, moved.verdicts[name] ?? 0];
      const change = after - before;
      return [[mark(name), ` ${name}`], String(before), String(after), change === 0 ? "·" : change > 0 ? `+${change}` : `−${-change}`];
    });
    rows.push(["Purity", rate(this.present.purity), rate(moved.purity), ""], ["Coverage", rate(this.present.coverage), rate(moved.coverage), ""]);
    const count = moved.changed_count ?? moved.changed.length;
    const links = moved.changed.slice(0, SHOWN).map((id) => button(`#${id}`, () => this.hooks.open(id), { class: "link", "aria-label": `Show frame ${id}` }));
    return [
      table("Present operating point against the moved one", ["Verdict", "Present", "Moved", "Change"], rows),
      el("p", { id: "changed" }, count === 0 ? "No verdict would change." : `${count} ${count === 1 ? "verdict" : "verdicts"} would change: `, ...links, count > links.length ? " …" : ""),
    ];
  }
}
