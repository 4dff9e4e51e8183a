// A mask, drawn on the frame: polygons and a brush that add or erase, and the outline that the runtime proposes.

import { maskOf } from "./api.js";
import { button, byId, el, svg } from "./dom.js";
import { base64, greyPng } from "./png.js";

/** Pixels of the largest frame that is drawn on: a canvas of four bytes each. */
const LARGEST = 64_000_000;
const COLOUR = "rgb(0, 200, 255)";
const ROWS = 512;

export class Drawing {
  /** viewer: whose frame is drawn on. hooks: save(mask), changed(), failed(error), said(text). */
  constructor(viewer, hooks) {
    this.viewer = viewer;
    this.hooks = hooks;
    this.canvas = el("canvas", { class: "drawn", "aria-hidden": "true", width: 0, height: 0 });
    this.cross = svg("g", { class: "cross" });
    this.line = svg("polyline", { class: "open" });
    this.overlay = svg("svg", { class: "shapes", "aria-hidden": "true" }, this.line, this.cross);
    viewer.sheet.append(this.canvas, this.overlay);
    this.kept = new Map();
    this.radius = 8;
    this.tool = "polygon";
    this.reset();
    this.bar = this.makeBar();
    this.close();
  }

  makeBar() {
    const tool = (name, label, hint) => button(label, () => this.take(name), { "data-tool": name, "aria-pressed": "false", title: hint });
    this.size = el("input", { type: "range", min: 1, max: 100, value: this.radius, "aria-label": "Radius of the brush in pixels of the frame", on: { input: () => (this.radius = Number(this.size.value)) } });
    return el(
      "div",
      { class: "tools drawing", role: "toolbar", "aria-label": "Drawing the mask" },
      tool("polygon", "Polygon", "Click corners; double-click, Enter or the first corner closes it"),
      tool("brush", "Brush", "Paint with the button held"),
      tool("eraser", "Eraser", "Erase with the button held"),
      el("label", {}, "Radius ", this.size),
      button("Accept outline", () => this.acceptOutline(), { id: "accept-outline" }),
      button("Take back", () => this.undo(), { title: "Ctrl+Z" }),
      button("Clear", () => this.wipe()),
      button("Save mask", () => this.hooks.save(), { id: "save-mask", class: "main" }),
      button("Close", () => this.discard(), { title: "Escape" }),
    );
  }

  reset() {
    this.steps = [];
    this.corners = [];
    this.stroke = null;
    this.spot = null;
    this.loaded = Promise.resolve();
  }

  get open() {
    return this.viewer.drawing === this;
  }

  /** Whether there is something that a correction should carry. */
  get drawn() {
    return this.open && this.steps.length > 0;
  }

  /** Start on the viewer's frame. outline: the polygons of its mask. corrected: its correction, or null. */
  start(frame, outline, corrected) {
    const { width, height } = this.viewer;
    if (!width || width * height > LARGEST) {
      this.hooks.said(width ? "This frame is too large to be drawn on here: draw its mask in another program." : "There is no picture to draw on.");
      return;
    }
    this.reset();
    this.outline = outline ?? [];
    [this.canvas.width, this.canvas.height] = [width, height];
    this.overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.canvas.hidden = false;
    this.bar.hidden = false;
    this.viewer.drawing = this;
    this.viewer.root.classList.add("drawing");
    this.spot = [width / 2, height / 2];
    this.take(this.tool);
    const before = this.kept.get(frame.id);
    if (before) {
      this.steps = before;
      this.paint();
    } else if (corrected?.mask) this.loadMask(frame, corrected);
    this.viewer.root.focus();
    this.hooks.said("Drawing: click corners, or move the cross with the arrow keys, Space sets a corner or a dab, Enter closes the polygon.");
    this.hooks.changed();
  }

  /** Keep what is drawn until the server has it (`forget`), or until the frame is drawn on again. */
  remember(id) {
    if (this.drawn) this.kept.set(id, this.steps);
    return this.drawn;
  }

