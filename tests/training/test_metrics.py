"""Metrics against values known by hand, and against other implementations."""

import numpy as np
import pytest
import torch

from training import intervals, metrics
from training.intervals import bootstrap, ratio_interval
from training.metrics import PSNR, SSIM, ClipValues


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---- PSNR


@pytest.mark.parametrize(("error", "decibels"), [(0.1, 20.0), (0.01, 40.0), (0.5, 6.0206)])
def test_psnr_of_a_constant_error_is_known(error, decibels):
    target = torch.full((2, 3, 3, 16, 16), 0.25)
    metric = PSNR()
    metric.update(target + error, target, [0, 1])
    result = metric.compute()
    assert result["mean"] == pytest.approx(decibels, abs=1e-3)
    assert result["by_horizon"] == pytest.approx([decibels] * 3, abs=1e-3)
    assert result["ci95"] == pytest.approx([decibels] * 2, abs=1e-3)


def test_psnr_averages_decibels_over_frames_then_clips_and_not_squared_errors():
    target = torch.zeros(2, 2, 3, 16, 16)
    errors = torch.tensor([[0.1, 0.01], [0.1, 0.1]])
    metric = PSNR()
    metric.update(target + errors[:, :, None, None, None], target, [0, 1])
    assert metric.compute()["mean"] == pytest.approx((20 + 40 + 20 + 20) / 4, abs=1e-3)
    assert metric.compute()["by_horizon"] == pytest.approx([20, 30], abs=1e-3)


def test_equal_frames_count_as_100_decibels_and_are_reported():
    frames = noise(2, 3, 3, 16, 16)
    other = frames.clone()
    other[0, 0] += 0.1
    metric = PSNR()
    metric.update(other, frames, [0, 1])
    assert metric.num_floored == 5
    assert metric.values[1] == pytest.approx([100.0] * 3)


def test_predictions_are_clamped_to_what_a_screen_can_show():
    target = torch.ones(1, 1, 3, 16, 16)
    metric = PSNR()
    metric.update(target + 7, target, [0])
    assert metric.compute()["mean"] == pytest.approx(100)


# ---- SSIM


def test_ssim_of_equal_frames_is_one_and_of_noise_is_near_zero():
    frames, other = noise(2, 2, 3, 32, 32), noise(2, 2, 3, 32, 32, seed=1)
    same, different = SSIM(), SSIM()
    same.update(frames, frames, [0, 1])
    different.update(other, frames, [0, 1])
    assert same.compute()["mean"] == pytest.approx(1, abs=1e-5)
    assert abs(different.compute()["mean"]) < 0.1


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.6), (0.0, 1.0)])
def test_ssim_of_flat_frames_is_the_luminance_term(low, high):
    """Without structure (2ab + c1) / (a² + b² + c1) is left, with c1 = (0.01 · 1)²: the range is not the batch's."""
    metric = SSIM()
    metric.update(torch.full((1, 1, 3, 16, 16), low), torch.full((1, 1, 3, 16, 16), high), [0])
    expected = (2 * low * high + 1e-4) / (low**2 + high**2 + 1e-4)
    assert metric.compute()["mean"] == pytest.approx(expected, abs=1e-4)


def test_ssim_equals_that_of_torchmetrics():
    from torchmetrics.functional.image import structural_similarity_index_measure

    target = torch.nn.functional.avg_pool2d(noise(11, 3, 24, 40), 3, 1, 1)
    predicted = (target + 0.2 * noise(11, 3, 24, 40, seed=1)).clamp(0, 1)
    theirs = structural_similarity_index_measure(
        predicted.double(), target.double(), sigma=1.5, k1=0.01, k2=0.03, data_range=1.0, reduction="none"
    )
    assert metrics.ssim(predicted, target).tolist() == pytest.approx(theirs.tolist(), abs=1e-7)


# ---- clips and intervals


def test_values_are_ordered_by_clip_whatever_the_batches():
    values = noise(7, 3)
    one, ragged = ClipValues(), ClipValues()
    one.add(range(7), values)
    for numbers in ([4, 0, 2], [6], [5, 1, 3]):
        ragged.add(numbers, values[numbers])
    assert np.array_equal(one.values, ragged.values)
    assert one.compute() == ragged.compute()


def test_no_clips_give_no_number():
    assert ClipValues().compute() == {"mean": None, "ci95": None}
    assert PSNR().compute()["by_horizon"] is None


def test_the_interval_is_that_of_the_normal_law_for_many_clips():
    values = np.random.default_rng(1).normal(3, 2, 4000)
    low, high = bootstrap(values)
    error = 1.96 * values.std() / np.sqrt(4000)
    assert (low, high) == (
        pytest.approx(values.mean() - error, abs=0.005),
        pytest.approx(values.mean() + error, abs=0.005),
    )


def test_the_interval_of_a_ratio_keeps_both_values_of_a_clip_together():
    # Clips err twice as often in the dream as in truth, however hard they are: the ratio is certain, its parts are not.
    real = np.random.default_rng(0).uniform(0.1, 0.9, 50)
    assert ratio_interval(2 * real, real) == pytest.approx([2, 2])
    # Two clips, three resamples: 1/2, (1 + 3) / (2 + 2) and 3/2 with chances of 1/4, 1/2 and 1/4.
    assert ratio_interval(np.array([1.0, 3.0]), np.array([2.0, 2.0])) == pytest.approx([0.5, 1.5])
    assert (
        ratio_interval(np.array([1.0, 1.0]), np.array([0.0, 1.0])) is None
    )  # a resample without errors on real frames
    assert ratio_interval(np.empty(0), np.empty(0)) is None


def test_the_interval_covers_the_mean_in_most_experiments():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        low, high = bootstrap(rng.exponential(1, 60), resamples=300)
        hits += low <= 1 <= high
    assert 0.88 <= hits / 200 <= 0.98


def test_the_interval_of_large_sets_does_not_depend_on_the_memory_limit(monkeypatch):
    values = np.random.default_rng(0).normal(size=(50, 2))
    whole = bootstrap(values)
    monkeypatch.setattr(intervals, "RESAMPLED_AT_ONCE", 700)
    assert np.allclose(whole, bootstrap(values))
