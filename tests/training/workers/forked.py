"""Trainings in processes of their own that start at once: forked from a server that has done the imports."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.training.workers import run

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([run.__name__])


class Forked:
    """`run.main(root, kind, *words)` in a process that can be killed; what it prints goes to a file."""

    def __init__(self, root: Path, kind: str, *words: str):
        self.output_fpath = root / f"output-{time.monotonic_ns()}.txt"
        arguments = (str(self.output_fpath), str(root), kind, *words)
        self._process = _context.Process(target=run.main_writing_to, args=arguments)
        self._process.start()

    @property
    def output(self) -> str:
        return self.output_fpath.read_text()

    def wait_until(self, happened: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert self._process.is_alive(), self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.005)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self._process.pid, number)

    def wait(self, seconds: float = 60) -> int:
        """The exit code, negative for a signal."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, self.output
        return self._process.exitcode
