"""Which tokens are hidden: in training at random, in sampling by confidence (MaskGIT, Chang et al., 2022)."""

import math
from functools import cache

import torch
from torch import Tensor

from models.components.random import gumbel, uniform
from models.interfaces import Sampling


def masked_share(progress: float, schedule: str) -> float:
    """Share of new tokens still masked at `progress` in [0, 1]: 1 at the start, 0 at the end."""
    if schedule == "cosine":
        return math.cos(math.pi * progress / 2)
    if schedule == "arccos":
        return math.acos(progress) * 2 / math.pi
    assert schedule == "linear", schedule
    return 1 - progress


def training_mask(shape: torch.Size, rate: tuple[float, float], seeds: Tensor) -> Tensor:
    """Boolean mask of `shape` (B, …): each clip draws one rate from the interval, each token is hidden with it."""
    low, high = rate
    share = low + (high - low) * uniform(seeds, (0,), (1,))
    hidden = uniform(seeds, (1,), (math.prod(shape[1:]),)) < share
    return hidden.view(shape)


def draw(logits: Tensor, sampling: Sampling, seeds: Tensor, stream: tuple[int, ...]) -> Tensor:
    """Token ids (B, N) from logits (B, N, K): the most likely at temperature 0, else a sample per clip's seed."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    return (logits + gumbel(seeds, (*stream, 0), logits.shape[1:])).argmax(dim=-1)


def refine(
    logits: Tensor, tokens: Tensor, hidden: Tensor, sampling: Sampling, step: int, seeds: Tensor, frame: int
) -> tuple[Tensor, Tensor]:
    """One pass of iterative decoding. Returns the new (tokens, hidden), both (B, K, h, w) as they came.

    logits: (B, K, h, w, codes). Hidden tokens are drawn; then those that come last in `sampling.order` are hidden again
    so that the schedule's share stays masked. Tokens accepted in an earlier pass never change. frame: number of the
    first new frame, which keys the noise.
    """
    shape = tokens.shape
    logits, tokens, hidden = logits.flatten(1, 3), tokens.flatten(1), hidden.flatten(1)
    drawn = torch.where(hidden, draw(logits, sampling, seeds, (frame, step)), tokens)
    count = hidden_counts(tokens.shape[1], sampling.steps, sampling.schedule)[step]
    still_hidden = torch.zeros_like(hidden)
    if count:
        if sampling.order == "halton":
            early = halton_priority(*shape[1:], tokens.device).expand_as(tokens)
        else:
            early = _confidence(logits, drawn, sampling, step, seeds, frame)
        early = early.masked_fill(~hidden, float("inf"))
        still_hidden.scatter_(1, early.topk(count, dim=-1, largest=False).indices, True)
    return drawn.view(shape), still_hidden.view(shape)


def _confidence(logits: Tensor, drawn: Tensor, sampling: Sampling, step: int, seeds: Tensor, frame: int) -> Tensor:
    """Log-probability of each drawn token, (B, N), with noise that is annealed to 0 over the passes."""
    confidence = torch.log_softmax(logits.float(), dim=-1).gather(-1, drawn[..., None])[..., 0]
    if sampling.noise > 0:
        noise = gumbel(seeds, (frame, step, 1), confidence.shape[1:])
        confidence = confidence + sampling.noise * (1 - (step + 1) / sampling.steps) * noise
    return confidence


@cache
def hidden_counts(total: int, steps: int, schedule: str) -> tuple[int, ...]:
    """How many of `total` tokens are still hidden after each pass. Known beforehand, so that no device is asked."""
    counts, hidden = [], total
    for step in range(steps - 1):
        progress = (step + 1) / steps
        if schedule == "published":
            hidden = math.floor(total * masked_share(min(1.0, progress + 1 / steps), "cosine"))
        else:
            hidden = max(1, min(hidden - 1, math.floor(total * masked_share(progress, schedule))))
        counts.append(hidden)
    return (*counts, 0)


@cache
def halton_priority(num_frames: int, h: int, w: int, device: torch.device | None = None) -> Tensor:
    """How early each token is revealed, (num_frames · h · w,): the higher, the earlier.

    The order in which a Halton sequence (bases 2 and 3) first meets the cells of the grid: tokens that are drawn
    together stand far apart, so that they depend little on each other (Besnier et al., 2025). Frames take turns.
    """
    ranks: dict[tuple[int, int], int] = {}  # of the cells, in the order in which they were met
    index = 0
    while len(ranks) < h * w:
        index += 1
        cell = int(_radical_inverse(index, 2) * h), int(_radical_inverse(index, 3) * w)
        ranks.setdefault(cell, len(ranks))
    rank = torch.tensor([ranks[row, column] for row in range(h) for column in range(w)])
    turns = rank[None] * num_frames + torch.arange(num_frames)[:, None]
    return -turns.flatten().float().to(device)


def _radical_inverse(index: int, base: int) -> float:
    """The digits of `index` mirrored at the point, in [0, 1)."""
    result, weight = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        result += digit * weight
        weight /= base
    return result
