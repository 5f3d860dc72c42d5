"""Several training processes acting as one: decisions taken alike, signals."""

import os
import pickle
import select
import signal
import socket
import threading
import time
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

IMPATIENCE_SECONDS = 2.0  # launchers pass Ctrl-C on, so that one press can arrive twice


class Agreement:
    """Numbers on which all processes must decide alike, exchanged between the hosts so that no GPU is waited for."""

    def __init__(self, accelerator: Accelerator):
        self.group = dist.new_group(backend="gloo") if accelerator.num_processes > 1 else None

    def largest(self, *values: float) -> list[float]:
        """The maximum of each value over all processes."""
        if self.group is None:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self.group)
        return numbers.tolist()


class Board:
    """Notes that one process pins up and others read, outside of collectives: it works while main threads are stuck."""

    def __init__(self, accelerator: Accelerator):
        self.rank = accelerator.process_index
        self.num_processes = accelerator.num_processes
        self._store: dist.Store | None = None
        self._own: dict[str, Any] = {}
        if self.num_processes > 1:
            host = os.environ["MASTER_ADDR"]  # where the main process is
            common = {"world_size": self.num_processes, "wait_for_workers": False}
            if accelerator.is_main_process:
                self._store = dist.TCPStore(host, 0, is_master=True, **common)
            (port,) = broadcast_object_list([self._store.port if self._store else None])
            self._store = self._store or dist.TCPStore(host, port, is_master=False, **common)

    def pin(self, name: str, note: Any) -> None:
        if self._store is None:
            self._own[name] = note
        else:
            self._store.set(name, pickle.dumps(note))

    def read(self, name: str) -> Any:
        """The note of this name, or None. Raises torch.distributed.DistError once the main process is gone."""
        if self._store is None:
            return self._own.get(name)
        return pickle.loads(self._store.get(name)) if self._store.check([name]) else None

    def read_of_all(self, name: str, seconds: float) -> list[Any] | None:
        """The notes `name/0`, `name/1`, … of all processes; None where one is missing after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            notes = [self.read(f"{name}/{rank}") for rank in range(self.num_processes)]
            if all(note is not None for note in notes):
                return notes
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)


class Interrupts(AbstractContextManager):
    """Turns Ctrl-C, SIGTERM and SIGUSR1 into a request that the loop reads between steps.

    A second Ctrl-C quits at once. SIGUSR1 is what clusters send some minutes before they take a machine away.
    """

    HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self):
        self.received = 0  # signal number
        self._at = 0.0
        self._before = {}
        # Python runs handlers between two of its own instructions in the main thread, so never inside a long
        # operation; the number of a signal goes through this pair at once.
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self._former_mouth = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
            for number in self.HANDLED:
                self._before[number] = signal.signal(number, self._handle)
            # scripts/launch.py lets processes start with them blocked, so that one that comes early is not lost.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self.HANDLED)
        return self

    def __exit__(self, *exception) -> None:
        if self._before:
            signal.set_wakeup_fd(self._former_mouth)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._ear.close()
        self._mouth.close()

    def wake(self) -> None:
        """End the waiting in `heard`."""
        self._mouth.send(b"\0")

    def heard(self, seconds: float) -> int:
        """Wait so long for a signal, from any thread and whatever the main thread does; its number or 0."""
        if not select.select([self._ear], [], [], seconds)[0]:
            return 0
        return next((number for number in self._ear.recv(64) if number in self.HANDLED), 0)

    def _handle(self, number: int, frame) -> None:
        if self.received and number == signal.SIGINT and time.monotonic() - self._at > IMPATIENCE_SECONDS:
            raise KeyboardInterrupt
        self.received = self.received or number
        self._at = self._at or time.monotonic()
