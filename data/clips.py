"""Clips out of episodes: a window dataset, an endless reproducible stream for training, a fixed set for evaluation.

Which clip comes when is a pure function of the seed and the clip's number in the run: nothing is shuffled, stored or
skipped, so that resuming, another number of processes and another number of loader workers change nothing.
"""

import itertools
import os
import signal
import threading
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

from data.episodes import Episodes, Places
from data.order import hash64, shuffled

BATCHES_AHEAD = 2  # prepared while the device works on the current one, where that may take long
PLANNED = 64  # batches whose clips are looked up at once: numpy takes almost as long for one as for some dozens


class Clip(NamedTuple):
    """One batch of clips of T frames; absent parts are None. A single clip has the same fields without the B axis."""

    frames: Tensor | None  # (B, T, C, H, W) RGB: uint8 until `to` brings it to the device, then float32 in [0, 1]
    actions: Tensor | None  # (B, T-1) int64: actions[:, t] leads from frame t to t+1
    tokens: Tensor | None = None  # (B, L, h, w) int64, when read from a token cache
    rewards: Tensor | None = None  # (B, T-1) float32: what actions[:, t] brought (`ClipDataset`)
    ends: Tensor | None = None  # (B, T-1) bool: frame t+1 is the last of an episode that came to its end
    seeds: Tensor | None = None  # (B,) int64 >= 0: keys every random draw made for the clip

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Clip":
        """The clip on the device. Frames cross as uint8 and become float32 in [0, 1] there."""
        moved = Clip(*(None if part is None else part.to(device, non_blocking=non_blocking) for part in self))
        if moved.frames is None or moved.frames.is_floating_point():
            return moved
        # One pass converts and brings the loader's (B, T, H, W, C) memory into (B, T, C, H, W) order.
        frames = moved.frames.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        return moved._replace(frames=frames)


class Windows(NamedTuple):
    """Where windows of a dataset lie, found by `ClipDataset.find`; (B,) int64 each."""

    numbers: np.ndarray
    episodes: np.ndarray
    starts: np.ndarray  # first frames, counted from the episode's first one
    shards: np.ndarray
    firsts: np.ndarray  # first frames, counted from the shard's first one

    @property
    def places(self) -> Places:
        return Places(self.shards, self.firsts)


