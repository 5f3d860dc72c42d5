"""The arithmetic of a step is counted right and for nothing, and set against what the device could do."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.interfaces import StepOutput
from tests.models import builders
from tests.models.builders import WORLDS, clip
from tests.training.workers.tiny import configure
from training import flops
from training.trainer import Trainer


class Products(nn.Module):
    """Two layers of known size, 5 -> 7 -> 3."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))

    def forward(self, clip, step):
        return StepOutput(self.layers(clip.frames).mean(), {})


def test_the_count_is_that_of_pencil_and_paper():
    rows = clip()._replace(frames=torch.ones(11, 5))
    assert flops.needed(Products(), rows) == 3 * 2 * 11 * (5 * 7 + 7 * 3)


@pytest.mark.parametrize("name", WORLDS)
def test_a_frozen_encoder_is_counted_once_and_not_at_all_where_tokens_are_given(name):
    world, batch = builders.world(name).train(), clip()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tokens = world.tokenizer.encode(batch.frames)
    from_frames, from_tokens = flops.needed(world, batch), flops.needed(world, batch._replace(tokens=tokens))
    with_attention = flops.count(lambda: world.tokenizer.encode(batch.frames))
    assert with_attention > counter.get_total_flops() > 0  # the library's own counter misses a CPU's attention
    assert from_frames - from_tokens == with_attention


@pytest.mark.parametrize("quantizer", ["vq", "vq-revived"])
def test_counting_leaves_the_model_and_all_random_states_as_they_were(quantizer):
    model = builders.tokenizer(quantizer).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    np.random.seed(3)
    flops.needed(model, clip())
    drawn, drawn_by_numpy = torch.rand(4), np.random.rand(4)
    torch.manual_seed(3)
    np.random.seed(3)
    assert torch.equal(drawn, torch.rand(4)) and (drawn_by_numpy == np.random.rand(4)).all()
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_batch_costs_what_its_clips_cost():
    world = builders.world("guided-film")
    one, four = flops.needed(world, clip(batch=1)), flops.needed(world, clip(batch=4))
    assert one <= four <= 4 * one


@pytest.mark.parametrize(
    ("device_name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H200", "tf32", 494.7),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312.0),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bf16", None),
        ("Tesla V100-SXM2-16GB", "fp16", 125.0),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("NVIDIA A10", "bf16", 125.0),
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
    ],
)
def test_a_gpu_is_known_by_its_whole_name(device_name, precision, expected):
    assert flops.peak_of(device_name, precision) == expected


def test_other_devices_are_measured_once_without_touching_random_states():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    rate = flops.joint_rate(Accelerator(cpu=True))
    assert torch.equal(torch.rand(3), expected)
    assert "measured fp32" in rate.source and 1e8 < rate.flops < 1e14
    assert flops.joint_rate(Accelerator(cpu=True)) == rate


def test_the_utilisation_is_the_work_over_time_and_rate(tmp_path):
    run = Trainer(configure("tokenizer", tmp_path, train__grad_accum=2))
    run.rate = flops.Rate(1e9, "by hand")
    run.stretch = type("Stretch", (), {"steps": 5, "seconds": 2.0})()
    assert run.flops_per_clip > 0
    assert run._mfu() == pytest.approx(5 * 2 * 2 * run.flops_per_clip / 2.0 / 1e9)


@pytest.mark.parametrize(
    ("number", "text"), [(2.239e12, "2.24 TFLOP"), (3.1e11, "310 GFLOP"), (6e4, "0.06 MFLOP"), (1.2e16, "12 PFLOP")]
)
def test_flops_in_words(number, text):
    assert flops.in_words(number) == text
