"""Where a token stands: a learned bias over 2-D offsets in space, ALiBi in time."""

import math

import torch
from torch import Tensor, nn


class ContinuousPositionBias(nn.Module):
    """Additive attention bias from an MLP over log-scaled 2-D offsets (Swin v2, Liu et al., 2022).

    One bias serves every block of a transformer, so it is computed once per forward pass.
    """

    def __init__(self, hidden_dim: int, heads: int):
        super().__init__()
        self.net = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(2, hidden_dim), nn.LeakyReLU(0.1)),
                nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.LeakyReLU(0.1)),
                nn.Linear(hidden_dim, heads),
            ]
        )

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """The bias for a token grid (h, w): (heads, h·w, h·w)."""
        h, w = grid
        weight = self.net[0][0].weight
        # Few distinct offsets exist, (2h-1)·(2w-1), against (h·w)² pairs: run the MLP on those and gather.
        dy = torch.arange(1 - h, h, device=weight.device)
        dx = torch.arange(1 - w, w, device=weight.device)
        offsets = torch.stack(torch.meshgrid(dy, dx, indexing="ij"), dim=-1).to(weight.dtype)
        bias = torch.sign(offsets) * torch.log(1 + offsets.abs())
        for layer in self.net:
            bias = layer(bias)
        rows = torch.arange(h, device=weight.device)
        columns = torch.arange(w, device=weight.device)
        dy_index = (rows[:, None, None, None] - rows[None, None, :, None] + h - 1).expand(h, w, h, w)
        dx_index = (columns[None, :, None, None] - columns[None, None, None, :] + w - 1).expand(h, w, h, w)
        return bias[dy_index, dx_index].reshape(h * w, h * w, -1).permute(2, 0, 1)


def alibi_slopes(heads: int) -> list[float]:
    """One slope per head, a geometric series ending at 2⁻⁸ (ALiBi, Press et al., 2022)."""

    def series(count: int) -> list[float]:
        start = 2 ** (-(2 ** -(math.log2(count) - 3)))
        return [start ** (i + 1) for i in range(count)]

    if math.log2(heads).is_integer():
        return series(heads)
    power = 2 ** math.floor(math.log2(heads))
    return series(power) + series(2 * power)[0::2][: heads - power]


def slopes_on(device: torch.device | None, heads: int) -> Tensor:
    """`alibi_slopes` as a tensor, (heads,), filled on the device: a list would be copied there, and the host wait."""
    return torch.stack([torch.full((), slope, device=device) for slope in alibi_slopes(heads)])


def causal_alibi(num_frames: int, heads: int, device=None, window: int | None = None) -> Tensor:
    """Mask for causal attention over time: -slope·distance to the past, -inf to the future; (heads, T, T).

    window: -inf also to frames that are so many or more frames back; None for no such limit.
    """
    slopes = slopes_on(device, heads)
    time = torch.arange(num_frames, device=device)
    distance = (time[:, None] - time[None, :]).float()
    mask = -distance * slopes[:, None, None]
    is_hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return mask.masked_fill(is_hidden, float("-inf"))
