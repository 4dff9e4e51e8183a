// The chosen frame: what the runtime says of it, its picture, the classes to correct it to, and frames like it.

import { get, pictureOf, supportOf } from "./api.js";
import { button, el, fixed, length, percent, settled } from "./dom.js";
import { Drawing } from "./drawing.js";
import { mark } from "./marks.js";
import { Viewer } from "./viewer.js";

/** Milliseconds of rest before what takes the server work is asked for: keys held down ask for none of it. */
const REST = 120;
const SIMILAR = 12;
const SUPPORTS = 4;

export class Detail {
  /** hooks: correct(frame, name, mask), open(frame), said(text), failed(error). */
  constructor(root, what, hooks) {
    this.root = root;
    this.hooks = hooks;
    this.frame = null;
    this.keys = {};
    this.ask = settled(() => this.load(), REST);
    this.zoom = el("span", { class: "quiet" });
    this.viewer = new Viewer(what, (scale) => (this.zoom.textContent = percent(scale).replace(".0 ", " ")));
    this.drawing = new Drawing(this.viewer, {
      save: () => this.saveMask(),
      changed: () => this.marked(),
      said: hooks.said,
    });
    this.parts();
    this.show(null);
  }

  parts() {
    this.title = el("h2", { class: "name" });
    this.answer = el("p", { class: "answer" });
    this.reason = el("p", { class: "quiet" });
    this.state = el("p", { class: "state" });
    this.classes = el("div", { class: "classes", role: "group", "aria-label": "Correct this frame to" });
    this.other = el("input", { type: "text", id: "new-class", maxlength: 100, placeholder: "another class", "aria-label": "Name of another class", autocomplete: "off" });
    const another = el("form", { class: "another", on: { submit: (event) => this.another(event) } }, this.other, el("button", {}, "Use it"));
    this.facts = el("dl", { class: "facts" });
    this.regions = el("ul", { class: "regions", "aria-label": "Regions, strongest first" });
    this.similar = el("div", { class: "strip", id: "similar" });
    this.supports = el("div", { class: "strip supports", id: "supports" });
    const tools = el(
      "div",
      { class: "tools", role: "group", "aria-label": "View of the frame" },
      button("−", () => this.viewer.zoomBy(0.67), { "aria-label": "Zoom out" }),
      button("+", () => this.viewer.zoomBy(1.5), { "aria-label": "Zoom in" }),
      button("Fit", () => this.viewer.fit()),
      button("1:1", () => this.viewer.zoomBy(1 / this.viewer.scale), { "aria-label": "One screen pixel for each pixel of the frame" }),
      this.zoom,
      (this.draw = button("Draw mask", () => this.toggleDrawing(), { id: "draw", "aria-pressed": "false" })),
      button("Large", () => this.large(), { id: "large", "aria-pressed": "false", title: "Enter" }),
    );
    this.body = el(
      "div",
      { class: "body" },
      el("div", { class: "said" }, this.title, this.answer, this.reason, this.state),
      this.viewer.root,
      tools,
      this.drawing.bar,
      this.classes,
      another,
      el("div", { class: "columns" }, el("div", {}, el("h3", {}, "Numbers"), this.facts), el("div", {}, el("h3", {}, "Regions"), this.regions)),
      el("h3", {}, "Beside the nearest supports"),
      this.supports,
      el("h3", {}, "Similar frames"),
      this.similar,
    );
    this.empty = el("p", { class: "quiet" }, "No frame is chosen.");
    this.root.replaceChildren(this.body, this.empty);
  }

  /** The classes, and by key the class that it stands for. */
  classesOf(classes, keys) {
    this.keys = Object.fromEntries(Object.entries(keys).map(([key, name]) => [name, key]));
    this.names = classes;
    this.choices();
  }

