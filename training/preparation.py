"""What must be in order before an evaluation touches its first clip: model, data, folder, networks of metrics."""

import os
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from torch import nn

from data.clips import ClipDataset
from data.episodes import read_info
from models import pretrained
from training.metrics import load_inception
from training.settings import EvalSettings

KINDS = {
    "tokenizer": "a tokenizer",
    "genie_redux": "a world with latent actions",
    "genie_redux_guided": "a world with recorded actions",
}
NEED_INCEPTION = ("fid", "fid_nearest")
REQUIRABLE = ("psnr", "ssim", "delta_psnr", "delta_psnr_last", *NEED_INCEPTION)


def processes() -> PartialState:
    """The processes that the launcher started and this one's device."""
    # Accelerator reads the flag itself; without it, several CPU processes would each believe to be alone.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def check_required(settings: EvalSettings) -> None:
    """Raises ValueError for a name in `eval.require` that is no metric."""
    for name in settings.require:
        if name not in REQUIRABLE:
            raise ValueError(f"eval.require names {name!r}, expected some of {', '.join(REQUIRABLE)}")


def check_writable(folder: Path) -> None:
    """Makes the folder, and raises ValueError where that or writing into it fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"cannot write to {folder} ({error.strerror or error}); set eval.save_root_dpath to a writable folder"
        ) from error


def load_model(name: str, settings: EvalSettings, tokenizer_fpath: str | None) -> nn.Module:
    """The weights at `eval.model_fpath`, which must hold a model of the kind that the configuration names."""
    is_tokenizer = name == "tokenizer"
    model = pretrained.load(settings.model_fpath, tokenizer_fpath=None if is_tokenizer else tokenizer_fpath)
    kind = "tokenizer"
    if hasattr(model, "rollout"):
        kind = "genie_redux" if model.is_latent else "genie_redux_guided"
    if name in KINDS and kind != name:
        raise ValueError(
            f"eval.model_fpath={settings.model_fpath} holds {KINDS[kind]}, expected {KINDS[name]} (model={name}); "
            f"use --config={kind}.yaml or other weights"
        )
    return model


def open_dataset(settings: EvalSettings, *, frame_skip: int) -> ClipDataset:
    """The held-out split: `eval.split`, or test where the dataset has it, else validation."""
    split = settings.split
    if split is None:
        splits = read_info(settings.dataset_root_dpath, settings.dataset_name)["splits"]
        split = next((name for name in ("test", "validation") if name in splits), None)
        if split is None:
            raise ValueError(
                f"eval.dataset_name={settings.dataset_name} has no held-out levels, only {', '.join(splits)}; choose a "
                "dataset with the split test or validation, or set eval.split=train and eval.allow_train=true"
            )
    return ClipDataset(
        settings.dataset_root_dpath,
        settings.dataset_name,
        split,
        settings.num_frames,
        frame_skip=frame_skip,
        seq_step=settings.seq_step,
    )


def check_fit(model: nn.Module, dataset: ClipDataset, settings: EvalSettings) -> None:
    """Raises ValueError where the model expects other frames or actions than the dataset or the settings give it."""
    if model.image_size is not None and tuple(model.image_size) != tuple(dataset.image_size):
        (h, w), (expected_h, expected_w) = dataset.image_size, model.image_size
        raise ValueError(
            f"frames of eval.dataset_name={settings.dataset_name} are {h}x{w}, the model at {settings.model_fpath} "
            f"expects {expected_h}x{expected_w}; choose another dataset or model"
        )
    if not hasattr(model, "rollout"):
        if settings.action_to_take >= 0:
            raise ValueError(f"eval.action_to_take={settings.action_to_take} needs a world model; a tokenizer takes -1")
        return
    if not model.is_latent and not 0 < dataset.num_actions <= model.num_actions:
        raise ValueError(
            f"eval.dataset_name={settings.dataset_name} has {dataset.num_actions} recorded actions, the model at "
            f"{settings.model_fpath} expects {model.num_actions}; choose another dataset or model"
        )
    if settings.action_to_take >= model.num_actions:
        raise ValueError(
            f"eval.action_to_take is {settings.action_to_take}, expected -1 (the clip's own actions) "
            f"or an action of the model, 0 to {model.num_actions - 1}"
        )


def shared_inception(settings: EvalSettings, state: PartialState) -> tuple[nn.Module | None, str | None]:
    """Inception on this process's device, or None with the reason; the main process decides for all."""
    inception, reason = load_inception(settings.weights_dir)
    (shared_reason,) = broadcast_object_list([reason])
    if shared_reason is None and reason is not None:
        raise ValueError(f"process {state.process_index} cannot load what the main process can: {reason}")
    if shared_reason is not None:
        for name in settings.require:
            if name in NEED_INCEPTION:
                raise ValueError(f"eval.require={name}, but {shared_reason}")
        return None, shared_reason
    return inception.to(state.device), None
