"""How an evaluation lets a world dream: from which frames, under which actions, how far, in which precision."""

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from data.clips import Clip
from models.interfaces import Rollout, Sampling
from training.settings import EvalSettings

RANDOM, REPLACED = 0, 1  # streams of random actions


def roll_out(
    world: nn.Module, clip: Clip, actions: Tensor, settings: EvalSettings, num_needed: int | None = None
) -> Tensor:
    """The frames that `dream` gives, (B, K, C, H, W)."""
    return dream(world, clip, actions, settings, num_needed=num_needed).frames


def dream(
    world: nn.Module,
    clip: Clip,
    actions: Tensor,
    settings: EvalSettings,
    *,
    num_needed: int | None = None,
    tokens: Tensor | None = None,
    num_done: int = 0,
) -> Rollout:
    """What a world predicts after the clip's first frames, the way the settings say: K frames, or less.

    num_needed: stop early, but so that the first `num_needed` frames are those of the whole rollout. Worlds are causal
    in time and noise belongs to a position, so one pass over fewer frames gives the same; several passes order the
    tokens of a round by confidence, and the round must stay whole.
    tokens: (B, P or more, h, w), of the clip's first frames, where they are at hand.
    num_done: so many predicted frames, a number of whole rounds, are in the clip already, after the given ones; what
    comes after them is returned.
    """
    num_given, num_new = settings.num_first_frames, settings.sample_num_frames
    chunk = chunk_of(settings)
    length = num_new if num_needed is None else num_needed
    if settings.inference_steps > 1:
        length = min(num_new, -(-length // chunk) * chunk)
    num_known = num_given + num_done
    with autocast(settings, clip.frames.device):
        return world.rollout(
            clip.frames[:, :num_known],
            actions[:, : num_given + length - 1],
            sampling=sampling_of(settings),
            chunk=min(chunk, length - num_done),
            seeds=clip.seeds,
            prompt_tokens=None if tokens is None else tokens[:, :num_known],
        )


def frames_before(settings: EvalSettings, horizon: int) -> int:
    """Predicted frames of the rounds before the one that predicts frame `horizon` (counted from 1)."""
    chunk = chunk_of(settings)
    return (horizon - 1) // chunk * chunk


def precision(settings: EvalSettings, device: torch.device) -> str:
    """ "no" or "bf16": as set, else as training chooses it, bf16 on a GPU that has it."""
    if settings.mixed_precision is not None:
        return settings.mixed_precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "no"


def autocast(settings: EvalSettings, device: torch.device) -> AbstractContextManager:
    """Mixed precision for the model.

    The frozen tokenizer's encoder runs in it too, as it does in training: in bf16 some tokens in a thousand lie so near
    a tie that they come out as another code, and a world should be given the tokens that it knows. Pixels are never
    bf16: tokens are decoded in full precision, and metrics are computed in fp32.
    """
    is_mixed = precision(settings, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if is_mixed else nullcontext()


def chunk_of(settings: EvalSettings) -> int:
    """Frames that are predicted together."""
    return settings.sample_num_frames if settings.inference_method == "one_go" else settings.dream_length


def sampling_of(settings: EvalSettings) -> Sampling:
    return Sampling(
        steps=settings.inference_steps,
        schedule=settings.sample_schedule,
        temperature=settings.sample_temperature,
        top_k=settings.sample_top_k,
        noise=settings.sample_noise,
        order=settings.sample_order,
    )


def first_frames(clip: Clip, num_frames: int) -> Clip:
    actions = None if clip.actions is None else clip.actions[:, : num_frames - 1]
    return clip._replace(frames=clip.frames[:, :num_frames], actions=actions)


def random_actions(actions: Tensor, seeds: Tensor, num_given: int, num_actions: int, sequence: int) -> Tensor:
    """`actions` (B, P-1+K) with all after the prompt drawn uniformly, by each clip's seed and the sequence's number."""
    others = actions.clone()
    for row, seed in enumerate(seeds.tolist()):
        drawn = _generator(seed, RANDOM, sequence).integers(num_actions, size=actions.shape[1])
        others[row, num_given - 1 :] = torch.from_numpy(drawn[num_given - 1 :])
    return others


def replace_action(actions: Tensor, seeds: Tensor, place: int, num_actions: int) -> Tensor:
    """`actions` with the one at `place` replaced by a different one, uniformly among the others."""
    others = actions.clone()
    for row, seed in enumerate(seeds.tolist()):
        step = int(_generator(seed, REPLACED).integers(1, num_actions))
        others[row, place] = (actions[row, place] + step) % num_actions
    return others


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)
