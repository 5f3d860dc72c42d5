"""The pictures of an evaluation: clips beside what the model makes of them, every action, one action held down."""

from pathlib import Path

import torch
from torch import Tensor, nn

from data.clips import Clip, ClipDataset, evaluation_clips
from training.scorers import Drawn, first_frames, roll_out
from training.settings import EvalSettings
from training.video import Sample, to_pictures, write_dream_vs_real

NUM_SIDE_BY_SIDE = 6  # clips in dream_vs_real


def spread(num_clips: int, num_samples: int) -> set[int]:
    """`num_samples` clip numbers spread evenly over 0 … num_clips - 1."""
    count = min(num_clips, num_samples)
    return {index * num_clips // count for index in range(count)}


def names_of_actions(model: nn.Module, dataset: ClipDataset) -> list[str] | None:
    """The recorded actions' names; a latent world's actions have only their numbers, a tokenizer has none."""
    if not hasattr(model, "rollout"):
        return None
    if model.is_latent:
        return [f"action {index}" for index in range(model.num_actions)]
    return list(dataset.episodes.action_names)


def samples_of(drawn: Drawn, numbers: list[int], wanted: set[int], action_names: list[str] | None) -> list[Sample]:
    """The clips of a batch whose numbers are wanted, ready to be drawn."""
    samples = []
    for row, number in enumerate(numbers):
        if number not in wanted:
            continue
        names = None
        if drawn.actions is not None and action_names is not None:
            names = [action_names[index] for index in drawn.actions[row].tolist()]
        true, model = to_pictures(drawn.true[row]), to_pictures(drawn.model[row])
        samples.append(Sample(number, true, model, drawn.num_given, names))
    return samples


def write_pictures(folder: Path, samples: list[Sample]) -> None:
    """`clip-0000.gif|png` for every sample, and `dream_vs_real.gif|png` with several of them."""
    if not samples:
        return
    for sample in samples:
        write_dream_vs_real(folder, [sample], f"clip-{sample.number:04d}")
    write_dream_vs_real(folder, [samples[index] for index in sorted(spread(len(samples), NUM_SIDE_BY_SIDE))])


@torch.no_grad()
def every_action(world: nn.Module, clip: Clip, settings: EvalSettings, names: list[str]) -> list[Sample]:
    """Each action, taken again and again from the same frames. clip: a batch of one on the world's device."""
    count = world.num_actions
    clip = Clip(*(None if part is None else part.expand(count, *part.shape[1:]) for part in clip))
    return _held_down(world, clip, torch.arange(count, device=clip.frames.device), settings, names)


def draw_every_action(
    world: nn.Module, dataset: ClipDataset, settings: EvalSettings, folder: Path, device: torch.device
) -> None:
    """Writes `every_action.gif|png`."""
    clip = next(evaluation_clips(dataset, batch_size=1, num_clips=1, seed=settings.seed)).to(device)
    samples = every_action(world, clip, settings, names_of_actions(world, dataset))
    write_dream_vs_real(folder, samples, "every_action")


@torch.no_grad()
def draw_one_action(
    world: nn.Module, dataset: ClipDataset, settings: EvalSettings, folder: Path, device: torch.device
) -> int:
    """`eval.action_to_take` at every frame after the given ones, in several clips. Returns their number."""
    samples: list[Sample] = []
    num_clips = max(1, settings.num_samples)
    for clip in evaluation_clips(dataset, batch_size=settings.batch_size, num_clips=num_clips, seed=settings.seed):
        clip = clip.to(device)
        action = torch.full((len(clip.frames),), settings.action_to_take, device=device)
        samples += _held_down(world, clip, action, settings, names_of_actions(world, dataset), first=len(samples))
    write_pictures(folder, samples)
    return len(samples)


def _held_down(
    world: nn.Module, clip: Clip, action: Tensor, settings: EvalSettings, names: list[str], first: int = 0
) -> list[Sample]:
    """Dreams in which row b takes action[b] after the prompt; there is no truth to compare them with."""
    clip = first_frames(clip, settings.num_first_frames + settings.sample_num_frames)
    actions = world.infer(clip).clone()
    actions[:, settings.num_first_frames - 1 :] = action[:, None]
    frames = roll_out(world, clip, actions, settings)
    prompt = clip.frames[:, : settings.num_first_frames]
    dreams = torch.cat([prompt, frames.to(prompt.dtype)], dim=1)
    return [
        Sample(first + row, None, to_pictures(dreams[row]), settings.num_first_frames, title=names[index])
        for row, index in enumerate(action.tolist())
    ]
