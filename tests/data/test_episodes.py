import fcntl
import json
import mmap
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from data.episodes import Episodes, map_dataset, open_shard, write_json, write_shard
from data.storage import COMPRESSIONS, KEPT_OPEN
from tests.data.recorded import HEIGHT, WIDTH, make_dataset, make_episode

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = [5, 9, 1, 7, 12, 3, 4]


@pytest.fixture
def root(tmp_path):
    make_dataset(tmp_path, "toy", LENGTHS)
    return tmp_path


@pytest.mark.parametrize("compression", COMPRESSIONS)
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
    assert isinstance(mapped.base, mmap.mmap) and not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, through_hdf5)


def test_the_same_episodes_have_the_same_hash_whatever_the_compression(tmp_path):
    hashes = set()
    for compression in COMPRESSIONS:
        make_dataset(tmp_path, str(compression), LENGTHS, compression=compression)
        info = json.loads((tmp_path / str(compression) / "info.json").read_text())
        hashes.add(tuple(shard["hash"] for shard in info["splits"]["train"]["shards"]))
    assert len(hashes) == 1


@pytest.mark.parametrize("compression", [None, "lzf", "blosc"])
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


def test_recordings_with_actions_need_no_rewards(tmp_path):
    make_dataset(tmp_path, "played", LENGTHS)
    for fpath in (tmp_path / "played").glob("*.h5"):
        _rewrite("rewards", lambda rewards: None)(fpath)
    read = Episodes(tmp_path, "played", "train")
    assert read.has_actions and not read.has_rewards
    assert read.actions(1, 0, 4).tolist() == [1, 2, 3] and read.rewards(1, 0, 4) is None


@pytest.mark.parametrize("to_read_ahead", [False, True])
def test_gathered_rows_are_those_of_each_episode(root, to_read_ahead):
    read = Episodes(root, "toy", "train")
    episodes, starts = np.array([4, 1, 4, 3]), np.array([3, 0, 1, 2])
    for name, length, skip in (("frames", 4, 1), ("frames", 3, 2), ("actions", 4, 1), ("rewards", 4, 1)):
        one_more = {"frames": 0}.get(name, 1)  # T frames have T-1 actions and rewards
        expected = [
            getattr(read, name)(episode, start, length + one_more, skip)
            for episode, start in zip(episodes, starts, strict=True)
        ]
        out = np.empty_like(np.stack(expected))
        places = read.places(episodes, starts, (out.shape[1] - 1) * skip + 1)
        read.gather(name, places, out, skip, to_read_ahead=to_read_ahead)
        np.testing.assert_array_equal(out, expected)


def test_a_missing_dataset_is_answered_with_the_nearest_names_and_the_command_that_makes_it(root):
    with pytest.raises(
        FileNotFoundError, match=r"toyy.*nearest existing: toy;.*--mode=import --input=FOLDER --name=toyy$"
    ):
        Episodes(root, "toyy", "train")
    with pytest.raises(FileNotFoundError, match=r"make it: bash run.sh --mode=generate --config=coinrun_random_test$"):
        Episodes(root / "nowhere", "coinrun_v2.0.0_test", "train")


def test_a_missing_split_is_answered_with_those_that_exist(root):
    with pytest.raises(ValueError, match=r"split=test: dataset toy .* has train"):
        Episodes(root, "toy", "test")


@pytest.mark.parametrize("shards", [[], ["the first"]])
def test_an_empty_split_is_one_line(root, shards):
    info = json.loads((root / "toy" / "info.json").read_text())
    info["splits"]["test"] = {"episodes": 0, "frames": 0, "shards": []}
    if shards:  # a shard without episodes
        fpath = root / "toy" / "test-00000.h5"
        shutil.copy(root / "toy" / "train-00000.h5", fpath)
        _rewrite("episodes", lambda table: table[:0])(fpath)
        info["splits"]["test"]["shards"] = [{"file": fpath.name, "episodes": 0, "frames": 15, "hash": ""}]
    write_json(root / "toy" / "info.json", info)
    with pytest.raises(ValueError, match=r"^split=test of dataset toy in .* holds no episodes$"):
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


