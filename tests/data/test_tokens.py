"""Tokens on disk: read back as they were written, for the windows they belong to, or not at all."""

import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from data import tokens
from data.clips import ClipDataset, training_batches
from data.episodes import write_json
from data.tokens import CachedClips, Recipe
from tests.data.recorded import make_dataset

LENGTHS = [5, 9, 1, 2, 1, 3, 7, 12]  # three episodes a shard: the second shard has no window of 4 frames
RECIPE = Recipe("a" * 64, {"width": 8, "quantizer": {"levels": [3, 4]}}, num_frames=4, seq_step=1, frame_skip=1)
SHAPE = (4, 2, 3)


def tokens_of(dataset: ClipDataset, windows: np.ndarray) -> np.ndarray:
    """Tokens that say where they come from: the window's number, then the place in the clip."""
    return windows[:, None] * 100 + np.arange(np.prod(SHAPE))


def write_cache(root: Path, recipe: Recipe = RECIPE, codebook_size: int = 2**16) -> Path:
    dataset = ClipDataset(
        root, "toy", "train", recipe.num_frames, frame_skip=recipe.frame_skip, seq_step=recipe.seq_step
    )
    folder, dtype = recipe.folder(root, "toy"), tokens.dtype_of(codebook_size)
    folder.mkdir(parents=True, exist_ok=True)
    pieces = tokens.pieces_of(dataset)
    for piece in pieces:
        windows = np.arange(piece.first, piece.first + piece.count)
        content = tokens_of(dataset, windows).reshape(-1, *SHAPE)
        batches = (content[first : first + 2] for first in range(0, piece.count, 2))
        origin = tokens.made_of(recipe, piece)
        tokens.write_shard(folder / piece.file, batches, shape=(piece.count, *SHAPE), dtype=dtype, origin=origin)
    write_json(folder / tokens.INFO, tokens.describe(recipe, {"train": pieces}, SHAPE, dtype))
    return folder


def open_clips(root: Path, recipe: Recipe = RECIPE, **options) -> CachedClips:
    return CachedClips(root, "toy", "train", recipe, command="bash run.sh --mode=tokenize", **options)


@pytest.fixture
def root(tmp_path):
    make_dataset(tmp_path, "toy", LENGTHS)
    return tmp_path


def changed(**values) -> Recipe:
    return Recipe(**{**RECIPE.__dict__, **values})


@pytest.mark.parametrize("sizes", [(4, 1, 1), (4, 3, 1), (4, 2, 2)])
def test_every_window_comes_with_its_tokens_and_otherwise_as_from_frames(root, sizes):
    recipe = changed(**dict(zip(("num_frames", "seq_step", "frame_skip"), sizes, strict=True)))
    write_cache(root, recipe)
    cached = open_clips(root, recipe, with_rewards=True)
    plain = ClipDataset(root, "toy", "train", sizes[0], seq_step=sizes[1], frame_skip=sizes[2], with_rewards=True)
    assert len(cached) == len(plain)
    windows = np.random.default_rng(0).permutation(len(plain))
    clip, expected = (dataset.batch(windows, windows) for dataset in (cached, plain))
    assert clip.tokens.dtype == torch.int64 and clip.tokens.shape == (len(plain), *SHAPE)
    assert torch.equal(clip.tokens.flatten(1), torch.from_numpy(tokens_of(plain, windows)))
    assert expected.rewards.any() and expected.ends.any()
    for field in expected._fields:
        assert field == "tokens" or torch.equal(getattr(clip, field), getattr(expected, field))


def test_without_frames_nothing_of_the_dataset_but_its_actions_is_read(root):
    write_cache(root)
    cached = open_clips(root)
    cached.with_frames = False
    clip = cached.batch(np.array([3, 1]))
    assert clip.frames is None and clip.to("cpu").frames is None and clip.rewards is None and clip.ends is None
    assert torch.equal(clip.actions, ClipDataset(root, "toy", "train", 4).batch(np.array([3, 1])).actions)
    assert cached[3].tokens.shape == SHAPE


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"rank": 1, "world_size": 2, "clips_consumed": 6}])
def test_a_training_is_shown_the_clips_it_would_see_without_a_cache(root, options):
    write_cache(root)
    plain = ClipDataset(root, "toy", "train", 4)
    streams = [
        itertools.islice(training_batches(dataset, batch_size=5, seed=2, **options), 4)
        for dataset in (plain, open_clips(root))
    ]
    for clip, cached in zip(*streams, strict=True):
        assert torch.equal(clip.frames, cached.frames) and torch.equal(clip.seeds, cached.seeds)
        assert torch.equal(clip.actions, cached.actions)


def test_an_opened_cache_travels_to_another_process_without_its_files(root):
    write_cache(root)
    cached = open_clips(root)
    before = cached.batch(np.arange(5))
    assert torch.equal(pickle.loads(pickle.dumps(cached)).batch(np.arange(5)).tokens, before.tokens)
    assert len(pickle.dumps(cached)) < 10_000


