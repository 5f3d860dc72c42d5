"""Metrics against values known by hand, and against other implementations."""

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance

from training import metrics
from training.metrics import FID, INCEPTION, PSNR, SSIM, ClipValues, FeatureStatistics, bootstrap, frechet_distance


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
    monkeypatch.setattr(metrics, "RESAMPLED_AT_ONCE", 700)
    assert np.allclose(whole, bootstrap(values))


# ---- FID


def moments(features):
    return torch.from_numpy(features.mean(0)), torch.from_numpy(np.cov(features, rowvar=False))


def test_frechet_distance_of_known_gaussians():
    """Diagonal covariances: Σ (μa − μb)² + Σ (σa − σb)²."""
    mean, shifted = torch.zeros(4, dtype=torch.float64), torch.tensor([3.0, 0, 0, 4], dtype=torch.float64)
    narrow, wide = torch.eye(4, dtype=torch.float64), 9 * torch.eye(4, dtype=torch.float64)
    assert frechet_distance(mean, narrow, shifted, wide) == pytest.approx(25 + 4 * (3 - 1) ** 2)


def test_frechet_distance_equals_the_formula_where_covariances_are_singular():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(12, 30)), rng.normal(0.3, 1.4, size=(9, 30))
    (mean_a, cov_a), (mean_b, cov_b) = moments(a), moments(b)
    roots = np.sqrt(np.linalg.eigvals((cov_a @ cov_b).numpy()).astype(complex)).real.sum()
    expected = float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()) - 2 * roots
    assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, rel=1e-6)


def test_feature_statistics_in_parts_equal_those_of_the_whole():
    features = noise(20, 5, seed=3) + 10
    statistics = FeatureStatistics(5)
    for part in features.split([3, 16, 1]):
        statistics.update(part)
    mean, covariance = statistics.moments()
    assert torch.allclose(mean, features.double().mean(0))
    assert torch.allclose(covariance, torch.cov(features.double().T), rtol=1e-9)


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory):
    """A folder with an Inception of random weights where the published file would be."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), folder / INCEPTION)
    return folder


@pytest.fixture(scope="module")
def inception(weights_dir):
    network, reason = metrics.load_inception(weights_dir)
    assert reason is None
    return network


@pytest.mark.parametrize("nearest", [False, True])
def test_fid_of_the_whole_path_equals_a_computation_by_hand(inception, weights_dir, nearest):
    """By hand: torch-fidelity's own extractor on each picture, means and covariances in numpy's float64."""
    predicted, target = noise(2, 3, 3, 16, 16), noise(3, 2, 3, 16, 16, seed=1) ** 3
    fid = FID(inception, nearest=nearest)
    fid.update(predicted[:1], target[:2])
    fid.update(predicted[1:], target[2:])

    extractor = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights_dir / INCEPTION))

    def by_hand(frames):
        pictures = (frames.numpy().reshape(-1, 3, 16, 16) * 255).round().astype(np.uint8)
        if nearest:
            index = np.arange(299) * 16 // 299
            pictures = pictures[:, :, index][:, :, :, index]
        return extractor(torch.from_numpy(pictures))[0].double().numpy()

    features = [by_hand(frames) for frames in (predicted, target)]
    (mean_a, cov_a), (mean_b, cov_b) = map(moments, features)
    # The nonzero eigenvalues of Σa·Σb are those of the small matrix Aᵀ·Σb·A with Σa = A·Aᵀ.
    root = (features[0] - features[0].mean(0)).T / np.sqrt(len(features[0]) - 1)
    overlap = np.sqrt(np.linalg.eigvalsh(root.T @ cov_b.numpy() @ root).clip(0)).sum()
    expected = float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()) - 2 * overlap
    assert expected > 0
    assert fid.compute() == pytest.approx(expected, rel=1e-4)


def test_fid_of_a_set_with_itself_is_zero_even_with_fewer_frames_than_features():
    fid = FID(torch.nn.Identity(), nearest=False)
    fid.predicted, fid.true = FeatureStatistics(200), FeatureStatistics(200)
    for statistics in (fid.predicted, fid.true):
        statistics.update(noise(20, 200))
    assert fid.compute() == pytest.approx(0, abs=1e-5)


def test_fid_equals_that_of_torchmetrics():
    """On ready-made features, which leaves the statistics and the distance to compare."""
    ours = FID(torch.nn.Identity(), nearest=False)
    theirs = FrechetInceptionDistance(feature=Features(), normalize=True)
    ours.predicted, ours.true = FeatureStatistics(6), FeatureStatistics(6)
    for seed, statistics, real in ((0, ours.predicted, False), (1, ours.true, True)):
        features = noise(40, 6, seed=seed) + 0.1 * seed
        statistics.update(features)
        theirs.update(features, real=real)
    assert ours.compute() == pytest.approx(float(theirs.compute()), rel=1e-4)


class Features(torch.nn.Module):
    num_features = 6

    def forward(self, features):
        return features


def test_fewer_than_two_frames_have_no_fid():
    assert FID(torch.nn.Identity(), nearest=False).compute() is None


def test_missing_inception_weights_name_the_folder_and_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    network, reason = metrics.load_inception(tmp_path)
    assert network is None
    assert (
        str(tmp_path) in reason
        and "download_models.py --models --fid" in reason
        and INCEPTION in reason
        and "\n" not in reason
    )


def test_damaged_inception_weights_are_named_and_never_unpickled(tmp_path):
    (tmp_path / INCEPTION).write_bytes(b"cdocutils\nnothing\n.")
    network, reason = metrics.load_inception(tmp_path)
    assert network is None
    assert "damaged" in reason and "\n" not in reason


def test_inception_is_found_in_the_hub_cache(tmp_path, monkeypatch, weights_dir):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / INCEPTION).symlink_to(weights_dir / INCEPTION)
    assert metrics.find_inception(tmp_path / "nowhere") == tmp_path / "hub" / "checkpoints" / INCEPTION