  forget(id) {
    this.kept.delete(id);
  }

  loadMask(frame, corrected) {
    const image = new Image();
    let [done, refuse] = [null, null];
    this.loaded = new Promise((resolve, reject) => ([done, refuse] = [resolve, reject]));
    this.loaded.catch(() => this.hooks.said("The mask that was saved before cannot be read: Clear starts anew."));
    image.addEventListener("load", () => {
      done();
      if (this.viewer.frame?.id !== frame.id) return;
      this.steps.unshift({ kind: "mask", image: this.stencil(image) });
      this.paint();
    });
    image.addEventListener("error", () => refuse(new Error("Not saved: the mask that was saved before cannot be read.")));
    image.src = maskOf(frame.id, corrected.when);
  }

  /** A grey mask as a canvas that is clear where the mask is 0. */
  stencil(image) {
    const canvas = el("canvas", { width: this.canvas.width, height: this.canvas.height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < pixels.data.length; at += 4) pixels.data.set([0, 200, 255, pixels.data[at]], at);
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  close() {
    this.reset();
    if (this.open) this.viewer.drawing = null;
    if (document.activeElement === this.viewer.root) this.leave();
    this.bar.hidden = true;
    this.canvas.hidden = true;
    [this.canvas.width, this.canvas.height] = [0, 0];
    this.line.removeAttribute("points");
    this.cross.replaceChildren();
    this.viewer.root.classList.remove("drawing");
    this.hooks.changed();
  }

  /** The arrow keys are the gallery's again. */
  leave() {
    const gallery = byId("gallery");
    if (gallery.checkVisibility()) gallery.focus();
    else this.viewer.root.blur();
  }

  take(tool) {
    this.tool = tool;
    this.corners = [];
    for (const each of this.bar.querySelectorAll("[data-tool]")) each.setAttribute("aria-pressed", String(each.dataset.tool === tool));
    this.paint();
  }

  add(step) {
    this.steps.push(step);
    this.paint();
    this.hooks.changed();
  }

  acceptOutline() {
    if (this.outline.length === 0) return this.hooks.said("The runtime proposes no outline here: it found no defect.");
    this.add({ kind: "outline", polygons: this.outline });
    this.hooks.said("The outline is taken as it is. Save it, or choose the class.");
  }

  undo() {
    if (this.corners.length > 0) this.corners.pop();
    else this.steps.pop();
    this.paint();
    this.hooks.changed();
  }

  wipe() {
    this.loaded = Promise.resolve();
    this.corners = [];
    this.steps = [];
    this.paint();
    this.hooks.changed();
  }

  /** Stop, and keep nothing. */
  discard() {
    this.forget(this.viewer.frame?.id);
    this.close();
  }

  closePolygon() {
    if (this.corners.length < 3) return this.hooks.said("A polygon has at least three corners.");
    const polygons = [this.corners];
    this.corners = [];
    this.add({ kind: "polygon", polygons });
  }

  // Pointer and keys: each returns whether it was for drawing.

  down(event) {
    if (event.button !== 0 || event.shiftKey) return false;
    const point = this.viewer.inFrame(event);
    this.spot = point;
    if (this.tool === "polygon") this.corner(point);
    else {
      this.viewer.root.setPointerCapture(event.pointerId);
      this.stroke = { kind: this.tool, radius: this.radius, points: [point] };
      this.steps.push(this.stroke);
      this.paint();
    }
    return true;
  }

  move(event) {
    if (this.viewer.dragged !== null) return false;
    this.spot = this.viewer.inFrame(event);
    if (this.stroke !== null) {
      const before = this.stroke.points.at(-1);
      this.stroke.points.push(this.spot);
      this.dab(this.canvas.getContext("2d"), { ...this.stroke, points: [before, this.spot] });
    }
    this.guide();
    return true;
  }

  up() {
    if (this.stroke !== null) this.hooks.changed();
    this.stroke = null;
  }

  double() {
    if (this.tool === "polygon" && this.corners.length >= 3) this.closePolygon();
    return true;
  }

  corner(point) {
    const near = (other) => Math.hypot(point[0] - other[0], point[1] - other[1]) * this.viewer.scale < 8;
    if (this.corners.length >= 3 && near(this.corners[0])) return this.closePolygon();
    if (this.corners.length > 0 && near(this.corners.at(-1))) return undefined;
    this.corners.push(point);
    return this.guide();
  }

  key(event) {
    const step = (event.shiftKey ? 1 : 10) / Math.min(1, this.viewer.scale) / Math.max(1, this.viewer.scale);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key in moves) {
      const [width, height] = [this.canvas.width, this.canvas.height];
      this.spot = [Math.min(width, Math.max(0, this.spot[0] + moves[event.key][0])), Math.min(height, Math.max(0, this.spot[1] + moves[event.key][1]))];
      this.guide();
    } else if (event.key === " ") {
      if (this.tool === "polygon") this.corner([...this.spot]);
      else this.add({ kind: this.tool, radius: this.radius, points: [[...this.spot]] });
    } else if (event.key === "Enter") this.closePolygon();
    else if (event.key === "Escape") this.discard();
    else return false;
    return true;
  }

  /** Lines that are not yet part of the mask, and the cross. */
  guide() {
    const corners = this.tool === "polygon" && this.corners.length > 0 ? [...this.corners, this.spot] : [];
    this.line.setAttribute("points", corners.map((point) => point.join(",")).join(" "));
    if (this.spot === null) return;
    const [x, y] = this.spot;
    const arm = 9 / this.viewer.scale;
    const ring = this.tool === "polygon" ? null : svg("circle", { cx: x, cy: y, r: this.radius });
    this.cross.replaceChildren(svg("path", { d: `M${x - arm} ${y}h${2 * arm}M${x} ${y - arm}v${2 * arm}` }), ...(ring ? [ring] : []));
  }

  paint() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (const step of this.steps) this.draw(context, step);
    this.guide();
  }

