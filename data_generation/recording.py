"""From simulators and policy to episodes: what one worker does."""

from collections.abc import Sequence

import numpy as np

from data.episodes import Episode
from data_generation.environment import Game, Level
from data_generation.policy import Policy

REVISION = 2  # of everything that decides which bytes a config gives; raise it when they change
# Steps after which Procgen itself ends an episode, with the exceptions that its games set themselves.
TIMEOUT = 1000
TIMEOUTS = {"bigfish": 6000, "bossfight": 4000, "leaper": 500, "maze": 500, "plunder": 4000}


def record_episodes(
    game: Game, policy: Policy, levels: Sequence[int], num_steps_max: int, room: np.ndarray | None = None
) -> list[Episode]:
    """Play levels in lock-step from their first frame until each ends or `num_steps_max` actions were taken.

    T actions are taken at T frames, and all T frames are kept. The frame that follows the last action never is: after
    an end it belongs to another episode, and at our own limit the recording stops there. Level i's frames are a view
    of `room`, (at least len(levels) * num_steps_max, H, W, 3) uint8, from i * num_steps_max on, where it is given: new
    memory for every episode costs a third of the frame rate.
    """
    assert len(levels) <= policy.batch_size, (len(levels), policy.batch_size)
    if room is None:
        room = np.empty((len(levels) * num_steps_max, *game.picture_shape), np.uint8)
    assert len(room) >= len(levels) * num_steps_max, (len(room), len(levels), num_steps_max)
    rooms = (room[row * num_steps_max : (row + 1) * num_steps_max] for row in range(len(levels)))
    takes = [Take(game, level, frames) for level, frames in zip(levels, rooms, strict=True)]
    playing = np.ones(len(levels), bool)
    policy.start(levels)
    unfinished = list(enumerate(takes))
    while unfinished:
        actions = np.atleast_2d(policy.act([take.simulator.frame for take in takes], playing)).T.tolist()
        ended = [row for row, take in unfinished if take.play(actions[row])]
        if ended:
            playing[ended] = False
            unfinished = [(row, take) for row, take in unfinished if playing[row]]
    return [take.episode() for take in takes]


class Take:
    """The recording of one level: its simulator, and what it has shown so far. `frames` (steps, H, W, 3) is filled."""

    def __init__(self, game: Game, level: int, frames: np.ndarray):
        self.simulator = Level(game, level)
        self._level, self._frames, self._timeout = level, frames, TIMEOUTS.get(game.game, TIMEOUT)
        self._actions: list[int] = []
        self._rewards: list[float] = []
        self._end_reason = "time_limit"

    def play(self, actions: list[int]) -> bool:
        """Take the actions, keeping the frame at which each is taken; whether the recording came to its end."""
        num_taken = len(self._actions)
        rewards, has_ended = self.simulator.play(actions[: len(self._frames) - num_taken], self._frames[num_taken:])
        self._actions += actions[: len(rewards)]
        self._rewards += rewards
        if has_ended:
            self._end_reason = self._why()
        if has_ended or len(self._actions) == len(self._frames):
            self.simulator.close()
            return True
        return False

    def episode(self) -> Episode:
        actions, rewards = np.array(self._actions, np.int16), np.array(self._rewards, np.float32)
        return Episode(self._frames[: len(actions)], actions, rewards, self._level, self._end_reason)

    def _why(self) -> str:
        """Why the simulator ended the episode; in any game "coin" says completed and "death" says lost."""
        if self.simulator.was_completed():
            return "coin"
        return "time_limit" if len(self._actions) >= self._timeout else "death"
