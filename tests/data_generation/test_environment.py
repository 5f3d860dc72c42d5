from dataclasses import replace

import numpy as np
import pytest

from data_generation.environment import ACTION_SETS, PROCGEN_BUTTONS, Game, Level, game_names, procgen
from data_generation.policy import RandomPolicy
from data_generation.recording import record_episodes

GAME = Game("coinrun", "hard", True, False, False, "coinrun7", 64)


def fresh_simulator(level: int, game: str = "coinrun"):
    """Procgen as its own documentation starts it, with other seeds and threads than ours."""
    return procgen().ProcgenGym3Env(
        num=1,
        env_name=game,
        distribution_mode="hard",
        num_levels=1,
        start_level=level,
        rand_seed=99,
        num_threads=1,
    )


class Script:
    """A policy that plays given actions, then does nothing."""

    batch_size = 1

    def __init__(self, actions):
        self._given = list(actions)

    def start(self, levels):
        self._actions = iter(self._given)

    def act(self, frames, playing):
        return np.array([next(self._actions, 0)])


def record(level: int, steps: int = 60, game: Game = GAME, sticky: float = 0.0):
    return record_episodes(game, RandomPolicy(7, steps, seed=0, sticky=sticky, weights=None), [level], steps)[0]


def test_a_level_is_the_one_that_procgen_reports_and_draws_for_its_seed():
    for level in (0, 7, 12_345):
        simulator = fresh_simulator(level)
        assert simulator.get_info()[0]["level_seed"] == level
        np.testing.assert_array_equal(Level(GAME, level).frame, simulator.observe()[1]["rgb"][0])
    assert (Level(GAME, 0).frame != Level(GAME, 1).frame).any()


def test_a_level_is_the_same_whatever_was_played_before():
    together = {level: record(level) for level in (5, 6, 7)}
    for level in (7, 5, 6):
        again = record(level)
        np.testing.assert_array_equal(again.frames, together[level].frames)
        np.testing.assert_array_equal(again.actions, together[level].actions)


@pytest.mark.parametrize("game", game_names())
def test_a_level_after_another_is_the_one_of_a_new_simulator(game):
    played = replace(GAME, game=game, action_set="procgen15")
    before = Level(played, 2)
    before.play([7] * 30, np.empty((30, 64, 64, 3), np.uint8))
    before.close()
    level, new = Level(played, 5), fresh_simulator(5, game)
    for action in (7, 8, 4, 1, 9, 14, 7, 7, 7):
        np.testing.assert_array_equal(level.frame, new.observe()[1]["rgb"][0])
        new.act(np.array([action]))
        reward, is_first = new.observe()[0][0], new.observe()[2][0]
        assert level.step(action) == (reward, is_first)
        assert level.was_completed() == new.get_info()[0]["prev_level_complete"]


def test_replaying_the_stored_actions_in_another_simulator_gives_the_stored_frames_and_rewards():
    seen = set()
    for level in range(8):
        episode = record(level, 400)
        seen.add(episode.end_reason)
        simulator = fresh_simulator(level)
        for frame, action, reward in zip(episode.frames, episode.actions, episode.rewards, strict=True):
            np.testing.assert_array_equal(simulator.observe()[1]["rgb"][0], frame)
            button = {0: 4, 1: 7, 2: 1, 3: 5, 4: 8, 5: 2, 6: 3}[int(action)]
            simulator.act(np.array([button]))
            assert simulator.observe()[0][0] == reward
        # Nothing was cut off before its end, nor kept after it.
        assert bool(simulator.observe()[2][0]) == (episode.end_reason != "time_limit")
    assert {"death", "time_limit"} <= seen


def test_the_coin_is_the_last_reward_and_ends_the_episode():
    episodes = [record(level, 400, sticky=0.5) for level in range(20)]
    won = [episode for episode in episodes if episode.end_reason == "coin"]
    assert won, "no episode reached the coin; choose other levels"
    for episode in won:
        assert episode.rewards[-1] == 10 and not episode.rewards[:-1].any()
    for episode in episodes:
        assert episode.end_reason == "coin" or not episode.rewards.any()


def test_our_limit_and_procgens_own_are_called_time_limit():
    short = record_episodes(GAME, Script([]), [0], 10)[0]
    assert len(short.frames) == len(short.actions) == 10 and short.end_reason == "time_limit"
    long = record_episodes(GAME, Script([]), [0], 1100)[0]
    assert len(long.frames) == 1000 and long.end_reason == "time_limit"


def test_our_seven_actions_press_the_buttons_of_their_names():
    def change(action: int) -> float:
        """Mean absolute change of the picture after a few presses."""
        level = Level(replace(GAME, use_backgrounds=False, restrict_themes=True), 0)
        start = level.frame.astype(int)
        for _ in range(6):
            level.step(action)
        return np.abs(level.frame.astype(int) - start).mean()

    names = ACTION_SETS["coinrun7"]
    assert names == ("NOOP", "RIGHT", "LEFT", "JUMP", "RIGHT_JUMP", "LEFT_JUMP", "DOWN")
    pressed = [PROCGEN_BUTTONS[button] for button in GAME.buttons]
    assert pressed == ["NOOP", "RIGHT", "LEFT", "UP", "RIGHT_UP", "LEFT_UP", "DOWN"]
    combos = procgen().ProcgenGym3Env(num=1, env_name="coinrun").get_combos()
    assert [set(name.split("_")) if name != "NOOP" else set() for name in PROCGEN_BUTTONS] == [set(c) for c in combos]
    assert change(names.index("NOOP")) < 1 < change(names.index("RIGHT"))
    assert change(names.index("JUMP")) > 1


def test_all_fifteen_of_procgens_actions_pass_through():
    assert replace(GAME, action_set="procgen15").buttons.tolist() == list(range(15))


@pytest.mark.parametrize("size", [32, 64, 128])
def test_pictures_have_the_size_asked_for_and_show_the_same(size):
    native = Level(GAME, 3)
    scaled = Level(replace(GAME, image_size=size), 3)
    for _ in range(3):
        native.step(1)
        scaled.step(1)
    assert scaled.frame.shape == (size, size, 3) and scaled.frame.dtype == np.uint8
    factor = max(size, 64) // min(size, 64)
    large, small = (scaled.frame, native.frame) if size > 64 else (native.frame, scaled.frame)
    shrunk = large.reshape(min(size, 64), factor, min(size, 64), factor, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 12


@pytest.mark.parametrize("size", [64, 32])
def test_a_level_goes_on_from_a_state_of_before_as_it_did_then(size):
    level = Level(replace(GAME, image_size=size), 3)
    for _ in range(5):
        level.step(1)
    state, frame = level.state(), level.frame.copy()
    then = [(level.step(action), level.frame.copy()) for action in (4, 4, 3, 1)]
    level.restore(state)
    np.testing.assert_array_equal(level.frame, frame)
    for action, (outcome, frame) in zip((4, 4, 3, 1), then, strict=True):
        assert level.step(action) == outcome
        np.testing.assert_array_equal(level.frame, frame)


def test_velocity_is_painted_only_on_request():
    plain, painted = (Level(replace(GAME, paint_vel_info=flag), 0).frame for flag in (False, True))
    assert (plain[:10, :20] != painted[:10, :20]).any()
    np.testing.assert_array_equal(plain[20:], painted[20:])


def test_other_games_can_be_recorded():
    assert record(0, 20, replace(GAME, game="ninja")).frames.shape[1:] == (64, 64, 3)
