// How the dream is sampled: three sliders and the seed.

const $ = (id) => document.getElementById(id);
const SLIDERS = ["temperature", "steps", "speed"];
const SEEDS = 1_000_000; // that the dice chooses from; any other can be typed

export class SamplingForm {
  /** changed(settings) is called for the sliders, reseeded() for the seed. */
  constructor({ changed, reseeded }) {
    for (const id of SLIDERS) {
      $(id).oninput = () => this.#show();
      $(id).onchange = () => changed(this.settings);
    }
    $("seed").onchange = reseeded;
    $("dice").onclick = () => {
      $("seed").value = Math.floor(Math.random() * SEEDS);
      reseeded();
    };
  }

  get settings() {
    return { steps: Number($("steps").value), temperature: Number($("temperature").value), fps: Number($("speed").value) };
  }

  get seed() {
    return Number($("seed").value) || 0;
  }

  /** Sets those that are given. */
  set({ steps, temperature, fps, seed }) {
    for (const [id, value] of Object.entries({ steps, temperature, speed: fps, seed })) {
      if (value !== undefined) $(id).value = value;
    }
    this.#show();
  }

  /** How far the sliders of frames and steps go. */
  limit({ max_fps, max_steps }) {
    $("speed").max = max_fps;
    $("steps").max = max_steps;
    $("steps").disabled = max_steps === 1;
    $("steps").title = max_steps === 1 ? "This world makes one pass per frame" : "";
    this.#show();
  }

  #show() {
    for (const output of document.querySelectorAll("#settings output")) {
      output.textContent = $(output.htmlFor.value).value;
    }
  }
}
