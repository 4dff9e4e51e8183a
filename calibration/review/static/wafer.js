// The wafer: a mark for each frame where it was found.

import { newest } from "./api.js";
import { byId, el, svg } from "./dom.js";
import { mark, shape, tone } from "./marks.js";

const MOST = 20000;
const SIZE = 640;
const RADIUS = 300;

export class Wafer {
  /** hooks: open(id), failed(error). */
  constructor(hooks) {
    this.hooks = hooks;
    this.get = newest();
    this.root = byId("view-wafer");
    this.select = el("select", { id: "wafer-choice", on: { change: () => this.load() } });
    this.legend = el("ul", { class: "legend", "aria-label": "Verdicts" });
    this.said = el("p", { class: "quiet", id: "wafer-said", role: "status", "aria-live": "polite" });
    this.drawing = el("div", { class: "wafer", tabindex: "0", role: "application", "aria-label": "Wafer map. Arrow keys go to the next frame in that direction, Enter shows it.", on: { keydown: (event) => this.key(event) } });
    this.none = el("p", { class: "quiet" }, "No frame of this store has a place on a wafer. Lots have one: `sem-clip classify-lot --store`.");
    this.some = el("div", {}, el("label", { for: "wafer-choice" }, "Wafer "), this.select, this.legend, this.drawing, this.said);
    this.root.append(this.none, this.some);
    this.offer({ wafers: [] });
  }

  offer({ wafers }) {
    const before = this.select.value;
    this.wafers = wafers;
    this.none.hidden = wafers.length > 0;
    this.some.hidden = wafers.length === 0;
    this.select.replaceChildren(...wafers.map(({ lot, wafer }, place) => el("option", { value: place }, `${lot ?? "no lot"}, wafer ${wafer ?? "–"}`)));
    if (before !== "" && Number(before) < wafers.length) this.select.value = before;
  }

  show() {
    if (this.wafers.length > 0) this.load();
  }

  async load() {
    const { lot, wafer, mm } = this.wafers[Number(this.select.value)];
    try {
      const found = await this.get("/api/wafer", { lot, wafer });
      this.draw({ ...found, mm: found.mm ?? mm });
    } catch (error) {
      this.hooks.failed(error);
    }
  }

  draw({ points, mm }) {
    const shown = points.slice(0, MOST);
    let reach = mm ? mm * 5e5 : 1; // half a diameter in nm
    for (const { x, y } of shown) reach = Math.max(reach, Math.hypot(x, y));
    const scale = RADIUS / reach;
    const marks = shown.map((point) => {
      const [x, y] = [SIZE / 2 + point.x * scale, SIZE / 2 - point.y * scale];
      const path = svg("path", { d: shape(point.verdict), "fill-rule": "evenodd", class: tone(point.verdict), transform: `translate(${x - 5} ${y - 5}) scale(0.72)`, on: { click: () => this.hooks.open(point.id) } });
      path.append(svg("title", {}, this.words(point)));
      return { point, x, y, path };
    });
    const edge = mm ? svg("circle", { cx: SIZE / 2, cy: SIZE / 2, r: mm * 5e5 * scale, class: "edge" }) : null;
    this.ring = svg("circle", { r: 10, class: "ring", visibility: "hidden" });
    this.marks = marks;
    this.at = -1;
    this.drawing.replaceChildren(svg("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, "aria-hidden": "true" }, edge, marks.map(({ path }) => path), this.ring));
    const counts = new Map();
    for (const { verdict } of shown) counts.set(verdict, (counts.get(verdict) ?? 0) + 1);
    this.legend.replaceChildren(...[...counts].map(([verdict, count]) => el("li", {}, mark(verdict), ` ${verdict ?? "failed"} ${count}`)));
    this.said.textContent = points.length > MOST ? `The first ${MOST} of ${points.length} frames are drawn.` : `${points.length} frames. y points upwards.`;
  }

  words({ id, verdict, x, y }) {
    return `Frame ${id}: ${verdict ?? "failed"} at x ${(x / 1e6).toFixed(2)} mm, y ${(y / 1e6).toFixed(2)} mm`;
  }

  key(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Enter" && this.at >= 0) this.hooks.open(this.marks[this.at].point.id);
    else if (way && this.marks?.length) this.step(way);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** To the nearest mark in a direction; the further aside, the less near. */
  step([dx, dy]) {
    const from = this.marks[this.at] ?? { x: SIZE / 2, y: SIZE / 2 };
    let [best, least] = [this.at, Infinity];
    for (const [place, { x, y }] of this.marks.entries()) {
      const ahead = (x - from.x) * dx + (y - from.y) * dy;
      const aside = Math.abs((x - from.x) * dy) + Math.abs((y - from.y) * dx);
      if (place !== this.at && ahead > 0.01 && ahead + 2 * aside < least) [best, least] = [place, ahead + 2 * aside];
    }
    if (best < 0) best = 0;
    this.at = best;
    const { point, x, y } = this.marks[best];
    for (const [name, value] of Object.entries({ cx: x, cy: y, visibility: "visible" })) this.ring.setAttribute(name, value);
    this.said.textContent = this.words(point);
  }
}
