// The sketch pad: a few colours, a brush, and the way back.

const COLOURS = {
  Sky: "#bfe3f2",
  Night: "#22314f",
  Grass: "#4a9e4b",
  Earth: "#8a5a35",
  Sand: "#e3c77d",
  Stone: "#8b9199",
  Crate: "#b97f3f",
  Coin: "#f6c945",
  Red: "#d6453d",
  Violet: "#7d5cc6",
  Black: "#15171a",
  White: "#ffffff",
};
const UNDO_STEPS = 20;
const DOT = 0.01; // a line of no length is not drawn, and a tap is to leave a dot

/** A dialog to draw in. used(blob) is called with the drawing as PNG, picture() gives the canvas to copy from. */
export class Sketch {
  #dialog;
  #paper;
  #context;
  #brush;
  #custom;
  #colour = "#15171a";
  #past = [];
  #last = new Map(); // pointer -> where it was

  constructor(dialog, { used, picture }) {
    this.#dialog = dialog;
    this.#paper = dialog.querySelector("#paper");
    this.#context = this.#paper.getContext("2d", { willReadFrequently: true });
    this.#brush = dialog.querySelector("#brush");
    this.#fill(COLOURS.Sky);
    this.#makeColours(dialog.querySelector("#colours"));
    this.#listen();
    dialog.querySelector("#undo").onclick = () => this.#undo();
    dialog.querySelector("#clear").onclick = () => this.#change(() => this.#fill(this.#colour));
    dialog.querySelector("#trace").onclick = () => this.#change(() => this.#copy(picture()));
    dialog.addEventListener("close", () => {
      if (dialog.returnValue === "use") this.#paper.toBlob(used, "image/png");
    });
  }

  open() {
    this.#dialog.returnValue = "";
    this.#dialog.showModal();
  }

  #makeColours(element) {
    for (const [name, colour] of Object.entries(COLOURS)) {
      const button = document.createElement("button");
      button.type = "button";
      button.title = button.ariaLabel = name;
      button.dataset.colour = colour;
      button.style.setProperty("--colour", colour);
      button.onclick = () => this.#take(colour);
      element.append(button);
    }
    this.#custom = Object.assign(document.createElement("input"), { type: "color", value: "#ff8a3d", title: "Other colour" });
    this.#custom.ariaLabel = "Other colour";
    this.#custom.oninput = () => this.#take(this.#custom.value);
    element.append(this.#custom);
    this.#take(COLOURS.Grass);
  }

  #take(colour) {
    this.#colour = colour;
    for (const button of this.#dialog.querySelectorAll("[data-colour]")) {
      button.setAttribute("aria-pressed", String(button.dataset.colour === colour));
    }
  }

  #listen() {
    this.#paper.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      this.#paper.setPointerCapture(event.pointerId);
      if (this.#last.size === 0) this.#remember();
      this.#last.set(event.pointerId, this.#place(event));
      this.#stroke(event);
    });
    this.#paper.addEventListener("pointermove", (event) => {
      if (!this.#last.has(event.pointerId)) return;
      const between = event.getCoalescedEvents?.() ?? [];
      for (const point of between.length ? between : [event]) this.#stroke(point);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      this.#paper.addEventListener(end, (event) => this.#last.delete(event.pointerId));
    }
  }

  #place(event) {
    const frame = this.#paper.getBoundingClientRect();
    const scale = this.#paper.width / frame.width;
    return [(event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale];
  }

  #stroke(event) {
    const [from, to] = [this.#last.get(event.pointerId), this.#place(event)];
    this.#last.set(event.pointerId, to);
    this.#context.strokeStyle = this.#colour;
    this.#context.lineWidth = Number(this.#brush.value);
    this.#context.lineCap = "round";
    this.#context.beginPath();
    this.#context.moveTo(...from);
    this.#context.lineTo(to[0] + DOT, to[1]);
    this.#context.stroke();
  }

  #change(paint) {
    this.#remember();
    paint();
  }

  #remember() {
    this.#past.push(this.#context.getImageData(0, 0, this.#paper.width, this.#paper.height));
    if (this.#past.length > UNDO_STEPS) this.#past.shift();
  }

  #undo() {
    const before = this.#past.pop();
    if (before) this.#context.putImageData(before, 0, 0);
  }

  #fill(colour) {
    this.#context.fillStyle = colour;
    this.#context.fillRect(0, 0, this.#paper.width, this.#paper.height);
  }

  #copy(picture) {
    this.#context.imageSmoothingEnabled = false;
    this.#context.drawImage(picture, 0, 0, this.#paper.width, this.#paper.height);
  }
}
