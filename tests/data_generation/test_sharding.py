import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.locks import claim
from data_generation.generate import main, read_settings
from data_generation.shards import Part, generate
from tests.data.holding import another_process_holds

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"n_instances": "10", "n_steps_max": "12", "episodes_per_shard": "2", "n_workers": "1", "name": "toy"}


def command_line(root, **changes) -> list[str]:
    keys = SMALL | {"root_dpath": str(root)} | changes
    return ["--config=coinrun_quickstart", *(f"--{key}={value}" for key, value in keys.items())]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {fpath.name: fpath.read_bytes() for fpath in folder.iterdir() if fpath.name != ".lock"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a small dataset of six shards (five for training, one for validation), made in one go."""
    root = tmp_path_factory.mktemp("made")
    assert main(command_line(root)) == 0
    return root / "toy"


@pytest.mark.parametrize("num_shards, count", [(200, 8), (7, 3), (3, 7), (1, 1)])
def test_every_shard_is_of_exactly_one_part_and_parts_are_even(num_shards, count):
    parts = [Part(index, count).of(num_shards) for index in range(count)]
    assert [shard for part in parts for shard in part] == list(range(num_shards))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["4/4", "-1/4", "0/0", "1", "1-4", "a/b", ""])
def test_a_wrong_part_is_refused_with_an_example(text, tmp_path, capsys):
    assert main(command_line(tmp_path, shard=text)) == 2
    message = capsys.readouterr().err
    assert f"shard={text} is not i/n with i from 0 to n-1" in message and message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_jobs_that_work_on_one_folder_at_once_give_what_one_machine_gives(made, tmp_path):
    command = [sys.executable, "data_generation/generate.py"]
    jobs = [
        subprocess.Popen([*command, *command_line(tmp_path, shard=f"{index}/2")], cwd=ROOT, stderr=subprocess.PIPE)
        for index in range(2)
    ]
    for job in jobs:
        errors = job.communicate()[1]
        assert job.returncode == 0, errors.decode()
    assert bytes_of(tmp_path / "toy") == bytes_of(made)


def test_a_part_says_what_is_missing_and_the_last_one_completes_the_dataset(made, tmp_path, capsys):
    assert main(command_line(tmp_path, shard="1/2")) == 0
    assert "3 shards of other parts are still missing" in capsys.readouterr().out
    assert set(bytes_of(tmp_path / "toy")) == {
        "train-00003.h5",
        "train-00004.h5",
        "validation-00000.h5",
        "unfinished.json",
    }
    assert main(command_line(tmp_path, shard="0/2")) == 0
    assert "missing" not in capsys.readouterr().out and bytes_of(tmp_path / "toy") == bytes_of(made)


def test_parts_of_several_folders_are_completed_where_they_are_put_together(made, tmp_path, capsys):
    assert main(command_line(tmp_path, shard="0/8")) == 0  # of no shard: no more parts than shards have work
    assert "6 shards of other parts are still missing" in capsys.readouterr().out
    for fpath in made.glob("*.h5"):
        shutil.copy(fpath, tmp_path / "toy")
    assert main(command_line(tmp_path)) == 0
    assert "all shards of part 0/1 are there; the dataset is complete" in capsys.readouterr().out
    assert bytes_of(tmp_path / "toy") == bytes_of(made)


def test_a_part_of_another_config_is_refused(tmp_path, capsys):
    assert main(command_line(tmp_path, shard="0/8")) == 0
    assert main(command_line(tmp_path, shard="1/8", sticky="0.1")) == 2
    assert "was made with sticky=0.5, this run asks for sticky=0.1" in capsys.readouterr().err


def test_two_generators_never_work_on_the_same_shard(tmp_path):
    settings = read_settings("coinrun_quickstart", SMALL | {"root_dpath": str(tmp_path)})
    settings.folder.mkdir()
    with another_process_holds(settings.folder, range(3)) as holder:
        for part in (Part(0, 2), Part(0, 1), Part(0, 3), Part(1, 3)):
            message = rf"by another process \(process {holder.pid} on .*\); wait for it, or set another --name"
            with pytest.raises(ValueError, match=message):
                generate(settings, part)
        with claim(settings.folder, Part(1, 2).of(6), cure=""):
            pass
    with claim(settings.folder, Part(0, 2).of(6), cure=""):  # the other one was killed, which gives its shards back
        pass


def test_a_file_system_without_locks_is_worked_on_with_a_warning(made, tmp_path, monkeypatch, capsys):
    def refuse(*arguments):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    shutil.copytree(made, tmp_path / "toy")
    (tmp_path / "toy" / "train-00001.h5").unlink()
    assert main(command_line(tmp_path)) == 0
    assert "has no locks; see to it that no two jobs" in capsys.readouterr().err
    assert bytes_of(tmp_path / "toy") == bytes_of(made)


def test_the_slurm_example_does_the_part_of_its_task(made, tmp_path):
    """Edited as its comments say, and started as SLURM starts it: from a copy, with these variables."""
    text = (ROOT / "scripts" / "slurm_generate.sbatch").read_text()
    assert "config=coinrun_random\n" in text and "root_dpath=data_generation/datasets\n" in text
    text = text.replace("config=coinrun_random\n", "config=coinrun_quickstart\n")
    script = tmp_path / "slurm_script"
    script.write_text(text.replace("root_dpath=data_generation/datasets\n", f'root_dpath="{tmp_path}/my data"\n'))
    slurm = {"SUBMIT_DIR": str(ROOT), "ARRAY_TASK_ID": "1", "ARRAY_TASK_COUNT": "2", "CPUS_PER_TASK": "1"}
    done = subprocess.run(
        ["bash", script, *(f"--{key}={value}" for key, value in SMALL.items())],
        env=os.environ | {f"SLURM_{name}": value for name, value in slurm.items()},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    written = bytes_of(tmp_path / "my data" / "toy")
    assert written.keys() - {"unfinished.json"} == {"train-00003.h5", "train-00004.h5", "validation-00000.h5"}
    assert all(content == bytes_of(made)[name] for name, content in written.items() if name.endswith(".h5"))
