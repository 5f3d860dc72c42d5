"""Processes that play levels and write shards, and the line that says how far they are."""

import gc
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data.episodes import Episode, ShardWriter, frames_room, shard_name, write_shard
from data_generation.policy import Policy
from data_generation.recording import record_episodes
from data_generation.settings import Settings

NUM_PROBES = 16  # episodes played beforehand to tell how large the dataset will be
NUM_ROOMS = 3  # of a worker: one is being filled, one written, and one waits, since the disk takes its time unevenly
FRAMES_PER_PROBE = 64  # frames of each that are compressed to tell how much smaller that makes it


class Shard(NamedTuple):
    """A piece of the work: consecutive levels of one split."""

    split: str
    number: int
    levels: range

    @property
    def file(self) -> str:
        return shard_name(self.split, self.number)


class Job(NamedTuple):
    """The shards that one command is to see to, those of them that are missing, and missing ones of other commands."""

    shards: Sequence[Shard]
    missing: Sequence[Shard]
    elsewhere: Sequence[Shard]


class Counts(NamedTuple):
    num_frames: int
    seconds: float  # without the start of the workers
    cpu_seconds: float  # of all workers, likewise


class Recorded(NamedTuple):
    """How far all workers of a job are together: what is in the array that they share."""

    episodes: int
    frames: int
    shards_begun: int
    shards_written: int
    cpu_microseconds: int


def write_shards(settings: Settings, job: Job) -> Counts:
    """Write the missing shards. OSError where one cannot be written, ValueError where a worker died; others stay."""
    num_workers = min(settings.n_workers, len(job.missing))
    context = multiprocessing.get_context("spawn")  # Procgen and HDF5 may hold locks and threads that fork would copy
    recorded = context.Array("q", len(Recorded._fields))
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(settings, recorded))
    try:
        _announce_size(settings, job, pool, num_workers)
        with _children_ignore_interrupts():
            pending = {pool.submit(_write_untaken, job.missing) for _ in range(num_workers)}
        seconds = _watch(pending, recorded, job)
    except BrokenProcessPool:
        raise ValueError(
            f"a worker was killed, most likely for want of memory ({num_workers} workers); finished shards are kept; "
            "run this again with a smaller --n_workers, or, for a compressed set, --episodes_per_shard"
        ) from None
    except BaseException:
        for process in list(pool._processes.values()):  # the executor has no public way to stop running calls
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    done = Recorded(*recorded)
    return Counts(done.frames, seconds, done.cpu_microseconds / 1e6)


# ---------------------------------------------------------------------------------------------------- inside a worker


class Work:
    """What a worker process keeps from shard to shard. recorded: the shared array of `Recorded`."""

    def __init__(self, settings: Settings, recorded: Any):
        self.settings, self.game, self.recorded = settings, settings.simulated, recorded

    @cached_property
    def policy(self) -> Policy:
        return self.settings.policy()

    def add(self, **counts: int) -> Recorded:
        """Add to what is recorded; what it was before."""
        with self.recorded.get_lock():
            before = Recorded(*self.recorded)
            for name, count in counts.items():
                self.recorded[Recorded._fields.index(name)] += count
        return before

    def room(self) -> np.ndarray:
        """Memory for the levels that are played side by side; only what their episodes fill is ever claimed."""
        return frames_room(self.policy.batch_size * self.settings.n_steps_max, self.game.picture_shape)

    def groups(self, levels: Sequence[int]) -> Iterator[Sequence[int]]:
        """The levels that the policy plays side by side: by their place in the shard, so never up to the worker."""
        for first in range(0, len(levels), self.policy.batch_size):
            yield levels[first : first + self.policy.batch_size]

    def record(self, levels: Sequence[int], room: np.ndarray) -> list[Episode]:
        """The levels' episodes, whose frames are views of the room."""
        episodes = record_episodes(self.game, self.policy, levels, self.settings.n_steps_max, room)
        self.add(episodes=len(episodes), frames=sum(len(episode.frames) for episode in episodes))
        return episodes

    def writer(self, shard: Shard) -> ShardWriter:
        return ShardWriter(self.settings.folder / shard.file, compression=self.settings.compression)

    def write(
        self, writer: ShardWriter, episodes: Sequence[Episode], are_last: bool, before: Future | None = None
    ) -> None:
        """Write some of a shard's episodes, whose frames may be overwritten then; with the last ones the shard ends.

        before: the writing before this one. Where it failed this one fails as well: the disk is full for both.
        """
        if before is not None:
            before.result()
        for episode in episodes:
            if self.settings.compression is not None:
                episode = episode._replace(frames=episode.frames.copy())
            writer.add(episode)
        if are_last:
            writer.finish()
            self.add(shards_written=1)


_work: Work  # of this worker process


