// The dream on the screen: the newest frame, reality beside it, the numbers under it, and the slider back in time.

import { History, Median, Rate } from "./history.js";
import { Screen, Sparkline } from "./screen.js";

const $ = (id) => document.getElementById(id);

export class View {
  #dream = new Screen($("dream"));
  #reality = new Screen($("reality"));
  #spark = new Sparkline($("spark"));
  #history = new History();
  #rate = new Rate();
  #cost = new Median();
  #pending = null; // the newest frame that is not drawn yet
  #isDragging = false;
  #nameOf;
  #isMoving;
  #drawn;

  /** nameOf(action) is a text, isMoving() whether the dream plays; drawn(n) is called for every frame on the screen. */
  constructor({ nameOf, isMoving, drawn }) {
    this.#nameOf = nameOf;
    this.#isMoving = isMoving;
    this.#drawn = drawn;
  }

  get isEmpty() {
    return this.#history.last === null;
  }

  /** The number of the newest frame. */
  get n() {
    return this.#history.last?.n ?? 0;
  }

  /** Frames that can be taken back now. */
  get rewindable() {
    return this.n - Number($("rewind").min);
  }

  /** Forgets the dream before; of the next one `limit` frames can be taken back. */
  begin(limit) {
    this.#history.limit = limit;
    this.#pending = null;
    this.#cost = new Median();
    this.#history.clear();
    this.#spark.cut(-1);
  }

  /** Of frames that come faster than the screen is painted only the newest is drawn. */
  receive(frame) {
    this.#history.add(frame);
    if (!this.#pending) requestAnimationFrame((now) => this.#drawNewest(now));
    this.#pending = frame;
  }

  /** Frame n is now the last, and comes again. */
  cut(n) {
    this.#pending = null;
    this.#history.cut(n);
    this.#spark.cut(n);
  }

  /** The dream was stopped, or goes on: its rate is measured anew. */
  stopCounting() {
    this.#rate.clear();
    if (!this.#isMoving()) $("fps").textContent = "–";
  }

  /** While the slider is dragged: shows the frame that it points to. */
  preview() {
    this.#isDragging = true;
    const frame = this.#history.at(Number($("rewind").value));
    if (frame) this.#show(frame);
  }

  /** The slider was let go of; returns how many frames it is to go back. */
  endPreview() {
    this.#isDragging = false;
    return this.n - Number($("rewind").value);
  }

  /** The newest frame again. */
  refresh() {
    if (this.#history.last) this.#show(this.#history.last);
  }

  #drawNewest(now) {
    const frame = this.#pending;
    this.#pending = null;
    if (!frame) return;
    const perSecond = this.#rate.tick(now);
    if (!this.#isDragging) this.#show(frame);
    this.#spark.add(frame.n, frame.psnr ?? null);
    if (frame.ms > 0) this.#showCost(this.#cost.add(frame.ms)); // nothing was computed for a first frame
    if (this.#isMoving() && perSecond) $("fps").textContent = perSecond.toFixed(perSecond < 10 ? 1 : 0);
    this.#drawn(frame.n);
  }

  #showCost(ms) {
    $("ms").textContent = ms.toFixed(ms < 10 ? 1 : 0);
  }

  #show(frame) {
    this.#dream.draw(frame.dream, frame.h, frame.w);
    this.#showReality(frame);
    $("frame").textContent = frame.n;
    $("doing").textContent = frame.n > 0 ? this.#nameOf(frame.action) : "first frame";
    const slider = $("rewind");
    slider.max = this.n;
    slider.min = Math.max(this.#history.first, this.n - (this.#history.last?.rewindable ?? Infinity));
    if (!this.#isDragging) slider.value = frame.n;
    slider.disabled = slider.min === slider.max;
    $("back").disabled = slider.disabled;
  }

  #showReality(frame) {
    const isThere = frame.truth !== null;
    $("reality-view").hidden = !isThere;
    $("stage").classList.toggle("two", isThere);
    if (!isThere) return;
    this.#reality.draw(frame.truth, frame.h, frame.w);
    $("psnr").textContent = frame.psnr?.toFixed(1) ?? "–";
    $("real-state").textContent = frame.real_done ? "level over" : "";
  }
}
