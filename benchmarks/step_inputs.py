"""What a measured training step works on: a model of its real size with random weights, clips through the loader."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from data.clips import Clip, ClipDataset, training_batches
from models.genie_redux import WorldModel
from training import command_line

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ("tokenizer", "genie_redux", "genie_redux_guided")
ONE_CLIP = ["--train.batch_size=1", "--train.num_frames=16"]
# Enough for batches that differ; 200 frames each at most.
GENERATED = ("--config=coinrun_quickstart", "--n_instances=20", "--n_workers=2")


def compose(config: str, words: list[str], *, small: bool) -> DictConfig:
    """An entry's configuration, one clip of 16 frames unless `words` say otherwise; small: the quickstart's sizes."""
    return command_line.compose(
        command_line.parse([f"--config={config}", *small_options(config, small), *ONE_CLIP, *words])
    )


def small_options(config: str, small: bool) -> list[str]:
    """The group options that make the quickstart's model out of a published one, without those of its training."""
    if not small:
        return []
    quickstart = command_line.compose(command_line.parse(["--config=quickstart.yaml"]))
    options = quickstart.stages[config].options
    return [f"--{group}={option}" for group, option in options.items() if group not in ("optimizer", "train")]


def build(cfg: DictConfig, *, small: bool = False) -> nn.Module:
    """The config's model with random weights; a world stands on a random tokenizer, published or the quickstart's."""
    if cfg.model == "tokenizer":
        return instantiate(cfg.network, _convert_="all")
    tokenizer = compose("tokenizer", [f"--data.image_size={list(cfg.data.image_size)}"], small=small)
    return WorldModel(
        tokenizer=instantiate(tokenizer.network, _convert_="all"),
        actions=instantiate(cfg.actions, _convert_="all"),
        dynamics=instantiate(cfg.dynamics, _convert_="all"),
    )


def random_clip(cfg: DictConfig, device: torch.device, *, batch_size: int) -> Clip:
    length = cfg.train.num_frames
    return Clip(
        frames=torch.rand(batch_size, length, cfg.data.channels, *cfg.data.image_size, device=device),
        actions=torch.randint(cfg.data.num_actions, (batch_size, length - 1), device=device),
        seeds=torch.arange(batch_size, device=device),
    )


def batches(cfg: DictConfig, dataset: Path | None, device: torch.device, *, batch_size: int) -> Iterator[Clip]:
    """Training batches of a dataset's folder, as the trainer reads them; None: one random clip that never leaves."""
    if dataset is None:
        return repeat(random_clip(cfg, device, batch_size=batch_size))
    clips = ClipDataset(dataset.parent, dataset.name, "train", cfg.train.num_frames)
    return training_batches(
        clips, batch_size=batch_size, seed=0, num_workers=cfg.train.num_workers, pin_memory=device.type == "cuda"
    )


def generate(folder: Path) -> Path:
    """A small dataset below `folder`. Raises ValueError where the generator fails, with its last line."""
    command = [sys.executable, "data_generation/generate.py", *GENERATED, f"--root_dpath={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ValueError(f"no data could be generated ({reason}); give a dataset with --dataset=DIR, or --random_clip")
    return next(folder.glob("*/info.json")).parent
