import gc
import itertools
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from data.clips import PLANNED, ClipDataset, evaluation_clips, training_batches
from data.episodes import summarise_shard, write_json, write_shard
from data.order import hash64, shuffled
from tests.data.recorded import HEIGHT, WIDTH, make_dataset, make_episode

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = [5, 9, 1, 7, 12, 3, 4]


@pytest.fixture
def root(tmp_path):
    make_dataset(tmp_path, "toy", LENGTHS)
    return tmp_path


@pytest.fixture
def dataset(root):
    return ClipDataset(root, "toy", "train", 4)


class Watched(ClipDataset):
    """Knows which thread made each batch."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.makers = []

    def read(self, windows, seeds=None):
        clip = super().read(windows, seeds)
        self.makers.append(threading.current_thread().name)
        return clip


def windows_of(clip) -> list[tuple[int, int]]:
    """(level, first frame) of each row, from the pixels."""
    return [tuple(row) for row in clip.frames[:, 0, :2, 0, 0].tolist()]


def take(batches, count):
    return list(itertools.islice(batches, count))


@pytest.mark.parametrize("num_frames, frame_skip, seq_step", [(1, 1, 1), (4, 1, 1), (4, 1, 3), (3, 2, 1), (3, 4, 2)])
def test_windows_are_all_that_fit_into_an_episode_the_last_included(root, num_frames, frame_skip, seq_step):
    dataset = ClipDataset(root, "toy", "train", num_frames, frame_skip=frame_skip, seq_step=seq_step)
    span = (num_frames - 1) * frame_skip + 1
    expected = [
        (level, start) for level, length in enumerate(LENGTHS) for start in range(0, length - span + 1, seq_step)
    ]
    assert len(dataset) == len(expected)
    assert [dataset.locate(index) for index in range(len(dataset))] == expected
    for index, (level, start) in enumerate(expected):
        clip = dataset[index]
        times = torch.arange(start, start + span, frame_skip)
        assert clip.frames.shape == (num_frames, 3, HEIGHT, WIDTH) and clip.frames.dtype == torch.uint8
        assert (clip.frames[:, 0] == level).all() and (clip.frames[:, 1, 2, 3] == times).all()
        assert clip.actions.tolist() == [(level + time) % 7 for time in times.tolist()[:-1]]
        assert dataset.level_seed(index) == level


def test_a_window_beyond_the_end_is_an_index_error(dataset):
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_frames_become_floats_between_0_and_1_when_they_reach_the_device(dataset):
    clip = dataset.batch(np.array([0, 9]))
    moved = clip.to("cpu")
    assert moved.frames.dtype == torch.float32 and moved.frames.is_contiguous()
    assert torch.equal((moved.frames * 255).round().to(torch.uint8), clip.frames)
    assert torch.equal(moved.to("cpu").frames, moved.frames)


@pytest.mark.parametrize("size", [1, 2, 3, 17, 256, 1000])
def test_every_window_comes_once_per_epoch_and_each_epoch_in_another_order(size):
    order = shuffled(np.arange(3 * size, dtype=np.uint64), size, seed=5).reshape(3, size)
    assert (np.sort(order) == np.arange(size)).all()
    if size > 3:
        assert not (order[0] == order[1]).all() and not (order[0] == np.arange(size)).all()


def test_orders_of_a_small_dataset_are_all_about_equally_frequent():
    orders = np.stack([shuffled(np.arange(4, dtype=np.uint64), 4, seed) for seed in range(2400)])
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24 and counts.min() > 60 and counts.max() < 140


def test_seeds_of_clips_are_distinct_and_not_negative():
    seeds = np.concatenate([hash64(seed, np.arange(1000, dtype=np.uint64)) for seed in (0, 1, -1)])
    assert (seeds >= 0).all() and len(np.unique(seeds)) == 3000


def test_an_epoch_of_batches_shows_every_window_once(dataset):
    assert len(dataset) == 22
    batches = take(training_batches(dataset, batch_size=11, seed=3), 4)
    seen = [window for clip in batches for window in windows_of(clip)]
    every = sorted(dataset.locate(index) for index in range(len(dataset)))
    assert sorted(seen[:22]) == every and sorted(seen[22:]) == every


@pytest.mark.parametrize("clips_consumed", [0, 12])
def test_ranks_together_show_what_one_process_shows_on_the_joint_batch(dataset, clips_consumed):
    joint = training_batches(dataset, batch_size=6, seed=1, clips_consumed=clips_consumed)
    ranks = [
        training_batches(dataset, batch_size=2, seed=1, clips_consumed=clips_consumed, rank=rank, world_size=3)
        for rank in range(3)
    ]
    for whole, *parts in zip(take(joint, 7), *(take(rank, 7) for rank in ranks), strict=True):
        for field in ("frames", "actions", "seeds"):
            assert torch.equal(getattr(whole, field), torch.cat([getattr(part, field) for part in parts]))


def test_a_resumed_stream_goes_on_like_the_unbroken_one(dataset):
    unbroken = take(training_batches(dataset, batch_size=4, seed=2), 12)
    resumed = take(training_batches(dataset, batch_size=4, seed=2, clips_consumed=5 * 4), 7)
    for one, other in zip(unbroken[5:], resumed, strict=True):
        assert torch.equal(one.frames, other.frames) and torch.equal(one.seeds, other.seeds)


def test_a_resumed_stream_goes_on_across_the_stretches_that_are_planned_at_once(dataset):
    unbroken = take(training_batches(dataset, batch_size=2, seed=2), 2 * PLANNED + 3)
    resumed = take(training_batches(dataset, batch_size=2, seed=2, clips_consumed=2 * (PLANNED - 1)), 6)
    for one, other in zip(unbroken[PLANNED - 1 :], resumed, strict=False):
        assert torch.equal(one.frames, other.frames) and torch.equal(one.seeds, other.seeds)


def test_batches_belong_to_those_who_got_them(dataset):
    kept = take(training_batches(dataset, batch_size=4, seed=2), 5)
    for clip in kept:
        for part in (clip.frames, clip.actions, clip.seeds):
            part.zero_()
    again = take(training_batches(dataset, batch_size=4, seed=2), 5)
    assert all(clip.seeds.min() > 0 and clip.frames.any() for clip in again)
    assert not any(part.any() for clip in kept for part in (clip.frames, clip.actions, clip.seeds))


@pytest.mark.parametrize("compression", [None, "blosc"])
def test_loader_processes_change_nothing_and_leave_the_global_generator_alone(tmp_path, compression):
    make_dataset(tmp_path, "toy", LENGTHS, compression=compression)
    dataset = ClipDataset(tmp_path, "toy", "train", 4, with_rewards=True)
    alone = take(training_batches(dataset, batch_size=4, seed=2), 6)
    state = torch.get_rng_state()
    helped = take(training_batches(dataset, batch_size=4, seed=2, num_workers=2), 6)
    assert torch.equal(state, torch.get_rng_state())
    for one, other in zip(alone, helped, strict=True):
        for part in ("frames", "actions", "rewards", "ends", "seeds"):
            assert torch.equal(getattr(one, part), getattr(other, part))


KILLED = """
import multiprocessing, os, signal, sys
import torch
from data.clips import ClipDataset, training_batches

