"""From vectors to a finite set of codes and back.

A quantizer has `codebook_size`, `code_dim` and four methods: `forward` (training), `indices`, `codebook` and
`project_out`. Vectors have the model's width D, codes the smaller `code_dim`.
"""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from models.components.random import uniform


class Quantized(NamedTuple):
    vectors: Tensor  # (..., D), gradients pass straight through to the input
    indices: Tensor  # (...), int64
    loss: Tensor  # scalar; 0 where the quantizer needs none


def count_codes(indices: Tensor, codebook_size: int) -> Tensor:
    """How often each code was chosen, (K,) int64. `bincount` would make the host wait for a GPU."""
    chosen = indices.flatten()
    return torch.zeros(codebook_size, dtype=torch.int64, device=chosen.device).scatter_add_(
        0, chosen, torch.ones_like(chosen)
    )


def perplexity(counts: Tensor) -> Tensor:
    """Effective number of codes in use, exp of the entropy of their shares; counts: (K,)."""
    share = counts / counts.sum().clamp(min=1)
    return torch.exp(-torch.xlogy(share, share).sum())


class VectorQuantizer(nn.Module):
    """VQ-VAE codebook (van den Oord et al., 2017) with cosine look-up, as GenieRedux has it.

    A vector is projected to `codebook_dim`, L2-normalised and matched by dot product with the stored codes. As
    published, codes are a plain parameter and are not normalised. Loss: ‖code - sg(z)‖² + commitment·‖sg(code) - z‖²,
    averaged; zero in eval mode, as published.

    dead_code_steps: a code that no vector chose in so many steps moves to a vector of the step (`end_step`), the same
        one however the step was split over processes and micro-batches; null leaves dead codes alone, as published.
    normalize_codes: compare with L2-normalised codes and return those.
    """

    counters = ("idle_steps", "num_passes")  # buffers where dead codes are moved; a training may switch that on or off

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int,
        commitment: float,
        dead_code_steps: int | None,
        normalize_codes: bool,
    ):
        super().__init__()
        self.codebook_size = codebook_size
        self.code_dim = codebook_dim
        self.commitment = commitment
        self.dead_code_steps = dead_code_steps
        self.normalize_codes = normalize_codes
        self.project_in = nn.Linear(dim, codebook_dim)
        self.project_out = nn.Linear(codebook_dim, dim)
        self.embed = nn.Parameter(F.normalize(torch.randn(codebook_size, codebook_dim), dim=-1))
        if dead_code_steps is not None:
            self.register_buffer("idle_steps", torch.zeros(codebook_size))
            self.register_buffer("num_passes", torch.zeros(1, dtype=torch.int64))  # steps; once micro-batches
        self._seen: _Seen | None = None  # of the present step; nothing of it outlives the step

    def codebook(self) -> Tensor:
        return F.normalize(self.embed, dim=-1) if self.normalize_codes else self.embed

    def _project(self, x: Tensor) -> Tensor:
        # Half precision would turn near ties into other codes.
        with torch.autocast(x.device.type, enabled=False):
            return F.normalize(self.project_in(x.float()), dim=-1)

    def indices(self, x: Tensor) -> Tensor:
        """(..., D) -> (...) index of the best code."""
        with torch.autocast(x.device.type, enabled=False):
            return (self._project(x) @ self.codebook().T).argmax(dim=-1)

    def forward(self, x: Tensor) -> Quantized:
        with torch.autocast(x.device.type, enabled=False):
            z = self._project(x)
            codebook = self.codebook()
            indices = (z.detach() @ codebook.detach().T).argmax(dim=-1)
            if self.training and self.dead_code_steps is not None:
                self._remember(z.detach().flatten(0, -2), indices)
            code = F.embedding(indices, codebook)
            loss = z.new_zeros(())
            if self.training:
                loss = F.mse_loss(code, z.detach()) + self.commitment * F.mse_loss(code.detach(), z)
            return Quantized(self.project_out(z + (code - z).detach()), indices, loss)

    @torch.no_grad()
    def _remember(self, vectors: Tensor, indices: Tensor) -> None:
        """Add a micro-batch to what the step has seen: codes chosen, and as many of its vectors as there are codes.

        Which vectors: those of the highest lot, which depends on the step and on where the vector stands in the joint
        batch of all processes and micro-batches.
        """
        count, (world_size, rank) = len(vectors), _processes()
        seen = self._seen or _Seen(0, indices.new_zeros(self.codebook_size), indices.new_zeros(0), vectors[:0])
        positions = torch.arange(count, device=vectors.device) + (seen.num_vectors + rank * count)
        lots = (uniform(self.num_passes * 2**32 + positions, (0,), ()) * 2**24).long() * 2**32 + positions  # no ties
        self._seen = _Seen(
            seen.num_vectors + world_size * count,
            seen.used + count_codes(indices, self.codebook_size),
            *_highest(self.codebook_size, torch.cat([seen.lots, lots]), torch.cat([seen.vectors, vectors])),
        )

    @torch.no_grad()
    def end_step(self) -> None:
        """Called by the trainer after each update, on all processes: dead codes move to vectors of the step."""
        if self._seen is None:
            return
        _, used, lots, vectors = self._seen
        self._seen = None
        if _processes()[0] > 1:
            dist.all_reduce(used)
            lots, vectors = _highest(self.codebook_size, _from_all(lots), _from_all(vectors))
        self.idle_steps.add_(1).masked_fill_(used > 0, 0)
        dead = self.idle_steps >= self.dead_code_steps
        chosen = vectors[torch.arange(self.codebook_size, device=lots.device) % len(lots)]
        self.embed.copy_(torch.where(dead[:, None], chosen, self.embed))  # without asking the device if any is dead
        self.idle_steps.masked_fill_(dead, 0)
        self.num_passes.add_(1)


