// The line to the server: it is found again by itself when it breaks, and knows the layout of a frame.

const FIRST_DELAY = 500; // ms until the first new try; doubled up to LAST_DELAY
const LAST_DELAY = 10_000;
const BUSY_DELAY = 5_000;

/**
 * Takes a binary message apart: {n, action, ms, fps, h, w, reality, psnr, …, dream, truth}.
 * dream and truth are RGB bytes, h * w * 3; truth is null without the real game.
 */
export function parseFrame(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const size = header.h * header.w * 3;
  const pictures = new Uint8Array(buffer, 4 + length);
  const truth = header.reality && pictures.length >= 2 * size ? pictures.subarray(size, 2 * size) : null;
  return { ...header, dream: pictures.subarray(0, size), truth };
}

/**
 * One WebSocket after the other.
 *
 * listener has: ask(), which fetches what the server offers; connected(info); message(message); frame(frame);
 * waiting(state, seconds, reason), where state is "connecting", "busy", "idle" or "gone", seconds is null or the time
 * until the next try, and reason is the server's message.
 */
export class Connection {
  #listener;
  #socket = null;
  #delay = FIRST_DELAY;
  #timer = 0;
  #reason = null; // the message with which the server said that it will close

  constructor(listener) {
    this.#listener = listener;
  }

  /** Connects now, whatever wait was under way. */
  async open() {
    clearTimeout(this.#timer);
    this.#abandon();
    this.#listener.waiting("connecting", null);
    let info;
    try {
      info = await this.#listener.ask();
    } catch {
      this.#retry("gone", this.#nextDelay());
      return;
    }
    this.#connect(info);
  }

  /** Sends a message, or drops it while there is no line: what is started anew is told everything then. */
  send(type, fields = {}) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify({ type, ...fields }));
  }

  #connect(info) {
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
    this.#abandon();
    this.#socket = socket;
    this.#reason = null;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.#listener.connected(info);
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = () => this.#lost();
  }

  #receive(data) {
    if (data instanceof ArrayBuffer) {
      this.#listener.frame(parseFrame(data));
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "busy" || message.type === "idle") this.#reason = message;
    if (message.type === "started") this.#delay = FIRST_DELAY;
    this.#listener.message(message);
  }

  #lost() {
    const state = this.#reason?.type ?? "gone";
    this.#socket = null;
    // Who was away for long comes back by pressing the button: the place is for others until then.
    if (state === "idle") this.#listener.waiting(state, null, this.#reason);
    else this.#retry(state, state === "busy" ? BUSY_DELAY : this.#nextDelay(), this.#reason);
  }

  #retry(state, delay, reason = null) {
    this.#listener.waiting(state, delay / 1000, reason);
    this.#timer = setTimeout(() => this.open(), delay);
  }

  #nextDelay() {
    const delay = this.#delay;
    this.#delay = Math.min(2 * delay, LAST_DELAY);
    return delay * (0.8 + 0.4 * Math.random()); // so that many pages do not come back at the same moment
  }

  #abandon() {
    if (!this.#socket) return;
    this.#socket.onclose = this.#socket.onmessage = this.#socket.onopen = null;
    this.#socket.close();
    this.#socket = null;
  }
}
