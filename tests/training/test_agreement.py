"""What labels that agree by chance share, and how far measures of agreement are to be trusted."""

import numpy as np
import pytest

from training.agreement import MEASURES, agreement, by_chance


def labels(seed, clips=200, transitions=10, codes=8, actions=7, share=0.0):
    """Codes that are the action in `share` of the transitions, and drawn by chance in the others."""
    generator = np.random.default_rng(seed)
    real = generator.integers(actions, size=(clips, transitions))
    drawn = generator.integers(codes, size=real.shape)
    return np.where(generator.random(real.shape) < share, real, drawn), real


def test_unrelated_codes_have_what_chance_gives_them():
    found = agreement(*labels(0))
    bias = (8 - 1) * (7 - 1) / (2 * 2000 * np.log(2))  # Miller, 1955
    assert found["mutual_information_bits_by_chance"] == pytest.approx(bias, rel=0.2)
    for name in MEASURES:
        low, high = found[f"{name}_ci95"]
        assert low <= found[f"{name}_by_chance"] <= high, name
    assert found["purity_by_chance"] > 1 / 7
    assert found["action_entropy_bits"] == pytest.approx(np.log2(7), abs=0.01)


def test_codes_that_say_something_are_above_chance():
    found = agreement(*labels(0, share=0.3))
    for name in MEASURES:
        low, high = found[f"{name}_ci95"]
        assert found[f"{name}_by_chance"] < low < found[name] < high, name


def test_the_interval_is_as_wide_as_values_of_new_clips_are_spread():
    found = [agreement(*labels(seed, clips=100, share=0.3)) for seed in range(60)]
    for name in MEASURES:
        widths = [result[f"{name}_ci95"][1] - result[f"{name}_ci95"][0] for result in found]
        spread = 2 * 1.96 * np.std([result[name] for result in found])
        assert np.mean(widths) == pytest.approx(spread, rel=0.3), name


def test_chance_keeps_clips_whole():
    """One code and one action for each clip: shuffled transitions would share nearly nothing, clips share much."""
    codes, actions = (np.repeat(np.arange(12)[:, None] % size, 10, axis=1) for size in (3, 4))
    tables = by_chance(codes, actions, (3, 4))
    assert len(tables) == 11 and (tables % 10 == 0).all()
    assert tables.sum(axis=(1, 2)).tolist() == [120] * 11


def test_labels_without_variety_agree_in_nothing():
    one = np.zeros((5, 3), int)
    found = agreement(one, one)
    assert found["mutual_information_bits"] == 0 and found["nmi"] is found["nmi_ci95"] is found["nmi_by_chance"] is None
    assert found["purity"] == 1 and found["purity_ci95"] == [1, 1]


def test_a_single_clip_has_values_but_no_interval():
    found = agreement(*labels(0, clips=1))
    assert found["purity"] is not None and found["purity_ci95"] is found["purity_by_chance"] is None


def test_codes_that_never_come_change_nothing():
    codes, actions = labels(0, share=0.3)
    assert agreement(codes * 5 + 2, actions + 3) == agreement(codes, actions)
