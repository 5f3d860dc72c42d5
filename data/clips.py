"""Clips out of episodes: a window dataset, an endless reproducible stream for training, a fixed set for evaluation.

Which clip comes when is a pure function of the seed and the clip's number in the run: nothing is shuffled, stored or
skipped, so that resuming, another number of processes and another number of loader workers change nothing.
"""

import itertools
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.episodes import Episodes

BATCHES_AHEAD = 2  # prepared by the background thread while the device works on the current one
FEISTEL_ROUNDS = 3  # of two shifts each


class Clip(NamedTuple):
    """One batch of clips of T frames; absent parts are None. A single clip has the same fields without the B axis."""

    frames: Tensor | None  # (B, T, C, H, W) RGB: uint8 until `to` brings it to the device, then float32 in [0, 1]
    actions: Tensor | None  # (B, T-1) int64: actions[:, t] leads from frame t to t+1
    tokens: Tensor | None = None  # (B, L, h, w) int64, when read from a token cache
    rewards: Tensor | None = None  # (B, T-1) float32, follows the action
    ends: Tensor | None = None  # (B, T-1) bool
    seeds: Tensor | None = None  # (B,) int64 >= 0: keys every random draw made for the clip

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Clip":
        """The clip on the device. Frames cross as uint8 and become float32 in [0, 1] there."""
        moved = Clip(*(None if part is None else part.to(device, non_blocking=non_blocking) for part in self))
        if moved.frames is None or moved.frames.is_floating_point():
            return moved
        # One pass converts and brings the loader's (B, T, H, W, C) memory into (B, T, C, H, W) order.
        frames = moved.frames.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        return moved._replace(frames=frames)


