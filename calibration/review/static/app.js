// The page: its views, and what passes between them.

import { Alarm } from "./alarm.js";
import { facts, maskOf, newest } from "./api.js";
import { Corrections } from "./corrections.js";
import { Detail } from "./detail.js";
import { byId, keep, kept, settled } from "./dom.js";
import { Filters } from "./filters.js";
import { Gallery } from "./gallery.js";
import { Keys } from "./keys.js";
import { setClasses } from "./marks.js";
import { base64 } from "./png.js";
import { Summary } from "./summary.js";
import { Teach } from "./teach.js";
import { Wafer } from "./wafer.js";

/** Milliseconds between two looks for new answers. */
const LOOK = 4000;
/** Looks without news after which new answers are offered only. */
const FOLLOW = 15;
const what = { opacity: Number(kept("opacity", 50)) / 100, outline: kept("outline", "on") === "on", side: Number(kept("tiles", 150)) };
/** seen: the counter of the store when the list was fetched. follow: looks left in which new answers are shown at once. */
const state = { facts: null, frame: null, seen: null, follow: 0 };

function said(text) {
  byId("status").textContent = text;
}

const alarm = new Alarm(byId("alarm"), openFrame);

function failed(error) {
  if (error.name !== "AbortError") alarm.failed(error); // a later question has taken its place
}

const corrections = new Corrections({
  saving: (id) => gallery.correct(id, null, true),
  saved: (id, corrected, undone) => {
    if (!undone) detail.drawing.forget(id);
    alarm.saved(undone ? null : id);
    const index = id === null ? -1 : gallery.correct(id, corrected);
    if (detail.frame?.id === id) detail.show({ ...detail.frame, corrected });
    said(undone ? (corrected ? `Taken back: ${corrected.new} again.` : "Taken back: not corrected.") : `Saved: ${corrected.old} → ${corrected.new}.`);
    if (undone && index >= 0) gallery.choose(index);
    else if (undone && id !== null) openFrame(id);
    count();
  },
  refused: (frame, error) => {
    if (frame !== null) gallery.restore(frame.id);
    alarm.refused(frame, error);
  },
});

const gallery = new Gallery(byId("gallery"), what, {
  choose: (frame) => {
    state.frame = frame;
    detail.show(frame);
  },
  place: (index, total, shown) => {
    byId("position").textContent = total === 0 ? "no frame" : `${index + 1} of ${total}${shown < total ? ` (the first ${shown} are shown: filter to see others)` : ""}`;
  },
  failed,
  idle: () => corrections.idle(),
  held: () => detail.drawing.drawn,
});

const detail = new Detail(byId("detail"), what, { correct, open: (frame) => detail.show(frame), said, failed });
const summary = new Summary({ open: openFrame, failed });
const wafer = new Wafer({ open: openFrame, failed });
const teach = new Teach({ said, failed, judging: () => (state.follow = FOLLOW) });
const filters = new Filters((query) => {
  gallery.show(query);
});

/** The mask that a correction carries. One that was saved stays when only the class changes. */
async function maskFor(frame, name) {
  if (name === state.facts.classes[0]) {
    if (detail.drawing.drawn) said("A good frame has no mask: the drawing is not saved.");
    return null;
  }
  if (detail.drawing.open) return detail.drawing.mask();
  if (!frame.corrected?.mask) return null;
  const response = await fetch(maskOf(frame.id, frame.corrected.when));
  if (!response.ok) throw new Error("the mask that was drawn before cannot be read");
  return base64(new Uint8Array(await response.arrayBuffer()));
}

/** Correct a frame and go on to the next. */
async function correct(frame, name) {
  if (!frame) return said("No frame is chosen, or the list is being loaded: press again.");
  const mask = maskFor(frame, name);
  // In its place at once: an undo that is asked for while the mask is packed comes after it.
  corrections.correct(frame, name, mask);
  try {
    await mask;
  } catch {
    return; // `refused` says why; the drawing stays
  }
  if (detail.frame?.id !== frame.id) return;
  detail.drawing.remember(frame.id);
  detail.drawing.close();
  // A frame that is not the gallery's, a similar one, stays in sight.
  if (state.frame?.id === frame.id) next();
}

function next() {
  if (gallery.chosen + 1 < gallery.shown) gallery.move(1);
  else said("This was the last frame of the list.");
}

const getFrame = newest();

async function openFrame(id) {
  try {
    const frame = await getFrame(`/api/frames/${id}`);
    view("frames");
    detail.show(frame);
    byId("detail").scrollTop = 0;
  } catch (error) {
    failed(error);
  }
}

// Views

const VIEWS = { frames: null, summary, wafer, teach };

function view(name) {
  for (const each of Object.keys(VIEWS)) {
    const tab = byId(`tab-${each}`);
    tab.setAttribute("aria-selected", String(each === name));
    tab.tabIndex = each === name ? 0 : -1;
    byId(`view-${each}`).hidden = each !== name;
  }
  VIEWS[name]?.show();
}

