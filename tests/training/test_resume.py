"""A training that was killed, or told to stop, and then went on is the training that was never stopped."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.workers.forked import Forked, start_two
from tests.training.workers.tiny import configure
from training import checkpoint

STEPS = 12
COMMON = (f"train__num_train_steps={STEPS}", "train__grad_accum=2", "train__save_model_every=2", "train__keep_last=2")
COMMON += ("train__validate_every=4", "train__log_every=3", "train__ema_decay=0.9", "train__keep_best=loss")
# No two runs share these.
OWN_TIME = ("seconds", "train/frames_per_second", "train/data_wait_share", "train/mfu")


def run_folder(root: Path, kind: str, name: str) -> Path:
    return root / "runs" / ("tokenizer" if kind == "noisy_line" else kind) / name


def read_metrics(run_dpath: Path) -> list[dict]:
    fpath = run_dpath / "logs" / "metrics.jsonl"
    if not fpath.exists():
        return []
    lines = [json.loads(line) for line in fpath.read_text().splitlines() if line.endswith("}")]
    return [{name: value for name, value in line.items() if name not in OWN_TIME} for line in lines]


def last_step(run_dpath: Path) -> int:
    return max((checkpoint.step_of(path) for path in checkpoint.list_steps(run_dpath)), default=0)


def assert_same_tree(first, second, place: str = "") -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), place
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), place
        for key in first.keys() - {"elapsed", "log_run_id"}:
            assert_same_tree(first[key], second[key], f"{place}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), place
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same_tree(one, other, f"{place}/{index}")
    else:
        assert first == second, place


def assert_same_run(first: Path, second: Path, step: int = STEPS) -> None:
    """Weights, optimizer, average, random states and counters after a step, and all that was logged on the way."""
    name = checkpoint.step_name(step)
    assert_same_tree(load_file(first / name / checkpoint.WEIGHTS), load_file(second / name / checkpoint.WEIGHTS))
    assert_same_tree(checkpoint.load_state(first / name), checkpoint.load_state(second / name))
    assert read_metrics(first) == read_metrics(second)
    pointers = [[(path.name, path.read_text()) for path in sorted(run.glob("[bl]*est"))] for run in (first, second)]
    assert pointers[0] == pointers[1]
    assert [path.name for path in checkpoint.list_steps(first)] == [path.name for path in checkpoint.list_steps(second)]


@pytest.mark.parametrize("kind", ["tokenizer", "genie_redux", "genie_redux_guided"])
def test_a_run_killed_at_random_steps_and_in_a_save_equals_the_unbroken_run(tmp_path, kind):
    seed = int(os.environ.get("LAMP_TEST_SEED", random.randrange(2**32)))
    print(f"LAMP_TEST_SEED={seed}")  # repeats the moments, as far as moments can be repeated
    chance = random.Random(seed)
    words = [*COMMON, "quantizer__dead_code_steps=2"] if kind != "genie_redux_guided" else [*COMMON]
    configure(kind, tmp_path)  # writes the data, which both need
    unbroken = Forked(tmp_path, kind, *words, "name=unbroken")
    words += ["name=killed", "train__resume_ckpt=auto"]
    folder = run_folder(tmp_path, kind, "killed")

    for target in sorted(chance.sample(range(STEPS - 3), 3)):
        process = Forked(tmp_path, kind, *words, "slow=0.02", f"stuck_step={target}")
        process.wait_until((tmp_path / "stuck").exists)
        time.sleep(chance.uniform(0, 0.05))  # the save of the step before may be under way
        process.kill()
        assert process.wait() == -signal.SIGKILL
        (tmp_path / "stuck").unlink()
        assert last_step(folder) <= target
    process = Forked(tmp_path, kind, *words, "slow_disk=0.1")
    process.wait_until(lambda: any(folder.glob(".step-*.partial")))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (partial,) = folder.glob(".step-*.partial")
    assert f".{checkpoint.step_name(last_step(folder))}.partial" < partial.name

    process = Forked(tmp_path, kind, *words)
    assert process.wait() == unbroken.wait() == 0, process.output + unbroken.output
    assert_same_run(run_folder(tmp_path, kind, "unbroken"), folder)
    assert not list(folder.glob(".*"))


def test_a_signal_in_an_endless_step_drops_it_and_loses_nothing(tmp_path):
    kind = "tokenizer"
    words = [*COMMON, "quantizer__dead_code_steps=2", "patience=0.2"]
    configure(kind, tmp_path)
    unbroken = Forked(tmp_path, kind, *words, "name=unbroken")
    words += ["name=stopped", "train__resume_ckpt=auto"]
    folder = run_folder(tmp_path, kind, "stopped")
    # Before a log line, after one, after a validation.
    for step, number in ((1, signal.SIGTERM), (3, signal.SIGUSR1), (4, signal.SIGTERM)):
        process = Forked(tmp_path, kind, *words, f"stuck_step={step}")
        process.wait_until((tmp_path / "stuck").exists)
        process.kill(number)
        process.kill(signal.SIGTERM)  # a second one changes nothing, whichever is delivered first
        assert process.wait(seconds=30) == 0
        (tmp_path / "stuck").unlink()
        assert last_step(folder) == step
        last = process.output.splitlines()[-1]
        assert last.startswith("stopped by SIG") and "--train.resume_ckpt=auto" in last
    process = Forked(tmp_path, kind, *words)
    assert process.wait() == unbroken.wait() == 0, process.output + unbroken.output
    assert_same_run(run_folder(tmp_path, kind, "unbroken"), folder)


def test_two_processes_drop_an_endless_step_together_and_lose_nothing(tmp_path):
    kind, stuck = "noisy_line", tmp_path / "stuck"
    words = ["train__num_train_steps=6", "train__grad_accum=2", "train__log_every=2", "train__keep_last=1"]
    configure(kind, tmp_path)
    unbroken = start_two(tmp_path, kind, *words, "name=unbroken")
    words += ["name=stopped", "train__resume_ckpt=auto", "patience=0.2"]
    folder = run_folder(tmp_path, kind, "stopped")
    for step, stuck_rank in ((2, 1), (3, 0)):  # the one that hears the signal waits for the other's gradients
        pair = start_two(tmp_path, kind, *words, f"stuck_step={step}", f"stuck_rank={stuck_rank}")
        pair[0].wait_until(stuck.exists)
        pair[1 - stuck_rank].kill(signal.SIGUSR1)
        assert [process.wait(seconds=30) for process in pair] == [0, 0], pair[0].output + pair[1].output
        assert last_step(folder) == step and f"stopped by SIGUSR1 at step {step}" in pair[0].output
        stuck.unlink()
    pair = start_two(tmp_path, kind, *words)
    assert [process.wait() for process in pair + unbroken] == [0] * 4, pair[0].output + pair[1].output
    assert_same_run(run_folder(tmp_path, kind, "unbroken"), folder, step=6)
