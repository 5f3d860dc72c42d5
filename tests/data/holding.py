"""Another process that holds parts of a folder, since locks belong to processes."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.locks import EVERYTHING

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def another_process_holds(folder: Path, parts: range = EVERYTHING) -> Iterator[subprocess.Popen]:
    program = (
        "import sys, pathlib; from data.locks import claim\n"
        f"with claim(pathlib.Path({str(folder)!r}), {parts!r}, cure=''): print('held', flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()
