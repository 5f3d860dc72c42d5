"""A run folder and the last line of a training are enough to go on with: evaluate, and train the same once more."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from tests.training.workers import tiny

ROOT = Path(__file__).resolve().parents[2]
EVALUATION = "--eval.dataset_name=noise --eval.split=validation --eval.num_clips=2 --eval.num_samples=1"


def run(words: list[str], cwd: Path) -> str:
    done = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, timeout=300,
        env=os.environ | {"LAMP_PYTHON": sys.executable, "PWD": str(cwd)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    """A training as people start it, its run folder and what it printed. Spaces in paths must survive."""
    root = tmp_path_factory.mktemp("repeat") / "two words"
    tiny.write_data(root / "data")
    words = [f"--{word}" for word in [*tiny.TRAINING.split(), *tiny.SMALL["tokenizer"].split()]]
    words += [f"--train.dataset_root_dpath={root / 'data'}", f"--eval.dataset_root_dpath={root / 'data'}"]
    words += [f"--train.save_root_dpath={root / 'runs'}", f"--eval.save_root_dpath={root / 'outputs'}"]
    words += ["--train.keep_best=loss", "--train.validate_every=2", "--train.keep_last=1", *EVALUATION.split()]
    printed = run(["bash", "run.sh", "--config=tokenizer.yaml", *words], ROOT)
    return root / "runs" / "tokenizer" / "tokenizer", printed


def test_the_evaluation_that_the_last_line_names_runs_as_printed(trained):
    folder, printed = trained
    last = printed.strip().splitlines()[-1]
    best = (folder / "best").read_text().strip()
    assert (
        last.startswith("best validation loss ") and f"weights in {folder / best}; evaluate with: bash run.sh" in last
    )
    run(shlex.split(last.partition("evaluate with: ")[2]), ROOT)
    (metrics,) = folder.parents[2].joinpath("outputs").rglob("metrics.json")
    (result,) = json.loads(metrics.read_text()).values()
    assert result["psnr"] > 0


def test_the_config_in_a_run_folder_alone_makes_the_same_weights(trained):
    folder, _ = trained
    run(["bash", "run.sh", f"--config={folder / 'config.yaml'}", "--name=again"], ROOT)
    first, second = (
        load_file(path / "step-00000004" / "model.safetensors") for path in (folder, folder.parent / "again")
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    (start,) = json.loads((folder / "record.json").read_text())["starts"]
    assert start["config"] == OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True)
    assert start["command"].startswith("bash run.sh --config=tokenizer.yaml ")
    assert shlex.split(start["command"])[2:] == shlex.split(start["program"])[1:]


def test_a_key_given_beside_such_a_config_reaches_all_that_follows_from_it(trained):
    folder, _ = trained
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.tokenizer.dim, cfg.name = 64, "wider"
    assert cfg.network.dim == 64 and cfg.train.wandb_name == "wider"
