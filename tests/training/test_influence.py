"""Intervals of Fréchet distances: derivatives against differences, spreads against resampled and against new clips."""

import numpy as np
import pytest
import torch

from training import influence
from training.frechet import FrechetMetric, distance
from training.influence import ClipFeatures, Gaussian, slopes

FRAMES = 3


def clips(count, dim, seed, *, shift=0.0, scale=1.0):
    """Features (count, FRAMES, dim), alike within a clip."""
    generator = torch.Generator().manual_seed(seed)
    of_clip = torch.randn(count, 1, dim, generator=generator, dtype=torch.float64)
    of_frame = torch.randn(count, FRAMES, dim, generator=generator, dtype=torch.float64)
    return shift + scale * (of_clip + 0.5 * of_frame)


def law(features, weights):
    """The normal law of clips that count so often, by the definition."""
    rows, weights = features.flatten(0, 1), weights.repeat_interleave(FRAMES)
    count = weights.sum()
    mean = (weights[:, None] * rows).sum(0) / count
    return Gaussian(mean, ((weights / (count - 1)).sqrt()[:, None] * (rows - mean)).T)


@pytest.mark.parametrize("dim", [4, 200])  # fewer and more features than frames
def test_influences_are_the_derivatives_of_the_distance(dim):
    a, b, ones = clips(30, dim, 0), clips(30, dim, 1, shift=0.3, scale=1.4), torch.ones(30, dtype=torch.float64)
    count = 30 * FRAMES
    influences = [
        slope.of_clips(part)
        for slope, part in zip(slopes(law(a, ones), law(b, ones), count, count), (a, b), strict=True)
    ]
    direction = torch.randn(30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    direction -= direction.mean()
    for part, expected in ((0, influences[0]), (1, influences[1])):
        step = 1e-5 * direction
        values = []
        for weights in (ones + step, ones - step):
            laws = law(a, weights if part == 0 else ones), law(b, weights if part == 1 else ones)
            values.append(distance(*laws))
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float((direction * expected).sum()), rel=1e-4)


class Ready(FrechetMetric):
    """Features that are there already in place of frames."""

    def __init__(self, dim):
        super().__init__("fid", dim, torch.nn.Identity())

    def features(self, frames):
        return frames


def measured(a, b, batch=7):
    metric = Ready(a.shape[-1])
    for start in range(0, len(a), batch):
        numbers = list(range(start, min(start + batch, len(a))))
        metric.update_true(b[numbers], numbers)
        metric.update("", a[numbers], numbers)
    return metric.compute()


def test_the_interval_is_as_wide_as_distances_of_resampled_clips_are_spread():
    a, b = clips(300, 4, 0), clips(300, 4, 0, shift=0.3, scale=1.4) + 0.2 * clips(300, 4, 1)
    found = measured(a, b)
    generator, values = np.random.default_rng(0), []
    for _ in range(400):
        weights = torch.from_numpy(generator.multinomial(300, np.full(300, 1 / 300)).astype(float))
        laws = (law(part, weights) for part in (a, b))
        values.append(distance(*(Gaussian.of(mean, root @ root.T) for mean, root in laws)))
    low, high = np.percentile(values, [2.5, 97.5])
    assert found["fid_ci95"][1] - found["fid_ci95"][0] == pytest.approx(high - low, rel=0.15)
    assert found["fid_ci95"][0] < found["fid"] < found["fid_ci95"][1]


def test_the_interval_is_as_wide_as_distances_of_new_clips_are_spread():
    """Where plain resampling fails: as many features as clips, so that every resample has a larger distance."""
    found = [measured(clips(60, 40, 2 * n), clips(60, 40, 2 * n + 1, shift=0.2)) for n in range(60)]
    values, intervals = (np.array([result[key] for result in found]) for key in ("fid", "fid_ci95"))
    assert np.diff(intervals, axis=1).mean() == pytest.approx(2 * 1.96 * values.std(), rel=0.3)
    hits = (intervals[:, 0] <= values.mean()) & (values.mean() <= intervals[:, 1])
    assert hits.mean() > 0.85


def test_equal_sets_have_an_interval_of_nothing():
    a = clips(20, 5, 0)
    assert measured(a, a)["fid_ci95"] == pytest.approx([0, 0], abs=1e-8)
    assert measured(a[:1], a[:1])["fid_ci95"] is None


def test_batches_do_not_matter_and_some_of_many_clips_stand_for_all(monkeypatch):
    a, b = clips(400, 6, 0), clips(400, 6, 1, shift=0.3)
    whole, ragged = measured(a, b, batch=400), measured(a, b, batch=33)
    assert whole["fid_ci95"] == pytest.approx(ragged["fid_ci95"], rel=1e-9)
    monkeypatch.setattr(influence, "MAX_KEPT", 130)
    some = measured(a, b, batch=33)
    assert some["fid"] == pytest.approx(whole["fid"], rel=1e-9)
    assert some["fid_ci95"] != whole["fid_ci95"]
    assert np.diff(some["fid_ci95"]) == pytest.approx(np.diff(whole["fid_ci95"]), rel=0.25)


@pytest.mark.parametrize("world_size", [1, 3])
def test_which_clips_are_kept_follows_from_their_numbers_alone(monkeypatch, world_size):
    monkeypatch.setattr(influence, "MAX_KEPT", 10)
    kept = set()
    for rank in range(world_size):
        features = ClipFeatures()
        for number in range(rank, 55, world_size):
            features.add([number], torch.zeros(1, 1, 2))
        features.last = 54  # what `agree` learns from the others
        features.agree()
        kept |= {number for number, _ in features._parts}
    assert kept == set(range(0, 55, 8))
