"""Who plays: policies that are asked for one action per frame, and whose choices depend on (seed, level) alone."""

from typing import Protocol

import numpy as np


class Policy(Protocol):
    def start(self, level: int) -> None:
        """Begin an episode on this level; all randomness of the episode is derived from it here."""

    def act(self, frame: np.ndarray) -> int:
        """The action for this frame (H, W, 3) uint8: an index into the action names."""


class RandomPolicy:
    """Draws an action per step, and with probability `sticky` repeats the last one instead.

    `weights` are relative frequencies by action name, in [0, inf); None draws uniformly.
    """

    def __init__(self, num_actions: int, num_steps: int, *, seed: int, sticky: float, weights: list[float] | None):
        weights = np.ones(num_actions) if weights is None else np.asarray(weights, dtype=np.float64)
        self._upper_bounds = np.cumsum(weights / weights.sum())[:-1]
        self._num_steps, self._seed, self._sticky = num_steps, seed, sticky

    def start(self, level: int) -> None:
        # Plain uniform doubles of PCG64, drawn at once: the only part of numpy's generator that never changes between
        # versions, and much cheaper than a draw per step.
        draws = np.random.Generator(np.random.PCG64([self._seed, level])).random((2, self._num_steps))
        fresh = np.searchsorted(self._upper_bounds, draws[0], side="right")
        is_fresh = draws[1] >= self._sticky
        is_fresh[0] = True
        drawn_at = np.maximum.accumulate(np.where(is_fresh, np.arange(self._num_steps), 0))
        self._actions = iter(fresh[drawn_at].tolist())

    def act(self, frame: np.ndarray) -> int:
        return next(self._actions)