function tabs() {
  const names = Object.keys(VIEWS);
  for (const name of names) byId(`tab-${name}`).addEventListener("click", () => view(name));
  byId("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const at = names.findIndex((name) => byId(`tab-${name}`) === document.activeElement);
    const name = names[(at + step + names.length) % names.length];
    view(name);
    byId(`tab-${name}`).focus();
    event.preventDefault();
  });
}

// What the pictures show

function switches() {
  const [opacity, outline, tiles] = [byId("opacity"), byId("outline"), byId("tile-size")];
  [opacity.value, outline.checked, tiles.value] = [100 * what.opacity, what.outline, what.side];
  const apply = () => {
    document.documentElement.style.setProperty("--map", what.opacity);
    document.body.classList.toggle("outlines", what.outline);
    keep("opacity", Math.round(100 * what.opacity));
    keep("outline", what.outline ? "on" : "off");
    gallery.restyle();
    detail.viewer.layers();
  };
  opacity.addEventListener("input", () => {
    what.opacity = opacity.value / 100;
    apply();
  });
  outline.addEventListener("change", () => {
    what.outline = outline.checked;
    apply();
  });
  const layout = settled(() => gallery.layout(), 60);
  tiles.addEventListener("input", () => {
    what.side = Number(tiles.value);
    keep("tiles", what.side);
    layout();
  });
  apply();
}

function flip(name) {
  const input = byId(name);
  if (name === "outline") input.checked = !input.checked;
  else input.value = Number(input.value) > 0 ? 0 : 50;
  input.dispatchEvent(new Event(name === "outline" ? "change" : "input"));
}

const inFrames = () => !byId("view-frames").hidden;

const keys = new Keys(
  {
    g: { once: true, does: () => inFrames() && correct(detail.frame, state.facts.classes[0]), says: "good" },
    s: { does: () => inFrames() && next(), says: "skip: on to the next frame" },
    u: { once: true, does: () => corrections.undo(), says: "undo the latest correction" },
    M: { does: () => flip("opacity"), says: "map on or off" },
    O: { does: () => flip("outline"), says: "outline on or off" },
    Z: { does: () => detail.nextRegion(), says: "zoom to the next region" },
    D: { once: true, does: () => inFrames() && detail.toggleDrawing(), says: "draw a mask, or stop" },
    "+": { does: () => detail.viewer.zoomBy(1.5), says: "zoom in" },
    "-": { does: () => detail.viewer.zoomBy(0.67), says: "zoom out" },
    "=": { does: () => detail.viewer.fit(), says: "fit the frame" },
    "/": { does: () => (view("frames"), byId("text").focus()), says: "search by name" },
    Enter: { once: true, does: () => inFrames() && detail.large(), says: "the frame large, or the gallery again" },
    Escape: { does: () => (detail.drawing.open ? detail.drawing.discard() : document.body.classList.contains("large") && detail.large()), says: "stop drawing, or back to the gallery" },
    "?": { does: () => keys.help(), says: "this help" },
  },
  (key) => {
    const by = inFrames() ? gallery.stride(key) : undefined;
    if (by === undefined) return false;
    gallery.move(by);
    return true;
  },
);

// What the store holds

function tell(found) {
  const before = state.facts;
  state.facts = found;
  arrived();
  setClasses(found.classes);
  filters.offer(found);
  wafer.offer(found);
  teach.offer(found);
  byId("counts").textContent = `${found.frames} frames, ${found.corrected} corrected`;
  if (before && before.classes.join("\n") === found.classes.join("\n")) return;
  keys.classesOf(
    found.keys,
    (name) => inFrames() && correct(detail.frame, name),
    (key) => inFrames() && said(`No class has the key ${key}: nothing is corrected.`),
  );
  detail.classesOf(found.classes, found.keys);
}

/** A writer has added answers, or not. After the frames were judged again from here, they are shown at once. */
function arrived() {
  state.seen ??= state.facts.changed;
  if (state.facts.changed === state.seen) return;
  byId("renew").hidden = false;
  if (state.follow === 0) return;
  state.follow = FOLLOW;
  renew();
}

async function count() {
  try {
    tell(await facts());
  } catch (error) {
    failed(error);
  }
}

/** Look what the store holds now. */
async function look() {
  if (document.hidden && state.follow === 0) return;
  try {
    tell(await facts());
  } catch {
    // The next correction says that the server is gone; no need to say it every few seconds.
  } finally {
    if (state.follow > 0) state.follow -= 1;
  }
}

async function renew() {
  if (detail.drawing.drawn) return said("Save or close the drawing first.");
  byId("renew").hidden = true;
  state.seen = state.facts.changed;
  return gallery.renew();
}

async function start() {
  tabs();
  switches();
  byId("renew").addEventListener("click", renew);
  byId("undo").addEventListener("click", () => corrections.undo());
  document.addEventListener("keydown", (event) => {
    if (!event.ctrlKey || event.key !== "z" || !detail.drawing.open) return;
    detail.drawing.undo();
    event.preventDefault();
  });
  await count();
  await gallery.show(filters.query());
  byId("gallery").focus();
  setInterval(look, LOOK);
}

start();
