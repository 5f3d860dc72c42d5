"""Learning rates as pure functions of where the training stands, so that a resumed run needs no schedule state."""

import math

from torch.optim import Optimizer

from training.settings import ScheduleSettings

WARMUP_START = 0.5  # share of the learning rate at step 0, as published
WSD_DECAY_SHARE = 0.2  # the last part of the training, in which "wsd" decays


def warmup(step: int, warmup_steps: int) -> float:
    """Factor on the learning rate: linear from `WARMUP_START` at step 0 to 1 at `warmup_steps`, 1 from there on."""
    if step >= warmup_steps:
        return 1.0
    return WARMUP_START + (1 - WARMUP_START) * step / warmup_steps


def cosine(progress: float) -> float:
    """Share of the decay that is still to come at `progress` in [0, 1]: 1 at the start, 0 at the end, flat after it."""
    return (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2


def stable_then_linear(progress: float) -> float:
    """1 until the last `WSD_DECAY_SHARE`, then linear to 0: warm-up, stable, decay (Hu et al., 2024)."""
    return min(1.0, max(0.0, (1 - progress) / WSD_DECAY_SHARE))


def constant(progress: float) -> float:
    return 1.0


KINDS = {"cosine": cosine, "wsd": stable_then_linear, "constant": constant}


def learning_rate_factor(step: int, progress: float, settings: ScheduleSettings, num_train_steps: int) -> float:
    """Factor on the learning rate after `step` updates, at `progress` in [0, 1] of the training.

    Warm-up counts steps; the decay goes from the warm-up's end to the training's end and never rises again. `progress`
    exceeds step / num_train_steps where a wall-clock budget ends the training first.
    """
    warmup_share = min(1.0, settings.warmup_steps / num_train_steps)
    decaying = (progress - warmup_share) / (1 - warmup_share) if warmup_share < 1 else 0.0
    left = KINDS[settings.kind](decaying)
    return warmup(step, settings.warmup_steps) * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * left)


class Schedule:
    """Sets an optimizer's learning rates; each parameter group keeps its own peak."""

    def __init__(self, optimizer: Optimizer, settings: ScheduleSettings, num_train_steps: int):
        self.optimizer = optimizer
        self.settings = settings
        self.num_train_steps = num_train_steps
        # Not kept in the groups: a loaded optimizer state brings the rates of the step it was saved at.
        self.peaks = [group["lr"] for group in optimizer.param_groups]

    def apply(self, step: int, progress: float) -> None:
        factor = learning_rate_factor(step, progress, self.settings, self.num_train_steps)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor

    @property
    def lr(self) -> float:
        """The learning rate of the first group, as applied last."""
        return self.optimizer.param_groups[0]["lr"]

    def in_words(self) -> str:
        """What becomes of the first group's learning rate; a warm-up that never ends is easily overlooked."""
        peak, settings, total = self.peaks[0], self.settings, self.num_train_steps
        if settings.warmup_steps >= total:
            reached = peak * warmup(total - 1, settings.warmup_steps)
            return (
                f"up to {reached:.3g} only, since the warm-up to {peak:.3g} would take {settings.warmup_steps:,} "
                "steps; --optimizer.warmup_steps sets it"
            )
        after = f" after {settings.warmup_steps:,} steps of warm-up" if settings.warmup_steps else ""
        end = "" if settings.kind == "constant" else f" to {peak * settings.min_lr_ratio:.3g}"
        return f"{peak:.3g}{after}, {settings.kind}{end}"
