// Keys: those that act in the dream, and those that steer it. None of them scrolls the page.

import { wishOf } from "./controls.js";

const TYPED_INTO = "textarea, select, input:not([type=range], [type=checkbox], [type=button], [type=file])";
const PRESSED_BY_SPACE = "button, a, summary, label, input";

/** Whether a key belongs to what has the focus, not to the dream. */
function isTaken(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return true;
  const target = event.target;
  if (!(target instanceof Element)) return false;
  if (target.matches(TYPED_INTO)) return true;
  if (target.matches("input[type=range]") && event.key.startsWith("Arrow")) return true;
  return (event.key === " " || event.key === "Enter") && target.matches(PRESSED_BY_SPACE);
}

/** commands: {key: function}, keys as in `KeyboardEvent.key`, letters small. world() and isMoving() ask for the state. */
export function listenForKeys(held, commands, { world, isMoving }) {
  window.addEventListener("keydown", (event) => {
    if (isTaken(event)) return;
    const wish = world() && wishOf(event, world());
    const command = commands[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (wish) held.press(event.code, wish);
    else if (command) command(event);
    if (wish || command) event.preventDefault();
  });
  window.addEventListener("keyup", (event) => held.release(event.code, isMoving()));
  // A key let go of while another window has the focus is never heard of.
  window.addEventListener("blur", () => held.clear());
  document.addEventListener("visibilitychange", () => document.hidden && held.clear());
  leaveFocusToTheDream();
}

/** What was clicked or chosen from does not keep the focus: the next key is for the dream. Tab still leads anywhere. */
function leaveFocusToTheDream() {
  const leave = (kinds) => {
    const element = document.activeElement;
    if (element.matches(kinds) && !element.closest("dialog")) element.blur();
  };
  // Not a select, whose list would close; it is left once something was chosen.
  const leavePressed = () => leave("button, a, input[type=range], input[type=checkbox], input[type=file]");
  document.addEventListener("click", (event) => event.detail > 0 && leavePressed());
  document.addEventListener("pointerup", () => setTimeout(leavePressed));
  document.addEventListener("change", () => leave("select"));
}
