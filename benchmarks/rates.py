"""How fast a device is at the two things that a training step is made of: matrix products and moving bytes."""

import time
from collections.abc import Callable

import torch
from torch import nn

from training.flops import peak_of

GIB = 2**30
REPEATS = 10
CALLS_ON_GPU = 5  # between two events: one call may be shorter than what launching it takes
COPIED_BYTES = {"cpu": GIB // 4, "cuda": 2 * GIB}
SQUARE = 8192


class Clock:
    """Marks between pieces of work, in the order of the device's queue; setting one never waits for a GPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks = []

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From each mark to the next one. Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1000 for a, b in zip(self.marks, self.marks[1:], strict=False)]
        return [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]


def timed(work: Callable[[], object], device: torch.device) -> tuple[object, float]:
    """What a call returns, and the seconds that it takes on the device."""
    clock = Clock(device)
    clock.mark()
    result = work()
    clock.mark()
    return result, clock.seconds()[0]


def best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, the best of `REPEATS` after one that warms up."""
    calls = CALLS_ON_GPU if device.type == "cuda" else 1
    clock = Clock(device)
    for _ in range(1 + REPEATS):
        clock.mark()
        for _ in range(calls):
            work()
    clock.mark()
    return min(clock.seconds()[1:]) / calls


def matmul_rate(layer: nn.Linear, tokens: int, device: torch.device) -> float:
    """FLOP/s in products of a layer's shape with so many tokens, in the type that training multiplies in."""
    return _products(tokens, layer.in_features, layer.out_features, device)


def square_rate(device: torch.device) -> float:
    """FLOP/s of a GPU in large square products, about the best that it reaches at all."""
    return _products(SQUARE, SQUARE, SQUARE, device)


def _products(rows: int, inner: int, columns: int, device: torch.device) -> float:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.randn(rows, inner, device=device, dtype=dtype)
    weight = torch.randn(columns, inner, device=device, dtype=dtype)
    return 2 * rows * inner * columns / best_seconds(lambda: x @ weight.T, device)


def copy_rate(device: torch.device) -> float:
    """Bytes per second, read and written ones, of copying a tensor that no cache holds."""
    source = torch.ones(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / best_seconds(lambda: target.copy_(source), device)


def data_sheet_rate(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s that the vendor states for a GPU; None for a CPU or a GPU that is not listed."""
    if device.type != "cuda":
        return None
    teraflops = peak_of(torch.cuda.get_device_name(device), "bf16")
    return None if teraflops is None else 1e12 * teraflops
