"""`--mode=eval`: how good a trained model is on levels that it never saw, with floor, ceiling and intervals.

`run` does the whole job from a configuration; `evaluate` measures any model on any clips.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from omegaconf import DictConfig
from torch import nn
from tqdm import tqdm

from data.clips import Clip, ClipDataset, evaluation_clips
from data.episodes import write_json
from models import graphs, pretrained
from models.recording import choose
from training import dreams, embedding, latent_tables, messages, preparation, report, tables
from training.rollouts import precision
from training.rows import ENDINGS, Networks
from training.scorers import TokenizerScorer, WorldScorer
from training.settings import EvalSettings
from training.video import Sample
from training.weight_files import ALEXNET, I3D, INCEPTION, content_digits

# Every result has these keys, null where a metric is undefined; `metrics.json` keeps their order.
ROW = tuple(f"{metric}{ending}" for metric in ("psnr", "ssim", "lpips") for ending in ENDINGS)
DISTANCES = ("fid", "fid_nearest", "fvd")
BESIDE = ("copy_last_", "ceiling_")
SCHEMA = (
    *ROW,
    "delta_psnr", "delta_psnr_ci95", "delta_psnr_by_horizon", "delta_psnr_by_horizon_ci95",
    "delta_psnr_last", "delta_psnr_last_ci95",
    "psnr_gain_h2_10", "psnr_gain_h2_10_ci95",
    *(f"{name}{ending}" for name in DISTANCES for ending in ("", "_ci95")),
    *(f"{row}{name}" for row in (*BESIDE, "real_") for name in DISTANCES),
    *(f"{row}{key}" for row in (*BESIDE, "random_actions_") for key in ROW),
    "action_following", "action_following_ci95", "action_following_real", "action_following_real_ci95",
    "ceiling_action_following", "ceiling_action_following_ci95", "action_following_majority",
    "action_error_ratio", "action_error_ratio_ci95", "latent_actions", "action_usage",
    "codebook_usage", "codebook_perplexity", "codebook_counts", "psnr_floored_frames",
    "fid_missing", "fvd_missing", "lpips_missing", "action_following_missing",
    "num_clips", "num_frames_compared", "train_seconds", "eval_seconds", "clips_per_second", "protocol",
)  # fmt: skip


NO_NETWORKS = Networks()


class Evaluation(NamedTuple):
    results: dict[str, Any]  # keys of SCHEMA
    by_clip: dict[str, np.ndarray]  # values in the order of the clips' numbers
    samples: list[Sample]  # likewise
    latents: dict[str, np.ndarray]  # of a latent world, see `latent_tables.LatentActions.picture`; else empty


# ---------------------------------------------------------------------------------------------------------- the one job


def run(cfg: DictConfig) -> dict:
    """Evaluate `eval.model_fpath`; returns {model name: results} and writes them, values by clip and pictures.

    Raises ValueError or FileNotFoundError with one line for weights of another model, data that do not fit it, a
    training split that was not allowed, a required metric that cannot be had, or a folder that cannot be written.
    """
    settings = EvalSettings.from_config(cfg.eval)
    preparation.check_required(settings)
    state = preparation.processes()
    try:
        return {settings.model_name: _run(cfg, settings, state)}
    finally:
        state.destroy_process_group()  # or its threads can crash the interpreter on its way out


def _run(cfg: DictConfig, settings: EvalSettings, state: PartialState) -> dict[str, Any]:
    folder = Path(settings.save_root_dpath) / settings.model_name / settings.dataset_name / cfg.name
    preparation.check_writable(folder)
    chosen = choose(settings.session_graphs, state.device, "eval.session_graphs")
    model = preparation.load_model(cfg.model, settings, cfg.get("tokenizer_fpath")).to(state.device)
    if hasattr(model, "use_graphs"):
        model.use_graphs(graphs.of(model, chosen))
    dataset = preparation.open_dataset(settings, frame_skip=cfg.train.frame_skip)
    preparation.check_fit(model, dataset, settings)
    facts = {"levels_trained_on": preparation.check_levels(dataset, settings)} | protocol(model, dataset, settings)
    facts |= {"action_names": dataset.episodes.action_names}
    if settings.action_to_take >= 0:
        return control(model, dataset, settings, folder, state) | {"protocol": facts}

    evaluation = measure(model, dataset, settings, state)
    if evaluation.results["action_following"] is not None:
        facts["action_reader"] = preparation.reader_name(dataset, settings)
    results = evaluation.results | {
        "train_seconds": pretrained.read_header(settings.model_fpath)["metadata"].get("train_seconds"),
        "protocol": facts,
    }
    if state.is_main_process:
        write_json(folder / "metrics.json", {settings.model_name: results})
        np.savez_compressed(folder / "by_clip.npz", **evaluation.by_clip)
        embedding.write_latents(folder / "latents.npz", evaluation.latents)
        if results["latent_actions"] and results["latent_actions"]["real_of_latent"]:
            names = list(dataset.episodes.action_names)
            latent_tables.write_map(folder, settings.model_fpath, results["latent_actions"], names)
        quality = evaluation.by_clip["psnr"]
        dreams.draw(model, dataset, settings, folder / "samples", evaluation.samples, quality, state.device)
        again = {"evaluation": messages.same_command(cfg, state.num_processes, "--mode=eval")}
        report.write_report(folder, {settings.model_name: folder}, commands=again)
        print(tables.table({settings.model_name: results}))
        print(f"written to {folder}")
    state.wait_for_everyone()
    check_delivered(results, settings)
    return results


def measure(model: nn.Module, dataset: ClipDataset, settings: EvalSettings, state: PartialState) -> Evaluation:
    """`score` on the clips of a dataset, this process's share of them, with whatever networks can be had."""
    networks, missing = preparation.shared_networks(model, dataset, settings, state)
    clips = evaluation_clips(
        dataset,
        batch_size=settings.batch_size,
        num_clips=settings.num_clips,
        seed=settings.seed,
        rank=state.process_index,
        world_size=state.num_processes,
    )
    return score(
        model,
        clips,
        settings,
        num_clips=len(dataset) if settings.num_clips is None else min(settings.num_clips, len(dataset)),
        networks=networks,
        missing=missing,
        action_names=dreams.names_of_actions(model, dataset),
        num_real_actions=dataset.num_actions,
        show_progress=True,
    )


