"""A function of fixed buffers as a recorded CUDA graph: all its kernels are launched at once, without Python.

At batch 1 a GPU is done with a kernel before the host has launched the next one, so that a session waits for the host.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

WARM_UP = 2  # calls before a recording: libraries choose kernels in the first one, and the compiler compiles
BACKEND = "inductor"
MOST_VERSIONS = 64  # of a compiled block: for each batch, number of frames and kind of stack


Function = Callable[[], None]


class Recorder(Protocol):
    """Turns a function into one that does the same again to the same buffers.

    The function asks the device for nothing, and all that it changes or that changes between its calls is in `buffers`.
    It is called while it is recorded, and leaves anything in the buffers.
    """

    def __call__(self, function: Function, buffers: list[Tensor]) -> Function: ...


class CudaRecorder:
    """Records CUDA graphs, which share the memory of their intermediates: they are replayed one after the other."""

    def __init__(self, device: torch.device):
        self.device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Function, buffers: list[Tensor]) -> Function:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            # On the stream of the recording: a library's workspace belongs to a stream, and must not lie in the pool.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP):
                    function()
            torch.cuda.current_stream().wait_stream(self._stream)
            # Other threads may load worlds meanwhile.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                function()
        return graph.replay


def choose(choice: str, device: torch.device, key: str) -> str | None:
    """What the setting `key` means on a device: None for no graphs, "plain" or "compiled".

    choice: "auto" (plain on a GPU, none elsewhere), "true" (plain), "compiled" or "false". Raises ValueError where the
    device records no graphs.
    """
    if choice == "false" or (choice == "auto" and device.type != "cuda"):
        return None
    if device.type != "cuda":
        raise ValueError(f"{key} is {choice}, but graphs are recorded on a GPU, and this is a {device.type}; set auto")
    return "compiled" if choice == "compiled" else "plain"


@contextmanager
def compiled(blocks: list[nn.Module]) -> Iterator[None]:
    """Inside, `extend` of these blocks is compiled, which fuses what is between their matrix products."""
    torch._dynamo.config.recompile_limit = max(MOST_VERSIONS, torch._dynamo.config.recompile_limit)
    for block in blocks:
        block.extend = torch.compile(block.extend, backend=BACKEND, fullgraph=True, dynamic=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.extend


class WithWeights(nn.Module):
    """Calls functions of a module while some of its weights are replaced."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, function: Function) -> None:
        function()

    def call(self, function: Function, weights: dict[str, Tensor]) -> None:
        """weights: by their names in the module."""
        functional_call(self, {f"module.{name}": weight for name, weight in weights.items()}, (function,))


def narrowed(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of all linear layers in the type in which autocast multiplies, so that no pass casts them again."""
    layers = ((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear))
    return {f"{name}.weight": layer.weight.detach().to(dtype) for name, layer in layers}