class _Seen(NamedTuple):
    """What a step has shown a codebook so far."""

    num_vectors: int  # on all processes
    used: Tensor  # (K,) how often each code was chosen on this one
    lots: Tensor  # (up to K,) int64, falling
    vectors: Tensor  # (up to K, codebook_dim), those of these lots


def _highest(count: int, lots: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The `count` highest lots, falling, and their vectors; all where there are fewer."""
    lots, order = lots.topk(min(count, len(lots)))
    return lots, vectors[order]


def _processes() -> tuple[int, int]:
    """How many train together, and which one this is."""
    return (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)


def _from_all(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order; as many from each."""
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


class FiniteScalarQuantizer(nn.Module):
    """FSQ (Mentzer et al., 2023): each of a few bounded numbers is rounded to `levels[i]` values; no loss is needed."""

    def __init__(self, dim: int, levels: list[int]):
        super().__init__()
        if min(levels) < 2:
            raise ValueError(f"quantizer.levels is {list(levels)}, expected at least 2 everywhere")
        self.code_dim = len(levels)
        self.codebook_size = math.prod(levels)
        self.register_buffer("levels", torch.tensor(list(levels)), persistent=False)
        strides = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("strides", torch.tensor(strides), persistent=False)
        self.project_in = nn.Linear(dim, self.code_dim)
        self.project_out = nn.Linear(self.code_dim, dim)

    def codebook(self) -> Tensor:
        """(codebook_size, code_dim), each value in [-1, 1]."""
        index = torch.arange(self.codebook_size, device=self.levels.device)
        digits = index[:, None] // self.strides % self.levels
        half = self.levels // 2
        return (digits - half) / half

    def _bounded(self, x: Tensor) -> Tensor:
        half_range = (self.levels - 1) * (1 + 1e-3) / 2
        offset = (self.levels % 2 == 0) * 0.5
        return torch.tanh(self.project_in(x.float()) + torch.atanh(offset / half_range)) * half_range - offset

    def _index(self, rounded: Tensor) -> Tensor:
        return ((rounded.long() + self.levels // 2) * self.strides).sum(dim=-1)

    def indices(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self._index(self._bounded(x).round())

    def forward(self, x: Tensor) -> Quantized:
        with torch.autocast(x.device.type, enabled=False):
            bounded = self._bounded(x)
            rounded = bounded.round()
            code = (bounded + (rounded - bounded).detach()) / (self.levels // 2)
            return Quantized(self.project_out(code), self._index(rounded), code.new_zeros(()))
