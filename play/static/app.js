// Wires the page: what comes from the server to what is seen, what is pressed to what the server is told.

import { Connection } from "./connection.js";
import { Held, bindingsOf } from "./controls.js";
import { listenForKeys } from "./keyboard.js";
import { Pad, shown } from "./pad.js";
import { Gallery, listenForPictures } from "./prompts.js";
import { Presence } from "./presence.js";
import { Recorder } from "./recorder.js";
import { notice, setStatus, showError, showKeys, showWaiting } from "./said.js";
import { SamplingForm } from "./sampling.js";
import { Sketch } from "./sketch.js";
import { View } from "./view.js";
import { described, haveSamePad, listWorlds } from "./worlds.js";

const $ = (id) => document.getElementById(id);
const SLOW_START = 250; // ms after which it is said that a world is being loaded

let info = null; // what the server offers
let world = null; // the one of info.worlds that is played
let prompt = null; // {id, url, level}: the first frame
let wantsPlay = !matchMedia("(prefers-reduced-motion: reduce)").matches;
let isLive = false; // a dream is there, and the server listens
let unanswered = 0; // starts that the server has not answered: frames until then belong to an older dream
let told = null; // the action that the server holds
let slowStart = 0;

const isMoving = () => wantsPlay && isLive;
const view = new View({ nameOf, isMoving, drawn: (n) => connection.send("ack", { n }) });
const connection = new Connection({ ask, connected, message, frame: receive, waiting });
const held = new Held(tellAction);
const pad = new Pad($("pad"), held, { isMoving, saveNames });
const gallery = new Gallery($("gallery"), (chosen) => begin(chosen));
const sampling = new SamplingForm({ changed: (settings) => tell("settings", settings), reseeded: reset });
const recorder = new Recorder((on) => tell("record", { on }));
const presence = new Presence(() => held.isAny, () => tell("here"));
const sketch = new Sketch($("sketch"), { used: give, picture: () => $("dream") });

/** Tells the server, if there is a dream that this is about; whether there is. */
function tell(type, fields) {
  if (isLive) connection.send(type, fields);
  return isLive;
}

// ------------------------------------------------------------------------------------------------ the line

/** What the server offers, with the first frames of the world that is played. Throws where it does not say. */
async function ask(id = world?.id) {
  let answer = await fetch(id ? `/api/info?world=${encodeURIComponent(id)}` : "/api/info");
  if (id && answer.status === 400) answer = await fetch("/api/info"); // that world is gone
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  return answer.json();
}

function connected(fresh) {
  const isFirst = info === null;
  take(fresh);
  if (isFirst) sampling.set(info.defaults);
  begin(gallery.find(prompt?.id) ?? gallery.first);
}

function waiting(state, seconds, reason) {
  isLive = false;
  unanswered = 0;
  clearTimeout(slowStart);
  recorder.forget();
  // A short break shows the last frame on; only what has to be waited for covers it.
  showWaiting(state, seconds, reason, state !== "connecting" || view.isEmpty);
}

function message(message) {
  const answers = {
    started: () => started(message),
    error: () => failed(message.message),
    recording: () => recorder.done(message),
    rewound: () => view.cut(message.n),
  };
  answers[message.type]?.();
}

function failed(text) {
  showError(text);
  if (!unanswered) return;
  unanswered -= 1;
  if (unanswered) return;
  clearTimeout(slowStart);
  if (gallery.forget(prompt?.id)) begin(gallery.first); // a server that was started anew has no pictures of yours
  else notice(text, "Try again");
}

// ------------------------------------------------------------------------------------------------ worlds and prompts

/** Shows what the server offers, and the world that it says is current. */
function take(fresh) {
  info = fresh;
  gallery.limits = info.limits;
  presence.expect(info.limits.idle_seconds);
  listWorlds(info.worlds, info.current);
  gallery.show(info.prompts);
  describe(info.worlds.find(({ id }) => id === info.current));
}

/** What is known of the world that is played: `fresh` may tell more of the same one. */
function describe(fresh) {
  const before = world;
  world = { ...described(fresh), name_length: info.limits.name_length };
  sampling.limit({ max_fps: info.defaults.max_fps, max_steps: world.max_steps });
  if (!haveSamePad(before, world)) showPad();
}

async function choose(id) {
  setStatus("starting");
  try {
    take(await ask(id));
  } catch {
    return connection.open();
  }
  sampling.set({ steps: info.defaults.steps });
  begin(gallery.find(prompt?.id) ?? gallery.first);
}

