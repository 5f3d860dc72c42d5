import numpy as np
import pytest

from data_generation.policy import RandomPolicy


def play(level: int, steps: int = 20_000, **settings) -> np.ndarray:
    policy = RandomPolicy(7, steps, **({"seed": 0, "sticky": 0.0, "weights": None} | settings))
    return choices(policy, [level], steps)[:, 0]


def choices(policy: RandomPolicy, levels: list[int], steps: int) -> np.ndarray:
    """(steps, levels)"""
    policy.start(levels)
    actions = policy.act([None] * len(levels), np.ones(len(levels), bool))
    assert len(actions) == steps
    return actions


def test_actions_depend_on_seed_and_level_alone():
    policy = RandomPolicy(7, 50, seed=0, sticky=0.5, weights=None)
    for level in (3, 8, 3):
        np.testing.assert_array_equal(choices(policy, [level], 50)[:, 0], play(level, 50, sticky=0.5))
    side_by_side = np.stack([play(3, 50, sticky=0.5), play(8, 50, sticky=0.5)], axis=1)
    np.testing.assert_array_equal(choices(policy, [3, 8], 50), side_by_side)
    assert (play(3) != play(4)).any() and (play(3) != play(3, seed=1)).any()


def test_actions_are_uniform_unless_weighted():
    np.testing.assert_allclose(np.bincount(play(0), minlength=7) / 20_000, 1 / 7, atol=0.01)
    weights = [0, 3, 1, 0, 4, 1, 1]
    np.testing.assert_allclose(
        np.bincount(play(0, weights=weights), minlength=7) / 20_000, np.array(weights) / 10, atol=0.01
    )


@pytest.mark.parametrize("sticky", [0.0, 0.5, 0.9])
def test_sticky_repeats_the_last_action_and_otherwise_draws_afresh(sticky):
    actions = play(0, sticky=sticky)
    assert (actions[1:] == actions[:-1]).mean() == pytest.approx(sticky + (1 - sticky) / 7, abs=0.015)
    np.testing.assert_allclose(np.bincount(actions, minlength=7) / 20_000, 1 / 7, atol=0.03)


def test_always_sticky_keeps_the_first_action():
    assert len(set(play(0, sticky=1.0).tolist())) == 1
