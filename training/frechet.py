"""Fréchet distances between what a network sees in predictions and in the truth: FID of frames, FVD of clips.

Both grow as samples shrink. `real_…`, the distance between the two halves of the truth, says what distance means
nothing at this size; its halves being half as large, it is a generous bound. The model's own distances have intervals
over clips (`training/influence.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object, reduce
from torch import Tensor, nn

from training.influence import ClipFeatures, Gaussian, interval, slopes
from training.metrics import ClipValues, to_bytes
from training.weight_files import I3D, INCEPTION

INCEPTION_SIZE, INCEPTION_DIM = 299, 2048
I3D_SIZE, I3D_DIM = 224, 400
FVD_MIN_FRAMES = 10
INCEPTION_BATCH, I3D_BATCH = 32, 8  # frames, clips: bound the memory, whatever the batch of clips


class FeatureStatistics:
    """Count, sum and sum of outer products of feature vectors, in float64.

    As long as there are no more vectors than features the vectors themselves are kept, which then say the same in less
    room, and spare the decomposition of a large matrix.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        device = "cpu" if torch.device(device).type == "mps" else device  # Apple's GPUs have no float64
        self.rows: Tensor | None = torch.zeros(0, dim, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.sum = torch.zeros(dim, dtype=torch.float64, device=device)
        self.outer: Tensor | None = None  # (D, D), once there are no rows any more

    def update(self, features: Tensor, times: int = 1) -> None:
        """features: (N, D), each of which counts so many times."""
        features = features.to(self.sum.device).double()
        self.count += len(features) * times
        self.sum += features.sum(0) * times
        if self.rows is not None and self.count <= len(self.sum):
            self.rows = torch.cat([self.rows, features.repeat(times, 1)])
            return
        self._fold()
        self.outer += features.T @ features * times

    def _fold(self) -> None:
        if self.rows is not None:
            self.outer, self.rows = self.rows.T @ self.rows, None

    def gather(self, device: torch.device) -> None:
        self.count = self._added(self.count, device)
        self.sum = self._added(self.sum, device)
        if self.count <= len(self.sum):
            parts = gather_object([self.rows.cpu()])
            self.rows = torch.cat(parts).to(self.sum.device)
        else:
            self._fold()
            self.outer = self._added(self.outer, device)

    @staticmethod
    def _added(mine: Tensor, device: torch.device) -> Tensor:
        return reduce(mine.to(device), reduction="sum").to(mine.device)

    def __add__(self, other: "FeatureStatistics") -> "FeatureStatistics":
        both = FeatureStatistics(len(self.sum), self.sum.device)
        for part in (self, other):
            if part.rows is not None:
                both.update(part.rows)
                continue
            both._fold()
            both.count, both.sum, both.outer = both.count + part.count, both.sum + part.sum, both.outer + part.outer
        return both

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D)."""
        mean = self.sum / self.count
        outer = self.outer if self.rows is None else self.rows.T @ self.rows
        return mean, (outer - self.count * torch.outer(mean, mean)) / (self.count - 1)

    def gaussian(self) -> Gaussian | None:
        """None below two vectors."""
        if self.count < 2:
            return None
        if self.rows is None:
            return Gaussian.of(*self.moments())
        mean = self.rows.mean(0)
        return Gaussian(mean, (self.rows - mean).T / (self.count - 1).sqrt())


def distance(a: Gaussian | None, b: Gaussian | None) -> float | None:
    """‖μa − μb‖² + Tr(Σa + Σb − 2(Σa·Σb)^½) in float64; None where one of the two is.

    With Σa = A·Aᵀ and Σb = B·Bᵀ the trace of (Σa·Σb)^½ is the sum of the singular values of Aᵀ·B. Unlike eigenvalues
    whose root is taken, those keep the accuracy of their inputs: two or eight processes give the same digits.
    """
    if a is None or b is None:
        return None
    overlap = torch.linalg.svdvals(a.root.T @ b.root).sum() if a.root.numel() and b.root.numel() else 0.0
    total = (a.mean - b.mean).square().sum() + a.root.square().sum() + b.root.square().sum() - 2 * overlap
    return float(total.clamp(min=0))


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """`distance` of two normal laws by their float64 means and covariances."""
    return distance(Gaussian.of(mean_a, covariance_a), Gaussian.of(mean_b, covariance_b))


class FrechetMetric(ABC):
    """Distances of several predictors to the same truth; a subclass gives `features`.

    name: of the results: `<row><name>` for every row, `real_<name>`, the distance between two halves of the true clips:
    those with even and those with odd numbers, and `<name>_ci95`, of the model, whose row is "".
    """

    def __init__(self, name: str, dim: int, network: nn.Module):
        self.name, self.dim, self.network = name, dim, network
        self.device = next((part.device for part in network.parameters()), torch.device("cpu"))
        self.true = [self._statistics(), self._statistics()]
        self.rows: dict[str, FeatureStatistics] = {}
        self.kept_true, self.kept_model = ClipFeatures(), ClipFeatures()
        self.clips_true = 0  # clips of this process, later of all

    @abstractmethod
    def features(self, frames: Tensor) -> Tensor:
        """(B, T, C, H, W) float in [0, 1] -> (B, features of a clip, D)."""

    def update_true(self, frames: Tensor, numbers: Sequence[int]) -> None:
        features = self.features(frames)
        for half, statistics in enumerate(self.true):
            rows = [row for row, number in enumerate(numbers) if number % 2 == half]
            statistics.update(features[rows].flatten(0, 1))
        self.kept_true.add(numbers, features)
        self.clips_true += len(frames)

    def update(self, row: str, frames: Tensor, numbers: Sequence[int] | None = None) -> None:
        """numbers: of the clips, where the row is to have an interval; that is the model's."""
        features = self.features(frames)
        self._of(row).update(features.flatten(0, 1))
        if numbers is not None:
            self.kept_model.add(numbers, features)

    def update_still(self, row: str, frame: Tensor, length: int) -> None:
        """A predictor that shows (B, 1, C, H, W) `length` times."""
        self.update(row, frame.expand(-1, length, -1, -1, -1))

    def gather(self) -> None:
        # A process that had no clips has seen no row either, and must take part all the same.
        for row in sorted(set(gather_object(list(self.rows)))):
            self._of(row).gather(self.device)
        for statistics in self.true:
            statistics.gather(self.device)
        self.clips_true = sum(gather_object([self.clips_true]))
        for kept in (self.kept_true, self.kept_model):
            kept.agree()

    def compute(self) -> dict[str, float | list[float] | None]:
        """Every process must call this: the clips' influences are gathered here."""
        halves = [statistics.gaussian() for statistics in self.true]
        truth = (self.true[0] + self.true[1]).gaussian()
        laws = {row: statistics.gaussian() for row, statistics in self.rows.items()}
        results = {f"{row}{self.name}": distance(law, truth) for row, law in laws.items()}
        if results.get(self.name) is not None:
            results[f"{self.name}_ci95"] = self._interval(results[self.name], laws[""], truth)
        return results | {f"real_{self.name}": distance(*halves)}

    def _interval(self, value: float, model: Gaussian, truth: Gaussian) -> list[float] | None:
        counts = float(self.rows[""].count), float(sum(half.count for half in self.true))
        found = []
        for kept, slope in zip((self.kept_model, self.kept_true), slopes(model, truth, *counts), strict=True):
            values = ClipValues()
            for numbers, influences in kept.influences(slope):
                values.add(numbers, influences)
            values.gather()
            found.append(values)
        return interval(value, found, self.clips_true)

    def _of(self, row: str) -> FeatureStatistics:
        return self.rows.setdefault(row, self._statistics())

    def _statistics(self) -> FeatureStatistics:
        return FeatureStatistics(self.dim, self.device)