if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")
    batches = training_batches(ClipDataset(sys.argv[1], "toy", "train", 4), batch_size=4, seed=2, num_workers=2)
    print([next(batches).seeds.tolist() for _ in range(3)])
    print([child.pid for child in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_loader_processes_start_anew_as_well_as_forked_and_end_with_a_parent_that_is_killed(tmp_path):
    make_dataset(tmp_path, "toy", LENGTHS, compression="blosc")
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "killed.py"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True).stdout
    seeds, workers = map(json.loads, output.splitlines())
    batches = training_batches(ClipDataset(tmp_path, "toy", "train", 4), batch_size=4, seed=2)
    assert len(workers) == 2 and seeds == [next(batches).seeds.tolist() for _ in range(3)]
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline, "loader processes outlive their parent"
        time.sleep(0.2)


@pytest.mark.parametrize("compression, waits, num_ahead", [(None, False, 1), (None, True, 2), ("gzip", False, 2)])
def test_the_next_batches_are_made_in_the_background_while_the_last_one_is_used(
    tmp_path, compression, waits, num_ahead, monkeypatch
):
    if waits:
        monkeypatch.setattr("data.episodes.disk_waits", itertools.count().__next__)
    make_dataset(tmp_path, "toy", LENGTHS, compression=compression)
    dataset = Watched(tmp_path, "toy", "train", 4)
    batches = training_batches(dataset, batch_size=4, seed=2)
    next(batches)
    deadline = time.monotonic() + 60
    while len(dataset.makers) < 1 + num_ahead and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(dataset.makers) == 1 + num_ahead
    assert threading.current_thread().name not in dataset.makers[1:]
    others = take(training_batches(dataset, batch_size=4, seed=2), 5)[1:]
    for one, other in zip(take(batches, 4), others, strict=True):
        assert torch.equal(one.frames, other.frames) and torch.equal(one.seeds, other.seeds)


def test_nothing_keeps_a_batch_that_was_handed_out(root):
    batches = training_batches(ClipDataset(root, "toy", "train", 4), batch_size=4, seed=2)
    for pause in (0, 0.1, 0.1, 0, 0, 0.1):  # made here, and in the background
        clip = next(batches)
        kept = weakref.ref(clip.frames)
        del clip
        assert kept() is None
        time.sleep(pause)


@pytest.mark.parametrize("waits", [False, True])
def test_all_of_a_batch_is_asked_for_at_once_where_the_disk_had_to_be_waited_for(root, waits, monkeypatch):
    if waits:
        monkeypatch.setattr("data.episodes.disk_waits", itertools.count().__next__)
    asked = []
    monkeypatch.setattr("data.episodes.read_ahead", lambda array, first, last: asked.append(array.shape[1:]))
    ClipDataset(root, "toy", "train", 4, with_rewards=True).batch(np.arange(5))
    of_frames = [shape for shape in asked if shape]
    assert len(of_frames) == 5 * waits and len(asked) == 3 * 5 * waits  # frames, actions and rewards


def test_batches_that_the_background_has_not_begun_are_made_at_once_and_are_the_same(root, monkeypatch):
    is_free = threading.Event()

    class Busy(ThreadPoolExecutor):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.submit(is_free.wait, 60)  # seconds, so that waiting for it is a failure and not for ever

    usual = take(training_batches(Watched(root, "toy", "train", 4), batch_size=4, seed=2), 5)
    dataset = Watched(root, "toy", "train", 4)
    monkeypatch.setattr("data.clips.ThreadPoolExecutor", Busy)
    batches = training_batches(dataset, batch_size=4, seed=2)
    made = take(batches, 3)
    assert dataset.makers == 3 * [threading.current_thread().name]
    is_free.set()
    for one, other in zip(usual, made + take(batches, 2), strict=True):
        assert all(torch.equal(*parts) for parts in zip(one, other, strict=True) if parts[0] is not None)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_goes_wrong_in_the_background_arrives_as_the_one_line_that_it_is_and_ends_the_loader(root, num_workers):
    fpath = root / "toy" / "train-00001.h5"
    dataset = ClipDataset(root, "toy", "train", 4)
    fpath.write_bytes(bytes(fpath.stat().st_size))
    gc.disable()  # the processes of a loader that waits for it take 10 s to end
    try:  # pytest.raises would keep the loader
        take(training_batches(dataset, batch_size=11, seed=0, num_workers=num_workers), 3)
        message = "nothing was raised"
    except ValueError as error:
        message = str(error)
    finally:
        gc.enable()
    assert not multiprocessing.active_children()
    assert re.fullmatch(r"shard \S*train-00001.h5 is damaged: .*again", message)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_loader_process_that_goes_away_while_it_hands_a_batch_over_is_named(dataset, error, monkeypatch):
    def rebuilt(*_):
        raise error

    monkeypatch.setattr("multiprocessing.resource_sharer._ResourceSharer.get_connection", rebuilt)
    with pytest.raises(RuntimeError, match="DataLoader worker exited unexpectedly while it handed a batch over"):
        take(training_batches(dataset, batch_size=4, seed=0, num_workers=1), 3)


def test_another_seed_gives_another_order(dataset):
    first, second = (windows_of(next(training_batches(dataset, batch_size=20, seed=seed))) for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 16])
