"""`distributed_type: DEEPSPEED` on two processes (gloo): the training and the files of a run without DeepSpeed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from tests.training.test_resume import assert_same_tree
from tests.training.workers import tiny
from tests.training.workers.launch import REPOSITORY, launch
from tests.training.workers.tiny import configure
from tests.training.workers.zero import RUNS
from tests.training.written import BF16, assert_close, assert_same_curves, assert_same_files, lines
from training import accelerate_config, checkpoint, deepspeed_config, main
from training.objectives import one_loss
from training.settings import ScheduleSettings, TrainSettings
from training.trainer import train

installed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason=f"deepspeed is not installed ({deepspeed_config.REQUIREMENTS})"
)
START = "distributed_type: DEEPSPEED\nnum_processes: 2\nnum_machines: 1\n"
CALLS = ("forwards",)  # counts calls, not clips
JOINT = {"train__batch_size": 8, "train__grad_accum": 1}
SAME = [name for name, (_, kind, settings) in RUNS.items() if settings.get("linear") and kind != "noisy_line"]


def folder(root: Path, name: str, run: str) -> Path:
    return root / "runs" / tiny.model_of(RUNS[name][1]) / run


def weights(root: Path, name: str, run: str, step: int = 3) -> dict[str, torch.Tensor]:
    return load_file(folder(root, name, run) / checkpoint.step_name(step) / checkpoint.WEIGHTS)


def state(root: Path, name: str, run: str, step: int) -> dict:
    return checkpoint.load_state(folder(root, name, run) / checkpoint.step_name(step))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """All of `RUNS` by two processes, and the beginning of "resumed" by one without DeepSpeed."""
    root = tmp_path_factory.mktemp("zero")
    configure("genie_redux", root)  # writes data and the frozen tokenizer before two processes look for them
    _, kind, settings = RUNS["adamw"]
    train(configure(kind, root, name="adamw-one", **settings | JOINT | {"train__num_train_steps": 2}))
    done = launch(2, "tests.training.workers.zero", str(root), *RUNS)
    assert done.returncode == 0, done.stdout
    (root / "output.txt").write_text(done.stdout)
    return root


@installed
@pytest.mark.parametrize("name", SAME)
def test_two_processes_make_the_update_of_one_on_the_joint_batch(trained, name):
    _, kind, settings = RUNS[name]
    plain = {"train__compile": False, "train__gradient_checkpointing": False}
    train(configure(kind, trained, name=f"{name}-one", **settings | JOINT | plain))
    loose = BF16 if name == "bf16" else {}
    assert_close(weights(trained, name, name), weights(trained, name, f"{name}-one"), but=CALLS, **loose)
    first, second = (lines(folder(trained, name, run)) for run in (name, f"{name}-one"))
    assert first[0]["train/grad_norm"] > settings["optimizer__max_grad_norm"]  # clipping took part
    keys = ("train/loss", "train/grad_norm", "train/lr", "validation/loss")
    assert_same_curves(first, second, keys, rel=2e-2 if name == "bf16" else 1e-5)


@installed
@pytest.mark.parametrize("name", RUNS)
def test_both_processes_hold_the_same_weights_and_half_of_the_optimizers_state(trained, name):
    first, second = (torch.load(trained / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_same_tree(first, second)
    shares = [float((trained / f"{name}-share-{rank}.txt").read_text()) for rank in (0, 1)]
    moments = 1 if RUNS[name][2].get("linear") else 2  # momentum; means of gradients and squares
    assert shares == pytest.approx([moments / 2] * 2, rel=0.2)


@installed
def test_the_files_are_those_of_a_run_without_deepspeed(trained):
    split, plain = (state(trained, "adamw", run, 2) for run in ("adamw", "adamw-one"))
    assert_same_files(split, plain, but=CALLS)


@installed
def test_a_run_goes_on_without_deepspeed_and_one_without_goes_on_with_it(trained):
    _, kind, settings = RUNS["adamw"]
    start = {"train__resume_ckpt": folder(trained, "adamw", "adamw") / checkpoint.step_name(2)}
    train(configure(kind, trained, name="gone-on", **settings | JOINT | start))
    ends = [weights(trained, "adamw", run) for run in ("adamw", "gone-on", "adamw-one")]
    # DeepSpeed all the way; with it, then without; without, then with it. AdamW divides rounding by itself.
    for other in ends[1:]:
        assert_close(other, ends[0], rtol=1e-3, atol=1e-3, but=CALLS)


@installed
def test_a_run_that_is_told_to_stop_and_goes_on_is_the_unbroken_run(trained):
    unbroken, stopped = (state(trained, "adamw", run, 3) for run in ("adamw", "signalled"))
    assert_same_tree(unbroken, stopped)
    assert_same_tree(weights(trained, "adamw", "adamw"), weights(trained, "adamw", "signalled"))
    for rank in (0, 1):
        assert (trained / f"signalled-{rank}-first.txt").read_text() == "after 2 updates: SystemExit(0)"
    words = f"--accelerate_config={trained / 'zero-1.yaml'} --train.resume_ckpt=auto"
    assert words in (trained / "output.txt").read_text()


@installed
@pytest.mark.parametrize("name", ["skip_1", "skip_2"])
def test_a_bad_loss_on_one_process_is_skipped_by_both_and_its_gradient_forgotten(trained, name):
    _, kind, settings = RUNS[name]
    without = configure(kind, trained, name=f"{name}-one", **settings | JOINT)
    train(without, objective=bad_at_step_1)
    assert_close(weights(trained, name, name), weights(trained, name, f"{name}-one"), but=CALLS)
    assert [line["train/skipped_steps"] for line in lines(folder(trained, name, name)) if "train/lr" in line] == [
        0,
        1,
        1,
    ]


def bad_at_step_1(parts, clip, step):
    for name, output in one_loss(parts, clip, step):
        yield name, output._replace(loss=output.loss + torch.inf if step == 1 else output.loss)


@installed
def test_a_bad_loss_on_one_process_stops_both_before_the_update(trained):
    for rank in (0, 1):
        text = (trained / f"stop-{rank}.txt").read_text()
        assert text.startswith("after 1 updates: ValueError('the loss or its gradient is not finite at step 1")
        assert "met in process 1: train-00000.h5" in text
    after = [torch.load(trained / f"stop-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all(torch.isfinite(value).all() for value in after[0].values())


@installed
def test_accelerate_starts_two_processes_with_a_deepspeed_file(tmp_path):
    (tmp_path / "zero.json").write_text(json.dumps({
        "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
        "bf16": {"enabled": True}, "fp16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": "auto"},
    }))  # fmt: skip
    fpath = tmp_path / "mine.yaml"
    fpath.write_text(
        START + "deepspeed_config:\n  deepspeed_config_file: zero.json\n  gradient_accumulation_steps: auto\n"
    )
    OmegaConf.save(configure("tokenizer", tmp_path, train__num_train_steps=2), tmp_path / "config.yaml")
    done = subprocess.run(
        [sys.executable, "scripts/launch.py", "accelerate", "launch", f"--config_file={fpath}",
         "-m", "training.main", f"--config={tmp_path / 'config.yaml'}"],
        cwd=REPOSITORY,
        env=os.environ
        | {accelerate_config.VARIABLE: str(fpath), "OMP_NUM_THREADS": "1"}
        | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CPU, 1 threads, bf16, 2 process(es), DeepSpeed ZeRO 2" in done.stdout
    assert list(tmp_path.glob("runs/tokenizer/tokenizer/step-00000002"))


# ------------------------------------------------------------------------------------------------- what files may say


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> tuple[TrainSettings, ScheduleSettings, str]:
    cfg = configure("tokenizer", tmp_path_factory.mktemp("settings"))
    schedule, optimizer = ScheduleSettings.from_optimizer(cfg.optimizer)
    return TrainSettings.from_config(cfg.train), schedule, optimizer["_target_"]


@pytest.fixture
def answer(settings, tmp_path, monkeypatch):
    """Checks files (an Accelerate config with its `deepspeed_config`, and a DeepSpeed file) against our settings.

    Returns the one line that refuses them, "" where none does.
    """
    train_settings, schedule, optimizer = settings

    def ask(top: dict, own: dict, file: dict | str | None = None, mode="train", optimizer=optimizer, **changes) -> str:
        if file is not None:
            own = own | {"deepspeed_config_file": "zero.json"}
            (tmp_path / "zero.json").write_text(file if isinstance(file, str) else json.dumps(file))
        values = {"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": own} | top
        OmegaConf.save(OmegaConf.create(values), tmp_path / "mine.yaml")
        monkeypatch.setenv(accelerate_config.VARIABLE, str(tmp_path / "mine.yaml"))
        try:
            deepspeed_config.check(mode, replace(train_settings, **changes), schedule, optimizer)
        except ValueError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error)
            return str(error)
        return ""

    return ask


@pytest.mark.parametrize(
    ("top", "own", "changes", "words"),
    [
        ({}, {"zero_stage": 3}, {}, "ZeRO stage 3 --train.sharding=fsdp"),
        ({}, {"zero_stage": 0}, {}, "ZeRO stage 0 MULTI_GPU"),
        ({}, {"gradient_accumulation_steps": 4}, {}, "gradient_accumulation_steps: 4 train.grad_accum is 1"),
        ({}, {"gradient_clipping": 1.0}, {}, "gradient_clipping: 1.0 optimizer.max_grad_norm is 10.0"),
        ({}, {"offload_optimizer_device": "cpu"}, {}, "offload_optimizer_device: cpu write none"),
        ({}, {"deepspeed_moe_layer_cls_names": "A"}, {}, "deepspeed_moe_layer_cls_names leave it out"),
        ({"mixed_precision": "fp16"}, {}, {}, "bf16 or fp32"),
        ({}, {}, {"mixed_precision": "fp16"}, "bf16 or fp32"),
        ({"num_processes": 1}, {}, {}, "there is one --num_processes=N"),
        ({"num_machines": 2}, {}, {}, "deepspeed_multinode_launcher: pdsh write standard"),
        ({}, {}, {"optimizer": "training.optimizers.muon_with_adamw"}, "muon_with_adamw --optimizer=adamw"),
        ({}, {}, {"sharding": "fsdp"}, "--train.sharding=null"),
        ({}, {}, {"mode": "eval"}, "mode=eval leave --accelerate_config out"),
        ({}, {"deepspeed_config_file": "none.json"}, {}, "deepspeed_config_file: none.json no such file"),
    ],
)
def test_what_deepspeed_cannot_do_here_is_refused_in_one_line(answer, top, own, changes, words):
    line = answer(top, own, **changes)
    assert all(word in line for word in words.split()), line


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ({"zero_optimization": {"stage": 3}}, {}, "ZeRO stage 3 --train.sharding=fsdp"),
        ({"zero_optimization": {"stage": 2}, "optimizer": {"type": "Adam"}}, {}, "zero.json optimizer keys of Lamp"),
        ({"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}}, {}, "bf16 or fp32"),
        ({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}, {"mixed_precision": "no"}, "bf16.enabled"),
        ({"zero_optimization": {"stage": 2}, "train_batch_size": 16}, {}, "zero.json train_batch_size: 16 is 4"),
        ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, {}, "round_robin_gradients leave it out"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, {}, "offload_optimizer: cpu"),
        ({"bf16": {"enabled": True}}, {}, "zero.json has no zero_optimization"),
        ("{", {}, "zero.json cannot be read as JSON"),
    ],
)
def test_a_deepspeed_file_that_contradicts_our_keys_is_refused_in_one_line(answer, file, changes, words):
    line = answer({}, {}, file, **changes)
    assert all(word in line for word in words.split()), line


def test_a_file_that_agrees_is_taken_where_deepspeed_is_installed(answer):
    own = {"gradient_accumulation_steps": "auto", "offload_optimizer_device": "none", "zero3_init_flag": False}
    numbers = {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 10.0}
    zero = {"stage": 1, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto", "overlap_comm": True}
    file = {"zero_optimization": zero, "bf16": {"enabled": "auto"}, "steps_per_print": 10} | numbers
    line = answer({}, own, file)
    if find_spec("deepspeed") is None:
        assert "deepspeed is not installed" in line and line.endswith("pip install -r requirements-deepspeed.txt")
    else:
        assert line == ""
    assert deepspeed_config.zero_options() == {"stage": 1, "overlap_comm": True}


def test_the_check_before_any_device_is_touched_reads_the_file(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(START + "deepspeed_config:\n  zero_stage: 3\n")
    monkeypatch.setenv(accelerate_config.VARIABLE, str(tmp_path / "mine.yaml"))
    with pytest.raises(ValueError, match="says ZeRO stage 3"):
        main.check(configure("tokenizer", tmp_path))
