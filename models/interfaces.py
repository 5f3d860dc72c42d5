"""What the parts of a world model promise each other.

Layout everywhere: frames (B, T, C, H, W) float in [0, 1], tokens (B, T, h, w) int64, actions (B, T-1) int64 where
`actions[:, t]` leads from frame t to frame t+1.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

SCHEDULES = ("cosine", "linear", "arccos", "published")
ORDERS = ("confidence", "halton")


class Clip(Protocol):
    """A batch as the loader delivers it (`data.clips.Clip`), frames already float; absent parts are None."""

    frames: Tensor | None  # (B, T, C, H, W) in [0, 1]
    actions: Tensor | None  # (B, T-1)
    tokens: Tensor | None  # (B, T, h, w)
    seeds: Tensor | None  # (B,) keys every random draw made for the clip


class StepOutput(NamedTuple):
    """What a trainable module returns for one batch."""

    loss: Tensor  # mean over clips of per-clip losses, so that N processes compute one joint batch
    logs: dict[str, Tensor]  # detached scalars


class KeepsStatistics(Protocol):
    """A module that changes by what a whole step showed it, such as a codebook that moves dead codes.

    Its forward passes only note what they see: a step may have several, on several processes.
    """

    def end_step(self) -> None: ...  # called once after each update, on all processes; must do nothing without a pass


class Observed(NamedTuple):
    """What an action source may look at."""

    frames: Tensor | None = None  # (B, T, C, H, W) in [0, 1]
    actions: Tensor | None = None  # (B, T-1)


class Rollout(NamedTuple):
    frames: Tensor  # (B, K, C, H, W), the predicted frames, unclamped
    tokens: Tensor  # (B, P+K, h, w), prompt and prediction


@dataclass(frozen=True)
class Sampling:
    """How MaskGIT draws the tokens of new frames (Chang et al., 2022).

    steps: passes over the new frames. The *next* rule allows one when it goes frame by frame.
    schedule: share of tokens still masked after each pass: cosine, linear or arccos; "published" is the cosine as the
        published code counts it, one pass ahead, so that its last pass changes nothing.
    temperature: of the softmax from which tokens are drawn; 0 takes the most likely one.
    top_k: draw among the k most likely tokens only; None for all.
    noise: scale of the Gumbel noise on the confidence, annealed to 0 over the passes (4.5 in MaskGIT's ImageNet runs).
    order: which tokens are accepted first, those of highest "confidence" or those a "halton" sequence meets first.
    """

    steps: int = 1
    schedule: str = "cosine"
    temperature: float = 0.0
    top_k: int | None = None
    noise: float = 0.0
    order: str = "confidence"

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"eval.inference_steps is {self.steps}, expected at least 1")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"eval.sample_schedule is {self.schedule!r}, expected one of {', '.join(SCHEDULES)}")
        if self.temperature < 0:
            raise ValueError(f"eval.sample_temperature is {self.temperature}, expected 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"eval.sample_top_k is {self.top_k}, expected at least 1 or null")
        if self.noise < 0:
            raise ValueError(f"eval.sample_noise is {self.noise}, expected 0 or more")
        if self.order not in ORDERS:
            raise ValueError(f"eval.sample_order is {self.order!r}, expected one of {', '.join(ORDERS)}")


class Tokenizer(Protocol):
    codebook_size: int
    code_dim: int
    stride: int  # frames per latent step; 1 for ST-ViViT
    image_size: tuple[int, int] | None  # None: frames of any size that the patches divide
    grid: tuple[int, int] | None  # tokens per frame, (h, w)

    def forward(self, clip: Clip, step: int) -> StepOutput: ...
    def encode(self, frames: Tensor) -> Tensor: ...
    def codebook(self) -> Tensor: ...  # (codebook_size, code_dim)
    def decode(self, tokens: Tensor) -> Tensor: ...


class ActionSource(Protocol):
    num_actions: int
    dim: int
    is_latent: bool  # learned from video alone

    def forward(self, seen: Observed, step: int) -> tuple[Tensor, StepOutput]: ...  # (B, T-1, dim) and its own loss
    def infer(self, seen: Observed) -> Tensor: ...  # (B, T-1) indices
    def embed(self, indices: Tensor) -> Tensor: ...  # (B, T-1) -> (B, T-1, dim)


class Dynamics(Protocol):
    context: int  # frames that its positions allow

    def forward(self, tokens: Tensor, actions: Tensor, seeds: Tensor, step: int) -> StepOutput: ...
    def sample(self, tokens: Tensor, actions: Tensor, *, num_new: int, sampling: Sampling, seeds: Tensor) -> Tensor: ...
