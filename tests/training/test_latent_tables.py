"""Tables of latent against recorded actions: joint tables known by hand, and scikit-learn as reference."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

from models.pretrained import save_weights
from play import latent_actions
from training import latent_tables
from training.agreement import joint_counts
from training.latent_tables import LatentActions, labelled_clips, learn_map, spread, tables


def test_tables_of_a_known_joint_table():
    """Four codes, two bits: code = action gives both, an independent code none, half the code the bit that it has."""
    actions = np.tile(np.arange(4), 100).reshape(40, 10)
    same = tables(actions, actions, 4, 4)
    assert same["mutual_information_bits"] == pytest.approx(2)
    assert same["nmi"] == same["purity"] == same["mapping_accuracy"] == pytest.approx(1)
    assert same["mapping_accuracy_ci95"] == pytest.approx([1, 1])
    assert same["real_of_latent"] == same["latent_of_real"] == [0, 1, 2, 3]
    halved = tables(actions // 2, actions, 4, 4)
    assert halved["mutual_information_bits"] == pytest.approx(1)
    assert halved["nmi"] == pytest.approx(2 / 3)
    assert halved["purity"] == pytest.approx(0.5)
    assert halved["counts"] == [[100, 100, 0, 0], [0, 0, 100, 100], [0] * 4, [0] * 4]
    blind = tables(np.zeros_like(actions), actions, 4, 4)
    assert blind["mutual_information_bits"] == blind["nmi"] == pytest.approx(0)
    assert blind["purity"] == pytest.approx(0.25)


def test_tables_equal_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    actions = generator.integers(7, size=(50, 9))
    codes = np.where(generator.random((50, 9)) < 0.4, (actions * 3 + 1) % 5, generator.integers(5, size=(50, 9)))
    found = tables(codes, actions, 8, 7)
    expected = mutual_info_score(codes.ravel(), actions.ravel()) / np.log(2)
    assert found["mutual_information_bits"] == pytest.approx(expected)
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(codes.ravel(), actions.ravel()))
    assert found["num_transitions"] == 450 and found["num_labelled"] == 198


def test_the_map_is_learned_from_whole_clips_and_measured_on_others():
    """Labelled clips name codes one way, all others another way: what was learned must not count."""
    actions = np.tile(np.arange(4), 250).reshape(100, 10)
    codes = (actions + 1) % 4
    labelled = labelled_clips(100, 10)
    assert len(labelled) == 20
    codes[labelled] = actions[labelled]
    found = tables(codes, actions, 4, 4)
    assert found["real_of_latent"] == [0, 1, 2, 3] and found["mapping_accuracy"] == 0
    assert found["num_labelled"] == 200


@pytest.mark.parametrize(("clips", "transitions", "expected"), [(7, 3, 3), (1, 5, 0), (5, 500, 1), (1000, 10, 20)])
def test_labels_never_take_more_than_half_of_the_clips_or_200_transitions(clips, transitions, expected):
    assert len(labelled_clips(clips, transitions)) == expected
    codes = np.zeros((clips, transitions), int)
    assert tables(codes, codes, 2, 2)["num_labelled"] == min(200, expected * transitions)


def test_one_clip_has_a_table_but_no_map():
    found = tables(np.zeros((1, 5), int), np.zeros((1, 5), int), 2, 3)
    assert found["counts"] == [[5, 0, 0], [0, 0, 0]] and found["real_of_latent"] is found["mapping_accuracy"] is None


def test_unseen_codes_stand_for_the_most_frequent_action_and_keys_press_the_purest_code():
    labelled = np.array([[30, 6, 0], [0, 5, 0], [0, 0, 0]])
    real_of_latent, latent_of_real = learn_map(labelled)
    assert real_of_latent.tolist() == [0, 1, 0]
    assert latent_of_real[:2].tolist() == [0, 1]  # code 0 has more of action 1, but means action 0
    rare = np.array([[0, 0, 0], [50, 40, 4], [50, 50, 0]])
    assert learn_map(rare)[1].tolist() == [1, 2, 1]  # a code that was never seen says nothing of a rare action


def test_joint_counts_are_codes_by_actions():
    assert joint_counts(np.array([0, 1, 1]), np.array([2, 0, 0]), 2, 3).tolist() == [[0, 0, 1], [2, 0, 0]]


def test_pictures_get_at_most_2000_transitions_spread_over_the_clips():
    latents = LatentActions(4, num_clips=3000)
    for first in range(0, 3000, 500):
        numbers = list(range(first, first + 500))
        codes = torch.tensor(numbers)[:, None].expand(-1, 2) % 4
        vectors = torch.tensor(numbers)[:, None, None].expand(-1, 2, 6).float()
        latents.update(numbers, codes, codes, vectors)
    picture = latents.picture()
    assert picture["vectors"].shape == (2000, 6) and picture["vectors"].dtype == np.float32
    assert np.array_equal(picture["codes"], picture["vectors"][:, 0].astype(int) % 4)
    assert np.array_equal(picture["actions"], picture["codes"])
    assert np.abs(np.diff(picture["vectors"][:, 0])).max() <= 3 and picture["vectors"].max() >= 2996


def test_without_recorded_actions_there_are_vectors_but_no_tables():
    latents = LatentActions(4, num_clips=2)
    latents.update([0, 1], torch.zeros(2, 3), None, torch.ones(2, 3, 5))
    assert latents.compute() is None
    assert set(latents.picture()) == {"vectors", "codes"}


def test_the_map_is_written_beside_the_evaluation_and_into_the_run_folder(tmp_path):
    fpath = tmp_path / "run" / "step-00000007" / "model.safetensors"
    save_weights(torch.nn.Linear(1, 1), fpath, config={}, metadata={"step": 7})
    table = tables(np.tile([0, 1, 1], (8, 4)), np.tile([2, 0, 0], (8, 4)), 2, 3)
    (tmp_path / "evaluation").mkdir()
    latent_tables.write_map(tmp_path / "evaluation", str(tmp_path / "run"), table, ["left", "stay", "right"])
    written = [json.loads((tmp_path / name / latent_tables.FILE).read_text()) for name in ("evaluation", "run")]
    assert written[0] | {"names": None} == written[1]
    assert written[0]["real_of_latent"] == [2, 0] and written[0]["latent_of_real"][2] == 0
    assert written[0]["num_actions"] == 2 and written[0]["step"] == 7
    assert written[0]["real_names"] == ["left", "stay", "right"]
    given = tmp_path / "run" / latent_tables.FILE
    given.write_text(json.dumps(written[1] | {"names": ["fly", "swim"], "counts": [[9]]}))
    latent_tables.write_map(tmp_path / "evaluation", str(tmp_path / "run"), table, ["left", "stay", "right"])
    assert json.loads(given.read_text()) == written[1] | {"names": ["fly", "swim"]}, "what people wrote stays"


@pytest.fixture
def run_dpath(tmp_path):
    """A run whose latent actions were put beside the real ones: code 0 is `right`, code 1 is `left`."""
    fpath = tmp_path / "run" / "step-00000007" / "model.safetensors"
    save_weights(torch.nn.Linear(1, 1), fpath, config={}, metadata={"step": 7})
    write_map_of(tmp_path / "run", clips=8)
    return tmp_path / "run"


def write_map_of(run_dpath, clips, codes=(0, 1, 1)):
    table = tables(np.tile(codes, (clips, 4)), np.tile([2, 0, 0], (clips, 4)), 2, 3)
    (run_dpath.parent / "evaluation").mkdir(exist_ok=True)
    latent_tables.write_map(run_dpath.parent / "evaluation", str(run_dpath), table, ["left", "stay", "right"])


def test_players_read_the_map_and_name_the_actions_after_it(run_dpath):
    known = latent_actions.read(run_dpath, 2)
    assert known.names is None and known.shown() == ["right", "left"]
    assert known.real_of_latent == [2, 0] and known.latent_of_real == [1, 0, 0]


def test_another_evaluation_keeps_the_names_that_a_person_gave(run_dpath):
    known = latent_actions.read(run_dpath, 2)
    latent_actions.write(run_dpath, replace(known, names=["hop", "back"]))
    write_map_of(run_dpath, clips=9)
    assert latent_actions.read(run_dpath, 2).shown() == ["hop", "back"]
    assert np.sum(latent_actions.read(run_dpath, 2).counts) == 9 * 12


def test_a_smaller_evaluation_of_the_same_weights_takes_nothing_back(run_dpath):
    write_map_of(run_dpath, clips=2, codes=(1, 0, 0))
    assert latent_actions.read(run_dpath, 2).shown() == ["right", "left"]
    write_map_of(run_dpath, clips=8, codes=(1, 0, 0))
    assert latent_actions.read(run_dpath, 2).shown() == ["left", "right"]
    (run_dpath / latent_tables.FILE).write_text("damaged")
    write_map_of(run_dpath, clips=2)
    assert latent_actions.read(run_dpath, 2).shown() == ["right", "left"]


def test_numbers_are_spread_evenly():
    assert spread(10, 5) == [0, 2, 4, 6, 8]
    assert spread(3, 5) == [0, 1, 2]
