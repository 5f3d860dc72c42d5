"""Parts of a folder belong to one process at a time, and are given back however it ends."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from data.locks import EVERYTHING, claim
from tests.data.holding import ROOT, another_process_holds

CURE = "wait for it"


@pytest.mark.parametrize("wanted", [range(2, 3), range(5), range(0, 9), EVERYTHING])
def test_what_another_process_holds_is_refused_until_it_is_killed(tmp_path, wanted):
    with another_process_holds(tmp_path, range(2, 4)) as holder:
        message = rf"is being written by another process \(process {holder.pid} on .*\); wait for it$"
        with pytest.raises(ValueError, match=message), claim(tmp_path, wanted, cure=CURE):
            pass
    with claim(tmp_path, wanted, cure=CURE):
        pass


def test_parts_that_nobody_holds_can_be_had_and_no_parts_always(tmp_path):
    with another_process_holds(tmp_path, range(2, 4)):
        for parts in (range(2), range(4, 100), range(0)):
            with claim(tmp_path, parts, cure=CURE):
                pass
    with another_process_holds(tmp_path), claim(tmp_path, range(0), cure=CURE):
        pass


def test_who_holds_everything_leaves_no_part(tmp_path):
    with another_process_holds(tmp_path) as holder:
        for parts in (range(3), range(1000, 1001), EVERYTHING):
            with pytest.raises(ValueError, match=f"process {holder.pid} on"), claim(tmp_path, parts, cure=CURE):
                pass


@pytest.mark.parametrize("wanted", [range(6), EVERYTHING])
def test_the_process_that_is_named_is_the_one_that_holds_the_first_part_that_is_taken(tmp_path, wanted):
    with another_process_holds(tmp_path, range(3, 5)) as holder:
        for parts in (range(3), range(5, 6)):  # came later, and are gone
            with another_process_holds(tmp_path, parts):
                pass
        with pytest.raises(ValueError, match=rf"process {holder.pid} on"), claim(tmp_path, wanted, cure=CURE):
            pass


def test_one_process_at_a_time_is_alone(tmp_path):
    program = (
        "import pathlib, sys; from data.locks import claim\n"
        f"with claim(pathlib.Path({str(tmp_path)!r}), range(0), cure='') as claimed:\n"
        "    print('there', flush=True)\n"
        "    with claimed.alone(): print('alone', flush=True)\n"
    )
    with claim(tmp_path, range(1), cure=CURE) as claimed:
        with claimed.alone():
            other = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            assert other.stdout.readline() == "there\n"
            with pytest.raises(subprocess.TimeoutExpired):
                other.wait(timeout=0.3)
        assert other.communicate(timeout=60)[0] == "alone\n"


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(*arguments):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with claim(tmp_path, cure=CURE) as claimed, claimed.alone():
        pass
    assert capsys.readouterr().err.count("has no locks; see to it that no two jobs") == 1


def test_everything_can_be_taken_while_nobody_else_holds_a_part(tmp_path):
    with claim(tmp_path, range(2), cure=CURE) as claimed:
        with another_process_holds(tmp_path, range(4, 5)):
            assert not claimed.take_everything()
        assert claimed.take_everything()


@pytest.mark.parametrize("where, reason", [("file", "File exists"), ("file/below", "Not a directory")])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, where, reason):
    (tmp_path / "file").touch()
    refused = pytest.raises(OSError, match=rf"^cannot write to {tmp_path / where} \({reason}\); free some space there")
    with refused, claim(tmp_path / where, cure=CURE):
        pass
