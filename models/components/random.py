"""Random numbers that belong to a clip: the same whatever the batch, the device or the process count."""

import math

import torch
from torch import Tensor

_MULTIPLIERS = (-4658895280553007687, -7723592293110705685)  # 0xbf58476d1ce4e5b9 and 0x94d049bb133111eb as int64
_INCREMENT = -7046029254386353131  # 0x9e3779b97f4a7c15
_STREAM = 7146057691288625177  # 0x632be59bd9b4e019
Stream = tuple[int | Tensor, ...]


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014); int64 arithmetic wraps around."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _MULTIPLIERS[0]
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _MULTIPLIERS[1]
    return x ^ ((x >> 31) & (2**33 - 1))


def uniform(seeds: Tensor, stream: Stream, shape: tuple[int, ...]) -> Tensor:
    """Numbers in (0, 1), (B, *shape), a pure function of each clip's seed, the stream and the position.

    seeds: (B,) int64. stream: what the numbers are for, such as (frame, pass); numbers, or () int64 tensors of them.
    """
    key = _mix(seeds.long() + _INCREMENT)
    for part in stream:
        number = part + 1 if isinstance(part, Tensor) else torch.full_like(key, part + 1)
        key = _mix(key + number * _STREAM)
    counter = torch.arange(1, math.prod(shape) + 1, device=seeds.device)
    bits = _mix(key[:, None] + counter * _INCREMENT)
    # 24 bits are what a float32 holds; the half keeps 0 and 1 out.
    return (((bits >> 40) & (2**24 - 1)).float().add(0.5) / 2**24).view(-1, *shape)


def gumbel(seeds: Tensor, stream: Stream, shape: tuple[int, ...]) -> Tensor:
    """Standard Gumbel noise, (B, *shape); see `uniform`."""
    return -torch.log(-torch.log(uniform(seeds, stream, shape)))