class ClipDataset(Dataset):
    """Every window of `num_frames` frames, `frame_skip` apart, that lies inside one episode of a dataset's split.

    Starts are all frames, or with `seq_step` the multiples of it, counted from the episode's first frame. The index
    is one number per episode, so that opening takes no longer for more clips. Raises ValueError or FileNotFoundError
    with one line for missing or damaged data and where no episode is long enough.

    Clips have `rewards` and `ends` where `with_rewards` asks for them and the dataset holds rewards. rewards[:, t] is
    the sum of what came from frame t (inclusive) to frame t+1 (exclusive). No frame follows an episode's last action,
    so what that brought (in CoinRun, all there is) counts as brought by the step to the last frame: the rewards of a
    clip of a whole episode add up to its return, less what came at the frames that `frame_skip` leaves over at its
    end. ends[:, t] says that frame t+1 is that last frame, and that the game ended there (coin, death), not a limit.
    """

    def __init__(
        self,
        root: Path | str,
        name: str,
        split: str,
        num_frames: int,
        *,
        frame_skip: int = 1,
        seq_step: int = 1,
        with_rewards: bool = False,
    ):
        for key, value in (("num_frames", num_frames), ("frame_skip", frame_skip), ("seq_step", seq_step)):
            if value < 1:
                raise ValueError(f"{key}={value} must be at least 1")
        self.episodes = Episodes(root, name, split)
        self.num_frames, self.frame_skip, self.seq_step = num_frames, frame_skip, seq_step
        self.with_rewards = with_rewards and self.episodes.has_rewards
        self.span = (num_frames - 1) * frame_skip + 1  # frames from a window's first to its last
        lengths = self.episodes.lengths
        windows = np.where(lengths >= self.span, (lengths - self.span) // seq_step + 1, 0)
        self.ends = np.cumsum(windows)  # (E,) windows in the episodes up to each one, itself included
        if not len(self):
            raise ValueError(
                f"num_frames={num_frames} at frame_skip={frame_skip} needs {self.span} frames, but the longest episode "
                f"of {name} ({split}) has {lengths.max()}; set num_frames or frame_skip lower"
            )

    def __len__(self) -> int:
        return int(self.ends[-1])

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
        episodes = np.searchsorted(self.ends, indices, side="right")
        before = np.where(episodes > 0, self.ends[episodes - 1], 0)
        return episodes, (indices - before) * self.seq_step

    def level_seed(self, index: int) -> int:
        return int(self.episodes.level_seeds[self.locate(index)[0]])

    def __getitem__(self, index: int) -> Clip:
        self.locate(index)  # raises IndexError, which ends a plain loop over the dataset
        clip = self.batch(np.array([index]))
        return Clip(*(None if part is None else part[0] for part in clip))

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None = None) -> Clip:
        """The windows as one batch. Frames are a (B, T, C, H, W) view of (B, T, H, W, C) memory: copied once."""
        return self.read(self.find(indices), seeds)

    def find(self, indices: np.ndarray) -> Windows:
        """Where the windows lie. To look up dozens of batches in one call takes hardly longer than to look up one."""
        episodes, starts = self._locate(indices)
        return Windows(indices, episodes, starts, *self.episodes.places(episodes, starts, self.span))

    def read(self, windows: Windows, seeds: np.ndarray | None = None) -> Clip:
        """What `batch` gives, of windows that were found before."""
        to_read_ahead = self.episodes.waits_for_disk()
        rewards, ends = self._outcomes(windows, to_read_ahead) if self.with_rewards else (None, None)
        return Clip(
            frames=self._frames(windows, to_read_ahead),
            actions=self._actions(windows, to_read_ahead) if self.episodes.has_actions else None,
            rewards=rewards,
            ends=ends,
            seeds=None if seeds is None else torch.from_numpy(seeds),
        )

    def _frames(self, windows: Windows, to_read_ahead: bool) -> Tensor | None:
        height, width = self.image_size
        frames = np.empty((len(windows.numbers), self.num_frames, height, width, 3), np.uint8)
        self.episodes.gather("frames", windows.places, frames, self.frame_skip, to_read_ahead=to_read_ahead)
        return torch.from_numpy(frames).permute(0, 1, 4, 2, 3)

    def _actions(self, windows: Windows, to_read_ahead: bool) -> Tensor:
        actions = np.empty((len(windows.numbers), self.num_frames - 1), np.int64)
        if self.num_frames > 1:
            self.episodes.gather("actions", windows.places, actions, self.frame_skip, to_read_ahead=to_read_ahead)
        return torch.from_numpy(actions)

    def _outcomes(self, windows: Windows, to_read_ahead: bool) -> tuple[Tensor, Tensor]:
        every = np.empty((len(windows.numbers), self.span), np.float32)
        self.episodes.gather("rewards", windows.places, every, to_read_ahead=to_read_ahead)
        rewards = every[:, :-1].reshape(len(every), self.num_frames - 1, self.frame_skip).sum(2)
        ends = np.zeros(rewards.shape, bool)
        if self.num_frames > 1:
            is_last = windows.starts + self.span == self.episodes.lengths[windows.episodes]
            rewards[:, -1] += np.where(is_last, every[:, -1], 0)
            ends[:, -1] = is_last & self.episodes.came_to_an_end(windows.episodes)
        return torch.from_numpy(rewards), torch.from_numpy(ends)


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


# ------------------------------------------------------------------------------------------------------- reading ahead


