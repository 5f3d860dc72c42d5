"""`--mode=eval`: how good a trained model is on levels that it never saw, with floor, ceiling and intervals.

`run` does the whole job from a configuration; `evaluate` measures any model on any clips.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from omegaconf import DictConfig
from torch import nn
from tqdm import tqdm

from data.clips import Clip, ClipDataset, evaluation_clips
from data.episodes import read_info, write_json
from models import pretrained
from training import report
from training.metrics import content_digits, find_inception, load_inception
from training.scorers import Drawn, TokenizerScorer, WorldScorer, first_frames, roll_out
from training.settings import EvalSettings
from training.video import Sample, to_pictures, write_dream_vs_real

# Every result has these keys, null where a metric is undefined; `metrics.json` keeps their order.
SCHEMA = (
    "psnr", "psnr_ci95", "psnr_by_horizon", "psnr_by_horizon_ci95", "ssim", "ssim_ci95", "ssim_by_horizon",
    "delta_psnr", "delta_psnr_ci95", "delta_psnr_last", "delta_psnr_last_ci95",
    "psnr_gain_h2_10", "psnr_gain_h2_10_ci95",
    "fid", "fid_nearest", "fid_missing",
    "copy_last_psnr", "copy_last_psnr_ci95", "copy_last_psnr_by_horizon", "copy_last_psnr_by_horizon_ci95",
    "copy_last_ssim", "copy_last_ssim_ci95", "copy_last_ssim_by_horizon",
    "ceiling_psnr", "ceiling_psnr_ci95", "ceiling_psnr_by_horizon", "ceiling_psnr_by_horizon_ci95",
    "ceiling_ssim", "ceiling_ssim_ci95", "ceiling_ssim_by_horizon",
    "random_actions_psnr", "random_actions_psnr_ci95", "random_actions_psnr_by_horizon",
    "random_actions_psnr_by_horizon_ci95", "random_actions_ssim", "random_actions_ssim_ci95",
    "random_actions_ssim_by_horizon",
    "codebook_usage", "codebook_perplexity", "action_usage", "psnr_floored_frames",
    "num_clips", "train_seconds", "eval_seconds", "clips_per_second", "protocol",
)  # fmt: skip
KINDS = {
    "tokenizer": "a tokenizer",
    "genie_redux": "a world with latent actions",
    "genie_redux_guided": "a world with recorded actions",
}
NUM_SIDE_BY_SIDE = 6  # clips in dream_vs_real
UNBOUND_CLIPS = 2**62  # of a set whose size is not known: the samples are its first clips


class Evaluation(NamedTuple):
    results: dict[str, Any]  # keys of SCHEMA
    by_clip: dict[str, np.ndarray]  # values in the order of the clips' numbers
    samples: list[Sample]  # on the main process


# ---------------------------------------------------------------------------------------------------------- the one job


def run(cfg: DictConfig) -> dict:
    """Evaluate `eval.model_fpath` and write metrics.json, values by clip and pictures. Returns {model name: results}.

    Raises ValueError or FileNotFoundError with one line for weights of another model, data that do not fit it, a
    training split that was not allowed, a required metric that cannot be had, or a folder that cannot be written.
    """
    settings = EvalSettings.from_config(cfg.eval)
    check_required(settings)
    state = PartialState()
    folder = Path(settings.save_root_dpath) / settings.model_name / settings.dataset_name / cfg.name
    check_writable(folder)
    model = load_model(cfg.model, settings, cfg.get("tokenizer_fpath")).to(state.device)
    dataset = open_dataset(settings, frame_skip=cfg.train.frame_skip)
    check_fit(model, dataset, settings)

    if settings.action_to_take >= 0:
        return {settings.model_name: control(model, dataset, settings, folder, state)}

    inception, fid_missing = shared_inception(settings, state)
    total = len(dataset) if settings.num_clips is None else min(settings.num_clips, len(dataset))
    evaluation = score(
        model,
        evaluation_clips(
            dataset,
            batch_size=settings.batch_size,
            num_clips=settings.num_clips,
            seed=settings.seed,
            rank=state.process_index,
            world_size=state.num_processes,
        ),
        settings,
        num_clips=total,
        inception=inception,
        fid_missing=fid_missing,
        action_names=names_of_actions(model, dataset),
        show_progress=True,
    )
    header = pretrained.read_header(settings.model_fpath)
    results = evaluation.results | {
        "train_seconds": header["metadata"].get("train_seconds"),
        "protocol": protocol(model, dataset, settings, header) | evaluation.results["protocol"],
    }
    check_delivered(results, settings)
    if state.is_main_process:
        write_json(folder / "metrics.json", {settings.model_name: results})
        np.savez_compressed(folder / "by_clip.npz", **evaluation.by_clip)
        write_pictures(folder / "samples", evaluation.samples)
        if hasattr(model, "rollout") and settings.num_samples:
            draw_every_action(model, dataset, settings, folder / "samples", state)
        print(report.table({settings.model_name: results}))
        print(f"written to {folder}")
    state.wait_for_everyone()
    return {settings.model_name: results}


def evaluate(model: nn.Module, clips: Iterable[Clip], settings: EvalSettings, **options) -> dict[str, Any]:
    """The results of `score`, without the rest."""
    return score(model, clips, settings, **options).results


@torch.no_grad()
def score(
    model: nn.Module,
    clips: Iterable[Clip],
    settings: EvalSettings,
    *,
    num_clips: int | None = None,
    inception: nn.Module | None = None,
    fid_missing: str | None = "no Inception network was given",
    action_names: list[str] | None = None,
    show_progress: bool = False,
) -> Evaluation:
    """Measure a tokenizer or a world, in eval mode and on its device.

    clips: this process's share of the set, as `evaluation_clips` gives it: clips rank, rank + number of processes, …
    num_clips: size of the whole set, for the progress bar and to spread the samples over it. Every process must call
    this and gets the same results. action_names: for the pictures.
    """
    state = PartialState()
    started = time.perf_counter()
    scorer = (WorldScorer if hasattr(model, "rollout") else TokenizerScorer)(model, settings, inception)
    wanted = spread(num_clips or UNBOUND_CLIPS, settings.num_samples) if num_clips else range(settings.num_samples)
    samples: list[Sample] = []
    seen = 0
    with tqdm(total=num_clips, unit="clip", desc="evaluating", disable=not (show_progress and state.is_main_process)) as bar:
        for clip in clips:
            clip = clip.to(state.device)
            batch = len(clip.frames)
            numbers = [state.process_index + (seen + row) * state.num_processes for row in range(batch)]
            drawn = scorer.update(clip, numbers)
            samples += [sample_of(drawn, row, n, action_names) for row, n in enumerate(numbers) if n in wanted]
            seen += batch
            bar.update(min(batch * state.num_processes, (num_clips or UNBOUND_CLIPS) - bar.n))
    scorer.gather(state.device)
    results = scorer.compute()
    seconds = time.perf_counter() - started
    results |= {
        "fid_missing": fid_missing if inception is None else None,
        "eval_seconds": round(seconds, 3),
        "clips_per_second": round(results["num_clips"] / seconds, 3),
        "protocol": {"num_processes": state.num_processes},
    }
    return Evaluation(
        {key: results.get(key) for key in SCHEMA},
        scorer.values_by_clip(),
        sorted(gather_object(samples), key=lambda sample: sample.number),
    )


# --------------------------------------------------------------------------------------------------- before the first clip


def check_required(settings: EvalSettings) -> None:
    for name in settings.require:
        if name not in SCHEMA:
            metrics = "fid, fid_nearest, psnr, ssim, delta_psnr, delta_psnr_last"
            raise ValueError(f"eval.require names {name!r}, which is not a metric; expected some of {metrics}")


def check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"cannot write to {folder} ({error.strerror or error}); set eval.save_root_dpath to a folder that can be written"
        ) from error


def load_model(name: str, settings: EvalSettings, tokenizer_fpath: str | None) -> nn.Module:
    """The weights at `eval.model_fpath`, which must hold a model of the kind that the configuration names."""
    is_tokenizer = name == "tokenizer"
    model = pretrained.load(settings.model_fpath, tokenizer_fpath=None if is_tokenizer else tokenizer_fpath)
    if hasattr(model, "rollout"):
        kind = "genie_redux" if model.is_latent else "genie_redux_guided"
    else:
        kind = "tokenizer"
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
    if tuple(model.image_size) != tuple(dataset.image_size):
        (h, w), (expected_h, expected_w) = dataset.image_size, model.image_size
        raise ValueError(
            f"frames of eval.dataset_name={settings.dataset_name} are {h}x{w}, the model at {settings.model_fpath} "
            f"expects {expected_h}x{expected_w}; choose another dataset or model"
        )
    if not hasattr(model, "rollout"):
        return
    if not model.is_latent and dataset.num_actions != model.num_actions:
        raise ValueError(
            f"eval.dataset_name={settings.dataset_name} has {dataset.num_actions} recorded actions, the model at "
            f"{settings.model_fpath} expects {model.num_actions}; choose another dataset, or genie_redux, which learns them"
        )
    if settings.action_to_take >= model.num_actions:
        raise ValueError(
            f"eval.action_to_take is {settings.action_to_take}, expected -1 (the clip's own actions) or an action of the "
            f"model, 0 to {model.num_actions - 1}"
        )


def shared_inception(settings: EvalSettings, state: PartialState) -> tuple[nn.Module | None, str | None]:
    """Inception on this process's device, or None with the reason; the main process decides for all."""
    inception, reason = load_inception(settings.weights_dir)
    (shared_reason,) = broadcast_object_list([reason])
    if shared_reason is None and reason is not None:
        raise ValueError(f"process {state.process_index} cannot load what the main process can: {reason}")
    if shared_reason is not None:
        for name in settings.require:
            if name in ("fid", "fid_nearest"):
                raise ValueError(f"eval.require={name}, but {shared_reason}")
        return None, shared_reason
    return inception.to(state.device), None


