"""Which generator works on which shards of a folder, so that several may share it and no shard is written twice.

The folder's `.lock` is never read for its bytes: byte 1 + k of it stands for shard k of the plan, and is locked by the
generator that writes that shard; byte 0 is held for moments, by whoever looks at or changes what all of them share.
The system gives the locks back when a process ends, however it ends. Its text says who came, for the error message.
"""

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
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems answer that do not know locks


class Claim:
    """Shards held by this process, by number in the plan."""

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


@contextmanager
def claim(folder: Path, shards: range) -> Iterator[Claim]:
    """Hold these shards of a folder; ValueError where another process holds one of them.

    Such locks belong to the process: within one, nothing stops a second claim, and opening `.lock` a second time and
    closing it gives up the first one's.
    """
    with open(folder / FILE, "a+") as file:
        if shards:  # no length means everything
            if not _lock(file, 1 + shards.start, len(shards)):
                raise ValueError(
                    f"{folder}: shards {shards.start} to {shards.stop - 1} are being written by another generator "
                    f"({_who_holds(file, shards)}); wait for it, or set another --name"
                )
            file.write(f"{shards.start} {shards.stop} process {os.getpid()} on {os.uname().nodename}\n")
            file.flush()
        yield Claim(file)


def _lock(file: TextIO, start: int, length: int, *, wait: bool = False) -> bool:
    """Whether the bytes are ours now. A file system without locks is believed to be used by one generator."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in WITHOUT_LOCKS:
            raise
        if start:
            print(
                f"warning: the file system of {file.name} has no locks; see to it that no two jobs of the same shard "
                "number, or of different numbers of shards, run at the same time",
                file=sys.stderr,
            )
    return True


def _unlock(file: TextIO, start: int, length: int) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_UN, length, start)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise


def _who_holds(file: TextIO, shards: range) -> str:
    """The process that holds one of these shards: the last to have come for the first one that is taken."""
    taken = next((number for number in shards if not _is_free(file, 1 + number)), None)
    file.seek(0)
    for start, stop, who in reversed(re.findall(r"^(\d+) (\d+) (.+)$", file.read(), re.MULTILINE)):
        if taken is not None and int(start) <= taken < int(stop):
            return who
    return "it has ended meanwhile"


def _is_free(file: TextIO, byte: int) -> bool:
    is_ours = _lock(file, byte, 1)
    if is_ours:
        _unlock(file, byte, 1)
    return is_ours
