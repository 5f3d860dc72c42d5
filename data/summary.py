"""The numbers of a dataset: what its episodes, actions, rewards and files are like, split by split.

Shards are read one after the other. What stays in memory is a few numbers per episode, whatever the frames weigh.
"""

from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from data.episodes import END_REASONS, map_dataset, read_info
from data.verification import Records, Shard, blocks, check_records, opened

RESAMPLES = 1000
RESAMPLED_AT_ONCE = 2**22  # numbers, 32 MB
Z_95 = 1.959964  # of a normal distribution
DECIDE_LEVELS = ("game", "distribution_mode")  # beside its seed
FILTERS = {1: "gzip", 32000: "lzf", 32001: "blosc", 32026: "blosc2"}  # numbers in HDF5's register
SHUFFLE = 2  # the number of a filter that orders bytes and makes nothing smaller


class Scan(NamedTuple):
    """What is kept of one shard after reading all of it but the frames; returns and completion by episode."""

    shard: Shard
    table: np.ndarray  # (E,) of data.episodes.TABLE
    returns: np.ndarray | None  # (E,) float64
    action_counts: np.ndarray | None  # (number of actions,)
    num_bytes: int  # of the file
    raw_bytes: int  # of its frames before compression
    compression: str


class Place(NamedTuple):
    """Where an episode lies."""

    scan: Scan
    row: int  # in the shard's table

    @property
    def length(self) -> int:
        return int(self.scan.table["length"][self.row])


def scan_shard(shard: Shard, info: dict[str, Any]) -> Scan:
    """Read a shard's records; ValueError of one line where they are damaged."""
    with opened(shard, info) as file:
        records, frames = check_records(file, shard, info), file["frames"]
        counts = None
        if info["action_names"] is not None:
            counts = np.bincount(records.actions, minlength=len(info["action_names"]))
        return Scan(
            shard=shard,
            table=records.table,
            returns=_returns(records),
            action_counts=counts,
            num_bytes=shard.fpath.stat().st_size,
            raw_bytes=int(np.prod(frames.shape)),
            compression=compression_of(frames),
        )


def _returns(records: Records) -> np.ndarray | None:
    if records.rewards is None:
        return None
    return np.add.reduceat(records.rewards.astype(np.float64), records.table["start"])


def compression_of(dataset: h5py.Dataset) -> str:
    """The filters that make an HDF5 dataset smaller on the disk, or "none"."""
    properties = dataset.id.get_create_plist()
    used = [properties.get_filter(index) for index in range(properties.get_nfilters())]
    names = [FILTERS.get(number, name.decode(errors="replace")) for number, _, _, name in used if number != SHUFFLE]
    return "+".join(names) or "none"


# ------------------------------------------------------------------------------------------------------------- numbers


def overview(scans: dict[str, list[Scan]], info: dict[str, Any], folder: Path) -> dict[str, Any]:
    """All numbers of a dataset that need no frames, as they go into `summary.json`."""
    return {
        "name": folder.name,
        "folder": str(folder),
        "game": info.get("game"),
        "skipped_files": len(info.get("skipped", ())),
        "damaged_files": len(info.get("damaged", ())),
        "image_size": info["image_size"],
        "generator": info.get("generator"),
        "splits": {split: summarise(own, info["action_names"]) for split, own in scans.items()},
        "shared_levels": shared_levels(scans, levels_beside(folder, info)),
    }


def summarise(scans: list[Scan], action_names: list[str] | None) -> dict[str, Any]:
    """The numbers of a split; None where a dataset cannot have them."""
    table = np.concatenate([scan.table for scan in scans])
    lengths, levels = table["length"], table["level_seed"]
    num_bytes, raw_bytes = sum(scan.num_bytes for scan in scans), sum(scan.raw_bytes for scan in scans)
    ends = np.bincount(table["end_reason"], minlength=len(END_REASONS)).tolist()
    num_completed = ends[END_REASONS.index("coin")]
    summary = {
        "episodes": len(table),
        "frames": int(lengths.sum()),
        "shards": len(scans),
        "levels": {"first": int(levels.min()), "last": int(levels.max()), "distinct": len(np.unique(levels))},
        "lengths": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": float(lengths.mean()),
            "max": int(lengths.max()),
        },
        "end_reasons": dict(zip(END_REASONS, ends, strict=True)),
        "actions": None,
        "return_mean": None,
        "return_ci95": None,
        "completed": None,
        "completed_ci95": None,
        "bytes": num_bytes,
        "frame_bytes": raw_bytes,
        "compression": "+".join(sorted({scan.compression for scan in scans})),
    }
    if action_names is not None:
        counts = np.sum([scan.action_counts for scan in scans], axis=0).tolist()
        summary["actions"] = dict(zip(action_names, counts, strict=True))
    if all(scan.returns is not None for scan in scans):
        returns = np.concatenate([scan.returns for scan in scans])
        summary["return_mean"], summary["return_ci95"] = float(returns.mean()), bootstrap(returns)
        summary["completed"] = num_completed / len(table)
        summary["completed_ci95"] = wilson(num_completed, len(table))
    return summary


