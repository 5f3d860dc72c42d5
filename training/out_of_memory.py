"""What to do when memory runs out, in one line: where it happened, how much was missing, which settings to lower."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from training import checkpoint

if TYPE_CHECKING:
    from training.trainer import Trainer

GIB = 2**30
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": GIB, "TiB": 2**40}
SIZE = r"([\d.]+) (bytes|[KMGT]iB)"
GPU = re.compile(r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED")
# Functions that a traceback passes through, and what they are to a person.
PLACES = {
    "_validate": "validation",
    "_save": "saving",
    "save": "saving",
    "backward": "the backward pass",
    "clip_grad_norm_": "the update",
    "step": "the update",
}


@contextmanager
def explained(run: "Trainer") -> Iterator[None]:
    """Inside, memory that runs out on a GPU or in the machine raises ValueError with one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        cause = cause_of(error, run.accelerator.device)
        if cause is None:
            raise
        what, cures = cause
        when = f"in {place_of(error)} of step {run.state.step}"
        raise ValueError(what.format(when=when) + f"; set {' or '.join(cures(run))}; {_what_is_left(run)}") from error


@contextmanager
def explained_while_building() -> Iterator[None]:
    """Inside, a GPU that is too small for the model itself raises ValueError with one line."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        what = _of_gpu(str(error), None).format(when="while the model was built")
        raise ValueError(f"{what}; end other programs on the GPU, or make the model smaller") from error


def cause_of(error: BaseException, device: torch.device):
    """A sentence with a place for `{when}` and what lists the cures; None where it is not about memory."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or GPU.search(text):
        return _of_gpu(text, device), cures_on_gpu
    if "bus error" in text.lower():
        return "the shared memory of the loader processes (/dev/shm) is full {when}", cures_in_shared_memory
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        asked = re.search(r"tried to allocate (\d+) bytes", text)
        needed = f": {int(asked[1]) / GIB:,.2f} GiB more were needed" if asked else ""
        return "the machine's memory ran out {when}" + needed, cures_in_host
    if re.search(r"DataLoader worker .*(killed by signal|exited unexpectedly)", text):
        return "a loader process was killed {when}, as the system does when memory runs out", cures_in_host
    return None


def _of_gpu(text: str, device: torch.device | None) -> str:
    said = "the GPU's memory ran out {when}"
    asked = re.search(rf"Tried to allocate {SIZE}", text)
    room = re.search(rf"total capacity of {SIZE} of which {SIZE} is free", text)
    if asked and room:
        needed, total, free = _bytes(*asked.groups()), _bytes(*room.groups()[:2]), _bytes(*room.groups()[2:])
        said += (
            f": {_gib(needed)} more were needed and {_gib(free)} of {_gib(total)} were free, so {_gib(needed - free)} "
        )
        said += "were missing at least"
    if device is not None and device.type == "cuda":
        said += f" (most in use so far: {_gib(torch.cuda.max_memory_allocated(device))})"
    return said


def _bytes(number: str, unit: str) -> float:
    return float(number) * UNITS[unit]


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:,.2f} GiB"


def place_of(error: BaseException) -> str:
    """The part of a step in which an error was raised."""
    names = (frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))
    return next((PLACES[name] for name in names if name in PLACES), "the forward pass")


# ---------------------------------------------------------------------------------------------------------- what helps


def cures_on_gpu(run: "Trainer") -> list[str]:
    settings = run.settings
    cures = _smaller_batch(run)
    can_recompute = any(hasattr(module, "gradient_checkpointing") for module in run.state.model.modules())
    if can_recompute and not settings.gradient_checkpointing:
        cures.append("--train.gradient_checkpointing=true")
    if run.accelerator.mixed_precision == "no":
        cures.append("--train.mixed_precision=bf16")
    if settings.ema_decay is not None:
        cures.append("--train.ema_decay=null (no second copy of the weights)")
    if run.accelerator.num_processes > 1 and not run.state.is_spread:
        cures.append("--train.sharding=fsdp")
    return [*cures, "a lower --train.num_frames"]


def cures_in_host(run: "Trainer") -> list[str]:
    return _fewer_workers(run) + _smaller_batch(run) + ["a lower --train.num_frames"]


def cures_in_shared_memory(run: "Trainer") -> list[str]:
    return [*_fewer_workers(run), "a larger /dev/shm (docker run --shm-size=8g)", *_smaller_batch(run)]


def _fewer_workers(run: "Trainer") -> list[str]:
    return ["--train.num_workers=0"] if run.settings.num_workers else []


def _smaller_batch(run: "Trainer") -> list[str]:
    """A part of the batch at a time, and the same number of clips a step."""
    batch, accumulated = run.settings.batch_size, run.settings.grad_accum
    if batch == 1:
        return []
    parts = next(factor for factor in range(2, batch + 1) if batch % factor == 0)
    return [f"--train.batch_size={batch // parts} --train.grad_accum={accumulated * parts} (the same clips a step)"]


def _what_is_left(run: "Trainer") -> str:
    run.saver.join()  # a checkpoint may still be on its way to the disk
    steps = checkpoint.list_steps(run.run_dpath)
    return f"{steps[-1]} stays, go on with --train.resume_ckpt=auto" if steps else "nothing was saved yet"


def peak(device: torch.device) -> dict[str, float]:
    """The most memory that tensors, activations among them, had on a GPU at once so far; does not wait for it."""
    return {"train/peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else {}
