// Teach again: from the corrections to a recipe that is compared, then accepted or discarded; and the recipes before.

import { get, post } from "./api.js";
import { button, byId, el, table } from "./dom.js";
import { change, rate } from "./rates.js";

/** Milliseconds between two looks at a job. */
const LOOK = 700;
const SHOWN = 50;

const NAMES = { accuracy: "Accuracy", purity: "Purity", coverage: "Coverage", overkill: "Overkill", underkill: "Underkill", unknown: "Unknown", "cannot decide": "Cannot decide" };

export class Teach {
  /** hooks: said(text), failed(error), judging(). */
  constructor(hooks) {
    this.hooks = hooks;
    this.root = byId("view-teach");
    this.note = el("input", { type: "text", id: "note", maxlength: 500, placeholder: "why, for the history" });
    this.start = button("Teach again", () => this.teach(), { id: "teach", class: "main" });
    this.why = el("p", { class: "quiet", id: "why" });
    this.lines = el("pre", { class: "lines", role: "log", "aria-label": "What teaching says", tabindex: "0" });
    this.outcome = el("div", { id: "outcome" });
    this.decide = el(
      "div",
      { class: "row" },
      button("Accept the new recipe", () => this.act("/api/teach/accept", { note: this.note.value }, "The new recipe is accepted."), { id: "accept", class: "main" }),
      button("Discard it", () => this.act("/api/teach/discard", {}, "The new recipe is discarded; the old one stays."), { id: "discard" }),
    );
    this.judge = button("Judge these frames again", () => this.again(), { id: "judge" });
    this.history = el("div", { id: "history" });
    this.root.append(
      el("section", { class: "card" }, el("h2", {}, "Teach again with the corrections"), el("label", { for: "note" }, "Note"), this.note, el("div", { class: "row" }, this.start, this.judge), this.why, this.lines, this.outcome, this.decide),
      el("section", { class: "card" }, el("h2", {}, "Recipes"), this.history),
    );
    this.state = "idle";
    this.update({ what: "teach", state: "idle", lines: [], before_after: null });
  }

  /** From /api/facts: whether teaching is possible here, and why not. */
  offer({ can_teach: can, can_judge: judges, why_not: why, corrected }) {
    this.can = can;
    this.judges = judges;
    this.why.textContent = can ? `${corrected} ${corrected === 1 ? "frame is" : "frames are"} corrected. The recipe in use stays until you accept the new one.` : why;
    this.enable();
  }

  enable() {
    this.start.disabled = !this.can || this.state === "running";
    this.judge.disabled = !this.judges || this.state === "running";
  }

  async show() {
    try {
      this.update(await get("/api/teach"));
      await this.recipes();
    } catch (error) {
      this.hooks.failed(error);
    }
  }

  async teach() {
    try {
      await post("/api/teach", { note: this.note.value });
      this.update(await get("/api/teach"));
    } catch (error) {
      this.hooks.failed(error);
    }
  }

  /** what: "teach" or "judge", the job that runs or ran last. */
  update({ what, state, lines, before_after: compared }) {
    const ended = this.state === "running" && state !== "running";
    if (ended && state === "failed") this.hooks.failed(new Error(`${what === "teach" ? "Teaching" : "Judging"} failed: ${lines.at(-1) ?? "it said nothing"}`));
    else if (ended) this.hooks.said(what === "teach" ? "Teaching is done: compare, then accept or discard." : `Judged again: ${lines.at(-1) ?? ""}`);
    const taught = what === "teach" && state === "done";
    this.state = state;
    this.lines.textContent = lines.join("\n");
    this.lines.hidden = lines.length === 0;
    this.lines.scrollTop = this.lines.scrollHeight;
    this.decide.hidden = !taught;
    this.outcome.replaceChildren(...(taught ? this.compared(compared) : []));
    this.root.setAttribute("aria-busy", String(state === "running"));
    this.enable();
    clearTimeout(this.timer);
    if (state === "running") this.timer = setTimeout(() => this.look(), LOOK);
  }

  async look() {
    try {
      this.update(await get("/api/teach"));
    } catch (error) {
      this.hooks.failed(error);
      this.timer = setTimeout(() => this.look(), 5 * LOOK);
    }
  }

  /** What `sem-clip teach --corrections --json` writes. */
  compared(found) {
    if (!found) return [el("p", { class: "quiet" }, "All frames taught: there are none left to compare the recipes on.")];
    const { frames, corrected, before, after, changed } = found;
    const names = Object.keys(NAMES).filter((name) => name in before && name in after);
    const rows = names.map((name) => [NAMES[name], rate(before[name]), rate(after[name]), change(before[name], after[name])]);
    const better = changed.filter((one) => one.after === one.truth).length;
    const worse = changed.filter((one) => one.before === one.truth).length;
    const word = (one) => (one.after === one.truth ? "better" : one.before === one.truth ? "worse" : "other");
    return [
      table(`On ${frames} frames that taught neither, ${corrected} of them corrected`, ["", "Before", "After", "Points"], rows),
      el("p", { id: "changed-frames" }, changed.length === 0 ? "No verdict changed on these frames." : `${changed.length} verdicts changed, ${better} for the better, ${worse} for the worse:`),
      el("ul", { class: "changes" }, changed.slice(0, SHOWN).map((one) => el("li", {}, `${word(one)}: ${one.frame}: ${one.before} → ${one.after} (it is ${one.truth})`))),
    ];
  }

  async act(path, body, words) {
    try {
      await post(path, body);
      this.hooks.said(words);
      await this.show();
    } catch (error) {
      this.hooks.failed(error);
    }
  }

  async again() {
    try {
      await post("/api/judge");
      this.update(await get("/api/teach"));
      this.hooks.said("The frames are judged again by the recipe in use.");
      this.hooks.judging();
    } catch (error) {
      this.hooks.failed(error);
    }
  }

  async recipes() {
    let recipes = [];
    try {
      ({ recipes } = await get("/api/recipes"));
    } catch (error) {
      this.history.replaceChildren(el("p", { class: "quiet" }, error.message)); // without a bundle there is none
      return;
    }
    const rows = recipes.map((recipe) => [
      String(recipe.number),
      recipe.when ?? "–",
      [recipe.note || "no note", recipe.who ? ` (${recipe.who})` : ""],
      recipe.current ? "in use" : button("Back to it", () => this.back(recipe.number), { "aria-label": `Back to recipe ${recipe.number}` }),
    ]);
    this.history.replaceChildren(rows.length ? table("Recipes of this bundle", ["Number", "When", "Note", ""], rows) : el("p", { class: "quiet" }, "No recipe was accepted here yet."));
  }

  async back(number) {
    try {
      await post("/api/recipes/back", { number });
      this.hooks.said(`Recipe ${number} is in use again. Judge the frames again to see its verdicts.`);
      await this.recipes();
    } catch (error) {
      this.hooks.failed(error);
    }
  }
}
