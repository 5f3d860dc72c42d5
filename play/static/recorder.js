// Recording: the button that begins and ends it, and the film that came of it.

import { showError } from "./said.js";

const $ = (id) => document.getElementById(id);
const KINDS = ["gif", "mp4"];

export class Recorder {
  #tell;
  #isOn = false;
  #frames = 0;

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

  /** A frame was shown, of a film that plays at `fps`. */
  tick(fps) {
    if (!this.#isOn) return;
    this.#frames += 1;
    $("record-label").textContent = `Stop ${Math.floor(this.#frames / fps)} s`;
  }

  /** A film is ready, which also comes by itself when it is full. It is fetched at once: the server soon forgets it. */
  async done(message) {
    this.#show(false);
    try {
      const films = await Promise.all(KINDS.map((kind) => fetchFilm(message[kind])));
      KINDS.forEach((kind, i) => {
        URL.revokeObjectURL($(kind).href);
        $(kind).href = URL.createObjectURL(films[i]);
      });
      $("recording-picture").src = $("gif").href;
      $("recording-text").textContent = `${message.frames} frames`;
      $("recording").hidden = false;
    } catch {
      showError("The recording was lost: the server does not answer.");
    }
  }

  #toggle() {
    if (!this.#tell(!this.#isOn)) return;
    this.#show(!this.#isOn);
    if (this.#isOn) $("recording").hidden = true;
  }

  #show(isOn) {
    this.#isOn = isOn;
    this.#frames = 0;
    $("record").setAttribute("aria-pressed", String(isOn));
    $("record-label").textContent = isOn ? "Stop" : "Record";
  }
}

async function fetchFilm(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(answer.status);
  return answer.blob();
}
