"""How a model does on clips it does not train on: the loss over a fixed set, and moving pictures to look at."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor, nn

from data.clips import Clip, ClipDataset, evaluation_clips
from models.interfaces import Sampling
from training.settings import EvalSettings, TrainSettings

NUM_SAMPLES = 4  # clips drawn side by side
ZOOM = 2
FRAME_MILLISECONDS = 150
GAP = 2  # pixels between pictures


@torch.no_grad()
def validation_scores(
    model: nn.Module, dataset: ClipDataset, settings: TrainSettings, accelerator: Accelerator, step: int
) -> dict[str, float]:
    """Means over clips of the loss and of what the model logs; every clip counts once, whatever batch or process."""
    clips = evaluation_clips(
        dataset,
        batch_size=settings.batch_size,
        num_clips=settings.num_validation_clips,
        seed=settings.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    sums: Counter[str] = Counter()
    was_training = model.training
    model.eval()
    for clip in clips:
        output = model(clip.to(accelerator.device), step)
        rows = len(clip.frames)
        for name, value in {"loss": output.loss, **output.logs}.items():
            sums[name] += value.float().mean().item() * rows
        sums["clips"] += rows
    model.train(was_training)
    # A process without any clip knows no names, so the sums travel as objects.
    total = sum_of(gather_object([dict(sums)]))
    return {f"validation/{name}": value / total["clips"] for name, value in total.items() if name != "clips"}


def sum_of(parts: list[dict[str, float]]) -> dict[str, float]:
    """Sums by name, always added in the order of the processes."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


@torch.no_grad()
def write_samples(
    model: nn.Module,
    dataset: ClipDataset,
    settings: TrainSettings,
    accelerator: Accelerator,
    rolling: EvalSettings | None,
    folder: Path,
) -> list[Path]:
    """A GIF of held-out clips: real frames on top, below them what the model makes of them.

    A tokenizer reconstructs; a world sees the first frame and dreams `train.sample_num_frames` on, the way `rolling`
    (the settings of evaluation) says. Other modules draw nothing.
    """
    can_dream = hasattr(model, "rollout")
    if not can_dream and not hasattr(model, "decode"):
        return []
    batch = next(evaluation_clips(dataset, batch_size=NUM_SAMPLES, num_clips=NUM_SAMPLES, seed=settings.seed))
    clip = batch.to(accelerator.device)
    was_training = model.training
    model.eval()
    with accelerator.autocast():
        drawn = dream(model, clip, settings.sample_num_frames, rolling) if can_dream else reconstruct(model, clip)
    model.train(was_training)
    fpath = folder / ("dream.gif" if can_dream else "reconstruction.gif")
    write_gif(fpath, clip.frames[:, : drawn.shape[1]], drawn)
    return [fpath]


def reconstruct(tokenizer: nn.Module, clip: Clip) -> Tensor:
    return tokenizer.decode(tokenizer.encode(clip.frames))


def dream(world: nn.Module, clip: Clip, num_frames: int, rolling: EvalSettings | None) -> Tensor:
    """The first frame and `num_frames` predicted ones, (B, 1 + num_frames, C, H, W)."""
    sampling, chunk = Sampling(), 1
    if rolling is not None:
        sampling = Sampling(
            steps=rolling.inference_steps,
            schedule=rolling.sample_schedule,
            temperature=rolling.sample_temperature,
            top_k=rolling.sample_top_k,
            noise=rolling.sample_noise,
        )
        chunk = num_frames if rolling.inference_method == "one_go" else rolling.dream_length
    prompt = clip.frames[:, :1]
    actions = world.infer(clip)[:, :num_frames]
    rollout = world.rollout(prompt, actions, sampling=sampling, chunk=chunk, seeds=clip.seeds)
    return torch.cat([prompt, rollout.frames.float()], dim=1)


def write_gif(fpath: Path, *rows: Tensor) -> None:
    """An endless GIF; each row is (B, T, 3, H, W) in [0, 1], clips side by side, rows below each other."""
    fpath.parent.mkdir(parents=True, exist_ok=True)
    grid = torch.stack([row.float().clamp(0, 1).mul(255).round().byte().cpu() for row in rows])
    grid = torch.nn.functional.pad(grid, (0, GAP, 0, GAP), value=255)  # (rows, B, T, 3, H, W)
    num_rows, num_clips, num_frames, channels, height, width = grid.shape
    pictures = grid.permute(2, 0, 4, 1, 5, 3).reshape(num_frames, num_rows * height, num_clips * width, channels)
    size = (num_clips * width * ZOOM, num_rows * height * ZOOM)
    images = [Image.fromarray(np.asarray(picture)).resize(size, Image.Resampling.NEAREST) for picture in pictures]
    images[0].save(fpath, save_all=True, append_images=images[1:], duration=FRAME_MILLISECONDS, loop=0)