  choices() {
    const now = this.frame?.corrected?.new ?? null;
    const chosen = document.activeElement?.dataset?.class;
    this.classes.replaceChildren(
      ...(this.names ?? []).map((name) =>
        button([mark(name), ` ${name} `, this.keys[name] ? el("kbd", {}, this.keys[name]) : null], () => this.hooks.correct(this.frame, name), {
          "data-class": name,
          "aria-pressed": String(name === now),
        }),
      ),
    );
    if (chosen !== undefined) [...this.classes.children].find((each) => each.dataset.class === chosen)?.focus();
  }

  another(event) {
    event.preventDefault();
    const name = this.other.value.trim();
    if (name === "" || this.frame === null) return this.hooks.said("Write the name of the class first.");
    this.other.value = "";
    return this.hooks.correct(this.frame, name);
  }

  large() {
    const on = document.body.classList.toggle("large");
    this.root.querySelector("#large").setAttribute("aria-pressed", String(on));
  }

  toggleDrawing() {
    if (this.drawing.open) this.drawing.close();
    else if (this.frame !== null) this.drawing.start(this.frame, this.full?.outline, this.frame.corrected);
  }

  marked() {
    if (!this.drawing) return; // while it is made
    this.draw.setAttribute("aria-pressed", String(this.drawing.open));
    this.drawing.bar.querySelector("#save-mask").disabled = !this.drawing.drawn;
  }

  /** Keep what is drawn with the class that the frame has now. */
  saveMask() {
    const name = this.frame?.corrected?.new ?? this.frame?.label ?? null;
    if (name === null) return this.hooks.said("Choose the class: the mask is saved with it.");
    return this.hooks.correct(this.frame, name);
  }

  /** Show an entry of /api/frames at once, and all else about it as soon as nothing moves. */
  show(frame) {
    const same = frame !== null && this.frame !== null && frame.id === this.frame.id;
    if (!same && this.frame !== null && this.drawing.remember(this.frame.id)) this.hooks.said("The drawing is not saved. It is there when you draw on that frame again.");
    this.frame = frame;
    if (!same) this.aborter?.abort();
    this.body.hidden = frame === null;
    this.empty.hidden = frame !== null;
    if (frame === null) return this.drawing.close();
    if (!same) {
      this.full = null;
      this.drawing.close();
      this.viewer.show(frame);
      this.facts.replaceChildren();
      this.regions.replaceChildren();
      this.similar.replaceChildren();
      this.supports.replaceChildren();
      this.reason.textContent = "";
      this.ask();
    }
    this.heading();
    this.choices();
  }

  heading() {
    const { name, verdict, label, confidence, error, corrected, lot, wafer, defect_id: defect } = this.frame;
    this.title.textContent = name;
    this.title.title = name;
    const leaning = verdict !== label && label !== null ? `, leaning to ${label}` : "";
    this.answer.replaceChildren(mark(verdict), error === null ? ` ${verdict}${leaning}, confidence ${fixed(confidence)}` : ` failed: ${error}`);
    const place = [["lot", lot], ["wafer", wafer], ["defect", defect]].filter(([, value]) => value !== null && value !== undefined);
    const where = place.map(([what, value]) => `${what} ${value}`).join(", ");
    const by = corrected ? `Corrected to ${corrected.new}${corrected.mask ? " with a mask" : ""} by ${corrected.who}, ${corrected.when}` : "Not corrected";
    this.state.textContent = where ? `${by} · ${where}` : by;
    this.state.classList.toggle("done", Boolean(corrected));
  }

  async load() {
    if (this.frame === null) return;
    const { id } = this.frame;
    this.aborter = new AbortController();
    const { signal } = this.aborter;
    const part = async (path, query, use, place) => {
      try {
        const found = await get(path, query, signal);
        if (!signal.aborted && this.frame?.id === id) use(found);
      } catch (error) {
        // What is not to be had, without a bundle for example, is said in its place.
        if (error.name !== "AbortError" && !signal.aborted) place.replaceChildren(el("p", { class: "quiet" }, error.message));
      }
    };
    await part(`/api/frames/${id}`, {}, (full) => this.told(full), this.reason);
    if (signal.aborted || this.frame?.error !== null) return;
    await part(`/api/frames/${id}/supports`, { count: SUPPORTS }, ({ supports }) => this.beside(supports), this.supports);
    await part(`/api/frames/${id}/similar`, { count: SIMILAR }, ({ frames }) => this.alike(frames), this.similar);
  }