def _forget_listing(root):
    """Make the dataset one of before shards' episodes were listed in info.json."""
    info = json.loads((root / "toy" / "info.json").read_text())
    for shard in info["splits"]["train"]["shards"]:
        for key in ("bytes", "lengths", "level_seeds", "end_reasons"):
            del shard[key]
    write_json(root / "toy" / "info.json", info)


def _change_listing(root, **changes):
    info = json.loads((root / "toy" / "info.json").read_text())
    info["splits"]["train"]["shards"][1].update(changes)
    write_json(root / "toy" / "info.json", info)


def test_a_dataset_opens_without_opening_its_shards(root):
    tables = ("starts", "lengths", "level_seeds", "end_reasons")
    listed = Episodes(root, "toy", "train")
    for fpath in (root / "toy").glob("*.h5"):
        fpath.rename(fpath.with_suffix(".hidden"))
        fpath.write_bytes(bytes(fpath.with_suffix(".hidden").stat().st_size))
    blind = Episodes(root, "toy", "train")
    for fpath in (root / "toy").glob("*.h5"):
        fpath.with_suffix(".hidden").rename(fpath)
    _forget_listing(root)
    read = Episodes(root, "toy", "train")
    for table in tables:
        np.testing.assert_array_equal(getattr(listed, table), getattr(read, table))
        np.testing.assert_array_equal(getattr(blind, table), getattr(read, table))
    np.testing.assert_array_equal(blind.frames(4, 0, 12), read.frames(4, 0, 12))


def test_a_shard_of_another_size_than_listed_is_asked_itself(root):
    _change_listing(root, bytes=5, lengths="1 1 1")
    assert Episodes(root, "toy", "train").lengths.tolist() == LENGTHS


DAMAGES = pytest.mark.parametrize(
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
        (
            _rewrite("actions", lambda actions: actions + 0.5),
            r"actions are float64, expected whole numbers from 0 to 6",
        ),
        (
            _rewrite("actions", lambda actions: actions + 1),
            r"actions reach from 1 to 7, expected whole numbers from 0 to 6",
        ),
        (_rewrite("actions", lambda actions: actions - 1), r"actions reach from -1 to 5, expected"),
        (_rewrite("rewards", lambda rewards: rewards.astype(int)), r"rewards are int64, expected fractional numbers"),
        (_rewrite("episodes", _lengthen), "its episode table reaches beyond its 22 frames"),
        (_rewrite("episodes", lambda table: np.arange(3.0)), "its episode table has float64, expected start, length"),
    ],
)


@DAMAGES
def test_a_damaged_shard_is_named_in_one_line(root, damage, message):
    _forget_listing(root)
    damage(root / "toy" / "train-00001.h5")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Episodes(root, "toy", "train")
    assert "train-00001.h5" in str(caught.value) and "\n" not in str(caught.value)


@DAMAGES
def test_a_damaged_shard_that_is_listed_is_named_when_it_is_touched_at_the_latest(root, damage, message):
    damage(root / "toy" / "train-00001.h5")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Episodes(root, "toy", "train").frames(4, 0, 4)
    assert "train-00001.h5" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [_truncate, lambda fpath: fpath.write_bytes(b""), lambda fpath: fpath.unlink()])
def test_what_is_cut_off_or_missing_shows_before_anything_is_read(root, damage):
    damage(root / "toy" / "train-00002.h5")
    with pytest.raises((ValueError, FileNotFoundError), match=r"train-00002.h5 is (damaged|missing)"):
        Episodes(root, "toy", "train")


