"""One predictor against the truth: what the model and each row beside it are measured by."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from training.frechet import FID, FVD, FVD_MIN_FRAMES, FrechetMetric
from training.metrics import PSNR, SSIM
from training.perceptual import LPIPS

# What a metric of single frames computes, by what its key in the results ends on.
ENDINGS = {"": "mean", "_ci95": "ci95", "_by_horizon": "by_horizon", "_by_horizon_ci95": "by_horizon_ci95"}


class Networks(NamedTuple):
    """Networks that metrics need, on the device of the model; None where there is none."""

    inception: nn.Module | None = None
    i3d: nn.Module | None = None
    lpips: nn.Module | None = None
    reader: nn.Module | None = None


class Comparison:
    """PSNR, SSIM and LPIPS of one predictor; the model and each row beside it has one."""

    def __init__(self, networks: Networks):
        self.psnr, self.ssim = PSNR(), SSIM()
        self.lpips = LPIPS(networks.lpips) if networks.lpips is not None else None

    def update(self, predicted: Tensor, target: Tensor, numbers: Sequence[int]) -> Tensor:
        """Returns the PSNR of every frame, (B, T)."""
        self.ssim.update(predicted, target, numbers)
        if self.lpips is not None:
            self.lpips.update(predicted, target, numbers)
        return self.psnr.update(predicted, target, numbers)

    def gather(self) -> None:
        for metric in (self.psnr, self.ssim, self.lpips):
            if metric is not None:
                metric.gather()

    def compute(self, prefix: str) -> dict:
        """Results, each key after `prefix`."""
        found = {"psnr": self.psnr.compute(), "ssim": self.ssim.compute()}
        found["lpips"] = self.lpips.compute() if self.lpips is not None else {}
        return {
            f"{prefix}{name}{ending}": values.get(key)
            for name, values in found.items()
            for ending, key in ENDINGS.items()
        }


def make_distances(networks: Networks, num_frames: int) -> list[FrechetMetric]:
    """FID in both resizings, and FVD of clips that are long enough, where their networks are at hand."""
    found = []
    if networks.inception is not None:
        found += [FID(networks.inception, nearest=False), FID(networks.inception, nearest=True)]
    if networks.i3d is not None and num_frames >= FVD_MIN_FRAMES:
        found.append(FVD(networks.i3d))
    return found
