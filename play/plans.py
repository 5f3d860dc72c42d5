"""What a dream will be: from which given frames, under which actions, in whose company; and how it is sampled."""

from itertools import cycle, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.clips import Clip
from models.genie_redux import WorldModel
from models.interfaces import Sampling
from play import action_words, footage
from play.footage import Footage
from play.library import Entry
from play.player import as_trained
from training.settings import DreamSettings

RANDOM, INFERRED = "random", "inferred"


class Plan(NamedTuple):
    """What will be dreamed: P given frames, and K actions that each lead to a new one."""

    given: np.ndarray  # (P, H, W, 3) uint8
    actions: np.ndarray  # (P-1+K,) int64, those between the given frames first
    beside: np.ndarray | None = None  # (P+K, H, W, 3) uint8, shown above the dream
    beside_name: str = "real"
    end: str = ""  # why it is shorter than was asked for


def sampling_of(settings: DreamSettings, entry: Entry) -> Sampling:
    """At a temperature, refinement also draws which tokens are kept, as MaskGIT does. Raises ValueError."""
    if settings.inference_steps > 1 and not entry.can_refine:
        raise ValueError(
            f"{settings.key('inference_steps')}={settings.inference_steps}: {entry.name} makes one pass a frame "
            "(dynamics.rule=next); leave it at 1"
        )
    return Sampling(
        steps=settings.inference_steps,
        temperature=settings.temperature,
        top_k=settings.top_k,
        noise=settings.temperature,
    )


def window_of(settings: DreamSettings, entry: Entry, world: WorldModel) -> int:
    """Latest frames that attention over time reads; at most what the position table has room for."""
    window = settings.window or entry.window
    return min(window, world.dynamics.context or window)


def read_footage(settings: DreamSettings, entry: Entry) -> tuple[Footage, Footage | None]:
    """The prompt, as long as is needed, and what `dream.actions_from` names. Raises ValueError or OSError."""
    num_given, num_new = settings.num_first_frames, settings.num_frames
    is_followed = is_inferred(settings) and settings.actions_from is None
    prompt = footage.read(settings, "prompt", entry, num_given + num_new if is_followed else num_given)
    if len(prompt.frames) < num_given:
        raise ValueError(
            f"dream.num_first_frames={num_given}: dream.prompt={settings.prompt} has {len(prompt.frames)}; set it lower"
        )
    if is_followed and len(prompt.frames) == num_given:
        raise ValueError(
            f"dream.actions=inferred: dream.prompt={settings.prompt} has no frames after the given ones to read actions"
            " off; set dream.actions_from to a video or dataset:INDEX"
        )
    if settings.actions_from is None:
        return prompt, None
    source = footage.read(settings, "actions_from", entry, num_new + 1)
    if len(source.frames) < 2:
        raise ValueError(f"dream.actions_from={settings.actions_from} has one frame, and no action leads from it")
    return prompt, source


def make_plan(
    settings: DreamSettings,
    entry: Entry,
    world: WorldModel,
    window: int,
    prompt: Footage,
    source: Footage | None,
    words: np.ndarray | None,
) -> Plan:
    """words: (K,) actions that were asked for; None where they are inferred."""
    num_given = settings.num_first_frames
    given = prompt.frames[:num_given]
    if words is None and source is None:
        actions = infer(world, prompt, window, f"dream.prompt={settings.prompt}")
        end = _end(settings, len(actions) - num_given + 1, settings.prompt)
        return Plan(given, actions, prompt.frames, "real", end)
    first = Footage(given, None if prompt.actions is None else prompt.actions[: num_given - 1], prompt.action_names)
    between = np.zeros(0, np.int64)
    if num_given > 1:
        between = infer(world, first, window, f"dream.num_first_frames={num_given}, dream.prompt={settings.prompt}")
    if source is None:
        return Plan(given, np.concatenate([between, words]))
    actions = infer(world, source, window, f"dream.actions_from={settings.actions_from}")
    beside = np.concatenate([source.frames[:1].repeat(num_given - 1, axis=0), source.frames])
    end = _end(settings, len(actions), settings.actions_from)
    return Plan(given, np.concatenate([between, actions]), beside, "source", end)


def is_inferred(settings: DreamSettings) -> bool:
    return settings.actions == INFERRED or settings.actions_from is not None


def written_actions(settings: DreamSettings, names: list[str], real_names: dict[str, int]) -> np.ndarray:
    """(K,) actions that the settings say, repeated to the end, or drawn uniformly. The names as in `action_words`."""
    if settings.actions in (None, RANDOM):
        return np.random.default_rng(settings.seed).integers(len(names), size=settings.num_frames)
    written = action_words.parse(settings.actions, names, real_names)
    return np.array(list(islice(cycle(written), settings.num_frames)), dtype=np.int64)


def _end(settings: DreamSettings, num_new: int, name: str) -> str:
    return f"; {name} ends there" if num_new < settings.num_frames else ""


@torch.no_grad()
def infer(world: WorldModel, seen: Footage, window: int, what: str) -> np.ndarray:
    """Actions (T-1,) between the frames: as recorded, or as a latent world reads them off, `window` frames at a time.

    Raises ValueError where a world of recorded actions meets frames without any, or with those of another game.
    """
    if not world.is_latent:
        if seen.actions is None:
            raise ValueError(f"{what} has no recorded actions, and a guided world reads none off frames")
        if len(seen.action_names) != world.num_actions:
            raise ValueError(f"{what} has {len(seen.action_names)} actions, this world knows {world.num_actions}")
        return seen.actions
    device = next(world.parameters()).device
    actions = []
    for start in range(0, len(seen.frames) - 1, window - 1 or 1):
        frames = to_tensor(seen.frames[start : start + max(window, 2)], device)
        with as_trained(device):
            actions.append(world.infer(Clip(frames, None))[0].cpu().numpy())
    return np.concatenate(actions)


def to_tensor(frames: np.ndarray, device: torch.device) -> Tensor:
    """(T, H, W, 3) uint8 -> (1, T, C, H, W) float in [0, 1]."""
    return torch.from_numpy(frames.copy()).to(device).permute(0, 3, 1, 2)[None].float() / 255
