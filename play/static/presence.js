// Whether somebody is there, of which the server is told: who holds a key down sends nothing else.

const SIGNS = ["keydown", "keyup", "pointerdown", "pointermove", "pointerup", "wheel", "scroll"];
const LONGEST = 30; // seconds between two words

/** Calls tell() now and then while isHeld(), or after any key, mouse or finger. */
export class Presence {
  #isHeld;
  #tell;
  #isSeen = false;
  #timer = 0;

  constructor(isHeld, tell) {
    this.#isHeld = isHeld;
    this.#tell = tell;
    for (const sign of SIGNS) window.addEventListener(sign, () => (this.#isSeen = true), { capture: true, passive: true });
  }

  /** The server gives a place to others after so many seconds in which it heard nothing. */
  expect(seconds) {
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#look(), 1000 * Math.min(LONGEST, seconds / 3));
  }

  #look() {
    if (this.#isSeen || this.#isHeld()) this.#tell();
    this.#isSeen = false;
  }
}