class _Batches(Dataset):
    """A run's batches by number: they can be made in any order and by any process."""

    def __init__(
        self, dataset: ClipDataset, batch_size: int, seed: int, clips_consumed: int, rank: int, world_size: int
    ):
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.first, self.stride = clips_consumed + rank * batch_size, world_size * batch_size
        self._planned = (-1, None)  # what was looked up last

    def __getitem__(self, step: int) -> Clip:
        block, place = divmod(step, PLANNED)
        planned, plan = self._planned
        if planned != block:
            plan = self._plan(block)
            self._planned = (block, plan)
        windows, seeds = plan
        rows = slice(place * self.batch_size, (place + 1) * self.batch_size)
        return self.dataset.read(Windows(*(part[rows] for part in windows)), seeds[rows].copy())

    def _plan(self, block: int) -> tuple[Windows, np.ndarray]:
        """Windows and seeds of `PLANNED` batches one after the other, (PLANNED * batch_size,) each."""
        steps = np.arange(block * PLANNED, (block + 1) * PLANNED)
        clips = (self.first + steps[:, None] * self.stride + np.arange(self.batch_size)).astype(np.uint64).ravel()
        return self.dataset.find(shuffled(clips, len(self.dataset), self.seed)), hash64(self.seed, clips)


def _from_thread(batches: _Batches, pin_memory: bool) -> Iterator[Clip]:
    def load(step: int) -> Clip:
        clip = batches[step]
        return Clip(*(None if part is None else part.pin_memory() for part in clip)) if pin_memory else clip

    # What the thread has not begun when it is asked for is made here: waiting for it would take longer, since threads
    # are slow to wake up and take turns with Python's lock. For the same reason it makes one ahead of a fast dataset.
    episodes = batches.dataset.episodes
    with ThreadPoolExecutor(1, "clips") as thread:
        ahead = deque([thread.submit(load, 0)])
        for step in itertools.count():
            if ahead[0].cancel():
                ahead.popleft()
                ready = [load(step)]
            else:
                ready = [ahead.popleft().result()]
            while len(ahead) < (BATCHES_AHEAD if episodes.are_slow else 1):
                ahead.append(thread.submit(load, step + 1 + len(ahead)))
            yield ready.pop()  # under no name: it would keep every batch until the next one is there


def _from_processes(batches: _Batches, num_workers: int, pin_memory: bool) -> Iterator[Clip]:
    loader = DataLoader(
        _Reported(batches),
        batch_size=None,
        sampler=itertools.count(),
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_training,
        generator=torch.Generator(),  # or the loader draws its workers' seed from torch's global generator
    )
    # Blocked from their birth on: libraries start threads in a new process before it can block anything itself.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        clips = map(_unwrapped, loader)  # starts them
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return clips if pin_memory else _handed_over(clips)  # the thread that pins takes them over as well


def _leave_signals_to_the_training(_: int) -> None:
    """In a loader process: it ends when the training says so or is gone, and on no other signal that can be left alone.

    Schedulers and terminals signal every process of a job. Torch's loader processes die of SIGTERM, and with them the
    training that would have saved.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_when_the_training_says_so, daemon=True).start()
    else:  # macOS
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _end_when_the_training_says_so() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


def _handed_over(clips: Iterator[Clip]) -> Iterator[Clip]:
    """The same batches, taken from their processes by a thread.

    Each tensor's memory is handed over in a conversation with the process that made it, which on a busy machine first
    has to get a core: the training would wait for that with every batch.
    """
    with ThreadPoolExecutor(1, "clips") as thread:
        ahead = deque(thread.submit(_next, clips) for _ in range(BATCHES_AHEAD))
        while True:
            # Popped first: a future that failed and this frame would hold each other, and the loader, for long.
            ready = [ahead.popleft().result()]
            ahead.append(thread.submit(_next, clips))
            yield ready.pop()


def _next(clips: Iterator[Clip]) -> Clip:
    try:
        return next(clips)
    except (ConnectionError, EOFError) as error:  # in the middle of the conversation; before it torch says the same
        raise RuntimeError("DataLoader worker exited unexpectedly while it handed a batch over") from error


def _unwrapped(clip: Clip | Exception) -> Clip:
    if isinstance(clip, Exception):
        # A new one: this one and this frame would hold each other, and the loader, for long.
        raise type(clip)(*clip.args)
    return clip


@dataclass(frozen=True)
class _Reported(Dataset):
    """Batches, or the one-line error in place of one: raised in a worker it would arrive wrapped in a traceback."""

    batches: _Batches

    def __getitem__(self, step: int) -> Clip | ValueError | OSError:
        try:
            return self.batches[step]
        except (ValueError, OSError) as error:
            return error