def names_of_actions(model: nn.Module, dataset: ClipDataset) -> list[str] | None:
    """A latent world's actions have no names but their numbers."""
    if not hasattr(model, "rollout"):
        return None
    if model.is_latent:
        return [f"action {index}" for index in range(model.num_actions)]
    return list(dataset.episodes.action_names)


# ------------------------------------------------------------------------------------------------------- after the last one


def protocol(model: nn.Module, dataset: ClipDataset, settings: EvalSettings, header: dict) -> dict[str, Any]:
    """Everything that a number depends on besides the weights."""
    levels = dataset.episodes.level_seeds
    facts = {
        "dataset": settings.dataset_name,
        "split": dataset.episodes.split,
        "levels": [int(levels.min()), int(levels.max())],
        "num_levels": len(np.unique(levels)),
        "num_frames": settings.num_frames,
        "frame_skip": dataset.frame_skip,
        "seq_step": settings.seq_step,
        "seed": settings.seed,
        "weights": str(settings.model_fpath),
        "train_steps": header["metadata"].get("step"),
        "confidence": "95 % percentile bootstrap over clips",
        "inception": None,
    }
    inception = find_inception(settings.weights_dir)
    if inception is not None:
        facts["inception"] = content_digits(inception)
    if hasattr(model, "rollout"):
        one_go = settings.inference_method == "one_go"
        facts |= {
            "prompt": settings.num_first_frames,
            "horizon": settings.sample_num_frames,
            "method": settings.inference_method,
            "frames_per_round": settings.sample_num_frames if one_go else settings.dream_length,
            "steps": settings.inference_steps,
            "schedule": settings.sample_schedule,
            "temperature": settings.sample_temperature,
            "top_k": settings.sample_top_k,
            "noise": settings.sample_noise,
            "actions": "inferred from the true frames" if model.is_latent else "recorded",
            "num_actions": model.num_actions,
            "delta_psnr_horizon": settings.delta_psnr_horizon,
            "num_random_actions": settings.num_random_actions,
        }
    return facts


