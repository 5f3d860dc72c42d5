"""Which tokens are hidden: in training at random, in sampling by confidence (MaskGIT, Chang et al., 2022)."""

import math

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
    """One pass of iterative decoding. Returns the new (tokens, hidden), both (B, N).

    Hidden tokens are drawn; then the least sure of them are hidden again so that the schedule's share stays masked.
    Tokens accepted in an earlier pass never change. frame: number of the first new frame, which keys the noise.
    """
    drawn = torch.where(hidden, draw(logits, sampling, seeds, (frame, step)), tokens)
    if step == sampling.steps - 1:
        return drawn, torch.zeros_like(hidden)
    progress = (step + 1) / sampling.steps
    log_probability = torch.log_softmax(logits.float(), dim=-1)
    confidence = log_probability.gather(-1, drawn[..., None])[..., 0]
    if sampling.noise > 0:
        noise = gumbel(seeds, (frame, step, 1), confidence.shape[1:])
        confidence = confidence + sampling.noise * (1 - progress) * noise
    confidence = confidence.masked_fill(~hidden, float("inf"))
    total = hidden.shape[1]
    if sampling.schedule == "published":
        count = math.floor(total * masked_share(min(1.0, progress + 1 / sampling.steps), "cosine"))
    else:
        # The same count in every clip of the batch, since all began fully masked.
        still_hidden = int(hidden[0].sum())
        count = max(1, min(still_hidden - 1, math.floor(total * masked_share(progress, sampling.schedule))))
    lowest = confidence.topk(count, dim=-1, largest=False).indices
    return drawn, torch.zeros_like(hidden).scatter_(1, lowest, True)
