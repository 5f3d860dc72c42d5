"""What is trained and on which loss: the trainer runs an objective over parts and knows no kinds of models."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from training.schedules import Schedule


class Part(NamedTuple):
    """One module with the optimizer that trains it and the schedule of its learning rate."""

    module: nn.Module
    optimizer: Optimizer
    schedule: Schedule


# Yields a part's name and its StepOutput. The trainer updates that part before it asks for the next, so that a
# discriminator can be scored after its generator moved.
Objective = Callable[[dict[str, Part], Any, int], Iterator[tuple[str, Any]]]

MODEL = "model"


def one_loss(parts: dict[str, Part], clip: Any, step: int) -> Iterator[tuple[str, Any]]:
    """The default objective: a single module that returns its own loss."""
    yield MODEL, parts[MODEL].module(clip, step)
