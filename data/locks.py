"""Who writes which part of a folder, so that several processes may share it and nothing is written by two of them.

The one home of such locks, for generators, importers and whoever else makes a folder by and by; besides
`data.episodes` it is all that data generation imports of this package. The folder's `.lock` is never read for its
bytes: byte 1 + k of it stands for part k of the work (a shard, by number), and is locked by the process that writes
that part; byte 0 is held for moments, by whoever looks at or changes what all of them share. The system gives the
locks back when a process ends, however it ends. The file's text says who came, for the error message.
"""

import bisect
import errno
import fcntl
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

FILE = ".lock"
EVERYTHING = range(2**31)  # all parts, however many there will be
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems answer that do not know locks


class Claim:
    """Parts of a folder held by this process."""

    def __init__(self, file: TextIO):
        self._file = file

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else who has a claim on this folder is within this block at the same time."""
        _lock(self._file, 0, 1, wait=True)
        try:
            yield
        finally:
            _unlock(self._file, 0, 1)

    def take_everything(self) -> bool:
        """Hold all parts; False where another process holds one of them."""
        return _lock(self._file, 1, 0)  # no length means everything


@contextmanager
def claim(folder: Path, parts: range = EVERYTHING, *, cure: str) -> Iterator[Claim]:
    """Hold these parts of a folder, which is made where it is missing.

    Raises ValueError where another process holds one of them, with `cure` as its last words, and OSError with one line
    where the folder cannot be written. Such locks belong to the process: within one, nothing stops a second claim, and
    opening `.lock` a second time and closing it gives up the first one's.
    """
    with _refusal_in_words(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).touch()
    with open(folder / FILE, "a+") as file:
        if parts:  # no length means everything
            if not _lock(file, 1 + parts.start, len(parts)):
                what = folder if parts == EVERYTHING else f"{folder}: one of shards {parts.start} to {parts.stop - 1}"
                raise ValueError(f"{what} is being written by another process ({_who_holds(file, parts)}); {cure}")
            with _refusal_in_words(folder):
                file.write(f"{parts.start} {parts.stop} process {os.getpid()} on {os.uname().nodename}\n")
                file.flush()
        try:
            yield Claim(file)
        finally:
            if parts == EVERYTHING:  # nobody else is here: all that the text says is of the past
                file.truncate(0)


@contextmanager
def _refusal_in_words(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write to {folder} ({error.strerror}); free some space there, or choose another folder"
        ) from None


def _lock(file: TextIO, start: int, length: int, *, wait: bool = False) -> bool:
    """Whether the bytes are ours now. A file system without locks is believed to be used by one process."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in WITHOUT_LOCKS:
            raise
        if start:
            print(
                f"warning: the file system of {file.name} has no locks; see to it that no two jobs write the same "
                "files there at the same time (of a dataset, those with different numbers of parts do)",
                file=sys.stderr,
            )
    return True


def _unlock(file: TextIO, start: int, length: int) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_UN, length, start)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise


def _who_holds(file: TextIO, parts: range) -> str:
    """The process that holds one of these parts: the last to have come for the first one that is taken."""
    num_free = bisect.bisect_left(parts, True, key=lambda last: not _is_free(file, range(parts.start, last + 1)))
    taken = parts.start + num_free
    file.seek(0)
    for start, stop, who in reversed(re.findall(r"^(\d+) (\d+) (.+)$", file.read(), re.MULTILINE)):
        if int(start) <= taken < min(int(stop), parts.stop):
            return who
    return "it has ended meanwhile"


def _is_free(file: TextIO, parts: range) -> bool:
    is_ours = _lock(file, 1 + parts.start, len(parts))
    if is_ours:
        _unlock(file, 1 + parts.start, len(parts))
    return is_ours
