"""On a GPU no model mixes devices, and none makes the host wait, in training, in a rollout or in a session."""

import pytest
import torch

from models.interfaces import Sampling
from tests.fake_gpu import HostWaits, crossings
from tests.models import builders
from tests.models.builders import QUANTIZERS, WORLDS, clip

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real one is there: tests/training/test_gpu.py")
SAMPLINGS = {"next": Sampling(temperature=0.7, top_k=4), "in_place": Sampling(steps=2, noise=2.0)}
HALTON = Sampling(steps=2, order="halton")


def with_a_clip(model):
    return lambda: (model(), *clip(num_frames=5)[:2], torch.arange(2))


@pytest.mark.parametrize("name", [*QUANTIZERS, *WORLDS])
def test_a_training_loss(name):
    make = (lambda: builders.tokenizer(name)) if name in QUANTIZERS else (lambda: builders.world(name))

    def run(model, frames, actions, seeds):
        output = model.train()(clip()._replace(frames=frames, actions=actions, seeds=seeds), 0)
        assert output.loss.device == frames.device and output.loss.dtype == torch.float32
        assert all(value.device == frames.device for value in output.logs.values() if isinstance(value, torch.Tensor))

    assert crossings(with_a_clip(make), run) == []


@pytest.mark.parametrize("name", WORLDS)
def test_a_rollout(name):
    def run(world, frames, actions, seeds):
        dreamt = world.eval().rollout(frames[:, :1], actions, sampling=SAMPLINGS[WORLDS[name][2]], chunk=2, seeds=seeds)
        assert dreamt.frames.device == frames.device and dreamt.frames.dtype == torch.float32

    assert crossings(with_a_clip(lambda: builders.world(name)), run) == []


@pytest.mark.parametrize(
    "name, sampling", [("guided-published", None), ("latent-film", None), ("guided-in-place", HALTON)]
)
def test_a_session_that_encodes_anew_rewinds_and_forks(name, sampling):
    options = {"sampling": sampling or SAMPLINGS[WORLDS[name][2]], "window": 3, "max_rewind": 1}

    def run(world, frames, actions, seeds):
        session = world.eval().start(frames[:, :2], actions[:, :1], seeds=seeds, **options)
        for _ in range(8 if world.dynamics.context else 3):
            assert session.step(actions[:, 0]).device == frames.device
        session.rewind(1)
        session.fork().step(actions[:, 0])

    times = 2 if sampling is HALTON else 1  # its order is computed once
    assert crossings(with_a_clip(lambda: builders.world(name)), run, times=times) == []


def test_the_account_notices_what_it_is_for():
    assert crossings(lambda: clip()[:1], lambda frames: frames.cpu()) == ["a test"]
    assert crossings(lambda: clip()[:1], lambda frames: frames[:, [0, 1]]) == ["a test"]
    assert crossings(lambda: clip()[:1], lambda frames: frames * torch.tensor(2.0)) == []
    for ask in (lambda frames: frames.sum().item(), torch.nonzero, lambda frames: bool(frames.max() > 1)):
        with pytest.raises(HostWaits):
            crossings(lambda: clip()[:1], ask)
    with pytest.raises(RuntimeError, match="two different devices"):
        crossings(lambda: clip()[:1], lambda frames: frames + torch.zeros(frames.shape))