  told(full) {
    this.full = full;
    this.reason.textContent = full.reason ?? "";
    this.title.title = full.source ?? full.name;
    this.viewer.shapesOf(full);
    if (this.drawing.open) this.drawing.outline = full.outline ?? [];
    const side = full.pixel_size_nm;
    const rows = [
      ["Defect score", `${fixed(full.score)} of ${fixed(full.defect_threshold)}`],
      ["Novelty", fixed(full.novelty)],
      ["Size", length(full.size_nm)],
      ["Frame", full.width ? `${full.width} × ${full.height} px` : "–"],
      ["Pixel", side ? (Array.isArray(side) ? side.map((value) => length(value)).join(" × ") : length(side)) : "unknown"],
      ...Object.entries(full.probabilities ?? {}).map(([name, value]) => [`P(${name})`, fixed(value)]),
      ...(full.warnings ?? []).map((text) => ["Warning", text]),
    ];
    this.facts.replaceChildren(...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
    this.regions.replaceChildren(...(full.regions ?? []).map((region, place) => el("li", {}, this.region(region, place))));
    if (!full.regions?.length) this.regions.append(el("li", { class: "quiet" }, "none"));
  }

  region(region, place) {
    const size = region.equivalent_diameter_nm ?? region.longest_side_nm ?? null;
    const words = `${place + 1}: ${region.width} × ${region.height} px${size === null ? "" : `, ${length(size)}`}, peak ${fixed(region.peak, 2)}`;
    return button(words, () => this.zoomTo(place), { "aria-label": `Zoom to region ${words}` });
  }

  zoomTo(place) {
    const found = this.full?.regions ?? [];
    if (found.length === 0) return this.hooks.said("This frame has no region.");
    this.turn = place % found.length;
    this.viewer.point(this.turn);
    return this.viewer.zoomTo(found[this.turn]);
  }

  nextRegion() {
    this.zoomTo(this.full === null || this.turn === undefined ? 0 : this.turn + 1);
  }

  beside(supports) {
    const here = this.figure(pictureOf(this.frame.id), `This frame`, this.frame.verdict, this.frame.verdict ?? "failed");
    const others = supports.map((support) =>
      this.figure(support.picture ? supportOf(support.number) : null, `Support ${support.name}`, support.class, `${support.class} · ${fixed(support.cosine, 2)}`, support.name),
    );
    this.supports.replaceChildren(...(others.length ? [here, ...others] : [el("p", { class: "quiet" }, "The recipe has no supports.")]));
    if (supports.length && !supports.some((support) => support.picture)) {
      this.supports.append(el("p", { class: "quiet" }, "Their pictures are shown with --data DIR, the folder that taught."));
    }
  }

  figure(source, alt, verdict, words, title = "") {
    const picture = source === null ? el("span", { class: "missing" }, "no picture") : el("img", { src: source, alt });
    return el("figure", { title }, picture, el("figcaption", {}, mark(verdict), ` ${words}`));
  }

  alike(frames) {
    const one = (frame) =>
      button([el("img", { src: pictureOf(frame.id), alt: "" }), el("span", {}, mark(frame.corrected?.new ?? frame.verdict), ` ${fixed(frame.cosine, 2)}`)], () => this.hooks.open(frame), {
        title: frame.name,
        "aria-label": `${frame.name}, ${frame.corrected?.new ?? frame.verdict}, cosine ${fixed(frame.cosine, 2)}`,
      });
    this.similar.replaceChildren(...(frames.length ? frames.map(one) : [el("p", { class: "quiet" }, "There is no other frame.")]));
  }
}
