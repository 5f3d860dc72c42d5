"""Two processes (gloo) compute what one computes on the joint batch, and both hold the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.trainer import train

from .workers import tiny
from .workers.tiny import configure

REPOSITORY = Path(__file__).resolve().parents[2]
COMMON = {"train__num_train_steps": 3, "optimizer__max_grad_norm": 0.05, "train__validate_every": 3}


def launch(root: Path, *words: str) -> subprocess.CompletedProcess:
    """Start two processes as run.sh does on a machine without GPUs; `accelerate launch` would start one."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0",
         "-m", "tests.training.workers.two_processes", str(root), *words],
        cwd=REPOSITORY,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained_twice(tmp_path_factory) -> Path:
    """Every kind of model, trained by two processes with accumulation 2 and by one on the joint batch."""
    root = tmp_path_factory.mktemp("two")
    for kind in tiny.KINDS:  # data and the frozen tokenizer are written before two processes look for them
        configure(kind, root)
    words = [f"{key}={value}" for key, value in COMMON.items()]
    done = launch(root, *tiny.KINDS, *words, "train__batch_size=2", "train__grad_accum=2")
    assert done.returncode == 0, done.stdout
    return root


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_two_processes_make_the_update_of_one_on_the_joint_batch(trained_twice, kind):
    train(configure(kind, trained_twice, name=f"{kind}-one", **COMMON, train__batch_size=8))
    runs = trained_twice / "runs" / ("tokenizer" if kind == "noisy_line" else kind)
    one, two = (load_file(runs / name / "step-00000003" / "model.safetensors") for name in (f"{kind}-one", kind))
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name != "forwards":  # counts calls, not clips
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")
    scores = [
        [line for line in map(json.loads, (runs / name / "logs" / "metrics.jsonl").open())] for name in (f"{kind}-one", kind)
    ]
    for first, second in zip(*scores, strict=True):
        for key in ("train/loss", "train/grad_norm", "validation/loss"):
            assert first.get(key) == pytest.approx(second.get(key), rel=1e-4)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_both_processes_hold_the_same_weights(trained_twice, kind):
    first, second = (torch.load(trained_twice / f"{kind}-rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_bad_loss_on_one_process_stops_both(tmp_path):
    configure("noisy_line", tmp_path)
    done = launch(tmp_path, "one_bad_rank")
    assert done.returncode != 0
    assert sum("not finite at step 1" in line for line in done.stdout.splitlines() if "stopped rank" in line) == 2