def _start_worker(settings: Settings, recorded: Any) -> None:
    global _work
    _work = Work(settings, recorded)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent must not leave a worker behind that still writes when the next run has started."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _write_untaken(shards: Sequence[Shard]) -> None:
    """Write shards that no other worker has taken, each group of levels while the next is played."""
    cpu_seconds = time.process_time()
    with ThreadPoolExecutor(1) as thread:
        rooms = [_work.room() for _ in range(NUM_ROOMS)]
        gc.freeze()  # what is loaded stays: looking through it again and again took 2 % of the time
        last: Future | None = None
        written: deque[Future] = deque()  # of the rooms that are in use, in their order
        while (number := _work.add(shards_begun=1).shards_begun) < len(shards):
            writer = _work.writer(shards[number])
            for levels in _work.groups(shards[number].levels):
                if len(written) == NUM_ROOMS:
                    written.popleft().result()
                rooms.append(rooms.pop(0))
                episodes = _work.record(levels, rooms[-1])
                are_last = levels[-1] == shards[number].levels[-1]
                last = thread.submit(_work.write, writer, episodes, are_last, last)
                written.append(last)
        for future in written:
            future.result()
    _work.add(cpu_microseconds=round((time.process_time() - cpu_seconds) * 1e6))


def _probe(levels: Sequence[int]) -> list[tuple[int, float]]:
    """Frames of each level's episode, and bytes that a frame takes on the disk."""
    settings, found = _work.settings, []
    for group in _work.groups(levels):
        for episode in record_episodes(_work.game, _work.policy, group, settings.n_steps_max):
            found.append((len(episode.frames), _bytes_per_frame(episode, settings.compression)))
    return found


def _bytes_per_frame(episode: Episode, compression: str | None) -> float:
    if compression is None:
        return episode.frames[0].nbytes
    length = min(FRAMES_PER_PROBE, len(episode.frames))
    cut = Episode(*(part[:length] for part in episode[:3]), *episode[3:])
    with tempfile.TemporaryDirectory() as folder:
        write_shard(Path(folder) / "probe.h5", [cut], compression=compression)
        return (Path(folder) / "probe.h5").stat().st_size / length


# --------------------------------------------------------------------------------------------------- beside the workers


@contextmanager
def _children_ignore_interrupts() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C, not even while they start: it is the parent's to handle.

    They inherit that it is held back; for the parent one that comes meanwhile waits until the end and is not lost.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _announce_size(settings: Settings, job: Job, pool: ProcessPoolExecutor, num_workers: int) -> None:
    """Say what will be written; ValueError where the disk has no room for it."""
    levels = [level for shard in job.missing for level in shard.levels]
    free = shutil.disk_usage(settings.folder).free
    num_frames, about = len(levels) * settings.n_steps_max, "at most"
    num_bytes = num_frames * settings.image_size**2 * 3
    if len(levels) > 4 * NUM_PROBES or num_bytes > free:  # playing some of them beforehand is worth it
        num_frames, num_bytes = _estimate(pool, levels, num_workers)
        about = "about"
    print(
        f"{settings.name}: {len(levels):,} episodes, {about} {num_frames:,} frames and {_size(num_bytes)} "
        f"({_size(free)} free) to {settings.folder}, {num_workers} workers",
        flush=True,
    )
    if num_bytes > free:
        raise ValueError(
            f"root_dpath={settings.root_dpath} has {_size(free)} free, but about {_size(num_bytes)} are "
            "needed; set --root_dpath to another disk, fewer --n_instances, or --compression=gzip"
        )
    all_bytes = num_bytes * (1 + _num_episodes(job.elsewhere) / len(levels))
    if all_bytes > free:
        print(
            f"warning: with the other jobs' parts about {_size(all_bytes)} are needed, more than is free here",
            file=sys.stderr,
        )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"


def _estimate(pool: ProcessPoolExecutor, levels: Sequence[int], num_workers: int) -> tuple[int, int]:
    """Frames and bytes of the episodes of these levels, from some of them."""
    probes = levels[:: -(-len(levels) // NUM_PROBES)]
    with _children_ignore_interrupts():
        futures = [pool.submit(_probe, probes[number::num_workers]) for number in range(min(num_workers, len(probes)))]
    lengths, sizes = zip(*(pair for future in futures for pair in future.result()), strict=True)
    num_frames = sum(lengths) / len(probes) * len(levels)
    return round(num_frames), round(num_frames * sum(sizes) / len(sizes))


def _watch(pending: set[Future], recorded: Any, job: Job) -> float:
    """Show how far the job is until all workers are done or one fails; the seconds it took."""
    total, num_shards = _num_episodes(job.shards), len(job.shards)
    num_before = total - _num_episodes(job.missing)
    shards_before = num_shards - len(job.missing)
    with tqdm(
        total=total,
        initial=num_before,
        unit="episode",
        smoothing=0.1,
        mininterval=0.5 if sys.stderr.isatty() else 60,  # a log file keeps every line
    ) as bar:
        while pending:
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            now, seconds = Recorded(*recorded), max(bar.format_dict["elapsed"], 1e-9)
            shards = f"{shards_before + now.shards_written} of {num_shards} shards"
            bar.set_postfix_str(f"{now.frames / seconds:,.0f} frames/s, {shards}", refresh=False)
            bar.update(num_before + now.episodes - bar.n)
        return bar.format_dict["elapsed"]


def _num_episodes(shards: Sequence[Shard]) -> int:
    return sum(len(shard.levels) for shard in shards)
