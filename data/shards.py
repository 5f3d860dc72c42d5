"""A shard, an HDF5 file of whole episodes: how it is written, summed up and opened (contents: `data/episodes.py`)."""

import errno
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from data.storage import frames_layout, map_arrays, missing_filter, open_hdf5

FORMAT = 1
END_REASONS = ("coin", "death", "time_limit", "end_of_recording")
NATURAL_ENDS = ("coin", "death")  # the others cut an episode off
TABLE = np.dtype([("start", "<i8"), ("length", "<i8"), ("level_seed", "<i8"), ("end_reason", "u1")])
LISTED = {"lengths": "length", "level_seeds": "level_seed", "end_reasons": "end_reason"}  # in info.json; starts add up


class Episode(NamedTuple):
    """One episode of T frames, from the first frame after the reset."""

    frames: np.ndarray  # (T, H, W, 3) uint8
    actions: np.ndarray | None  # (T,) int16
    rewards: np.ndarray | None  # (T,) float32
    level_seed: int
    end_reason: str  # one of END_REASONS


# ------------------------------------------------------------------------------------------------------------ writing


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.h5"


def write_shard(fpath: Path, episodes: Sequence[Episode], *, compression: str | None = None) -> None:
    """Write whole episodes into one shard, atomically: `fpath` appears when everything is on the disk.

    compression: None, lzf, gzip or blosc. Raises OSError with one line where the disk is full, ValueError for another
    compression or one whose package is missing.
    """
    lengths = np.array([len(episode.frames) for episode in episodes], dtype=np.int64)
    table = np.empty(len(episodes), dtype=TABLE)
    table["start"] = np.cumsum(lengths) - lengths
    table["length"] = lengths
    table["level_seed"] = [episode.level_seed for episode in episodes]
    table["end_reason"] = [END_REASONS.index(episode.end_reason) for episode in episodes]

    shape = (int(lengths.sum()), *episodes[0].frames.shape[1:])
    layout = frames_layout(compression, shape)
    free, needed = shutil.disk_usage(fpath.parent).free, sum(episode.frames.nbytes for episode in episodes)
    if compression is None and needed > free:  # asked first: HDF5 itself does not recover from a full disk
        raise _full(fpath, f"it needs {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB")

    temporary = fpath.with_name(f".{fpath.name}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            file.attrs["format"] = FORMAT
            _fill(file.create_dataset("frames", shape, np.uint8, **layout), episodes)
            if episodes[0].actions is not None:
                file["actions"] = np.concatenate([episode.actions for episode in episodes]).astype("<i2")
            if episodes[0].rewards is not None:
                file["rewards"] = np.concatenate([episode.rewards for episode in episodes]).astype("<f4")
            file["episodes"] = table
            file.attrs["sha256"] = content_hash(episodes, table)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, fpath)
    except (OSError, RuntimeError) as error:  # h5py raises either where writing fails
        raise _full(fpath, str(error).splitlines()[0]) from None
    finally:
        temporary.unlink(missing_ok=True)


def _full(fpath: Path, reason: str) -> OSError:
    return OSError(f"cannot write {fpath}: {reason}; free some space or choose another folder")


def _fill(frames: h5py.Dataset, episodes: Sequence[Episode]) -> None:
    start = 0
    for episode in episodes:
        frames[start : start + len(episode.frames)] = episode.frames
        start += len(episode.frames)


def content_hash(episodes: Sequence[Episode], table: np.ndarray) -> str:
    """SHA-256 of what a shard says, however it is stored: each episode's frames, actions, rewards, then the table."""
    digest = hashlib.sha256()
    for episode in episodes:
        digest.update(np.ascontiguousarray(episode.frames))
        if episode.actions is not None:
            digest.update(np.ascontiguousarray(episode.actions, dtype="<i2"))
        if episode.rewards is not None:
            digest.update(np.ascontiguousarray(episode.rewards, dtype="<f4"))
    digest.update(table)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ what info.json says


