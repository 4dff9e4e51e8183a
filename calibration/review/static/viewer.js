// One frame, to zoom and to move: the picture, the map, the outline, the regions and what is drawn.

import { mapOf, pictureOf } from "./api.js";
import { el, settled, svg } from "./dom.js";

/** Pixels up to which a frame is fetched whole; of a larger one, what is in sight is fetched at full resolution. */
const WHOLE = 4_200_000;
const CLOSEST = 40;
const MARGIN = 24;

export class Viewer {
  /** what: `{opacity, outline}`. zoomed: called with the scale (screen pixels for one of the frame). */
  constructor(what, zoomed) {
    this.what = what;
    this.zoomed = zoomed;
    this.picture = el("img", { class: "picture", alt: "", draggable: "false" });
    this.sharp = el("img", { class: "picture sharp", alt: "", draggable: "false" });
    this.map = el("img", { class: "map", alt: "", draggable: "false" });
    this.shapes = svg("svg", { class: "shapes", "aria-hidden": "true" });
    this.sheet = el("div", { class: "sheet" }, this.picture, this.sharp, this.map, this.shapes);
    this.note = el("p", { class: "note" });
    this.root = el(
      "div",
      { class: "stage", tabindex: "0", role: "application", "aria-label": "The frame, enlarged. Plus and minus zoom, arrow keys move it, equals fits it.", on: { keydown: (event) => this.key(event) } },
      this.sheet,
      this.note,
    );
    this.sharpen = settled(() => this.fetchSharp(), 150);
    this.drawing = null;
    this.clear();
    this.listen();
    new ResizeObserver(() => (this.fitted ? this.fit() : this.apply())).observe(this.root);
  }

