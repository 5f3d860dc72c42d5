"""What must be in order before an evaluation touches its first clip: model, data, folder, networks of metrics."""

import os
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from torch import nn

from data.clips import ClipDataset
from data.episodes import Episodes, read_info
from models import pretrained
from training.action_reader import CLIP_FRAMES, reader_fpath, shared_reader
from training.frechet import FVD_MIN_FRAMES, load_i3d, load_inception
from training.perceptual import LPIPS_MIN_SIZE, load_lpips
from training.rows import Networks
from training.settings import EvalSettings

KINDS = {
    "tokenizer": "a tokenizer",
    "genie_redux": "a world with latent actions",
    "genie_redux_guided": "a world with recorded actions",
}
OF_WORLDS = ("delta_psnr", "delta_psnr_last", "action_following")
# Metrics with a network of their own, by their name in eval.leave_out and in `<name>_missing`.
COSTLY = {
    "fid": ("fid", "fid_nearest"),
    "fvd": ("fvd",),
    "lpips": ("lpips",),
    "action_following": ("action_following",),
}
REQUIRABLE = ("psnr", "ssim", "lpips", "fid", "fid_nearest", "fvd", *OF_WORLDS)


def processes() -> PartialState:
    """The processes that the launcher started and this one's device."""
    # Accelerator reads the flag itself; without it, several CPU processes would each believe to be alone.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def check_required(settings: EvalSettings) -> None:
    """Raises ValueError for a name in `eval.require` that is no metric, or one that is left out or not measured."""
    for name in settings.require:
        if name in REQUIRABLE and settings.action_to_take >= 0:
            raise ValueError(
                f"eval.require names {name}, but under eval.action_to_take={settings.action_to_take} nothing is "
                "measured; take one of them out"
            )
        if name not in REQUIRABLE:
            raise ValueError(f"eval.require names {name!r}, expected some of {', '.join(REQUIRABLE)}")
        if any(name in COSTLY[left_out] for left_out in settings.leave_out):
            raise ValueError(f"eval.require names {name}, but so does eval.leave_out; take it out of one of them")


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
    try:
        pretrained.resolve_fpath(settings.model_fpath)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"eval.model_fpath={settings.model_fpath}: {error}") from None
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


def check_levels(dataset: ClipDataset, settings: EvalSettings) -> int | None:
    """How many of the dataset's levels the model was trained on; None where that is not known.

    Raises ValueError where there are any, unless that is allowed. Known are the levels of the dataset that the weights
    name, if it lies beside the evaluated one. Equal level seeds are equal levels only where the same game in the same
    mode made them; videos have none.
    """
    name = pretrained.read_header(settings.model_fpath)["metadata"].get("dataset_name")
    if name is None:
        return None
    try:
        info = read_info(settings.dataset_root_dpath, name)
    except FileNotFoundError:
        return None
    if "train" not in info["splits"] or _game(info) is None or _game(info) != _game(dataset.episodes.info):
        return None
    trained_on = Episodes(settings.dataset_root_dpath, name, "train")
    shared = np.intersect1d(trained_on.level_seeds, dataset.episodes.level_seeds)
    if len(shared) and not settings.allow_train:
        raise ValueError(
            f"eval.dataset_name={settings.dataset_name} ({dataset.episodes.split}) has {len(shared)} levels, such as "
            f"{shared[0]}, that the model was trained on (dataset {name}); choose other data, or set "
            "eval.allow_train=true to measure on training levels knowingly"
        )
    return len(shared)


def _game(info: dict) -> tuple[str, str] | None:
    """What decides which level a seed is: game and difficulty; None for data that no generator of ours made."""
    mode = ((info.get("generator") or {}).get("config") or {}).get("distribution_mode")
    return None if info.get("game") is None or mode is None else (info["game"], mode)


def shared_networks(
    model: nn.Module, dataset: ClipDataset, settings: EvalSettings, state: PartialState
) -> tuple[Networks, dict[str, str]]:
    """What metrics need besides the model, on this process's device, and why which metric is missing.

    The main process decides for all. Raises ValueError for a missing one that `eval.require` names, before the first
    that takes long.
    """
    is_world = hasattr(model, "rollout")
    for name in settings.require:
        if name in OF_WORLDS and not is_world:
            raise ValueError(f"eval.require={name}, but a tokenizer does not have it; take it out")
    wanted = [name for name in COSTLY if name not in settings.leave_out]
    missing = {name: f"left out by eval.leave_out={name}" for name in settings.leave_out}
    found: dict[str, nn.Module | None] = {}
    for name, reason in (("fvd", _too_short(settings, is_world)), ("lpips", _too_small(dataset))):
        if name in wanted and reason is not None:
            missing[name] = reason
            wanted.remove(name)
    loaders = (("fid", "inception", load_inception), ("fvd", "i3d", load_i3d), ("lpips", "lpips", load_lpips))
    for name, field, load in loaders:
        if name in wanted:
            found[field], reason = _shared(load, settings, state)
            missing |= {} if reason is None else {name: reason}
    _check_missing(missing, settings)
    if "action_following" in wanted and is_world:
        found["reader"], reason = shared_reader(settings, dataset, state)
        missing |= {} if reason is None else {"action_following": reason}
        _check_missing(missing, settings)
    return Networks(**found), missing


def reader_name(dataset: ClipDataset, settings: EvalSettings) -> str:
    """Which classifier read the actions: that of these training data, made this way. Others read other values."""
    root, name = settings.dataset_root_dpath, settings.reader_dataset_name
    return reader_fpath(settings, ClipDataset(root, name, "train", CLIP_FRAMES, frame_skip=dataset.frame_skip)).stem


def _too_short(settings: EvalSettings, is_world: bool) -> str | None:
    key = "sample_num_frames" if is_world else "num_frames"
    value = getattr(settings, key)
    if value >= FVD_MIN_FRAMES:
        return None
    return f"eval.{key} is {value}, FVD needs clips of at least {FVD_MIN_FRAMES} frames"


def _too_small(dataset: ClipDataset) -> str | None:
    height, width = dataset.image_size
    size = LPIPS_MIN_SIZE
    return None if min(height, width) >= size else f"frames are {height}x{width}, LPIPS needs at least {size}x{size}"


def _shared(load, settings: EvalSettings, state: PartialState) -> tuple[nn.Module | None, str | None]:
    network, reason = load(settings.weights_dir)
    (shared_reason,) = broadcast_object_list([reason])
    if shared_reason is None and reason is not None:
        raise ValueError(f"process {state.process_index} cannot load what the main process can: {reason}")
    return (network.to(state.device), None) if shared_reason is None else (None, shared_reason)


def _check_missing(missing: dict[str, str], settings: EvalSettings) -> None:
    for name, reason in missing.items():
        for key in COSTLY[name]:
            if key in settings.require:
                raise ValueError(f"eval.require={key}, but {reason}")