function showPad() {
  const bindings = bindingsOf(world);
  held.use(bindings, world.neutral);
  pad.show(world, bindings);
  showKeys(world, bindings.length > 0);
}

/** Begins a dream, from `from` or again from the same first frame. */
function begin(from = prompt) {
  recorder.finish();
  prompt = from;
  gallery.mark(prompt?.id);
  const hasTruth = world.has_reality && (prompt?.level ?? null) !== null;
  $("with-reality").disabled = !hasTruth;
  $("reality-switch").title = hasTruth ? "" : "Only for first frames of a level that the true game can be started with";
  isLive = false;
  unanswered += 1;
  setStatus("starting");
  const isWanted = hasTruth && $("with-reality").checked;
  const { seed, settings } = sampling;
  connection.send("start", { world: world.id, prompt: prompt?.id ?? null, seed, reality: isWanted, ...settings });
  clearTimeout(slowStart);
  slowStart = setTimeout(() => notice("Loading the world…"), SLOW_START);
}

function started(message) {
  unanswered = Math.max(0, unanswered - 1);
  if (unanswered) return;
  clearTimeout(slowStart);
  isLive = true;
  view.begin(info.limits.max_rewind);
  notice(null);
  if (message.world) describe(message.world); // what its latent actions do is known only after it was loaded
  told = null;
  tellAction(held.action());
  setPlaying(wantsPlay);
}

async function give(file) {
  if (!world) return;
  showError("");
  try {
    await gallery.give(file);
  } catch (error) {
    showError(error.message);
  }
}

async function saveNames(names) {
  if (names) {
    const body = JSON.stringify({ world: world.id, names });
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch("/api/names", { method: "POST", headers, body }).catch(() => null);
    const reply = (await answer?.json().catch(() => null)) ?? {};
    if (!answer?.ok) return showError(reply.error ?? "The names were not saved: the server does not answer.");
    if (reply.saved === false) showError("The names last until the server ends: the world's folder cannot be written to.");
    describe({ ...world, ...reply.world });
  }
  showPad();
}

// ------------------------------------------------------------------------------------------------ frames

function receive(frame) {
  if (unanswered) {
    connection.send("ack", { n: frame.n });
    return;
  }
  held.shown(frame.action);
  view.receive(frame);
  recorder.tick(sampling.settings.fps);
}

function nameOf(action) {
  return shown(world.action_names[action]) || `action ${action + 1}`;
}

// ------------------------------------------------------------------------------------------------ steering

function tellAction(action, wishes = null) {
  if (wishes) pad.light(wishes, action);
  if (action === told || !isLive) return;
  told = action;
  tell("action", { action });
}

function setPlaying(isPlaying) {
  wantsPlay = isPlaying;
  view.stopCounting();
  $("play").classList.toggle("playing", isPlaying);
  $("play-label").textContent = isPlaying ? "Pause" : "Play";
  if (!isLive) return;
  tell(isPlaying ? "play" : "pause");
  setStatus(isPlaying ? "playing" : "paused");
}

function step() {
  if (wantsPlay) setPlaying(false);
  tell("step", { count: 1 });
}

function rewind(count) {
  if (wantsPlay) setPlaying(false);
  const possible = Math.min(count, view.rewindable);
  if (possible > 0) tell("rewind", { count: possible });
  else view.refresh();
}

function drag() {
  if (wantsPlay) setPlaying(false);
  view.preview();
}

/** From the first frame again, with the seed that is set now. */
function reset() {
  tell("settings", { seed: sampling.seed });
  tell("reset");
}

function fullscreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else $("player").requestFullscreen?.();
}

// ------------------------------------------------------------------------------------------------ listening

$("play").onclick = () => setPlaying(!wantsPlay);
$("step").onclick = step;
$("back").onclick = () => rewind(1);
$("reset").onclick = reset;
$("fullscreen").onclick = fullscreen;
$("fullscreen").hidden = !document.fullscreenEnabled;
$("rewind").oninput = drag;
$("rewind").onchange = () => rewind(view.endPreview());
$("notice-button").onclick = () => connection.open();
$("draw").onclick = () => {
  held.clear();
  sketch.open();
};
$("with-reality").onchange = () => begin();
$("world").onchange = () => choose($("world").value);
listenForPictures($("upload"), $("dropping"), give);
listenForKeys(
  held,
  {
    " ": (event) => event.repeat || setPlaying(!wantsPlay),
    ".": step,
    Backspace: () => rewind(1),
    r: (event) => event.repeat || reset(),
    f: (event) => event.repeat || fullscreen(),
  },
  { world: () => world, isMoving },
);
connection.open();
