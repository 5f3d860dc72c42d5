"""Several training processes acting as one: decisions taken alike, losses looked at before they do harm, signals."""

import signal
import threading
import time
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

IMPATIENCE_SECONDS = 2.0  # launchers pass Ctrl-C on, so that one press can arrive twice


class Agreement:
    """Numbers on which all processes must decide alike, exchanged between the hosts so that no GPU is waited for."""

    def __init__(self, accelerator: Accelerator):
        self.group = dist.new_group(backend="gloo") if accelerator.num_processes > 1 else None

    def largest(self, *values: float) -> list[float]:
        """The maximum of each value over all processes."""
        if self.group is None:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self.group)
        return numbers.tolist()


class FiniteGuard:
    """Keeps a loss or gradient that is not finite away from the weights, and stops all processes.

    On a CPU every step is looked at. On a GPU looking would empty its queue: the fused optimizer is told on the device
    (`found_inf`) to leave the weights alone from the first bad step on, and `check` looks when the host waits anyway.
    """

    def __init__(self, accelerator: Accelerator, agreement: Agreement):
        self.agreement = agreement
        self.waits = accelerator.device.type == "cpu"
        self.scales = accelerator.scaler is not None  # fp16: infinite gradients are its daily bread, and it skips them
        self.first_bad = torch.full((), torch.inf, dtype=torch.float64, device=accelerator.device)

    def before_update(self, step: int, loss: Tensor, grad_norm: Tensor, optimizer: Optimizer) -> None:
        """Called after clipping. Raises ValueError, or sees to it that the update does nothing."""
        finite = torch.isfinite(loss) if self.scales else torch.isfinite(loss) & torch.isfinite(grad_norm)
        now = torch.where(finite, torch.inf, float(step))
        self.first_bad = torch.minimum(self.first_bad, now)
        if self.scales:
            return
        inner = getattr(optimizer, "optimizer", optimizer)
        if self.waits or not getattr(inner, "_step_supports_amp_scaling", False):
            self.check()
        else:
            inner.found_inf = torch.isfinite(self.first_bad).float()

    def check(self) -> None:
        """Waits for the device. Raises ValueError in all processes if any of them met a bad step."""
        (not_bad,) = self.agreement.largest(-self.first_bad.item())
        if not_bad != -torch.inf:
            raise ValueError(
                f"the loss or its gradient is not finite at step {-int(not_bad)}: training stopped before the weights "
                "changed; resume from the last checkpoint with a lower optimizer.lr or optimizer.max_grad_norm"
            )


class Interrupts(AbstractContextManager):
    """Turns Ctrl-C, SIGTERM and SIGUSR1 into a request that the loop reads between steps.

    A second Ctrl-C quits at once. SIGUSR1 is what clusters send some minutes before they take a machine away.
    """

    def __init__(self):
        self.received = 0  # signal number
        self._at = 0.0
        self._before = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        if self.received and number == signal.SIGINT and time.monotonic() - self._at > IMPATIENCE_SECONDS:
            raise KeyboardInterrupt
        self.received = self.received or number
        self._at = self._at or time.monotonic()
