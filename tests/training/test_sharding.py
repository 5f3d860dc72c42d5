"""`train.sharding=fsdp` on two processes (gloo): the training and the files of a run that is not sharded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.workers import sharded, tiny
from tests.training.workers.forked import run_two
from tests.training.workers.sharded import RUNS
from tests.training.workers.tiny import configure
from tests.training.written import BF16, assert_close, assert_same_curves, assert_same_files, lines
from training import checkpoint
from training.settings import TrainSettings
from training.trainer import Trainer, train

SAME = [name for name, (_, settings) in RUNS.items() if settings.get("linear")]
JOINT = {"train__batch_size": 8, "train__grad_accum": 1}


def folder(root: Path, name: str, run: str) -> Path:
    return root / "runs" / tiny.model_of(RUNS[name][0]) / run


def weights(root: Path, name: str, run: str, step: int = 3) -> dict[str, torch.Tensor]:
    return load_file(folder(root, name, run) / checkpoint.step_name(step) / checkpoint.WEIGHTS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """All of `RUNS` by two processes, and the beginning of "resumed" by one that does not shard."""
    root = tmp_path_factory.mktemp("sharded")
    configure("genie_redux", root)  # writes data and the frozen tokenizer before two processes look for them
    kind, settings = RUNS["adamw"]
    train(configure(kind, root, name="adamw-one", **settings | JOINT | {"train__num_train_steps": 2}))
    done = run_two(root, *RUNS, module=sharded.__name__)
    assert done.returncode == 0, done.stdout
    return root


@pytest.mark.parametrize("name", SAME)
def test_two_processes_that_share_the_model_make_the_update_of_one(trained, name):
    kind, settings = RUNS[name]
    plain = {"train__compile": False, "train__gradient_checkpointing": False}
    train(configure(kind, trained, name=f"{name}-one", **settings | JOINT | plain))
    loose = BF16 if name == "bf16" else {}
    assert_close(weights(trained, name, name), weights(trained, name, f"{name}-one"), **loose)
    first, second = (lines(folder(trained, name, run)) for run in (name, f"{name}-one"))
    assert first[0]["train/grad_norm"] > settings["optimizer__max_grad_norm"]  # clipping took part
    keys = ("train/loss", "train/grad_norm", "validation/loss")
    assert_same_curves(first, second, keys, rel=2e-2 if name == "bf16" else 1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_each_process_holds_its_half(trained, name):
    shares = [float((trained / f"{name}-share-{rank}.txt").read_text()) for rank in (0, 1)]
    assert sum(shares) == pytest.approx(1) and max(shares) < 0.6


def state(root: Path, name: str, run: str, step: int) -> dict:
    return checkpoint.load_state(folder(root, name, run) / checkpoint.step_name(step))


def test_the_files_are_those_of_a_run_that_is_not_sharded(trained):
    sharded, plain = (state(trained, "adamw", run, 2) for run in ("adamw", "adamw-one"))
    assert_same_files(sharded, plain)


def test_a_sharded_run_goes_on_unsharded_and_an_unsharded_one_sharded(trained):
    kind, settings = RUNS["adamw"]
    start = {"train__resume_ckpt": folder(trained, "adamw", "adamw") / checkpoint.step_name(2)}
    train(configure(kind, trained, name="gone-on", **settings | JOINT | start))
    ends = [weights(trained, "adamw", run) for run in ("adamw", "gone-on", "adamw-one")]
    # Sharded all the way; sharded, then not; not, then sharded. AdamW divides rounding by itself.
    for other in ends[1:]:
        assert_close(other, ends[0], rtol=1e-3, atol=1e-3)


def test_muon_on_shared_matrices_makes_the_update_of_one(trained):
    kind, settings = RUNS["muon"]
    run = Trainer(configure(kind, trained, name="muon-one", **settings | JOINT))
    matrices = run.state.parts["model"].optimizer.optimizer.parts["muon"].param_groups[0]["params"]
    of_muon = {id(matrix) for matrix in matrices}
    before = {name: weight.detach().clone() for name, weight in run.state.weights.items() if id(weight) in of_muon}
    run.run()
    found, expected = (weights(trained, "muon", name) for name in ("muon", "muon-one"))
    for name, start in before.items():
        # It computes in bf16, whose sums depend on how they are split: accumulation alone moves these steps apart by
        # 0.04 of their length, sharding by 0.07; matrices orthogonalised in halves would be off by 0.8.
        moved = (expected[name] - start).norm()
        assert (found[name] - expected[name]).norm() <= 0.15 * moved, name


def test_one_process_has_nobody_to_share_with(tmp_path):
    with pytest.raises(ValueError, match=r"^train\.sharding=fsdp splits .* but there is one; set --num_processes=N"):
        Trainer(configure("tokenizer", tmp_path, train__sharding="fsdp"))


def test_fp16_is_refused(tmp_path):
    cfg = configure("tokenizer", tmp_path, train__sharding="fsdp", train__mixed_precision="fp16")
    with pytest.raises(ValueError, match=r"^train\.mixed_precision is 'fp16', expected bf16"):
        TrainSettings.from_config(cfg.train)
