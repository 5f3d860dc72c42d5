"""Losses and gradients that are not finite are kept away from the weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.optim import Optimizer

from training import clip_names

MOST_IN_A_ROW = 10  # updates that `skip` leaves out before it gives up: that many bad batches are no accident
NEVER = 2**62  # a step that no training reaches
CURE = "resume from the last checkpoint with a lower optimizer.lr or optimizer.max_grad_norm"


@dataclass
class _Watch:
    """One part's losses since its last update, on the device."""

    in_a_row: Tensor  # updates left out
    bad_batch: Tensor  # the first micro-batch of this process whose loss is not finite; -1: none
    num_batches: int = 0


class FiniteGuard:
    """Leaves out updates whose loss or gradient is not finite, on all processes alike.

    on_nonfinite: with `stop` the first one ends the training, with `skip` the `MOST_IN_A_ROW`-th in a row.
    skipped: the run's counts, {"total": int, "in_a_row": {part: int}}, brought up to date by `check`.
    names: tells which clips this process had at a step in one micro-batch or (None) in all.

    On a CPU every update is looked at. On a GPU looking would empty its queue: the fused optimizer is told on the
    device (`found_inf`) to leave weights and state alone, and `check` looks when the host waits anyway. In fp16
    infinite gradients are daily bread: the scaler skips them and lowers its scale, and only losses are looked at.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        on_nonfinite: str,
        skipped: dict[str, Any],
        names: Callable[[int, int | None], list[str]],
    ):
        self.device = accelerator.device
        self.num_processes = accelerator.num_processes
        self.waits = accelerator.device.type == "cpu"
        self.scales = accelerator.scaler is not None
        self.patience = 1 if on_nonfinite == "stop" else MOST_IN_A_ROW
        self.skipped = skipped
        self.names = names
        self.watched: dict[str, _Watch] = {}
        self.total = self._number(skipped["total"])
        self.stop_at = self._number(NEVER)
        self.last_step, self.last_batch = self._number(-1), self._number(-1)  # of the last one that was left out
        self.told = skipped["total"]

    def _number(self, value: int) -> Tensor:
        return torch.tensor(value, dtype=torch.int64, device=self.device)

    def _watch(self, part: str) -> _Watch:
        if part not in self.watched:
            in_a_row = self._number(self.skipped["in_a_row"].get(part, 0))
            self.watched[part] = _Watch(in_a_row, self._number(-1))
        return self.watched[part]

    def see(self, part: str, loss: Tensor) -> Tensor:
        """Called with the loss of every micro-batch; returns what to differentiate.

        That is the loss. In fp16 one that is not finite has a gradient that is none either, which its scaler notices.
        """
        watch = self._watch(part)
        is_bad = ~torch.isfinite(loss.detach())
        is_first = is_bad & (watch.bad_batch < 0)
        # Filled here and below: `torch.where` would copy a number to the device, and the host would wait.
        watch.bad_batch = watch.bad_batch.masked_fill(is_first, watch.num_batches)
        watch.num_batches += 1
        return loss * torch.ones_like(loss.detach()).masked_fill(is_bad, torch.nan) if self.scales else loss

    def allows_update(self, part: str, step: int, grad_norm: Tensor, optimizer: Optimizer) -> bool:
        """Called after clipping: whether to call `optimizer.step()`, which may still do nothing on a GPU.

        The norm covers all micro-batches and processes; the losses are looked at as well, since a loss can be infinite
        and cut its own gradient off. Raises what `check` raises.
        """
        watch = self._watch(part)
        is_bad = watch.bad_batch >= 0
        if not self.scales:
            is_bad = is_bad | ~torch.isfinite(grad_norm)
        is_bad = self._on_any_process(is_bad)
        self._note(watch, step, is_bad)
        watch.bad_batch, watch.num_batches = torch.full_like(watch.bad_batch, -1), 0  # filled, not copied: no waiting
        if self.scales:
            return True
        is_blocked = is_bad | (self.stop_at < NEVER)
        inner = getattr(optimizer, "optimizer", optimizer)
        if not self.waits and getattr(inner, "_step_supports_amp_scaling", False):
            inner.found_inf = is_blocked.float()
            return True
        self.check()
        return not is_blocked.item()

    def _on_any_process(self, is_bad: Tensor) -> Tensor:
        if self.num_processes == 1:
            return is_bad
        flag = is_bad.float()
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return flag > 0

    def _note(self, watch: _Watch, step: int, is_bad: Tensor) -> None:
        is_new = is_bad & (self.stop_at == NEVER)  # what came first counts once the training is to stop
        self.last_step = self.last_step.masked_fill(is_new, step)
        self.last_batch = torch.where(is_new, watch.bad_batch, self.last_batch)
        self.total = self.total + is_new
        watch.in_a_row = (watch.in_a_row + 1).masked_fill(~is_bad, 0)
        is_enough = is_new & (watch.in_a_row >= self.patience)
        self.stop_at = self.stop_at.masked_fill(is_enough, step)

    def check(self) -> None:
        """Waits for the device. Raises ValueError in all processes where the training has to stop."""
        self.skipped["total"] = int(self.total)
        self.skipped["in_a_row"] = {part: int(watch.in_a_row) for part, watch in self.watched.items()}
        step = int(self.stop_at)
        if step == NEVER:
            return
        bad = f"the loss or its gradient is not finite at step {step}"
        if self.patience > 1:
            bad += f" and was not in the {self.patience - 1} updates before"
        raise ValueError(f"{bad}: training stopped before the weights changed; met in {self._clips()}; {CURE}")

    def news(self) -> str | None:
        """What to tell about updates left out since this was asked last, after a `check`. All processes must call."""
        count = self.skipped["total"] - self.told
        self.told = self.skipped["total"]
        if not count:
            return None
        return (
            f"warning: {count} update(s) left out because the loss or its gradient is not finite "
            f"({self.told} in this run), the last one at step {int(self.last_step)}, met in {self._clips()}"
        )

    def _clips(self) -> str:
        """The clips of the micro-batches with the bad losses; if no loss was bad, all clips of the step."""
        step, batch = int(self.last_step), int(self.last_batch)
        found = gather_object([self.names(step, batch) if batch >= 0 else None])
        if not any(found):
            found = gather_object([self.names(step, None)])
        if self.num_processes == 1:
            return clip_names.in_words(found[0])
        parts = [f"process {rank}: {clip_names.in_words(names)}" for rank, names in enumerate(found) if names]
        return "; ".join(parts)
