"""A dataset as shards: who writes which, what is there already, and `info.json` when all of them are.

Which episodes a shard holds, and every byte of it, follow from the settings alone: a run that was interrupted goes on
with the missing shards, and neither the number of workers nor that of machines changes anything.
"""

import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.episodes import END_REASONS, FORMAT, UNFINISHED, open_shard, summarise_shard, write_json
from data.locks import Claim, claim
from data_generation.provenance import versions
from data_generation.recording import REVISION
from data_generation.settings import Settings
from data_generation.workers import Counts, Job, Shard, write_shards


class Part(NamedTuple):
    """What one of several jobs does of a dataset: the part `index`, from 0, of `count` parts of consecutive shards."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Part":
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 0 <= int(match[1]) < int(match[2]):
            raise ValueError(
                f"shard={text} is not i/n with i from 0 to n-1, as in --shard=0/4 to --shard=3/4 for four jobs "
                "(SLURM: --array=0-3)"
            )
        return cls(int(match[1]), int(match[2]))

    def of(self, num_shards: int) -> range:
        return range(self.index * num_shards // self.count, (self.index + 1) * num_shards // self.count)


class Summary(NamedTuple):
    """What a call did: shards written, their counts; and what it found (was all there?) and left (to other jobs)."""

    num_shards: int
    counts: Counts
    was_complete: bool
    num_missing: int


def plan(settings: Settings) -> list[Shard]:
    size = settings.episodes_per_shard
    return [
        Shard(split, number, levels[number * size : (number + 1) * size])
        for split, levels in settings.levels().items()
        for number in range(-(-len(levels) // size))
    ]


def generate(settings: Settings, part: Part = Part()) -> Summary:  # noqa: B008 (a constant)
    """Write what is missing of the dataset, or of one part of it; whoever finds nothing missing writes `info.json`.

    Raises ValueError where the folder belongs to another config or another run works on the same shards, OSError
    where the disk is full. Whole shards stay in either case.
    """
    folder, shards = settings.folder, plan(settings)
    numbers = part.of(len(shards))
    with claim(folder, numbers, cure="wait for it, or set another --name") as claimed:
        with claimed.alone():
            _refuse_another_config(folder, settings)
            is_new = not (folder / "info.json").exists() and not (folder / UNFINISHED).exists()
            if not (folder / "info.json").exists():
                _mark_unfinished(folder, settings)
        ours = [shards[number] for number in numbers]
        missing = [shard for shard in ours if not _is_intact(folder / shard.file, shard)]
        with claimed.alone():
            if not missing and _is_complete(folder, shards):
                return Summary(0, Counts(0, 0.0, 0.0), True, 0)
            _mark_unfinished(folder, settings)
        elsewhere = [
            shard for number, shard in enumerate(shards) if number not in numbers and not (folder / shard.file).exists()
        ]
        try:
            counts = _write_missing(settings, Job(ours, missing, elsewhere)) if missing else Counts(0, 0.0, 0.0)
        except BaseException:
            if is_new:
                _forget_what_never_began(folder, claimed)
            raise
        with claimed.alone():
            num_missing = sum(not (folder / shard.file).exists() for shard in shards)
            if not num_missing and not _is_complete(folder, shards):
                write_json(folder / "info.json", _info(settings, shards))
                (folder / UNFINISHED).unlink()
        return Summary(len(missing), counts, False, num_missing)


def _is_complete(folder: Path, shards: Sequence[Shard]) -> bool:
    named = (folder / "info.json").exists() and not (folder / UNFINISHED).exists()
    return named and all((folder / shard.file).exists() for shard in shards)


def _mark_unfinished(folder: Path, settings: Settings) -> None:
    if not (folder / UNFINISHED).exists():
        write_json(folder / UNFINISHED, _origin(settings))


def _forget_what_never_began(folder: Path, claimed: Claim) -> None:
    """Remove the mark of a run that came to no shard, so that another config may have the name."""
    if not any(folder.glob("*.h5")) and claimed.take_everything():
        (folder / UNFINISHED).unlink(missing_ok=True)


def _write_missing(settings: Settings, job: Job) -> Counts:
    folder, num_before = settings.folder, len(job.shards) - len(job.missing)
    if num_before:
        print(f"{num_before} of {len(job.shards)} shards are there already", flush=True)
    _remove_leftovers(folder, job.missing)
    try:
        return write_shards(settings, job)
    except KeyboardInterrupt:
        num_finished = sum((folder / shard.file).exists() for shard in job.shards)
        raise KeyboardInterrupt(f"{num_finished} of {len(job.shards)} shards are finished") from None
    finally:
        _remove_leftovers(folder, job.missing)


def _remove_leftovers(folder: Path, shards: Sequence[Shard]) -> None:
    """What is left of shards whose worker was stopped; it may be all the space that a full disk has."""
    for shard in shards:
        for leftover in folder.glob(f".{shard.file}.*tmp"):
            leftover.unlink()


def _is_intact(fpath: Path, shard: Shard) -> bool:
    """Whether the shard is there and holds the levels that it should; if not, it is written again."""
    if not fpath.exists():
        return False
    try:
        with open_shard(fpath) as file:
            if np.array_equal(file["episodes"]["level_seed"], shard.levels):
                return True
        reason = f"{fpath} does not hold levels {shard.levels.start} to {shard.levels.stop - 1}"
    except ValueError as error:
        reason = str(error).split(";")[0]
    print(f"{reason}; it is written again", flush=True)
    return False


# ----------------------------------------------------------------------------------------------- where the data is from


def _origin(settings: Settings) -> dict[str, Any]:
    """Everything needed to make the same bytes again."""
    return {
        "revision": REVISION,
        "procgen": _procgen_version(),
        "versions": versions(settings),
        "config": settings.content,
    }


def _procgen_version() -> str:
    for package in ("procgen-mirror", "procgen"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _refuse_another_config(folder: Path, settings: Settings) -> None:
    if (folder / "info.json").exists():
        found = _read(folder / "info.json").get("generator", {})
    elif (folder / UNFINISHED).exists():
        found = _read(folder / UNFINISHED)
    elif any(folder.glob("*.h5")):
        raise ValueError(f"{folder} holds shards of an unknown config (no info.json); set another --name or delete it")
    else:
        return
    theirs = {"revision": found.get("revision"), **found.get("config", {})}
    ours = {"revision": REVISION, **settings.content}
    different = [key for key in theirs | ours if theirs.get(key) != ours.get(key)]
    if different:
        there = ", ".join(f"{key}={theirs.get(key)}" for key in different)
        here = ", ".join(f"{key}={ours.get(key)}" for key in different)
        raise ValueError(f"{folder} was made with {there}, this run asks for {here}; set another --name or delete it")


def _read(fpath: Path) -> dict[str, Any]:
    try:
        return json.loads(fpath.read_text())
    except ValueError as error:
        raise ValueError(f"{fpath} is not readable JSON ({error}); delete its folder, or set another --name") from None


def _info(settings: Settings, shards: Sequence[Shard]) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for shard in shards:
        summary = summarise_shard(settings.folder / shard.file)
        split = splits.setdefault(shard.split, {"episodes": 0, "frames": 0, "shards": []})
        split["episodes"] += summary["episodes"]
        split["frames"] += summary["frames"]
        split["shards"].append(summary)
    for split, levels in settings.levels().items():
        splits[split]["levels"] = [levels.start, levels.stop]
    return {
        "format": FORMAT,
        "name": settings.name,
        "version": settings.version,
        "game": settings.game,
        "image_size": [settings.image_size, settings.image_size],
        "action_names": list(settings.simulated.action_names),
        "end_reasons": list(END_REASONS),
        "generator": _origin(settings),
        "splits": splits,
    }
