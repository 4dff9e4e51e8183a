// The keyboard: a key a class, and what else the frames view does. Classes have digits and small letters.

import { byId, el, keep, kept } from "./dom.js";

const WRITES = "input:not([type=checkbox]):not([type=range]):not([type=radio]), select, textarea";

export class Keys {
  /** actions: by key `{does, says}`. move(key): arrows and their like; false if they are not for the gallery now. */
  constructor(actions, move) {
    this.actions = actions;
    this.move = move;
    this.classes = {};
    this.on = byId("keys-on");
    this.on.checked = kept("keys", "on") === "on";
    this.on.addEventListener("change", () => keep("keys", this.on.checked ? "on" : "off"));
    this.dialog = byId("help");
    byId("help-open").addEventListener("click", () => this.help());
    byId("help-close").addEventListener("click", () => this.dialog.close());
    document.addEventListener("keydown", (event) => this.press(event));
  }

  /** keys: class by key. correct: called with the class; missed: with a digit that no class has. */
  classesOf(keys, correct, missed) {
    this.classes = keys;
    this.correct = correct;
    this.missed = missed;
  }

  press(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || this.dialog.open) return;
    if (event.target.matches?.(WRITES)) {
      if (event.key === "Escape") byId("gallery").focus();
      return;
    }
    if (!this.on.checked && event.key.length === 1 && event.key !== "?") return;
    if (this.act(event)) event.preventDefault();
  }

  act(event) {
    const { key, repeat, target } = event;
    const action = this.actions[key];
    if (action) {
      // Enter and Space on a button are the button's.
      if ((key === "Enter" || key === " ") && target.closest?.("button, a, summary, [role=tab]")) return false;
      if (!(repeat && action.once)) action.does();
      return true;
    }
    if (Object.hasOwn(this.classes, key)) {
      if (!repeat) this.correct(this.classes[key]); // a key held down must not correct frame after frame
      return true;
    }
    if (/^[0-9]$/.test(key)) {
      this.missed?.(key);
      return true;
    }
    if (target.matches?.("input[type=range], [role=tab]")) return false;
    return this.move(key);
  }

  help() {
    const row = (key, text) => el("tr", {}, el("th", { scope: "row" }, el("kbd", {}, key)), el("td", {}, text));
    byId("help-keys").replaceChildren(
      ...Object.entries(this.classes).map(([key, name]) => row(key, name)),
      ...Object.entries(this.actions).map(([key, { says }]) => row(key.length === 1 && key !== key.toLowerCase() ? `Shift+${key}` : key, says)),
      row("arrows", "to the next frame; Page up and down, Home, End"),
      row("Ctrl+Z", "takes back the last step of a drawing"),
    );
    this.dialog.showModal();
  }
}
