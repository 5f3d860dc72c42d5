import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from data.episodes import Episodes, map_dataset, open_shard, write_json, write_shard
from tests.data.recorded import HEIGHT, WIDTH, make_dataset, make_episode

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = [5, 9, 1, 7, 12, 3, 4]


@pytest.fixture
def root(tmp_path):
    make_dataset(tmp_path, "toy", LENGTHS)
    return tmp_path


@pytest.mark.parametrize("compression", [None, "lzf", "gzip"])
def test_what_is_written_is_what_is_read(tmp_path, compression):
    written = make_dataset(tmp_path, "toy", LENGTHS, compression=compression)
    read = Episodes(tmp_path, "toy", "train")
    assert read.num_episodes == len(LENGTHS) and read.lengths.tolist() == LENGTHS
    assert read.level_seeds.tolist() == list(range(len(LENGTHS)))
    assert read.image_size == (HEIGHT, WIDTH) and read.num_actions == 7
    for number, episode in enumerate(written):
        length = LENGTHS[number]
        np.testing.assert_array_equal(read.frames(number, 0, length), episode.frames)
        np.testing.assert_array_equal(read.actions(number, 0, length), episode.actions[:-1])
        np.testing.assert_array_equal(read.rewards(number, 0, length), episode.rewards[:-1])


def test_frame_skip_takes_the_action_at_each_kept_frame_and_adds_up_rewards(root):
    read = Episodes(root, "toy", "train")
    assert read.frames(4, 1, 4, skip=3)[:, 0, 0, 1].tolist() == [1, 4, 7, 10]
    assert read.actions(4, 1, 4, skip=3).tolist() == [(4 + t) % 7 for t in (1, 4, 7)]
    np.testing.assert_allclose(read.rewards(4, 1, 4, skip=3), [0.6, 1.5, 2.4], rtol=1e-6)


def test_contiguous_frames_are_memory_mapped_and_equal_what_hdf5_reads(root):
    fpath = root / "toy" / "train-00001.h5"
    with h5py.File(fpath, "r") as file:
        assert file["frames"].chunks is None
        through_hdf5 = file["frames"][()]
    mapped = map_dataset(open_shard(fpath), "frames")
    assert isinstance(mapped.base, np.memmap)
    np.testing.assert_array_equal(mapped, through_hdf5)


def test_the_same_episodes_have_the_same_hash_whatever_the_compression(tmp_path):
    hashes = set()
    for compression in (None, "lzf", "gzip"):
        make_dataset(tmp_path, str(compression), LENGTHS, compression=compression)
        info = json.loads((tmp_path / str(compression) / "info.json").read_text())
        hashes.add(tuple(shard["sha256"] for shard in info["splits"]["train"]["shards"]))
    assert len(hashes) == 1


@pytest.mark.parametrize("compression", [None, "lzf"])
def test_readers_survive_pickling_and_forking(tmp_path, compression):
    written = make_dataset(tmp_path, "toy", LENGTHS, compression=compression)
    read = Episodes(tmp_path, "toy", "train")
    read.frames(1, 0, 9)  # opens a shard in this process first
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(read)).frames(1, 0, 9), written[1].frames)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(np.array(read.frames(1, 0, 9))))
    child.start()
    np.testing.assert_array_equal(queue.get(), written[1].frames)
    child.join()


def test_videos_without_actions_can_be_read(tmp_path):
    make_dataset(tmp_path, "videos", LENGTHS, with_actions=False)
    read = Episodes(tmp_path, "videos", "train")
    assert not read.has_actions and read.num_actions == 0
    assert read.actions(1, 0, 4) is None and read.rewards(1, 0, 4) is None
    assert read.frames(1, 0, 4).shape == (4, HEIGHT, WIDTH, 3)


def test_a_missing_dataset_is_answered_with_the_nearest_names_and_the_command_that_makes_it(root):
    with pytest.raises(FileNotFoundError, match=r"toyy.*nearest existing: toy;.*generate.py --list"):
        Episodes(root, "toyy", "train")
    with pytest.raises(FileNotFoundError, match=r"generate.py --config=coinrun_random_test$"):
        Episodes(root / "nowhere", "coinrun_v2.0.0_test", "train")


def test_a_missing_split_is_answered_with_those_that_exist(root):
    with pytest.raises(ValueError, match=r"split=test: dataset toy .* has train"):
        Episodes(root, "toy", "test")


def test_an_unfinished_dataset_is_not_read(root):
    (root / "toy" / "info.json").rename(root / "toy" / "unfinished.json")
    with pytest.raises(ValueError, match="is unfinished; run its generator again"):
        Episodes(root, "toy", "train")


def _truncate(fpath):
    with open(fpath, "r+b") as file:
        file.truncate(fpath.stat().st_size - 700)


def _rewrite(name, change):
    def damage(fpath):
        with h5py.File(fpath, "r+") as file:
            content = change(file[name][()])
            del file[name]
            if content is not None:
                file[name] = content

    return damage


def _lengthen(table):
    table["length"][-1] += 1
    return table


@pytest.mark.parametrize(
    "damage, message",
    [
        (_truncate, "is damaged: .*truncated"),
        (lambda fpath: fpath.write_bytes(b"not HDF5" * 100), "is damaged"),
        (lambda fpath: fpath.write_bytes(b""), "is damaged"),
        (lambda fpath: fpath.unlink(), "is missing; run its generator again"),
        (_rewrite("frames", lambda frames: None), "is damaged: it has no frames"),
        (_rewrite("frames", lambda frames: frames.astype(np.float32)), r"frames are float32 .* expected uint8"),
        (_rewrite("frames", lambda frames: frames[:, :3]), r"frames are uint8 \(22, 3, 6, 3\), expected .*22, 4, 6, 3"),
        (_rewrite("frames", lambda frames: frames[:-1]), "one per frame"),
        (_rewrite("actions", lambda actions: actions[:-1]), r"actions must be one per frame \(22\)"),
        (_rewrite("episodes", _lengthen), "its episode table reaches beyond its 22 frames"),
        (_rewrite("episodes", lambda table: np.arange(3.0)), "its episode table has float64, expected start, length"),
    ],
)
def test_a_damaged_shard_is_named_in_one_line(root, damage, message):
    damage(root / "toy" / "train-00001.h5")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Episodes(root, "toy", "train")
    assert "train-00001.h5" in str(caught.value) and "\n" not in str(caught.value)


def test_an_info_of_another_format_is_refused(root):
    info = json.loads((root / "toy" / "info.json").read_text())
    write_json(root / "toy" / "info.json", info | {"format": 99})
    with pytest.raises(ValueError, match="has format 99, this version reads format 1"):
        Episodes(root, "toy", "train")


def test_a_shard_larger_than_the_free_space_is_refused_before_anything_is_written(root, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
    before = set((root / "toy").iterdir())
    with pytest.raises(OSError, match=r"cannot write .*train-00009.h5: it needs 7 MB, the disk has 0 MB; free some"):
        write_shard(root / "toy" / "train-00009.h5", [make_episode(0, 100_000)])
    assert set((root / "toy").iterdir()) == before


def test_a_write_that_fails_midway_leaves_nothing_behind(tmp_path):
    # In a process of its own: HDF5 keeps the broken file open until the end.
    program = f"""
import resource
from pathlib import Path
from data.episodes import write_shard
from tests.data.recorded import make_episode
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    write_shard(Path({str(tmp_path)!r}) / "train-00000.h5", [make_episode(0, 500)])
except OSError as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True).stdout
    assert "cannot write" in output and "free some space" in output and output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
