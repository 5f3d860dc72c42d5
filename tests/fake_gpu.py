"""A GPU that only keeps account: tensors on it have sizes, types and a place, but no values.

With torch's own fake tensors, code runs on `cuda` where there is none, and what would be wrong there shows: operands in
different places, and a host that asks for a value, which on a GPU means waiting until its queue is empty. Gradients
cannot be computed on it.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ROOT = Path(__file__).resolve().parents[1]
# What asking a fake tensor for a value, or for a number of values that depends on them, raises.
HostWaits = (DataDependentOutputException, DynamicOutputShapeException)
DEVICE = torch.device("cuda")


class Crossings(TorchDispatchMode):
    """Lists the places of our code where numbers cross between host and GPU: the host waits for that, too."""

    def __init__(self):
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        devices = {each.device.type for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)}
        sizes = [each.dim() for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor) and not each.is_cuda]
        # A number without dimensions goes along with the launch of an operation; one that is copied does not.
        if len(devices) > 1 and (any(sizes) or function is torch.ops.aten._to_copy.default or not sizes):
            self.places.append(_place())
        return result


def _place() -> str:
    for frame in reversed(traceback.extract_stack()):
        fpath = Path(frame.filename)
        if any(fpath.is_relative_to(ROOT / part) for part in ("models", "training", "data", "play")):
            return f"{fpath.relative_to(ROOT)}:{frame.lineno}"
    return "a test"


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Everything made inside is fake. Autocast on `cuda` works: torch asks once whether there is such a device."""
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch("torch.cuda.is_bf16_supported", lambda *arguments, **options: True),
        FakeTensorMode(allow_non_fake_inputs=True),  # constants that were made before
    ):
        yield


def to_gpu(content: Any) -> Any:
    """Modules, which are changed in place, and tensors, in whatever tuples and dicts, on the fake GPU."""
    content = tree_map_only(Tensor, lambda tensor: tensor.to(DEVICE), content)
    return tree_map_only(nn.Module, _move, content)


def _move(module: nn.Module) -> nn.Module:
    """Parameter by parameter: `Module.to` exchanges tensors' insides, which fake ones do not allow."""
    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) not in moved:
                moved[id(parameter)] = nn.Parameter(parameter.detach().to(DEVICE), parameter.requires_grad)
            part._parameters[name] = None if parameter is None else moved[id(parameter)]
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(DEVICE)
    return module


def crossings(make: Callable[[], tuple], run: Callable[..., Any], *, times: int = 1) -> list[str]:
    """Where numbers cross while `run` works on what `make` gives, moved to the fake GPU; raises one of `HostWaits`.

    times: how often it works on that; the last time counts, since what is computed once and kept costs nothing then.
    """
    with fake_gpu():
        made = to_gpu(make())
        with torch.autocast("cuda", torch.bfloat16):
            for _ in range(times):
                with Crossings() as seen:
                    run(*made)
    return seen.places
