// Teach again: from the corrections to a recipe that is compared, then accepted or discarded; and the recipes before.

import { newest, post } from "./api.js";
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
    [this.get, this.getRecipes] = [newest(), newest()];
    this.root = byId("view-teach");
    this.note = el("input", { type: "text", id: "note", maxlength: 500, placeholder: "why, for the history" });
    this.start = button("Teach again", () => this.teach(), { id: "teach", class: "main" });
    this.why = el("p", { class: "quiet", id: "why" });
    this.lines = el("pre", { class: "lines", role: "log", "aria-label": "What teaching says", tabindex: "0" });
    this.outcome = el("div", { id: "outcome" });
    this.decide = el(
      "div",
      { class: "row" },
      (this.accepts = button("Accept the new recipe", () => this.accept(), { id: "accept", class: "main" })),
      (this.discards = button("Discard it", () => this.discard(), { id: "discard" })),
    );
    this.judge = button("Judge these frames again", () => this.again(), { id: "judge" });
    this.history = el("div", { id: "history" });
    this.busy = el("p", { id: "busy", hidden: true });
    this.root.append(
      el("section", { class: "card" }, el("h2", {}, "Teach again with the corrections"), el("label", { for: "note" }, "Note"), this.note, el("div", { class: "row" }, this.start, this.judge), this.why, this.lines, this.outcome, this.decide, this.busy),
      el("section", { class: "card" }, el("h2", {}, "Recipes"), this.history),
    );
    [this.state, this.changing] = ["idle", false];
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
    const waits = this.state === "running" || this.changing;
    this.start.disabled = !this.can || waits;
    this.judge.disabled = !this.judges || waits;
    for (const one of [this.accepts, this.discards, ...this.history.querySelectorAll("button")]) one.disabled = waits;
    this.root.setAttribute("aria-busy", String(waits));
  }

  async show() {
    await this.look();
    await this.recipes();
  }

  async teach() {
    try {
      await post("/api/teach", { note: this.note.value });
    } catch (error) {
      return this.hooks.failed(error);
    }
    this.state = "running";
    await this.look();
  }

  /** what: "teach" or "judge", the job that runs or ran last. */
  update({ what, state, lines, before_after: compared, warning }) {
    const ended = this.state === "running" && state !== "running";
    if (ended && state === "failed") this.hooks.failed(new Error(`${what === "teach" ? "Teaching" : "Judging"} failed: ${lines.at(-1) ?? "it said nothing"}`));
    else if (ended) this.hooks.said(what === "teach" ? "Teaching is done: compare, then accept or discard." : `Judged again: ${lines.at(-1) ?? ""}`);
    const taught = what === "teach" && state === "done";
    this.state = state;
    this.lines.textContent = lines.join("\n");
    this.lines.hidden = lines.length === 0;
    this.lines.scrollTop = this.lines.scrollHeight;
    this.decide.hidden = !taught;
    this.outcome.replaceChildren(...(taught && warning ? [el("p", { class: "alarm" }, warning)] : []), ...(taught ? this.compared(compared) : []));
    this.enable();
    clearTimeout(this.timer);
    if (state === "running") this.timer = setTimeout(() => this.look(), LOOK);
  }

  async look() {
    clearTimeout(this.timer);
    try {
      this.update(await this.get("/api/teach"));
    } catch (error) {
      if (error.name === "AbortError") return;
      this.hooks.failed(error);
      if (this.state === "running") this.timer = setTimeout(() => this.look(), 5 * LOOK);
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

  accept() {
    const during = "The new recipe is being accepted: the golden frames get its answers. This takes some seconds.";
    return this.change("/api/teach/accept", { note: this.note.value }, during, "The new recipe is accepted.");
  }

  discard() {
    return this.change("/api/teach/discard", {}, "The new recipe is being discarded.", "The new recipe is discarded; the old one stays.");
  }

  back(number) {
    const during = `Recipe ${number} is being put back: the golden frames get its answers. This takes some seconds.`;
    return this.change("/api/recipes/back", { number }, during, `Recipe ${number} is in use again. Judge the frames again to see its verdicts.`);
  }

  /** One change of the recipe at a time; until the server has answered, `during` is shown and no button acts. */
  async change(path, body, during, after) {
    if (this.changing) return;
    this.changing = true;
    [this.busy.textContent, this.busy.hidden] = [during, false];
    this.enable();
    this.hooks.said(during);
    try {
      await post(path, body);
      this.hooks.said(after);
      await this.show();
    } catch (error) {
      this.hooks.said("");
      this.hooks.failed(error);
    } finally {
      this.changing = false;
      this.busy.hidden = true;
      this.enable();
    }
  }

  async again() {
    try {
      await post("/api/judge");
    } catch (error) {
      return this.hooks.failed(error);
    }
    this.hooks.said("The frames are judged again by the recipe in use.");
    this.hooks.judging();
    this.state = "running";
    await this.look();
  }

  async recipes() {
    let recipes = [];
    try {
      ({ recipes } = await this.getRecipes("/api/recipes"));
    } catch (error) {
      if (error.name === "AbortError") return;
      this.history.replaceChildren(el("p", { class: "quiet" }, error.message)); // without a bundle there is none
      return;
    }
    const used = recipes.find((recipe) => recipe.current);
    const state = (recipe) => {
      if (recipe.current) return "in use";
      if (used && recipe.sha256 === used.sha256) return `in use, as ${used.number}`; // the same recipe, on an earlier line
      return button("Back to it", () => this.back(recipe.number), { "aria-label": `Back to recipe ${recipe.number}` });
    };
    const rows = recipes.map((recipe) => [String(recipe.number), recipe.when ?? "–", [recipe.note || "no note", recipe.who ? ` (${recipe.who})` : ""], state(recipe)]);
    this.history.replaceChildren(rows.length ? table("Recipes of this bundle", ["Number", "When", "Note", ""], rows) : el("p", { class: "quiet" }, "No recipe was accepted here yet."));
    this.enable();
  }
}
