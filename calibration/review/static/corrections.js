// Corrections on their way to the server: one after the other, so that an undo undoes what was done last.

import { post } from "./api.js";

export class Corrections {
  /** hooks: saving(id), saved(id, corrected, undone), refused(frame, error), without a frame of an undo. */
  constructor(hooks) {
    this.hooks = hooks;
    this.waiting = 0;
    this.last = Promise.resolve();
    // What the server has not got yet would be lost with the page.
    window.addEventListener("beforeunload", (event) => {
      if (this.waiting > 0) event.preventDefault();
    });
  }

  /** Resolves once nothing is on its way. */
  async idle() {
    while (this.waiting > 0) await this.last;
  }

  then(work) {
    this.waiting += 1;
    this.last = this.last.then(work).finally(() => {
      this.waiting -= 1;
    });
    return this.last;
  }

  /** frame: its entry. name: the class that is right. mask: a promise of null, "outline", or a PNG in base64. */
  correct(frame, name, mask) {
    const { id } = frame;
    this.hooks.saving(id);
    return this.then(async () => {
      try {
        const { corrected } = await post("/api/corrections", { id, new: name, mask: await mask });
        this.hooks.saved(id, corrected, false);
      } catch (error) {
        this.hooks.refused(frame, error);
      }
    });
  }

  undo() {
    return this.then(async () => {
      try {
        const { id, corrected } = await post("/api/corrections/undo");
        this.hooks.saved(id, corrected, true);
      } catch (error) {
        this.hooks.refused(null, error);
      }
    });
  }
}
