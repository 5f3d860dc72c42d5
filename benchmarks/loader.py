"""Random clips off the disk: `python -m benchmarks.loader [--dataset=DIR] [--split=train]`.

Frames per second that one process gets from the training loader, as tensors, against a loop that does nothing but copy
the same clips out of a `numpy.memmap`; both with the data in the page cache, in turns, the fastest turn of each. Then
how long a dataset of 10 million frames takes to open, and how memory grows over one that is larger than the limit the
process has. With a dataset of real frames (--dataset, as `data_generation/generate.py` writes them): also from a disk
that has to be waited for, and every compression. Without: of black frames, which are copied as fast as any.
"""

import argparse
import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import large_data, machine
from data.clips import ClipDataset, training_batches
from data.episodes import Episode, open_shard, shard_name, summarise_shard, write_json, write_shard
from data.order import shuffled
from data.storage import COMPRESSIONS

NUM_FRAMES, BATCH_SIZE, SEED = 16, 48, 0
TURNS, BATCHES = 30, 40  # of each turn, some hundredths of a second, so that some are left alone
READY = 8  # batches let go before a turn: those that the loader prepared in the turns of others
COLD_BATCHES = 20
COMPRESSED_FRAMES = 16_000
CACHED_FRAMES, INDEXED_FRAMES, LARGE_FRAMES = 80_000, 10_000_000, 350_000  # 1, 123 and 4.3 GB of frames
ROOM = 2**30  # bytes of memory for reading the last of these


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, help="folder of a dataset that is not compressed (default: made up)")
    parser.add_argument("--split", default="train")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamp-loader-") as scratch:
        folder = Path(scratch)
        place = arguments.dataset or large_data.make_dataset(folder / "cached", CACHED_FRAMES)
        result = report_rates(place, arguments.split)
        if arguments.dataset is not None:
            result["from_disk"] = report_cold(place, arguments.split)
            result["compressions"] = report_compressions(place, arguments.split, folder / "compressed")
        result["index"] = report_index(folder / "indexed")
        result["memory"] = report_memory(folder / "large")
    print(json.dumps(result | {"machine": machine.describe()}))


def open_clips(folder: Path, split: str, **options: Any) -> ClipDataset:
    return ClipDataset(folder.parent, folder.name, split, NUM_FRAMES, **options)


def load(dataset: ClipDataset, **options: Any) -> Iterator[Any]:
    return training_batches(dataset, batch_size=BATCH_SIZE, seed=SEED, **options)


# ---------------------------------------------------------------------------------------------------------------- rate


def report_rates(folder: Path, split: str) -> dict[str, Any]:
    dataset = open_clips(folder, split)
    warm(folder, split)
    rates = frame_rates(
        {
            "copies into one array": copies(dataset, fresh=False),
            "copies into fresh arrays": copies(dataset, fresh=True),
            "loader": load(dataset),
            "loader, with rewards": load(open_clips(folder, split, with_rewards=True)),
        },
        TURNS,
    )
    # By themselves: they would go on reading ahead in the turns of others.
    rates |= frame_rates({"loader, 2 processes": load(dataset, num_workers=2)}, turns=5)
    reference = max(rates["copies into one array"], rates["copies into fresh arrays"])
    print(f"random clips of {NUM_FRAMES} frames in batches of {BATCH_SIZE}, {len(dataset):,} clips in the page cache")
    for way, rate in rates.items():
        print(f"  {way:26}{rate:12,.0f} frames/s {rate / reference:7.2f} of the copies")
    return {
        "name": "loader",
        "value": round(rates["loader"]),
        "unit": "frames/s",
        "reference": round(reference),
        "ratio": round(rates["loader"] / reference, 3),
        "rates": {way: round(rate) for way, rate in rates.items()},
    }


def frame_rates(ways: dict[str, Iterator[Any]], turns: int) -> dict[str, float]:
    """Frames per second of each iterator of batches, in turns after one that is not timed; the fastest counts."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(turns + 1):
        for way, batches in ways.items():
            timed(batches, READY)
            seconds[way].append(timed(batches, BATCHES))
    return {way: BATCHES * BATCH_SIZE * NUM_FRAMES / min(taken[1:]) for way, taken in seconds.items()}


def timed(batches: Iterator[Any], count: int) -> float:
    """Seconds for `count` batches, each let go before the next one is asked for."""
    began = time.perf_counter()
    deque(islice(batches, count), maxlen=0)  # a loop's variable would hold each one while the next is made
    return time.perf_counter() - began


def copies(dataset: ClipDataset, *, fresh: bool) -> Iterator[np.ndarray]:
    """The reference: the loader's clips copied in a loop, their places looked up before, into one or fresh batches."""
    maps, places = map_frames(dataset), plan(dataset)
    shape = (BATCH_SIZE, NUM_FRAMES, *maps[0].shape[1:])
    if not fresh:
        batch = np.zeros(shape, np.uint8)
    for shards, firsts in places:
        if fresh:
            batch = np.empty(shape, np.uint8)
        for row, shard, first in zip(batch, shards, firsts, strict=True):
            row[...] = maps[shard][first : first + NUM_FRAMES]
        yield batch
        if fresh:
            del batch, row  # a view, which would keep it


