"""run.sh with stubs for Python, pip and the launchers: what they are given, and what is left of a failed install."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Prints its words one per line; holds every package; lets the check of the configuration pass.
READY = """#!/usr/bin/env bash
case "$1 ${!#}" in
  scripts/check_environment.py*) echo "stub (Python 3.11.0, torch 2.11.0${TORCH_BUILD})"; exit ;;
  *--check) exit "${CHECK_EXIT:-0}" ;;
  scripts/launch.py*) shift; exec "$@" ;;
esac
printf '%s\\n' "$(basename "$0")" "$@"
env | grep -E '^(LAMP_NUM_PROCESSES|ACCELERATE_USE_CPU|OMP_NUM_THREADS)=' || true
"""

# A Python 3.11 without packages, able to make a .venv whose pip does what the test says.
BARE = """#!/usr/bin/env bash
venv=.venv
case "$*" in
  scripts/check_environment.py*)
    if [[ $0 == .venv/* && -e $venv/packages ]]; then echo ".venv (Python 3.11.0, torch 2.11.0)"; exit; fi
    echo "in $0 torch is missing"; exit 1 ;;
  "-c "*) exit 0 ;;
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo venv >>calls ;;
  "-m pip --version") exit 0 ;;
  "-m pip show --quiet torch") [[ -e $venv/packages ]]; exit ;;
  "-m pip install "*)
    echo pip >>calls
    echo "$*" >>pip-words
    while [[ $1 != --log ]]; do shift; done
    echo "Collecting torch==2.11.0" >"$2"
    sleep "${PIP_SECONDS:-0}"
    if [[ -e no-network ]]; then
      echo "Collecting h5py==3.14.0" >>"$2"
      echo "ERROR: No matching distribution found for h5py==3.14.0" >>"$2"
      exit 1
    elif [[ -e no-compiler ]]; then
      echo "Installing collected packages: setuptools" >>"$2"
      echo "ERROR: Could not build wheels for gym3" >>"$2"
      exit 1
    elif [[ -e full-disk ]]; then
      echo "Collecting glcontext>=3.0.0" >>"$2"
      echo "Installing collected packages: torch, glcontext" >>"$2"
      echo "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device" >>"$2"
      exit 1
    fi
    touch $venv/packages ;;
  *) printf '%s\\n' ran "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of what run.sh needs, and an empty folder of stubs."""
    root = tmp_path / "check out"
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", root / "configs")
    for name in ("run.sh", "requirements.txt"):
        shutil.copy(ROOT / name, root / name)
    (tmp_path / "bin").mkdir()
    return root


def stub(checkout: Path, text: str, *names: str) -> None:
    for name in names:
        file = checkout.parent / "bin" / name
        file.write_text(text)
        file.chmod(0o755)


def environment(checkout: Path, **variables: str) -> dict[str, str]:
    cleared = ("LAMP_", "PIP_", "CUDA_VISIBLE", "OMP_NUM", "ACCELERATE_", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(cleared)}
    return kept | {"PATH": f"{checkout.parent / 'bin'}:/usr/bin:/bin"} | variables


def run(checkout: Path, *words: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(checkout / "run.sh"), *words],
        cwd=cwd or checkout,
        env=environment(checkout, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def ready(checkout):
    """A checkout whose active environment holds everything, on a machine without GPUs."""
    stub(checkout, READY, "python", "torchrun", "accelerate")
    stub(checkout, "#!/bin/sh\nexit 9\n", "nvidia-smi")
    return checkout


@pytest.fixture
def two_gpus(ready):
    stub(ready, "#!/bin/sh\necho 'GPU 0: A (UUID: a)'\necho 'GPU 1: A (UUID: b)'\n", "nvidia-smi")
    return ready


def given(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def refused(done: subprocess.CompletedProcess) -> str:
    """The one error line of a run that started nothing."""
    assert done.returncode == 2 and done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Environment: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


# ---- words


def test_order_and_spaces_of_overrides_survive(ready):
    words = [
        "--train.dataset_name=a  b",
        "--name=*",
        "--config=genie_redux.yaml",
        "--name=x=y,(z) #",
        "--name=",
        "--a='b'",
    ]
    assert given(run(ready, *words))[:9] == ["python", "-m", "training.main", *words]


def test_nothing_is_added_to_a_key(ready):
    assert not [word for word in given(run(ready, "--train.bacth_size=2")) if word.startswith(("+", "++"))]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--config", "x"], "write --config=x"),
        (["--train.batch_size", "2", "--name=a"], "write --train.batch_size=2"),
        (["--config"], "--key=value"),
        (["train.batch_size=2"], "--key=value"),
        (["+train.batch_size=2"], "--key=value"),
        (["--num_processes=two"], "--num_processes=two is not a whole number"),
        (["--num_processes=0"], "at least 1"),
        (["--num_processes=3", "--num_machines=2", "--main_process_ip=h"], "does not divide"),
        (["--num_processes=2", "--num_machines=2"], "needs --main_process_ip"),
        (["--num_machines=2", "--machine_rank=2", "--main_process_ip=h"], "from 0 to 1"),
        (["--accelerate_config=none.yaml"], "none.yaml is not a file"),
    ],
)
def test_a_mistake_ends_in_one_line_before_anything_starts(ready, words, found):
    assert found in refused(run(ready, *words))


def test_a_yaml_is_found_from_where_the_user_stands(ready, tmp_path):
    (tmp_path / "my own.yaml").write_text("name: x\n")
    words = given(run(ready, "--config=my own.yaml", cwd=tmp_path))
    assert words[3] == f"--config={tmp_path / 'my own.yaml'}"


@pytest.mark.parametrize(
    ("mode", "program"),
    [
        ("generate", ["data_generation/generate.py"]),
        ("import", ["-m", "data.import_videos"]),
        ("inspect", ["-m", "data.inspect"]),
    ],
)
def test_modes_of_data_hand_everything_else_to_their_program(ready, mode, program):
    words = given(run(ready, f"--mode={mode}", "--name=a b", "--fps", "15", "films"))
    assert words == ["python", *program, "--name=a b", "--fps", "15", "films"]


def test_videos_are_found_from_where_the_user_stands_and_at_home(ready, tmp_path):
    (tmp_path / "my films").mkdir()
    for word, home in (("--input=my films", "/nowhere"), ("--input=~/my films", str(tmp_path))):
        words = given(run(ready, "--mode=import", word, cwd=tmp_path, HOME=home))
        assert words[-1] == f"--input={tmp_path / 'my films'}"


def test_mode_test_hands_everything_else_to_pytest(ready):
    assert given(run(ready, "--mode=test", "-k", "a or b", "tests/x.py"))[:10] == [
        "python", "-m", "pytest", f"--numprocesses={os.cpu_count() + 1}", "--maxprocesses=4", "--dist=loadfile",
        "--no-loadscope-reorder", "-k", "a or b", "tests/x.py"
    ]  # fmt: skip


# ---- launchers


def test_one_process_needs_no_launcher(two_gpus):
    assert given(run(two_gpus, "--num_processes=1")) == ["python", "-m", "training.main", "LAMP_NUM_PROCESSES=1"]


def test_gpus_get_accelerate(two_gpus):
    words = given(run(two_gpus, "--num_processes=2", "--name=a b"))
    assert words[:2] == ["accelerate", "launch"] and "--num_processes=2" in words and "--num_machines=1" in words
    assert words[words.index("-m") :] == ["-m", "training.main", "--name=a b", "LAMP_NUM_PROCESSES=2"]


def test_several_machines_are_passed_on(two_gpus):
    asked = [
        "--num_processes=4",
        "--num_machines=2",
        "--machine_rank=1",
        "--main_process_ip=h",
        "--main_process_port=5",
    ]
    assert set(asked) <= set(given(run(two_gpus, *asked)))


def test_an_accelerate_config_decides_alone(two_gpus):
    (two_gpus / "mine.yaml").touch()
    words = given(run(two_gpus, "--accelerate_config=mine.yaml", "--name=a"))
    file = (two_gpus / "mine.yaml").resolve()
    assert words == ["accelerate", "launch", f"--config_file={file}", "-m", "training.main", "--name=a"]


def test_an_accelerate_config_is_found_from_where_the_user_stands_and_checked_first(ready, tmp_path):
    (tmp_path / "mine.yaml").touch()
    words = given(run(ready, "--accelerate_config=mine.yaml", cwd=tmp_path))
    assert f"--config_file={(tmp_path / 'mine.yaml').resolve()}" in words
    done = run(ready, "--accelerate_config=mine.yaml", cwd=tmp_path, CHECK_EXIT="2")
    assert done.returncode == 2 and done.stdout == ""


def test_more_processes_than_gpus_is_an_error(two_gpus):
    error = refused(run(two_gpus, "--num_processes=3"))
    assert "needs 3 GPUs" in error and "has 2" in error and "--num_processes=2" in error


def test_only_visible_gpus_count(two_gpus):
    assert "has 1" in refused(run(two_gpus, "--num_processes=2", CUDA_VISIBLE_DEVICES="1"))
    assert given(run(two_gpus, "--num_processes=2", CUDA_VISIBLE_DEVICES=""))[0] == "torchrun"


def test_a_torch_without_cuda_uses_the_cpu(two_gpus):
    assert given(run(two_gpus, "--num_processes=2", TORCH_BUILD="+cpu"))[0] == "torchrun"


def test_several_cpu_processes_get_torchrun(ready):
    words = given(run(ready, "--num_processes=2", "--name=a b"))
    assert words[:3] == ["torchrun", "--nproc_per_node", "2"]
    assert words[words.index("-m") :][:3] == ["-m", "training.main", "--name=a b"]
    assert {"ACCELERATE_USE_CPU=true", "LAMP_NUM_PROCESSES=2"} <= set(words)
    assert [word for word in words if word.startswith("OMP_NUM_THREADS=")]


def test_threads_that_the_user_set_stay(ready):
    assert "OMP_NUM_THREADS=7" in given(run(ready, "--num_processes=2", OMP_NUM_THREADS="7"))


def test_more_processes_than_cores_is_a_warning(ready):
    many = (os.cpu_count() or 1) + 1
    done = run(ready, f"--num_processes={many}")
    assert given(done)[0] == "torchrun"
    assert done.stderr.count("warning: ") == 1


def test_a_mistake_in_the_configuration_ends_before_the_launcher(ready):
    done = run(ready, "--num_processes=2", "--train.bacth_size=1", CHECK_EXIT="2")
    assert done.returncode == 2 and done.stdout == ""


def test_help_needs_no_launcher(two_gpus):
    done = run(two_gpus, "--help", "--num_processes=2")
    assert given(done) == ["python", "-m", "training.main", "--help"] and done.stderr == ""


# ---- set-up


def calls(checkout: Path) -> list[str]:
    file = checkout / "calls"
    return file.read_text().split() if file.exists() else []


@pytest.fixture
def bare(checkout):
    """A checkout on a machine that has Python 3.11 and nothing else."""
    stub(checkout, BARE, "python3.11", "python")
    stub_disk(checkout, kib_free=100_000_000)
    return checkout


def stub_disk(checkout: Path, kib_free: int) -> None:
    head = "Filesystem 1024-blocks Used Available Capacity Mounted on"
    stub(checkout, f"#!/bin/sh\necho '{head}'\necho '/dev/a 264212084 1000 {kib_free} 1% /'\n", "df")


def test_a_bare_machine_gets_an_environment_once(bare):
    first = run(bare, "--name=a")
    assert given(first) == ["ran", "-m", "training.main", "--name=a"]
    assert "5.2 GB" in first.stderr
    second = run(bare, "--name=a")
    assert given(second) == ["ran", "-m", "training.main", "--name=a"] and "5.2 GB" not in second.stderr
    assert calls(bare) == ["venv", "pip"]


def test_mode_setup_makes_the_environment_and_starts_nothing(bare):
    for _ in range(2):
        done = run(bare, "--mode=setup")
        assert (done.returncode, done.stdout) == (0, "") and "Environment: .venv" in done.stderr
    assert calls(bare) == ["venv", "pip"]


def test_a_failed_install_names_the_package_and_is_done_again(bare):
    (bare / "no-network").touch()
    failed = run(bare)
    assert failed.returncode == 2 and failed.stdout == ""
    error = failed.stderr.splitlines()[-1]
    assert error.startswith("error: ") and "h5py==3.14.0" in error and "run the same command again" in error
    (bare / "no-network").unlink()
    assert given(run(bare))[0] == "ran"
    assert calls(bare) == ["venv", "pip", "pip"]


def test_a_disk_that_pip_fills_is_not_laid_to_the_last_package(bare):
    (bare / "full-disk").touch()
    error = run(bare).stderr.splitlines()[-1]
    assert "stopped at copying the packages to .venv (" in error and "No space left on device" in error
    assert "glcontext" not in error


def test_a_disk_without_room_is_said_before_anything_is_downloaded(bare):
    """Only where torch is still missing: what else is brought up to date is small, and sizes of own builds differ."""
    stub_disk(bare, kib_free=5_000_000)
    failed = run(bare)
    error = failed.stderr.splitlines()[-1]
    assert failed.returncode == 2 and calls(bare) == ["venv"]
    assert error.startswith("error: ") and "has 5120 MB free, and the packages take about 5200 MB" in error
    assert given(run(bare, LAMP_TORCH="torch==2.11.0+cpu"))[0] == "ran"
    (bare / "requirements.txt").write_text((bare / "requirements.txt").read_text() + "another==1.0\n")
    assert given(run(bare, LAMP_TORCH=""))[0] == "ran"


@pytest.mark.parametrize(
    "answer, goes_on",
    [
        ("/dev/a 9007199254740992 0 9007199254740992 0% /", True),  # what network file systems without a limit say
        ("//srv/my share 264212084 1000 5000000 99% /mnt/my disk", False),
        ("", True),
        ("df: cannot read table of mounted file systems", True),
    ],
    ids=["huge", "blanks", "nothing", "an error"],
)
def test_whatever_the_disk_is_called_and_however_large_it_is(bare, answer, goes_on):
    stub(bare, f"#!/bin/sh\necho '{answer}'\nexit 1\n", "df")
    done = run(bare)
    assert (done.returncode, "has 5120 MB free" in done.stderr) == ((0, False) if goes_on else (2, True)), done.stderr


def test_what_an_interrupted_install_has_copied_already_counts(bare):
    stub_disk(bare, kib_free=5_000_000)
    stub(bare, "#!/bin/sh\necho '3000000\t.venv'\n", "du")
    assert given(run(bare))[0] == "ran"


def test_a_package_that_does_not_build_is_not_laid_to_the_disk(bare):
    (bare / "no-compiler").touch()
    error = run(bare).stderr.splitlines()[-1]
    assert "stopped at building a package (Could not build wheels for gym3)" in error


def test_an_install_killed_after_its_last_package_is_not_taken_for_a_finished_one(bare):
    process = subprocess.Popen(
        ["bash", "run.sh"], cwd=bare, env=environment(bare, PIP_SECONDS="30"), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while "pip" not in calls(bare) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, 9)
    process.wait()
    (bare / ".venv" / "packages").touch()  # what the metadata of packages would say
    assert given(run(bare))[0] == "ran"
    assert calls(bare).count("pip") == 2


def test_a_finished_environment_follows_the_requirements(bare):
    run(bare)
    requirements = (bare / "requirements.txt").read_text()
    (bare / "requirements.txt").write_text(f"# a remark\n{requirements}")
    run(bare)
    assert calls(bare).count("pip") == 1
    (bare / "requirements.txt").write_text(f"{requirements}rich==14.0.0\n")
    run(bare)
    assert calls(bare).count("pip") == 2


def test_a_users_own_torch_is_installed_and_remembered(bare):
    run(bare, LAMP_TORCH="torch==2.9.1+cpu")
    listed = (bare / ".venv" / "requirements.txt").read_text().splitlines()
    assert "torch==2.9.1+cpu" in listed and "torchvision" in listed
    assert not [line for line in listed if line.startswith("torch==2.11")]
    assert [line for line in listed if line.startswith("torchmetrics==")]
    run(bare)
    assert calls(bare).count("pip") == 1


def test_two_set_ups_at_once_install_once(bare):
    if shutil.which("flock") is None:
        pytest.skip("flock is not installed")
    started = [
        subprocess.Popen(
            ["bash", "run.sh"], cwd=bare, env=environment(bare, PIP_SECONDS="1"), stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in started]
    assert [output.splitlines()[0] for output in outputs] == ["ran", "ran"]
    assert calls(bare) == ["venv", "pip"]


def test_help_and_list_install_nothing(bare):
    for word, found in (("--help", "--config=NAME.yaml"), ("--list", "genie_redux.yaml")):
        done = run(bare, word)
        assert done.returncode == 0 and found in done.stdout
    assert calls(bare) == [] and not (bare / ".venv").exists()


def test_a_machine_without_a_fitting_python_says_so(checkout):
    stub(checkout, "#!/bin/sh\nexit 1\n", "python", "python3", "python3.11", "python3.12")
    done = run(checkout)
    assert done.returncode == 2 and "no Python 3.11 or 3.12 was found" in done.stderr.splitlines()[-1]


def test_an_environment_that_is_not_ours_is_never_cleared(bare):
    (bare / ".venv" / "bin").mkdir(parents=True)
    (bare / ".venv" / "bin" / "mine").touch()
    assert "move it away" in run(bare).stderr.splitlines()[-1]
    assert (bare / ".venv" / "bin" / "mine").exists()
    assert "move it away" in run(bare).stderr.splitlines()[-1], "a second try must not clear it either"


def test_continuous_integration_runs_the_one_test_command():
    words = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "bash run.sh --mode=test" in words and "set -e" in words
    assert os.access(ROOT / ".ci" / "run", os.X_OK) and os.access(ROOT / "run.sh", os.X_OK)


# ---- the launcher's last words


@pytest.mark.parametrize(
    ("ending", "code", "last_line"),
    [
        ("print('error: mine', file=sys.stderr), sys.exit(2)", 2, "error: mine"),
        ("sys.exit(7)", 7, "process 1 ended with exit code 7; its message is above"),
    ],
)
def test_the_launcher_adds_no_report_of_its_own(tmp_path, ending, code, last_line):
    program = tmp_path / "program.py"
    listen = "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])"  # as a training does
    program.write_text(
        f"import os, signal, sys, time\nif os.environ['RANK'] == '1': {ending}\n{listen}\ntime.sleep(30)\n"
    )
    torchrun = str(Path(sys.executable).parent / "torchrun")
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "scripts" / "launch.py"),
            torchrun,
            "--standalone",
            "--nproc_per_node",
            "2",
            program,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr.splitlines()) == (code, [last_line])


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_launcher_hands_signals_on_even_while_processes_start_and_ends_well(tmp_path, number):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, signal, time\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).touch()\n"
        "time.sleep(1)\n"
        f"signal.signal({int(number)}, lambda *_: os._exit(0))\n"
        f"signal.pthread_sigmask(signal.SIG_UNBLOCK, [{int(number)}])\n"
        "time.sleep(60)\n"
    )
    words = [sys.executable, str(ROOT / "scripts" / "launch.py"), str(Path(sys.executable).parent / "torchrun")]
    launcher = subprocess.Popen([*words, "--standalone", "--nproc_per_node", "2", program])
    while not all((tmp_path / rank).exists() for rank in "01"):
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.send_signal(number)
    assert launcher.wait(timeout=50) == 0


def test_a_launcher_that_is_no_python_script_is_run_as_it_is(tmp_path):
    (tmp_path / "accelerate").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "accelerate").chmod(0o755)
    words = [sys.executable, str(ROOT / "scripts" / "launch.py"), "accelerate", "launch", "-m", "x"]
    done = subprocess.run(words, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.stdout == "launch -m x\n"
