"""What all importers do: go on after an interruption, keep to their own folder, and survive a full disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data.episodes import Episodes
from data.import_videos import main
from data.locks import EVERYTHING
from tests.data.films import greys, write_video
from tests.data.holding import another_process_holds

ROOT = Path(__file__).resolve().parents[2]
SHARDED = ("--max_frames", "8", "--frames_per_shard", "16", "--validation_share", "0.3")
# Ends like a process that is killed when its third shard is written and about to get its name.
KILLED = """
import os, signal, sys
from data.import_videos import main
from data.locks import EVERYTHING
replace = os.replace
def strike(source, target):
    if str(target).endswith("-00002.h5"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = strike
main(sys.argv[1:])
"""


def run(source: Path, root: Path, *words: str) -> int:
    return main(["--input", str(source), "--root", str(root), "--name", "films", "--image_size", "32", *words])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {fpath.name: fpath.read_bytes() for fpath in folder.iterdir() if fpath.name != ".lock"}


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """Films for several shards, some bad, and the dataset `films` made of them without interruption."""
    root = tmp_path_factory.mktemp("films")
    for number, length in enumerate((20, 5, 30, 7, 8, 16, 3)):
        write_video(root / "in" / f"{number}.mp4", greys(length))
    content = write_video(root / "in" / "7.mkv", greys(20)).read_bytes()
    (root / "in" / "7.mkv").write_bytes(content[: len(content) * 2 // 3])
    (root / "in" / "8.mp4").write_bytes(b"")
    assert run(root / "in", root, *SHARDED) == 0
    return root


def test_a_killed_import_goes_on_and_gives_the_same_bytes(films, tmp_path):
    words = ["--input", films / "in", "--root", tmp_path, "--name", "films", "--image_size", "32", *SHARDED]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, words)], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    left = {fpath.name for fpath in (tmp_path / "films").iterdir()}
    assert left == {".lock", ".train-00002.h5.tmp", "train-00000.h5", "train-00001.h5", "unfinished.json"}
    with pytest.raises(ValueError, match="unfinished"):
        Episodes(tmp_path, "films", "train")
    kept_at = (tmp_path / "films" / "train-00001.h5").stat().st_mtime_ns
    assert run(films / "in", tmp_path, *SHARDED) == 0
    assert (tmp_path / "films" / "train-00001.h5").stat().st_mtime_ns == kept_at
    assert bytes_of(tmp_path / "films") == bytes_of(films / "films")


@pytest.mark.parametrize("lost", ["train-00000.h5", "train-00002.h5", "validation-00000.h5"])
def test_a_lost_shard_is_restored_by_the_next_run(films, tmp_path, lost):
    shutil.copytree(films / "films", tmp_path / "films")
    (tmp_path / "films" / lost).unlink()
    assert run(films / "in", tmp_path, *SHARDED) == 0
    assert bytes_of(tmp_path / "films") == bytes_of(films / "films")


def test_a_truncated_shard_is_written_again_by_the_next_run(films, tmp_path, capsys):
    shutil.copytree(films / "films", tmp_path / "films")
    os.truncate(tmp_path / "films" / "train-00001.h5", 5_000)
    assert run(films / "in", tmp_path, *SHARDED) == 0
    assert "train-00001.h5 has 5,000 bytes, not" in capsys.readouterr().out
    assert bytes_of(tmp_path / "films") == bytes_of(films / "films")


def test_the_same_films_elsewhere_give_the_same_bytes(films, tmp_path):
    shutil.copytree(films / "in", tmp_path / "other")
    assert run(tmp_path / "other", tmp_path, *SHARDED) == 0
    assert bytes_of(tmp_path / "films") == bytes_of(films / "films")


def test_a_finished_dataset_is_left_alone(films, capsys):
    before = bytes_of(films / "films")
    assert run(films / "in", films, *SHARDED) == 0
    assert "nothing to do" in capsys.readouterr().out and bytes_of(films / "films") == before


def test_other_settings_or_other_files_on_the_same_name_are_refused(films, tmp_path, capsys):
    before = bytes_of(films / "films")
    assert run(films / "in", films, *SHARDED, "--fps", "10") == 2
    assert "was made with fps=None, this run asks for fps=10" in capsys.readouterr().err
    shutil.copytree(films / "in", tmp_path / "in")
    write_video(tmp_path / "in" / "new.mp4", greys(4))
    assert run(tmp_path / "in", films, *SHARDED) == 2
    assert "this run asks for input=10 files" in capsys.readouterr().err
    assert bytes_of(films / "films") == before


def test_folders_of_other_origin_are_refused(films, tmp_path, capsys):
    shutil.copytree(films / "films", tmp_path / "films")
    (tmp_path / "films" / "info.json").unlink()
    assert run(films / "in", tmp_path, *SHARDED) == 2
    assert "holds shards of unknown origin" in capsys.readouterr().err
    (tmp_path / "films" / "unfinished.json").write_text(json.dumps({"revision": 1, "config": {}}))
    assert run(films / "in", tmp_path, *SHARDED) == 2
    assert "was not made by this importer" in capsys.readouterr().err


@pytest.mark.parametrize("parts", [EVERYTHING, range(3, 4)], ids=["importer", "generator"])
def test_an_import_into_a_folder_that_another_process_writes_is_refused(films, tmp_path, capsys, parts):
    (tmp_path / "films").mkdir()
    with another_process_holds(tmp_path / "films", parts) as holder:
        assert run(films / "in", tmp_path, *SHARDED) == 2
    message = capsys.readouterr().err
    assert f"films is being written by another process (process {holder.pid} on" in message and "--name" in message


def test_a_full_disk_ends_in_one_line_and_keeps_what_was_finished(films, tmp_path, capsys, monkeypatch):
    usage, asked = shutil.disk_usage, []

    def nearly_full(path):
        asked.append(path)
        return usage(path) if len(asked) < 4 else shutil._ntuple_diskusage(10**9, 10**9, 1000)

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    assert run(films / "in", tmp_path, *SHARDED) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: cannot write") and "free some space" in message
    monkeypatch.undo()
    assert sorted(fpath.name for fpath in (tmp_path / "films").glob("*.h5")) == ["train-00000.h5", "train-00001.h5"]
    assert run(films / "in", tmp_path, *SHARDED) == 0
    assert bytes_of(tmp_path / "films") == bytes_of(films / "films")


def test_importers_do_not_import_torch():
    program = "import sys, data.import_videos, data.import_genieredux; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
