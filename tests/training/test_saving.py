"""A checkpoint is written beside the training, holds what it should and no more, and its failure stops everybody."""

import copy
import signal
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_resume import assert_same_tree, last_step, read_metrics, run_folder
from tests.training.workers.forked import Forked, start_two
from tests.training.workers.tiny import configure
from training import checkpoint
from training.saving import HostMemory
from training.trainer import Trainer, train


def test_training_goes_on_while_a_slow_disk_writes_and_signals_wait_for_it(tmp_path):
    configure("noisy_line", tmp_path)
    words = ["train__num_train_steps=100000", "train__save_model_every=10", "train__keep_last=1", "slow=0.02"]
    process = Forked(tmp_path, "noisy_line", *words, "slow_disk=0.4")
    folder = run_folder(tmp_path, "noisy_line", "tokenizer")
    partial = folder / ".step-00000010.partial"
    process.wait_until(partial.exists)
    process.wait_until(lambda: read_metrics(folder)[-1]["step"] > 10)
    assert partial.exists() and not checkpoint.list_steps(folder) and "saved" not in process.output
    process.wait_until(lambda: "step 10  saved" in process.output)
    assert last_step(folder) >= 10
    process.kill(signal.SIGTERM)
    process.wait_until(lambda: not (folder / ".step-00000020.partial").exists() and any(folder.glob(".*.partial")))
    process.kill(signal.SIGTERM)
    assert process.wait() == 0, process.output
    (saved,) = checkpoint.list_steps(folder)
    assert (folder / "latest").read_text() == saved.name + "\n" and not list(folder.glob(".*"))
    assert checkpoint.load_state(saved)["step"] == checkpoint.step_of(saved) == read_metrics(folder)[-1]["step"]
    assert load_file(saved / checkpoint.WEIGHTS)


def block_step(folder: Path, step: int) -> None:
    """A file where the unfinished folder of that step would be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f".{checkpoint.step_name(step)}.partial").write_text("in the way")


@pytest.mark.parametrize("async_save", [True, False])
def test_a_failed_write_ends_the_training_with_one_line_and_keeps_earlier_steps(tmp_path, async_save):
    words = {"train__num_train_steps": 1000, "train__save_model_every": 2, "train__resume_ckpt": "auto"}
    cfg = configure("noisy_line", tmp_path, **words, train__async_save=async_save)
    folder = run_folder(tmp_path, "noisy_line", "tokenizer")
    block_step(folder, 4)
    with pytest.raises(ValueError, match=r"could not write .*step-00000004.*; free disk space or set") as error:
        train(cfg)
    assert "\n" not in str(error.value)
    assert last_step(folder) == 2
    assert read_metrics(folder)[-1]["step"] <= (6 if async_save else 4)  # at the latest at the next save


def test_a_failed_write_stops_all_processes(tmp_path):
    configure("noisy_line", tmp_path)
    block_step(run_folder(tmp_path, "noisy_line", "tokenizer"), 2)
    words = ["train__num_train_steps=1000", "train__save_model_every=2", "train__resume_ckpt=auto"]
    first, second = start_two(tmp_path, "noisy_line", *words)
    assert first.wait() and second.wait()
    assert "step-00000002" in first.output.splitlines()[-1]
    assert second.output.splitlines()[-1] == "ValueError: the main process could not write a checkpoint; it says why"


@pytest.mark.parametrize(("ema_decay", "limit"), [(None, 3.1), (0.9, 4.1)])
def test_a_checkpoint_takes_three_times_the_weights_or_four_with_a_moving_average(tmp_path, ema_decay, limit):
    size = {"dynamics__dim": 96, "train__num_train_steps": 2, "train__save_model_every": 1, "train__keep_last": None}
    run = Trainer(configure("genie_redux_guided", tmp_path, **size, train__ema_decay=ema_decay))
    run.run()
    weights = sum(value.nbytes for value in run.state.weights.values())
    for step in checkpoint.list_steps(run.run_dpath):
        assert sum(path.stat().st_size for path in step.iterdir()) <= limit * weights
    frozen = [name for name, _ in run.state.model.named_parameters() if name.startswith("tokenizer.")]
    holders = [path for path in run.run_dpath.rglob("*.safetensors") if set(load_file(path)) & {n[10:] for n in frozen}]
    assert frozen and holders == [run.run_dpath / "tokenizer.safetensors"]


@pytest.mark.parametrize("kind", ["tokenizer", "genie_redux", "genie_redux_guided", "noisy_line"])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_passes_without_an_update_leave_no_trace_in_a_dropped_step(tmp_path, kind, ema_decay):
    dead = {"quantizer__dead_code_steps": 1} if kind in ("tokenizer", "genie_redux") else {}
    run = Trainer(configure(kind, tmp_path, **dead, train__ema_decay=ema_decay, train__num_train_steps=2))
    run.run()
    state, part = run.state, run.state.parts["model"]
    clip = run.dataset.batch(torch.arange(4).numpy(), torch.arange(4).numpy()).to("cpu")
    state.remember()
    moment = state.moments[-1]
    live = copy.deepcopy(dict(state.model.state_dict()))
    before = copy.deepcopy(state.collect([moment.own_state()], {}))
    part.module.train()
    for _ in range(3):
        output = part.module(clip, state.step)
        output.loss.backward()
        state.window.add({"loss": output.loss})
        torch.rand(3)
    if kind == "noisy_line":  # a module that writes in its forward pass; codebooks wait for the end of the step
        assert any(not torch.equal(value, live[name]) for name, value in state.model.state_dict().items())
    assert_same_tree(before, state.collect([moment.own_state()], moment.touched))
    with state.averaged_weights():  # as in a validation
        assert_same_tree(before, state.collect([moment.own_state()], moment.touched))


def test_copies_use_the_same_memory_again_and_do_not_follow_the_original():
    memory, original = HostMemory(), {"a": torch.ones(3), "b": [torch.zeros(2), 5, ("x", None)]}
    first = memory.copy(original)
    original["a"] += 1
    assert first["a"].tolist() == [1, 1, 1] and first["b"][1:] == [5, ("x", None)]
    second = memory.copy(original)
    assert second["a"].data_ptr() == first["a"].data_ptr() and second["a"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_every_process_of_a_job_ends_the_training_well_and_its_loaders_with_it(tmp_path, number):
    """As clusters, service managers and terminals send it; a step needs more clips than are loaded ahead."""
    configure("noisy_line", tmp_path)
    words = ["train__num_train_steps=100000", "train__num_workers=2", "train__grad_accum=16", "slow=0.02"]
    process = Forked(tmp_path, "noisy_line", *words)
    folder = run_folder(tmp_path, "noisy_line", "tokenizer")
    process.wait_until(lambda: read_metrics(folder))
    loaders = psutil.Process(process.pid).children()
    assert len(loaders) == 2
    for each in (*loaders, process):
        (each.send_signal if each is not process else each.kill)(number)
    assert process.wait() == (130 if number == signal.SIGINT else 0), process.output
    assert last_step(folder) >= 1 and not psutil.wait_procs(loaders, timeout=10)[1]
