"""Run torchrun or accelerate, and end as the process that failed first, without the launcher's own pages of report.

    python scripts/launch.py torchrun --nproc_per_node 2 -m training.main …

The processes have said themselves what went wrong; a traceback of the launcher below that line only hides it.
"""

import contextlib
import logging
import os
import runpy
import shutil
import signal
import sys
import threading
from pathlib import Path

import psutil

HANDED_ON = (signal.SIGTERM, signal.SIGUSR1)


def is_python(script: Path) -> bool:
    """Whether a console script is Python; behind a path with spaces, pip writes one that starts as a shell script."""
    first, _, rest = script.read_bytes().partition(b"\n")
    return first.startswith(b"#!") and (b"python" in first or rest.startswith(b"'''exec'"))


def hand_signals_on() -> None:
    """Give SIGTERM and SIGUSR1 to the processes that were started, and wait for them: trainings save and end well.

    A launcher knows nothing of SIGUSR1, and would end with an error of its own after SIGTERM. Both stay blocked for
    the processes too until they listen, so that one that comes while they start is not lost.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    threading.Thread(target=_hand_on, daemon=True).start()


def _hand_on() -> None:
    while number := signal.sigwait(HANDED_ON):
        for process in psutil.Process().children():  # theirs, such as loaders, end with them
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def main(words: list[str]) -> int:
    found = shutil.which(words[0])
    if found is None:
        print(f"error: {words[0]} is not on the PATH of this environment", file=sys.stderr)
        return 2
    if not is_python(Path(found)):
        os.execv(found, words)
    if not os.environ.get("LAMP_TRACEBACK"):
        logging.disable(logging.ERROR)  # here only; the processes keep their own
    sys.argv = [found, *words[1:]]
    hand_signals_on()
    try:
        runpy.run_path(found, run_name="__main__")
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        if isinstance(error, SignalException):
            return 128 + error.sigval
        if not isinstance(error, ChildFailedError) or os.environ.get("LAMP_TRACEBACK"):
            raise
        rank, failure = error.get_first_failure()
        if failure.exitcode not in (2, 130):
            print(f"process {rank} ended with exit code {failure.exitcode}; its message is above", file=sys.stderr)
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
