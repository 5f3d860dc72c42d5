"""Metrics of single predicted frames against true ones: PSNR and SSIM (`training/perceptual.py` has LPIPS).

Every metric has `update` and `compute`. Between them it keeps values of single clips, and `gather` brings those of all
processes together: averages come last, so that any number of processes gives the same result. Frames are
(B, T, C, H, W) float in [0, 1]; predictions are clamped to that range and compared in fp32.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from training.intervals import by_horizon, mean_and_interval

MSE_FLOOR = 1e-10  # 100 dB: the PSNR of equal frames would be infinite
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # (k · range)²
FRAMES_IN_CACHE = 8


class ClipValues:
    """Numbers of a metric for every clip, found by the clip's number in the evaluation set."""

    def __init__(self):
        self._rows: dict[int, np.ndarray] = {}

    def add(self, numbers: Iterable[int], values: Tensor) -> None:
        """values: (B, …), one row for each clip number. A clip that comes twice counts once."""
        self._rows.update(zip(numbers, values.detach().cpu().double().numpy(), strict=True))

    def gather(self) -> None:
        """Bring together the clips of all processes, in all of them."""
        self._rows = dict(gather_object(list(self._rows.items())))

    @property
    def numbers(self) -> list[int]:
        return sorted(self._rows)

    @property
    def values(self) -> np.ndarray:
        """(N, …) float64 in the order of the clip numbers."""
        return self.of(self.numbers)

    def of(self, numbers: Iterable[int]) -> np.ndarray:
        """(N, …), the clips of these numbers."""
        rows = [self._rows[number] for number in numbers]
        return np.stack(rows) if rows else np.empty((0, 0))

    def compute(self) -> dict:
        """{"mean", "ci95": [low, high]} over clips, after the mean over whatever a clip has several of."""
        values = self.values
        return mean_and_interval(values.reshape(len(values), -1).mean(axis=1) if values.size else values)


class FrameMetric(ClipValues, ABC):
    """A metric of single frames; a subclass gives `score`."""

    @abstractmethod
    def score(self, predicted: Tensor, target: Tensor) -> Tensor:
        """(N, C, H, W) twice, fp32 in [0, 1] -> (N,)."""

    def update(self, predicted: Tensor, target: Tensor, numbers: Iterable[int]) -> Tensor:
        """Compare (B, T, C, H, W) frames of the clips with these numbers. Returns the values, (B, T)."""
        assert predicted.shape == target.shape, (predicted.shape, target.shape)
        predicted, target = (frames.float().clamp(0, 1).flatten(0, 1) for frames in (predicted, target))
        values = self.score(predicted, target).unflatten(0, (len(list(numbers)), -1))
        self.add(numbers, values)
        return values

    def compute(self) -> dict:
        """Adds "by_horizon": [T], "by_horizon_ci95": [[low, high] × T], horizons being the frames of a clip."""
        values = self.values
        if not values.size:
            return {"mean": None, "ci95": None, "by_horizon": None, "by_horizon_ci95": None}
        return super().compute() | {
            "by_horizon": values.mean(axis=0).tolist(),
            "by_horizon_ci95": by_horizon(values),
        }


class PSNR(FrameMetric):
    """10·log10(1 / MSE over C, H, W) of each frame, in dB; mean over frames, then clips."""

    def score(self, predicted: Tensor, target: Tensor) -> Tensor:
        return psnr(predicted, target)

    @property
    def num_floored(self) -> int:
        """Frames that are equal to the truth and count as 100 dB."""
        return int((self.values >= -10 * np.log10(MSE_FLOOR) - 1e-4).sum())


class SSIM(FrameMetric):
    """Structural similarity (Wang et al., 2004): Gaussian window 11×11, σ 1.5, k1 0.01, k2 0.03, mean over channels."""

    def score(self, predicted: Tensor, target: Tensor) -> Tensor:
        return ssim(predicted, target)


def psnr(predicted: Tensor, target: Tensor) -> Tensor:
    """PSNR in dB of frames (…, C, H, W) in [0, 1] -> (…), at most 100."""
    error = (predicted.float().clamp(0, 1) - target.float()).square().mean(dim=(-3, -2, -1))
    return -10 * torch.log10(error.clamp(min=MSE_FLOOR))


def ssim(predicted: Tensor, target: Tensor) -> Tensor:
    """SSIM of frames (N, C, H, W) in [0, 1] -> (N,). The range of values is 1, not that of the batch.

    The values of torchmetrics in a quarter of its time on a CPU: the blur is a product with two small matrices, and
    few frames at once stay in the cache.
    """
    if target.device.type == "cpu" and len(target) > FRAMES_IN_CACHE:
        parts = zip(predicted.split(FRAMES_IN_CACHE), target.split(FRAMES_IN_CACHE), strict=True)
        return torch.cat([ssim(*part) for part in parts])
    # float64, which Apple's GPUs lack: variances are small differences, and matrix products may be rounded to TF32.
    precise = torch.float32 if target.device.type == "mps" else torch.float64
    x, y = predicted.to(precise), target.to(precise)
    rows, columns = (blur_matrix(size).to(x) for size in x.shape[-2:])
    mean_x, mean_y, xx, yy, xy = (rows @ part @ columns.T for part in (x, y, x * x, y * y, x * y))
    variance_x, variance_y = (xx - mean_x**2).clamp(min=0), (yy - mean_y**2).clamp(min=0)
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * (xy - mean_x * mean_y) + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    return (luminance * structure).flatten(1).mean(1)


def blur_matrix(size: int) -> Tensor:
    """(size, size): row i blurs around pixel i with an 11-tap Gaussian of σ 1.5; edges are reflected."""
    offsets = torch.arange(-5, 6)
    weights = torch.exp(-((offsets / 1.5) ** 2) / 2).double()
    places = (torch.arange(size)[:, None] + offsets).abs()
    places = torch.where(places < size, places, 2 * (size - 1) - places)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(
        1, places, (weights / weights.sum()).repeat(size, 1)
    )


def to_bytes(frames: Tensor) -> Tensor:
    """Float frames in [0, 1], clamped, to uint8; rounded, since truncation would darken the true frames too."""
    return (frames.float().clamp(0, 1) * 255).round().byte()
