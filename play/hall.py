"""What all players share: the worlds, the prompts, the finished recordings, and the one thread that computes."""

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import torch

from data_generation.environment import COINRUN_ACTIONS, Game
from play import arrows, latent_actions, messages
from play.action_words import recorded_names
from play.latent_actions import LatentActionNames
from play.library import Entry, Library, Loaded, NoRoomError
from play.player import Player, Wishes
from play.prompts import Prompt, Prompts, open_held_out
from play.reality import Reality, game_of
from play.recording import Recordings
from training.settings import PlaySettings

T = TypeVar("T")
SMALLEST_FPS = 0.5
HIGHEST_TEMPERATURE = 5.0
ASIDE_THREADS = 3  # for disks and pictures: loading, decoding, encoding


class Hall:
    """One per server. `compute` and `aside` run a function in a thread, so that the event loop never waits for one.

    Raises ValueError or OSError where there is no world to play, or the chosen one cannot be loaded.
    """

    def __init__(self, settings: PlaySettings):
        self.settings = settings
        self.device = choose_device(settings.device)
        self.library = Library(settings, self.device)
        self.prompts = Prompts(settings)
        self.recordings = Recordings()
        self.num_players = 0
        self._names: dict[str, LatentActionNames] = {}
        # One thread: a player has at most one step in its queue, so that all take turns, and frames never compete for
        # the cores with each other.
        self._computing = ThreadPoolExecutor(1, "compute", initializer=self._use_threads)
        self._aside = ThreadPoolExecutor(ASIDE_THREADS, "aside")
        found = self.library.scan()
        if not found:
            raise ValueError(
                f"no world was found below {', '.join(settings.roots)}; train one (bash run.sh "
                "--config=quickstart.yaml), or set --play.model_fpath=<run folder>"
            )
        self.current = found[0]

    async def compute(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._computing, function, *arguments)

    async def aside(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._aside, function, *arguments)

    def close(self) -> None:
        self._computing.shutdown(cancel_futures=True)
        self._aside.shutdown(cancel_futures=True)

    def _use_threads(self) -> None:
        if self.settings.num_threads is not None:
            torch.set_num_threads(self.settings.num_threads)

    # ------------------------------------------------------------------------------------------------------- players

    def lend(self, entry: Entry) -> Loaded:
        """`load` for a stranger, who is not to see paths: the terminal gets the reason."""
        try:
            return self.load(entry)
        except NoRoomError:
            raise
        except (ValueError, OSError) as error:
            print(f"warning: {entry.name} cannot be loaded: {' '.join(str(error).split())}", file=sys.stderr)
            raise ValueError(f"{entry.name} cannot be loaded; the server's terminal says why") from error

    def load(self, entry: Entry) -> Loaded:
        """A world for one more player; of a latent one it is first found out what its actions do."""
        loaded = self.library.take(entry)
        if entry.is_latent and not self.names(entry).is_of(entry.trained_steps):
            self._find_out_actions(loaded)
        return loaded

    def _find_out_actions(self, loaded: Loaded) -> None:
        entry = loaded.entry
        try:
            episodes = open_held_out(entry, self.settings)
            known = latent_actions.measure(
                self.names(entry),
                loaded.world,
                episodes,
                self.window(entry),
                frame_skip=entry.frame_skip,
                step=entry.trained_steps,
            )
        except (ValueError, OSError):
            return  # no data to find it out from: actions keep their numbers
        self.name_actions(entry, known)

    def begin(self, loaded: Loaded, prompt: Prompt, wishes: Wishes, with_reality: bool) -> Player:
        """A player at the first frame. Computes."""
        reality, entry = None, loaded.entry
        if with_reality and prompt.level is not None and (game := self.game(entry)) is not None:
            reality = Reality(game, prompt.level, entry.image_size, self.settings.max_rewind)
        return Player(
            loaded,
            prompt,
            wishes,
            window=self.window_of(loaded),
            max_rewind=self.settings.max_rewind,
            max_film_seconds=self.settings.record_seconds,
            reality=reality,
        )

    def num_bytes_per_player(self) -> int:
        """Of the current world, measured on a dream of two frames, which also makes the first player wait less."""
        loaded = self.load(self.current)
        player = self.begin(loaded, self.prompts.find(self.current, None), self.wishes(self.current, {}), True)
        player.step(0)
        num_bytes = player.num_bytes(self.settings.max_fps)
        player.close()
        self.library.release(loaded)
        return num_bytes

    def window(self, entry: Entry) -> int:
        return self.settings.window or entry.window

    def window_of(self, loaded: Loaded) -> int:
        """At most what the position table of the dynamics has room for."""
        window = self.window(loaded.entry)
        return min(window, loaded.world.dynamics.context or window)

    def wishes(self, entry: Entry, message: dict[str, Any], before: Wishes | None = None) -> Wishes:
        """What a player asked for, within what is allowed. Raises ValueError that names the value and its bounds."""
        settings = self.settings
        if before is None:
            steps = min(settings.inference_steps, self.max_steps(entry))
            before = Wishes(settings.seed, steps, settings.temperature, settings.fps)
        return Wishes(
            messages.whole(message, "seed", before.seed, 0, messages.LARGEST_SEED),
            messages.whole(message, "steps", before.steps, 1, self.max_steps(entry)),
            messages.number(message, "temperature", before.temperature, 0, HIGHEST_TEMPERATURE),
            messages.number(message, "fps", before.fps, min(SMALLEST_FPS, settings.fps), settings.max_fps),
        )

    def max_steps(self, entry: Entry) -> int:
        return self.settings.max_inference_steps if entry.can_refine else 1

    # ------------------------------------------------------------------------------------------------ what is played

    def names(self, entry: Entry) -> LatentActionNames:
        """Of a latent world's actions; of a damaged file, which the terminal names, nothing is known."""
        if entry.id not in self._names:
            try:
                self._names[entry.id] = latent_actions.read(entry.folder, entry.num_actions)
            except ValueError as error:
                print(f"warning: {error}", file=sys.stderr)
                self._names[entry.id] = LatentActionNames(entry.num_actions)
        return self._names[entry.id]

    def name_actions(self, entry: Entry, known: LatentActionNames) -> bool:
        """Keep what is known of a latent world's actions; whether it could be written beside the world."""
        self._names[entry.id] = known
        return latent_actions.write(entry.folder, known)

    def rename(self, entry: Entry, names: list[str] | None) -> bool:
        return self.name_actions(entry, replace(self.names(entry), names=names))

    def game(self, entry: Entry) -> Game | None:
        """The true game of a world, where its actions are CoinRun's and Procgen is there; else None."""
        if not self.settings.reality or entry.is_latent or self.action_names(entry) != list(COINRUN_ACTIONS):
            return None
        return game_of(self.prompts.gallery(entry).info)

    def action_names(self, entry: Entry) -> list[str]:
        if entry.is_latent:
            return self.names(entry).shown()
        return recorded_names(entry, self.prompts.gallery(entry).info)

    def describe(self, entry: Entry) -> dict[str, Any]:
        """A world, as the page needs it."""
        names = self.action_names(entry)
        keys = self.names(entry).pressed() if entry.is_latent else arrows.bindings(names, range(len(names)))
        return {
            "id": entry.id,
            "name": entry.name,
            "kind": "latent" if entry.is_latent else "guided",
            "steps": entry.trained_steps,
            "max_steps": self.max_steps(entry),
            "image_size": list(entry.image_size),
            "num_actions": entry.num_actions,
            "action_names": names,
            "suggested_names": self.names(entry).suggested() if entry.is_latent else None,
            "neutral": keys.get("", 0),
            "agreement": self.names(entry).agreement() if entry.is_latent else None,
            "keys": keys,
            "has_reality": self.game(entry) is not None,
        }

    def overview(self, world_id: str | None) -> dict[str, Any]:
        """What `/api/info` answers; with the prompts of the named world, else of the current one. Reads the disk."""
        settings, entries = self.settings, self.library.scan()
        entry = self.current if world_id is None else self.library.find(world_id)
        prompts = self.prompts.gallery(entry).prompts
        return {
            "worlds": [self.describe(each) for each in entries],
            "current": entry.id,
            "prompts": [
                {"id": prompt.id, "url": f"/api/prompts/{prompt.id}.png?world={entry.id}", "level": prompt.level}
                for prompt in prompts
            ],
            "defaults": {
                "steps": min(settings.inference_steps, self.max_steps(entry)),
                "max_steps": self.max_steps(entry),
                "temperature": settings.temperature,
                "max_temperature": HIGHEST_TEMPERATURE,
                "fps": settings.fps,
                "max_fps": settings.max_fps,
                "seed": settings.seed,
            },
            "limits": {
                "upload_bytes": settings.upload_bytes,
                "upload_pixels": settings.upload_pixels,
                "max_sessions": settings.max_sessions,
                "max_rewind": settings.max_rewind,
                "record_seconds": settings.record_seconds,
                "idle_seconds": settings.idle_seconds,
                "name_length": latent_actions.LONGEST_NAME,
            },
            "sessions": self.num_players,
        }


def choose_device(name: str | None, key: str = "play.device") -> torch.device:
    """A GPU if there is one, unless the settings say otherwise."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"{key} is {name!r}, which this machine does not have ({reason})") from None
    return device
