"""Training steps, timed phase by phase without making a GPU wait, and the largest batch that fits."""

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks import memory
from benchmarks.rates import Clock
from data.clips import Clip

# Steps of a factor of 2/3 and 3/4, so that what is found is within a third of the largest possible.
BATCH_SIZES = (768, 512, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)


class Seconds(NamedTuple):
    """One step. stall: the device waits for the batch; forward begins with the upload."""

    stall: float
    forward: float
    backward: float
    update: float

    @property
    def total(self) -> float:
        """Without the stall."""
        return self.forward + self.backward + self.update


class Run(NamedTuple):
    """Steps that followed each other with nothing in between but waiting for the next batch."""

    steps: list[Seconds]
    cpu: float  # processor seconds a step, over all threads of this process
    peak_forward_backward: int  # bytes, in the first step
    peak: int
    batch_size: int = 1  # clips
    warm_up: float | None = None  # seconds of the first step before these; compiled code is made in it

    def typical(self, device: torch.device) -> Seconds:
        """The median step; on a CPU, where other programs take their share of the cores, the fastest one."""
        ranked = sorted(self.steps, key=lambda seconds: seconds.total)
        return ranked[(len(ranked) - 1) // 2] if device.type == "cuda" else ranked[0]

    @property
    def mean(self) -> float:
        """Seconds a step, stalls included."""
        return sum(map(sum, self.steps)) / len(self.steps)

    @property
    def range(self) -> tuple[float, float]:
        """The fastest and the slowest step."""
        totals = [seconds.total for seconds in self.steps]
        return min(totals), max(totals)

    @property
    def stall_share(self) -> float:
        return sum(seconds.stall for seconds in self.steps) / sum(map(sum, self.steps))


class Stepper:
    """What one training step is made of."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, limit: float, device: torch.device):
        self.model, self.optimizer, self.limit, self.device = model, optimizer, limit, device

    def step(self, clip: Clip, mark: Callable[[], None] = lambda: None) -> None:
        """Upload, forward, backward, update; `mark` is called in between."""
        loss = loss_of(self.model, clip.to(self.device), self.device)
        mark()
        loss.backward()
        mark()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def run(self, batches: Iterator[Clip], count: int) -> Run:
        """So many steps, one after the other; the GPU is waited for at the end alone."""
        clock = Clock(self.device)
        peak_forward_backward, cpu_began = 0, time.process_time()
        memory.reset_peak(self.device)

        def mark() -> None:
            nonlocal peak_forward_backward
            clock.mark()
            if len(clock.marks) == len(Seconds._fields):  # after the first backward pass
                peak_forward_backward = memory.peak(self.device)

        clock.mark()
        for _ in range(count):
            clip = next(batches)
            clock.mark()
            self.step(clip, mark)
            clock.mark()
        parts = clock.seconds()
        size = len(Seconds._fields)
        steps = [Seconds(*parts[first : first + size]) for first in range(0, len(parts), size)]
        cpu = (time.process_time() - cpu_began) / count
        return Run(steps, cpu, peak_forward_backward, memory.peak(self.device))


def loss_of(model: nn.Module, clip: Clip, device: torch.device) -> Tensor:
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return model(clip, 0).loss


def largest_that_fits(attempt: Callable[[int], object], sizes: Iterable[int] = BATCH_SIZES) -> int:
    """The first of `sizes` for which `attempt` does not run out of the GPU's memory.

    Raises ValueError where none does.
    """
    for size in sizes:
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            pass  # freed below, when the error and the frames that it holds are gone
        else:
            return size
        gc.collect()
        torch.cuda.empty_cache()
    raise ValueError("not even one clip fits into the GPU's memory; set --train.gradient_checkpointing=true")
