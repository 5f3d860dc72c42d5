"""The SLURM scripts: valid, edited in three lines, and what the training's does when SLURM speaks to it.

SLURM's commands are stand-ins here: what they were given is compared with what a cluster was seen to understand.
"""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
NAMES = ("slurm_generate.sbatch", "slurm_train.sbatch")
# A training of as long as it takes until it is signalled or $LENGTH is over, with exit code $ENDING.
STAND_INS = {
    "srun": 'printf "%s\\n" "$@" "OMP_NUM_THREADS=${OMP_NUM_THREADS-unset}" >words; touch started\n'
    "for ((i = 0; i < LENGTH * 20; i++)); do if [[ -e signalled ]]; then break; fi; sleep 0.05; done; exit $ENDING",
    # The first signal is lost on a training that is still starting.
    "scancel": 'echo "$*" >>signals; if [[ -e lost ]]; then touch signalled; fi; touch lost',
    "scontrol": 'case $1 in hostnames | show) [[ $2 == hostnames ]] && printf "a1\\na2\\n" || '
    'echo "JobId=7 JobState=RUNNING PreemptTime=$PREEMPTED" ;; *) echo "$*" >>requeued ;; esac',
    "sleep": 'exec /bin/sleep "$([[ $1 == 10 ]] && echo 0.1 || echo "$1")"',
}


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def start(cluster: Path, *words: str, ending: int = 0, length: float = 0, preempted: str = "None", **slurm: str):
    slurm = {"SUBMIT_DIR": str(cluster), "JOB_ID": "7", "JOB_NODELIST": "a[1-2]", "NNODES": "2"} | slurm
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "OMP_"))}
    variables |= {"PATH": f"{cluster / 'bin'}:{os.environ['PATH']}", "ENDING": str(ending), "LENGTH": str(length)}
    variables |= {"PREEMPTED": preempted} | {f"SLURM_{key}": value for key, value in slurm.items()}
    return subprocess.Popen(["bash", SCRIPTS / "slurm_train.sbatch", *words], env=variables)


def warned(cluster: Path, **options) -> int:
    """The exit code of a job that is told about its end after its training has started."""
    job = start(cluster, length=20, **options)
    deadline = time.monotonic() + 60
    while not (cluster / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    return job.wait(timeout=60)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_valid_and_is_edited_in_three_lines(name):
    assert subprocess.run(["bash", "-n", SCRIPTS / name]).returncode == 0
    text = (SCRIPTS / name).read_text()
    assert len(re.findall(r"# <--", text)) == 3
    assert re.search(r"^#SBATCH --array=|^#SBATCH --signal=B:USR1@\d+$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("slurm", "num_processes", "threads"),
    [
        ({"GPUS_ON_NODE": "8", "CPUS_PER_TASK": "32"}, 16, "unset"),
        ({"GPUS_PER_NODE": "h100:4"}, 8, "unset"),
        ({"GPUS_PER_NODE": "0", "CPUS_PER_TASK": "6"}, 2, "6"),
        ({}, 2, "1"),
    ],
)
def test_each_machine_gets_a_process_per_gpu_or_one(cluster, slurm, num_processes, threads):
    assert start(cluster, "--train.batch_size=3", "--name=a b", **slurm).wait(timeout=60) == 0
    words = (cluster / "words").read_text().splitlines()
    assert {f"--num_processes={num_processes}", "--num_machines=2", "--main_process_ip=a1"} <= set(words)
    assert {"--main_process_port=29507", "--train.resume_ckpt=auto", f"OMP_NUM_THREADS={threads}"} <= set(words)
    assert words[-3:-1] == ["--train.batch_size=3", "--name=a b"]  # behind what the script says, and so in its place


@pytest.mark.parametrize("ending", [0, 2])
def test_a_training_that_ends_by_itself_stays_out_of_the_queue(cluster, ending):
    assert start(cluster, ending=ending).wait(timeout=60) == ending
    assert not (cluster / "requeued").exists()


def test_a_training_that_is_warned_is_told_until_it_hears_and_goes_back_into_the_queue(cluster):
    assert warned(cluster) == 0
    signals = (cluster / "signals").read_text().splitlines()
    assert len(signals) >= 2 and set(signals) == {"--signal=USR1 7.0"}
    assert (cluster / "requeued").read_text() == "requeue 7\n"


def test_a_training_that_fails_after_a_warning_stays_out_of_the_queue(cluster):
    assert warned(cluster, ending=1) == 1
    assert not (cluster / "requeued").exists()


def test_a_training_that_a_preemption_ended_goes_back_into_the_queue(cluster):
    start(cluster, ending=143, preempted="2026-01-01T00:00:00").wait(timeout=60)
    assert (cluster / "requeued").read_text() == "requeue 7\n"
