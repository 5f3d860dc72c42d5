"""The GPU suite at its tiny sizes, as a user calls it: real data, trainings, signals and archives."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from benchmarks import delivery, gpu_plan, gpu_suite
from benchmarks.gpu_plan import Stage
from benchmarks.stage_run import Deadline, Record, run_stage
from models import pretrained
from models.interfaces import Sampling
from training import command_line
from training.main import check

ROOT = Path(__file__).resolve().parents[2]
CALL = ["bash", "benchmarks/gpu_suite.sh", "--tiny", "--minutes=60"]
ONE_PROCESS = os.environ | {"LAMP_TEST_PROCESSES": "0"}  # for its tests
TRAINING = "tokenizer_small"


def results_of(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def statuses(out: Path) -> dict[str, str]:
    return {name: stage["status"] for name, stage in results_of(out)["stages"].items()}


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """A call in which one stage fails and that SIGTERM ends while the tokenizer trains: (DIR, process)."""
    out = tmp_path_factory.mktemp("suite")
    blocked = out / "work" / "datasets" / "coinrun_plain_test"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("no folder")
    log = out / "work" / "logs" / f"{TRAINING}.log"
    process = subprocess.Popen([*CALL, f"--out={out}"], cwd=ROOT, env=ONE_PROCESS, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not (log.exists() and "\nstep 1/" in log.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    before = statuses(out)
    blocked.unlink()
    return out, process.returncode, before


@pytest.fixture(scope="module")
def finished(disturbed):
    out, _, _ = disturbed
    done = subprocess.run([*CALL, f"--out={out}"], cwd=ROOT, env=ONE_PROCESS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_a_failed_stage_is_recorded_and_the_others_go_on(disturbed):
    _, exit_code, before = disturbed
    assert before["data"] == "finished" and before["gpu_tests"] == "finished"
    assert before["test_data"] == "failed"
    assert before[TRAINING] == "interrupted" and before["evaluate_genie_redux_guided_small"] == "not reached"
    assert exit_code == 128 + signal.SIGTERM


def test_the_next_call_skips_what_is_finished_and_goes_on_with_the_training(finished):
    out, output = finished
    assert "data: finished before" in output and "gpu_tests: finished before" in output
    assert set(statuses(out).values()) == {"finished"}
    assert "going on" in (out / "work" / "logs" / f"{TRAINING}.log").read_text()
    last = json.loads(output.splitlines()[-1])
    assert (last["name"], last["value"], last["reference"], last["ratio"]) == ("gpu_suite", 7, 7, 1.0)


def test_one_json_holds_what_every_stage_found(finished):
    out, _ = finished
    stages = results_of(out)["stages"]
    assert "the dataset is complete" in stages["data"]["result"]
    assert stages[TRAINING]["result"]["step"] == 100 and stages[TRAINING]["result"]["validation/loss"] > 0
    evaluation = stages["evaluate_genie_redux_guided_small"]["result"]["genie_redux_guided"]
    assert evaluation["num_clips"] == 2 and evaluation["psnr"] > 0
    assert stages["train_step_genie_redux_guided"]["result"]["frames_per_second"] > 0
    assert all(stage["seconds"] > 0 and stage["command"] for stage in stages.values())


def test_logs_pictures_and_weights_are_delivered_and_the_weights_dream(finished, tmp_path):
    out, _ = finished
    assert delivery.main([str(out), f"--to={tmp_path}"]) == 0
    assert {path.name for path in out.iterdir()} == {
        "results.json", "logs.tar.gz.00-of-01", "pictures.tar.00-of-01", "weights.tar.00-of-01", "work",
    }  # fmt: skip
    assert (tmp_path / "logs" / f"{TRAINING}.log").is_file()
    assert list((tmp_path / "pictures" / "evaluate_genie_redux_guided_small").rglob("*.gif"))
    world = pretrained.load(tmp_path / "weights" / "genie_redux_guided_small")
    with torch.no_grad():
        frames, actions = torch.rand(1, 1, 3, 64, 64), torch.zeros(1, 2, dtype=torch.int64)
        dream = world.rollout(frames, actions, sampling=Sampling(), seeds=torch.zeros(1, dtype=torch.int64))
    assert dream.frames.shape == (1, 2, 3, 64, 64)


def test_without_time_no_stage_is_begun_and_the_exit_code_says_so(tmp_path, capsys):
    assert gpu_suite.main(["--tiny", "--minutes=0.1", f"--out={tmp_path}"]) == 3
    assert set(statuses(tmp_path).values()) == {"not reached"}
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["value"] == 0


# -------------------------------------------------------------------------------------------------------- single stages


def run(words: str, tmp_path: Path, *, limit: float = 60.0, kind: str = "test") -> Record:
    stage = Stage("one", kind, 1.0, ("bash", "-c", words))
    with Deadline(60) as deadline:
        return run_stage(stage, Record.read(tmp_path, stage), tmp_path, deadline, limit)


def test_a_stage_that_takes_too_long_is_stopped_and_counts_its_time(tmp_path):
    record = run("echo begun; sleep 100", tmp_path, limit=0.5)
    assert (record.status, record.message, record.exit_code) == ("interrupted", "begun", -signal.SIGTERM)
    again = run("echo done", tmp_path)
    assert (again.status, again.result, again.message) == ("finished", "done", None)
    assert again.seconds >= record.seconds >= 0.5


def test_the_record_of_a_failed_stage_holds_its_last_words(tmp_path):
    record = run("echo before; echo error: no data >&2; exit 2", tmp_path)
    assert (record.status, record.exit_code) == ("failed", 2)
    assert record.message.splitlines()[-1] == "error: no data"


def test_a_benchmark_whose_result_cannot_be_read_has_failed(tmp_path):
    assert run("""echo '{"value": 3}'; echo a warning""", tmp_path, kind="benchmark").result == {"value": 3}
    record = run("echo nothing", tmp_path, kind="benchmark")
    assert record.status == "failed" and "no line of the log is a JSON object" in record.message


def test_ctrl_c_ends_the_stage_and_is_remembered(tmp_path):
    stage = Stage("one", "test", 1.0, ("bash", "-c", f"kill -INT {os.getpid()}; sleep 100"))
    with Deadline(60) as deadline:
        record = run_stage(stage, Record.read(tmp_path, stage), tmp_path, deadline, 60.0)
        assert record.status == "interrupted" and deadline.signal_number == signal.SIGINT and deadline.is_over


# ------------------------------------------------------------------------------------------------------------- the plan


@pytest.mark.parametrize("tiny", [False, True])
def test_the_stages_share_the_minutes(tiny, tmp_path):
    assert sum(stage.seconds for stage in gpu_plan.stages(tmp_path, 9, tiny=tiny)) == pytest.approx(540)


def test_every_training_and_evaluation_of_the_full_plan_is_a_command_that_run_sh_takes(tmp_path):
    stages = [stage for stage in gpu_plan.stages(tmp_path, 9, tiny=False) if stage.kind in ("train", "eval")]
    assert len(stages) == 8
    for stage in stages:
        assert stage.words[:2] == ("bash", "run.sh")
        cfg = command_line.compose(command_line.parse(list(stage.words[2:])))
        check(cfg)
        folder = tmp_path / "checkpoints" / cfg.model / cfg.name
        assert stage.product == folder if stage.kind == "train" else str(folder) == cfg.eval.model_fpath
