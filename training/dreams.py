"""The pictures of an evaluation: clips beside what the model makes of them, the best, median and worst of them, every
action, one action held down.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.clips import Clip, ClipDataset, evaluation_clips
from training.metrics import psnr
from training.rollouts import autocast, first_frames, roll_out
from training.scorers import Drawn
from training.settings import EvalSettings
from training.video import Sample, animation, to_pictures, write_dream_vs_real, write_gif

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
    names = list(dataset.episodes.action_names)
    # A world may know more actions than the data that it is shown.
    return names + [f"action {index}" for index in range(len(names), model.num_actions)]


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


def draw(
    model: nn.Module,
    dataset: ClipDataset,
    settings: EvalSettings,
    folder: Path,
    samples: list[Sample],
    psnr_by_clip: np.ndarray,
    device: torch.device,
) -> None:
    """All pictures of an evaluation, or none where `eval.num_samples` is 0."""
    if not settings.num_samples:
        return
    write_pictures(folder, samples)
    draw_chosen(model, dataset, settings, folder, device, psnr_by_clip)
    if hasattr(model, "rollout"):
        draw_every_action(model, dataset, settings, folder, device)


def write_pictures(folder: Path, samples: list[Sample]) -> None:
    """`clip-0000.gif|png` for every sample, and `dream_vs_real.gif|png` with several of them."""
    if not samples:
        return
    for sample in samples:
        write_dream_vs_real(folder, [sample], f"clip-{sample.number:04d}")
    write_dream_vs_real(folder, [samples[index] for index in sorted(spread(len(samples), NUM_SIDE_BY_SIDE))])


def choose(psnr_by_clip: np.ndarray) -> dict[str, int]:
    """Numbers of the clips with the best, the median and the worst PSNR. psnr_by_clip: (N, T), by clip number."""
    order = np.argsort(-psnr_by_clip.mean(axis=1), kind="stable")
    return {"best": int(order[0]), "median": int(order[(len(order) - 1) // 2]), "worst": int(order[-1])}


@torch.no_grad()
def redraw(
    model: nn.Module, dataset: ClipDataset, settings: EvalSettings, number: int, device: torch.device
) -> tuple[Drawn, float]:
    """Clip `number` of the evaluation set once more, and its PSNR in dB.

    Which clips are worth looking at is known only after all of them were scored. Clip and noise follow from the
    number, so that any process can draw what another one scored.
    """
    total = len(dataset) if settings.num_clips is None else min(settings.num_clips, len(dataset))
    alone = {"rank": number, "world_size": total}
    (clip,) = evaluation_clips(dataset, batch_size=1, num_clips=total, seed=settings.seed, **alone)
    clip = clip.to(device)
    if hasattr(model, "rollout"):
        clip = first_frames(clip, settings.num_first_frames + settings.sample_num_frames)
        with autocast(settings, device):
            actions = model.infer(clip)
        prompt = clip.frames[:, : settings.num_first_frames]
        dream = roll_out(model, clip, actions, settings).to(prompt.dtype)
        drawn = Drawn(clip.frames, torch.cat([prompt, dream], dim=1), settings.num_first_frames, actions)
    else:
        with autocast(settings, device):
            tokens = model.encode(clip.frames)
        drawn = Drawn(clip.frames, model.decode(tokens), 0, None)
    return drawn, float(psnr(drawn.model, drawn.true)[:, drawn.num_given :].mean())


def draw_chosen(
    model: nn.Module,
    dataset: ClipDataset,
    settings: EvalSettings,
    folder: Path,
    device: torch.device,
    psnr_by_clip: np.ndarray,
) -> None:
    """Writes `best.gif`, `median.gif` and `worst.gif`: truth, dream and their difference."""
    for name, number in choose(psnr_by_clip).items():
        drawn, quality = redraw(model, dataset, settings, number, device)
        (sample,) = samples_of(drawn, [number], {number}, names_of_actions(model, dataset))
        sample = sample._replace(title=f"{name}: clip {number}, {quality:.2f} dB", has_difference=True)
        write_gif(folder / f"{name}.gif", animation([sample]))


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