  draw(context, step) {
    context.globalCompositeOperation = "source-over";
    context.fillStyle = COLOUR;
    if (step.kind === "mask") context.drawImage(step.image, 0, 0);
    else if (step.polygons) {
      context.beginPath();
      for (const points of step.polygons) {
        for (const [place, point] of points.entries()) place === 0 ? context.moveTo(...point) : context.lineTo(...point);
        context.closePath();
      }
      context.fill("evenodd"); // an outline's inner polygons are holes
    } else this.dab(context, step);
  }

  dab(context, { kind, radius, points }) {
    context.globalCompositeOperation = kind === "eraser" ? "destination-out" : "source-over";
    context.strokeStyle = context.fillStyle = COLOUR;
    context.lineWidth = 2 * radius;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...points[0]);
    for (const point of points) context.lineTo(...point);
    context.lineTo(points.at(-1)[0] + 0.001, points.at(-1)[1]); // a dab has no length, and would not be drawn
    context.stroke();
    context.globalCompositeOperation = "source-over";
  }

  /** What a correction carries: null if nothing is drawn, "outline" if it was taken as it is, else a PNG in base64. */
  async mask() {
    const { loaded } = this;
    await loaded; // a saved mask that is still coming is part of it
    if (this.loaded !== loaded) throw new Error("the drawing was closed before its mask was there");
    if (!this.drawn) return null;
    if (this.steps.length === 1 && this.steps[0].kind === "outline") return "outline";
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    const grey = new Uint8Array(width * height);
    for (let top = 0; top < height; top += ROWS) {
      const { data } = context.getImageData(0, top, width, Math.min(ROWS, height - top));
      for (let at = 0; at < data.length / 4; at += 1) grey[top * width + at] = data[4 * at + 3] >= 128 ? 255 : 0;
    }
    return base64(await greyPng(width, height, grey));
  }
}