def control(
    world: nn.Module, dataset: ClipDataset, settings: EvalSettings, folder: Path, state: PartialState
) -> dict[str, Any]:
    """One action at every frame: pictures only, since the truth did something else. Returns results without any."""
    if state.is_main_process:
        folder = folder / f"action_{settings.action_to_take}"
        count = dreams.draw_one_action(world, dataset, settings, folder, state.device)
        print(f"{count} clips under action {settings.action_to_take}, written to {folder}")
    state.wait_for_everyone()
    return {key: None for key in SCHEMA}


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
    networks: Networks = NO_NETWORKS,
    missing: dict[str, str] | None = None,
    action_names: list[str] | None = None,
    num_real_actions: int | None = None,
    show_progress: bool = False,
) -> Evaluation:
    """Measure a tokenizer or a world, in eval mode and on its device.

    clips: this process's share of the set, as `evaluation_clips` gives it: clips rank, rank + number of processes, …
    num_clips: size of the whole set, for the progress bar and to spread the samples over it. Every process must call
    this and gets the same results. networks: what some metrics need; missing: why others are not to be had, by name.
    action_names: for the pictures. num_real_actions: of the recorded actions, which a latent world does not know.
    """
    state = preparation.processes()
    started = time.perf_counter()
    if hasattr(model, "rollout"):
        scorer = WorldScorer(model, settings, networks, num_clips, num_real_actions)
    else:
        scorer = TokenizerScorer(model, settings, networks)
    shown = show_progress and state.is_main_process
    wanted = dreams.spread(num_clips, settings.num_samples) if num_clips else set(range(settings.num_samples))
    samples: list[Sample] = []
    seen = 0
    with tqdm(total=num_clips, unit="clip", desc="evaluating", disable=not shown) as bar:
        for clip in clips:
            clip = clip.to(state.device)
            numbers = [state.process_index + (seen + row) * state.num_processes for row in range(len(clip.frames))]
            drawn = scorer.update(clip, numbers)
            samples += dreams.samples_of(drawn, numbers, wanted, action_names)
            seen += len(numbers)
            done = seen * state.num_processes
            bar.update((min(done, num_clips) if num_clips else done) - bar.n)
    scorer.gather(state.device)
    by_clip = scorer.values_by_clip()
    if not all(np.isfinite(values).all() for values in by_clip.values()):
        raise ValueError("the model gives frames that are not finite; use an earlier checkpoint (eval.model_fpath)")
    results = scorer.compute()
    seconds = time.perf_counter() - started
    results |= {
        **{f"{name}_missing": reason for name, reason in (missing or {}).items()},
        "eval_seconds": round(seconds, 3),
        "clips_per_second": round(results["num_clips"] / seconds, 3),
    }
    samples = sorted(gather_object(samples), key=lambda sample: sample.number)
    latents = scorer.latents.picture() if getattr(scorer, "latents", None) else {}
    return Evaluation({key: results.get(key) for key in SCHEMA}, by_clip, samples, latents)


def protocol(model: nn.Module, dataset: ClipDataset, settings: EvalSettings) -> dict[str, Any]:
    """Everything that a number depends on, and which weights it is of."""
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
        "train_steps": pretrained.read_header(settings.model_fpath)["metadata"].get("step"),
        "confidence": "95 % percentile bootstrap over clips",
        "mixed_precision": precision(settings, next(model.parameters()).device),
    }
    for key, file in (("inception", INCEPTION), ("i3d", I3D), ("alexnet", ALEXNET)):
        fpath = file.find(settings.weights_dir)
        facts[key] = None if fpath is None else content_digits(fpath)
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
            "order": settings.sample_order,
            "actions": "inferred from the true frames" if model.is_latent else "recorded",
            "num_actions": model.num_actions,
            "delta_psnr_horizon": settings.delta_psnr_horizon,
            "num_random_actions": settings.num_random_actions,
        }
    return facts


def check_delivered(results: dict[str, Any], settings: EvalSettings) -> None:
    """Raises ValueError where a metric in `eval.require` is missing after all."""
    for name in settings.require:
        if results[name] is None:
            raise ValueError(
                f"eval.require={name}, but this model and these {results['num_clips']} clips do not have it"
            )