def summarise_shard(fpath: Path) -> dict[str, Any]:
    """What `info.json` says of a shard: file, its size, episodes, frames, sha256, and the episode table as text."""
    with open_shard(fpath) as file:
        table = file["episodes"][()]
        return {
            "file": fpath.name,
            "bytes": fpath.stat().st_size,
            "episodes": len(table),
            "frames": len(file["frames"]),
            "sha256": str(file.attrs["sha256"]),
            **{key: " ".join(map(str, table[field].tolist())) for key, field in LISTED.items()},
        }


def listed_table(entry: dict[str, Any]) -> np.ndarray | None:
    """The episode table in a shard's entry of `info.json`; None in datasets of before it was listed there."""
    if not entry.keys() >= {"bytes", *LISTED}:
        return None
    table = np.empty(entry["episodes"], TABLE)
    for key, field in LISTED.items():
        table[field] = [int(word) for word in entry[key].split()]
    table["start"] = np.cumsum(table["length"]) - table["length"]
    return table


# ------------------------------------------------------------------------------------------------------------ reading


def open_shard(fpath: Path) -> h5py.File:
    """Open a shard for reading; one clear line where the file is missing, truncated, damaged or needs a package."""
    try:
        file = open_hdf5(fpath)
    except FileNotFoundError:
        raise FileNotFoundError(f"shard {fpath} is missing; run its generator again") from None
    except (OSError, RuntimeError) as error:
        if getattr(error, "errno", None):  # the system's doing, not the file's
            raise _not_opened(fpath, error) from None
        raise damaged(fpath, str(error).splitlines()[0]) from None
    try:
        missing = {"frames", "episodes"} - set(file)
        unknown = None if missing else missing_filter(file["frames"])
    except (OSError, RuntimeError, KeyError) as error:
        raise damaged(fpath, str(error).splitlines()[0]) from None
    if missing or unknown:
        file.close()
    if missing:
        raise damaged(fpath, f"it has no {' and no '.join(sorted(missing))}")
    if unknown:
        raise ValueError(f"shard {fpath} is compressed with {unknown}; to read it: pip install hdf5plugin")
    return file


def checked_table(fpath: Path, file: h5py.File, image_size: tuple[int, int], needs_actions: bool) -> np.ndarray:
    """An open shard's episode table; ValueError where it, the frames, actions or rewards are not as they must be."""
    frames, table = file["frames"], file["episodes"]
    expected = (len(frames), *image_size, 3)
    if frames.dtype != np.uint8 or frames.shape != expected:
        raise damaged(fpath, f"frames are {frames.dtype} {frames.shape}, expected uint8 {expected}")
    if needs_actions and "actions" not in file:
        raise damaged(fpath, "it has no actions, but info.json names some")
    for name in ("actions", "rewards"):
        if name in file and file[name].shape != (len(frames),):
            raise damaged(fpath, f"{name} must be one per frame ({len(frames)})")
    if table.dtype.names != TABLE.names:
        raise damaged(fpath, f"its episode table has {table.dtype}, expected {', '.join(TABLE.names)}")
    table = table[()].astype(TABLE)
    ends = table["start"] + table["length"]
    if len(table) and (table["start"].min() < 0 or table["length"].min() < 1 or ends.max() > len(frames)):
        raise damaged(fpath, f"its episode table reaches beyond its {len(frames)} frames")
    return table


def open_arrays(fpath: Path, file: h5py.File) -> dict[str, Any]:
    """The frames, actions and rewards of an open shard, those that it has, ready to be read at random."""
    try:
        return map_arrays(file, [name for name in ("frames", "actions", "rewards") if name in file])
    except OSError as error:
        raise _not_opened(fpath, error) from None


def map_dataset(file: h5py.File, name: str) -> Any:
    """The dataset as a read-only memory map (the file is then closed), or as it is when it is chunked."""
    return file[name] if file[name].chunks else map_arrays(file, [name])[name]


def damaged(fpath: Path, reason: str) -> ValueError:
    return ValueError(f"shard {fpath} is damaged: {reason}; delete that file and run its generator again")


def _not_opened(fpath: Path, error: OSError) -> OSError:
    cures = {
        errno.EACCES: "change its permissions",
        errno.EMFILE: "raise `ulimit -n`, or make the dataset again with more episodes_per_shard",
    }
    cure = cures.get(error.errno, "see to its disk")
    return OSError(f"shard {fpath} cannot be opened: {os.strerror(error.errno)}; {cure}")
