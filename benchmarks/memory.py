"""How much memory a piece of work takes: the peak as the system or the GPU saw it, and what autograd keeps."""

import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # man 5 proc: the peak resident size is set to the current one


def reset_peak(device: torch.device) -> None:
    """Begin a new peak. Without Linux's /proc the old one stands, and `peak` gives the largest so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR.exists():
        CLEAR.write_text(RESET_PEAK)


def peak(device: torch.device) -> int:
    """Bytes: what the GPU's allocator held at most, on a CPU the whole process with its libraries (0.5 GiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def kept_for_backward(work: Callable[[], Tensor], model: nn.Module) -> Counter:
    """Bytes that autograd keeps of `work`, by the shape under which a storage was kept first; weights do not count.

    Exact and the same on every machine, unlike the process's size.
    """
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept, held = Counter(), []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            storages.add(storage.data_ptr())
            held.append(tensor)  # alive, so that no other storage gets its address
            kept[f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    del result
    return kept


def tensor_bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
