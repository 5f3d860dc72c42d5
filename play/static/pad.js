// Buttons for fingers: arrows where actions are directions, else one numbered button per action, with its name.

const SIGNS = {
  ArrowLeft: ["Left", "M15 5l-8 7 8 7z"],
  ArrowDown: ["Down", "M5 9l7 8 7-8z"],
  ArrowRight: ["Right", "M9 5l8 7-8 7z"],
  ArrowUp: ["Up", "M5 15l7-8 7 8z"],
};

const POINTS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const DIRECTIONS = ["↖↑↗", "← →", "↙↓↘"];

/** "↗" for right and up together. */
function direction(arrows) {
  const along = (axis) => Math.sign(arrows.reduce((sum, arrow) => sum + POINTS[arrow][axis], 0));
  return DIRECTIONS[1 + along(1)][1 + along(0)];
}

/** An action's name as it is shown: it may break into lines. */
export function shown(name) {
  return (name ?? "").replaceAll("_", " ");
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function sign(path) {
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picture.setAttribute("viewBox", "0 0 24 24");
  picture.setAttribute("aria-hidden", "true");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
  shape.setAttribute("d", path);
  picture.append(shape);
  return picture;
}

/** The buttons of one world in `element`; presses go to `held`, as those of keys do. */
export class Pad {
  #element;
  #held;
  #isMoving;
  #saveNames;

  /** isMoving(): whether the dream plays; saveNames(names): called with what the user wrote. */
  constructor(element, held, { isMoving, saveNames }) {
    this.#element = element;
    this.#held = held;
    this.#isMoving = isMoving;
    this.#saveNames = saveNames;
    this.#followFingers();
  }

  show(world, bindings) {
    const arrows = new Set(bindings.flatMap((binding) => binding.arrows));
    const hasArrows = arrows.size > 0;
    const hasNumbers = world.kind === "latent" || !hasArrows;
    this.#element.className = [hasArrows && "arrows", hasNumbers && "numbers"].filter(Boolean).join(" ");
    const parts = [...(hasArrows ? this.#arrows(arrows) : []), ...(hasNumbers ? this.#numbers(world, bindings) : [])];
    this.#element.replaceChildren(...parts);
  }

  /** Lights the pressed wishes, and the action that they press. */
  light(wishes, action) {
    const pressed = new Set(wishes.size ? [...wishes, `#${action}`] : []);
    for (const button of this.#element.querySelectorAll("[data-wish]")) {
      button.classList.toggle("down", pressed.has(button.dataset.wish));
    }
  }

  #arrows(arrows) {
    const button = (key) => {
      const [label, path] = SIGNS[key];
      const element = make("button", { type: "button", ariaLabel: label, hidden: !arrows.has(key) }, sign(path));
      element.dataset.wish = key;
      return element;
    };
    const sides = ["ArrowLeft", "ArrowDown", "ArrowRight"].map(button);
    return [make("div", { className: "cluster" }, ...sides), make("div", { className: "cluster" }, button("ArrowUp"))];
  }

  /** A numbered button for each action, with its name and the arrows that press it. */
  #numbers(world, bindings) {
    const buttons = world.action_names.map((name, action) => {
      const label = make("span", { className: "name", textContent: shown(name) });
      const keys = bindings.filter((binding) => binding.action === action).map(({ arrows }) => direction(arrows));
      const pressed = make("span", { className: "keys", textContent: keys.join(" ") });
      const number = make("span", {}, make("b", { textContent: action + 1 }), pressed);
      const button = make("button", { type: "button" }, number, label);
      button.dataset.wish = `#${action}`;
      return button;
    });
    const grid = make("div", { className: "grid" }, ...buttons);
    if (world.kind !== "latent") return [grid];
    return [grid, this.#lower(world)];
  }

  /** Under the numbered buttons of a latent world: what it does at rest, and how its actions are called. */
  #lower(world) {
    const rest = make("select", { id: "rest" });
    world.action_names.forEach((name, action) => rest.append(new Option(shown(name) || action + 1, action)));
    rest.value = this.#held.rest;
    rest.onchange = () => {
      this.#held.rest = Number(rest.value);
      this.#held.clear();
    };
    const edit = make("button", { type: "button", id: "edit-names", textContent: "Name actions" });
    edit.onclick = () => this.#edit(world);
    return make("div", { className: "row" }, make("label", {}, "At rest: ", rest), edit, this.#agreement(world));
  }

  /** How far the arrows of a latent world are to be trusted. */
  #agreement({ agreement }) {
    if (!agreement) return "";
    const [right, usual] = agreement.map((share) => `${Math.round(100 * share)} %`);
    const text = `Arrows fit ${right} of real moves, guessing ${usual}`;
    const title = "Of recorded moves the world has not seen: how many do what their latent action stands for, and how many the most frequent one";
    return make("span", { className: "hint", textContent: text, title });
  }

  #edit(world) {
    const suggested = world.suggested_names ?? [];
    const fields = world.action_names.map((name, action) => {
      const field = make("input", { type: "text", maxLength: world.name_length, autocomplete: "off" });
      field.value = name === suggested[action] ? "" : name;
      field.placeholder = shown(suggested[action]) || `action ${action + 1}`;
      return field;
    });
    const rows = fields.map((field, action) => make("label", {}, make("b", { textContent: action + 1 }), field));
    const save = make("button", { type: "submit", className: "strong", textContent: "Save names" });
    const cancel = make("button", { type: "button", textContent: "Cancel" });
    const suggest = make("button", { type: "button", textContent: "As suggested", hidden: !suggested.some(Boolean) });
    suggest.title = "After the actions that were really taken";
    suggest.onclick = () => fields.forEach((field) => (field.value = ""));
    cancel.onclick = () => this.#saveNames(null);
    const grid = make("div", { className: "grid" }, ...rows);
    const form = make("form", {}, grid, make("div", { className: "row" }, save, suggest, cancel));
    form.addEventListener("keydown", (event) => event.key === "Escape" && this.#saveNames(null));
    form.onsubmit = (event) => {
      event.preventDefault();
      this.#saveNames(fields.map((field) => field.value.trim()));
    };
    this.#element.replaceChildren(form);
    fields[0].focus();
  }

  /** Every finger presses what is under it, also after sliding there. */
  #followFingers() {
    const wishAt = (event) => {
      const under = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-wish]");
      return under && this.#element.contains(under) ? under.dataset.wish : null;
    };
    const follow = (event) => {
      const wish = wishAt(event);
      if (wish) this.#held.press(`finger ${event.pointerId}`, wish);
      else this.#held.release(`finger ${event.pointerId}`, this.#isMoving());
    };
    const leave = (event) => this.#held.release(`finger ${event.pointerId}`, this.#isMoving());
    this.#element.addEventListener("pointerdown", (event) => {
      if (!event.target.closest("[data-wish]") || event.button > 0) return;
      event.preventDefault(); // no focus, no long-press menu
      this.#element.setPointerCapture(event.pointerId);
      follow(event);
    });
    this.#element.addEventListener("pointermove", (event) => {
      if (this.#element.hasPointerCapture(event.pointerId)) follow(event);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) this.#element.addEventListener(end, leave);
    this.#element.addEventListener("contextmenu", (event) => event.preventDefault());
    // Space and Enter on a focused button, for those who reach it with Tab.
    this.#element.addEventListener("click", (event) => {
      const wish = event.target.closest("[data-wish]")?.dataset.wish;
      if (!wish || event.detail > 0) return;
      this.#held.press("click", wish);
      this.#held.release("click", true);
    });
  }
}
