"""Writing a shard, an HDF5 file of whole episodes, while its episodes arrive (contents: `data/episodes.py`).

Uncompressed frames go to their place in the file at once, so that a writer holds none of them. What HDF5 puts around
them depends on how many there are: it is made at the end, as a file of its own whose frames are a hole, and copied. The
bytes are those that HDF5 writes when it is given everything.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from data.content_hash import ContentHash
from data.direct_file import DirectFile, room
from data.storage import frames_layout

FORMAT = 2
READABLE = (1, 2)  # 1 had another hash (`data/content_hash.py`), nothing else
END_REASONS = ("coin", "death", "time_limit", "end_of_recording")
TABLE = np.dtype([("start", "<i8"), ("length", "<i8"), ("level_seed", "<i8"), ("end_reason", "u1")])


class Episode(NamedTuple):
    """One episode of T frames, from the first frame after the reset."""

    frames: np.ndarray  # (T, H, W, 3) uint8
    actions: np.ndarray | None  # (T,) int16
    rewards: np.ndarray | None  # (T,) float32
    level_seed: int
    end_reason: str  # one of END_REASONS


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.h5"


def write_shard(fpath: Path, episodes: Sequence[Episode], *, compression: str | None = None) -> None:
    """Write whole episodes into one shard, atomically: `fpath` appears when everything is on the disk.

    compression: None, lzf, gzip or blosc. Raises OSError with one line where the disk is full, ValueError for another
    compression or one whose package is missing.
    """
    writer = ShardWriter(fpath, compression=compression)
    free, needed = shutil.disk_usage(fpath.parent).free, sum(episode.frames.nbytes for episode in episodes)
    if compression is None and needed > free:  # asked first: all of it would be written in vain
        raise _full(fpath, f"it needs {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB")
    for episode in episodes:
        writer.add(episode)
    writer.finish()


def frames_room(num_frames: int, picture_shape: Sequence[int]) -> np.ndarray:
    """Memory for frames, (num_frames, H, W, 3) uint8, from whose start on a `ShardWriter` writes without a copy."""
    shape = (num_frames, *picture_shape)
    return room(int(np.prod(shape)), frames_offset()).reshape(shape)


@cache
def frames_offset() -> int:
    """Where HDF5 puts the frames of an uncompressed shard, however many they are: after a block of its own."""
    with h5py.File("offset", "w", driver="core", backing_store=False) as file:
        return _create_frames(file, (1, 64, 64, 3), None, [])


class ShardWriter:
    """Writes one shard, episode by episode; it appears as `fpath` when `finish` has brought everything to the disk.

    Where something fails what was written is removed, and OSError says why in one line. Nothing is there before the
    first episode. Raises ValueError for an unknown compression or one whose package is missing.
    """

    def __init__(self, fpath: Path, *, compression: str | None = None):
        frames_layout(compression, (1, 1, 1, 3))  # an unknown one is refused before anything is written
        self._fpath, self._compression = fpath, compression
        self._temporary = fpath.with_name(f".{fpath.name}.tmp")
        self._around = fpath.with_name(f".{fpath.name}.around.tmp")
        self._episodes: list[Episode] = []  # uncompressed without their frames, but for the first of them
        self._lengths: list[int] = []
        self._hash = ContentHash()
        self._file: DirectFile | None = None
        self._is_given_up = False

    def add(self, episode: Episode) -> None:
        """Take the next episode. The memory of its frames may be used again, unless the shard is compressed."""
        frames = np.ascontiguousarray(episode.frames)
        with self._nothing_stays_of_a_failure():
            if self._compression is None:
                self._file = self._file or DirectFile(self._temporary)
                self._file.write(frames, frames_offset() + sum(self._lengths) * frames[0].nbytes)
                episode = episode._replace(frames=frames[:1].copy())
            self._hash.add_frames(frames)
            self._hash.add_columns(episode.actions, episode.rewards)
            self._episodes.append(episode)
            self._lengths.append(len(frames))

    def finish(self) -> None:
        """Complete the shard, which has at least one episode."""
        with self._nothing_stays_of_a_failure():
            if self._compression is None:
                self._put_around()
                self._file.synchronise()
                self._close()
            else:
                self._save(self._temporary)
                with open(self._temporary, "rb") as written:
                    os.fsync(written.fileno())
            os.replace(self._temporary, self._fpath)

    def discard(self) -> None:
        """Give up; nothing stays."""
        self._is_given_up = True
        self._close()
        self._temporary.unlink(missing_ok=True)
        self._around.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextmanager
    def _nothing_stays_of_a_failure(self) -> Iterator[None]:
        assert not self._is_given_up, f"{self._fpath} was given up"
        try:
            yield
        except (OSError, RuntimeError) as error:  # h5py raises either where writing fails
            self.discard()
            raise _full(self._fpath, str(error).splitlines()[0]) from None
        except BaseException:
            self.discard()
            raise

    def _put_around(self) -> None:
        """Copy what HDF5 has before and behind the frames, which are where they belong."""
        offset = self._save(self._around)
        assert offset == frames_offset(), (offset, frames_offset())
        begin, end = offset, offset + sum(self._lengths) * self._episodes[0].frames.nbytes
        with open(self._around, "rb") as around:
            self._file.write(np.frombuffer(around.read(begin), np.uint8), 0)
            around.seek(end)
            self._file.write(np.frombuffer(around.read(), np.uint8), end)
        self._around.unlink()

    def _save(self, fpath: Path) -> int | None:
        """Write the shard as HDF5; of uncompressed frames only one. The place of the frames, None if compressed."""
        episodes, shape = self._episodes, (sum(self._lengths), *self._episodes[0].frames.shape[1:])
        table = self._table()
        with h5py.File(fpath, "w") as file:
            offset = _create_frames(file, shape, self._compression, episodes)
            if episodes[0].actions is not None:
                file["actions"] = np.concatenate([episode.actions for episode in episodes]).astype("<i2")
            if episodes[0].rewards is not None:
                file["rewards"] = np.concatenate([episode.rewards for episode in episodes]).astype("<f4")
            file["episodes"] = table
            file.attrs["hash"] = self._hash.finish(table)
            return offset

    def _table(self) -> np.ndarray:
        lengths = np.array(self._lengths, dtype=np.int64)
        table = np.empty(len(lengths), dtype=TABLE)
        table["start"] = np.cumsum(lengths) - lengths
        table["length"] = lengths
        table["level_seed"] = [episode.level_seed for episode in self._episodes]
        table["end_reason"] = [END_REASONS.index(episode.end_reason) for episode in self._episodes]
        return table


def _full(fpath: Path, reason: str) -> OSError:
    return OSError(f"cannot write {fpath}: {reason}; free some space or choose another folder")


def _create_frames(
    file: h5py.File, shape: tuple[int, ...], compression: str | None, episodes: Sequence[Episode]
) -> int | None:
    """A new shard's first entries; the place of uncompressed frames, whose values stay undefined.

    The dataset is closed on return, for HDF5 to write the chunks that it holds before anything else: part of the bytes.
    """
    file.attrs["format"] = FORMAT
    frames = file.create_dataset("frames", shape, np.uint8, **frames_layout(compression, shape))
    if compression is None:
        frames[:1] = np.zeros((1, *shape[1:]), np.uint8)  # HDF5 gives them their place at the first write
        return frames.id.get_offset()
    start = 0
    for episode in episodes:
        frames[start : start + len(episode.frames)] = episode.frames
        start += len(episode.frames)
    return None


def content_hash(episodes: Sequence[Episode], table: np.ndarray) -> str:
    """The hash of a shard of these episodes, as text (`data/content_hash.py`)."""
    hashed = ContentHash()
    for episode in episodes:
        hashed.add_frames(episode.frames)
        hashed.add_columns(episode.actions, episode.rewards)
    return hashed.finish(table)