def plan(dataset: ClipDataset) -> list[tuple[list[int], list[int]]]:
    """The shard and the first frame there of every clip, batch by batch."""
    windows = shuffled(np.arange((READY + BATCHES) * (TURNS + 1) * BATCH_SIZE, dtype=np.uint64), len(dataset), SEED)
    episodes, starts = np.array([dataset.locate(window) for window in windows.tolist()]).T
    data = dataset.episodes
    last_episodes = np.cumsum([shard["episodes"] for shard in data.info["splits"][data.split]["shards"]])
    shards = np.searchsorted(last_episodes, episodes, side="right").reshape(-1, BATCH_SIZE)
    firsts = (data.starts[episodes] + starts).reshape(-1, BATCH_SIZE)
    return list(zip(shards.tolist(), firsts.tolist(), strict=True))


def map_frames(dataset: ClipDataset) -> list[np.ndarray]:
    maps = []
    for fpath in dataset.episodes.fpaths:
        with open_shard(fpath) as file:
            offset, shape = file["frames"].id.get_offset(), file["frames"].shape
        if offset is None:
            raise ValueError(f"{fpath} is compressed, which bare copies cannot read; set --dataset to one that is not")
        # As a plain array: every slice of the memmap class itself costs as much as a tenth of the copy.
        maps.append(np.asarray(np.memmap(fpath, np.uint8, "r", offset, shape)))
    return maps


def warm(folder: Path, split: str) -> None:
    for fpath in sorted(folder.glob(f"{split}-*.h5")):
        fpath.read_bytes()


# ---------------------------------------------------------------------------------------- the disk, smaller files, more


def report_cold(folder: Path, split: str) -> dict[str, int]:
    """Rates right after the system was asked to forget the files."""
    rates = {}
    for way in ("copies", "loader"):
        dataset = open_clips(folder, split)
        batches = copies(dataset, fresh=False) if way == "copies" else load(dataset)
        forget(folder, split)
        rates[way] = round(COLD_BATCHES * BATCH_SIZE * NUM_FRAMES / timed(batches, COLD_BATCHES))
    print(f"not in the page cache: copies {rates['copies']:,} frames/s, loader {rates['loader']:,} frames/s")
    return rates


def forget(folder: Path, split: str) -> None:
    for fpath in folder.glob(f"{split}-*.h5"):
        with open(fpath, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def report_compressions(folder: Path, split: str, scratch: Path) -> dict[str, Any]:
    """Size and rates of the same frames in every form."""
    episodes = real_episodes(folder, split)
    info = open_clips(folder, split).episodes.info | {"action_names": None}
    num_frames = sum(len(episode.frames) for episode in episodes)
    plain_bytes = sum(episode.frames.nbytes for episode in episodes)
    print(f"{num_frames:,} frames of {folder.name}, in the page cache")
    results = {}
    for compression in COMPRESSIONS:
        place = scratch / str(compression)
        place.mkdir(parents=True)
        fpath = place / shard_name("train", 0)
        began = time.perf_counter()
        write_shard(fpath, episodes, compression=compression)
        written = num_frames / (time.perf_counter() - began)
        shard = summarise_shard(fpath)
        splits = {"train": {"episodes": shard["episodes"], "frames": shard["frames"], "shards": [shard]}}
        write_json(place / "info.json", info | {"splits": splits})
        rate = frame_rates({"loader": load(open_clips(place, "train"))}, turns=2)["loader"]
        smaller = plain_bytes / fpath.stat().st_size
        print(
            f"  {compression or 'plain':8}{smaller:6.2f} x smaller {written:10,.0f} frames/s written {rate:12,.0f} read"
        )
        results[str(compression)] = {"smaller": round(smaller, 2), "written": round(written), "read": round(rate)}
    return results


def real_episodes(folder: Path, split: str) -> list[Episode]:
    data = open_clips(folder, split).episodes
    count = max(1, int(np.searchsorted(np.cumsum(data.lengths), COMPRESSED_FRAMES)))
    return [
        Episode(data.frames(number, 0, length), None, None, int(data.level_seeds[number]), "time_limit")
        for number, length in enumerate(data.lengths[:count].tolist())
    ]


def report_index(folder: Path) -> dict[str, Any]:
    large_data.make_dataset(folder, INDEXED_FRAMES)
    opened = min((large_data.opening(folder, NUM_FRAMES) for _ in range(3)), key=lambda taken: taken["seconds"])
    print(
        f"{opened['frames']:,} frames in {opened['shards']} shards: open in {opened['seconds']:.3f} s, "
        f"first clip after {opened['seconds_to_first_batch']:.3f} s"
    )
    return opened


def report_memory(folder: Path) -> dict[str, int]:
    large_data.make_dataset(folder, LARGE_FRAMES)
    count = 2 * LARGE_FRAMES // (BATCH_SIZE * NUM_FRAMES)
    grown = large_data.memory_growth(folder, NUM_FRAMES, batch_size=BATCH_SIZE, num_batches=count, room=ROOM)
    size = {key: f"{value / 2**20:,.0f} MB" for key, value in grown.items()}
    print(
        f"{size['read']} of clips out of {size['dataset']}, {size['limit']} of memory allowed: anonymous memory grows "
        f"by {size['early']} in the first tenth, by {size['late']} in all"
    )
    return grown


if __name__ == "__main__":
    main()
