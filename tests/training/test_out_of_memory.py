"""Memory that runs out ends in one line with what to set, and the last checkpoint stays."""

import multiprocessing
import os
import re
import signal

import pytest
import torch

from tests.training.workers.tiny import configure
from training import checkpoint, out_of_memory
from training.objectives import one_loss
from training.trainer import Trainer, train

# As torch 2.11 words it.
GENUINE = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 512.00 MiB is "
    "free. Process 4242 has 78.60 GiB memory in use. Of the allocated memory 76.20 GiB is allocated by PyTorch, and "
    "1.70 GiB is reserved by PyTorch but unallocated."
)


def failing(work, place: str = "forward", at: int = 2):
    """The usual objective; `work` raises in its forward or backward pass at a step."""

    def objective(parts, clip, step):
        if step == at and place == "forward":
            work()
        for name, output in one_loss(parts, clip, step):
            if step == at and place == "backward":
                output.loss.register_hook(lambda gradient: work())
            yield name, output

    return objective


def runs_out() -> None:
    raise torch.OutOfMemoryError(GENUINE)


def message_of(tmp_path, objective, kind="tokenizer", *, saved=2, **settings) -> str:
    """saved: the step whose checkpoint is there afterwards; None where the failure is noticed later, at any step."""
    run = Trainer(configure(kind, tmp_path, train__save_model_every=2, **settings), objective)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        run.run()
    last = checkpoint.list_steps(run.run_dpath)[-1]
    assert saved in (None, checkpoint.step_of(last))
    assert str(error.value).endswith(f"{last} stays, go on with --train.resume_ckpt=auto")
    return str(error.value)


@pytest.mark.parametrize(("place", "words"), [("forward", "the forward pass"), ("backward", "the backward pass")])
def test_a_full_gpu_says_where_how_much_was_missing_and_what_to_lower(tmp_path, place, words):
    settings = {"train__batch_size": 4, "train__grad_accum": 3, "train__ema_decay": 0.9}
    text = message_of(tmp_path, failing(runs_out, place), **settings)
    assert text.startswith(
        f"the GPU's memory ran out in {words} of step 2: 2.50 GiB more were needed and 0.50 GiB of 79.11 GiB were "
        "free, so 2.00 GiB were missing at least"
    )
    assert "--train.batch_size=2 --train.grad_accum=6 (the same clips a step) or --train.gradient_checkpointing" in text
    assert "--train.mixed_precision=bf16" in text and "--train.ema_decay=null" in text
    assert text.endswith("step-00000002 stays, go on with --train.resume_ckpt=auto")


def test_what_is_set_already_is_not_advised_again(tmp_path):
    settings = {"train__batch_size": 1, "train__gradient_checkpointing": "true", "train__mixed_precision": "bf16"}
    text = message_of(tmp_path, failing(runs_out), **settings)
    assert not re.search("batch_size|gradient_checkpointing|mixed_precision|ema_decay", text)
    assert "--train.num_frames" in text


def test_memory_that_the_update_misses_is_told_as_such(tmp_path):
    run = Trainer(configure("noisy_line", tmp_path))
    run.state.parts["model"].optimizer.optimizer.register_step_pre_hook(lambda *_: runs_out())
    with pytest.raises(ValueError, match=r"ran out in the update of step 0: .*nothing was saved yet"):
        run.run()


def test_memory_that_the_machine_misses_is_told(tmp_path):
    text = message_of(tmp_path, failing(lambda: torch.empty(2**50)), train__batch_size=3)
    assert text.startswith("the machine's memory ran out in the forward pass of step 2: 4,194,304.00 GiB more")
    assert "--train.batch_size=1 --train.grad_accum=3" in text


def test_a_killed_loader_process_is_told(tmp_path):
    """The system's killer sends the same signal."""

    def kill() -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    text = message_of(tmp_path, failing(kill), saved=None, train__num_workers=1, train__num_train_steps=50)
    assert text.startswith("a loader process was killed in") and "--train.num_workers=0" in text


def test_other_errors_are_left_as_they_are(tmp_path):
    def breaks() -> None:
        raise RuntimeError("the size of tensor a (3) must match the size of tensor b (4)")

    with pytest.raises(RuntimeError, match="size of tensor a"):
        train(configure("noisy_line", tmp_path), objective=failing(breaks))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 8.00 GiB of which 0 bytes is free.", "0.02 GiB"),
        ("CUDA error: out of memory", "ran out {when}"),
    ],
)
def test_torchs_other_wordings_are_understood(text, words):
    what, _ = out_of_memory.cause_of(torch.OutOfMemoryError(text), torch.device("cpu"))
    assert words in what


def test_a_full_shared_memory_is_told(tmp_path):
    text = (
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit."
    )
    run = Trainer(configure("noisy_line", tmp_path, train__num_workers=2))
    expected = pytest.raises(ValueError, match=r"/dev/shm\) is full .*--train.num_workers=0 or a larger /dev/shm")
    with expected, out_of_memory.explained(run):
        raise RuntimeError(text)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none")
def test_a_gpu_that_is_really_full_says_how_much_is_missing(tmp_path):
    text = message_of(tmp_path, failing(lambda: torch.empty(2**44, dtype=torch.uint8, device="cuda")))
    assert re.match(r"the GPU's memory ran out in the forward pass of step 2: 16,384.00 GiB more were needed", text)
    assert "were missing at least (most in use so far: " in text
