"""What a training is made of before its first step: the accelerator, the model, weights to start from."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import AutocastKwargs
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from data.clips import ClipDataset
from models import pretrained
from training import accelerate_config, deepspeed_config, sharding
from training.settings import TrainSettings
from training.zero import ZeroAccelerator


def make_accelerator(settings: TrainSettings) -> Accelerator:
    """Accelerate on whatever the launcher started, with DeepSpeed where a user's own Accelerate config asks for it.

    Mixed precision: as set, else as that config says, else bf16 on a GPU that has it.
    """
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    handlers = []
    if settings.sharding is not None:  # autocast's memory of casts would keep every block's weights to the end
        handlers.append(AutocastKwargs(cache_enabled=False))
    kind = ZeroAccelerator if deepspeed_config.is_asked_for() else Accelerator
    return kind(
        mixed_precision=settings.mixed_precision
        or accelerate_config.mixed_precision()
        or deepspeed_config.mixed_precision()
        or ("bf16" if has_bf16 else "no"),
        gradient_accumulation_steps=settings.grad_accum,
        # Modules reduce their own batch statistics; broadcasting rank 0's buffers on every forward would undo that.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            *handlers,
        ],
    )


def prepare(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    """Model and optimizer as Accelerate has them; several processes share gradients, by DDP, sharding or DeepSpeed."""
    if isinstance(accelerator, ZeroAccelerator):
        return accelerator.prepare_zero(model, optimizer)
    is_sharded = isinstance(model, FSDPModule)
    if is_sharded:
        sharding.shard_optimizer(optimizer)
    # For "evaluation" it adds autocast but no DDP.
    return accelerator.prepare_model(model, evaluation_mode=is_sharded), accelerator.prepare_optimizer(optimizer)


def build_model(node: DictConfig) -> nn.Module:
    """Instantiate a model node; a person's mistake comes out as the constructor said it, without Hydra's wrapping."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (ValueError, FileNotFoundError)):
            raise cause from None
        raise ValueError(f"cannot build the model: {str(cause or error).splitlines()[0]}") from error


def checkpoint_gradients(model: nn.Module) -> None:
    """Switch gradient checkpointing on wherever a model has it (`STTransformer.gradient_checkpointing`).

    Raises ValueError for a model that has none.
    """
    parts = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    if not parts:
        raise ValueError(
            f"train.gradient_checkpointing is true, but nothing in {type(model).__name__} has it; set it to false"
        )
    for part in parts:
        part.gradient_checkpointing = True


def check_fit(model: nn.Module, dataset: ClipDataset, settings: TrainSettings) -> None:
    """Raise ValueError where a model cannot be trained on a dataset: other frames, unknown actions, clips too long."""
    name = settings.dataset_name
    size = getattr(model, "image_size", None)
    if size is not None and tuple(size) != tuple(dataset.image_size):
        raise ValueError(
            f"train.dataset_name={name} has frames {_by(dataset.image_size)}, but the model expects {_by(size)}; "
            "set data.image_size or train.dataset_name, for a world a tokenizer_fpath of that size"
        )
    if not hasattr(model, "rollout"):
        return
    model.dynamics.check_length(settings.num_frames, "train.num_frames")
    if not model.is_latent:
        check_recorded_actions(dataset.num_actions, model.num_actions, settings)


def check_recorded_actions(there: int, known: int, settings: TrainSettings, key: str = "data.num_actions") -> None:
    """Raise ValueError where a guided model that knows so many actions cannot learn from those of its dataset.

    key: what sets the number that it knows.
    """
    name = settings.dataset_name
    if settings.frame_skip > 1:
        raise ValueError(
            f"train.frame_skip={settings.frame_skip} would hide recorded actions between frames; set it to 1, or "
            "train genie_redux, which learns its actions"
        )
    if not there:
        raise ValueError(f"train.dataset_name={name} has no recorded actions; train genie_redux, which learns them")
    if there > known:
        raise ValueError(f"train.dataset_name={name} has {there} actions, but the model {known}; set {key}={there}")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def load_weights(model: nn.Module, path: str | Path, config: dict[str, Any], key: str) -> None:
    """Copy a weight file into a model that is built already.

    key: the setting that named the path. Raises one line naming both models if the file holds another one.
    """
    fpath = pretrained.resolve_fpath(path)
    header = pretrained.read_header(fpath)
    held, wanted = describe(header["config"]), describe(config)
    if held != wanted:
        raise ValueError(
            f"{key}={path} holds a {held}, but this run trains a {wanted}; set {key} to weights of a {wanted}"
        )
    pretrained.load_state(model, fpath)


def describe(config: dict[str, Any]) -> str:
    """A model's kind in words, from its config: the class, and for a world the class of its actions."""
    name = config["_target_"].rsplit(".", 1)[-1]
    actions = config.get("actions")
    return name if actions is None else f"{name} with {actions['_target_'].rsplit('.', 1)[-1]}"
