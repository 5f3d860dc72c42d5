"""A shard, an HDF5 file of whole episodes: how it is summed up and opened (contents: `data/episodes.py`)."""

import errno
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data.content_hash import stored_hash
from data.shard_writing import TABLE
from data.storage import map_arrays, missing_filter, open_hdf5

NATURAL_ENDS = ("coin", "death")  # the others cut an episode off
LISTED = {"lengths": "length", "level_seeds": "level_seed", "end_reasons": "end_reason"}  # in info.json; starts add up

# ------------------------------------------------------------------------------------------------ what info.json says


def summarise_shard(fpath: Path) -> dict[str, Any]:
    """What `info.json` says of a shard: file, its size, episodes, frames, hash, and the episode table as text."""
    with open_shard(fpath) as file:
        table = file["episodes"][()]
        return {
            "file": fpath.name,
            "bytes": fpath.stat().st_size,
            "episodes": len(table),
            "frames": len(file["frames"]),
            "hash": stored_hash(file.attrs),
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


def checked_table(fpath: Path, file: h5py.File, image_size: tuple[int, int], num_actions: int) -> np.ndarray:
    """An open shard's episode table; ValueError where it, the frames, actions or rewards are not as they must be.

    num_actions: how many the dataset has; 0 where it has none.
    """
    frames, table = file["frames"], file["episodes"]
    expected = (len(frames), *image_size, 3)
    if frames.dtype != np.uint8 or frames.shape != expected:
        raise damaged(fpath, f"frames are {frames.dtype} {frames.shape}, expected uint8 {expected}")
    if num_actions and "actions" not in file:
        raise damaged(fpath, "it has no actions, but info.json names some")
    for name in ("actions", "rewards"):
        if name in file and file[name].shape != (len(frames),):
            raise damaged(fpath, f"{name} must be one per frame ({len(frames)})")
    if num_actions:
        _check_actions(fpath, file["actions"], num_actions)
    if "rewards" in file and file["rewards"].dtype.kind != "f":
        raise damaged(fpath, f"rewards are {file['rewards'].dtype}, expected fractional numbers")
    if table.dtype.names != TABLE.names:
        raise damaged(fpath, f"its episode table has {table.dtype}, expected {', '.join(TABLE.names)}")
    table = table[()].astype(TABLE)
    ends = table["start"] + table["length"]
    if len(table) and (table["start"].min() < 0 or table["length"].min() < 1 or ends.max() > len(frames)):
        raise damaged(fpath, f"its episode table reaches beyond its {len(frames)} frames")
    return table


def _check_actions(fpath: Path, actions: h5py.Dataset, num_actions: int) -> None:
    """One that a model does not know would end a training on a GPU without a word about where it came from."""
    expected = f"expected whole numbers from 0 to {num_actions - 1}, as info.json names them"
    if actions.dtype.kind not in "iu":
        raise damaged(fpath, f"actions are {actions.dtype}, {expected}")
    try:
        values = actions[()]
    except (OSError, RuntimeError) as error:
        raise damaged(fpath, str(error).splitlines()[0]) from None
    if len(values) and not 0 <= values.min() <= values.max() < num_actions:
        raise damaged(fpath, f"actions reach from {values.min()} to {values.max()}, {expected}")


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
