"""How much arithmetic a training step needs, how fast the device could do it, and so which share of that it reaches.

Model FLOPs utilisation (MFU; Chowdhery et al., "PaLM", 2022, appendix B): the FLOPs that a step must spend, whatever
is repeated besides (gradient checkpointing), over its time and the device's rate of matrix products.
"""

import functools
import re
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from data.clips import Clip, ClipDataset
from training.checkpoint import random_state, restore_random_state

PASSES = 3  # forward, and backward with two products per weight
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MEASURED_SECONDS = 0.1


class Peaks(NamedTuple):
    """Dense matrix products of a GPU with sums in fp32, TFLOP/s; None where it has no units for them."""

    bf16: float | None
    fp16: float | None
    tf32: float | None
    fp32: float


# By the name that CUDA gives the whole GPU; the first that fits counts, and a slice of a GPU (MIG) fits none. From
# NVIDIA's data sheets, halved where they take half of the weights for zeros; for GeForce from the white papers on
# GA102 and AD102.
PEAKS = {
    r"Tesla V100-SXM[23]-\d+GB": Peaks(None, 125.0, None, 15.7),
    r"Tesla V100-PCIE-\d+GB": Peaks(None, 112.0, None, 14.0),
    r"NVIDIA A100[-\w ]*": Peaks(312.0, 312.0, 156.0, 19.5),
    r"NVIDIA A10": Peaks(125.0, 125.0, 62.5, 31.2),
    r"NVIDIA A40": Peaks(149.7, 149.7, 74.8, 37.4),
    r"NVIDIA H100 PCIe": Peaks(756.0, 756.0, 378.0, 51.0),
    r"NVIDIA H[12]00 NVL": Peaks(835.0, 835.0, 417.5, 60.0),
    r"NVIDIA H100 80GB HBM3": Peaks(989.4, 989.4, 494.7, 67.0),
    r"NVIDIA H200": Peaks(989.4, 989.4, 494.7, 67.0),
    r"NVIDIA L4": Peaks(121.0, 121.0, 60.0, 30.3),
    r"NVIDIA L40S": Peaks(362.0, 362.0, 183.0, 91.6),
    r"NVIDIA GeForce RTX 3090": Peaks(71.0, 71.0, 35.6, 35.6),
    r"NVIDIA GeForce RTX 4090": Peaks(165.2, 165.2, 82.6, 82.6),
}


class Rate(NamedTuple):
    """What matrix products could reach at most."""

    flops: float  # per second
    source: str  # in words: a data sheet, or a measurement


# ------------------------------------------------------------------------------------------------------- what is needed


def of_a_clip(model: nn.Module, dataset: ClipDataset, accelerator: Accelerator) -> int:
    """FLOPs that training spends on a clip of the dataset, counted on one; the model must not be wrapped yet.

    What the clips of a batch share, such as a table of positions, counts with each: below one in a thousand.
    """
    clip = dataset.batch(np.zeros(1, np.int64), np.zeros(1, np.int64)).to(accelerator.device)
    with accelerator.autocast():
        return needed(model, clip)


@torch.no_grad()
def needed(model: nn.Module, clip: Clip, step: int = 0) -> int:
    """FLOPs of the forward pass, and twice as many for the gradients of what is trained.

    Runs the forward pass in eval mode; the model and all random states are afterwards what they were. A world's
    tokenizer is frozen: it costs its forward pass, or nothing where the clip brings its tokens.
    """
    before, was_training = random_state(), model.training
    model.eval()
    total, frozen = count(lambda: model(clip, step)), 0
    if hasattr(model, "rollout") and clip.tokens is None:
        frozen = count(lambda: model.tokenizer.encode(clip.frames))
    model.train(was_training)
    restore_random_state(before)
    return PASSES * (total - frozen) + frozen


def count(work: Callable) -> int:
    """FLOPs of the matrix products and attentions in a piece of work."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # the counter does not know this one
    with FlopCounterMode(display=False, custom_mapping={fused: _attention}) as counter:
        work()
    return counter.get_total_flops()


def _attention(q_shape, k_shape, v_shape, *_, **__) -> int:
    return sdpa_flop_count(q_shape, k_shape, v_shape)


# ----------------------------------------------------------------------------------------------------- what is possible


def joint_rate(accelerator: Accelerator) -> Rate:
    """What the devices of all processes reach together. All must call this at about the same time."""
    accelerator.wait_for_everyone()  # processes that share a machine's cores share its rate
    own = device_rate(accelerator.device, _precision(accelerator))
    return Rate(sum(gather_object([own.flops])), own.source)


def _precision(accelerator: Accelerator) -> str:
    if accelerator.mixed_precision in DTYPES:
        return accelerator.mixed_precision
    has_tf32 = accelerator.device.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if has_tf32 else "fp32"


@functools.lru_cache
def device_rate(device: torch.device, precision: str) -> Rate:
    """precision: bf16, fp16, tf32 or fp32. From a data sheet where the GPU is in `PEAKS`, else measured."""
    if device.type == "cuda":
        peak = peak_of(torch.cuda.get_device_name(device), precision)
        if peak is not None:
            return Rate(peak * 1e12, f"the data sheet's {precision} rate")
    return Rate(measured(device, DTYPES.get(precision, torch.float32)), f"measured {precision} matrix products")


def peak_of(device_name: str, precision: str) -> float | None:
    """TFLOP/s of a known GPU; None where it or its way to compute in this precision is not known."""
    known = [peaks for pattern, peaks in PEAKS.items() if re.fullmatch(pattern, device_name)]
    return getattr(known[0], precision) if known else None


def measured(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s in products of square matrices, the best of some tenths of a second; draws from no shared random state."""
    # Small ones as well: one of a few milliseconds is seldom interrupted where others use the same cores.
    sizes = (4096,) if device.type == "cuda" else (512, 1024)
    return max(_best_rate(size, device, dtype) for size in sizes)


def _best_rate(size: int, device: torch.device, dtype: torch.dtype) -> float:
    generator = torch.Generator(device).manual_seed(0)  # numbers, not zeros: GPUs are faster on those
    x = torch.randn(size, size, generator=generator, device=device).to(dtype)
    seconds = []
    while len(seconds) < 3 or sum(seconds) < MEASURED_SECONDS:
        seconds.append(_seconds_of(lambda: x @ x, device))
    return 2 * size**3 / min(seconds)


def _seconds_of(work: Callable, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def in_words(flops: float) -> str:
    """2.24 TFLOP, 310 GFLOP, 0.06 MFLOP: three digits."""
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops / 1e6:.3g} MFLOP"
