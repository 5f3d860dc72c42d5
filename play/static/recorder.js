// Recording: the button that begins and ends it, and the film that came of it.

const $ = (id) => document.getElementById(id);

export class Recorder {
  #tell;
  #isOn = false;
  #began = 0;

  /** tell(on) asks the server to begin or end; it answers whether there is a dream to record. */
  constructor(tell) {
    this.#tell = tell;
    $("record").onclick = () => this.#toggle();
    $("recording-close").onclick = () => ($("recording").hidden = true);
  }

  /** The dream ends: of what was recorded of it a film is made. */
  finish() {
    if (this.#isOn) this.#tell(false);
    this.forget();
  }

  /** The line broke, and the film with it. */
  forget() {
    this.#show(false);
  }

  /** A frame was shown: how long the film is by now. */
  tick() {
    if (this.#isOn) $("record-label").textContent = `Stop ${Math.round((performance.now() - this.#began) / 1000)} s`;
  }

  /** A film is there, which also comes by itself when it is full. */
  done({ gif, mp4, frames }) {
    this.#show(false);
    $("recording").hidden = false;
    $("recording-text").textContent = `${frames} frames`;
    $("recording-picture").src = $("gif").href = gif;
    $("mp4").href = mp4;
  }

  #toggle() {
    if (!this.#tell(!this.#isOn)) return;
    this.#show(!this.#isOn);
    if (this.#isOn) $("recording").hidden = true;
  }

  #show(isOn) {
    this.#isOn = isOn;
    this.#began = performance.now();
    $("record").setAttribute("aria-pressed", String(isOn));
    $("record-label").textContent = isOn ? "Stop" : "Record";
  }
}
