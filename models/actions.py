"""Where a world's actions come from: learned from the pixels, or recorded by whoever played."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.interfaces import Observed, StepOutput
from models.lam import LatentActionModel


class LatentActions(nn.Module):
    """Actions found by a latent action model that trains along with the dynamics.

    detach: keep the dynamics' gradient out of the action model (Genie does, the published GenieRedux does not).
    """

    is_latent = True

    def __init__(self, *, lam: LatentActionModel, detach: bool):
        super().__init__()
        self.lam = lam
        self.detach = detach
        self.num_actions = lam.num_actions
        self.dim = lam.dim

    def forward(self, seen: Observed, step: int) -> tuple[Tensor, StepOutput]:
        vectors, output = self.lam(seen.frames)
        return (vectors.detach() if self.detach else vectors), output

    def infer(self, seen: Observed) -> Tensor:
        return self.lam.indices(seen.frames)

    def infer_latents(self, seen: Observed) -> tuple[Tensor, Tensor]:
        """Indices (B, T-1) and the vectors before quantisation, (B, T-1, dim)."""
        vectors = self.lam.vectors(seen.frames)
        return self.lam.quantizer.indices(vectors), vectors

    def embed(self, indices: Tensor) -> Tensor:
        return self.lam.embed(indices)


class RecordedActions(nn.Module):
    """Actions as recorded with the frames, one-hot."""

    is_latent = False

    def __init__(self, *, num_actions: int):
        super().__init__()
        self.num_actions = num_actions
        self.dim = num_actions

    def forward(self, seen: Observed, step: int) -> tuple[Tensor, StepOutput]:
        indices = self.infer(seen)
        return self.embed(indices), StepOutput(torch.zeros((), device=indices.device), {})

    def infer(self, seen: Observed) -> Tensor:
        if seen.actions is None:
            raise ValueError("this data set has no recorded actions; train genie_redux, which learns them")
        return seen.actions

    def embed(self, indices: Tensor) -> Tensor:
        return F.one_hot(indices, self.num_actions).float()
