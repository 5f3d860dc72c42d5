// What moves: frames on a canvas, and the small curve beside reality.

/** A canvas that shows RGB frames of any size, one canvas pixel per pixel; the style sheet scales it. */
export class Screen {
  #canvas;
  #context;
  #image = null;

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { alpha: false });
  }

  /** rgb: (h * w * 3) bytes. */
  draw(rgb, h, w) {
    if (this.#image?.height !== h || this.#image?.width !== w) this.#resize(h, w);
    const rgba = this.#image.data;
    for (let from = 0, to = 0; from < rgb.length; from += 3, to += 4) {
      rgba[to] = rgb[from];
      rgba[to + 1] = rgb[from + 1];
      rgba[to + 2] = rgb[from + 2];
    }
    this.#context.putImageData(this.#image, 0, 0);
  }

  #resize(h, w) {
    this.#canvas.height = h;
    this.#canvas.width = w;
    this.#image = this.#context.createImageData(w, h);
    this.#image.data.fill(255);
    this.#canvas.closest("figure").style.setProperty("--ratio", w / h);
  }
}

const SHORTEST_CURVE = 30; // values over the whole width; fewer leave a part empty

/** The latest values as a curve; null leaves a gap. */
export class Sparkline {
  #canvas;
  #points = [];
  #length;

  constructor(canvas, length = 150) {
    this.#canvas = canvas;
    this.#length = length;
  }

  /** value: of frame n, which is after all frames so far or replaces them from there on. */
  add(n, value) {
    this.cut(n - 1);
    this.#points.push({ n, value });
    if (this.#points.length > this.#length) this.#points.shift();
    this.#paint();
  }

  /** Forgets the frames after n. */
  cut(n) {
    while (this.#points.length && this.#points.at(-1).n > n) this.#points.pop();
  }

  #paint() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const scale = window.devicePixelRatio || 1;
    this.#canvas.width = Math.max(1, Math.round(width * scale));
    this.#canvas.height = Math.max(1, Math.round(height * scale));
    const values = this.#points.map(({ value }) => value);
    const known = values.filter((value) => value !== null);
    if (known.length < 2) return;
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const room = 3; // pixels above and below the curve
    const span = Math.max(values.length - 1, SHORTEST_CURVE);
    const x = (i) => 1 + (i / span) * (width - 2);
    const y = (value) => room + (height - 2 * room) * (1 - (value - low) / Math.max(high - low, 1));
    const context = this.#canvas.getContext("2d");
    context.scale(scale, scale);
    context.strokeStyle = getComputedStyle(this.#canvas).color;
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.beginPath();
    let isDrawing = false;
    values.forEach((value, i) => {
      if (value !== null) isDrawing ? context.lineTo(x(i), y(value)) : context.moveTo(x(i), y(value));
      isDrawing = value !== null;
    });
    context.stroke();
  }
}