@pytest.mark.parametrize("codebook_size, dtype", [(2**16, "uint16"), (2**16 + 1, "int32")])
def test_tokens_take_two_bytes_where_the_codebook_allows(root, codebook_size, dtype):
    folder = write_cache(root, codebook_size=codebook_size)
    with h5py.File(folder / "train-00000.h5") as file:
        assert file["tokens"].dtype == dtype and file["tokens"].chunks is None
    assert open_clips(root).batch(np.array([0])).tokens.flatten().tolist() == list(range(24))


# ------------------------------------------------------------------------------------------------------ never used


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (changed(num_frames=3), r"the nearest that exist were made with num_frames 4 \(here 3\)"),
        (changed(seq_step=2), r"the nearest that exist were made with seq_step 1 \(here 2\)"),
        (changed(frame_skip=2), r"the nearest that exist were made with frame_skip 1 \(here 2\)"),
        (changed(tokenizer="b" * 64), r"the nearest that exist were made with tokenizer aaaaaaaaaaaa \(here bbbbbbbb"),
        (changed(tokenizer="a" * 63 + "b"), "they were made with tokenizer aaaaaaaaaaaa"),  # same folder name
        (
            changed(tokenizer_config={"width": 8, "quantizer": {"levels": [3, 5]}}),
            r"they were made with tokenizer_config.quantizer.levels \[3, 4\] \(here \[3, 5\]\)",
        ),
    ],
)
def test_tokens_made_with_anything_else_are_not_read(root, recipe, reason):
    write_cache(root)
    with pytest.raises(ValueError, match=rf"^no tokens to use in .*: {reason}.*; write them with: bash run.sh --mode="):
        open_clips(root, recipe)


def delete_info(folder):
    (folder / tokens.INFO).unlink()


def delete_shard(folder):
    (folder / "train-00002.h5").unlink()


def cut_shard(folder):
    os.truncate(folder / "train-00002.h5", 300)


def rename_split(folder):
    change_info(folder, splits={"test": {}})


def change_format(folder):
    change_info(folder, format=99)


def change_info(folder, **values):
    write_json(folder / tokens.INFO, json.loads((folder / tokens.INFO).read_text()) | values)


def change_dataset(folder):
    fpath = folder.parent.parent / "info.json"
    info = json.loads(fpath.read_text())
    for shard in info["splits"]["train"]["shards"]:
        shard["hash"] = "0" * 64
    write_json(fpath, info)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (delete_info, "they are unfinished"),
        (delete_shard, "train-00002.h5 is missing there"),
        (cut_shard, r"train-00002.h5 there is cut off \(300 of"),
        (rename_split, "they are of test only, not of train"),
        (change_format, "they have format 99, this version reads format 1"),
        (change_dataset, r"the dataset has changed since they were made \(train-00000.h5 and 2 more\)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_incomplete_or_outdated_cache_is_refused_when_it_is_opened(root, damage, reason):
    damage(write_cache(root))
    with pytest.raises(ValueError, match=reason) as error:
        open_clips(root)
    assert "\n" not in str(error.value)


def test_without_any_cache_the_line_says_so(root):
    with pytest.raises(ValueError, match=r"toy/tokens/aaaaaaaaaaaa-T4-s1-k1: there are none; write them with: bash"):
        open_clips(root)


def test_a_shard_of_other_tokens_among_the_right_ones_is_refused_when_it_is_read(root):
    folder = write_cache(root)
    with h5py.File(folder / "train-00002.h5", "r+") as file:
        file.attrs["made_of"] = json.dumps({**json.loads(file.attrs["made_of"]), "source": "0" * 64})
    clips = open_clips(root)
    clips.batch(np.array([0]))
    with pytest.raises(ValueError, match=r"train-00002.h5 there is damaged or not of this cache"):
        clips.batch(np.array([len(clips) - 1]))


# ---------------------------------------------------------------------------------------------------------- writing


def test_a_shard_that_breaks_off_leaves_nothing(tmp_path):
    def batches():
        yield np.zeros((2, *SHAPE))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokens.write_shard(tmp_path / "a.h5", batches(), shape=(4, *SHAPE), dtype=np.dtype("<u2"), origin={})
    assert not list(tmp_path.iterdir())


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from data.tokens import write_shard
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    batches = (np.zeros((10, 8, 8, 8)) for _ in range(10))
    write_shard(Path(sys.argv[1]) / "a.h5", batches, shape=(100, 8, 8, 8), dtype=np.dtype("<u2"), origin={})
except OSError as error:
    print(error)
"""


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, check=True)
    assert "a.h5" in done.stdout and "free some space" in done.stdout and done.stdout.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())
