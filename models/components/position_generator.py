"""The position generator (PEG, Chu et al., 2021): where a token stands, from what is around it."""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.components.cache import TAPS, Ring, Slots
from models.components.recompute import is_eager, product_dtype


class PositionGenerator(nn.Module):
    """Depthwise 3×3×3 convolution, added to its input: causal in time, symmetric in space."""

    def __init__(self, dim: int):
        super().__init__()
        self.dsconv = nn.Conv3d(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, h, w, D) -> the same shape; frame t reads frames t-2..t. Keeps x for the backward pass."""
        apply = _AddPositions.apply if is_eager() else _add_positions
        return apply(x, self.dsconv.weight, self.dsconv.bias)

    def extend(self, x: Tensor, past: Ring, slots: Slots) -> Tensor:
        """`forward` for the frames x (B, n, h, w, D) alone, which go to `slots`; those before them are in `past`."""
        weight, bias = self.dsconv.weight, self.dsconv.bias
        # Written before all is read: the compiler would copy a ring that changes after it was read.
        past.write(slots.convolved, x)
        frames = past.read(slots.read)
        if not is_eager():
            return x + _shifted(frames, weight, bias)
        out = x.clone(memory_format=torch.contiguous_format)
        for delay in range(TAPS + 1):
            delayed = frames[:, TAPS - delay : frames.shape[1] - delay]
            tap = F.conv2d(
                _images(delayed), weight[:, :, TAPS - delay], None if delay else bias, padding=1, groups=len(weight)
            )
            out += _clips(tap, x.shape)
        return out


def _add_positions(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # Three 2-D convolutions, one per time tap: on a CPU they are five times as fast as the 3-D one.
    out = x.clone(memory_format=torch.contiguous_format)
    for delay in range(min(3, x.shape[1])):
        tap = F.conv2d(_images(x), weight[:, :, 2 - delay], None if delay else bias, padding=1, groups=len(weight))
        out[:, delay:] += _clips(tap, x.shape)[:, : x.shape[1] - delay]
    return out


def _shifted(frames: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution of all but the first TAPS frames, as sums of shifted pictures.

    The compiler makes one kernel of them. Of few frames each call of a library's convolution costs more than its work.
    """
    h, w = frames.shape[2:4]
    padded, count = F.pad(frames, (0, 0, 1, 1, 1, 1)), frames.shape[1] - TAPS
    out = bias
    for tap, dy, dx in product(range(TAPS + 1), range(3), range(3)):
        out = out + padded[:, tap : tap + count, dy : dy + h, dx : dx + w] * weight[:, 0, tap, dy, dx]
    return out


class _AddPositions(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _add_positions(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        of_x = grad.clone(memory_format=torch.contiguous_format)
        of_weight, of_bias, dtype = torch.zeros_like(weight), None, product_dtype(x)
        images, grad = _images(x).to(dtype), grad.to(dtype)
        for delay in range(min(3, x.shape[1])):
            of_tap = grad if delay == 0 else F.pad(grad[:, delay:], (0, 0, 0, 0, 0, 0, 0, delay))
            of_images, of_kernel, of_shift = torch.ops.aten.convolution_backward(
                _images(of_tap), images, weight[:, :, 2 - delay].to(dtype), [len(weight)], [1, 1], [1, 1], [1, 1],
                False, [0, 0], len(weight), [True, True, delay == 0],
            )  # fmt: skip
            of_x += _clips(of_images, x.shape)
            of_weight[:, :, 2 - delay] = of_kernel
            of_bias = of_shift if delay == 0 else of_bias
        return of_x, of_weight, of_bias.to(weight.dtype)


def _images(x: Tensor) -> Tensor:
    """(B, T, h, w, D) -> (B·T, D, h, w), channels last in memory."""
    return x.flatten(0, 1).permute(0, 3, 1, 2)


def _clips(images: Tensor, shape: torch.Size) -> Tensor:
    return images.permute(0, 2, 3, 1).reshape(shape)
