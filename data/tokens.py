"""Tokens of a dataset's clips on disk: `<root>/<name>/tokens/<tokenizer>-T<frames>-s<step>-k<skip>/`.

A tokenizer that is aware of time gives a frame other tokens when its clip starts elsewhere, so what is stored are whole
clips: every window of T frames, k apart, whose start is a multiple of s in its episode, as `ClipDataset` counts them.
Each shard of the dataset has one here of the same name, with
    tokens   (W, L, h, w) uint16, or int32 for more than 65,536 codes; row i is the shard's i-th window; contiguous, so
             that readers memory-map it
    made_of  an attribute: JSON of all that decided these tokens (the recipe, the format, the source shard's hash)
A shard appears under its name only when it is complete, and `info.json` only when all shards of a split are. Tokens
that were made of anything else than what is asked for are never read: a cache equals `encode(clip)` or is not used.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from data.clips import Clip, ClipDataset, Windows
from data.content_hash import stored_hash
from data.storage import map_arrays, open_hdf5, read_ahead

FORMAT = 1
INFO = "info.json"
SHOWN = 12  # characters of a hash that people see


@dataclass(frozen=True)
class Recipe:
    """All that decides a clip's tokens besides its frames, and which clips there are."""

    tokenizer: str  # hash of its weights
    tokenizer_config: dict[str, Any]  # how it is built, since equal tensors can be wired in other ways
    num_frames: int
    seq_step: int
    frame_skip: int

    def folder(self, root: Path | str, name: str) -> Path:
        key = f"{self.tokenizer[:SHOWN]}-T{self.num_frames}-s{self.seq_step}-k{self.frame_skip}"
        return Path(root) / name / "tokens" / key


class Piece(NamedTuple):
    """The windows that start in one shard of a dataset's split: numbers first … first + count - 1."""

    file: str
    hash: str  # of what the shard says
    first: int
    count: int


def pieces_of(dataset: ClipDataset) -> list[Piece]:
    """One piece for each shard of the dataset's split; a shard of short episodes may have no window."""
    shards = dataset.episodes.info["splits"][dataset.episodes.split]["shards"]
    last_episodes = np.cumsum([shard["episodes"] for shard in shards])
    stops = [int(dataset.ends[last - 1]) if last else 0 for last in last_episodes]
    firsts = [0, *stops[:-1]]
    return [
        Piece(shard["file"], stored_hash(shard), first, stop - first)
        for shard, first, stop in zip(shards, firsts, stops, strict=True)
    ]


def dtype_of(codebook_size: int) -> np.dtype:
    """The smallest type that holds every token."""
    return np.dtype("<u2" if codebook_size <= 2**16 else "<i4")


# ------------------------------------------------------------------------------------------------------------ writing


def made_of(recipe: Recipe, piece: Piece) -> dict[str, Any]:
    """What a finished shard says of itself."""
    return {"format": FORMAT, **asdict(recipe), "source": piece.hash, "windows": piece.count}


def write_shard(
    fpath: Path, batches: Iterable[np.ndarray], *, shape: tuple[int, ...], dtype: np.dtype, origin: dict[str, Any]
) -> None:
    """Write a shard of tokens batch after batch, atomically: `fpath` appears when everything is on the disk.

    shape: (W, L, h, w) of all batches together. origin: what `made_of` gives. Raises OSError with one line where the
    disk is full.
    """
    temporary = fpath.with_name(f".{fpath.name}.tmp")
    rows = 0
    try:
        with _full_disk_in_words(fpath):
            offset = _lay_out(temporary, shape, dtype, origin)
        # Plain writes into the space that HDF5 laid out: HDF5 itself does not recover from a full disk.
        with open(temporary, "r+b", buffering=0) as file:
            file.seek(offset)
            for batch in batches:
                rows += len(batch)
                with _full_disk_in_words(fpath):
                    _write_all(file, np.ascontiguousarray(batch, dtype))
            os.fsync(file.fileno())
        assert rows == shape[0], f"{rows} windows for a shard of {shape[0]}"
        os.replace(temporary, fpath)
    finally:
        temporary.unlink(missing_ok=True)


