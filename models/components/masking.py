"""Which tokens are hidden: in training at random, in sampling by confidence (MaskGIT, Chang et al., 2022)."""

import math
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from models.components.random import Stream, gumbel, uniform
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


class Pass(NamedTuple):
    """What changes from one pass of iterative decoding to the next, on the device: () tensors."""

    number: Tensor  # int64, from 0
    num_hidden: Tensor  # int64, tokens that are still hidden after it
    noise: Tensor  # float32, scale of the noise on the confidence
    temperature: Tensor  # float32


@lru_cache(maxsize=64)
def passes(sampling: Sampling, total: int, device: torch.device) -> tuple[Pass, ...]:
    """The passes over `total` new tokens."""
    counts = hidden_counts(total, sampling.steps, sampling.schedule)
    return tuple(
        Pass(
            torch.full((), number, device=device),
            torch.full((), count, device=device),
            torch.full((), sampling.noise * (1 - (number + 1) / sampling.steps), device=device, dtype=torch.float32),
            torch.full((), sampling.temperature, device=device, dtype=torch.float32),
        )
        for number, count in enumerate(counts)
    )


def draw(logits: Tensor, sampling: Sampling, temperature: Tensor, seeds: Tensor, stream: Stream) -> Tensor:
    """Token ids (B, N) from logits (B, N, K): the most likely at temperature 0, else a sample per clip's seed."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    return (logits + gumbel(seeds, (*stream, 0), logits.shape[1:])).argmax(dim=-1)


def refine(
    logits: Tensor,
    tokens: Tensor,
    hidden: Tensor,
    sampling: Sampling,
    turn: Pass,
    seeds: Tensor,
    frame: int | Tensor,
    *,
    is_last: bool,
) -> tuple[Tensor, Tensor]:
    """One pass of iterative decoding. Returns the new (tokens, hidden), both (B, K, h, w) as they came.

    logits: (B, K, h, w, codes). Hidden tokens are drawn; then those that come last in `sampling.order` are hidden again
    so that the schedule's share stays masked; of equal ones the first. Tokens accepted in an earlier pass never change.
    turn: the pass's numbers; of `sampling` itself only kinds are read, of whose graphs few exist. frame: number of the
    first new frame, which keys the noise. is_last: nothing stays hidden.
    """
    shape = tokens.shape
    logits, tokens, hidden = logits.flatten(1, 3), tokens.flatten(1), hidden.flatten(1)
    drawn = torch.where(hidden, draw(logits, sampling, turn.temperature, seeds, (frame, turn.number)), tokens)
    if is_last:
        return drawn.view(shape), torch.zeros_like(hidden).view(shape)
    if sampling.order == "halton":
        early = halton_priority(*shape[1:], tokens.device).expand_as(tokens)
    else:
        early = _confidence(logits, drawn, sampling, turn, seeds, frame)
    order = early.masked_fill(~hidden, float("inf")).sort(dim=-1, stable=True).indices
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    still_hidden = torch.empty_like(order).scatter_(1, order, places) < turn.num_hidden
    return drawn.view(shape), still_hidden.view(shape)


def _confidence(
    logits: Tensor, drawn: Tensor, sampling: Sampling, turn: Pass, seeds: Tensor, frame: int | Tensor
) -> Tensor:
    """Log-probability of each drawn token, (B, N), with noise that is annealed to 0 over the passes."""
    confidence = torch.log_softmax(logits.float(), dim=-1).gather(-1, drawn[..., None])[..., 0]
    if sampling.noise > 0:
        confidence = confidence + turn.noise * gumbel(seeds, (frame, turn.number, 1), confidence.shape[1:])
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
