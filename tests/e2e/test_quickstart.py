"""The whole job through the real commands: real Procgen, real HDF5, real subprocesses, seconds instead of minutes."""

import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from training import command_line, main
from training.pipeline import read_stages

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("tokenizer", "genie_redux", "genie_redux_guided")
STEPS = 60  # of the tokenizer: enough to be interrupted
LEVELS = "{root_dpath:${dataset_root_dpath},n_instances:COUNT,n_steps_max:60,n_workers:1}"
TRAINING = (
    "{dataset_root_dpath:${dataset_root_dpath},save_root_dpath:${checkpoints_dpath},batch_size:1,grad_accum:1,"
    "num_train_steps:2,max_train_seconds:200,num_validation_clips:2}"
)
EVALUATION = "{save_root_dpath:${evaluation_dpath},num_clips:3,reader_steps:2}"


def command(folder: Path, *more: str) -> list[str]:
    """`bash run.sh --config=quickstart.yaml` with small sizes appended."""
    small = [
        f"--output_dpath={folder / 'out'}",
        f"--dataset_root_dpath={folder / 'datasets'}",
        f"--stages.data.settings={LEVELS.replace('COUNT', '20')}",
        f"--stages.test_data.settings={LEVELS.replace('COUNT', '6')}",
        "--stage_processes=1",
        *(f"--stages.{model}.settings.train={TRAINING}" for model in MODELS),
        f"--stages.tokenizer.settings.train.num_train_steps={STEPS}",
        *(f"--stages.evaluate_{model}.settings.eval={EVALUATION}" for model in MODELS),
    ]
    return ["bash", "run.sh", "--config=quickstart.yaml", *small, *more]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Ctrl-C, which a terminal sends to all processes, while the tokenizer trains: (folder, output, exit code)."""
    folder = tmp_path_factory.mktemp("quickstart")
    process = subprocess.Popen(
        command(folder), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    output = ""
    for line in process.stdout:
        output += line
        if "expected time:" in line:
            os.killpg(process.pid, signal.SIGINT)
    return folder, output, process.wait(timeout=60)


@pytest.fixture(scope="module")
def finished(interrupted):
    folder, _, _ = interrupted
    process = subprocess.run(command(folder), cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert process.returncode == 0, process.stdout + process.stderr
    return folder, process.stdout


def test_an_interrupted_pipeline_saves_and_goes_on_where_it_stopped(interrupted, finished):
    folder, output, exit_code = interrupted
    assert exit_code == 130
    assert "stopped by Ctrl-C at step" in output and "Traceback" not in output
    _, later_output = finished
    assert re.search(r"going on +from step", later_output)
    assert later_output.count("finished before") == 2  # both data sets
    assert (folder / "out" / "checkpoints" / "tokenizer" / "tokenizer" / f"step-{STEPS:08d}").is_dir()


def test_one_command_leads_from_nothing_to_a_report(finished):
    folder, _ = finished
    report = folder / "out" / "report"
    results = json.loads((report / "metrics.json").read_text())
    assert set(results) == set(MODELS)
    for name, result in results.items():
        assert result["num_clips"] == 3 and result["psnr"] > 0
        assert (len(result["psnr_ci95"]) == 2 and result["ceiling_psnr"] is not None) or name == "tokenizer"
        assert (result["delta_psnr"] is None) == (name == "tokenizer")
        assert result["fid"] is None and "download" in result["fid_missing"]
    for model in MODELS[1:]:
        assert len(results[model]["psnr_by_horizon"]) == 10
        assert results[model]["copy_last_psnr"] > 0
        assert (report / f"{model}_dream_vs_real.gif").stat().st_size > 0
        assert (report / f"{model}_dream_vs_real.png").stat().st_size > 0


def test_the_stages_of_usual_size_pass_their_checks():
    for stage in read_stages(command_line.compose(command_line.parse(["--config=quickstart.yaml"]))):
        if stage.command != "generate":
            main.check(stage.resolved())


def test_the_report_opens_from_disk_without_anything_else(finished):
    folder, _ = finished
    page = (folder / "out" / "report" / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert all(model in page for model in MODELS)


def test_every_stage_prints_the_command_that_runs_it_alone(finished, capfd):
    _, output = finished
    commands = [line for line in output.splitlines() if line.startswith("bash run.sh --config=")]
    assert len(commands) == 6  # all but the two that were finished before
    line = next(line for line in commands if "genie_redux_guided.yaml" in line and "--mode=eval" not in line)
    # The run exists, so that the same line has nothing left to do.
    assert main.main(shlex.split(line)[2:]) == 0 and "nothing to do" in capfd.readouterr().out


def test_a_second_run_skips_what_is_finished(finished, capfd):
    folder, _ = finished
    weights = folder / "out" / "checkpoints" / "tokenizer" / "tokenizer" / f"step-{STEPS:08d}" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert main.main(command(folder)[2:]) == 0
    assert capfd.readouterr().out.count("finished before") == 8
    assert weights.stat().st_mtime_ns == before


def test_other_settings_do_not_touch_a_finished_stage(finished, capfd):
    folder, _ = finished
    assert main.main(command(folder, f"--stages.tokenizer.settings.train.num_train_steps={STEPS + 1}")[2:]) == 2
    error = capfd.readouterr().err
    assert "stage tokenizer was run with other settings" in error and error.count("\n") == 1
