"""Two processes (gloo) compute what one computes on the joint batch, and both hold the same weights."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file

from tests.training.workers import tiny, two_processes
from tests.training.workers.forked import run_two
from tests.training.workers.tiny import configure
from training.checkpoint import load_state
from training.trainer import train

COMMON = {"linear": True, "train__num_train_steps": 3, "optimizer__max_grad_norm": 0.05, "train__validate_every": 3}
COMMON |= {"optimizer__kind": "constant"}
ALL = (*tiny.KINDS, *tiny.VARIANTS)


def launch_two(root: Path, *words: str) -> subprocess.CompletedProcess:
    return run_two(root, *words, module=two_processes.__name__)


@pytest.fixture(scope="module")
def trained_twice(tmp_path_factory) -> Path:
    """Every kind of model, trained by two processes with accumulation 2 and by one on the joint batch."""
    root = tmp_path_factory.mktemp("two")
    for kind in ALL:  # data and the frozen tokenizer are written before two processes look for them
        configure(kind, root)
    train(configure("genie_redux_guided", root, name="one", **COMMON, train__batch_size=8))
    words = [f"{key}={value}" for key, value in COMMON.items()]
    done = launch_two(root, *ALL, "from_one", *words, "train__batch_size=2", "train__grad_accum=2")
    assert done.returncode == 0, done.stdout
    return root


@pytest.mark.parametrize("kind", ALL)
def test_two_processes_make_the_update_of_one_on_the_joint_batch(trained_twice, kind):
    train(configure(kind, trained_twice, name=f"{kind}-one", **COMMON, train__batch_size=8))
    runs = trained_twice / "runs" / tiny.model_of(kind)
    one, two = (load_file(runs / name / "step-00000003" / "model.safetensors") for name in (f"{kind}-one", kind))
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name != "forwards":  # counts calls, not clips
            torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text)
    first, second = (read_metrics(runs / name) for name in (f"{kind}-one", kind))
    assert first[0]["train/grad_norm"] > COMMON["optimizer__max_grad_norm"]  # clipping took part
    for line, other in zip(first, second, strict=True):
        for key in ("train/loss", "train/grad_norm", "validation/loss"):  # the norm before clipping shows a wrong scale
            assert line.get(key) == pytest.approx(other.get(key), rel=1e-5)


def read_metrics(run_dpath: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dpath / "logs" / "metrics.jsonl").open()]


def test_a_run_of_two_processes_goes_on_with_one_and_of_one_with_two(trained_twice):
    runs = trained_twice / "runs" / "genie_redux_guided"
    longer = COMMON | {"train__num_train_steps": 5, "train__batch_size": 8}
    train(configure("genie_redux_guided", trained_twice, name="all-one", **longer))
    two = runs / "genie_redux_guided"
    train(configure("genie_redux_guided", trained_twice, name="from-two", **longer, train__resume_ckpt=two))
    for name in ("from-two", "from-one"):
        unbroken, gone_on = (load_file(runs / run / "step-00000005" / "model.safetensors") for run in ("all-one", name))
        for key, value in unbroken.items():
            torch.testing.assert_close(gone_on[key], value, rtol=1e-5, atol=1e-6)
        state = load_state(runs / name / "step-00000005")
        assert state["clips_consumed"] == 5 * 8


def test_a_process_goes_on_with_its_random_state_and_a_new_one_begins_its_own(trained_twice):
    saved = load_state(trained_twice / "runs" / "genie_redux_guided" / "one" / "step-00000003")["random"]
    first, second = (torch.load(trained_twice / f"random-rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(saved) == 1 and torch.equal(first["torch"], saved[0]["torch"])
    set_seed(0 + 1_000_003 * 3 + 1)  # seed, step and rank
    assert torch.equal(second["torch"], torch.get_rng_state())


@pytest.mark.parametrize("kind", ALL)
def test_both_processes_hold_the_same_weights(trained_twice, kind):
    first, second = (torch.load(trained_twice / f"{kind}-rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.fixture(scope="module")
def with_one_bad_rank(tmp_path_factory) -> tuple[Path, str]:
    """The second process meets a bad loss at step 1, once where that stops the training and once where it does not."""
    root = tmp_path_factory.mktemp("bad")
    configure("noisy_line", root)
    done = launch_two(root, "one_bad_rank")
    assert done.returncode == 0, done.stdout
    return root, done.stdout


def test_a_bad_loss_on_one_process_stops_both_and_names_its_clips(with_one_bad_rank):
    root, _ = with_one_bad_rank
    texts = [(root / f"stop-{rank}.txt").read_text() for rank in (0, 1)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("after 1 updates: the loss or its gradient is not finite at step 1")
    assert "met in process 1: train-00000.h5 episode " in texts[0] and "process 0" not in texts[0]


def test_a_bad_loss_on_one_process_is_skipped_by_both(with_one_bad_rank):
    root, output = with_one_bad_rank
    first, second = (torch.load(root / f"skip-{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert (root / "skip-0.txt").read_text() == "after 4 updates: did not stop"
    assert "1 update(s) left out" in output and "met in process 1: train-00000.h5" in output
    lines = read_metrics(root / "runs" / "tokenizer" / "skip")
    assert [line["train/skipped_steps"] for line in lines if "train/lr" in line] == [0, 1, 1, 1]
    assert all("train/loss" in line for line in lines if "train/lr" in line)  # the mean over what is finite