  listen() {
    this.root.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), this.at(event));
    }, { passive: false });
    this.root.addEventListener("pointerdown", (event) => {
      if (this.drawing?.down(event)) return;
      this.root.setPointerCapture(event.pointerId);
      this.dragged = [event.clientX - this.x, event.clientY - this.y];
    });
    this.root.addEventListener("pointermove", (event) => {
      if (this.drawing?.move(event)) return;
      if (this.dragged === null) return;
      [this.x, this.y] = [event.clientX - this.dragged[0], event.clientY - this.dragged[1]];
      this.fitted = false;
      this.apply();
    });
    for (const end of ["pointerup", "pointercancel"]) {
      this.root.addEventListener(end, (event) => {
        this.drawing?.up(event);
        this.dragged = null;
      });
    }
    this.root.addEventListener("dblclick", (event) => this.drawing?.double(event) || this.fit());
    this.picture.addEventListener("load", () => this.came());
    this.picture.addEventListener("error", () => this.say("The frame cannot be shown: its file is gone or has changed."));
    for (const image of [this.sharp, this.map]) {
      image.addEventListener("load", () => (image.hidden = false));
      image.addEventListener("error", () => (image.hidden = true));
    }
  }

  say(text) {
    this.note.textContent = text;
    this.note.hidden = text === "";
  }

  clear() {
    for (const image of [this.picture, this.sharp, this.map]) image.removeAttribute("src");
    this.sharp.hidden = this.map.hidden = true;
    this.shapes.replaceChildren();
    [this.frame, this.scale, this.x, this.y, this.fitted, this.dragged] = [null, 1, 0, 0, true, null];
    [this.width, this.height] = [0, 0];
    this.say("");
  }

  /** Show an entry of /api/frames. */
  show(frame) {
    this.clear();
    this.frame = frame;
    if (frame.error !== null) return this.say(`This frame has no answer: ${frame.error}`);
    this.picture.alt = `Frame ${frame.name}, verdict ${frame.verdict}`;
    if (frame.width && frame.height) this.size(frame.width, frame.height);
    const whole = frame.width * frame.height <= WHOLE;
    this.picture.src = pictureOf(frame.id, whole ? "full" : "thumb");
    this.layers();
  }

  size(width, height) {
    [this.width, this.height] = [width, height];
    this.sheet.style.width = `${width}px`;
    this.sheet.style.height = `${height}px`;
    this.shapes.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.fit();
  }

  came() {
    if (this.width === 0) this.size(this.picture.naturalWidth, this.picture.naturalHeight);
  }

  get whole() {
    return this.width * this.height <= WHOLE;
  }

  layers() {
    this.root.classList.toggle("outlined", this.what.outline);
    if (this.frame !== null && this.frame.error === null && this.what.opacity > 0 && !this.map.src) {
      this.map.src = mapOf(this.frame.id, this.whole ? "full" : "thumb");
    }
  }

  /** Draw what /api/frames/ID says: polygons of the mask and boxes of the regions, in pixels of the frame. */
  shapesOf({ outline, regions }) {
    const polygons = (outline ?? []).map((points) => svg("polygon", { class: "edge", points: points.map((point) => point.join(",")).join(" ") }));
    const boxes = (regions ?? []).map(({ x, y, width, height }) => svg("rect", { class: "box", x, y, width, height }));
    this.shapes.replaceChildren(...polygons, ...boxes);
  }

  /** Mark one region among those of `shapesOf`. */
  point(number) {
    for (const [place, box] of [...this.shapes.querySelectorAll(".box")].entries()) box.classList.toggle("on", place === number);
  }

  fit() {
    if (!this.width) return;
    const { clientWidth, clientHeight } = this.root;
    this.scale = Math.min(clientWidth / this.width, clientHeight / this.height);
    this.x = (clientWidth - this.width * this.scale) / 2;
    this.y = (clientHeight - this.height * this.scale) / 2;
    this.fitted = true;
    this.apply();
  }

  /** Bring a region into the middle, at one screen pixel for one of the frame or larger. */
  zoomTo({ x, y, width, height }) {
    const { clientWidth, clientHeight } = this.root;
    const close = Math.min((clientWidth - 2 * MARGIN) / width, (clientHeight - 2 * MARGIN) / height, 12);
    this.scale = Math.max(close, Math.min(clientWidth / this.width, clientHeight / this.height));
    this.x = clientWidth / 2 - (x + width / 2) * this.scale;
    this.y = clientHeight / 2 - (y + height / 2) * this.scale;
    this.fitted = false;
    this.apply();
  }

  /** at: the point of the stage that stays, its middle by default. */
  zoomBy(factor, at = [this.root.clientWidth / 2, this.root.clientHeight / 2]) {
    if (!this.width) return;
    const least = 0.5 * Math.min(this.root.clientWidth / this.width, this.root.clientHeight / this.height);
    const scale = Math.min(CLOSEST, Math.max(least, this.scale * factor));
    this.x = at[0] - ((at[0] - this.x) * scale) / this.scale;
    this.y = at[1] - ((at[1] - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.apply();
  }

  at(event) {
    const box = this.root.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  /** The place of a pointer in pixels of the frame. */
  inFrame(event) {
    const [x, y] = this.at(event);
    return [(x - this.x) / this.scale, (y - this.y) / this.scale];
  }

  apply() {
    this.sheet.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.sheet.classList.toggle("close", this.scale >= 2);
    this.root.style.setProperty("--pixel", `${1 / this.scale}px`);
    this.zoomed(this.scale);
    if (this.width && !this.whole) this.sharpen();
  }

  /** Of a large frame, the part in sight at full resolution, once nothing moves. */
  fetchSharp() {
    if (this.frame === null || this.frame.error !== null) return;
    const { clientWidth, clientHeight } = this.root;
    const left = Math.max(0, Math.floor(-this.x / this.scale));
    const top = Math.max(0, Math.floor(-this.y / this.scale));
    const width = Math.min(this.width, Math.ceil((clientWidth - this.x) / this.scale)) - left;
    const height = Math.min(this.height, Math.ceil((clientHeight - this.y) / this.scale)) - top;
    if (width <= 0 || height <= 0 || width * height > 4 * WHOLE) return;
    this.sharp.hidden = true;
    for (const [name, value] of Object.entries({ left, top, width, height })) this.sharp.style[name] = `${value}px`;
    this.sharp.src = pictureOf(this.frame.id, "full", [left, top, width, height]);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (this.drawing?.key(event)) {
      event.preventDefault();
      event.stopPropagation();
      return;
    }
    const step = event.shiftKey ? 10 : 60;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (!(event.key in moves)) return;
    this.x += moves[event.key][0];
    this.y += moves[event.key][1];
    this.fitted = false;
    this.apply();
    event.preventDefault();
    event.stopPropagation();
  }
}
