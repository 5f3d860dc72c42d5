"""A model's training pass holds nothing for which the host would wait for a GPU, seen on a CPU by its operations.

`tests/training/test_gpu.py` asks CUDA itself, where there is one.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models import builders
from tests.models.builders import QUANTIZERS, WORLDS, clip

aten = torch.ops.aten
WAITING = {  # the size of the result, or a number for the host, depends on values
    aten._local_scalar_dense.default,
    aten.bincount.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
    aten.lift_fresh.default,  # a tensor made of Python numbers is copied to the device
    aten.scalar_tensor.default,  # and so are those of torch.where
}


def waits(function, args, waiting=frozenset(WAITING)) -> bool:
    """Whether the host would wait for the result of an operation."""
    indices = args[1] if function in (aten.index.Tensor, aten.index_put_.default) else []
    by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
    return function in waiting or by_mask


class Watch(TorchDispatchMode):
    def __init__(self, waiting: set):
        super().__init__()
        self.waiting = waiting
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if waits(function, args, self.waiting):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def waits_of(model: torch.nn.Module) -> list[str]:
    model.train()
    batch = clip()
    with Watch(WAITING) as forward:
        loss = model(batch, 0).loss
    # Autograd's own formulas make their numbers on the gradient's device.
    with Watch(WAITING - {aten.scalar_tensor.default}) as rest:
        loss.backward()
        for module in model.modules():
            if hasattr(module, "end_step"):
                module.end_step()
    return forward.found + rest.found


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_tokenizers_step_never_waits(quantizer):
    assert waits_of(builders.tokenizer(quantizer)) == []


@pytest.mark.parametrize("name", WORLDS)
def test_a_worlds_step_never_waits(name, monkeypatch):
    # On a CPU, and only there, `one_hot` looks whether its input is in range.
    monkeypatch.setattr(F, "one_hot", lambda indices, size: (indices[..., None] == torch.arange(size)).long())
    assert waits_of(builders.world(name)) == []


@pytest.mark.parametrize(
    "does_wait",
    [
        lambda x: x[x > 0],
        lambda x: torch.bincount(x.long()),
        lambda x: x.sum().item(),
        lambda x: x + torch.tensor([1.0]),
        lambda x: torch.where(x > 0, 1.0, 0.0),
        lambda x: x.masked_select(x > 0),
    ],
)
def test_what_waits_is_seen(does_wait):
    with Watch(WAITING) as watch:
        does_wait(torch.ones(3))
    assert watch.found
