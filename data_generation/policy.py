"""Who plays: policies that are asked for actions frame by frame, and whose choices depend on (seed, level) alone."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Policy(Protocol):
    """Plays up to `batch_size` levels side by side; which levels share a batch may decide the bytes."""

    batch_size: int

    def start(self, levels: Sequence[int]) -> None:
        """Begin an episode on each level, at most batch_size; an episode's randomness follows from (seed, level)."""

    def act(self, frames: Sequence[np.ndarray], playing: np.ndarray) -> np.ndarray:
        """An action per level, (levels,), or those of several steps, (steps, levels): indices into the action names.

        It is asked again when they are taken; a policy that looks at no picture does well to give all at once.
        frames[i] is level i's picture, (H, W, 3) uint8; playing (levels,) bool is False where the episode has ended:
        that row's picture means nothing and its action is not used.
        """


class RandomPolicy:
    """Draws an action per step, and with probability `sticky` repeats the last one instead.

    `weights` are relative frequencies by action name, in [0, inf); None draws uniformly.
    """

    batch_size = 1  # it looks at no picture, so there is nothing to gain from more

    def __init__(self, num_actions: int, num_steps: int, *, seed: int, sticky: float, weights: list[float] | None):
        weights = np.ones(num_actions) if weights is None else np.asarray(weights, dtype=np.float64)
        self._upper_bounds = np.cumsum(weights / weights.sum())[:-1]
        self._num_steps, self._seed, self._sticky = num_steps, seed, sticky

    def start(self, levels: Sequence[int]) -> None:
        self._actions = np.stack([self._draw(level) for level in levels], axis=1)

    def act(self, frames: Sequence[np.ndarray], playing: np.ndarray) -> np.ndarray:
        actions, self._actions = self._actions, None
        assert actions is not None, f"asked for more than the {self._num_steps} steps of an episode"
        return actions

    def _draw(self, level: int) -> np.ndarray:
        """All actions of an episode: (num_steps,)."""
        # Plain uniform doubles of PCG64, drawn at once: the only part of numpy's generator that never changes between
        # versions, and much cheaper than a draw per step.
        draws = np.random.Generator(np.random.PCG64([self._seed, level])).random((2, self._num_steps))
        fresh = np.searchsorted(self._upper_bounds, draws[0], side="right")
        is_fresh = draws[1] >= self._sticky
        is_fresh[0] = True
        drawn_at = np.maximum.accumulate(np.where(is_fresh, np.arange(self._num_steps), 0))
        return fresh[drawn_at]
