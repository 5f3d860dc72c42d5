"""Datasets of any size at once, and what their size must not change: the time to open one, and the memory to read one.

They have real shards and a real index; their frames are holes in the files, which are read as black.
"""

import multiprocessing
import resource
import time
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data.clips import ClipDataset, training_batches
from data.episodes import FORMAT, TABLE, shard_name, summarise_shard, write_json

EPISODE_LENGTHS = (260, 500)  # CoinRun's hard levels under random actions: 380 frames on average
EPISODES_PER_SHARD = 50
IMAGE_SIZE = 64


def make_dataset(folder: Path, num_frames: int) -> Path:
    """Write a dataset of `num_frames` frames, or up to a shard more, with one split, `train`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    shards: list[dict[str, Any]] = []
    while sum(shard["frames"] for shard in shards) < num_frames:
        fpath = folder / shard_name("train", len(shards))
        _write_shard(fpath, rng, len(shards) * EPISODES_PER_SHARD)
        shards.append(summarise_shard(fpath))
    counts = {key: sum(shard[key] for shard in shards) for key in ("episodes", "frames")}
    info = {
        "format": FORMAT,
        "name": folder.name,
        "image_size": [IMAGE_SIZE, IMAGE_SIZE],
        "action_names": [f"action{number}" for number in range(7)],
        "splits": {"train": counts | {"shards": shards}},
    }
    write_json(folder / "info.json", info)
    return folder


def _write_shard(fpath: Path, rng: np.random.Generator, first_level: int) -> None:
    table = np.zeros(EPISODES_PER_SHARD, TABLE)
    table["length"] = rng.integers(*EPISODE_LENGTHS, len(table), endpoint=True)
    table["start"] = np.cumsum(table["length"]) - table["length"]
    table["level_seed"] = first_level + np.arange(len(table))
    num_frames = int(table["length"].sum())
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(fpath, "w") as file:
        space = h5py.h5s.create_simple((num_frames, IMAGE_SIZE, IMAGE_SIZE, 3))
        h5py.h5d.create(file.id, b"frames", h5py.h5t.STD_U8LE, space, layout)
        file["actions"] = rng.integers(0, 7, num_frames).astype("<i2")
        file["rewards"] = np.zeros(num_frames, "<f4")
        file["episodes"] = table
        file.attrs["hash"] = ""


def opening(folder: Path, num_frames: int) -> dict[str, Any]:
    """What opening a dataset takes: frames, clips, shards, seconds until it is open and until the first batch."""
    began = time.perf_counter()
    dataset = ClipDataset(folder.parent, folder.name, "train", num_frames)
    opened = time.perf_counter()
    next(training_batches(dataset, batch_size=1, seed=0))
    first = time.perf_counter()
    return {
        "frames": int(dataset.episodes.lengths.sum()),
        "clips": len(dataset),
        "shards": len(list(folder.glob("*.h5"))),
        "seconds": round(opened - began, 4),
        "seconds_to_first_batch": round(first - began, 4),
    }


def memory_growth(folder: Path, num_frames: int, *, batch_size: int, num_batches: int, room: int) -> dict[str, int]:
    """Bytes of anonymous memory that a process takes in addition while it reads random clips of a dataset.

    The process is allowed `room` bytes beyond what it has when it begins (RLIMIT_DATA), and is killed by a MemoryError
    where that is not enough. "early" is the growth after a tenth of the batches, "late" the largest after all.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_read_under_limit, (folder, num_frames, batch_size, num_batches, room))


def _read_under_limit(folder: Path, num_frames: int, batch_size: int, num_batches: int, room: int) -> dict[str, int]:
    dataset = ClipDataset(folder.parent, folder.name, "train", num_frames)
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + room, resource.RLIM_INFINITY))
    before, grown = status("RssAnon"), []
    for _ in islice(training_batches(dataset, batch_size=batch_size, seed=0), num_batches):
        grown.append(status("RssAnon") - before)
    return {
        "limit": room,
        "dataset": sum(fpath.stat().st_size for fpath in folder.glob("*.h5")),
        "read": num_batches * batch_size * num_frames * int(np.prod(dataset.image_size)) * 3,
        "early": max(grown[: max(1, num_batches // 10)]),
        "late": max(grown),
        "mapped": status("RssFile"),
    }


def status(key: str) -> int:
    """A size in bytes that Linux keeps of this process, such as RssAnon: memory that is no file's."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024
