"""Reading actions back: a reader trained on a game whose every action shows, and worlds that obey it or do not."""

from dataclasses import replace

import pytest
import torch
from accelerate import PartialState

from data.clips import ClipDataset
from training import action_reader
from training.action_reader import ActionReader, shared_reader
from training.command_line import compose, parse
from training.evaluation import evaluate
from training.rows import Networks
from training.settings import EvalSettings

from .test_evaluation import Blind, Lazy, Oracle, batches
from .workers import game


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("games")
    game.write_game(root, "squares", train=(60, 14, 0), validation=(8, 14, 1000))
    return root


@pytest.fixture(scope="module")
def settings(root) -> EvalSettings:
    cfg = compose(parse(["--config=genie_redux.yaml"]))
    changes = {
        "dataset_root_dpath": str(root),
        "dataset_name": "squares",
        "reader_dataset_name": "squares",
        "reader_steps": 300,
        "save_root_dpath": str(root / "out"),
        "num_first_frames": 2,
        "sample_num_frames": 10,
        "num_frames": 12,
        "inference_method": "autoregressive",
        "dream_length": 1,
        "num_samples": 0,
    }
    return replace(EvalSettings.from_config(cfg.eval), **changes)


@pytest.fixture(scope="module")
def dataset(root):
    return ClipDataset(root, "squares", "validation", 12)


@pytest.fixture(scope="module")
def reader(settings, dataset):
    reader, reason = shared_reader(settings, dataset, PartialState(cpu=True))
    assert reason is None
    return reader


class Shuffled(Oracle):
    """Obeys, but its buttons do other things than the real ones."""

    def future(self, prompt, actions, seeds):
        return super().future(prompt, (actions + 1) % game.NUM_ACTIONS, seeds)


class Deaf(Oracle):
    """Dreams of the game, but under actions of its own."""

    def future(self, prompt, actions, seeds):
        others = [torch.randint(5, (16,), generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
        first = prompt.shape[1] - 1
        return super().future(prompt, torch.stack(others)[:, : first + actions.shape[1] - first], seeds)


def results_of(world, settings, reader):
    clip = game.squares(40, 12, seed=99)
    return evaluate(world, batches(clip, 25, 15), settings, networks=Networks(reader=reader))


@pytest.mark.parametrize("is_latent", [False, True])
def test_a_world_that_obeys_is_followed_as_well_as_the_truth(settings, reader, is_latent):
    results = results_of(Oracle(is_latent=is_latent), settings, reader)
    assert results["action_following_real"] > 0.97
    assert results["action_following"] == pytest.approx(results["action_following_real"], abs=0.01)
    low, high = results["action_following_ci95"]
    assert low <= results["action_following"] <= high
    assert results["delta_psnr_ci95"][0] > 0
    assert 0.2 < results["action_following_majority"] < 0.3
    if results["action_following_real"] < 1:
        ratio = (1 - results["action_following"]) / (1 - results["action_following_real"])
        assert results["action_error_ratio"] == pytest.approx(ratio)


def test_a_world_that_does_not_listen_is_at_chance(settings, reader):
    deaf = results_of(Deaf(), settings, reader)
    low, high = deaf["action_following_ci95"]
    assert low - 0.03 < 0.2 < high + 0.03
    assert deaf["delta_psnr"] == deaf["delta_psnr_last"] == 0
    assert (
        deaf["action_following_real"] > 0.97
        and deaf["ceiling_action_following"] > 0.97
        and deaf["action_error_ratio"] > 10
    )
    blind = results_of(Blind(), settings, reader)
    assert blind["action_following"] < 0.3
    lazy = results_of(Lazy(), settings, reader)
    assert lazy["action_following"] < 0.3  # it always shows the push by nothing


def test_shuffled_buttons_are_not_what_was_asked_for(settings, reader):
    """Always another push than the one asked for: random actions are at least right now and then."""
    results = results_of(Shuffled(), settings, reader)
    assert results["action_following"] < 0.05
    assert results["delta_psnr_ci95"][1] < 0


def test_what_is_read_of_a_clip_does_not_depend_on_what_comes_later_or_on_the_batch(reader):
    clip = game.squares(6, 8, seed=5)
    whole = reader(clip.frames)
    assert torch.allclose(reader(clip.frames[2:4, :5]), whole[2:4, :4], atol=1e-5)
    other = reader.read(torch.cat([clip.frames[:, :4], clip.frames[:, 4:].flip(1)], 1))
    assert torch.equal(other[:, :3], reader.read(clip.frames)[:, :3])


def test_a_reader_is_trained_once_and_found_again(settings, dataset, reader, monkeypatch):
    (fpath,) = (path for path in action_reader.reader_fpath(settings, dataset).parent.iterdir())
    monkeypatch.setattr(action_reader, "train_reader", None)
    again, _ = shared_reader(settings, dataset, PartialState(cpu=True))
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), reader.state_dict().values(), strict=True)
    )
    lessons = ClipDataset(settings.dataset_root_dpath, "squares", "train", 3)
    assert action_reader.reader_fpath(settings, lessons) == fpath
    assert action_reader.reader_fpath(replace(settings, reader_steps=301), lessons) != fpath
    skipping = ClipDataset(settings.dataset_root_dpath, "squares", "train", 3, frame_skip=2)
    assert action_reader.reader_fpath(settings, skipping) != fpath


def test_the_same_data_make_the_same_reader_and_leave_random_numbers_alone(settings):
    lessons = ClipDataset(settings.dataset_root_dpath, "squares", "train", 3)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    readers = [action_reader.train_reader(lessons, 3, torch.device("cpu")).state_dict() for _ in range(2)]
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(readers[0][name], readers[1][name]) for name in readers[0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reader_dataset_name": None}, "eval.reader_dataset_name is null"),
        ({"reader_dataset_name": "circles"}, "eval.reader_dataset_name=circles cannot be read"),
        ({"reader_dataset_name": "without_train"}, "split=train"),
        ({"reader_dataset_name": "renamed"}, "has other actions or frames"),
    ],
)
def test_where_no_training_split_is_at_hand_the_reason_names_the_cure(root, settings, dataset, changes, said):
    if not (root / "renamed").exists():
        game.write_game(root, "without_train", test=(2, 14, 0))
        game.write_game(root, "renamed", train=(2, 14, 0))
        info = root / "renamed" / "info.json"
        info.write_text(info.read_text().replace("push 3", "pull 3"))
    reader, reason = shared_reader(replace(settings, **changes), dataset, PartialState(cpu=True))
    assert reader is None
    assert said in reason and "set eval.reader_dataset_name to a dataset" in reason and "\n" not in reason


def test_a_damaged_reader_is_one_line(settings, dataset, reader):
    fpath = action_reader.reader_fpath(settings, ClipDataset(settings.dataset_root_dpath, "squares", "train", 3))
    content = fpath.read_bytes()
    fpath.write_bytes(content[:50])
    with pytest.raises(ValueError, match="remove it, and it is made anew"):
        shared_reader(settings, dataset, PartialState(cpu=True))
    fpath.write_bytes(content)


def test_frames_of_any_size_can_be_read():
    for size in ((16, 16), (64, 64), (40, 24)):
        assert ActionReader(size, 7)(torch.rand(2, 3, 3, *size)).shape == (2, 2, 7)
