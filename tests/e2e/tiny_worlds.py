"""Worlds of real frames, trained for seconds: enough for actions to matter."""

from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

from data_generation.generate import read_settings
from data_generation.shards import generate
from training import command_line
from training.trainer import train

TINY = ("dim=32", "heads=2", "dim_head=16")
TRAINING = (
    "optimizer=quickstart train.dataset_name=levels eval.dataset_name=levels train.num_frames=4 "
    "train.sample_num_frames=3 train.batch_size=2 train.grad_accum=1 train.num_workers=0 train.logger=none "
    "train.log_every=100 train.validate_every=100 train.save_model_every=100 train.num_validation_clips=2"
)


def make(root: Path) -> None:
    """Write levels of CoinRun to `root`/data; runs of a tokenizer, a latent and a guided world to `root`/outputs."""
    sizes = {"n_instances": "12", "n_steps_max": "12", "n_workers": "1"}
    generate(read_settings("coinrun_quickstart", {"name": "levels", "root_dpath": str(root / "data"), **sizes}))
    tokenizer = f"tokenizer_fpath={root / 'outputs' / 'tokenizer' / 'tokenizer'}"
    _fit(root, "tokenizer", 12, "tokenizer=small", "quantizer=small", *_tiny("tokenizer"))
    _fit(root, "genie_redux", 2, tokenizer, "dynamics=small", "lam=small", *_tiny("dynamics"), *_tiny("lam"))
    _fit(root, "genie_redux_guided", 12, tokenizer, "dynamics=small", *_tiny("dynamics"))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _tiny(group: str) -> list[str]:
    return [f"{group}.{size}" for size in TINY]


def _fit(root: Path, config: str, steps: int, *words: str) -> None:
    places = [f"{group}.dataset_root_dpath={root / 'data'}" for group in ("train", "eval")]
    places.append(f"train.save_root_dpath={root / 'outputs'}")
    words = (*words, *TRAINING.split(), *places, f"train.num_train_steps={steps}")
    train(command_line.compose(command_line.parse([f"--config={config}.yaml", *(f"--{word}" for word in words)])))
