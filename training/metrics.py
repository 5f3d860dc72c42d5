"""Metrics of predicted against true frames: PSNR, SSIM and FID, and bootstrap intervals over clips.

Every metric has `update` and `compute`. Between them it keeps values of single clips, or sums and counts, and `gather`
pools those over the processes: division comes last, so that any number of processes gives the same result. Frames are
(B, T, C, H, W) float in [0, 1]; predictions are clamped to that range and compared in fp32.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object, reduce
from torch import Tensor, nn

MSE_FLOOR = 1e-10  # 100 dB: the PSNR of equal frames would be infinite
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # (k · range)²
FRAMES_IN_CACHE = 8
RESAMPLES = 2000
RESAMPLED_AT_ONCE = 10_000_000  # draws held in memory
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"
INCEPTION_SIZE = 299
INCEPTION_BATCH = 32  # frames; bounds the memory, whatever the batch of clips


# ------------------------------------------------------------------------------------------------------- values by clip


class ClipValues:
    """Numbers of a metric for every clip, found by the clip's number in the evaluation set."""

    def __init__(self):
        self._rows: dict[int, np.ndarray] = {}

    def add(self, numbers: Iterable[int], values: Tensor) -> None:
        """values: (B, …), one row for each clip number. A clip that comes twice counts once."""
        self._rows.update(zip(numbers, values.detach().double().cpu().numpy(), strict=True))

    def gather(self) -> None:
        """Bring together the clips of all processes, in all of them."""
        self._rows = dict(gather_object(list(self._rows.items())))

    @property
    def values(self) -> np.ndarray:
        """(N, …) float64 in the order of the clip numbers."""
        return np.stack([self._rows[number] for number in sorted(self._rows)]) if self._rows else np.empty((0, 0))

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
        low, high = bootstrap(values)
        horizons = {"by_horizon": values.mean(axis=0).tolist(), "by_horizon_ci95": np.stack([low, high], 1).tolist()}
        return super().compute() | horizons


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


# ------------------------------------------------------------------------------------------------------------ intervals


def mean_and_interval(values: np.ndarray, seed: int = 0) -> dict:
    """{"mean", "ci95"} of one value per clip, (N,); None for no clips."""
    if not values.size:
        return {"mean": None, "ci95": None}
    low, high = bootstrap(values, seed=seed)
    return {"mean": float(values.mean()), "ci95": [float(low), float(high)]}


def bootstrap(
    values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean over clips (Efron, 1979): values (N, …) -> low and high, each (…).

    The same seed resamples the same clips: intervals of a difference by clip are paired.
    """
    generator = np.random.default_rng(seed)
    count = len(values)
    flat = values.reshape(count, -1)
    means = np.empty((resamples, flat.shape[1]))
    rows = max(1, RESAMPLED_AT_ONCE // count)
    for start in range(0, resamples, rows):
        # How often each clip is drawn says as much as the draws, and the means become one matrix product.
        weights = generator.multinomial(count, np.full(count, 1 / count), size=min(rows, resamples - start))
        means[start : start + rows] = weights @ flat / count
    tail = 50 * (1 - level)
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


# ------------------------------------------------------------------------------------------------------------------ FID


class FeatureStatistics:
    """Count, sum and sum of outer products of feature vectors, in float64 on the CPU."""

    def __init__(self, dim: int):
        self.count = torch.zeros((), dtype=torch.float64)
        self.sum = torch.zeros(dim, dtype=torch.float64)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        features = features.cpu().double()  # Apple's GPUs have no float64
        self.count += len(features)
        self.sum += features.sum(0)
        self.outer += features.T @ features

    def gather(self, device: torch.device) -> None:
        self.count, self.sum, self.outer = (
            reduce(part.to(device), reduction="sum").cpu() for part in (self.count, self.sum, self.outer)
        )

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D)."""
        mean = self.sum / self.count
        return mean, (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)


class FID:
    """Fréchet Inception distance between all predicted and all true frames (Heusel et al., 2017).

    nearest: enlarge the frames by nearest neighbour before the extractor, as GenieRedux reports it; otherwise the
    extractor's own bilinear rule does it. Frames are rounded to bytes in both.
    """

    def __init__(self, inception: nn.Module, *, nearest: bool):
        self.inception = inception
        self.nearest = nearest
        self.predicted, self.true = FeatureStatistics(2048), FeatureStatistics(2048)

    def update(self, predicted: Tensor, target: Tensor) -> None:
        self.predicted.update(self.features(predicted))
        self.true.update(self.features(target))

    @torch.no_grad()
    def features(self, frames: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B·T, 2048)."""
        pictures = to_bytes(frames).flatten(0, 1)
        return torch.cat([self._features(part) for part in pictures.split(INCEPTION_BATCH)])

    def _features(self, pictures: Tensor) -> Tensor:
        if self.nearest:
            pictures = F.interpolate(pictures, size=(INCEPTION_SIZE, INCEPTION_SIZE), mode="nearest")
        return self.inception(pictures)

    def gather(self) -> None:
        device = next(self.inception.parameters()).device
        self.predicted.gather(device)
        self.true.gather(device)

    def compute(self) -> float | None:
        """The distance, or None below two frames."""
        if min(self.predicted.count, self.true.count) < 2:
            return None
        return frechet_distance(*self.predicted.moments(), *self.true.moments())


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """‖μa − μb‖² + Tr(Σa + Σb − 2(Σa·Σb)^½) in float64.

    (Σa·Σb)^½ has the trace of (Σa^½·Σb·Σa^½)^½, which is symmetric: its eigenvalues stay real where there are fewer
    frames than features and the covariances are singular.
    """
    values, vectors = torch.linalg.eigh(covariance_a)
    root = vectors * values.clamp(min=0).sqrt()
    overlap = torch.linalg.eigvalsh(root.T @ covariance_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * overlap
    return float(distance.clamp(min=0))


def to_bytes(frames: Tensor) -> Tensor:
    """Float frames in [0, 1], clamped, to uint8; rounded, since truncation would darken the true frames too."""
    return (frames.float().clamp(0, 1) * 255).round().byte()


def find_inception(weights_dir: str | Path) -> Path | None:
    """The Inception weights in `weights_dir` or in torch's hub cache; nothing is ever downloaded."""
    folders = (Path(weights_dir), Path(torch.hub.get_dir()) / "checkpoints")
    return next((folder / INCEPTION for folder in folders if (folder / INCEPTION).is_file()), None)


def load_inception(weights_dir: str | Path) -> tuple[nn.Module | None, str | None]:
    """Inception-v3 with the 2048 features of FID, and None; or None and the reason with its cure."""
    fpath = find_inception(weights_dir)
    target = Path(weights_dir) / INCEPTION
    cure = f"python download_models.py --models --fid, or place it at {target} by hand"
    if fpath is None:
        hub = Path(torch.hub.get_dir()) / "checkpoints"
        return None, f"no {INCEPTION} in eval.weights_dir={weights_dir} nor in {hub}; download it with: {cure}"
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError as error:
        return None, f"torch-fidelity cannot be imported ({error}); install it with: pip install -r requirements.txt"
    try:
        torch.load(fpath, map_location="cpu", weights_only=True)  # the extractor itself would unpickle anything
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(fpath), antialias=False)
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        return (
            None,
            f"{fpath} is damaged or another network ({str(error).splitlines()[0]}); download it anew with: {cure}",
        )
    return network, None


def content_digits(fpath: Path) -> str:
    """The first eight digits of a file's SHA-256; the published Inception file has them in its name."""
    with open(fpath, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]
