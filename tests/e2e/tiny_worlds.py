"""Worlds of real frames, trained for seconds."""

from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

from data_generation.generate import read_settings
from data_generation.shards import generate
from models import pretrained
from training import command_line
from training.trainer import train

TINY = ("dim=32", "heads=2", "dim_head=16")
LOUDNESS = 100
TRAINING = (
    "optimizer=quickstart train.dataset_name=levels eval.dataset_name=levels train.num_frames=4 "
    "train.sample_num_frames=3 train.batch_size=2 train.grad_accum=1 train.num_workers=0 train.logger=none "
    "train.log_every=100 train.validate_every=100 train.save_model_every=100 train.num_validation_clips=2"
)


def make(root: Path) -> None:
    """Write levels of CoinRun to `root`/data; runs of a tokenizer, a latent and a guided world to `root`/outputs."""
    sizes = {"n_instances": "12", "n_steps_max": "12", "n_workers": "1"}
    generate(read_settings("coinrun_quickstart", {"name": "levels", "root_dpath": str(root / "data"), **sizes}))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models so small only wait for a second one
    tokenizer = f"tokenizer_fpath={root / 'outputs' / 'tokenizer' / 'tokenizer'}"
    _fit(root, "tokenizer", 12, "tokenizer=small", "quantizer=small", *_tiny("tokenizer"))
    _fit(root, "genie_redux", 2, tokenizer, "dynamics=small", "lam=small", *_tiny("dynamics"), *_tiny("lam"))
    _fit(root, "genie_redux_guided", 12, tokenizer, "dynamics=small", *_tiny("dynamics"))
    _make_actions_louder(root / "outputs" / "genie_redux_guided" / "genie_redux_guided")
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _make_actions_louder(run: Path) -> None:
    """What a dozen steps taught about actions is true but faint, and may not turn a single token."""
    fpath, header = pretrained.resolve_fpath(run), pretrained.read_header(run)
    world = pretrained.load(run)
    world.dynamics.action_projection.weight.data.mul_(LOUDNESS)
    pretrained.save_weights(world, fpath, config=header["config"], metadata=header["metadata"])


def _tiny(group: str) -> list[str]:
    return [f"{group}.{size}" for size in TINY]


def _fit(root: Path, config: str, steps: int, *words: str) -> None:
    places = [f"{group}.dataset_root_dpath={root / 'data'}" for group in ("train", "eval")]
    places.append(f"train.save_root_dpath={root / 'outputs'}")
    words = (*words, *TRAINING.split(), *places, f"train.num_train_steps={steps}")
    train(command_line.compose(command_line.parse([f"--config={config}.yaml", *(f"--{word}" for word in words)])))
