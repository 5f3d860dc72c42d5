"""Recorded episodes on disk: `<root>/<name>/info.json` and HDF5 shards `<split>-00000.h5`, each of whole episodes.

A shard holds, for its N frames one after the other,
    frames   (N, H, W, 3) uint8 RGB; contiguous, so that readers memory-map it, or chunked when compressed
             (`data/storage.py`)
    actions  (N,) int16: actions[i] was taken at frame i, the episode's last one included (absent in imported videos)
    rewards  (N,) float32: rewards[i] follows actions[i] (absent in imported videos)
    episodes (E,) table of start, length, level_seed and end_reason (an index into END_REASONS)
A shard appears under its name only when it is complete, and `info.json` only when all of them are. What `info.json`
lists of each shard includes its size in bytes and its episodes, so that a dataset opens without opening its shards.
This module needs numpy and h5py alone: data generation imports it and never imports torch.
"""

import difflib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.shard_writing import (
    END_REASONS,
    FORMAT,
    READABLE,
    TABLE,
    Episode,
    ShardWriter,
    content_hash,
    frames_room,
    shard_name,
    write_shard,
)
from data.shards import (
    NATURAL_ENDS,
    checked_table,
    damaged,
    listed_table,
    map_dataset,
    open_arrays,
    open_shard,
    summarise_shard,
)
from data.storage import CompressedArray, DecompressionError, disk_waits, read_ahead

# Besides what is defined here: the shards, for those who write datasets and import this module alone.
__all__ = [
    "END_REASONS",
    "FORMAT",
    "MADE_BY",
    "NATURAL_ENDS",
    "READABLE",
    "TABLE",
    "UNFINISHED",
    "Episode",
    "Episodes",
    "ShardWriter",
    "content_hash",
    "frames_room",
    "map_dataset",
    "open_shard",
    "read_info",
    "shard_name",
    "summarise_shard",
    "write_json",
    "write_shard",
]

UNFINISHED = "unfinished.json"  # the generator's config while shards are being written; info.json takes its place
# Which of our generator configs makes which dataset; only for the hint in an error.
MADE_BY = {
    "coinrun_v2.0.0": "coinrun_random",
    "coinrun_v2.0.0_test": "coinrun_random_test",
    "coinrun_v2.1.0": "coinrun_ppo",
    "coinrun_v2.1.0_test": "coinrun_ppo_test",
    "coinrun_plain": "coinrun_quickstart",
    "coinrun_plain_test": "coinrun_quickstart_test",
}
IS_NATURAL = np.isin(np.arange(256), [END_REASONS.index(reason) for reason in NATURAL_ENDS])  # by reason, a byte
READS_AHEAD = 16  # batches read ahead from the disk after one that had to wait for it


