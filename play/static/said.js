// What the page says in words: its state, what one waits for, errors, and the keys.

const $ = (id) => document.getElementById(id);
const ERROR_SECONDS = 8;
let errorTimer = 0;

/** state: a name that the style sheet knows; text: one or two words. */
export function setStatus(state, text = state) {
  $("status").dataset.state = state;
  $("status").firstElementChild.textContent = text;
}

/** Covers the dream with a text, and a button if that has a label; null uncovers it. */
export function notice(text, button = "") {
  $("notice").hidden = text === null;
  $("notice-text").textContent = text ?? "";
  $("notice-button").textContent = button;
  $("notice-button").hidden = !button;
}

/** There is no line to the server: why, and when the next try is. `covers`: whether that is said over the dream. */
export function showWaiting(state, seconds, reason, covers) {
  const again = seconds === null ? "" : ` Next try in ${Math.max(1, Math.round(seconds))} s.`;
  const [status, text] = {
    connecting: ["connecting", "Connecting…"],
    busy: ["busy", `All ${reason?.max_sessions} places are taken.${again}`],
    idle: ["away", "Nothing was pressed for a while, so your place was given to others."],
    gone: ["no server", `The server does not answer.${again}`],
  }[state];
  setStatus(state, status);
  if (!covers) return;
  notice(text, { connecting: "", idle: "Go on" }[state] ?? "Try now");
  if (state === "idle") $("notice-button").focus();
}

/** One line that goes away by itself; an empty one at once. */
export function showError(text) {
  clearTimeout(errorTimer);
  $("error").textContent = text;
  if (text) errorTimer = setTimeout(() => showError(""), 1000 * ERROR_SECONDS);
}

export function showKeys(world, hasArrows) {
  const plays = [];
  if (hasArrows) plays.push(["← ↑ ↓ →", "or WASD, also two at once"]);
  if (!hasArrows || world.kind === "latent") plays.push([`1 – ${Math.min(9, world.num_actions)}`, "actions"]);
  const rows = [...plays, ["Space", "pause"], [".", "one frame"], ["⌫", "one back"], ["R", "reset"], ["F", "full screen"]];
  $("keys").replaceChildren(
    ...rows.flatMap(([key, does]) => [
      Object.assign(document.createElement("dt"), { textContent: key }),
      Object.assign(document.createElement("dd"), { textContent: does }),
    ]),
  );
}
