// The latest frames, kept so that the rewind slider shows where it would lead before anything is taken back.

export class History {
  #frames = [];
  limit = 1; // frames that can be taken back

  get first() {
    return this.#frames[0]?.n ?? 0;
  }

  get last() {
    return this.#frames.at(-1) ?? null;
  }

  clear() {
    this.#frames = [];
  }

  /** Frames come in order, except that after a rewind their numbers begin again lower. */
  add(frame) {
    this.cut(frame.n - 1);
    this.#frames.push(frame);
    while (this.#frames.length > this.limit + 1) this.#frames.shift();
  }

  /** Forgets what came after frame n. */
  cut(n) {
    while (this.#frames.length && this.#frames.at(-1).n > n) this.#frames.pop();
  }

  at(n) {
    return this.#frames.find((frame) => frame.n === n) ?? null;
  }
}

/** Frames per second over the latest two seconds, as they are drawn. */
export class Rate {
  #times = [];

  clear() {
    this.#times = [];
  }

  /** now: milliseconds. Returns null until it can be said. */
  tick(now) {
    this.#times.push(now);
    while (now - this.#times[0] > 2000) this.#times.shift();
    const span = now - this.#times[0];
    return this.#times.length > 2 && span > 0 ? ((this.#times.length - 1) * 1000) / span : null;
  }
}

/** The median of the latest values: single outliers do not make the number jump. */
export class Median {
  #values = [];

  /** Adds a value; returns the median. */
  add(value) {
    this.#values.push(value);
    if (this.#values.length > 15) this.#values.shift();
    return [...this.#values].sort((a, b) => a - b)[this.#values.length >> 1];
  }
}
