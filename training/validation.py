"""How a model does on clips it does not train on: the loss over a fixed set, and moving pictures to look at."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from data.clips import ClipDataset, evaluation_clips
from training.dreams import names_of_actions, samples_of
from training.rollouts import first_frames, roll_out
from training.scorers import Drawn
from training.settings import EvalSettings, TrainSettings
from training.usage import Usage
from training.video import write_dream_vs_real

HIGHER_IS_BETTER = (
    "token_accuracy",
    "codes_used",
    "codes_share",
    "actions_used",
    "actions_share",
)  # the rest are losses
NUM_SAMPLES = 4  # clips drawn side by side


@torch.no_grad()
def validation_scores(
    model: nn.Module, dataset: ClipDataset, settings: TrainSettings, accelerator: Accelerator, step: int
) -> dict[str, float]:
    """Means over clips of the loss and of what the model logs.

    In the loss every clip counts once, whatever batch or process; what the model logs of a batch is weighted by its
    clips.
    """
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


def check_score_name(model: nn.Module, dataset: ClipDataset, settings: TrainSettings, accelerator: Accelerator) -> None:
    """Raise ValueError where `train.keep_best` names no validation score; one clip tells which there are.

    All processes must call this, with a model that is not wrapped yet.
    """
    if settings.keep_best in (None, "loss"):
        return
    usage, one_clip = Usage(model), replace(settings, batch_size=1, num_validation_clips=1)
    with accelerator.autocast(), usage.counting():
        scores = validation_scores(model, dataset, one_clip, accelerator, step=0)
    usage.gather(accelerator.device)
    known = [name.removeprefix("validation/") for name in scores | usage.scores()]
    if settings.keep_best not in known:
        raise ValueError(f"train.keep_best={settings.keep_best} is not among the validation scores: {', '.join(known)}")


def is_better(name: str, value: float, best: float) -> bool:
    """Whether a validation score beats the best one so far. name: without the prefix `validation/`."""
    return value > best if name in HIGHER_IS_BETTER else value < best


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
    """A GIF and a strip of held-out clips: real frames above, below them what the model makes of them.

    A tokenizer reconstructs; a world sees the first frame and dreams `train.sample_num_frames` on, the way `rolling`
    (the settings of evaluation) says. Other modules draw nothing.
    """
    can_dream = hasattr(model, "rollout") and rolling is not None
    if not can_dream and not hasattr(model, "decode"):
        return []
    clips = evaluation_clips(dataset, batch_size=NUM_SAMPLES, num_clips=NUM_SAMPLES, seed=settings.seed)
    clip = next(clips).to(accelerator.device)
    was_training = model.training
    model.eval()
    with accelerator.autocast():
        if can_dream:
            rolling = dreamed_in_training(rolling, settings)
            clip = first_frames(clip, 1 + settings.sample_num_frames)
            actions = model.infer(clip)
            frames = torch.cat([clip.frames[:, :1], roll_out(model, clip, actions, rolling).float()], dim=1)
            drawn = Drawn(clip.frames, frames, 1, actions)
        else:
            drawn = Drawn(clip.frames, model.decode(model.encode(clip.frames)), 0, None)
    model.train(was_training)
    numbers = list(range(len(clip.frames)))
    samples = samples_of(drawn, numbers, set(numbers), names_of_actions(model, dataset))
    return write_dream_vs_real(folder, samples, "dream" if can_dream else "reconstruction")


def dreamed_in_training(rolling: EvalSettings, settings: TrainSettings) -> EvalSettings:
    """Evaluation's way to roll out, on a training clip: one given frame, `train.sample_num_frames` predicted."""
    length = settings.sample_num_frames
    changes = {"num_first_frames": 1, "sample_num_frames": length, "num_frames": length + 1, "delta_psnr_horizon": 1}
    return replace(rolling, **changes, mixed_precision="no")  # that of training is on
