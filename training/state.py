"""All that a run is between two steps, so that a checkpoint of it makes the next step the one it would have been."""

import copy
import threading
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from models.pretrained import trainable_state
from training import checkpoint, sharding
from training.ema import MovingAverage, copy_into
from training.logs import Averages
from training.objectives import Part
from training.optimizers import trainable
from training.zero import ZeroAccelerator


class Moment(NamedTuple):
    """What a step changes before its update begins, as it is between two steps."""

    step: int  # updates done
    random: dict[str, Any]
    window: Averages  # scalars since the last log line
    touched: dict[str, Tensor]  # what forward passes write into; empty where this process does not save
    ready: torch.cuda.Event | None  # reached once the device has done the update before

    @property
    def key(self) -> str:
        """What the moments of all processes between the same two steps have in common."""
        return f"{self.step}-{'unlogged' if self.window.sums else 'logged'}"

    def own_state(self) -> dict[str, Any]:
        """This process's share of a checkpoint, in types that `weights_only` reads back."""
        return {"random": self.random, "window": self.window.state_dict()}


def gather_tensors(state: "TrainingState") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The whole model's tensors by name, without a frozen tokenizer, and the state of each part's optimizer.

    The one place that knows where weights lie. They are live: whoever keeps them copies them.
    """
    optimizers = {name: part.optimizer.state_dict() for name, part in state.parts.items()}
    return {name: value.detach() for name, value in trainable_state(state.model).items()}, optimizers


class TrainingState:
    """Parts, their moving average and the counters.

    model: the parts' common root without its distributed wrapper, whose state is the weight file.
    """

    def __init__(self, accelerator: Accelerator, parts: dict[str, Part], model: nn.Module, ema_decay: float | None):
        self.accelerator = accelerator
        self.parts = parts
        self.model = model
        # Whether it takes all processes to collect what a checkpoint holds.
        self.is_spread = isinstance(model, FSDPModule) or isinstance(accelerator, ZeroAccelerator)
        self.weights = trainable(model)
        self.ema = None if ema_decay is None else MovingAverage(self.weights, ema_decay)
        # Modules that change by what a whole step showed them, such as codebooks that move dead codes.
        self.keepers = [module for module in model.modules() if hasattr(module, "end_step")]
        self.step = 0  # updates done
        self.clips_consumed = 0
        self.elapsed = 0.0  # seconds since the training began, as all processes see it; goes on over a resume
        self.best: tuple[float, int, str] | None = None  # validation score, its step, its name
        self.validated = 0  # the step after which the last validation was
        self.window = Averages()  # scalars since the last log line
        self.log_run_id: str | None = None
        # Held while weights, optimizers or counters change: who has it may copy them from another thread.
        self.lock = threading.RLock()
        # The last few, newest last: another process may be ahead of the main one, which decides what is saved, by the
        # log line and the checkpoint after a step and the update of the next.
        self.moments: deque[Moment] = deque(maxlen=4)
        self._written = written_by_passes(model)
        # Updates left out because a loss or gradient was not finite.
        self.skipped: dict[str, Any] = {"total": 0, "in_a_row": {}}

    def advance(self, num_clips: int) -> None:
        """Called after each update, with the lock."""
        with sharding.replicas_allowed():
            for module in self.keepers:
                module.end_step()
        if self.ema is not None:
            self.ema.update(self.step)
        self.step += 1
        self.clips_consumed += num_clips
        self.remember()

    def remember(self) -> None:
        """Note what the next step changes early. Called between two steps; costs some 0.1 ms and never waits."""
        touched, ready = {}, None
        if self.accelerator.is_main_process:
            touched = {name: getattr(owner, own).detach().clone() for name, owner, own in self._written}
        if self.accelerator.device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record()
        moment = Moment(self.step, checkpoint.random_state(), self.window.copy(), touched, ready)
        with self.lock:
            self.moments.append(moment)

    def averaged_weights(self) -> AbstractContextManager:
        """Inside, the model has the weights that others will load: the moving average where there is one."""
        return nullcontext() if self.ema is None else self.ema.in_place(self.lock)

    def collect(
        self, own_states: list[dict[str, Any]], touched: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of the weight file, and all that it does not hold in types that `weights_only` reads back.

        Where there is a moving average, the weight file holds it and the weights are in the rest. own_states: of every
        process, `Moment.own_state`. touched: tensors that replace those that a pass may have written into since.
        """
        tensors, optimizers = gather_tensors(self)
        weights = None
        if self.ema is not None:
            tensors |= self.ema.set_aside or {}
            weights = {name: (tensors | touched)[name] for name in self.weights}
            touched = touched | self.ema.average
        return tensors | touched, {
            "step": self.step,
            "clips_consumed": self.clips_consumed,
            "elapsed": self.elapsed,
            "best": self.best,
            "validated": self.validated,
            "log_run_id": self.log_run_id,
            "skipped": copy.deepcopy(self.skipped),  # written later, while the training goes on
            "optimizers": optimizers,
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "weights": weights,
            "random": [own["random"] for own in own_states],
            "windows": [own["window"] for own in own_states],
        }

    def load_state_dict(self, state: dict[str, Any], seed: int) -> None:
        """Go on from a saved state; the model holds the weight file already.

        The number of processes may differ. Process r goes on with the random state of process r; one that did not
        exist begins its own from `seed`, the step and r. The scalars since the last log line belong to processes, so
        they go on only where their number is the same.
        """
        if self.ema is not None:
            self.ema.load(self.weights)
        if state["weights"] is not None:
            copy_into(self.weights, state["weights"])
        for name, part in self.parts.items():
            _load_optimizer(part.optimizer, state["optimizers"][name])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.clips_consumed, self.elapsed = state["step"], state["clips_consumed"], state["elapsed"]
        self.best = (
            None if state["best"] is None else (*state["best"], "loss")[:3]
        )  # once only the loss, without a name
        self.validated = state.get("validated", self.step)
        self.log_run_id = state["log_run_id"]
        rank = self.accelerator.process_index
        if rank < len(state["random"]):
            checkpoint.restore_random_state(state["random"][rank])
        else:
            set_seed((seed + 1_000_003 * self.step + rank) % 2**32)
        windows = state.get("windows", [])
        if len(windows) == self.accelerator.num_processes:
            self.window.load_state_dict(windows[rank], self.accelerator.device)
        self.skipped.update(state.get("skipped", {}))


def _load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load what an optimizer has gathered; decay, betas and the like stay as they are set now."""
    own = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, own, strict=True):
        group.update(options)


def written_by_passes(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """What a forward pass may write into: the own tensors of modules that have buffers (counters, moved codes).

    Returns the full name, the module and the name in it. A module that writes into a parameter in its forward pass
    must have a buffer of its own, too.
    """
    saved = trainable_state(model)
    found = []
    for prefix, module in model.named_modules():
        buffers = [name for name, _ in module.named_buffers(recurse=False)]
        parameters = [name for name, _ in module.named_parameters(recurse=False)]
        for own in buffers + parameters if buffers else []:
            name = f"{prefix}.{own}" if prefix else own
            if name in saved:
                found.append((name, module, own))
    return found
