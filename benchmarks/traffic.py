"""How many bytes a piece of work moves between the device and its memory, estimated from the operations that run."""

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.kinds import ATTENTION, CONVOLUTION, MATRICES, OPTIMIZER, kind_of

# What compiled code still has to move: all else can be fused into these.
UNAVOIDABLE = (MATRICES, ATTENTION, CONVOLUTION, OPTIMIZER)
# Hand out memory, or the same memory under another shape, and touch none of it.
UNTOUCHED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh")
OVERWRITING = ("copy_", "fill_", "zero_", "uniform_", "normal_")  # write their target without reading it


class Traffic(TorchDispatchMode):
    """Counts bytes by kind of operation while it is entered: `with Traffic() as traffic: …`, then `traffic.bytes`.

    Every operation is taken to read each input from memory and to write each output to it, once: what eager kernels
    do with tensors that are larger than the cache. Views are free, repeated (expanded) elements count once.
    """

    def __init__(self):
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        if not func.is_view and name not in UNTOUCHED:
            self.bytes[kind_of(name)] += _moved(func._schema, name, args, kwargs, out)
        return out

    @property
    def unavoidable(self) -> int:
        return sum(self.bytes[kind] for kind in UNAVOIDABLE)


def _moved(schema, name: str, args: tuple, kwargs: dict, out: object) -> int:
    total = 0
    for position, argument in enumerate(schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        size = sum(map(_size, _tensors(value)))
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        is_read = not is_written or not (argument.is_out or (name in OVERWRITING and position == 0))
        total += size * (is_read + is_written)
    outputs = out if isinstance(out, tuple) and len(schema.returns) > 1 else (out,)
    for value, returned in zip(outputs, schema.returns, strict=False):
        if returned.alias_info is None:  # else one of the arguments, counted above
            total += sum(map(_size, _tensors(value)))
    return total


def _size(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