def test_evaluation_shows_the_same_clips_once_each_whatever_the_number_of_processes(dataset, world_size):
    expected = [
        (window, seed)
        for clip in evaluation_clips(dataset, batch_size=100, num_clips=11, seed=4)
        for window, seed in zip(windows_of(clip), clip.seeds.tolist(), strict=True)
    ]
    assert len({window for window, _ in expected}) == 11
    for rank in range(world_size):
        clips = evaluation_clips(dataset, batch_size=2, num_clips=11, seed=4, rank=rank, world_size=world_size)
        seen = [pair for clip in clips for pair in zip(windows_of(clip), clip.seeds.tolist(), strict=True)]
        assert seen == expected[rank::world_size]


@pytest.mark.parametrize("num_clips", [None, 1000])
def test_evaluation_of_everything_shows_every_window_once(dataset, num_clips):
    clips = evaluation_clips(dataset, batch_size=7, num_clips=num_clips, seed=0)
    seen = [window for clip in clips for window in windows_of(clip)]
    assert seen == [dataset.locate(index) for index in range(len(dataset))]


def test_videos_without_actions_give_clips_without_actions(tmp_path):
    make_dataset(tmp_path, "videos", LENGTHS, with_actions=False)
    clip = next(training_batches(ClipDataset(tmp_path, "videos", "train", 4), batch_size=2, seed=0))
    assert clip.actions is None and clip.to("cpu").actions is None and clip.frames.shape == (2, 4, 3, HEIGHT, WIDTH)