class FID(FrechetMetric):
    """Fréchet Inception distance between all predicted and all true frames (Heusel et al., 2017).

    nearest: enlarge the frames by nearest neighbour before the extractor, as GenieRedux reports it; otherwise the
    extractor's own bilinear rule does it. Frames are rounded to bytes in both.
    """

    def __init__(self, inception: nn.Module, *, nearest: bool):
        super().__init__("fid_nearest" if nearest else "fid", INCEPTION_DIM, inception)
        self.nearest = nearest

    @torch.no_grad()
    def features(self, frames: Tensor) -> Tensor:
        pictures = to_bytes(frames).flatten(0, 1)
        features = torch.cat([self._features(part) for part in pictures.split(INCEPTION_BATCH)])
        return features.unflatten(0, frames.shape[:2])

    def _features(self, pictures: Tensor) -> Tensor:
        if self.nearest:
            pictures = F.interpolate(pictures, size=(INCEPTION_SIZE, INCEPTION_SIZE), mode="nearest")
        return self.network(pictures)

    def update_still(self, row: str, frame: Tensor, length: int) -> None:
        self._of(row).update(self.features(frame).flatten(0, 1), times=length)


class FVD(FrechetMetric):
    """Fréchet video distance between predicted and true clips of at least 10 frames (Unterthiner et al., 2019).

    The logits of I3D, trained on Kinetics-400, of frames enlarged to 224×224 (bilinear) and scaled to [-1, 1].
    """

    def __init__(self, i3d: nn.Module):
        super().__init__("fvd", I3D_DIM, i3d)

    @torch.no_grad()
    def features(self, frames: Tensor) -> Tensor:
        return torch.cat([self._features(part) for part in frames.split(I3D_BATCH)])[:, None]

    def _features(self, frames: Tensor) -> Tensor:
        clips = frames.float().clamp(0, 1)
        enlarged = F.interpolate(clips.flatten(0, 1), size=(I3D_SIZE, I3D_SIZE), mode="bilinear", align_corners=False)
        clips = enlarged.unflatten(0, clips.shape[:2]).transpose(1, 2) * 2 - 1
        # Profiling a network anew for every length of batch takes longer than it saves.
        with torch.jit.optimized_execution(False):
            return self.network(clips, rescale=False, resize=False, return_features=True)


# ------------------------------------------------------------------------------------------------------------- networks


def load_inception(weights_dir: str | Path) -> tuple[nn.Module | None, str | None]:
    """Inception-v3 with the 2048 features of FID, and None; or None and the reason with its cure."""
    fpath = INCEPTION.find(weights_dir)
    if fpath is None:
        return None, INCEPTION.missing(weights_dir)
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError as error:
        return None, f"torch-fidelity cannot be imported ({error}); install it with: pip install -r requirements.txt"
    try:
        torch.load(fpath, map_location="cpu", weights_only=True)  # the extractor itself would unpickle anything
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(fpath), antialias=False)
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        return None, INCEPTION.damaged(fpath, weights_dir, error)
    return network, None


def load_i3d(weights_dir: str | Path) -> tuple[nn.Module | None, str | None]:
    """The TorchScript I3D in eval mode, and None; or None and the reason with its cure."""
    fpath = I3D.find(weights_dir)
    if fpath is None:
        return None, I3D.missing(weights_dir)
    try:
        I3D.check(fpath)  # before it is loaded: TorchScript is a program
        network = torch.jit.load(fpath, map_location="cpu").eval()
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        return None, I3D.damaged(fpath, weights_dir, error)
    return network, None
