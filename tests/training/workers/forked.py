"""Processes of their own that start at once: forked from a server that has done the imports.

A module of this folder runs in them: its `main(*words)`. What they print goes to files.
"""

import importlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import torch

from tests.training.workers import run

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([run.__name__, "torch._dynamo"])  # the latter comes with the first optimizer


def _main(output: str, environment: dict[str, str], module: str, *words: str) -> None:
    os.environ |= environment
    multiprocessing.set_start_method("fork", force=True)  # of loader processes, as in a training that a person starts
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    importlib.import_module(module).main(*words)


class Forked:
    """`main(root, *words)` of a module, by default of `run`, in a process that can be killed."""

    def __init__(self, root: Path, *words: str, module: str = run.__name__, environment: dict[str, str] | None = None):
        self.output_fpath = root / f"output-{time.monotonic_ns()}.txt"
        arguments = (str(self.output_fpath), environment or {}, module, str(root), *words)
        self._process = _context.Process(target=_main, args=arguments)
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
            assert self.is_alive, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.005)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self._process.pid, number)

    def wait(self, seconds: float = 60) -> int:
        """The exit code, negative for a signal."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, self.output
        return self._process.exitcode

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    @property
    def has_failed(self) -> bool:
        return bool(self._process.exitcode)


def start_two(root: Path, *words: str, module: str = run.__name__) -> list[Forked]:
    """Two processes that work together (gloo), with the environment that a launcher gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    return [Forked(root, *words, module=module, environment=common | own) for own in ranks]


def run_two(root: Path, *words: str, module: str, seconds: float = 120) -> CompletedProcess:
    """As `start_two`, to its end, which the failure of one is too: an exit code and all that both printed."""
    pair = start_two(root, *words, module=module)
    deadline = time.monotonic() + seconds
    try:
        while any(process.is_alive for process in pair) and not any(process.has_failed for process in pair):
            assert time.monotonic() < deadline, [process.output for process in pair]
            time.sleep(0.01)
    finally:
        for process in pair:
            if process.is_alive:
                process.kill()
    codes = [process.wait() for process in pair]
    return CompletedProcess([module, *words], next(filter(None, codes), 0), "".join(p.output for p in pair))
