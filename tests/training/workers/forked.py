"""Trainings in processes of their own that start at once: forked from a server that has done the imports."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from tests.training.workers import run

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([run.__name__, "torch._dynamo"])  # the latter comes with the first optimizer


class Forked:
    """`run.main(root, kind, *words)` in a process that can be killed; what it prints goes to a file."""

    def __init__(self, root: Path, kind: str, *words: str, environment: dict[str, str] | None = None):
        self.output_fpath = root / f"output-{time.monotonic_ns()}.txt"
        arguments = (str(self.output_fpath), environment or {}, str(root), kind, *words)
        self._process = _context.Process(target=run.main_writing_to, args=arguments)
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

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


def start_two(root: Path, kind: str, *words: str) -> list[Forked]:
    """Two processes that train together, with the environment that a launcher gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        Forked(root, kind, *words, environment=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)
    ]
