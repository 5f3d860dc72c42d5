"""Fréchet distances against values known by hand and other implementations, with networks of random weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training import frechet
from training.frechet import FID, FVD, FeatureStatistics, distance, frechet_distance, load_i3d, load_inception
from training.weight_files import I3D, INCEPTION

from .workers import networks


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


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
    folder = tmp_path_factory.mktemp("weights")
    networks.write_inception(folder)
    networks.write_i3d(folder)
    return folder


@pytest.fixture(scope="module")
def inception(weights_dir):
    network, reason = load_inception(weights_dir)
    assert reason is None
    return network


@pytest.mark.parametrize("nearest", [False, True])
def test_fid_of_the_whole_path_equals_a_computation_by_hand(inception, weights_dir, nearest):
    """By hand: torch-fidelity's own extractor on each picture, means and covariances in numpy's float64."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    predicted, target = noise(2, 2, 3, 16, 16), noise(3, 1, 3, 16, 16, seed=1) ** 3
    fid = FID(inception, nearest=nearest)
    for part in (predicted[:1], predicted[1:]):
        fid.update("", part)
    fid.update_true(target[:2], [0, 1])
    fid.update_true(target[2:], [2])

    extractor = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights_dir / INCEPTION.name))

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
    assert fid.compute()["fid_nearest" if nearest else "fid"] == pytest.approx(expected, rel=1e-4)


def test_a_set_has_no_distance_to_itself_even_with_fewer_frames_than_features():
    statistics = FeatureStatistics(200)
    statistics.update(noise(20, 200))
    assert frechet_distance(*statistics.moments(), *statistics.moments()) == pytest.approx(0, abs=1e-9)


def test_the_distance_hardly_moves_when_sums_are_taken_in_another_order():
    """Where roots of rounded eigenvalues are summed, two processes would differ in the third digit."""
    features, target = noise(30, 300, seed=1).double() * 5, noise(40, 300, seed=2).double() * 5
    found = []
    for order in (torch.arange(30), torch.arange(29, -1, -1)):
        ours, theirs = FeatureStatistics(300), FeatureStatistics(300)
        for row in features[order]:
            ours.update(row[None])
        theirs.update(target)
        found += [frechet_distance(*ours.moments(), *theirs.moments()), distance(ours.gaussian(), theirs.gaussian())]
    assert found == pytest.approx([found[0]] * 4, rel=1e-9)


def test_statistics_of_few_vectors_added_to_those_of_many_are_those_of_all():
    features = noise(30, 8, seed=4)
    for place in (3, 8, 20):
        parts = FeatureStatistics(8), FeatureStatistics(8), FeatureStatistics(8)
        parts[0].update(features[:place])
        parts[1].update(features[place:])
        parts[2].update(features)
        both, whole = (parts[0] + parts[1]).moments(), parts[2].moments()
        assert all(torch.allclose(x, y, rtol=1e-9) for x, y in zip(both, whole, strict=True))


def test_frechet_distance_equals_that_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    """On ready-made features, which leaves the statistics and the distance to compare."""
    theirs = FrechetInceptionDistance(feature=Features(), normalize=True)
    ours = []
    for seed in (0, 1):
        features = noise(40, 6, seed=seed) + 0.1 * seed
        ours.append(FeatureStatistics(6))
        ours[-1].update(features)
        theirs.update(features, real=bool(seed))
    expected = float(theirs.compute())
    assert frechet_distance(*ours[0].moments(), *ours[1].moments()) == pytest.approx(expected, rel=1e-4)


class Features(torch.nn.Module):
    num_features = 6

    def forward(self, features):
        return features


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return networks.TinyInception()


def test_equal_frames_have_no_fid_and_a_still_predictor_counts_its_frame_so_many_times(tiny):
    frames = noise(2, 2, 3, 16, 16)
    fid = FID(tiny, nearest=True)
    fid.update_true(frames, [0, 1])
    fid.update("", frames)
    fid.update_still("copy_last_", frames[:, :1], 3)
    fid.update("by_hand_", frames[:, [0, 0, 0]])
    results = fid.compute()
    assert results["fid_nearest"] == pytest.approx(0, abs=1e-6)
    assert results["copy_last_fid_nearest"] == pytest.approx(results["by_hand_fid_nearest"], rel=1e-6)
    assert results["copy_last_fid_nearest"] > 0


