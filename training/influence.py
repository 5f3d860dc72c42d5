"""Intervals of Fréchet distances over clips, from what each clip contributes to the distance.

Measuring resampled clips again would be no interval: a resample holds 63 % of the clips, some of them several times,
and both distances grow as samples shrink, so that every resampled value lies above the value itself. It would also
decompose a 2048 × 2048 matrix two thousand times. The distance is a smooth function of the clips' weights, so its
derivatives say how far it moves with every clip (its influence: Hampel, 1974), and what is resampled is their sum: a
bootstrap to first order, around the value itself (the infinitesimal jackknife of Efron, 1981, with percentiles).

The interval is one of the value *at this number of clips*; the bias that comes with the number is in the value still.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from training.intervals import bootstrap
from training.metrics import ClipValues

MAX_KEPT = 1024  # clips whose features are kept: 84 MB for each set of 10 frames and 2048 features
CLIPS_AT_ONCE = 64


class Gaussian(NamedTuple):
    """A normal law by its mean (D,) and a root R (D, rank) of its covariance R·Rᵀ."""

    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor) -> "Gaussian":
        values, vectors = torch.linalg.eigh(covariance)
        # With fewer samples than features most eigenvalues are zero, and what rounding leaves of them is no direction.
        kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        return cls(mean, vectors[:, kept] * values[kept].sqrt())


class Slope(NamedTuple):
    """How the distance of two normal laws changes with one more feature vector in the first of them."""

    mean: Tensor  # (D,) of the first
    shift: Tensor  # (D,)
    transport: Tensor  # (D, rank): P with P·Pᵀ = Σb^½ (Σb^½ Σa Σb^½)^-½ Σb^½, the optimal map from a to b
    count: float  # vectors that the first was made of

    def of_clips(self, features: Tensor) -> Tensor:
        """(B, vectors of a clip, D) -> (B,): the derivatives by the clips' weights, but for a constant."""
        around = features.to(self.mean.device).double() - self.mean
        spread = around.square().sum(-1) - (around @ self.transport).square().sum(-1)
        return ((around @ self.shift) / self.count + spread / (self.count - 1)).sum(1)


def slopes(a: Gaussian, b: Gaussian, count_a: float, count_b: float) -> tuple[Slope, Slope]:
    """The slopes of ‖μa − μb‖² + Tr(Σa + Σb − 2(Σa·Σb)^½) in the vectors behind a and behind b.

    With Σa = A·Aᵀ, Σb = B·Bᵀ and Aᵀ·B = U·s·Vᵀ the map from a to b is B·V·s^-1·Vᵀ·Bᵀ.
    """
    u, s, vh = torch.linalg.svd(a.root.T @ b.root, full_matrices=False)
    kept = s > s.max() * max(a.root.shape) * torch.finfo(s.dtype).eps if s.numel() else s > 0
    root = s[kept].rsqrt()
    to_b, to_a = b.root @ vh[kept].T * root, a.root @ u[:, kept] * root
    shift = 2 * (a.mean - b.mean)
    return Slope(a.mean, shift, to_b, count_a), Slope(b.mean, -shift, to_a, count_b)


class ClipFeatures:
    """Features of single clips, of at most `MAX_KEPT` of them: every one, every second, every fourth …

    Which ones are kept follows from the clips' numbers alone, whatever the batches and the processes.
    """

    def __init__(self):
        self._parts: list[tuple[int, Tensor]] = []  # clip number, (vectors of a clip, D) float32 on the CPU
        self.last = -1  # the largest clip number so far

    @property
    def stride(self) -> int:
        stride = 1
        while (self.last + stride) // stride > MAX_KEPT:
            stride *= 2
        return stride

    def add(self, numbers: Sequence[int], features: Tensor) -> None:
        """features: (B, vectors of a clip, D)."""
        before, self.last = self.stride, max(self.last, *numbers)
        if self.stride != before:
            self._parts = [(number, part) for number, part in self._parts if number % self.stride == 0]
        rows = [row for row, number in enumerate(numbers) if number % self.stride == 0]
        kept = features[rows].float().cpu()
        self._parts += [(numbers[row], part) for row, part in zip(rows, kept, strict=True)]

    def agree(self) -> None:
        """Keep what the stride over all processes keeps."""
        self.last = max(gather_object([self.last]))
        self._parts = [(number, part) for number, part in self._parts if number % self.stride == 0]

    def influences(self, slope: Slope) -> Iterable[tuple[list[int], Tensor]]:
        for start in range(0, len(self._parts), CLIPS_AT_ONCE):
            numbers, features = zip(*self._parts[start : start + CLIPS_AT_ONCE], strict=True)
            yield list(numbers), slope.of_clips(torch.stack(features))


def interval(value: float, influences: Sequence[ClipValues], num_clips: int) -> list[float] | None:
    """[low, high], 95 %, of a distance over clips; None below two clips. influences: of the same clips, one per set.

    Where those of some clips alone are known, they stand for all `num_clips`.
    """
    numbers = influences[0].numbers
    if len(numbers) < 2:
        return None
    total = sum(part.of(numbers) for part in influences)
    low, high = bootstrap(total - total.mean())
    scale = np.sqrt(len(numbers) * num_clips)
    return [max(0.0, float(value + scale * low)), float(value + scale * high)]
