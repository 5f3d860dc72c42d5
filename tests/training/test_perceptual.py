"""LPIPS against torchmetrics, with an AlexNet of random weights."""

import pytest
import torch

from training.perceptual import LPIPS, load_lpips
from training.weight_files import ALEXNET

from .workers import networks


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alexnet")
    networks.write_alexnet(folder)
    return folder


def test_lpips_equals_that_of_torchmetrics_on_the_weights_of_the_file(weights_dir, monkeypatch):
    from torchmetrics.functional.image.lpips import _NoTrainLpips
    from torchvision import models

    network, reason = load_lpips(weights_dir)
    assert reason is None
    predicted, target = noise(2, 3, 3, 64, 64), noise(2, 3, 3, 64, 64, seed=1)
    metric = LPIPS(network)
    metric.update(predicted[:1], target[:1], [0])
    metric.update(predicted[1:], target[1:], [1])

    alexnet, state = models.alexnet(), torch.load(weights_dir / ALEXNET.name)
    alexnet.load_state_dict(state, strict=False)
    monkeypatch.setattr(models, "alexnet", lambda weights: alexnet)  # what torchmetrics would download
    theirs = _NoTrainLpips(net="alex")
    expected = theirs(predicted.flatten(0, 1) * 2 - 1, target.flatten(0, 1) * 2 - 1).view(2, 3)
    assert metric.values == pytest.approx(expected.numpy(), rel=1e-5)
    assert expected.min() > 1e-3


def test_lpips_of_equal_frames_is_zero(weights_dir):
    frames = noise(1, 2, 3, 64, 64)
    metric = LPIPS(load_lpips(weights_dir)[0])
    metric.update(frames, frames, [0])
    assert metric.compute()["mean"] == 0


def test_missing_and_damaged_files_name_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    missing = load_lpips(tmp_path)[1]
    (tmp_path / ALEXNET.name).write_bytes(b"cdocutils\nnothing\n.")
    damaged = load_lpips(tmp_path)[1]
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / ALEXNET.name)
    other = load_lpips(tmp_path)[1]
    for reason, said in ((missing, "no alexnet"), (damaged, "is damaged"), (other, "another network")):
        assert said in reason and "download_models.py --models --lpips" in reason and "\n" not in reason