def _lay_out(fpath: Path, shape: tuple[int, ...], dtype: np.dtype, origin: dict[str, Any]) -> int:
    """Write an HDF5 file with room for the tokens; returns where in the file they begin."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)  # the same tokens are the same bytes
    with h5py.File(fpath, "w") as file:
        file.attrs["made_of"] = json.dumps(origin, sort_keys=True)
        space = h5py.h5s.create_simple(shape)
        tokens = h5py.h5d.create(file.id, b"tokens", h5py.h5t.py_create(dtype), space, layout)
        return tokens.get_offset() or 0


def _write_all(file: RawIOBase, rows: np.ndarray) -> None:
    rest = memoryview(rows).cast("B")
    while rest:
        rest = rest[file.write(rest) :]  # an almost full disk takes less than it was given


@contextmanager
def _full_disk_in_words(fpath: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # h5py raises either where writing fails
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise OSError(f"cannot write {fpath}: {reason}; free some space, then run the same again") from None


def is_finished(fpath: Path, origin: dict[str, Any]) -> bool:
    """Whether a shard is there, whole, and made of exactly this."""
    try:
        with open_hdf5(fpath) as file:
            return "tokens" in file and json.loads(file.attrs["made_of"]) == origin
    except (OSError, RuntimeError, KeyError, ValueError):  # missing, truncated, none of ours: it is written anew
        return False


def describe(recipe: Recipe, splits: dict[str, list[Piece]], shape: tuple[int, ...], dtype: np.dtype) -> dict[str, Any]:
    """The content of `info.json`; shape: (L, h, w) of one window."""
    listed = {
        split: {
            "windows": sum(piece.count for piece in pieces),
            "shards": [{"file": piece.file, "windows": piece.count, "source": piece.hash} for piece in pieces],
        }
        for split, pieces in splits.items()
    }
    return {"format": FORMAT, **asdict(recipe), "shape": list(shape), "dtype": dtype.name, "splits": listed}


# ------------------------------------------------------------------------------------------------------------ reading


def read_info(folder: Path) -> dict[str, Any] | None:
    """A cache's `info.json`; None where there is none, or no readable one."""
    try:
        return json.loads((folder / INFO).read_text())
    except (FileNotFoundError, ValueError):
        return None


