"""What only a GPU can show; the same code is tested on the CPU elsewhere."""

import json

import pytest
import torch

from models.interfaces import Sampling
from tests.models import builders
from tests.models.builders import WORLDS, clip, settle
from training.trainer import train

from .workers import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none"),
]


@pytest.mark.parametrize("kind", ["tokenizer", "genie_redux", "genie_redux_guided"])
@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_a_training_learns_on_the_gpu(kind, precision, tmp_path):
    train(tiny.configure(kind, tmp_path, train__mixed_precision=precision, train__num_train_steps=20))
    lines = (tmp_path / "runs" / kind / kind / "logs" / "metrics.jsonl").read_text().splitlines()
    losses = [scalars["train/loss"] for scalars in map(json.loads, lines) if "train/loss" in scalars]
    assert len(losses) == 20 and losses[-1] < losses[0]


@pytest.mark.parametrize("name", WORLDS)
def test_a_rollout_on_the_gpu_is_that_of_the_cpu(name):
    torch.manual_seed(0)
    world, batch = settle(builders.world(name)), clip(num_frames=4)
    sampling = Sampling(temperature=1.0)
    cpu = world.rollout(batch.frames[:, :1], batch.actions, sampling=sampling, seeds=batch.seeds)
    parts = (batch.frames[:, :1].cuda(), batch.actions.cuda())
    gpu = world.cuda().rollout(*parts, sampling=sampling, seeds=batch.seeds.cuda())
    # Near ties may fall either way between two machines' roundings, and what follows them with it.
    assert (gpu.tokens.cpu() == cpu.tokens).float().mean() > 0.95