def test_the_real_distance_is_that_of_even_to_odd_clips(tiny):
    frames = noise(4, 2, 3, 16, 16) ** torch.tensor([1.0, 3, 1, 3])[:, None, None, None, None]
    whole, ragged, other = (FID(tiny, nearest=False) for _ in range(3))
    whole.update_true(frames, range(4))
    ragged.update_true(frames[[1, 2]], [1, 2])
    ragged.update_true(frames[[3, 0]], [3, 0])
    other.update_true(frames[[0, 2]], [0, 2])
    other.update("", frames[[1, 3]])
    expected = other.compute()["fid"]
    assert whole.compute()["real_fid"] == pytest.approx(expected, rel=1e-6) and expected > 0
    assert ragged.compute()["real_fid"] == pytest.approx(expected, rel=1e-6)


def test_fewer_than_two_frames_have_no_fid():
    assert FID(torch.nn.Identity(), nearest=False).compute() == {"real_fid": None}


# ---- FVD


@pytest.fixture
def i3d(weights_dir, monkeypatch):
    monkeypatch.setattr(frechet, "I3D", replace(I3D, sha256=""))
    network, reason = load_i3d(weights_dir)
    assert reason is None
    return network


def test_fvd_of_the_whole_path_equals_a_computation_by_hand(i3d):
    predicted, target = noise(5, 10, 3, 16, 16), noise(4, 10, 3, 16, 16, seed=1) ** 3
    fvd = FVD(i3d)
    fvd.update("", predicted[:2])
    fvd.update("", predicted[2:])
    fvd.update_true(target, range(4))

    def by_hand(clips):
        large = torch.stack(
            [torch.nn.functional.interpolate(clip, size=(224, 224), mode="bilinear") for clip in clips * 2 - 1]
        )
        weights = i3d.state_dict()
        maps = torch.nn.functional.conv3d(
            large.transpose(1, 2), weights["layer.weight"], weights["layer.bias"], stride=(2, 32, 32)
        )
        return maps.relu().mean((2, 3, 4)).double().numpy()

    (mean_a, cov_a), (mean_b, cov_b) = moments(by_hand(predicted)), moments(by_hand(target))
    roots = np.sqrt(np.linalg.eigvals((cov_a @ cov_b).numpy()).astype(complex)).real.sum()
    expected = float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()) - 2 * roots
    assert fvd.compute()["fvd"] == pytest.approx(expected, rel=1e-3)


def test_equal_clips_have_no_fvd_and_the_order_of_frames_matters(i3d):
    clips = noise(4, 10, 3, 16, 16).cumsum(1) / 10
    fvd = FVD(i3d)
    fvd.update_true(clips, range(4))
    fvd.update("", clips)
    fvd.update("backwards_", clips.flip(1))
    assert fvd.compute()["fvd"] == pytest.approx(0, abs=1e-6)
    assert fvd.compute()["backwards_fvd"] > 1e-4


# ---- files


def test_an_i3d_of_other_content_is_never_run(weights_dir):
    network, reason = load_i3d(weights_dir)
    assert network is None
    assert "expected bec6519f66ea" in reason and "download_models.py --models --fvd" in reason and "\n" not in reason


def test_missing_inception_weights_name_the_folder_and_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    network, reason = load_inception(tmp_path)
    assert network is None
    assert (
        str(tmp_path) in reason
        and "download_models.py --models --fid" in reason
        and INCEPTION.name in reason
        and "\n" not in reason
    )


def test_damaged_inception_weights_are_named_and_never_unpickled(tmp_path):
    (tmp_path / INCEPTION.name).write_bytes(b"cdocutils\nnothing\n.")
    network, reason = load_inception(tmp_path)
    assert network is None
    assert "damaged" in reason and "\n" not in reason


def test_inception_is_found_in_the_hub_cache(tmp_path, monkeypatch, weights_dir):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / INCEPTION.name).symlink_to(weights_dir / INCEPTION.name)
    assert INCEPTION.find(tmp_path / "nowhere") == tmp_path / "hub" / "checkpoints" / INCEPTION.name
