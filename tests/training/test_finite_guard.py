"""A loss or gradient that is not finite never reaches the weights; what it came from is named."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tests.training.workers.tiny import configure
from training import checkpoint
from training.finite_guard import MOST_IN_A_ROW, FiniteGuard
from training.objectives import one_loss
from training.optimizers import adamw
from training.trainer import Trainer

CLIP = re.compile(r"(train-\d+\.h5) episode (\d+) frame (\d+)")


def bad_at(*steps: int, micro_batch: int = 0, seen: list | None = None, only_gradient: bool = False):
    """The usual objective, whose loss (or gradient alone) is not finite in one micro-batch of these steps."""
    calls: dict[int, int] = {}

    def objective(parts, clip, step):
        place = calls.get(step, 0)
        calls[step] = place + 1
        is_bad = step in steps and place == micro_batch
        if is_bad and seen is not None:
            seen.append((clip.frames * 255).round().to(torch.uint8))
        for name, output in one_loss(parts, clip, step):
            factor = torch.nan if is_bad and not only_gradient else 1
            loss = output.loss * factor
            if is_bad and only_gradient:
                loss.register_hook(lambda gradient: gradient * torch.inf)
            yield name, output._replace(loss=loss)

    return objective


def skipping(tmp_path, objective, name="skipping", kind="noisy_line", **settings) -> Trainer:
    cfg = configure(kind, tmp_path, name=name, train__on_nonfinite="skip", **settings)
    return Trainer(cfg, objective)


def weights_and_state(run: Trainer) -> dict[str, torch.Tensor]:
    (optimizer,) = (part.optimizer for part in run.state.parts.values())
    state = {f"{n}.{k}": v for n, values in optimizer.state_dict()["state"].items() for k, v in values.items()}
    return {**run.state.model.state_dict(), **state}


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def frames_named(run: Trainer, text: str) -> torch.Tensor:
    """The clips that a message names, read from the data."""
    shard, rows = run.dataset.episodes.info["splits"]["train"]["shards"][0]["file"], []
    for file, episode, frame in CLIP.findall(text):
        assert file == shard
        (window,) = [w for w in range(len(run.dataset)) if run.dataset.locate(w) == (int(episode), int(frame))]
        rows.append(run.dataset.batch(np.array([window])).frames[0])
    return torch.stack(rows)


def test_stop_names_the_clips_of_the_micro_batch_that_met_it(tmp_path):
    seen = []
    run = Trainer(configure("noisy_line", tmp_path, train__grad_accum=3), bad_at(2, micro_batch=1, seen=seen))
    with pytest.raises(ValueError, match="not finite at step 2: training stopped before the weights changed") as error:
        run.run()
    assert "\n" not in str(error.value)
    assert torch.equal(frames_named(run, str(error.value)), seen[0])


def test_a_bad_gradient_names_all_clips_of_the_step(tmp_path):
    run = Trainer(configure("noisy_line", tmp_path, train__grad_accum=3), bad_at(1, only_gradient=True))
    with pytest.raises(ValueError, match="not finite at step 1") as error:
        run.run()
    assert len(CLIP.findall(str(error.value))) == 6


@pytest.mark.parametrize("waits", [True, False])
def test_a_skipped_update_leaves_weights_and_optimizer_as_they_were(waits):
    module = torch.nn.Linear(3, 2)
    optimizer = adamw(module, lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    counts = {"total": 0, "in_a_row": {}}
    guard = FiniteGuard(Accelerator(cpu=True), "skip", counts, lambda step, batch: ["a clip"])
    guard.waits = waits  # a GPU's way runs on a CPU as well

    def update(step: int, factor: float) -> dict[str, torch.Tensor]:
        loss = module(torch.ones(4, 3)).square().sum() * factor
        guard.see("model", loss)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        if guard.allows_update("model", step, norm, optimizer):
            optimizer.step()
        optimizer.zero_grad()
        state = optimizer.state_dict()["state"]
        tensors = {f"{n}.{key}": value.clone() for n, values in state.items() for key, value in values.items()}
        return tensors | {name: value.clone() for name, value in module.state_dict().items()}

    first = update(0, 1.0)
    assert_same(first, update(1, torch.nan))
    assert_same(first, update(2, torch.inf))
    second = update(3, 1.0)
    assert {name for name in first if not torch.equal(first[name], second[name])} == first.keys()
    guard.check()
    assert counts == {"total": 2, "in_a_row": {"model": 0}}


@pytest.mark.parametrize("kind", ["noisy_line", "genie_redux"])
def test_a_training_goes_on_after_skipped_updates_and_counts_them(tmp_path, capsys, kind):
    objective = bad_at(1, 2, micro_batch=1)
    run = skipping(tmp_path, objective, kind=kind, train__grad_accum=2, train__num_train_steps=5)
    run.run()
    assert all(torch.isfinite(value).all() for value in weights_and_state(run).values())
    assert run.state.step == 5 and run.state.skipped["total"] == 2
    lines = [json.loads(line) for line in (run.run_dpath / "logs" / "metrics.jsonl").open()]
    assert [line["train/skipped_steps"] for line in lines if "train/lr" in line] == [0, 1, 2, 2, 2]
    assert all(np.isfinite(line["train/loss"]) for line in lines if "train/lr" in line)
    output = capsys.readouterr().out
    assert "warning: 1 update(s) left out" in output and "(2 in this run), the last one at step 2, met in" in output


def test_a_skipped_update_is_the_training_without_it(tmp_path):
    """Two of three updates count; a training of those two, at the same rates, ends with the same weights."""
    common = {"optimizer__kind": "constant", "optimizer__warmup_steps": 0, "train__num_train_steps": 3}
    run = skipping(tmp_path, bad_at(1), **common)
    run.run()
    other = skipping(tmp_path, one_loss, name="other", **common)
    batches = {}

    def kept(parts, clip, step):
        batches[step] = clip
        return one_loss(parts, clip, step)

    skipping(tmp_path, kept, name="kept", **common).run()
    for step in (0, 2):
        for part, output in one_loss(other.state.parts, batches[step], step):
            other.accelerator.backward(output.loss)
            other.accelerator.clip_grad_norm_(other.state.model.parameters(), other.max_grad_norm)
            other.state.parts[part].optimizer.step()
            other.state.parts[part].optimizer.zero_grad()
    first, second = weights_and_state(run), weights_and_state(other)
    assert_same({k: v for k, v in first.items() if k != "forwards"}, {k: second[k] for k in first if k != "forwards"})


def test_the_way_of_a_gpu_gives_the_weights_of_the_way_of_a_cpu(tmp_path):
    runs = []
    for waits in (True, False):
        run = skipping(tmp_path, bad_at(1, 2), name=str(waits), train__num_train_steps=5, train__log_every=5)
        run.guard.waits = waits
        run.run()
        runs.append(weights_and_state(run))
    assert_same(*runs)


def test_on_a_gpu_stop_is_told_at_the_next_reading_and_names_the_step_that_was_bad(tmp_path):
    seen = []
    run = Trainer(configure("noisy_line", tmp_path, train__log_every=4), bad_at(1, seen=seen))
    run.guard.waits = False
    before = {}

    def remember(parts, clip, step):
        if step == 1:
            before.update({name: value.detach().clone() for name, value in run.state.weights.items()})
        return objective(parts, clip, step)

    objective, run.objective = run.objective, remember
    with pytest.raises(ValueError, match="not finite at step 1") as error:
        run.run()
    assert run.state.step == 4
    assert_same(before, {name: value.detach() for name, value in run.state.weights.items()})
    assert torch.equal(frames_named(run, str(error.value)), seen[0])


def test_resuming_between_skipped_updates_equals_an_unbroken_run(tmp_path):
    common = {"train__num_train_steps": 6, "train__ema_decay": 0.9, "train__log_every": 1}
    skipping(tmp_path, bad_at(2, 3, 4), name="unbroken", **common).run()
    skipping(tmp_path, bad_at(2, 3, 4), name="resumed", **common | {"train__num_train_steps": 4}).run()
    folder = tmp_path / "runs" / "tokenizer" / "resumed"
    assert checkpoint.load_state(folder / "step-00000004")["skipped"] == {"total": 2, "in_a_row": {"model": 2}}
    skipping(tmp_path, bad_at(2, 3, 4), name="resumed", **common, train__resume_ckpt="auto").run()
    state, other = (
        checkpoint.load_state(tmp_path / "runs" / "tokenizer" / name / "step-00000006")
        for name in ("unbroken", "resumed")
    )
    assert state["skipped"] == other["skipped"] == {"total": 3, "in_a_row": {"model": 0}}
    assert_same(state["weights"], other["weights"])
    for first, second in zip(
        state["optimizers"]["model"]["state"].values(), other["optimizers"]["model"]["state"].values(), strict=True
    ):
        assert_same(first, second)


def test_skip_gives_up_after_so_many_in_a_row_over_a_resume_too(tmp_path):
    bad = range(1, 2 + MOST_IN_A_ROW)
    skipping(tmp_path, bad_at(*bad), train__num_train_steps=4).run()
    longer = {"train__num_train_steps": 20, "train__resume_ckpt": "auto"}
    run = skipping(tmp_path, bad_at(*bad), **longer)
    with pytest.raises(ValueError, match=rf"not finite at step {MOST_IN_A_ROW} and was not in the 9 updates before"):
        run.run()
    assert run.state.step == MOST_IN_A_ROW


def test_losses_that_are_not_finite_leave_no_mark_on_the_logged_means(tmp_path):
    run = skipping(tmp_path, bad_at(1), train__log_every=4)
    run.run()
    (line,) = [
        line for line in map(json.loads, (run.run_dpath / "logs" / "metrics.jsonl").open()) if "train/lr" in line
    ]
    assert 0 < line["train/loss"] < 10 and line["train/skipped_steps"] == 1


@pytest.mark.parametrize("value", [2.0, float("inf"), float("nan")])
def test_in_fp16_the_gradient_of_a_loss_that_is_not_finite_is_not_finite_either(value):
    """Its scaler looks at gradients alone, and this one does not depend on the loss's value."""
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1, scaler=object())
    guard = FiniteGuard(accelerator, "skip", {"total": 0, "in_a_row": {}}, lambda step, batch: [])
    weight = torch.ones(3, requires_grad=True)
    guard.see("model", weight.sum() + value).backward()
    assert torch.isfinite(weight.grad).all() == (value == 2.0)
