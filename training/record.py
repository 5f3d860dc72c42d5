"""What a run was made with, for whoever wants to repeat it: `record.json` in its folder, one entry for every start."""

import hashlib
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from data.content_hash import stored_hash
from training.checkpoint import write_text

RECORD = "record.json"
# In `train`, but of no consequence for what is learned.
NOT_OF_THE_COURSE = tuple(f"train.{key}" for key in ("resume_ckpt", "save_root_dpath", "wandb_dpath", "wandb_name"))
CHECKOUT = Path(__file__).resolve().parent.parent


def add_start(
    run_dpath: Path,
    *,
    step: int,
    command: str,
    config: dict[str, Any],
    dataset_info: dict[str, Any],
    device: str,
    num_processes: int,
) -> None:
    """Append this start to the run's record.

    step: updates done before it, 0 for a new run. command: to be typed again. config: with all references resolved.
    """
    fpath = run_dpath / RECORD
    starts = json.loads(fpath.read_text())["starts"] if fpath.exists() else []
    starts.append(
        {
            "step": step,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": command,
            "program": shlex.join(sys.argv),
            "git": git_revision(),
            "python": platform.python_version(),
            "packages": installed_packages(),
            "system": platform.platform(),
            "device": device,
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
            "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
            "num_processes": num_processes,
            "dataset": dataset_info["name"],
            "dataset_sha256": dataset_hash(dataset_info),
            "config": config,
        }
    )
    write_text(fpath, json.dumps({"starts": starts}, indent=1) + "\n")


def changes(run_dpath: Path, *, config: dict[str, Any], dataset_info: dict[str, Any], num_processes: int) -> list[str]:
    """`train.batch_size=2 (was 4)` for what decides how a training goes and was otherwise at the run's last start."""
    fpath = run_dpath / RECORD
    if not fpath.exists():
        return []
    last = json.loads(fpath.read_text())["starts"][-1]
    before = {"processes": last["num_processes"], "dataset_sha256": last["dataset_sha256"], **_course(last["config"])}
    now = {"processes": num_processes, "dataset_sha256": dataset_hash(dataset_info), **_course(config)}
    return [f"{key}={now.get(key)} (was {before.get(key)})" for key in before | now if now.get(key) != before.get(key)]


def _course(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys and values of the groups that decide how a training goes."""
    found, waiting = {}, [(group, config[group]) for group in ("network", "optimizer", "train") if group in config]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{key}.{name}", child) for name, child in value.items()]
        elif key not in NOT_OF_THE_COURSE:
            found[key] = value
    return dict(sorted(found.items()))


def dataset_hash(info: dict[str, Any]) -> str:
    """SHA-256 over the hashes of all shards in a dataset's `info.json`: equal data, equal hash, wherever it lies."""
    digest = hashlib.sha256()
    for split, content in sorted(info["splits"].items()):
        for shard in content["shards"]:
            digest.update(f"{split} {shard['file']} {stored_hash(shard)}\n".encode())
    return digest.hexdigest()


def git_revision() -> str | None:
    """The checkout's commit, with `+changes` where files differ from it; None where this is no git checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=CHECKOUT, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


@cache
def installed_packages() -> dict[str, str]:
    """The version of every package that this Python can import, by name."""
    found = [found.metadata for found in importlib.metadata.distributions()]  # which reads the file each time
    return dict(sorted(((one["Name"], one["Version"]) for one in found), key=lambda item: item[0].lower()))
