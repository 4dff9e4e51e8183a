// Counts of the whole store, and what another operating point would change.

import { newest } from "./api.js";
import { button, byId, el, fixed, settled, table } from "./dom.js";
import { mark } from "./marks.js";
import { change, rate } from "./rates.js";

const SHOWN = 60;

export class Summary {
  /** hooks: open(id), failed(error). */
  constructor(hooks) {
    this.hooks = hooks;
    [this.get, this.getMoved] = [newest(), newest()];
    this.root = byId("view-summary");
    this.counts = el("div", { class: "cards" });
    this.point = el("section", { class: "card wide", "aria-labelledby": "point-title" });
    this.root.append(this.counts, this.point);
    this.ask = settled(() => this.preview(), 200);
  }

  async show() {
    try {
      const found = await this.get("/api/summary");
      this.counts.replaceChildren(this.rates(found), this.pareto(found.pareto), this.confusion(found.confusion));
      this.sliders(found.operating_point);
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
      el("p", { class: "quiet" }, "Purity: of the decided frames that were corrected or confirmed, the share that was right. Frames that have taught since then make it look better than it is. Coverage: the share of all frames that are decided."),
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
    return el("section", { class: "card" }, el("h2", {}, "Pareto"), table("Frames by verdict, the most frequent first", ["Verdict", "", "Frames", "Sum", "Corrected to it"], rows));
  }

  /** Rows and columns that hold nothing are left out. */
  confusion({ classes, rows }) {
    const most = Math.max(1, ...rows.flat());
    const down = classes.map((_, row) => row).filter((row) => rows[row].some(Boolean));
    const across = classes.map((_, column) => column).filter((column) => rows.some((counts) => counts[column]));
    const cell = (row, column) => {
      const count = rows[row][column];
      const td = el("td", { class: row === column ? "same" : "other" }, count ? String(count) : "·");
      td.style.setProperty("--share", `${Math.round((45 * count) / most)}%`);
      return td;
    };
    const body = down.map((row) => [[mark(classes[row]), ` ${classes[row]}`], ...across.map((column) => cell(row, column))]);
    const inside = body.length ? table("Rows: the verdict. Columns: the class it was corrected to.", ["", ...across.map((column) => classes[column])], body) : el("p", { class: "quiet" }, "Nothing is corrected yet.");
    return el("section", { class: "card" }, el("h2", {}, "Confusion"), el("div", { class: "scroll confusion" }, inside));
  }

  // The operating point: sliders, and what they would change. Nothing is stored.

  sliders(point) {
    this.inputs = new Map();
    if (point === null) {
      this.point.replaceChildren(el("h2", { id: "point-title" }, "Another operating point"), el("p", { class: "quiet" }, "The store does not know its operating point: start with --bundle."));
      return;
    }
    const floors = Object.values(point.confidence_thresholds);
    const rows = [
      this.slider("defect_threshold", "Defect threshold", point.defect_threshold, 1),
      this.slider("novelty_threshold", "Unknown above a novelty of", point.novelty_threshold, 2, { off: "none", shown: "never", start: 1 }),
      this.slider("reject", "Every class is decided from a confidence of", null, 1, { off: "", shown: "as it is", start: Math.max(0, ...floors) }),
    ];
    this.point.replaceChildren(
      el("h2", { id: "point-title" }, "Another operating point"),
      el("p", { class: "quiet" }, "What it would change in this store. Nothing is stored here; that is what ", el("code", {}, "sem-clip operating-point"), " does."),
      el("div", { class: "sliders" }, rows),
      button("Back to the present one", () => this.show()),
      (this.outcome = el("div", { role: "status", "aria-live": "polite" })),
    );
    this.preview();
  }

  /** optional: `{off, shown, start}` of a number that can be switched off: what is asked then, what is shown, where it begins. */
  slider(name, label, value, highest, optional = null) {
    const number = el("output", {}, value === null ? optional.shown : fixed(value));
    const range = el("input", { type: "range", min: 0, max: highest, step: "any", value: value ?? optional.start, disabled: value === null });
    let touched = false; // what nobody moved is not asked for, so that no digit is lost on it
    this.inputs.set(name, () => (!touched ? "" : range.disabled ? optional.off : range.value));
    const moved = () => {
      touched = true;
      number.textContent = range.disabled ? optional.shown : fixed(Number(range.value));
      this.ask();
    };
    range.addEventListener("input", moved);
    const flip = (event) => {
      range.disabled = !event.target.checked;
      moved();
    };
    const box = el("input", { type: "checkbox", set: { checked: value !== null }, on: { change: flip } });
    const toggle = optional === null ? null : el("label", { class: "check" }, box, "on");
    return el("div", { class: "slider" }, el("label", {}, el("span", {}, label), range), number, toggle);
  }

  async preview() {
    try {
      const query = Object.fromEntries([...this.inputs].map(([name, read]) => [name, read()]));
      this.outcome.replaceChildren(...this.compared(await this.getMoved("/api/operating-point", query)));
    } catch (error) {
      if (error.name !== "AbortError") this.outcome.replaceChildren(el("p", { class: "alarm" }, error.message));
    }
  }

  compared(moved) {
    const { before } = moved;
    const names = [...new Set([...Object.keys(before.verdicts), ...Object.keys(moved.verdicts)])];
    const rows = names.map((name) => {
      const [old, now] = [before.verdicts[name] ?? 0, moved.verdicts[name] ?? 0];
      return [[mark(name), ` ${name}`], String(old), String(now), now === old ? "·" : now > old ? `+${now - old}` : `−${old - now}`];
    });
    for (const [name, key] of [["Purity", "purity"], ["Coverage", "coverage"]]) rows.push([name, rate(before[key]), rate(moved[key]), change(before[key], moved[key])]);
    const links = moved.changed.slice(0, SHOWN).map((id) => button(`#${id}`, () => this.hooks.open(id), { class: "link", "aria-label": `Show frame ${id}` }));
    const count = moved.changed_total;
    return [
      table("The present operating point against the moved one", ["Verdict", "Present", "Moved", "Change"], rows),
      el("p", { id: "changed" }, count === 0 ? "No verdict would change." : `${count} ${count === 1 ? "verdict" : "verdicts"} would change: `, ...links, count > links.length ? " …" : ""),
      moved.left_out ? el("p", { class: "quiet" }, `${moved.left_out} frames are left out: not read, judged by other classes, or without scores.`) : "",
    ];
  }
}
