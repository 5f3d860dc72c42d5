"""`train.mixed_precision=bf16` on a CPU: a training like that in single precision, with weights that stay single."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.training.workers.tiny import configure
from training.trainer import train


@pytest.mark.parametrize("kind", ["tokenizer", "genie_redux", "genie_redux_guided"])
def test_a_bf16_training_follows_the_one_in_single_precision(kind, tmp_path):
    losses = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state()  # it keeps the precision of a process
        train(configure(kind, tmp_path, name=f"run_{precision}", train__mixed_precision=precision))
        (run_dpath,) = tmp_path.glob(f"runs/*/run_{precision}")
        scalars = [json.loads(line) for line in (run_dpath / "logs" / "metrics.jsonl").open()]
        losses[precision] = [line["train/loss"] for line in scalars if "train/loss" in line]
        saved = load_file(run_dpath / "step-00000004" / "model.safetensors")
        assert not any(value.dtype == torch.bfloat16 for value in saved.values())
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.02) and losses["bf16"] != losses["no"]
