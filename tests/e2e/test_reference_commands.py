"""The commands of GenieRedux's README run here as printed there, misspelt keys included.

Each line is typed to the letter; small sizes and `--num_processes=1` are appended, and the last of repeated keys
counts. P, D and N stand for a path of weights, a folder of datasets and a dataset's name, as they do there.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.published import to_published
from tests.e2e.test_readme import printed_commands
from tests.models import builders

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = "checkpoints/GenieRedux_Tokenizer_CoinRun_100mln_v1.0/model.pt"
LATENT = "checkpoints/GenieRedux_CoinRun_250mln_v1.0/model.pt"
GUIDED = "checkpoints/GenieRedux_Guided_CoinRun_80mln_v1.0/model.pt"
EVAL = "--mode=eval --eval.action_to_take=-1 --eval.inference_method=one_go"
TRAINING = (
    "bash run.sh --config=tokenizer.yaml --num_processes=6 --train.batch_size=7 --train.grad_accum=2",
    "bash run.sh --config=genie_redux.yaml --num_processes=7 --train.batch_size=3 --train.grad_accum=4",
    "bash run.sh --config=genie_redux_guided.yaml --num_processes=7 --train.batch_size=4 --train.grad_accum=3",
    "bash run.sh --train.num_train_steps=10000",
    "bash run.sh --num_processes=2 --config=genie_redux.yaml --tokenizer_fpath=P --train.dataset_root_dpath=D "
    "--train.dataset_name=N --train.batch_size=2",
)
EVALUATION = (
    f"bash run.sh --config=genie_redux.yaml {EVAL} --eval.model_fpath={LATENT} --tokenizer_fpath={TOKENIZER} "
    "--dynamics.max_seq_len=8000 --lam.max_seq.len=8000",
    f"bash run.sh --config=genie_redux_guided.yaml {EVAL} --eval.model_fpath={GUIDED} --tokenizer_fpath={TOKENIZER}",
    "bash run.sh --config=genie_redux.yaml --mode=eval --eval.action_to_take=-1 --eval.model_fpath=P "
    "--eval.inference_method=one_go",
    "./run.sh --config=genie_redux.yaml --mode=eval --eval.action_to_take=1 --eval.model_path=P "
    "--eval.inference_method=one_go",
)
GENERATION = (
    "python generate.py",
    "python generate.py --config configs/data_gen_test_set.json",
    "python generate.py --config configs/data_gen_ppo.json",
    "python generate.py --config configs/data_gen_ppo_test_set.json",
)
SMALL_TRAINING = (
    "--num_processes=1 --train.num_train_steps=1 --train.batch_size=1 --train.grad_accum=1 --train.num_frames=4 "
    "--train.num_workers=0 --train.num_validation_clips=1 --train.resume_ckpt=auto --data.image_size=[16,16] "
    "--eval.num_frames=4 --eval.num_first_frames=1 --eval.sample_num_frames=3 --eval.delta_psnr_horizon=2"
)
SMALL_EVALUATION = (
    "--num_processes=1 --eval.num_clips=2 --eval.num_frames=4 --eval.num_first_frames=1 --eval.sample_num_frames=3 "
    "--eval.delta_psnr_horizon=2 --eval.num_samples=1 --eval.batch_size=2 --eval.reader_steps=2"
)
SMALL_GROUPS = {
    "tokenizer": "--tokenizer=small --quantizer=small",
    "genie_redux": "--lam=small --dynamics=small",
    "genie_redux_guided": "--dynamics=small",
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout beside this one: the same code, its own data and checkpoints, in the places that the lines name."""
    checkout = tmp_path_factory.mktemp("checkout")
    for entry in ROOT.iterdir():
        if entry.name not in ("checkpoints", "outputs", "data_generation", ".git"):
            (checkout / entry.name).symlink_to(entry)
    (checkout / "data_generation").mkdir()
    for entry in (ROOT / "data_generation").iterdir():
        if entry.name != "datasets":
            (checkout / "data_generation" / entry.name).symlink_to(entry)
    for config, count in (("coinrun_random", 20), ("coinrun_random_test", 6)):
        small = f"--n_instances={count} --n_steps_max=20 --image_size=16 --n_workers=1"
        run(f"bash run.sh --mode=generate --config={config} {small} --root_dpath=data_generation/datasets", checkout)
    for fpath, model in (
        (TOKENIZER, builders.tokenizer()),
        (LATENT, builders.world("latent-published")),
        (GUIDED, builders.world("guided-published")),
    ):
        (checkout / fpath).parent.mkdir(parents=True)
        torch.save(to_published(model), checkout / fpath)
    return checkout


def run(line: str, cwd: Path) -> str:
    words = shlex.split(line)
    process = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, check=False, timeout=300, env=os.environ | {"PWD": str(cwd)}
    )
    assert process.returncode == 0, f"{line}\n{process.stdout[-2000:]}{process.stderr[-2000:]}"
    return process.stdout + process.stderr


@pytest.mark.parametrize("line", [line for line in TRAINING if line not in printed_commands()])
def test_a_training_line_runs(line, checkout):
    """Those that our README prints too run in `test_readme.py`."""
    config = next((word for word in SMALL_GROUPS if f"--config={word}.yaml" in line), "tokenizer")
    name = "--name=on_a_given_tokenizer" if "tokenizer_fpath" in line else ""
    line = line.replace("=P", f"={checkout / TOKENIZER}").replace("=D ", f"={checkout}/data_generation/datasets ")
    output = run(f"{line.replace('=N ', '=coinrun_v2.0.0 ')} {SMALL_TRAINING} {SMALL_GROUPS[config]} {name}", checkout)
    assert "step-00000001" in output or "nothing to do" in output


@pytest.mark.parametrize("line", EVALUATION)
def test_an_evaluation_line_runs(line, checkout):
    needs_tokenizer = "" if "--tokenizer_fpath" in line else f"--tokenizer_fpath={TOKENIZER}"
    output = run(f"{line.replace('=P', f'={LATENT}')} {SMALL_EVALUATION} {needs_tokenizer}", checkout)
    assert "written to outputs/evaluation/genie_redux" in output
    if "lam.max_seq.len" in line:
        assert "lam.max_seq.len has no effect" in output
    if "eval.model_path" in line:
        assert "eval.model_path is called eval.model_fpath here" in output


@pytest.mark.parametrize("line", GENERATION)
def test_a_generation_line_runs(line, tmp_path):
    small = f"--n_instances=4 --n_steps_max=20 --n_workers=1 --root_dpath={tmp_path}"
    output = run(f"{line.replace('python', sys.executable, 1)} {small}", ROOT / "data_generation")
    assert "wrote" in output