def make_outcomes(root) -> None:
    """Episodes 0 (dies after 6 frames), 1 (cut off after 6) and 2 (coin after 7); after frame t comes reward t / 10."""
    reasons = [("death", 6), ("time_limit", 6), ("coin", 7)]
    make_dataset(root, "toy", [length for _, length in reasons])
    episodes = [
        make_episode(level, length)._replace(end_reason=reason) for level, (reason, length) in enumerate(reasons)
    ]
    fpath = root / "toy" / "train-00000.h5"
    write_shard(fpath, episodes)
    info = json.loads((root / "toy" / "info.json").read_text())
    info["splits"]["train"]["shards"] = [summarise_shard(fpath)]
    write_json(root / "toy" / "info.json", info)


def outcomes(root, num_frames, **options) -> dict[tuple[int, int], tuple[list[float], list[bool]]]:
    dataset = ClipDataset(root, "toy", "train", num_frames, with_rewards=True, **options)
    clip = dataset.batch(np.arange(len(dataset)))
    assert clip.rewards.dtype == torch.float32 and clip.ends.dtype == torch.bool
    rows = zip((clip.rewards * 10).round().int().tolist(), clip.ends.tolist(), strict=True)
    return {dataset.locate(index): row for index, row in enumerate(rows)}


def test_rewards_follow_their_actions_and_the_last_ones_come_with_the_last_frame(tmp_path):
    make_outcomes(tmp_path)
    seen = outcomes(tmp_path, 4)
    no, yes = [False, False, False], [False, False, True]
    assert [seen[0, start] for start in range(3)] == [([0, 1, 2], no), ([1, 2, 3], no), ([2, 3, 4 + 5], yes)]
    assert seen[1, 2] == ([2, 3, 4 + 5], no)  # its end is a limit's doing, not the game's
    assert seen[2, 2] == ([2, 3, 4], no) and seen[2, 3] == ([3, 4, 5 + 6], yes)


def test_skipped_frames_add_their_rewards_and_a_whole_episode_its_return(tmp_path):
    make_outcomes(tmp_path)
    seen = outcomes(tmp_path, 3, frame_skip=2)
    assert seen[0, 0] == ([0 + 1, 2 + 3], [False, False]) and seen[0, 1] == ([1 + 2, 3 + 4 + 5], [False, True])
    assert seen[2, 2] == ([2 + 3, 4 + 5 + 6], [False, True])
    assert sum(outcomes(tmp_path, 7)[2, 0][0]) == sum(range(7))
    assert outcomes(tmp_path, 1)[0, 5] == ([], [])


def test_rewards_come_where_they_are_asked_for_and_held(tmp_path):
    make_outcomes(tmp_path)
    make_dataset(tmp_path, "videos", LENGTHS, with_actions=False)
    for name, with_rewards in (("toy", False), ("videos", True)):
        clip = ClipDataset(tmp_path, name, "train", 4, with_rewards=with_rewards)[0]
        assert clip.rewards is None and clip.ends is None
    clip = ClipDataset(tmp_path, "toy", "train", 4, with_rewards=True)[2]
    assert clip.rewards.shape == clip.ends.shape == clip.actions.shape == (3,)


def test_the_index_does_not_grow_with_the_number_of_clips(tmp_path):
    make_dataset(tmp_path, "short", [10] * 4)
    make_dataset(tmp_path, "long", [250] * 4)
    sizes = [len(pickle.dumps(ClipDataset(tmp_path, name, "train", 4))) for name in ("short", "long")]
    assert abs(sizes[0] - sizes[1]) < 50


def test_episodes_too_short_for_a_window_say_which_key_to_lower(root):
    with pytest.raises(ValueError, match=r"num_frames=13 at frame_skip=1 needs 13 frames, but the longest .* has 12"):
        ClipDataset(root, "toy", "train", 13)
    with pytest.raises(ValueError, match=r"num_frames=5 at frame_skip=3 needs 13 frames"):
        ClipDataset(root, "toy", "train", 5, frame_skip=3)


@pytest.mark.parametrize("key", ["num_frames", "frame_skip", "seq_step"])
def test_sizes_below_one_are_refused_by_name(root, key):
    sizes = {"num_frames": 4, key: 0}
    with pytest.raises(ValueError, match=f"{key}=0 must be at least 1"):
        ClipDataset(root, "toy", "train", **sizes)
