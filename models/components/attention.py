"""Attention and feed-forward layers of GenieRedux's transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components.cache import BlockCache
from models.components.cosine_attention import cached_attention, cosine_attention
from models.components.recompute import LAYER_NORM_EPS, feed_forward, normed_linears


class BiaslessLayerNorm(nn.Module):
    """LayerNorm whose shift is a constant zero.

    `beta` is a buffer and part of the published file format: a file may hold another value than zero.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.to(self.gamma.dtype), x.shape[-1:], self.gamma, self.beta, LAYER_NORM_EPS)


class WideLayerNorm(nn.LayerNorm):
    """LayerNorm in the type of its weights. Autocast sees to that on a GPU, but not on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class Attention(nn.Module):
    """Multi-head self-attention with normalised queries and keys.

    As published, the LayerNorm feeds the queries only; keys and values come from the residual stream as it is.
    `norm_keys=True` normalises their input too.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, *, norm_keys: bool = False):
        super().__init__()
        inner = heads * dim_head
        self.norm_keys = norm_keys
        self.norm = BiaslessLayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.q_scale = nn.Parameter(torch.ones(dim_head))
        self.k_scale = nn.Parameter(torch.ones(dim_head))
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor, dim: int) -> Tensor:
        """x: (B, T, N, D); positions along axis `dim` (1 or 2) see each other.

        bias: (heads, length, length), added to the logits.
        """
        q, kv = self._project(x)
        return self.to_out(cosine_attention(q, kv, self.q_scale, self.k_scale, bias, dim))

    def extend(self, x: Tensor, bias: Tensor, cache: BlockCache, slots: Tensor) -> Tensor:
        """`forward` over time for the frames x (B, n, N, D) alone, which go to `slots` (n,); others are cached.

        bias: (heads, n, all slots of the cache).
        """
        q, kv = self._project(x)
        return self.to_out(cached_attention(q, kv, self.q_scale, self.k_scale, bias, cache.keys, cache.values, slots))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        norm, to_q, to_kv = (self.norm.gamma, self.norm.beta), self.to_q.weight, self.to_kv.weight
        if self.norm_keys:
            return normed_linears(x, *norm, to_q, to_kv)
        (q,) = normed_linears(x, *norm, to_q)
        return q, self.to_kv(x)


class GatedFeedForward(nn.Module):
    """LayerNorm, then a GEGLU layer (Shazeer, 2020): value · gelu(gate)."""

    def __init__(self, dim: int, mult: float):
        super().__init__()
        inner = int(mult * 2 / 3 * dim)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.expand = nn.Linear(dim, 2 * inner, bias=False)
        self.contract = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return feed_forward(x, self.norm.weight, self.norm.bias, self.expand.weight, self.contract.weight)
