"""Recorded episodes on disk: `<root>/<name>/info.json` and HDF5 shards `<split>-00000.h5`, each of whole episodes.

A shard holds, for its N frames one after the other,
    frames   (N, H, W, 3) uint8 RGB; contiguous, so that readers memory-map it, or chunked when compressed
    actions  (N,) int16: actions[i] was taken at frame i, the episode's last one included (absent in imported videos)
    rewards  (N,) float32: rewards[i] follows actions[i] (absent in imported videos)
    episodes (E,) table of start, length, level_seed and end_reason (an index into END_REASONS)
A shard appears under its name only when it is complete, and `info.json` only when all of them are.
This module needs numpy and h5py alone: data generation imports it and never imports torch.
"""

import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

FORMAT = 1
END_REASONS = ("coin", "death", "time_limit")
UNFINISHED = "unfinished.json"  # the generator's config while shards are being written; info.json takes its place
TABLE = np.dtype([("start", "<i8"), ("length", "<i8"), ("level_seed", "<i8"), ("end_reason", "u1")])
# Which of our generator configs makes which dataset; only for the hint in an error.
MADE_BY = {
    "coinrun_v2.0.0": "coinrun_random",
    "coinrun_v2.0.0_test": "coinrun_random_test",
    "coinrun_plain": "coinrun_quickstart",
    "coinrun_plain_test": "coinrun_quickstart_test",
}
# Random windows decode whole chunks: few frames per chunk waste little, one frame alone compresses less well.
FRAMES_PER_CHUNK = 4


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

    `compression` is an HDF5 filter (lzf, gzip) or None. Raises OSError with one line where the disk is full.
    """
    lengths = np.array([len(episode.frames) for episode in episodes], dtype=np.int64)
    table = np.empty(len(episodes), dtype=TABLE)
    table["start"] = np.cumsum(lengths) - lengths
    table["length"] = lengths
    table["level_seed"] = [episode.level_seed for episode in episodes]
    table["end_reason"] = [END_REASONS.index(episode.end_reason) for episode in episodes]

    free, needed = shutil.disk_usage(fpath.parent).free, sum(episode.frames.nbytes for episode in episodes)
    if compression is None and needed > free:  # asked first: HDF5 itself does not recover from a full disk
        raise _full(fpath, f"it needs {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB")

    temporary = fpath.with_name(f".{fpath.name}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            file.attrs["format"] = FORMAT
            _write_frames(file, episodes, int(lengths.sum()), compression)
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


def _write_frames(file: h5py.File, episodes: Sequence[Episode], num_frames: int, compression: str | None) -> None:
    image_shape = episodes[0].frames.shape[1:]
    layout: dict[str, Any] = {}
    if compression is not None:
        chunk = (min(FRAMES_PER_CHUNK, num_frames), *image_shape)
        layout = {"compression": compression, "chunks": chunk, "shuffle": False}
    frames = file.create_dataset("frames", (num_frames, *image_shape), np.uint8, **layout)
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


def summarise_shard(fpath: Path) -> dict[str, Any]:
    """What `info.json` says of a shard: file, episodes, frames, sha256."""
    with open_shard(fpath) as file:
        return {
            "file": fpath.name,
            "episodes": len(file["episodes"]),
            "frames": len(file["frames"]),
            "sha256": str(file.attrs["sha256"]),
        }


def write_json(fpath: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file atomically."""
    temporary = fpath.with_name(f".{fpath.name}.tmp")
    with open(temporary, "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, fpath)


# ------------------------------------------------------------------------------------------------------------ reading


def read_info(root: Path | str, name: str) -> dict[str, Any]:
    """The `info.json` of a finished dataset; an error that says what to do where there is none."""
    folder = Path(root) / name
    fpath = folder / "info.json"
    command = "python data_generation/generate.py " + (f"--config={MADE_BY[name]}" if name in MADE_BY else "--list")
    if (folder / UNFINISHED).exists() and not fpath.exists():
        raise ValueError(f"dataset {folder} is unfinished; run its generator again to go on: {command}")
    if not fpath.exists():
        existing = sorted(entry.parent.name for entry in Path(root).glob("*/info.json"))
        nearest = difflib.get_close_matches(name, existing, n=3, cutoff=0.4) or existing[:5]
        hint = f"nearest existing: {', '.join(nearest)}" if nearest else "that folder holds no datasets"
        raise FileNotFoundError(
            f"dataset_name={name}: no {fpath}; {hint}; set dataset_name or dataset_root_dpath, or make it: {command}"
        )
    try:
        info = json.loads(fpath.read_text())
    except ValueError as error:
        raise ValueError(f"{fpath} is not readable JSON ({error}); generate the dataset again") from None
    if info.get("format") != FORMAT:
        raise ValueError(f"{fpath} has format {info.get('format')}, this version reads format {FORMAT}")
    return info


def open_shard(fpath: Path) -> h5py.File:
    """Open a shard for reading; one clear line where the file is missing, truncated or damaged."""
    if not fpath.exists():
        raise FileNotFoundError(f"shard {fpath} is missing; run its generator again")
    try:
        file = h5py.File(fpath, "r")
        missing = {"frames", "episodes"} - set(file)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise _damaged(fpath, reason) from None
    if missing:
        file.close()
        raise _damaged(fpath, f"it has no {' and no '.join(sorted(missing))}")
    return file


def _damaged(fpath: Path, reason: str) -> ValueError:
    return ValueError(f"shard {fpath} is damaged: {reason}; delete that file and run its generator again")


class Episodes:
    """The episodes of one split of a dataset, read from the disk as they are asked for.

    Holds only the episode tables in memory. Survives pickling and forking: every process opens the shards itself.
    Raises ValueError or FileNotFoundError with one line for a missing dataset or split and for damaged shards.
    """

    def __init__(self, root: Path | str, name: str, split: str):
        self.info = read_info(root, name)
        splits = self.info["splits"]
        if split not in splits:
            raise ValueError(f"split={split}: dataset {name} in {root} has {', '.join(splits) or 'no splits'}")
        self.name, self.split = name, split
        self.image_size: tuple[int, int] = tuple(self.info["image_size"])
        self.action_names: list[str] | None = self.info["action_names"]
        self._fpaths = [Path(root) / name / shard["file"] for shard in splits[split]["shards"]]
        tables = [self._read_table(fpath) for fpath in self._fpaths]
        table = np.concatenate(tables) if tables else np.empty(0, TABLE)
        if not len(table):
            raise ValueError(f"split={split} of dataset {name} in {root} holds no episodes")
        self.starts, self.lengths, self.level_seeds, self.end_reasons = (
            np.ascontiguousarray(table[field]) for field in ("start", "length", "level_seed", "end_reason")
        )
        self._shard_of = np.repeat(np.arange(len(tables)), [len(rows) for rows in tables])
        self._opened: dict[tuple[int, str], Any] = {}
        self._opened_by = os.getpid()

    def _read_table(self, fpath: Path) -> np.ndarray:
        with open_shard(fpath) as file:
            frames, table = file["frames"], file["episodes"]
            expected = (len(frames), *self.image_size, 3)
            if frames.dtype != np.uint8 or frames.shape != expected:
                raise _damaged(fpath, f"frames are {frames.dtype} {frames.shape}, expected uint8 {expected}")
            if self.action_names is not None and "actions" not in file:
                raise _damaged(fpath, "it has no actions, but info.json names some")
            for name in ("actions", "rewards"):
                if name in file and file[name].shape != (len(frames),):
                    raise _damaged(fpath, f"{name} must be one per frame ({len(frames)})")
            if table.dtype.names != TABLE.names:
                raise _damaged(fpath, f"its episode table has {table.dtype}, expected {', '.join(TABLE.names)}")
            table = table[()].astype(TABLE)
            ends = table["start"] + table["length"]
            if len(table) and (table["start"].min() < 0 or table["length"].min() < 1 or ends.max() > len(frames)):
                raise _damaged(fpath, f"its episode table reaches beyond its {len(frames)} frames")
            return table

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    @property
    def num_episodes(self) -> int:
        return len(self.lengths)

    @property
    def num_actions(self) -> int:
        return len(self.action_names or ())

    @property
    def has_actions(self) -> bool:
        return self.action_names is not None

    def frames(self, episode: int, start: int, length: int, skip: int = 1) -> np.ndarray:
        """`length` frames from frame `start` of an episode on, every `skip`-th: uint8 (length, H, W, 3), not a copy."""
        return self._rows("frames", episode, start, (length - 1) * skip + 1)[::skip]

    def actions(self, episode: int, start: int, length: int, skip: int = 1) -> np.ndarray | None:
        """The `length - 1` actions taken at those frames but the last: int16; None in videos without actions."""
        if not self.has_actions:
            return None
        return self._rows("actions", episode, start, (length - 1) * skip)[::skip]

    def rewards(self, episode: int, start: int, length: int, skip: int = 1) -> np.ndarray | None:
        """The `length - 1` rewards collected between those frames: float32, summed over skipped ones."""
        if not self.has_actions:
            return None
        return self._rows("rewards", episode, start, (length - 1) * skip).reshape(length - 1, skip).sum(1)

    def gather(self, name: str, episodes: np.ndarray, starts: np.ndarray, out: np.ndarray, skip: int = 1) -> None:
        """Fill out[i] with rows of the dataset `name` (frames or actions) from frame starts[i] of episodes[i] on.

        What `frames` and `actions` give, for a whole batch and without their cost per call.
        """
        span = (out.shape[1] - 1) * skip + 1
        assert (starts + span <= self.lengths[episodes]).all() and (starts >= 0).all()
        shards = self._shard_of[episodes].tolist()
        firsts = (self.starts[episodes] + starts).tolist()
        for row, shard, first in zip(out, shards, firsts, strict=True):
            row[...] = self._array(shard, name)[first : first + span : skip]

    def _rows(self, name: str, episode: int, start: int, count: int) -> np.ndarray:
        assert start >= 0 and start + count <= self.lengths[episode], (episode, start, count, self.lengths[episode])
        first = int(self.starts[episode]) + start
        return self._array(int(self._shard_of[episode]), name)[first : first + count]

    def _array(self, shard: int, name: str) -> Any:
        """A shard's dataset: memory-mapped where it is contiguous, else the h5py dataset; opened once per process."""
        if self._opened_by != os.getpid():  # forked: HDF5 handles of the parent must not be used
            self._opened, self._opened_by = {}, os.getpid()
        if (shard, name) not in self._opened:
            self._opened[shard, name] = map_dataset(open_shard(self._fpaths[shard]), name)
        return self._opened[shard, name]


def map_dataset(file: h5py.File, name: str) -> Any:
    """The dataset as a read-only memory map (the file is then closed), or as it is when it is chunked."""
    dataset = file[name]
    offset = dataset.id.get_offset()
    if offset is None:
        return dataset
    mapped = np.memmap(file.filename, dataset.dtype, "r", offset, dataset.shape)
    file.close()
    return np.asarray(mapped)  # slicing the memmap subclass costs more than the copy of a small clip