def shared_levels(scans: dict[str, list[Scan]], others: dict[str, range]) -> dict[str, int]:
    """How many levels each two splits have in common, and each split with those of `others`: {"train, test": 0}."""
    levels = {split: np.unique(np.concatenate([s.table["level_seed"] for s in own])) for split, own in scans.items()}
    shared = {
        f"{first}, {second}": len(np.intersect1d(levels[first], levels[second], assume_unique=True))
        for first, second in combinations(levels, 2)
    }
    for split, own in levels.items():
        for name, theirs in others.items():
            shared[f"{split}, {name}"] = int(((own >= theirs.start) & (own < theirs.stop)).sum())
    return shared


def levels_beside(folder: Path, info: dict[str, Any]) -> dict[str, range]:
    """The levels of the dataset of the same game that this one is tested on, or tests: NAME_test and NAME.

    {"NAME_test's test": its range}, as the generator planned it; nothing where there is none, or of another game.
    """
    name = folder.name.removesuffix("_test") if folder.name.endswith("_test") else f"{folder.name}_test"
    try:
        other = read_info(folder.parent, name)
    except (ValueError, OSError):  # it need not be there, and is not what was asked about
        return {}
    ours, theirs = (each.get("generator", {}).get("config", {}) for each in (info, other))
    if any(ours.get(key) is None or ours[key] != theirs.get(key) for key in DECIDE_LEVELS):
        return {}
    return {
        f"{name}'s {split}": range(*content["levels"])
        for split, content in other["splits"].items()
        if "levels" in content
    }


def bootstrap(values: np.ndarray, seed: int = 0) -> list[float]:
    """95 % percentile interval of the mean (Efron, 1979): (N,) -> [low, high]."""
    # Drawing N of N is drawing how often each distinct value comes up, and returns have few distinct values.
    distinct, counts = np.unique(values, return_counts=True)
    rng, means = np.random.default_rng(seed), []
    step = max(1, RESAMPLED_AT_ONCE // len(distinct))
    for start in range(0, RESAMPLES, step):
        drawn = rng.multinomial(len(values), counts / len(values), size=min(step, RESAMPLES - start))
        means.append(drawn @ distinct / len(values))
    return np.percentile(np.concatenate(means), [2.5, 97.5]).tolist()


def wilson(count: int, total: int) -> list[float]:
    """95 % interval of a share (Wilson, 1927): [low, high]. Unlike the bootstrap it says something for 0 of N."""
    share, z = count / total, Z_95
    middle = share + z**2 / (2 * total)
    width = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    low, high = (middle - width) / (1 + z**2 / total), (middle + width) / (1 + z**2 / total)
    return [max(0.0, float(low)), min(1.0, float(high))]


# -------------------------------------------------------------------------------------------------------------- frames


def draw(scans: list[Scan], count: int, rng: np.random.Generator) -> list[Place]:
    """`count` episodes, or all where there are fewer, at random and without repetition; in the order of the files."""
    ends = np.cumsum([len(scan.table) for scan in scans])
    numbers = np.sort(rng.choice(ends[-1], min(count, int(ends[-1])), replace=False))
    shards = np.searchsorted(ends, numbers, side="right")
    return [
        Place(scans[shard], int(number - ends[shard] + len(scans[shard].table)))
        for shard, number in zip(shards, numbers, strict=True)
    ]


def by_shard(places: Iterable[Place]) -> list[tuple[Scan, list[int]]]:
    """The same places as rows of each shard, so that every file is opened once."""
    rows: dict[Path, tuple[Scan, list[int]]] = {}
    for scan, row in places:
        rows.setdefault(scan.shard.fpath, (scan, []))[1].append(row)
    return list(rows.values())


def count_static(
    scan: Scan, rows: list[int], info: dict[str, Any], progress: Callable[[int], Any] = lambda num_episodes: None
) -> tuple[int, int]:
    """(frames that equal the one before in every byte, frames that have one before) of these episodes of a shard."""
    num_static = num_pairs = 0
    with opened(scan.shard, info) as file:
        frames = map_dataset(file, "frames")
        for row in rows:
            start, length = int(scan.table["start"][row]), int(scan.table["length"][row])
            for block in blocks(length - 1, int(np.prod(frames.shape[1:]))):
                read = frames[start + block.start : start + block.stop + 1]
                num_static += int((read[1:] == read[:-1]).all(axis=(1, 2, 3)).sum())
            num_pairs += length - 1
            progress(1)
    return num_static, num_pairs
