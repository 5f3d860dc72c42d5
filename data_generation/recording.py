"""From simulator and policy to episodes: what one worker does."""

import numpy as np

from data.episodes import Episode
from data_generation.environment import Game, Level
from data_generation.policy import Policy

REVISION = 1  # of everything that decides which bytes a config gives; raise it when they change
PROCGEN_TIMEOUT = 1000  # steps after which Procgen itself ends an episode, in every game but a few that have their own


def record_episode(
    game: Game, policy: Policy, level: int, num_steps_max: int, room: np.ndarray | None = None
) -> Episode:
    """Play a level from its first frame until it ends or `num_steps_max` actions were taken, and keep every frame.

    T actions are taken at T frames. The frame that follows the last action is never kept: after an end it belongs to
    another episode, and at our own limit the recording stops there. The frames are a view of `room`, (at least
    num_steps_max, H, W, 3) uint8, where it is given: new memory for every episode costs a third of the frame rate.
    """
    simulator = Level(game, level)
    policy.start(level)
    frames = np.empty((num_steps_max, *game.picture_shape), np.uint8) if room is None else room
    actions = np.empty(num_steps_max, np.int16)
    rewards = np.empty(num_steps_max, np.float32)
    end_reason = "time_limit"
    for step in range(num_steps_max):
        frames[step] = simulator.frame
        actions[step] = policy.act(simulator.frame)
        rewards[step], has_ended = simulator.step(int(actions[step]))
        if has_ended:
            end_reason = _end_reason(simulator.was_completed(), step + 1)
            break
    simulator.close()
    length = step + 1
    return Episode(frames[:length], actions[:length], rewards[:length], level, end_reason)


def _end_reason(was_completed: bool, num_steps: int) -> str:
    if was_completed:
        return "coin"
    return "time_limit" if num_steps >= PROCGEN_TIMEOUT else "death"