class ClipDataset(Dataset):
    """Every window of `num_frames` frames, `frame_skip` apart, that lies inside one episode of a dataset's split.

    Starts are all frames, or with `seq_step` the multiples of it, counted from the episode's first frame. The index
    is one number per episode, so that opening takes no longer for more clips. Raises ValueError or FileNotFoundError
    with one line for missing or damaged data and where no episode is long enough.
    """

    def __init__(
        self, root: Path | str, name: str, split: str, num_frames: int, *, frame_skip: int = 1, seq_step: int = 1
    ):
        for key, value in (("num_frames", num_frames), ("frame_skip", frame_skip), ("seq_step", seq_step)):
            if value < 1:
                raise ValueError(f"{key}={value} must be at least 1")
        self.episodes = Episodes(root, name, split)
        self.num_frames, self.frame_skip, self.seq_step = num_frames, frame_skip, seq_step
        span = (num_frames - 1) * frame_skip + 1
        lengths = self.episodes.lengths
        windows = np.where(lengths >= span, (lengths - span) // seq_step + 1, 0)
        self._ends = np.cumsum(windows)
        if not len(self):
            raise ValueError(
                f"num_frames={num_frames} at frame_skip={frame_skip} needs {span} frames, but the longest episode of "
                f"{name} ({split}) has {lengths.max()}; set num_frames or frame_skip lower"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def image_size(self) -> tuple[int, int]:
        return self.episodes.image_size

    @property
    def num_actions(self) -> int:
        return self.episodes.num_actions

    def locate(self, index: int) -> tuple[int, int]:
        """Episode and first frame of a window."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        episodes, starts = self._locate(np.array([index]))
        return int(episodes[0]), int(starts[0])

    def _locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        episodes = np.searchsorted(self._ends, indices, side="right")
        before = np.where(episodes > 0, self._ends[episodes - 1], 0)
        return episodes, (indices - before) * self.seq_step

    def level_seed(self, index: int) -> int:
        return int(self.episodes.level_seeds[self.locate(index)[0]])

    def __getitem__(self, index: int) -> Clip:
        self.locate(index)  # raises IndexError, which ends a plain loop over the dataset
        clip = self.batch(np.array([index]))
        return Clip(*(None if part is None else part[0] for part in clip))

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None = None) -> Clip:
        """The windows as one batch. Frames are a (B, T, C, H, W) view of (B, T, H, W, C) memory: copied once."""
        height, width = self.image_size
        episodes, starts = self._locate(indices)
        frames = np.empty((len(indices), self.num_frames, height, width, 3), np.uint8)
        self.episodes.gather("frames", episodes, starts, frames, self.frame_skip)
        actions = None
        if self.episodes.has_actions:
            actions = np.empty((len(indices), self.num_frames - 1), np.int64)
            if self.num_frames > 1:
                self.episodes.gather("actions", episodes, starts, actions, self.frame_skip)
        return Clip(
            frames=torch.from_numpy(frames).permute(0, 1, 4, 2, 3),
            actions=None if actions is None else torch.from_numpy(actions),
            seeds=None if seeds is None else torch.from_numpy(seeds),
        )


def training_batches(
    dataset: ClipDataset,
    *,
    batch_size: int,
    seed: int,
    clips_consumed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Clip]:
    """Batches without end; every window comes once per epoch, in an order of its own each epoch.

    The run's clips are numbered: row j of batch k on this rank is clip
    `clips_consumed + (k * world_size + rank) * batch_size + j`, so that the ranks' batches side by side are the batch
    of a single process, and a resumed run goes on exactly where `clips_consumed` says.
    """
    batches = _Batches(dataset, batch_size, seed, clips_consumed, rank, world_size)
    if num_workers:
        return _from_processes(batches, num_workers, pin_memory)
    return _from_thread(batches, pin_memory)


def evaluation_clips(
    dataset: ClipDataset, *, batch_size: int, num_clips: int | None, seed: int, rank: int = 0, world_size: int = 1
) -> Iterator[Clip]:
    """A fixed set of `num_clips` different windows (all where it is None or larger), spread evenly over the split.

    Clip i is drawn from the i-th of `num_clips` equal stretches of the dataset, whatever the number of processes; this
    rank gives clips rank, rank + world_size, …; the last batch is as short as it must be.
    """
    total = len(dataset) if num_clips is None else min(num_clips, len(dataset))
    for first in range(rank, total, batch_size * world_size):
        numbers = np.arange(first, min(first + batch_size * world_size, total), world_size, dtype=np.uint64)
        starts = numbers.astype(np.int64) * len(dataset) // total
        ends = (numbers.astype(np.int64) + 1) * len(dataset) // total
        yield dataset.batch(starts + hash64(seed, numbers) % (ends - starts), hash64(seed, numbers))


# --------------------------------------------------------------------------------------------------------- the order


def hash64(seed: int, numbers: np.ndarray) -> np.ndarray:
    """A well-mixed int64 >= 0 for each (seed, number); numbers are uint64 (SplitMix64, Steele et al., 2014)."""
    key = _mix(np.array([seed], dtype=np.int64).view(np.uint64))
    return (_mix(numbers + key) >> np.uint64(1)).astype(np.int64)


def shuffled(numbers: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Which of `size` windows each clip number of a run shows: clips 0…size-1 all of them once, then again, …

    A Feistel network keyed by seed and epoch permutes the cells of a rectangle of just over `size` cells; what falls
    outside goes round again until it is inside (cycle walking; Black & Rogaway, "Ciphers with arbitrary finite
    domains", 2002). O(1) memory, any clip without its predecessors.
    """
    numbers = numbers.astype(np.uint64)
    epochs, places = numbers // np.uint64(size), numbers % np.uint64(size)
    columns = math.isqrt(size - 1) + 1
    rows = -(-size // columns)
    keys = _mix(epochs + _mix(hash64(seed, np.zeros(1, np.uint64)).view(np.uint64)))
    places = _feistel(places, keys, np.uint64(rows), np.uint64(columns))
    while (outside := places >= size).any():
        places[outside] = _feistel(places[outside], keys[outside], np.uint64(rows), np.uint64(columns))
    return places.astype(np.int64)


def _feistel(places: np.ndarray, keys: np.ndarray, rows: np.uint64, columns: np.uint64) -> np.ndarray:
    """A permutation of the places row * columns + column: each round shifts one coordinate by a hash of the other."""
    row, column = places // columns, places % columns
    for number in range(0, 2 * FEISTEL_ROUNDS, 2):
        row = (row + _mix(column + keys + np.uint64(number << 56)) % rows) % rows
        column = (column + _mix(row + keys + np.uint64(number + 1 << 56)) % columns) % columns
    return row * columns + column


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function on uint64 arrays, wrapping around."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# ------------------------------------------------------------------------------------------------------- reading ahead


@dataclass(frozen=True)
class _Batches(Dataset):
    """A run's batches by number, without any state: they can be made in any order and by any process."""

    dataset: ClipDataset
    batch_size: int
    seed: int
    clips_consumed: int
    rank: int
    world_size: int

    def __getitem__(self, step: int) -> Clip:
        first = self.clips_consumed + (step * self.world_size + self.rank) * self.batch_size
        numbers = np.arange(first, first + self.batch_size, dtype=np.uint64)
        return self.dataset.batch(shuffled(numbers, len(self.dataset), self.seed), hash64(self.seed, numbers))


def _from_thread(batches: _Batches, pin_memory: bool) -> Iterator[Clip]:
    def load(step: int) -> Clip:
        clip = batches[step]
        return Clip(*(None if part is None else part.pin_memory() for part in clip)) if pin_memory else clip

    with ThreadPoolExecutor(1, "clips") as thread:
        ahead = deque(thread.submit(load, step) for step in range(BATCHES_AHEAD))
        for step in itertools.count(BATCHES_AHEAD):
            clip = ahead.popleft().result()
            ahead.append(thread.submit(load, step))
            yield clip


def _from_processes(batches: _Batches, num_workers: int, pin_memory: bool) -> Iterator[Clip]:
    return iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=itertools.count(),
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # or the loader draws its workers' seed from torch's global generator
        )
    )
