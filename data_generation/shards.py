"""Writes a dataset's shards with several processes, and its `info.json` when all of them are there.

Which episodes a shard holds, and every byte of it, follow from the settings alone: a run that was interrupted goes on
with the missing shards, and the number of workers changes nothing.
"""

import fcntl
import importlib.metadata
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data.episodes import END_REASONS, FORMAT, UNFINISHED, shard_name, summarise_shard, write_json, write_shard
from data_generation.recording import REVISION, record_episode
from data_generation.settings import Settings

NUM_PROBES = 16  # episodes played beforehand to tell how large the dataset will be


class Shard(NamedTuple):
    """A piece of the work: consecutive levels of one split."""

    split: str
    number: int
    levels: range

    @property
    def file(self) -> str:
        return shard_name(self.split, self.number)


class Summary(NamedTuple):
    """What a call did: frames written by it, and whether anything was left to do."""

    num_frames: int
    num_shards: int
    seconds: float


def plan(settings: Settings) -> list[Shard]:
    size = settings.episodes_per_shard
    return [
        Shard(split, number, levels[number * size : (number + 1) * size])
        for split, levels in settings.levels().items()
        for number in range(-(-len(levels) // size))
    ]


def generate(settings: Settings) -> Summary:
    """Write what is missing of the dataset; raises ValueError where its folder belongs to another config or run."""
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    with only_one_generator(folder):
        _refuse_another_config(folder, settings)
        shards = plan(settings)
        missing = [shard for shard in shards if not (folder / shard.file).exists()]
        if not missing and (folder / "info.json").exists():
            return Summary(0, 0, 0.0)
        write_json(folder / UNFINISHED, _origin(settings))
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        if len(missing) < len(shards):
            print(f"{len(shards) - len(missing)} of {len(shards)} shards are there already", flush=True)
        num_frames, seconds = _write_shards(settings, missing) if missing else (0, 0.0)
        write_json(folder / "info.json", _info(settings, shards))
        (folder / UNFINISHED).unlink()
        return Summary(num_frames, len(missing), seconds)


@contextmanager
def only_one_generator(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it when the process ends, however it ends."""
    with open(folder / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{folder} is being written by another generator ({file.read()}); wait for it, or set another --name"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _origin(settings: Settings) -> dict[str, Any]:
    """Everything needed to make the same bytes again."""
    return {"revision": REVISION, "procgen": _procgen_version(), "config": settings.content}


def _procgen_version() -> str:
    for package in ("procgen-mirror", "procgen"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _refuse_another_config(folder: Path, settings: Settings) -> None:
    if (folder / "info.json").exists():
        found = json.loads((folder / "info.json").read_text()).get("generator", {})
    elif (folder / UNFINISHED).exists():
        found = json.loads((folder / UNFINISHED).read_text())
    elif any(folder.glob("*.h5")):
        raise ValueError(f"{folder} holds shards of an unknown config (no info.json); set another --name or delete it")
    else:
        return
    theirs = {"revision": found.get("revision"), **found.get("config", {})}
    ours = {"revision": REVISION, **settings.content}
    different = [key for key in theirs | ours if theirs.get(key) != ours.get(key)]
    if different:
        there = ", ".join(f"{key}={theirs.get(key)}" for key in different)
        here = ", ".join(f"{key}={ours.get(key)}" for key in different)
        raise ValueError(f"{folder} was made with {there}, this run asks for {here}; set another --name or delete it")


def _info(settings: Settings, shards: list[Shard]) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for shard in shards:
        summary = summarise_shard(settings.folder / shard.file)
        split = splits.setdefault(shard.split, {"episodes": 0, "frames": 0, "shards": []})
        split["episodes"] += summary["episodes"]
        split["frames"] += summary["frames"]
        split["shards"].append(summary)
    for split, levels in settings.levels().items():
        splits[split]["levels"] = [levels.start, levels.stop]
    return {
        "format": FORMAT,
        "name": settings.name,
        "version": settings.version,
        "game": settings.game,
        "image_size": [settings.image_size, settings.image_size],
        "action_names": list(settings.simulated.action_names),
        "end_reasons": list(END_REASONS),
        "generator": _origin(settings),
        "splits": splits,
    }


# -------------------------------------------------------------------------------------------------------- the workers

_recorded: Any = None  # per worker process: the frames recorded so far by all workers


@contextmanager
def _children_ignore_interrupts() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C, not even while they start: it is the parent's to handle."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _start_worker(recorded: Any) -> None:
    global _recorded
    _recorded = recorded
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent must not leave a worker behind that still writes when the next run has started."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _length(settings: Settings, level: int) -> int:
    return len(record_episode(settings.simulated, settings.policy(), level, settings.n_steps_max).frames)


@cache
def _shard_room(num_frames: int, picture_shape: tuple[int, ...]) -> np.ndarray:
    """Memory for a worker's shards, one after the other; only what an episode fills is ever claimed."""
    return np.empty((num_frames, *picture_shape), np.uint8)


def _write_one(settings: Settings, shard: Shard) -> None:
    game, policy = settings.simulated, settings.policy()
    episodes, start = [], 0
    room = _shard_room(settings.episodes_per_shard * settings.n_steps_max, game.picture_shape)
    for level in shard.levels:
        episodes.append(record_episode(game, policy, level, settings.n_steps_max, room[start:]))
        start += len(episodes[-1].frames)
        with _recorded.get_lock():
            _recorded.get_obj()[0] += 1
            _recorded.get_obj()[1] += len(episodes[-1].actions)
    write_shard(settings.folder / shard.file, episodes, compression=settings.compression)


def _write_shards(settings: Settings, shards: list[Shard]) -> tuple[int, float]:
    """Frames written and seconds needed, the start of the workers not counted."""
    num_workers = min(settings.n_workers, len(shards))
    context = multiprocessing.get_context("spawn")  # Procgen and HDF5 may hold locks and threads that fork would copy
    recorded = context.Array("q", 2)
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(recorded,))
    try:
        _announce_size(settings, pool, shards, num_workers)
        with _children_ignore_interrupts():
            pending = {pool.submit(_write_one, settings, shard) for shard in shards}
        seconds = _watch(pending, recorded, sum(len(shard.levels) for shard in shards))
    except BrokenProcessPool:
        raise ValueError(
            f"a worker was killed, most likely for want of memory ({num_workers} workers hold one shard each); "
            "finished shards are kept; run this again with a smaller --n_workers or --episodes_per_shard"
        ) from None
    except BaseException:
        for process in list(pool._processes.values()):  # the executor has no public way to stop running calls
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return int(recorded[1]), seconds


def _announce_size(settings: Settings, pool: ProcessPoolExecutor, shards: list[Shard], num_workers: int) -> None:
    levels = [level for shard in shards for level in shard.levels]
    probes = levels[:: -(-len(levels) // NUM_PROBES)]
    with _children_ignore_interrupts():
        lengths = [pool.submit(_length, settings, level) for level in probes]
    num_frames = round(sum(length.result() for length in lengths) / len(probes) * len(levels))
    num_bytes = num_frames * settings.image_size**2 * 3
    free = shutil.disk_usage(settings.folder).free
    print(
        f"{settings.name}: {len(levels):,} episodes, about {num_frames:,} frames and {num_bytes / 1e9:.2f} GB "
        f"({free / 1e9:.0f} GB free) to {settings.folder}, {num_workers} workers",
        flush=True,
    )
    if settings.compression is None and num_bytes > free:
        raise ValueError(
            f"root_dpath={settings.root_dpath} has {free / 1e9:.1f} GB free, but about {num_bytes / 1e9:.1f} GB are "
            "needed; set --root_dpath to another disk, fewer --n_instances, or --compression=gzip"
        )


def _watch(pending: set[Future], recorded: Any, num_episodes: int) -> float:
    with tqdm(total=num_episodes, unit="episode", smoothing=0.1, mininterval=0.5) as bar:
        while pending:
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            seconds = max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{recorded[1] / seconds:,.0f} frames/s", refresh=False)
            bar.update(recorded[0] - bar.n)
        return bar.format_dict["elapsed"]