def test_a_shard_of_other_episodes_is_not_taken_for_the_listed_one(root):
    make_dataset(root, "other", [5, 9, 1, 8, 11, 3, 4])  # as many frames in each shard
    shutil.copy(root / "other" / "train-00001.h5", root / "toy" / "train-00001.h5")
    read = Episodes(root, "toy", "train")
    with pytest.raises(ValueError, match=r"train-00001.h5 is damaged: its episodes are not those that info.json lists"):
        read.frames(4, 0, 4)


def test_a_shard_that_lacks_what_the_others_hold_is_named(root):
    _rewrite("rewards", lambda rewards: None)(root / "toy" / "train-00001.h5")
    read = Episodes(root, "toy", "train")
    assert read.has_rewards
    with pytest.raises(
        ValueError, match=r"train-00001.h5 is damaged: it holds frames, actions, but another shard frames"
    ):
        read.rewards(4, 0, 4)


@pytest.mark.parametrize("lengths", ["7 12", "7 12 x", "7 12 3 1"])
def test_a_listing_that_cannot_be_is_one_line(root, lengths):
    _change_listing(root, lengths=lengths)
    with pytest.raises(ValueError, match=r"^\S*info.json lists the episodes of train-00001.h5 wrongly .* remove bytes"):
        Episodes(root, "toy", "train")


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info.pop("image_size"),
        lambda info: info.pop("action_names"),
        lambda info: info.pop("splits"),
        lambda info: info.update(splits=[]),
        lambda info: info.update(image_size="64"),
        lambda info: info.update(image_size=[64]),
        lambda info: info.update(action_names=[]),
        lambda info: info["splits"]["train"].pop("shards"),
        lambda info: info["splits"]["train"]["shards"][0].pop("file"),
        lambda info: info["splits"]["train"]["shards"][0].pop("episodes"),
    ],
)
def test_an_info_that_lacks_something_is_one_line(root, change):
    info = json.loads((root / "toy" / "info.json").read_text())
    change(info)
    write_json(root / "toy" / "info.json", info)
    with pytest.raises(ValueError, match=r"^\S*toy/info.json is not built as data/episodes.py says \(.+\); .+$"):
        Episodes(root, "toy", "train")


def test_an_info_of_another_format_is_refused(root):
    info = json.loads((root / "toy" / "info.json").read_text())
    write_json(root / "toy" / "info.json", info | {"format": 99})
    with pytest.raises(ValueError, match="has format 99, this version reads 1 and 2"):
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


def test_a_small_file_that_cannot_be_written_is_named_in_one_line(tmp_path):
    (tmp_path / ".info.json.tmp").mkdir()
    with pytest.raises(OSError, match=r"^cannot write \S*/info.json \(Is a directory\); free some space or choose"):
        write_json(tmp_path / "info.json", {})


def test_damaged_compressed_frames_are_named_when_they_are_read(tmp_path):
    make_dataset(tmp_path, "toy", LENGTHS, compression="gzip")
    fpath = tmp_path / "toy" / "train-00001.h5"
    with h5py.File(fpath, "r") as file:
        chunk = file["frames"].id.get_chunk_info(1)
    with open(fpath, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"?" * chunk.size)
    read = Episodes(tmp_path, "toy", "train")
    np.testing.assert_array_equal(read.frames(3, 0, 3)[:, 0, 0, 1], [0, 1, 2])
    places, batch = read.places(np.array([3]), np.array([3]), 4), np.empty((1, 4, HEIGHT, WIDTH, 3), np.uint8)
    for reading in (
        lambda: read.frames(3, 3, 4),
        lambda: read.gather("frames", places, batch),
    ):
        with pytest.raises(ValueError, match=r"train-00001.h5 is damaged: .* cannot be decompressed, .*; delete that"):
            reading()


def test_a_compressed_shard_that_was_made_again_is_read_anew(tmp_path):
    make_dataset(tmp_path, "toy", LENGTHS, compression="lzf")
    make_dataset(tmp_path, "other", [length + 1 for length in LENGTHS], compression="lzf")
    assert Episodes(tmp_path, "toy", "train").frames(4, 0, 12)[-1, 0, 0, 1] == 11
    shutil.rmtree(tmp_path / "toy")
    (tmp_path / "other").rename(tmp_path / "toy")
    assert Episodes(tmp_path, "toy", "train").frames(4, 1, 12)[-1, 0, 0, 1] == 12


