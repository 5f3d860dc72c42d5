"""`--accelerate_config=FILE`: a real file, a real `accelerate launch`, and what the file may not contradict."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.training.workers.tiny import configure
from training import accelerate_config
from training.settings import TrainSettings
from training.setup import make_accelerator

REPOSITORY = Path(__file__).resolve().parents[2]
PLAIN = "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_machines: 1\nnum_processes: 1\nuse_cpu: true\n"


@pytest.fixture
def given(monkeypatch, tmp_path):
    """Writes lines after those of a plain file and hands it over as run.sh does."""

    def write(lines: str) -> Path:
        fpath = tmp_path / "mine.yaml"
        fpath.write_text(PLAIN + lines)
        monkeypatch.setenv(accelerate_config.VARIABLE, str(fpath))
        return fpath

    return write


def settings(root: Path, **changes: object) -> TrainSettings:
    return TrainSettings.from_config(configure("tokenizer", root, **changes).train)


@pytest.mark.parametrize(
    ("lines", "changes", "cure"),
    [
        ("mixed_precision: fp16", {"train__mixed_precision": "bf16"}, "train.mixed_precision is bf16"),
        ("mixed_precision: fp8", {}, "known are no, bf16 and fp16"),
        ("mixed_precision: fp16", {"train__sharding": "fsdp"}, "train.sharding takes bf16"),
        ("gradient_accumulation_steps: 4", {"train__grad_accum": 2}, "train.grad_accum is 2"),
        ("distributed_type: FSDP", {}, "--train.sharding=fsdp"),
        ("distributed_type: MEGATRON_LM", {}, "NO, MULTI_GPU, MULTI_CPU, DEEPSPEED"),
        ("dynamo_config: {dynamo_backend: INDUCTOR}", {}, "--train.compile=true"),
    ],
)
def test_a_file_that_contradicts_our_keys_is_refused_in_one_line(given, tmp_path, lines, changes, cure):
    key = lines.split(":")[0]
    fpath = given("")
    kept = [line for line in PLAIN.splitlines() if not line.startswith(key)]
    fpath.write_text("\n".join([*kept, lines]))
    with pytest.raises(ValueError, match=r"says .*, which does not go together") as error:
        accelerate_config.check(settings(tmp_path, **changes))
    assert str(fpath) in str(error.value) and cure in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_agrees_is_taken(given, tmp_path):
    given("mixed_precision: bf16\ngradient_accumulation_steps: 2\ndynamo_backend: 'no'\n")
    accelerate_config.check(settings(tmp_path, train__mixed_precision="bf16", train__grad_accum=2))


def test_the_files_precision_counts_where_ours_is_open(given, tmp_path):
    given("mixed_precision: bf16\n")
    assert make_accelerator(settings(tmp_path)).mixed_precision == "bf16"


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n"])
def test_a_file_that_is_no_config_is_named(given, tmp_path, text):
    fpath = given("")
    fpath.write_text(text)
    with pytest.raises(ValueError, match=str(fpath)):
        accelerate_config.check(settings(tmp_path))


def launch(tmp_path: Path, lines: str) -> subprocess.CompletedProcess:
    """Train a tiny model through `accelerate launch` with the file, as run.sh does."""
    (tmp_path / "mine.yaml").write_text(lines)
    cfg = configure("tokenizer", tmp_path, train__num_train_steps=2)
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    return subprocess.run(
        [sys.executable, "scripts/launch.py", "accelerate", "launch", f"--config_file={tmp_path / 'mine.yaml'}",
         "-m", "training.main", f"--config={tmp_path / 'config.yaml'}"],
        cwd=REPOSITORY,
        env=os.environ
        | {accelerate_config.VARIABLE: str(tmp_path / "mine.yaml"), "OMP_NUM_THREADS": "1"}
        | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip


def test_accelerate_starts_a_training_with_a_users_own_file(tmp_path):
    done = launch(tmp_path, PLAIN + "mixed_precision: bf16\n")
    assert done.returncode == 0, done.stderr
    assert "CPU, 1 threads, bf16, 1 process(es)" in done.stdout
    assert list(tmp_path.glob("runs/tokenizer/tokenizer/step-00000002"))


def test_fewer_processes_than_the_file_asks_for_is_an_error(tmp_path):
    done = launch(tmp_path, PLAIN.replace("'NO'", "MULTI_CPU").replace("num_processes: 1", "num_processes: 2"))
    assert done.returncode != 0
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "says num_processes: 2, but 1 started" in error and "--num_processes=N" in error
