"""All that a run is between two steps, so that a checkpoint of it makes the next step the one it would have been."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from models import pretrained
from training import checkpoint
from training.ema import MovingAverage, copy_into
from training.objectives import Part
from training.optimizers import trainable


class TrainingState:
    """Parts, their moving average and the counters.

    model: the parts' common root without its distributed wrapper, whose state is the weight file.
    """

    def __init__(self, accelerator: Accelerator, parts: dict[str, Part], model: nn.Module, ema_decay: float | None):
        self.accelerator = accelerator
        self.parts = parts
        self.model = model
        self.weights = trainable(model)
        self.ema = None if ema_decay is None else MovingAverage(self.weights, ema_decay)
        self.step = 0  # updates done
        self.clips_consumed = 0
        self.elapsed = 0.0  # seconds since the training began, as all processes see it; goes on over a resume
        self.best: tuple[float, int, str] | None = None  # validation score, its step, its name
        self.log_run_id: str | None = None

    def advance(self, num_clips: int) -> None:
        """Called after each update."""
        if self.ema is not None:
            self.ema.update(self.step)
        self.step += 1
        self.clips_consumed += num_clips

    def averaged_weights(self) -> AbstractContextManager:
        """Inside, the model has the weights that others will load: the moving average where there is one."""
        return nullcontext() if self.ema is None else self.ema.in_place()

    def write_weights(self, fpath: Path, config: dict[str, Any], metadata: dict[str, Any]) -> None:
        with self.averaged_weights():
            pretrained.save_weights(self.model, fpath, config=config, metadata=metadata)

    def state_dict(self) -> dict[str, Any]:
        """What the weight file does not hold, in types that `weights_only` reads back. All processes must call this.

        Where there is a moving average, the weight file holds it and the weights are here.
        """
        return {
            "step": self.step,
            "clips_consumed": self.clips_consumed,
            "elapsed": self.elapsed,
            "best": self.best,
            "log_run_id": self.log_run_id,
            "optimizers": {name: part.optimizer.state_dict() for name, part in self.parts.items()},
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "weights": None if self.ema is None else {name: value.detach() for name, value in self.weights.items()},
            "random": gather_object([checkpoint.random_state()]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the model holds the weight file already. The number of processes may differ."""
        if self.ema is not None:
            self.ema.load(self.weights)
        if state["weights"] is not None:
            copy_into(self.weights, state["weights"])
        for name, part in self.parts.items():
            part.optimizer.load_state_dict(state["optimizers"][name])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.accelerator.process_index < len(state["random"]):
            checkpoint.restore_random_state(state["random"][self.accelerator.process_index])
        self.step, self.clips_consumed, self.elapsed = state["step"], state["clips_consumed"], state["elapsed"]
        self.best = (
            None if state["best"] is None else (*state["best"], "loss")[:3]
        )  # once only the loss, without a name
        self.log_run_id = state["log_run_id"]
