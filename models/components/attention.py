"""Attention and feed-forward layers of GenieRedux's transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COSINE_SCALE = 8.0  # logits of L2-normalised queries and keys; there is no 1/sqrt(d)


class BiaslessLayerNorm(nn.Module):
    """LayerNorm whose shift is a constant zero.

    `beta` is a buffer and part of the published file format: a file may hold another value than zero.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class Attention(nn.Module):
    """Multi-head self-attention with normalised queries and keys.

    As published, the LayerNorm feeds the queries only; keys and values come from the residual stream as it is.
    `norm_keys=True` normalises their input too.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, *, norm_keys: bool = False):
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.norm_keys = norm_keys
        self.norm = BiaslessLayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.q_scale = nn.Parameter(torch.ones(dim_head))
        self.k_scale = nn.Parameter(torch.ones(dim_head))
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x: (rows, length, dim), attention within a row; bias: (heads, length, length), added to the logits."""
        normed = self.norm(x)
        q = self.to_q(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(normed if self.norm_keys else x).unflatten(-1, (2, self.heads, -1)).unbind(dim=2)
        q = F.normalize(q, dim=-1) * self.q_scale
        k = F.normalize(k.transpose(1, 2), dim=-1) * self.k_scale
        v = v.transpose(1, 2)
        out = F.scaled_dot_product_attention(
            q.to(v.dtype), k.to(v.dtype), v, attn_mask=bias.to(v.dtype)[None], scale=COSINE_SCALE
        )
        return self.to_out(out.transpose(1, 2).flatten(-2))


class GatedFeedForward(nn.Module):
    """LayerNorm, then a GEGLU layer (Shazeer, 2020): value · gelu(gate)."""

    def __init__(self, dim: int, mult: float):
        super().__init__()
        inner = int(mult * 2 / 3 * dim)
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 2 * inner, bias=False)
        self.contract = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.expand(self.norm(x)).chunk(2, dim=-1)
        return self.contract(value * F.gelu(gate))


class PositionGenerator(nn.Module):
    """Depthwise 3×3×3 convolution (PEG, Chu et al., 2021): causal in time, symmetric in space."""

    def __init__(self, dim: int):
        super().__init__()
        self.dsconv = nn.Conv3d(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, h, w, D) -> the same shape; frame t reads frames t-2..t."""
        num_frames = x.shape[1]
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)  # (B·T, D, h, w), channels last in memory
        weight = self.dsconv.weight
        # Three 2-D convolutions, one per time tap: on a CPU they are five times as fast as the 3-D one.
        out = F.conv2d(frames, weight[:, :, 2], self.dsconv.bias, padding=1, groups=x.shape[-1])
        out = out.permute(0, 2, 3, 1).unflatten(0, (-1, num_frames))
        for delay in (1, 2):
            if num_frames > delay:
                past = x[:, :-delay].flatten(0, 1).permute(0, 3, 1, 2)
                tap = F.conv2d(past, weight[:, :, 2 - delay], padding=1, groups=x.shape[-1])
                tap = tap.permute(0, 2, 3, 1).unflatten(0, (-1, num_frames - delay))
                out = out + F.pad(tap, (0, 0, 0, 0, 0, 0, delay, 0))
        return out
