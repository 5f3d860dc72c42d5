from dataclasses import replace

import numpy as np
import pytest

from data_generation.environment import Game, Level, game_names
from data_generation.policy import RandomPolicy
from data_generation.recording import record_episodes

GAME = Game("coinrun", "hard", True, False, False, "coinrun7", 64)
LEVELS = (0, 3, 11, 5)


class SideBySide(RandomPolicy):
    """Random buttons on several levels at once, but step by step; remembers what it was asked."""

    def __init__(self, batch_size: int, num_actions: int = 7, num_steps: int = 300, sticky: float = 0.0):
        super().__init__(num_actions, num_steps, seed=0, sticky=sticky, weights=None)
        self.batch_size = batch_size

    def start(self, levels):
        super().start(levels)
        self.asked, self._planned = [], iter(super().act([], np.ones(len(levels), bool)))

    def act(self, frames, playing):
        self.asked.append(([frame.copy() for frame in frames], playing.copy()))
        return next(self._planned)


class AtOnce(SideBySide):
    """The same buttons, all of them given when it is first asked."""

    def act(self, frames, playing):
        return np.stack(list(self._planned))


def test_levels_played_side_by_side_give_the_episodes_of_levels_played_alone():
    together = record_episodes(GAME, SideBySide(4), LEVELS, 300)
    alone = [record_episodes(GAME, SideBySide(1), [level], 300)[0] for level in LEVELS]
    assert len({len(episode.frames) for episode in together}) > 1, "all ended together; choose other levels"
    for one, other in zip(together, alone, strict=True):
        assert (one.level_seed, one.end_reason) == (other.level_seed, other.end_reason)
        for name in ("frames", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("size", [32, 64])
def test_actions_given_at_once_give_the_episodes_of_actions_given_step_by_step(size):
    game = replace(GAME, image_size=size)
    at_once = record_episodes(game, AtOnce(4), LEVELS, 120)
    for one, other in zip(at_once, record_episodes(game, SideBySide(4), LEVELS, 120), strict=True):
        assert (one.level_seed, one.end_reason) == (other.level_seed, other.end_reason)
        for name in ("frames", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_policy_sees_the_current_frames_and_who_still_plays():
    policy = SideBySide(4)
    episodes = record_episodes(GAME, policy, LEVELS, 300)
    assert len(policy.asked) == max(len(episode.frames) for episode in episodes)
    for step, (frames, playing) in enumerate(policy.asked):
        assert playing.tolist() == [step < len(episode.frames) for episode in episodes]
        for row in np.flatnonzero(playing):
            np.testing.assert_array_equal(frames[row], episodes[row].frames[step])


def test_frames_are_written_into_the_room_given_one_level_after_the_other():
    room = np.zeros((3 * 20, 64, 64, 3), np.uint8)
    for number, episode in enumerate(record_episodes(GAME, SideBySide(3), (0, 3, 5), 20, room)):
        assert np.shares_memory(episode.frames, room[20 * number : 20 * (number + 1)])
        assert (room[20 * number] == episode.frames[0]).all()


@pytest.mark.parametrize("game", game_names())
def test_every_game_is_recorded_exactly(game):
    played = replace(GAME, game=game, action_set="procgen15")
    episode = record_episodes(played, SideBySide(1, 15), [2], 25)[0]
    again = Level(played, 2)
    for frame, action, reward in zip(episode.frames, episode.actions, episode.rewards, strict=True):
        np.testing.assert_array_equal(again.frame, frame)
        assert again.step(int(action))[0] == reward
    assert len(episode.frames) == 25 or episode.end_reason != "time_limit"


@pytest.mark.parametrize("game, timeout", [("maze", 500), ("heist", 1000)])
def test_waiting_ends_by_the_time_limit_that_a_game_has(game, timeout):
    waiting = SideBySide(1, num_actions=1, num_steps=1100)
    episode = record_episodes(replace(GAME, game=game), waiting, [0], 1100)[0]
    assert (len(episode.frames), episode.end_reason) == (timeout, "time_limit")


def test_coin_says_completed_in_games_without_coins_and_the_last_reward_is_kept():
    maze = replace(GAME, game="maze", distribution_mode="easy")
    episodes = [record_episodes(maze, SideBySide(1, num_steps=400), [level], 400)[0] for level in range(4)]
    assert "coin" in [episode.end_reason for episode in episodes], "no maze was solved; choose other levels"
    for episode in episodes:
        assert not episode.rewards[:-1].any()
        assert episode.rewards[-1] == (10 if episode.end_reason == "coin" else 0)
