// The worlds to choose from, and what is known of the one that is played.

const $ = (id) => document.getElementById(id);
const UNNAMED = /^action \d+$/; // what the server calls an action that has no name

/** Fills the list of worlds. */
export function listWorlds(worlds, current) {
  const shared = sharedFolder(worlds.map(({ name }) => name)).length;
  $("world").replaceChildren(...worlds.map(({ id, name }) => new Option(name.slice(shared), id)));
  $("world").disabled = worlds.length < 2;
  $("world").value = current;
}

/** The folders that all worlds lie in, which is not worth the room that it takes on a phone. */
function sharedFolder(names) {
  const isShared = (folder) => names.length > 1 && names.every((name) => name.startsWith(folder));
  const folders = [...names[0].matchAll(/\//g)].map(({ index }) => names[0].slice(0, index + 1));
  return folders.filter(isShared).at(-1) ?? "";
}

/** A world as the server describes it, with an empty name for every action that has none. */
export function described(world) {
  const named = (names) => names?.map((name) => (UNNAMED.test(name) ? "" : name)) ?? null;
  return { ...world, action_names: named(world.action_names), suggested_names: named(world.suggested_names) };
}

/** Whether two descriptions have the same buttons. */
export function haveSamePad(first, second) {
  const buttons = (world) => world && JSON.stringify([world.id, world.action_names, world.neutral, world.keys]);
  return buttons(first) === buttons(second);
}
