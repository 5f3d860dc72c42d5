"""Trainings of a second: noise as data, every kind of model at toy size, configured through the real configs."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from data.episodes import FORMAT, Episode, shard_name, summarise_shard, write_json, write_shard
from models.components.random import uniform
from models.interfaces import StepOutput
from models.pretrained import save_weights
from training import command_line
from training.settings import ScheduleSettings
from training.setup import build_model

SIZE = 16
KINDS = ("noisy_line", "tokenizer", "genie_redux", "genie_redux_guided")
# Kinds again with a quantizer that keeps statistics of the batch, or has other codes: name -> (kind, settings).
VARIANTS = {
    "tokenizer_fsq": ("tokenizer", {"quantizer": "fsq"}),
    "tokenizer_revived": ("tokenizer", {"quantizer__dead_code_steps": 2, "quantizer__normalize_codes": "true"}),
    "genie_redux_revived": ("genie_redux", {"quantizer": "small_actions", "quantizer__dead_code_steps": 1}),
}
SMALL = {
    "tokenizer": "tokenizer.dim=32 tokenizer.heads=2 tokenizer.dim_head=16 tokenizer.patch_size=8 "
    "tokenizer.encoder_blocks=1 tokenizer.decoder_blocks=1",
    "dynamics": "dynamics.dim=32 dynamics.heads=2 dynamics.dim_head=16 dynamics.blocks=1 dynamics.max_seq_len=32",
    "lam": "lam.dim=32 lam.heads=2 lam.dim_head=16 lam.patch_size=8 lam.encoder_blocks=1 lam.decoder_blocks=1",
}
TRAINING = (
    "data.image_size=[16,16] data.num_actions=3 train.dataset_name=noise train.num_frames=4 train.sample_num_frames=3 "
    "train.batch_size=2 train.grad_accum=1 train.num_train_steps=4 train.num_workers=0 train.logger=none "
    "train.log_every=1 train.validate_every=100 train.save_model_every=100 train.num_validation_clips=3 "
    "train.seq_step=3 optimizer.lr=0.01 optimizer.warmup_steps=2 "
    "eval.num_first_frames=1 eval.sample_num_frames=3 eval.num_frames=4 eval.delta_psnr_horizon=3"
)


class NoisyLine(nn.Module):
    """The smallest model that draws random numbers per clip and has a buffer that counts."""

    def __init__(self, *, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 3))
        self.register_buffer("forwards", torch.zeros(()))

    def forward(self, clip, step):
        colours = clip.frames.mean(dim=(-1, -2))
        if self.training:
            self.forwards += 1
            colours = colours + 0.1 * uniform(clip.seeds, (0,), tuple(colours.shape[1:]))
        errors = (self.layers(colours[:, :-1]) - colours[:, 1:]) ** 2
        loss = errors.mean(dim=(1, 2)).mean()
        return StepOutput(loss, {"squared": loss.detach()})


def write_data(root: Path) -> None:
    """The dataset `noise`: smooth random films with actions, in a train and a validation split."""
    generator = np.random.default_rng(0)
    folder = root / "noise"
    folder.mkdir(parents=True)
    splits = {}
    for split, lengths in {"train": (9, 12, 7), "validation": (8, 6)}.items():
        episodes = [
            Episode(
                frames=generator.integers(0, 256, (length, SIZE, SIZE, 3), dtype=np.uint8),
                actions=generator.integers(0, 3, length).astype(np.int16),
                rewards=np.zeros(length, np.float32),
                level_seed=number,
                end_reason="coin",
            )
            for number, length in enumerate(lengths)
        ]
        fpath = folder / shard_name(split, 0)
        write_shard(fpath, episodes)
        splits[split] = {"episodes": len(lengths), "frames": sum(lengths), "shards": [summarise_shard(fpath)]}
    info = {
        "format": FORMAT,
        "name": "noise",
        "image_size": [SIZE, SIZE],
        "action_names": ["left", "stay", "right"],
        "splits": splits,
    }
    write_json(folder / "info.json", info)


def configure(kind: str, root: Path, **settings: object) -> DictConfig:
    """A config for a kind or variant with its data, tokenizer and runs below `root`; settings as `train__batch_size=1`.

    `linear=True` trains by SGD, whose updates are as exact as the gradients. Adam divides by their size, so that where
    a gradient is zero but for rounding (a bias that softmax ignores), equal computations part by whole steps.
    """
    is_linear = settings.pop("linear", False)
    if kind in VARIANTS:
        kind, own = VARIANTS[kind]
        settings = own | settings
    if not (root / "data").exists():
        write_data(root / "data")
    entry = "tokenizer" if kind == "noisy_line" else kind
    words = [*TRAINING.split(), f"train.dataset_root_dpath={root / 'data'}", f"train.save_root_dpath={root / 'runs'}"]
    words += SMALL["tokenizer"].split() if entry == "tokenizer" else SMALL["dynamics"].split()
    words += SMALL["lam"].split() if kind == "genie_redux" else []
    if entry != "tokenizer":
        words.append(f"tokenizer_fpath={tiny_tokenizer(root)}")
    words += [f"{key.replace('__', '.')}={'null' if value is None else value}" for key, value in settings.items()]
    cfg = command_line.compose(command_line.parse([f"--config={entry}.yaml", *(f"--{word}" for word in words)]))
    if is_linear:
        schedule = {field.name: cfg.optimizer[field.name] for field in fields(ScheduleSettings)}
        cfg.optimizer = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 1.0, "momentum": 0.9, **schedule}
    if kind == "noisy_line":
        cfg.network = {"_target_": f"{__name__}.NoisyLine", "width": 8}
    return cfg


def model_of(kind: str) -> str:
    """The folder below `runs` in which trainings of a kind or variant lie."""
    kind = VARIANTS[kind][0] if kind in VARIANTS else kind
    return "tokenizer" if kind == "noisy_line" else kind


def tiny_tokenizer(root: Path) -> Path:
    fpath = root / "tokenizer" / "model.safetensors"
    if not fpath.exists():
        node = configure("tokenizer", root).network
        torch.manual_seed(0)
        save_weights(build_model(node), fpath, config=OmegaConf.to_container(node, resolve=True))
    return fpath
