// First frames: those the server offers, and any picture that is uploaded, dropped, pasted or drawn.

const ACCEPTED = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const SHORTER_SIDE = 512; // pixels that a picture too large for the server is shrunk to; worlds are far smaller

/** A picture no larger than the server takes: as it is if that is small enough, else drawn smaller. */
async function fitted(file, limits) {
  const picture = await createImageBitmap(file).catch(() => null);
  if (!picture) {
    if (ACCEPTED.includes(file.type)) return file; // the server says what is wrong with it
    throw new Error(`${file.name || "this"} is ${file.type || "no picture"}, expected PNG, JPEG, GIF or WebP`);
  }
  const isSmall = file.size <= limits.upload_bytes && picture.width * picture.height <= limits.upload_pixels;
  if (isSmall && ACCEPTED.includes(file.type)) return file;
  const scale = Math.min(1, SHORTER_SIDE / Math.min(picture.width, picture.height));
  const side = (length) => Math.min(4 * SHORTER_SIDE, Math.max(1, Math.round(length * scale)));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [side(picture.width), side(picture.height)];
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** The row of first frames. choose(prompt) is called with {id, url, level} when one is wanted. */
export class Gallery {
  #element;
  #choose;
  #own = []; // what the user gave, newest first
  #offered = [];
  #current = null;
  limits = { upload_bytes: 0, upload_pixels: 0 };

  constructor(element, choose) {
    this.#element = element;
    this.#choose = choose;
  }

  /** The first frame to begin with. */
  get first() {
    return this.#offered[0] ?? this.#own[0] ?? null;
  }

  find(id) {
    return [...this.#own, ...this.#offered].find((prompt) => prompt.id === id) ?? null;
  }

  /** Takes away a picture of the user's that the server no longer has; false where it is none of theirs. */
  forget(id) {
    const isOwn = this.#own.some((prompt) => prompt.id === id);
    this.#own = this.#own.filter((prompt) => prompt.id !== id);
    if (isOwn) this.#render();
    return isOwn;
  }

  show(offered) {
    this.#offered = offered;
    this.#render();
  }

  mark(id) {
    this.#current = id;
    for (const button of this.#element.children) {
      button.setAttribute("aria-pressed", String(button.dataset.id === id));
    }
  }

  /** Sends a picture to the server and chooses it. Raises Error with one line where the server refuses it. */
  async give(file) {
    const body = await fitted(file, this.limits);
    const answer = await fetch("/api/prompts", { method: "POST", headers: { "Content-Type": body.type }, body });
    const prompt = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(prompt.error ?? `the server answered ${answer.status}`);
    this.#own.unshift(prompt);
    this.#own.length = Math.min(this.#own.length, 6);
    this.#render();
    this.#choose(prompt);
  }

  #render() {
    const buttons = [...this.#own, ...this.#offered].map((prompt, i) => {
      const isOwn = i < this.#own.length;
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.id = prompt.id;
      const level = prompt.level ?? null;
      button.title = isOwn ? "Your picture" : level === null ? `First frame ${i - this.#own.length + 1}` : `Level ${level}`;
      button.onclick = () => this.#choose(prompt);
      const picture = new Image(64, 64);
      picture.alt = button.title;
      picture.onerror = () => this.forget(prompt.id);
      picture.src = prompt.url;
      button.append(picture);
      return button;
    });
    this.#element.replaceChildren(...buttons);
    this.mark(this.#current);
  }
}

/** Calls give(file) for pictures from the button, from the clipboard, and dropped anywhere on the page. */
export function listenForPictures(input, veil, give) {
  input.addEventListener("change", () => {
    if (input.files[0]) give(input.files[0]);
    input.value = ""; // the same file may be given again
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (file) give(file);
  });
  const hasFile = (event) => [...event.dataTransfer.types].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    veil.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) veil.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    veil.hidden = true;
    if (!hasFile(event)) return;
    event.preventDefault();
    if (event.dataTransfer.files[0]) give(event.dataTransfer.files[0]);
  });
}
