// From keys and fingers to the one action that is held.

const ARROWS = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"];
const SAME_PLACE = { KeyW: "ArrowUp", KeyA: "ArrowLeft", KeyS: "ArrowDown", KeyD: "ArrowRight" };
const LONGEST_TAP = 500; // ms that a key let go of too soon to be seen by a frame is held on

/** [{arrows, action}]: which arrows, held together, press which action. */
export function bindingsOf(world) {
  const told = Object.entries(world.keys).map(([keys, action]) => ({ arrows: keys.split("+"), action }));
  return told.filter(({ arrows }) => arrows.every((key) => ARROWS.includes(key)));
}

/** "ArrowLeft", or "#2" for the action with index 2, or null for a key that plays nothing. */
export function wishOf(event, world) {
  if (ARROWS.includes(event.key)) return event.key;
  if (event.code in SAME_PLACE) return SAME_PLACE[event.code];
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
  return digit && digit <= world.num_actions ? `#${digit - 1}` : null;
}

/**
 * What is held now, by whom: a source is a key's code or a finger's number, its wish an arrow or an action.
 *
 * A tap between two frames would be lost; so a wish let go of stays until a frame has followed it.
 */
export class Held {
  #wishes = new Map(); // source -> wish, the latest last
  #leaving = new Map(); // source -> timer of a tap that no frame has seen yet
  #seen = new Set(); // sources whose action a frame has shown
  #bindings = [];
  #changed;
  rest = 0;

  /** changed(action, wishes) is called whenever the held action or the pressed wishes differ from before. */
  constructor(changed) {
    this.#changed = changed;
  }

  use(bindings, rest) {
    this.#bindings = bindings;
    this.rest = rest;
    this.clear();
  }

  press(source, wish) {
    if (this.#wishes.get(source) === wish && !this.#leaving.has(source)) return;
    this.#forget(source);
    this.#wishes.set(source, wish);
    this.#tell();
  }

  /** isMoving: whether frames are under way that could show a short tap. */
  release(source, isMoving) {
    if (!this.#wishes.has(source) || this.#leaving.has(source)) return;
    if (isMoving && !this.#seen.has(source)) {
      this.#leaving.set(source, setTimeout(() => this.#drop(source), LONGEST_TAP));
    } else {
      this.#drop(source);
    }
  }

  /** A frame has followed this action. */
  shown(action) {
    if (action !== this.action()) return;
    for (const source of this.#wishes.keys()) this.#seen.add(source);
    for (const source of [...this.#leaving.keys()]) this.#drop(source);
  }

  clear() {
    for (const source of [...this.#wishes.keys()]) this.#forget(source);
    this.#tell();
  }

  /** Whether anything is held. */
  get isAny() {
    return this.#wishes.size > 0;
  }

  action() {
    const wishes = [...this.#wishes.values()];
    const latest = wishes.at(-1);
    if (latest?.startsWith("#")) return Number(latest.slice(1));
    const rank = (arrows) => arrows.reduce((sum, arrow) => sum + 1000 + wishes.lastIndexOf(arrow), 0);
    const possible = this.#bindings.filter(({ arrows }) => arrows.every((arrow) => wishes.includes(arrow)));
    // The most arrows at once; of LEFT and RIGHT the one pressed later.
    possible.sort((a, b) => rank(b.arrows) - rank(a.arrows));
    return possible[0]?.action ?? this.rest;
  }

  #drop(source) {
    this.#forget(source);
    this.#tell();
  }

  #forget(source) {
    clearTimeout(this.#leaving.get(source));
    this.#leaving.delete(source);
    this.#seen.delete(source);
    this.#wishes.delete(source);
  }

  #tell() {
    this.#changed(this.action(), new Set(this.#wishes.values()));
  }
}
