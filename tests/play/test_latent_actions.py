"""Names of latent actions: found out by counting, given by people, kept in one file beside the world."""

import json
import shutil

import httpx
import numpy as np
import pytest
import torch

from data.episodes import Episodes
from models import pretrained
from models.interfaces import Observed
from play.latent_actions import FILE, LONGEST_NAME, LatentActionNames, checked_names, measure, read
from tests.play.stage import GUIDED, LATENT, LEVELS, Client, info, serving, settings_for, world_id

COUNTED = LatentActionNames(
    num_actions=4,
    real_names=["NOOP", "RIGHT", "LEFT"],
    real_of_latent=[1, None, 1, 0],
    latent_of_real=[3, 0, None],
    counts=[[0, 5, 1], [0, 0, 0], [1, 3, 0], [4, 0, 0]],
)


@pytest.fixture
def copied(root, tmp_path):
    shutil.copytree(root / "outputs", tmp_path / "outputs")
    (tmp_path / "levels").symlink_to(root / "levels")
    return tmp_path


def test_suggested_names_are_those_of_the_real_actions():
    assert COUNTED.shown() == ["RIGHT 1", "action 1", "RIGHT 2", "NOOP"] and COUNTED.neutral() == 3
    assert LatentActionNames(2).shown() == ["action 0", "action 1"] and LatentActionNames(2).neutral() == 0
    assert LatentActionNames(2, names=["a", "b"]).shown() == ["a", "b"]
    mostly_right = {"real_names": ["NOOP", "RIGHT"], "counts": [[30, 60], [10, 100]]}
    assert LatentActionNames(2, **mostly_right).suggested() == ["NOOP", "RIGHT"]  # RIGHT is read off most as either


def test_the_table_counts_what_the_action_model_reads_off_held_out_clips(root):
    world = pretrained.load(root / "outputs" / LATENT)
    episodes = Episodes(root / "levels", LEVELS, "test")
    known = measure(LatentActionNames(7), world, episodes, num_frames=4)
    expected = np.zeros((7, 7), int)
    for episode in range(episodes.num_episodes):
        for start in range(0, episodes.lengths[episode] - 3, 4):
            clip = torch.from_numpy(episodes.frames(episode, start, 4).copy()).permute(0, 3, 1, 2)[None] / 255
            latents = world.infer(Observed(frames=clip))[0].tolist()
            for latent, real in zip(latents, episodes.actions(episode, start, 4).tolist(), strict=True):
                expected[latent, real] += 1
    assert known.counts == expected.tolist() and expected.sum() > 20
    for real, latent in enumerate(known.latent_of_real):
        assert latent is None if not expected[:, real].any() else latent == expected[:, real].argmax()


def test_the_first_player_of_a_latent_world_has_its_actions_counted_and_written(copied):
    with serving(settings_for(copied)) as (url, _):
        with Client(url) as client:
            world = client.start(world=world_id(url, LATENT))["world"]
        written = json.loads((copied / "outputs" / LATENT / FILE).read_text())
    assert set(written) == {"num_actions", "names", "real_names", "real_of_latent", "latent_of_real", "counts"}
    assert written["names"] is None and np.array(written["counts"]).shape == (7, 7)
    assert world["action_names"] == world["suggested_names"] == read(copied / "outputs" / LATENT, 7).suggested()


def test_names_that_a_player_gives_are_written_beside_the_world_and_can_be_taken_back(copied):
    fpath = copied / "outputs" / LATENT / FILE
    with serving(settings_for(copied)) as (url, _):
        world = world_id(url, LATENT)

        def rename(names):
            return httpx.post(f"{url}api/names", json={"world": world, "names": names}).json()

        names = ["jump", "  to the\tright ", "ünter 右", "", "d", "e", "f"]
        kept = ["jump", "to the right", "ünter 右", "action 3", "d", "e", "f"]
        assert rename(names) == {"saved": True, "action_names": kept}
        assert json.loads(fpath.read_text())["names"] == kept
        assert next(each for each in info(url)["worlds"] if each["id"] == world)["action_names"] == kept
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
        assert answer == {"saved": False, "action_names": list("abcdefg")}


@pytest.mark.parametrize("text", ["{", "[]", '{"num_actions": 3}', '{"num_actions": 7, "names": ["a"]}'])
def test_a_damaged_file_is_named_and_does_not_keep_the_world_from_being_played(copied, capsys, text):
    fpath = copied / "outputs" / LATENT / FILE
    fpath.write_text(text)
    with pytest.raises(ValueError, match=FILE):
        read(fpath.parent, 7)
    with serving(settings_for(copied)) as (url, _):
        assert [world["num_actions"] for world in info(url)["worlds"]] == [7, 7]
    assert str(fpath) in capsys.readouterr().err


def test_blank_names_get_their_number():
    assert checked_names(["", " a "], 2) == ["action 0", "a"] and checked_names(None, 2) is None
