"""Names of latent actions: found out by counting, given by people, kept in one file beside the world."""

import json
import shutil
from dataclasses import fields, replace

import httpx
import numpy as np
import pytest
import torch

from data.episodes import Episodes
from data_generation.environment import COINRUN_ACTIONS
from models import pretrained
from models.interfaces import Observed
from play.latent_actions import FILE, LONGEST_NAME, LatentActionNames, checked_names, measure, read
from tests.play.stage import GUIDED, LATENT, LEVELS, Client, info, serving, settings_for, world_id
from training import latent_tables
from training.latent_tables import MAX_LABELLED, joint_counts, labelled_clips, learn_map, tables

COUNTED = LatentActionNames(
    num_actions=4,
    real_names=["NOOP", "RIGHT", "LEFT"],
    real_of_latent=[1, None, 1, 0],
    latent_of_real=[3, 0, 2],
    counts=[[0, 5, 1], [0, 0, 0], [1, 3, 0], [4, 0, 0]],
)


@pytest.fixture
def copied(root, tmp_path):
    shutil.copytree(root / "outputs", tmp_path / "outputs")
    (tmp_path / "levels").symlink_to(root / "levels")
    return tmp_path


def test_suggested_names_are_those_of_the_real_actions():
    assert COUNTED.shown() == ["RIGHT", "action 1", "LEFT", "NOOP"], "as the map presses them"
    assert replace(COUNTED, latent_of_real=None).shown() == ["RIGHT 1", "action 1", "RIGHT 2", "NOOP"]
    assert LatentActionNames(2).shown() == ["action 0", "action 1"]
    assert LatentActionNames(2, names=["a", "b"]).shown() == ["a", "b"]
    mostly_right = {"real_names": ["NOOP", "RIGHT"], "counts": [[30, 60], [10, 100]]}
    assert LatentActionNames(2, **mostly_right).suggested() == ["NOOP", "RIGHT"]  # RIGHT is read off most as either


def test_arrows_press_the_latent_actions_of_the_map_unless_people_named_others():
    assert COUNTED.pressed() == {"": 3, "ArrowRight": 0, "ArrowLeft": 2}
    assert LatentActionNames(2).pressed() == {}
    named = replace(COUNTED, names=["swim", "go right", "left", "right"])
    assert named.pressed() == {"": 3, "ArrowRight": 3, "ArrowLeft": 2}
    assert replace(COUNTED, keys={"ArrowUp": 1}).pressed() == {"ArrowUp": 1}, "keys that a person wrote there"
    never_left = replace(COUNTED, counts=[[0, 5, 0], [0, 0, 0], [1, 3, 0], [4, 0, 0]])
    assert never_left.pressed() == {"": 3, "ArrowRight": 0}, "of LEFT nothing is known"


def test_how_far_the_map_holds_is_counted_beside_the_most_frequent_action():
    right, most_frequent = COUNTED.agreement()
    assert right == pytest.approx((5 + 3 + 4) / 14) and most_frequent == pytest.approx(8 / 14)
    assert LatentActionNames(2).agreement() is None


@pytest.mark.parametrize("skip", [1, 2])
def test_the_table_counts_what_the_action_model_reads_off_held_out_clips(root, skip):
    world = pretrained.load(root / "outputs" / LATENT)
    episodes = Episodes(root / "levels", LEVELS, "test")
    known = measure(LatentActionNames(7, names=list("abcdefg")), world, episodes, 4, frame_skip=skip, step=7)
    codes, actions = [], []
    for episode in range(episodes.num_episodes):
        for start in range(0, episodes.lengths[episode] - 3 * skip, 3 * skip + 1):
            frames = episodes.frames(episode, start, 4, skip).copy()
            codes.append(world.infer(Observed(torch.from_numpy(frames).permute(0, 3, 1, 2)[None] / 255))[0].tolist())
            actions.append(episodes.actions(episode, start, 4, skip).tolist())
    codes, actions = np.array(codes), np.array(actions)
    expected = joint_counts(codes, actions, 7, 7)
    assert known.counts == expected.tolist() and expected.sum() >= 15
    is_labelled = labelled_clips(*codes.shape)
    labelled = joint_counts(codes[is_labelled], actions[is_labelled], 7, 7)
    assert known.num_labelled == labelled.sum() <= MAX_LABELLED
    assert known.latent_of_real == learn_map(labelled)[1].tolist()
    assert known.keys == known.pressed() and known.keys["ArrowRight"] == known.latent_of_real[1]
    assert known.names == list("abcdefg") and known.step == 7


def test_the_first_player_of_a_latent_world_has_its_actions_counted_and_written(copied):
    with serving(settings_for(copied)) as (url, _):
        with Client(url) as client:
            world = client.start(world=world_id(url, LATENT))["world"]
        written = json.loads((copied / "outputs" / LATENT / FILE).read_text())
    assert set(written) == {field.name for field in fields(LatentActionNames)}
    assert written["names"] is None and np.array(written["counts"]).shape == (7, 7) and written["step"] == 7
    assert world["keys"] == written["keys"] and world["neutral"] == written["keys"][""]
    assert world["action_names"] == world["suggested_names"] == read(copied / "outputs" / LATENT, 7).suggested()