def write_json(fpath: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file atomically. Raises OSError with one line where that fails."""
    temporary = fpath.with_name(f".{fpath.name}.tmp")
    try:
        with open(temporary, "w") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, fpath)
    except OSError as error:
        raise OSError(
            f"cannot write {fpath} ({error.strerror}); free some space or choose another folder, then run this again"
        ) from None


def read_info(root: Path | str, name: str) -> dict[str, Any]:
    """The `info.json` of a finished dataset; an error that says what to do where there is none."""
    folder = Path(root) / name
    fpath = folder / "info.json"
    command = "bash run.sh --mode=generate --" + (f"config={MADE_BY[name]}" if name in MADE_BY else "list")
    if (folder / UNFINISHED).exists() and not fpath.exists():
        command = _importer(folder / UNFINISHED) or command
        raise ValueError(f"dataset {folder} is unfinished; run its generator again to go on: {command}")
    if not fpath.exists():
        existing = sorted(entry.parent.name for entry in Path(root).glob("*/info.json"))
        nearest = difflib.get_close_matches(name, existing, n=3, cutoff=0.4) or existing[:5]
        hint = f"nearest existing: {', '.join(nearest)}" if nearest else "that folder holds no datasets"
        of_videos = "" if name in MADE_BY else f", or of videos: bash run.sh --mode=import --input=FOLDER --name={name}"
        raise FileNotFoundError(
            f"dataset_name={name}: no {fpath}; {hint}; set dataset_name or dataset_root_dpath, or make it: {command}"
            f"{of_videos}"
        )
    try:
        info = json.loads(fpath.read_text())
    except ValueError as error:
        raise ValueError(f"{fpath} is not readable JSON ({error}); generate the dataset again") from None
    if not isinstance(info, dict) or info.get("format") is None:
        raise ValueError(f"{fpath} is not the info.json of a dataset; generate the dataset again")
    if info["format"] not in READABLE:
        raise ValueError(f"{fpath} has format {info['format']}, this version reads 1 and 2")
    return info


def _check_info(fpath: Path, info: dict[str, Any]) -> None:
    """Raise ValueError where an `info.json` lacks what reading needs: somebody wrote or changed it by hand."""
    try:
        height, width = info["image_size"]
        names, listed = info["action_names"], [shard for split in info["splits"].values() for shard in split["shards"]]
        is_good = min(height, width) >= 1 and (names is None or len(names) > 0)
        is_good &= all(isinstance(shard["file"], str) and shard["episodes"] >= 0 for shard in listed)
        reason = "a size, an action list or a shard of nothing"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        is_good, reason = False, f"no {error}" if isinstance(error, KeyError) else str(error)
    if not is_good:
        raise ValueError(
            f"{fpath} is not built as data/episodes.py says ({reason}); correct it, or make the dataset again"
        )


def _importer(fpath: Path) -> str | None:
    """The command that makes an imported dataset, as its unfinished.json names it; None for a generated one."""
    try:
        importer = json.loads(fpath.read_text()).get("importer")
    except (ValueError, AttributeError):
        return None
    return f"python -m {importer} with the arguments of before" if importer else None


class Places(NamedTuple):
    """Where stretches of frames lie: of each one, the number of its shard and its first frame there; (B,) int64."""

    shards: np.ndarray
    firsts: np.ndarray


class Episodes:
    """The episodes of one split of a dataset, read from the disk as they are asked for.

    Holds only the episode tables in memory. Survives pickling and forking: every process opens the shards itself.
    Raises ValueError or FileNotFoundError with one line for a missing dataset or split and for damaged shards.
    """

    def __init__(self, root: Path | str, name: str, split: str):
        self.info = read_info(root, name)
        _check_info(Path(root) / name / "info.json", self.info)
        splits = self.info["splits"]
        if split not in splits:
            there = ", ".join(splits) or "no splits"
            raise ValueError(f"split={split}: dataset {name} in {root} has {there} only; set another dataset_name")
        self.name, self.split = name, split
        self.image_size: tuple[int, int] = tuple(self.info["image_size"])
        self.action_names: list[str] | None = self.info["action_names"]
        shards = splits[split]["shards"]
        self.fpaths = [Path(root) / name / shard["file"] for shard in shards]
        tables = [self._table(fpath, shard) for fpath, shard in zip(self.fpaths, shards, strict=True)]
        table = np.concatenate(tables) if tables else np.empty(0, TABLE)
        if not len(table):
            raise ValueError(f"split={split} of dataset {name} in {root} holds no episodes")
        self.starts, self.lengths, self.level_seeds, self.end_reasons = (
            np.ascontiguousarray(table[field]) for field in ("start", "length", "level_seed", "end_reason")
        )
        self._shard_of = np.repeat(np.arange(len(tables)), [len(rows) for rows in tables])
        self._forget()

    def _forget(self) -> None:
        self._opened: dict[int, dict[str, Any]] = {}  # arrays of the shards that this process has opened
        self._opened_by = os.getpid()
        self._waits, self._reads_ahead = disk_waits(), 0  # at the last batch; so many batches more

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def _table(self, fpath: Path, listing: dict[str, Any]) -> np.ndarray:
        """A shard's episodes as `info.json` lists them; where it does not or the size differs, as the shard does."""
        try:
            listed = listed_table(listing)
        except ValueError as error:
            reason = f"{fpath.parent / 'info.json'} lists the episodes of {fpath.name} wrongly ({error})"
            raise ValueError(f"{reason}; remove bytes from its entry, or make the dataset again") from None
        if listed is not None and fpath.exists() and fpath.stat().st_size == listing["bytes"]:
            return listed
        with open_shard(fpath) as file:
            return checked_table(fpath, file, self.image_size, self.num_actions)

    @property
    def num_episodes(self) -> int:
        return len(self.lengths)

    @property
    def num_actions(self) -> int:
        return len(self.action_names or ())

    @property
    def has_actions(self) -> bool:
        return self.action_names is not None

    @property
    def has_rewards(self) -> bool:
        return "rewards" in self._shards([0])[0]

    def came_to_an_end(self, episodes: np.ndarray) -> np.ndarray:
        """Of each of these episodes, whether the game itself ended it (coin, death): bool. Others were cut off."""
        return IS_NATURAL[self.end_reasons[episodes]]

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
        if not self.has_rewards:
            return None
        return self._rows("rewards", episode, start, (length - 1) * skip).reshape(length - 1, skip).sum(1)

    def places(self, episodes: np.ndarray, starts: np.ndarray, span: int) -> Places:
        """Where the `span` frames from frame starts[i] of episodes[i] on lie."""
        assert (starts + span <= self.lengths[episodes]).all() and (starts >= 0).all()
        return Places(self._shard_of[episodes], self.starts[episodes] + starts)

    def waits_for_disk(self) -> bool:
        """Whether the disk had to be waited for lately, so that reading ahead pays; to be asked once a batch."""
        waits = disk_waits()
        self._reads_ahead = READS_AHEAD if waits != self._waits else max(0, self._reads_ahead - 1)
        self._waits = waits
        return self._reads_ahead > 0

    @property
    def are_slow(self) -> bool:
        """Whether a batch may take long to read: compressed frames, or a disk that had to be waited for lately."""
        opened = next(iter(self._opened.values()), {})
        return self._reads_ahead > 0 or isinstance(opened.get("frames"), CompressedArray)

    def gather(self, name: str, places: Places, out: np.ndarray, skip: int = 1, *, to_read_ahead: bool = False) -> None:
        """Fill out[i] with rows of `name` (frames, actions or rewards) from the i-th place on, every `skip`-th.

        What `frames` and `actions` give, for a whole batch and without their cost per call. to_read_ahead: ask the
        disk for all of the batch at once, so that it can work in parallel.
        """
        span = (out.shape[1] - 1) * skip + 1
        shards, firsts = places.shards.tolist(), places.firsts.tolist()
        opened = self._shards(shards)
        arrays = [opened[shard][name] for shard in shards]
        if to_read_ahead:
            for array, first in zip(arrays, firsts, strict=True):
                read_ahead(array, first, first + span)
        try:
            for row, array, first in zip(out, arrays, firsts, strict=True):
                row[...] = array[first : first + span : skip]
        except DecompressionError as error:
            raise damaged(array.fpath, str(error)) from None

    def _rows(self, name: str, episode: int, start: int, count: int) -> np.ndarray:
        assert start >= 0 and start + count <= self.lengths[episode], (episode, start, count, self.lengths[episode])
        first = int(self.starts[episode]) + start
        shard = int(self._shard_of[episode])
        try:
            return self._shards([shard])[shard][name][first : first + count]
        except DecompressionError as error:
            raise damaged(self.fpaths[shard], str(error)) from None

    def _shards(self, shards: list[int]) -> dict[int, dict[str, Any]]:
        """What this process has opened, these shards among it. Several threads may ask at once."""
        if self._opened_by != os.getpid():  # forked: HDF5 handles of the parent must not be used
            self._forget()
        opened = self._opened
        for shard in shards:
            if shard not in opened:
                opened[shard] = self._open(shard)
        return opened

    def _open(self, shard: int) -> dict[str, Any]:
        fpath, is_here = self.fpaths[shard], self._shard_of == shard
        file = open_shard(fpath)
        table = checked_table(fpath, file, self.image_size, self.num_actions)
        known = {"start": self.starts, "length": self.lengths, "level_seed": self.level_seeds}
        if any(not np.array_equal(table[field], values[is_here]) for field, values in known.items()):
            raise damaged(fpath, "its episodes are not those that info.json lists")
        arrays = open_arrays(fpath, file)
        others = next(iter(self._opened.values()), arrays)
        if arrays.keys() != others.keys():
            raise damaged(fpath, f"it holds {', '.join(arrays)}, but another shard {', '.join(others)}")
        return arrays
