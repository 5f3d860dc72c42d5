"""Whether a dataset is what its `info.json` says: the checks of one shard, one by one, and of the folder around them.

Every check raises a ValueError of one line that names the file, what is wrong with it and the cure.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from data import locks
from data.content_hash import ContentHash, shown_hash, stored_hash
from data.episodes import END_REASONS, MADE_BY, READABLE, TABLE, UNFINISHED, listed_table, map_dataset, open_shard

BLOCK_BYTES = 2**25  # of frames read at once
OURS = {"info.json", UNFINISHED, locks.FILE, "tokens"}  # files that belong to a dataset beside its shards
# What h5py raises where a file's structure or contents are broken: any of these, with no common parent.
BROKEN = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, MemoryError)


class Shard(NamedTuple):
    """A shard as `info.json` names it; None where there is no info to say it."""

    split: str
    fpath: Path
    num_episodes: int | None = None
    num_frames: int | None = None
    hash: str | None = None
    table: np.ndarray | None = None  # (E,) of TABLE; None in a dataset of before its episodes were listed, too


class Records(NamedTuple):
    """All of a shard but its frames, checked."""

    table: np.ndarray  # (E,) of TABLE; episodes lie one after the other
    actions: np.ndarray | None  # (N,) integers in range
    rewards: np.ndarray | None  # (N,) finite


# ------------------------------------------------------------------------------------------------------- what is named


def named_shards(folder: Path, info: dict[str, Any]) -> list[Shard]:
    """The shards that `info.json` names, in its order; ValueError where it is not built as it must be."""
    try:
        height, width = info["image_size"]
        if min(height, width) < 1 or info["action_names"] == []:
            raise ValueError("nothing can be of that size")
        shards = [
            Shard(
                split=split,
                fpath=folder / entry["file"],
                num_episodes=int(entry["episodes"]),
                num_frames=int(entry["frames"]),
                hash=stored_hash(entry),
                table=listed_table(entry),
            )
            for split, content in info["splits"].items()
            for entry in content["shards"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else "is not built as data/episodes.py says"
        raise ValueError(f"{folder / 'info.json'} {what}; delete {folder} and make the dataset again") from None
    seen = set()
    for shard in shards:
        if shard.fpath in seen or shard.fpath.parent != folder:
            where = "twice" if shard.fpath in seen else "outside its folder"
            raise ValueError(f"{folder / 'info.json'} names {shard.fpath} {where}; delete {folder} and make it again")
        seen.add(shard.fpath)
    return shards


def unnamed_shards(folder: Path) -> list[Shard]:
    """The shards of a dataset without a readable `info.json`, as an interrupted run leaves it."""
    return [Shard(fpath.stem.rpartition("-")[0], fpath) for fpath in sorted(folder.glob("*.h5"))]


def check_totals(folder: Path, info: dict[str, Any], shards: list[Shard]) -> list[str]:
    """What is wrong with the splits as `info.json` has them, a line for each."""
    problems = []
    for split, content in info["splits"].items():
        own = [shard for shard in shards if shard.split == split]
        for key, total in (("episodes", sum(s.num_episodes for s in own)), ("frames", sum(s.num_frames for s in own))):
            if content.get(key) != total:
                problems.append(
                    f"{folder / 'info.json'} says that split {split} has {content.get(key)} {key}, but its shards "
                    f"add up to {total}; correct the number"
                )
        if not sum(shard.num_episodes for shard in own):
            problems.append(f"{folder / 'info.json'} has the split {split} without episodes; remove it there")
    if not info["splits"]:
        problems.append(f"{folder / 'info.json'} has no splits; {cure(info)}")
    return problems


def unknown_files(folder: Path, shards: list[Shard]) -> list[str]:
    """A line for each file and folder that does not belong to the dataset; they do no harm."""
    known = OURS | {shard.fpath.name for shard in shards}
    lines = []
    for entry in sorted(folder.iterdir()):
        if entry.name in known:
            continue
        if entry.name.endswith(".tmp"):
            lines.append(f"{entry} was left by an interrupted run; it can be deleted")
        else:
            lines.append(f"{entry}{'/' * entry.is_dir()} is not named by info.json; not checked")
    return lines


# ------------------------------------------------------------------------------------------------------------ one shard


def cure(info: dict[str, Any]) -> str:
    """What to do about a damaged shard of this dataset."""
    origin, name = info.get("generator") or {}, info.get("name")
    if "importer" in origin:
        how = f"run its import (python -m {origin['importer']}) again"
    elif name in MADE_BY:
        how = f"run its generator again (python data_generation/generate.py --config={MADE_BY[name]})"
    elif "config" in origin:
        how = "run its generator again with the config of before"
    else:
        return "delete that file and make the dataset again"
    return f"delete that file and {how}: it writes only what is missing"


@contextmanager
def opened(shard: Shard, info: dict[str, Any]) -> Iterator[h5py.File]:
    """The shard, open for reading; whatever its contents raise becomes one line that names it.

    OSError where it cannot be opened, ValueError where it is damaged.
    """
    try:
        file = open_shard(shard.fpath)  # its ValueErrors and OSErrors are such lines already
    except (AttributeError, TypeError, MemoryError) as error:
        raise _damaged(shard, info, error) from None
    try:
        with file:
            yield file
    except BROKEN as error:
        raise _damaged(shard, info, error) from None


def _damaged(shard: Shard, info: dict[str, Any], error: Exception) -> ValueError:
    reason = " ".join(str(error).strip("'\"").split()) or type(error).__name__
    return ValueError(f"shard {shard.fpath} is damaged: {reason}; {cure(info)}")


def check_shard(shard: Shard, info: dict[str, Any], progress: Callable[[int], Any] = lambda num_frames: None) -> None:
    """Read every byte of a shard; ValueError where it is not what was written, or not what `info` says.

    progress: told how many more frames have been read.
    """
    with opened(shard, info) as file:
        records = check_records(file, shard, info)
        stored = stored_hash(file.attrs)
        computed = _hash(file, records, ContentHash(stored), progress)
        if computed != stored:
            raise ValueError(f"its contents hash to {shown_hash(computed)}, but {shown_hash(stored)} was written")
        listed = computed if shard.hash is None else shard.hash
        if computed != listed:
            raise ValueError(f"its contents hash to {shown_hash(computed)}, but info.json says {shown_hash(listed)}")


def check_records(file: h5py.File, shard: Shard, info: dict[str, Any]) -> Records:
    """Check and return all that can be known without reading frames."""
    if file.attrs.get("format") not in READABLE:
        raise ValueError(f"it has format {file.attrs.get('format')}, this version reads 1 and 2")
    num_frames = _check_frames(file["frames"], shard, info)
    table = _check_table(file["episodes"], num_frames, shard)
    actions, rewards = _column(file, "actions", "i", num_frames), _column(file, "rewards", "f", num_frames)
    if info["action_names"] is not None and actions is None:
        raise ValueError("it has no actions, but info.json names some")
    if actions is not None:
        limit = len(info["action_names"] or ()) or np.iinfo(actions.dtype).max
        _check_each(actions, (actions >= 0) & (actions < limit), f"action {{}}, expected 0 to {limit - 1}")
    if rewards is not None:
        _check_each(rewards, np.isfinite(rewards), "reward {}, expected a finite number")
    return Records(table, actions, rewards)


def _check_frames(frames: h5py.Dataset, shard: Shard, info: dict[str, Any]) -> int:
    size = tuple(info["image_size"] or frames.shape[1:3])
    expected = (len(frames), *size, 3)
    if frames.dtype != np.uint8 or frames.shape != expected:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, expected uint8 {expected}")
    if shard.num_frames is not None and len(frames) != shard.num_frames:
        raise ValueError(f"it has {len(frames)} frames, but info.json says {shard.num_frames}")
    return len(frames)


def _check_table(dataset: h5py.Dataset, num_frames: int, shard: Shard) -> np.ndarray:
    if dataset.dtype.names != TABLE.names or dataset.ndim != 1:
        raise ValueError(f"its episode table has {dataset.dtype}, expected {', '.join(TABLE.names)}")
    if shard.num_episodes is not None and len(dataset) != shard.num_episodes:
        raise ValueError(f"it has {len(dataset)} episodes, but info.json says {shard.num_episodes}")
    if not len(dataset):
        raise ValueError("it has no episodes")
    table = dataset[()].astype(TABLE)
    lengths = table["length"]
    _check_each(lengths, (lengths > 0) & (lengths <= num_frames), f"length {{}}, expected 1 to {num_frames}", "episode")
    starts = np.cumsum(lengths) - lengths
    wrong = np.flatnonzero(table["start"] != starts)
    if len(wrong):
        first = wrong[0]
        raise ValueError(
            f"episode {first} starts at frame {table['start'][first]}, expected {starts[first]}: episodes follow one "
            "another without overlap or gap"
        )
    if lengths.sum() != num_frames:
        raise ValueError(f"its episode table covers {lengths.sum()} frames of {num_frames}")
    reasons = table["end_reason"]
    _check_each(
        reasons, reasons < len(END_REASONS), f"end reason {{}}, expected 0 to {len(END_REASONS) - 1}", "episode"
    )
    if shard.table is not None and not np.array_equal(table, shard.table):
        raise ValueError("its episodes are not those that info.json lists")
    return table


def _column(file: h5py.File, name: str, kind: str, num_frames: int) -> np.ndarray | None:
    if name not in file:
        return None
    column = file[name]
    if column.dtype.kind != kind or column.shape != (num_frames,):
        expected = f"{'integers' if kind == 'i' else 'floats'} ({num_frames},)"
        raise ValueError(f"{name} are {column.dtype} {column.shape}, expected {expected}")
    return column[()]


def _check_each(values: np.ndarray, is_good: np.ndarray, message: str, what: str = "frame") -> None:
    bad = np.flatnonzero(~is_good)
    if len(bad):
        raise ValueError(f"{what} {bad[0]} has {message.format(values[bad[0]])} ({len(bad)} such in all)")


def blocks(length: int, bytes_each: int) -> Iterator[slice]:
    """Slices that cut `length` items into pieces of at most BLOCK_BYTES."""
    step = max(1, BLOCK_BYTES // bytes_each)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _hash(file: h5py.File, records: Records, hashed: ContentHash, progress: Callable[[int], Any]) -> str:
    """What `data.episodes.content_hash` gave when the shard was written, in constant memory."""
    bytes_each = int(np.prod(file["frames"].shape[1:]))
    frames = map_dataset(file, "frames")
    for start, length in zip(records.table["start"].tolist(), records.table["length"].tolist(), strict=True):
        for block in blocks(length, bytes_each):
            hashed.add_frames(frames[start + block.start : start + block.stop])
            progress(block.stop - block.start)
        of_episode = slice(start, start + length)
        hashed.add_columns(*(None if part is None else part[of_episode] for part in records[1:]))
    return hashed.finish(records.table)
