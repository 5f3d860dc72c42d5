"""Every command that the README prints runs as printed, with small sizes appended; the last of repeated keys counts."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TESTED_ELSEWHERE = {
    "bash run.sh --config=quickstart.yaml",  # test_quickstart.py
    "bash run.sh --mode=play",  # test_play.py
    "bash run.sh --config=videos.yaml --dataset_name=gameplay",  # tests/data/test_import_videos.py
    # test_reference_commands.py, which puts files where the published ones go
    "bash run.sh --config=genie_redux_guided.yaml --mode=eval "
    "--eval.model_fpath=checkpoints/GenieRedux_Guided_CoinRun_80mln_v1.0/model.pt "
    "--tokenizer_fpath=checkpoints/GenieRedux_Tokenizer_CoinRun_100mln_v1.0/model.pt",
}
SMALL_TRAINING = (
    "--num_processes=1 --train.batch_size=2 --train.grad_accum=1 --train.num_frames=4 --train.num_train_steps=1 "
    "--train.num_workers=0 --train.num_validation_clips=2 --eval.num_frames=4 --eval.num_first_frames=1 "
    "--eval.sample_num_frames=3 --eval.delta_psnr_horizon=2 --train.resume_ckpt=auto"
)
SMALL_EVALUATION = (
    "--eval.num_clips=2 --eval.batch_size=2 --eval.num_frames=4 --eval.num_first_frames=1 --eval.sample_num_frames=3 "
    "--eval.delta_psnr_horizon=2 --eval.num_samples=1 --eval.reader_steps=2"
)
SMALL_MODEL = {
    "tokenizer": "--tokenizer=small --quantizer=small",
    "genie_redux": "--lam=small --dynamics=small",
    "genie_redux_guided": "--dynamics=small",
}


def printed_commands() -> list[str]:
    """Command lines of the README's shell blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def small_sizes(command: str, folder: Path) -> str:
    """What is appended to a command, so that it takes seconds and writes below `folder`."""
    if "--list" in command or "--help" in command or "download_models" in command:
        return ""
    if "--mode=generate" in command:
        return f"--n_instances=20 --n_steps_max=40 --n_workers=1 --root_dpath={folder / 'datasets'}"
    if "--mode=import" in command:
        return f"--root={folder / 'datasets'}"
    if "--mode=inspect" in command:
        return f"--root={folder / 'datasets'} --output={folder / 'inspect'}"
    if "--mode=dream" in command:
        return (
            f"--dream.model_fpath={folder / 'checkpoints' / 'genie_redux_guided' / 'genie_redux_guided'} "
            f"--dream.dataset_root_dpath={folder / 'datasets'} --dream.num_frames=3 --dream.out={folder / 'dream.gif'}"
        )
    if "--mode=compare" in command:
        return f"--compare.inputs={folder / 'evaluation'} --compare.out={folder / 'comparison'}"
    if "--mode=test" in command:
        return "--collect-only tests/models/test_components.py"
    paths = (
        f"--train.dataset_root_dpath={folder / 'datasets'} --train.save_root_dpath={folder / 'checkpoints'} "
        f"--eval.save_root_dpath={folder / 'evaluation'}"
    )
    if "--mode=eval" in command:
        return f"{paths} {SMALL_EVALUATION}"
    model = re.search(r"--config=(\w+).yaml", command)[1]
    if model == "my_world":
        return f"{paths} {SMALL_TRAINING} {SMALL_MODEL['genie_redux']} --name=mine"
    name = "--name=cached" if "token_cache" in command else ""
    return f"{paths} {SMALL_TRAINING} {SMALL_MODEL[model]} {name}"


def order(command: str) -> int:
    """Data come before tokenizers, those before worlds, those before their evaluation."""
    stages = (
        "--mode=generate",
        "--mode=import",
        "--mode=inspect",
        "tokenizer.yaml",
        "world.yaml",
        "genie_redux.yaml",
        "--mode=tokenize",
        "guided.yaml",
    )
    last = 10 * ("--mode=eval" in command) + 20 * ("--mode=compare" in command) + 20 * ("--mode=dream" in command)
    return next((i for i, part in enumerate(stages) if part in command), -1) + last


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_world.yaml").write_text("defaults: [genie_redux, _self_]\n")
    (folder / "gameplay").mkdir()
    for shade in (40, 80, 120):
        pictures = [Image.new("RGB", (96, 64), (shade, 10 * step, 0)) for step in range(12)]
        gif = folder / "gameplay" / f"{shade}.gif"
        pictures[0].save(gif, save_all=True, append_images=pictures[1:], duration=50)
    return folder


@pytest.mark.parametrize(
    "command", sorted(set(printed_commands()) - TESTED_ELSEWHERE, key=lambda line: (order(line), line))
)
def test_a_command_of_the_readme_runs_as_printed(command, folder):
    typed = command.replace("my_world.yaml", str(folder / "my_world.yaml"))
    typed = typed.replace("~/gameplay", str(folder / "gameplay"))
    words = shlex.split(f"{typed} {small_sizes(command, folder)}")
    if words[0] == "python":
        words[0] = sys.executable
    one = os.environ | {"LAMP_TEST_PROCESSES": "1"}
    process = subprocess.run(words, cwd=ROOT, env=one, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, f"{shlex.join(words)}\n{process.stdout[-2000:]}{process.stderr[-2000:]}"


def test_the_readme_prints_the_commands_that_it_lives_from():
    commands = " ".join(printed_commands())
    for part in (
        "quickstart.yaml",
        "--mode=test",
        "--mode=play",
        "--mode=generate",
        "--mode=eval",
        "--num_processes",
        "--help",
        "--list",
    ):
        assert part in commands
