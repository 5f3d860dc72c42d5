"""Run folders and their step folders: found, written so that each is complete or invisible, and read back exactly.

<save_root>/<model>/<name>/config.yaml  step-00001000/{model.safetensors, trainer.pt}  latest  best  logs/  samples/
"""

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError

from data.locks import claim

WEIGHTS = "model.safetensors"
STATE = "trainer.pt"
LATEST = "latest"
LOGS = "logs"
METRICS = "metrics.jsonl"  # in LOGS
BEST = "best"
LEFT_AT_ONCE = {LOGS, "config.yaml", "record.json", "samples", "tokenizer.safetensors"}  # before anything is logged
STEP_FOLDER = re.compile(r"step-(\d{8,})$")


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(step_dpath: Path) -> int:
    return int(STEP_FOLDER.match(step_dpath.name)[1])


def list_steps(run_dpath: Path) -> list[Path]:
    """The complete step folders of a run, oldest first."""
    if not run_dpath.is_dir():
        return []
    return sorted((path for path in run_dpath.iterdir() if STEP_FOLDER.match(path.name)), key=step_of)


def find_start(run_dpath: Path, resume_ckpt: str | None) -> Path | None:
    """The step folder to go on from, or None for a new run.

    resume_ckpt: None (a new run: the folder must be empty, or left by one that had logged and saved nothing), "auto"
    (the newest step if there is one), or the path of a run or step folder. Raises ValueError or FileNotFoundError
    before anything is written.
    """
    steps = list_steps(run_dpath)
    is_taken = run_dpath.is_dir() and any(run_dpath.iterdir()) and not _is_failed_start(run_dpath)
    if resume_ckpt is None:
        if is_taken:
            raise ValueError(
                f"{run_dpath} already holds a run; go on with --train.resume_ckpt=auto or start another with --name="
            )
        return None
    if resume_ckpt == "auto":
        return steps[-1] if steps else None
    start = _named_step(Path(resume_ckpt))
    if start.parent.resolve() == run_dpath.resolve():
        if step_of(steps[-1]) > step_of(start):
            raise ValueError(
                f"{run_dpath} already goes on to step {step_of(steps[-1])}, after {start.name}; "
                "branch off into another run with --name="
            )
    elif is_taken:
        raise ValueError(f"{run_dpath} already holds another run than {start}; choose another --name=")
    return start


def _is_failed_start(run_dpath: Path) -> bool:
    """Whether a training made the folder and ended with nothing logged or saved, say out of memory at once."""
    metrics = run_dpath / LOGS / METRICS
    has_logged = metrics.exists() and metrics.stat().st_size > 0
    left = {path.name for path in run_dpath.iterdir()}
    return LOGS in left and left <= LEFT_AT_ONCE and not has_logged


def _named_step(path: Path) -> Path:
    if STEP_FOLDER.match(path.name) and path.is_dir():
        return path
    steps = list_steps(path)
    if not steps:
        raise FileNotFoundError(
            f"train.resume_ckpt={path} is neither a step folder nor a run folder with one; "
            "expected auto, null or such a path (weights alone, such as GenieRedux's, are for train.init_fpath)"
        )
    return steps[-1]


def check_writable(run_dpath: Path) -> None:
    """Raise ValueError where the run folder cannot be made, as far as can be told without making it."""
    there = next(path for path in (run_dpath, *run_dpath.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise _not_writable(run_dpath, f"{there} is " + ("read-only" if there.is_dir() else "a file"))


@contextmanager
def run_folder(run_dpath: Path) -> Iterator[None]:
    """Make a run folder, and keep other trainings out of it. Raises ValueError with one line where neither can be."""
    logs = run_dpath / LOGS
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(run_dpath, error.strerror) from error
    # Two that were started by mistake would mix their curves and remove each other's checkpoints.
    with claim(logs, cure="end it, or set another --name"):
        yield


def _not_writable(run_dpath: Path, reason: str) -> ValueError:
    return ValueError(
        f"cannot write to {run_dpath} ({reason}); set train.save_root_dpath to a folder that can be written"
    )


class Keep(NamedTuple):
    """Which step folders stay when another one is written."""

    last: int | None  # the newest ones; None = all
    every: int | None = None  # besides, the multiples of this
    best: int | None = None  # besides, this one


def save(run_dpath: Path, step: int, write_weights: Callable[[Path], None], state: dict[str, Any], keep: Keep) -> Path:
    """Write a step folder, point `latest` at it and remove those that `keep` does not name. Returns the folder.

    write_weights: gets the path of the weight file. state: tensors, numbers, texts and containers of them. Whatever
    happens on the way, a folder with a step's name is complete. Raises ValueError naming the file if writing fails.
    """
    target = run_dpath / step_name(step)
    if target.exists():  # the step that this run started from: the state is the same
        return target
    partial = run_dpath / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    fpath = partial / WEIGHTS
    try:
        partial.mkdir(parents=True)
        write_weights(fpath)
        fpath = partial / STATE
        with open(fpath, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(partial)
        os.rename(partial, target)
        _sync_folder(run_dpath)
        write_text(run_dpath / LATEST, target.name + "\n")
        if keep.best is not None:
            write_text(run_dpath / BEST, step_name(keep.best) + "\n")
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"could not write {target / fpath.name} ({reason}); free disk space or set train.save_root_dpath, "
            "then go on with --train.resume_ckpt=auto"
        ) from error
    _remove_old(run_dpath, keep)
    return target


def _remove_old(run_dpath: Path, keep: Keep) -> None:
    if keep.last is None:
        return
    for old in list_steps(run_dpath)[: -keep.last]:
        step = step_of(old)
        if step == keep.best or (keep.every is not None and step % keep.every == 0):
            continue
        doomed = old.with_name(f".{old.name}.removed")  # first out of sight: a half removed step must not be found
        os.rename(old, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def clean(run_dpath: Path) -> None:
    """Remove what a killed process left half written or half removed, and let `latest` name the newest step."""
    for pattern in (".step-*.partial", ".step-*.removed"):
        for path in run_dpath.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
    for newest in list_steps(run_dpath)[-1:]:
        write_text(run_dpath / LATEST, newest.name + "\n")


def load_state(step_dpath: Path) -> dict[str, Any]:
    """The trainer's state of a step folder, on the CPU. Raises one line naming the file if it is missing or damaged."""
    fpath = step_dpath / STATE
    if not fpath.is_file():
        raise FileNotFoundError(f"{fpath} is missing, so {step_dpath} cannot be resumed; use it as --train.init_fpath=")
    try:
        return torch.load(fpath, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        raise ValueError(
            f"{fpath} is truncated or damaged ({fpath.stat().st_size} bytes); delete {step_dpath} to go on from the "
            "checkpoint before it"
        ) from error


def write_text(fpath: Path, text: str) -> None:
    """Write a small file atomically."""
    partial = fpath.with_name(f".{fpath.name}.partial")
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, fpath)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def random_state() -> dict[str, Any]:
    """The state of every random generator of this process, in types that `weights_only` reads back."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