def check_delivered(results: dict[str, Any], settings: EvalSettings) -> None:
    for name in settings.require:
        if results[name] is None:
            raise ValueError(f"eval.require={name}, but this model and these {results['num_clips']} clips do not have it")


# --------------------------------------------------------------------------------------------------------------- pictures


def spread(num_clips: int, num_samples: int) -> set[int]:
    """`num_samples` clip numbers spread evenly over 0 … num_clips - 1."""
    count = min(num_clips, num_samples)
    return {index * num_clips // count for index in range(count)}


def sample_of(drawn: Drawn, row: int, number: int, action_names: list[str] | None) -> Sample:
    names = None
    if drawn.actions is not None and action_names is not None:
        names = [action_names[index] for index in drawn.actions[row].tolist()]
    return Sample(number, to_pictures(drawn.true[row]), to_pictures(drawn.model[row]), drawn.num_given, names)


def write_pictures(folder: Path, samples: list[Sample]) -> None:
    """`clip-0000.gif|png` for every sample and `dream_vs_real.gif|png` with several of them."""
    if not samples:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        write_dream_vs_real(folder, [sample], f"clip-{sample.number:04d}")
    write_dream_vs_real(folder, [samples[n] for n in sorted(spread(len(samples), NUM_SIDE_BY_SIDE))])


@torch.no_grad()
def action_gallery(world: nn.Module, clip: Clip, settings: EvalSettings, action_names: list[str]) -> list[Sample]:
    """Every action, taken again and again from the same frames: `clip` is a batch of one on the world's device."""
    clip = first_frames(clip, settings.num_first_frames + settings.sample_num_frames)
    count = world.num_actions
    clip = Clip(*(None if part is None else part.expand(count, *part.shape[1:]) for part in clip))
    actions = world.infer(clip).clone()
    actions[:, settings.num_first_frames - 1 :] = torch.arange(count, device=actions.device)[:, None]
    frames = roll_out(world, clip, actions, settings)
    dreams = torch.cat([clip.frames[:, : settings.num_first_frames], frames.to(clip.frames.dtype)], dim=1)
    return [
        Sample(index, None, to_pictures(dreams[index]), settings.num_first_frames, title=action_names[index])
        for index in range(count)
    ]


def draw_every_action(
    world: nn.Module, dataset: ClipDataset, settings: EvalSettings, folder: Path, state: PartialState
) -> None:
    clip = next(evaluation_clips(dataset, batch_size=1, num_clips=1, seed=settings.seed)).to(state.device)
    samples = action_gallery(world, clip, settings, names_of_actions(world, dataset))
    write_dream_vs_real(folder, samples, "every_action")


@torch.no_grad()
def control(
    world: nn.Module, dataset: ClipDataset, settings: EvalSettings, folder: Path, state: PartialState
) -> dict[str, Any]:
    """One action at every frame after the given ones: pictures only, since the truth did something else."""
    if not hasattr(world, "rollout"):
        raise ValueError(f"eval.action_to_take={settings.action_to_take} needs a world model, got a tokenizer; expected -1")
    name = names_of_actions(world, dataset)[settings.action_to_take]
    folder = folder / f"action_{settings.action_to_take}"
    if state.is_main_process:
        samples = []
        clips = evaluation_clips(
            dataset, batch_size=settings.batch_size, num_clips=max(1, settings.num_samples), seed=settings.seed
        )
        for clip in clips:
            clip = first_frames(clip.to(state.device), settings.num_first_frames + settings.sample_num_frames)
            actions = world.infer(clip).clone()
            actions[:, settings.num_first_frames - 1 :] = settings.action_to_take
            frames = roll_out(world, clip, actions, settings)
            prompt = clip.frames[:, : settings.num_first_frames]
            for row in range(len(frames)):
                pictures = to_pictures(torch.cat([prompt[row], frames[row].to(prompt.dtype)]))
                samples.append(Sample(len(samples), None, pictures, settings.num_first_frames, title=name))
        write_pictures(folder, samples)
        print(f"{len(samples)} clips under the action {name}, written to {folder}")
    state.wait_for_everyone()
    header = pretrained.read_header(settings.model_fpath)
    facts = protocol(world, dataset, settings, header) | {"action_to_take": settings.action_to_take}
    return {key: None for key in SCHEMA} | {"protocol": facts}