def test_what_an_evaluation_found_is_played_with_and_what_is_of_other_weights_is_found_anew(copied):
    """Evaluations write the same file; runs that are trained on keep it, whose codes have changed by then."""
    run = copied / "outputs" / LATENT
    table = tables(np.tile([[0, 4, 6]], (9, 3)), np.tile([[0, 1, 2]], (9, 3)), 7, 7)
    latent_tables.write_map(copied, str(run), table, list(COINRUN_ACTIONS))
    with serving(settings_for(copied)) as (url, _), Client(url) as client:
        started = client.start(world=world_id(url, LATENT))
        assert started["world"]["keys"] == {"": 0, "ArrowRight": 4, "ArrowLeft": 6} and started["world"]["neutral"] == 0
        assert client.step(4)[0]["action"] == 4
    older = json.loads((run / FILE).read_text()) | {"step": 3, "names": list("abcdefg")}
    (run / FILE).write_text(json.dumps(older))
    with serving(settings_for(copied)) as (url, _), Client(url) as client:
        assert client.start(world=world_id(url, LATENT))["world"]["action_names"] == list("abcdefg")
    assert read(run, 7).step == 7 and read(run, 7).counts != older["counts"]


def test_names_that_a_player_gives_are_written_beside_the_world_and_can_be_taken_back(copied):
    fpath = copied / "outputs" / LATENT / FILE
    with serving(settings_for(copied)) as (url, _):
        world = world_id(url, LATENT)

        def rename(names):
            answer = httpx.post(f"{url}api/names", json={"world": world, "names": names}).json()
            assert answer == {"saved": True, "world": next(each for each in info(url)["worlds"] if each["id"] == world)}
            return answer["world"]

        names = ["jump", "  to the\tright ", "ünter 右", "", "d", "e", "f"]
        kept = ["jump", "to the right", "ünter 右", "", "d", "e", "f"]
        named = rename(names)
        assert json.loads(fpath.read_text())["names"] == kept
        assert named["action_names"] == [*kept[:3], "action 3", *kept[4:]]
        assert named["keys"] == {"ArrowUp": 0}
        assert rename([""] * 7)["action_names"] == [f"action {index}" for index in range(7)]
        assert json.loads(fpath.read_text())["names"] is None
    assert not [path for path in fpath.parent.iterdir() if path.name.startswith(".")], "nothing half written stays"


def test_names_outlive_the_server(copied):
    names = list("abcdefg")
    with serving(settings_for(copied)) as (url, _):
        httpx.post(f"{url}api/names", json={"world": world_id(url, LATENT), "names": names})
    with serving(settings_for(copied)) as (url, _):
        assert [world["action_names"] for world in info(url)["worlds"] if world["kind"] == "latent"] == [names]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"world": "../latent", "names": ["a"] * 7},
        {"world": GUIDED, "names": ["a"] * 7},
        {"world": LATENT, "names": ["a"] * 6},
        {"world": LATENT, "names": "abcdefg"},
        {"world": LATENT, "names": [1] * 7},
        {"world": LATENT, "names": ["a\0"] * 7},
        {"world": LATENT, "names": ["x" * (LONGEST_NAME + 1)] * 7},
        {"world": LATENT, "names": ["a"] * 7, "more": "x" * 20_000},
        ["names"],
    ],
)
def test_other_names_are_refused_and_nothing_is_written(url, root, body):
    if isinstance(body, dict) and body.get("world") in (GUIDED, LATENT):
        body = body | {"world": world_id(url, body["world"])}
    before = (root / "outputs" / LATENT / FILE).read_bytes() if (root / "outputs" / LATENT / FILE).exists() else None
    answer = httpx.post(f"{url}api/names", json=body)
    assert answer.status_code in (400, 413) and "\n" not in answer.json()["error"]
    after = (root / "outputs" / LATENT / FILE).read_bytes() if (root / "outputs" / LATENT / FILE).exists() else None
    assert before == after and not (root / "outputs" / GUIDED / FILE).exists()


def test_names_of_a_folder_that_cannot_be_written_last_until_the_server_ends(copied):
    (copied / "outputs" / LATENT / FILE).mkdir()  # also where the tests run as root
    with serving(settings_for(copied)) as (url, _):
        answer = httpx.post(f"{url}api/names", json={"world": world_id(url, LATENT), "names": list("abcdefg")}).json()
        assert not answer["saved"] and answer["world"]["action_names"] == list("abcdefg")


DAMAGED = ({"num_actions": 3}, *({"num_actions": 7} | part for part in (
    {"names": ["a"]}, {"names": [1] * 7}, {"keys": {"ArrowUp": 7}}, {"keys": [1]}, {"keys": {"ArrowUp": "1"}},
    {"latent_of_real": [0]}, {"counts": [[1]] * 7}, {"counts": "x", "real_names": ["NOOP"]},
)))  # fmt: skip


@pytest.mark.parametrize("text", ["{", "[]", *map(json.dumps, DAMAGED)])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match=rf"{FILE} is not .*; delete it$"):
        read(tmp_path, 7)


def test_a_damaged_file_does_not_keep_the_world_from_being_played(copied, capsys):
    fpath = copied / "outputs" / LATENT / FILE
    fpath.write_text("{")
    with serving(settings_for(copied)) as (url, _):
        assert [world["num_actions"] for world in info(url)["worlds"]] == [7, 7]
    assert str(fpath) in capsys.readouterr().err


def test_real_actions_that_an_evaluation_once_wrote_as_names_are_no_names(tmp_path):
    (tmp_path / FILE).write_text(json.dumps({"num_actions": 2, "names": {"0": "LEFT", "1": "LEFT"}}))
    assert read(tmp_path, 2).names is None


def test_blank_names_leave_the_suggested_ones():
    assert checked_names(["", " a ", "", " "], 4) == ["", "a", "", ""] and checked_names(None, 2) is None
    assert replace(COUNTED, names=["", "a", "", ""]).shown() == ["RIGHT", "a", "LEFT", "NOOP"]
