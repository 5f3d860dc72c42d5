"""The true game beside a dream: the level whose first frame was the prompt, played with the same actions."""

import math
from collections import deque
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_generation.environment import COINRUN_ACTIONS, Game, Level, game_names
from play.prompts import fit


def game_of(info: dict[str, Any]) -> Game | None:
    """The game that a data set was generated with; None for other data, and where Procgen cannot be imported."""
    config = info.get("generator", {}).get("config", {})
    if config.get("action_set") != "coinrun7" or any(field.name not in config for field in fields(Game)):
        return None
    try:
        known = game_names()
    except ImportError:
        return None
    return Game(**{field.name: config[field.name] for field in fields(Game)}) if config["game"] in known else None


def psnr(first: np.ndarray, second: np.ndarray) -> float | None:
    """Between two uint8 pictures, in dB; None where they are equal."""
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return None if error == 0 else 10 * math.log10(255**2 / error)


class Moment(NamedTuple):
    """Where the game was after some action."""

    state: bytes  # the simulator's
    picture: np.ndarray  # (H, W, 3) uint8
    is_over: bool


class Reality:
    """One level, from its first frame to the end of its episode; then the picture stays.

    `picture` (H, W, 3) uint8 shows where it is. max_rewind: actions that can be taken back.
    """

    def __init__(self, game: Game, level: int, image_size: tuple[int, int], max_rewind: int):
        assert game.action_set == "coinrun7" and len(COINRUN_ACTIONS) == 7
        self._image_size = image_size
        self._level = Level(game, level)
        self._first = self._moment(is_over=False)
        self._moments = deque([self._first], maxlen=max_rewind + 1)

    @property
    def picture(self) -> np.ndarray:
        return self._moments[-1].picture

    @property
    def is_over(self) -> bool:
        return self._moments[-1].is_over

    def step(self, action: int) -> None:
        """Take an action, which after the end changes nothing."""
        last = self._moments[-1]
        if not last.is_over:
            _, is_over = self._level.step(action)
            # At the end the simulator shows its next episode already.
            last = last._replace(is_over=True) if is_over else self._moment(is_over=False)
        self._moments.append(last)

    def rewind(self, count: int) -> None:
        """Take the last `count` actions back, at most `max_rewind`."""
        assert count < len(self._moments), (count, len(self._moments))
        for _ in range(count):
            self._moments.pop()
        self._restore()

    def reset(self) -> None:
        """Go back to the first frame."""
        self._moments.clear()
        self._moments.append(self._first)
        self._restore()

    def num_bytes(self) -> int:
        """Memory of the moments that can be gone back to, at most."""
        return self._moments.maxlen * (len(self._first.state) + self._first.picture.nbytes)

    def close(self) -> None:
        self._level.close()

    def _restore(self) -> None:
        if not self.is_over:  # there is nothing to go on with else
            self._level.restore(self._moments[-1].state)

    def _moment(self, is_over: bool) -> Moment:
        picture = fit(Image.fromarray(self._level.frame), self._image_size).copy()
        return Moment(self._level.state(), picture, is_over)
