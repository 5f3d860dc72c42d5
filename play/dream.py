"""A dream as a film, without a page: `bash run.sh --mode=dream` writes GIF and MP4."""

import os
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from models.genie_redux import WorldModel
from models.interfaces import Sampling
from play import action_words, plans
from play.hall import choose_device
from play.library import Entry, Library
from play.plans import Plan, to_tensor
from play.player import as_trained, to_picture
from play.recording import to_gif, to_mp4
from training.settings import DreamSettings
from training.video import Sample, animation

FOLDER = Path("outputs/dreams")
ENCODERS = {".gif": to_gif, ".mp4": to_mp4}


def run(cfg: DictConfig) -> None:
    """Write the film. Raises ValueError or OSError, in one line, before anything is dreamed."""
    settings = DreamSettings.from_config(cfg.dream)
    device = choose_device(settings.device, "dream.device")
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    library = Library(settings, device)
    entry = library.choose()
    sampling = plans.sampling_of(settings, entry)
    names = action_words.names_of(entry, settings)
    fpaths = film_fpaths(settings, entry)
    real_names = action_words.real_names_of(entry)
    words = None if plans.is_inferred(settings) else plans.written_actions(settings, names, real_names)
    prompt, source = plans.read_footage(settings, entry)
    world = library.load(entry)
    window = plans.window_of(settings, entry, world)
    plan = plans.make_plan(settings, entry, world, window, prompt, source, words)
    frames, seconds = dream(world, plan, sampling=sampling, seed=settings.seed, window=window)
    num_new = len(frames) - len(plan.given)
    sample = Sample(
        0,
        plan.beside,
        frames,
        len(plan.given),
        [names[action] for action in plan.actions],
        real_name=plan.beside_name,
    )
    write_films(fpaths, [np.asarray(image) for image in animation([sample])], settings.fps)
    written = " and ".join(str(fpath) for fpath in fpaths)
    print(f"{written}: {num_new} frames of {entry.name} at {num_new / seconds:.1f} frames/s{plan.end}")


def film_fpaths(settings: DreamSettings, entry: Entry) -> list[Path]:
    """The files to write, their folders made; names that are still free where the settings name none."""
    if settings.out is None:
        stem = "-".join(Path(entry.name).with_suffix("").parts)
        pairs = ([FOLDER / f"{stem}-{number}{suffix}" for suffix in ENCODERS] for number in count(1))
        fpaths = next(pair for pair in pairs if not any(fpath.exists() for fpath in pair))
    else:
        fpaths = [Path(name) for name in settings.out]
    for fpath in fpaths:
        if fpath.is_dir():
            raise ValueError(f"dream.out={fpath} is a folder, expected a file that ends in .gif or .mp4")
        fpath.parent.mkdir(parents=True, exist_ok=True)
    return fpaths


def dream(world: WorldModel, plan: Plan, *, sampling: Sampling, seed: int, window: int) -> tuple[np.ndarray, float]:
    """Given and dreamed frames (P+K, H, W, 3) uint8, and the seconds that the dreamed ones took."""
    device = next(world.parameters()).device
    actions = torch.from_numpy(plan.actions)[None].to(device)
    num_given = len(plan.given)
    frames = list(plan.given)
    with as_trained(device):
        session = world.start(
            to_tensor(plan.given, device),
            actions[:, : num_given - 1],
            sampling=sampling,
            seeds=torch.tensor([seed], device=device),
            window=window,
        )
        began = time.perf_counter()
        for action in tqdm(actions[:, num_given - 1 :].unbind(1), desc="dreaming", unit="frame"):
            frames.append(to_picture(session.step(action)[0]))
    return np.stack(frames), time.perf_counter() - began


def write_films(fpaths: Sequence[Path], frames: list[np.ndarray], fps: float) -> None:
    """Each by its suffix, atomically: what a file held before stays until the new film is whole."""
    for fpath in fpaths:
        partial = fpath.with_name(f".{fpath.name}.{os.getpid()}.partial")
        partial.write_bytes(ENCODERS[fpath.suffix.lower()](frames, fps))
        os.replace(partial, fpath)
