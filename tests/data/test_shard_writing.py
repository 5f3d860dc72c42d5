import os
import subprocess
import sys
from pathlib import Path

import blake3
import h5py
import numpy as np
import pytest

from data.direct_file import BLOCK, DirectFile, room
from data.shard_writing import END_REASONS, FORMAT, TABLE, Episode, ShardWriter, frames_room, write_shard
from data.storage import COMPRESSIONS, frames_layout

ROOT = Path(__file__).resolve().parents[2]
# Sizes whose frames are whole blocks, parts of blocks, and less than HDF5 keeps aside for small data.
SIZES = [64, 32, 17, 2]


def make_episodes(size: int, lengths=(5, 1, 40, 7), out: np.ndarray | None = None, has_actions=True) -> list[Episode]:
    random, start, episodes = np.random.default_rng(0), 0, []
    out = np.empty((sum(lengths), size, size, 3), np.uint8) if out is None else out
    for number, length in enumerate(lengths):
        frames = out[start : start + length]
        frames[:] = random.integers(0, 256, frames.shape, np.uint8)
        actions = random.integers(0, 7, length).astype(np.int16) if has_actions else None
        rewards = random.random(length, np.float32) if has_actions else None
        episodes.append(Episode(frames, actions, rewards, 100 + number, END_REASONS[number % 4]))
        start += length
    return episodes


def as_hdf5_writes_it(fpath: Path, episodes: list[Episode], compression: str | None) -> bytes:
    """A shard that h5py writes in one go, as format 2 is defined."""
    lengths = [len(episode.frames) for episode in episodes]
    table = np.empty(len(episodes), TABLE)
    table["start"], table["length"] = np.cumsum(lengths) - lengths, lengths
    table["level_seed"] = [episode.level_seed for episode in episodes]
    table["end_reason"] = [END_REASONS.index(episode.end_reason) for episode in episodes]
    said = [part.tobytes() for episode in episodes for part in episode[:3] if part is not None] + [table.tobytes()]
    with h5py.File(fpath, "w") as file:
        file.attrs["format"] = FORMAT
        shape = (sum(lengths), *episodes[0].frames.shape[1:])
        frames = file.create_dataset("frames", shape, np.uint8, **frames_layout(compression, shape))
        for start, episode in zip(table["start"], episodes, strict=True):
            frames[start : start + len(episode.frames)] = episode.frames
        del frames
        for name in ("actions", "rewards"):
            if getattr(episodes[0], name) is not None:
                file[name] = np.concatenate([getattr(episode, name) for episode in episodes])
        file["episodes"] = table
        file.attrs["hash"] = "blake3:" + blake3.blake3(b"".join(said)).hexdigest()
    return fpath.read_bytes()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("size", SIZES)
def test_a_shard_has_the_bytes_that_hdf5_writes(tmp_path, size, compression):
    for has_actions in (True, False):
        episodes = make_episodes(size, has_actions=has_actions)
        write_shard(tmp_path / "ours.h5", episodes, compression=compression)
        assert (tmp_path / "ours.h5").read_bytes() == as_hdf5_writes_it(tmp_path / "other.h5", episodes, compression)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lengths, first", [((5, 1, 40, 7), 0), ((5, 1, 40, 7), 3), ((1,), 0)])
def test_the_bytes_are_the_same_from_memory_made_for_it(tmp_path, size, lengths, first):
    out = frames_room(first + sum(lengths), (size, size, 3))[first:]
    episodes = make_episodes(size, lengths, out)
    write_shard(tmp_path / "ours.h5", episodes)
    assert (tmp_path / "ours.h5").read_bytes() == as_hdf5_writes_it(tmp_path / "other.h5", episodes, None)


def test_memory_may_be_used_again_after_an_episode_was_added(tmp_path):
    write_shard(tmp_path / "at_once.h5", make_episodes(64))
    memory = frames_room(40, (64, 64, 3))
    writer = ShardWriter(tmp_path / "in_turn.h5")
    for episode in make_episodes(64):
        frames = memory[: len(episode.frames)]
        frames[:] = episode.frames
        writer.add(episode._replace(frames=frames))
        frames[:] = 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".in_turn.h5.tmp", "at_once.h5"]
    writer.finish()
    assert (tmp_path / "in_turn.h5").read_bytes() == (tmp_path / "at_once.h5").read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["at_once.h5", "in_turn.h5"]


@pytest.mark.parametrize("limit", [1_000, 300_000, 655_000])
def test_a_writer_that_finds_the_disk_full_says_so_and_leaves_nothing(tmp_path, limit):
    # In a process of its own, whose files may not grow beyond a size: 53 frames take 651,264 bytes, with all 661,000.
    program = f"""
import resource
from pathlib import Path
from data.shard_writing import write_shard
from tests.data.test_shard_writing import make_episodes
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
try:
    write_shard(Path({str(tmp_path)!r}) / "train-00000.h5", make_episodes(64))
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and "train-00000.h5: " in done.stdout and "free some space" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("offset", [0, 1, 2048, BLOCK])
@pytest.mark.parametrize("num_bytes", [0, 1, BLOCK - 1, 2 * BLOCK, 3 * BLOCK + 5, 50 * BLOCK])
def test_whatever_its_place_and_size_data_comes_back(tmp_path, offset, num_bytes):
    data = room(num_bytes, offset)
    data[:] = np.random.default_rng(0).integers(0, 256, num_bytes, np.uint8)
    file = DirectFile(tmp_path / "file")
    file.write(data, offset)
    file.write(np.full(offset, 7, np.uint8), 0)
    file.synchronise()
    file.close()
    assert (tmp_path / "file").read_bytes() == bytes([7] * offset) + data.tobytes()


def test_a_disk_that_cannot_be_written_directly_is_written_through_the_cache(tmp_path, monkeypatch):
    episodes = make_episodes(64, out=frames_room(53, (64, 64, 3)))
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    write_shard(tmp_path / "ours.h5", episodes)
    assert (tmp_path / "ours.h5").read_bytes() == as_hdf5_writes_it(tmp_path / "other.h5", episodes, None)