@pytest.mark.parametrize("compression", [None, "lzf"])
def test_a_shard_can_be_read_while_this_process_has_it_open(tmp_path, compression):
    make_dataset(tmp_path, "toy", LENGTHS, compression=compression)
    fpath = tmp_path / "toy" / "train-00001.h5"
    read = Episodes(tmp_path, "toy", "train")
    with h5py.File(fpath, "r"):
        assert read.frames(4, 0, 12)[-1, 0, 0, 1] == 11
        with h5py.File(fpath, "r") as file:
            assert file["frames"].shape[0] == 22


def test_a_shard_is_read_where_it_cannot_be_locked(root):
    with open(root / "toy" / "train-00001.h5", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert Episodes(root, "toy", "train").frames(4, 0, 12)[-1, 0, 0, 1] == 11


def test_compressed_shards_are_closed_again_when_there_are_many(tmp_path):
    make_dataset(tmp_path, "toy", [4] * (KEPT_OPEN + 20), episodes_per_shard=1, compression="lzf")
    read = Episodes(tmp_path, "toy", "train")
    for _ in range(2):
        levels = [int(read.frames(number, 0, 4)[0, 0, 0, 0]) for number in range(read.num_episodes)]
        assert levels == list(range(read.num_episodes))
        is_open = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        # Each shard's actions and rewards are mapped besides.
        assert sum(fpath.startswith(str(tmp_path)) for fpath in is_open) <= KEPT_OPEN + read.num_episodes


def test_an_unknown_compression_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="compression=zip is not one of null, lzf, gzip, blosc"):
        write_shard(tmp_path / "train-00000.h5", [make_episode(0, 5)], compression="zip")
    assert list(tmp_path.iterdir()) == []


def _run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_blosc_needs_its_package_and_says_how_to_get_it(tmp_path):
    for compression in COMPRESSIONS:
        make_dataset(tmp_path, str(compression), LENGTHS, compression=compression)
    output = _run(f"""
import sys
sys.modules["hdf5plugin"] = None  # as where it is not installed
from pathlib import Path
from data.episodes import Episodes, write_shard
from tests.data.recorded import make_episode
root = Path({str(tmp_path)!r})
for name in ("None", "lzf", "gzip"):
    assert Episodes(root, name, "train").frames(4, 0, 12).shape[0] == 12
for attempt in (
    lambda: Episodes(root, "blosc", "train").frames(4, 0, 12),
    lambda: write_shard(root / "train-00000.h5", [make_episode(0, 5)], compression="blosc"),
):
    try:
        attempt()
    except ValueError as error:
        print(error)
""")
    reading, writing = output.splitlines()
    assert reading.endswith("train-00001.h5 is compressed with blosc; to read it: pip install hdf5plugin")
    assert writing == "compression=blosc needs a package (pip install hdf5plugin); or set it to gzip, lzf or null"


@pytest.mark.parametrize("compression", [None, "blosc"])
def test_more_shards_than_files_may_be_open_need_a_higher_limit_and_get_it_where_possible(tmp_path, compression):
    make_dataset(tmp_path, "toy", [4] * 40, episodes_per_shard=1, compression=compression)
    output = _run(f"""
import resource
from data.episodes import Episodes
if {compression!r}:
    import hdf5plugin
for hard in (200, 40):
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, hard))
    read = Episodes({str(tmp_path)!r}, "toy", "train")
    try:
        print(sum(int(read.frames(number, 0, 4)[0, 0, 0, 0]) for number in range(40)))
    except OSError as error:
        print(error)
    del read
""")
    total, error = output.splitlines()
    assert int(total) == sum(range(40))
    assert "cannot be opened: Too many open files; raise `ulimit -n`" in error and ".h5" in error