class TokenCache:
    """The tokens of one split's windows, by window number, from memory-mapped shards opened as they are asked for.

    pieces: of the dataset as it is now. command: what writes the tokens that are asked for, for errors. Raises
    ValueError with one line where they are missing, unfinished, damaged or made of something else.
    """

    def __init__(self, folder: Path, split: str, recipe: Recipe, pieces: list[Piece], command: str):
        self.folder, self.split, self.recipe, self.command = folder, split, recipe, command
        self._pieces = [piece for piece in pieces if piece.count]
        info = self._checked_info()
        self._check_sources(info, pieces)
        self.shape, self.dtype = tuple(info["shape"]), np.dtype(info["dtype"]).newbyteorder("<")
        self._stops = np.array([piece.first + piece.count for piece in self._pieces])
        self._opened: dict[int, np.ndarray] = {}
        for piece in self._pieces:
            self._check_size(piece)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def read(self, windows: np.ndarray) -> np.ndarray:
        """Tokens of the windows with these numbers: int64 (B, L, h, w)."""
        numbers = np.searchsorted(self._stops, windows, side="right").tolist()
        shards = [self._shard(number) for number in numbers]
        places = [window - self._pieces[number].first for window, number in zip(windows.tolist(), numbers, strict=True)]
        for shard, place in zip(shards, places, strict=True):  # all at once, so that a disk can work in parallel
            read_ahead(shard, place, place + 1)
        tokens = np.empty((len(windows), *self.shape), np.int64)
        for row, shard, place in zip(tokens, shards, places, strict=True):
            row[...] = shard[place]
        return tokens

    def _shard(self, number: int) -> np.ndarray:
        if number not in self._opened:
            self._opened[number] = self._open(self._pieces[number])
        return self._opened[number]

    def _open(self, piece: Piece) -> np.ndarray:
        fpath = self.folder / piece.file
        if not is_finished(fpath, made_of(self.recipe, piece)):
            raise self._unusable(f"{piece.file} there is damaged or not of this cache")
        mapped = map_arrays(open_hdf5(fpath), ["tokens"])["tokens"]
        assert mapped.shape == (piece.count, *self.shape) and mapped.dtype == self.dtype, (fpath, mapped.shape)
        return mapped

    def _check_size(self, piece: Piece) -> None:
        """Opening every shard would take long; what is cut off shows in its size."""
        fpath = self.folder / piece.file
        needed = piece.count * int(np.prod(self.shape)) * self.dtype.itemsize
        if not fpath.is_file():
            raise self._unusable(f"{piece.file} is missing there")
        if fpath.stat().st_size < needed:
            raise self._unusable(f"{piece.file} there is cut off ({fpath.stat().st_size} of {needed} bytes)")

    def _checked_info(self) -> dict[str, Any]:
        info = read_info(self.folder)
        if info is None:
            raise self._unusable(self._why_missing())
        if info.get("format") != FORMAT:
            raise self._unusable(f"they have format {info.get('format')}, this version reads format {FORMAT}")
        if different := differences(info, self.recipe):
            raise self._unusable(f"they were made with {', '.join(different)}")
        if self.split not in info["splits"]:
            raise self._unusable(f"they are of {', '.join(info['splits'])} only, not of {self.split}")
        return info

    def _why_missing(self) -> str:
        if self.folder.is_dir():
            return "they are unfinished"
        others = [info for fpath in sorted(self.folder.parent.glob(f"*/{INFO}")) if (info := read_info(fpath.parent))]
        if not others:
            return "there are none"
        nearest = min((differences(other, self.recipe) for other in others), key=len)
        return f"the nearest that exist were made with {', '.join(nearest)}"

    def _check_sources(self, info: dict[str, Any], pieces: list[Piece]) -> None:
        known = {shard["file"]: (shard["source"], shard["windows"]) for shard in info["splits"][self.split]["shards"]}
        now = {piece.file: (piece.hash, piece.count) for piece in pieces}
        changed = [file for file in known | now if known.get(file) != now.get(file)]
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise self._unusable(f"the dataset has changed since they were made ({changed[0]}{more})")

    def _unusable(self, reason: str) -> ValueError:
        return ValueError(f"no tokens to use in {self.folder}: {reason}; write them with: {self.command}")


class CachedClips(ClipDataset):
    """The windows of a `ClipDataset` with their tokens; without their frames where `with_frames` is set to False.

    Which windows there are follows from the recipe; `with_rewards` is as it is there. Raises what `ClipDataset` and
    `TokenCache` raise.
    """

    def __init__(
        self,
        root: Path | str,
        name: str,
        split: str,
        recipe: Recipe,
        *,
        command: str,
        with_rewards: bool = False,
    ):
        sizes = {"frame_skip": recipe.frame_skip, "seq_step": recipe.seq_step}
        super().__init__(root, name, split, recipe.num_frames, **sizes, with_rewards=with_rewards)
        self.with_frames = True
        self.cache = TokenCache(recipe.folder(root, name), split, recipe, pieces_of(self), command)

    def read(self, windows: Windows, seeds: np.ndarray | None = None) -> Clip:
        return super().read(windows, seeds)._replace(tokens=torch.from_numpy(self.cache.read(windows.numbers)))

    def _frames(self, windows: Windows, to_read_ahead: bool) -> Tensor | None:
        return super()._frames(windows, to_read_ahead) if self.with_frames else None


def differences(found: dict[str, Any], recipe: Recipe) -> list[str]:
    """Where a cache's `info.json` departs from a recipe, in words; empty where it does not."""
    wanted = _flat(asdict(recipe))
    held = _flat({key: found.get(key) for key in asdict(recipe)})
    if held.get("tokenizer") != wanted["tokenizer"]:  # another network: how it is built says no more
        held, wanted = ({k: v for k, v in x.items() if not k.startswith("tokenizer_config")} for x in (held, wanted))
    different = [key for key in wanted | held if held.get(key) != wanted.get(key)]
    return [f"{key} {_short(held.get(key))} (here {_short(wanted.get(key))})" for key in different]


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        name: value
        for key, child in values.items()
        for name, value in _flat(child, f"{prefix}.{key}" if prefix else key).items()
    }


def _short(value: Any) -> str:
    return value[:SHOWN] if isinstance(value, str) and len(value) == 64 else str(value)
