"""A moving average of the weights: smoother than the last step's, used for validation and by everything that loads."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from training import sharding


class MovingAverage:
    """Exponential moving average of parameters; `decay` is reached gradually, so that a short run is not its start.

    After update n (from 0): average += (1 - min(decay, (1 + n) / (10 + n))) · (weights - average).
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float):
        self.parameters = parameters
        self.decay = decay
        self.average = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.set_aside: dict[str, Tensor] | None = None  # the weights, while the parameters hold the average

    @torch.no_grad()
    def update(self, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), weight)

    def load(self, average: dict[str, Tensor]) -> None:
        copy_into(self.average, average)

    @contextmanager
    def in_place(self, lock: AbstractContextManager | None = None) -> Iterator[None]:
        """Inside, the module's parameters hold the average; afterwards the weights are what they were.

        lock: held while the two change places, so that another thread which has it finds all weights in one of them.
        """
        lock = lock or nullcontext()
        with lock:
            self.set_aside = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
            copy_into(self.parameters, self.average)
        try:
            yield
        finally:
            with lock:
                copy_into(self.parameters, self.set_aside)
                self.set_aside = None


@torch.no_grad()
def copy_into(targets: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copy by name, over devices; the targets stay the same tensors."""
    for name, target in targets.items():
        target.copy_(sharding.like(target, values[name]))
