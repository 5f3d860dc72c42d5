"""One stage of the GPU suite: its process, held to its time, and the record of how it went."""

import json
import os
import signal
import subprocess
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_plan import ROOT, Stage
from data.episodes import write_json
from models import pretrained

GRACE_SECONDS = 30.0  # for a training to save after SIGTERM
POLL_SECONDS = 0.1
MESSAGE_LINES = 8


class Deadline(AbstractContextManager):
    """The end of this call: the clock's, or Ctrl-C or SIGTERM before it."""

    def __init__(self, seconds: float):
        self.at = time.monotonic() + seconds
        self.signal_number = 0
        self._before = {}

    def __enter__(self) -> "Deadline":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        self.signal_number = number

    @property
    def left(self) -> float:
        return self.at - time.monotonic()

    @property
    def is_over(self) -> bool:
        return bool(self.signal_number) or self.left <= 0

    @property
    def reason(self) -> str:
        return signal.Signals(self.signal_number).name if self.signal_number else "the minutes are used up"


@dataclass(frozen=True)
class Record:
    """How a stage stands. status: not reached | finished | interrupted (goes on next time) | failed."""

    name: str
    command: str
    status: str = "not reached"
    seconds: float = 0.0  # over all calls
    exit_code: int | None = None
    message: str | None = None  # what a stage that is not finished said last
    result: Any = None

    @classmethod
    def read(cls, work: Path, stage: Stage) -> "Record":
        """The record of earlier calls, or a new one."""
        fpath = _record_fpath(work, stage)
        return cls(**json.loads(fpath.read_text())) if fpath.is_file() else cls(stage.name, stage.command)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        said = "" if self.message is None else "\n    " + self.message.replace("\n", "\n    ")
        code = "" if self.exit_code in (0, None) else f", exit code {self.exit_code}"
        return f"{self.status} after {self.seconds:.0f} s{code}{said}"


def run_stage(stage: Stage, before: Record, work: Path, deadline: Deadline, limit: float) -> Record:
    """Run a stage for at most `limit` seconds and until the deadline; its record is written to `<work>/stages`."""
    log_fpath = work / "logs" / f"{stage.name}.log"
    log_fpath.parent.mkdir(parents=True, exist_ok=True)
    began, logged = time.monotonic(), log_fpath.stat().st_size if log_fpath.exists() else 0
    with open(log_fpath, "ab") as log:
        code, was_stopped = _run(stage, log, deadline, limit)
    text = log_fpath.read_bytes()[logged:].decode(errors="replace")
    status, result, said = (
        _status(stage, code, was_stopped),
        None,
        "\n".join(text.strip().splitlines()[-MESSAGE_LINES:]),
    )
    if status == "finished":
        try:
            result = _result(stage, text)
        except (ValueError, OSError) as error:
            status, said = "failed", f"it ended well, but its result cannot be read: {error}"
    record = replace(
        before,
        command=stage.command,
        seconds=round(before.seconds + time.monotonic() - began, 1),
        exit_code=code,
        status=status,
        message=None if status == "finished" else said,
        result=result,
    )
    _record_fpath(work, stage).parent.mkdir(parents=True, exist_ok=True)
    write_json(_record_fpath(work, stage), record.as_dict())
    return record


def _run(stage: Stage, log, deadline: Deadline, limit: float) -> tuple[int, bool]:
    """Exit code, and whether we ended it. In a group of its own, so that Ctrl-C reaches it through us alone."""
    stop_at = time.monotonic() + limit
    process = subprocess.Popen(
        stage.words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, process_group=0
    )
    while process.poll() is None and time.monotonic() < stop_at and not deadline.is_over:
        time.sleep(POLL_SECONDS)
    if process.poll() is not None:
        return process.returncode, False
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, True


def _status(stage: Stage, code: int, was_stopped: bool) -> str:
    if code == 0 and (stage.kind != "train" or _is_trained(stage.product)):
        return "finished"
    return "interrupted" if was_stopped or code == 0 else "failed"


def _is_trained(run_dpath: Path) -> bool:
    """Whether a training came to its end; one that a signal ended leaves a run folder too."""
    try:
        return pretrained.read_header(run_dpath)["metadata"]["finished"]
    except FileNotFoundError:
        return False


def _result(stage: Stage, text: str) -> Any:
    """What a finished stage found, JSON-able. Raises ValueError or OSError where it did not leave it."""
    if stage.kind == "benchmark":
        return _last_object(text)
    if stage.kind == "eval":
        return json.loads(stage.product.read_text())
    if stage.kind == "train":
        scalars: dict[str, Any] = {}
        for line in (stage.product / "logs" / "metrics.jsonl").read_text().splitlines():
            scalars |= json.loads(line)
        return scalars  # the last value of each
    return (text.strip().splitlines() or [""])[-1]


def _last_object(text: str) -> dict[str, Any]:
    """The JSON object that a benchmark ends with; libraries may still have complained after it."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    raise ValueError("no line of the log is a JSON object")


def _record_fpath(work: Path, stage: Stage) -> Path:
    return work / "stages" / f"{stage.name}.json"
