"""A player's dream over the wire: what is shown is what the world dreams, wherever the player goes in it."""

import io

import av
import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from data.episodes import read_info
from data_generation.environment import Level
from models import pretrained
from models.interfaces import Sampling
from play.player import to_picture
from play.reality import game_of
from play.recording import GAP, SHOWN_SIDE
from tests.play.stage import GUIDED, LATENT, LEVELS, Client, info, serving, settings_for, world_id
from tests.training.workers.tiny import SIZE

GREEDY = Sampling()


def dreamed(root, name, picture, actions, sampling=GREEDY, seed=0):
    """The pictures that a session of the world shows."""
    world = pretrained.load(root / "outputs" / name)
    prompt = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None, None].float() / 255
    session = world.start(prompt, sampling=sampling, seeds=torch.tensor([seed]), window=4, max_rewind=4)
    return [to_picture(session.step(torch.tensor([action]))[0]) for action in actions]


def same(frames, pictures) -> bool:
    return all(np.array_equal(frame["dream"], picture) for frame, picture in zip(frames, pictures, strict=True))


def test_a_player_sees_what_the_world_dreams(client, root):
    prompt = client.start(prompt="g1", seed=5)["frame"]
    assert (prompt["n"], prompt["action"], prompt["h"], prompt["w"]) == (0, None, SIZE, SIZE)
    frames = client.step(1, 3) + client.step(4, 3)
    assert [frame["n"] for frame in frames] == [1, 2, 3, 4, 5, 6]
    assert [frame["action"] for frame in frames] == [1, 1, 1, 4, 4, 4]
    assert same(frames, dreamed(root, GUIDED, prompt["dream"], [1, 1, 1, 4, 4, 4]))


def test_the_first_frame_is_the_chosen_one_of_the_gallery(client, url):
    for prompt in info(url)["prompts"]:
        png = httpx.get(f"{url.rstrip('/')}{prompt['url']}")
        assert png.headers["content-type"] == "image/png"
        shown = client.start(prompt=prompt["id"])["frame"]["dream"]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png.content))), shown)


def test_the_key_that_is_held_decides(client):
    client.start(seed=1)
    left = client.step(2, 3)[-1]["dream"]
    client.start(seed=1)
    assert not np.array_equal(client.step(1, 3)[-1]["dream"], left)
    client.start(seed=1)
    assert np.array_equal(client.step(2, 3)[-1]["dream"], left)


def test_playing_goes_on_until_it_is_paused(client):
    client.start()
    client.send("play")
    numbers = [client.frame()["n"] for _ in range(6)]
    assert numbers == [1, 2, 3, 4, 5, 6]
    client.send("pause")
    while (message := client.receive())["type"] == "frame":
        client.send("ack", n=message["n"])
        numbers.append(message["n"])
    assert message == {"type": "paused", "n": numbers[-1]}
    with pytest.raises(TimeoutError):
        client.receive(timeout=0.2)


def test_going_back_leads_to_the_same_frames_again(client):
    client.start()
    frames = client.step(1, 3) + client.step(3, 4)
    assert frames[-1]["rewindable"] == 4
    client.send("rewind", count=3)
    assert client.expect("rewound")["n"] == 4
    back = client.frame()
    assert back["n"] == 4 and np.array_equal(back["dream"], frames[3]["dream"])
    again = client.step(3, 3)
    assert all(np.array_equal(new["dream"], old["dream"]) for new, old in zip(again, frames[4:], strict=True))


def test_going_back_further_than_what_is_kept_is_refused_with_the_limit_and_changes_nothing(client):
    client.start()
    client.step(1, 7)
    assert client.refusal("rewind", count=5) == "cannot take 5 frames back, at most 4 here, or all of them"
    frame = client.step(1)[0]
    client.send("reset")
    assert client.expect("rewound")["n"] == 0 and client.frame()["n"] == 0
    again = client.step(1, 8)[-1]
    assert frame["n"] == again["n"] == 8 and np.array_equal(frame["dream"], again["dream"])
    client.send("rewind", count=8)
    assert client.expect("rewound")["n"] == 0 and client.frame()["n"] == 0


def test_as_many_frames_as_the_last_one_says_can_be_taken_back_wherever_the_dream_is(client):
    """Also where the positions of the world end, which is every 4 frames after the eighth."""
    client.start()
    pictures = [client.step(1 + number % 4)[0]["dream"] for number in range(20)]
    for length in range(1, 20):
        client.send("reset")
        assert client.expect("rewound")["n"] == client.frame()["n"] == 0
        frames = [client.step(1 + number % 4)[0] for number in range(length)]
        assert same(frames, pictures[:length])
        back = min(frames[-1]["rewindable"], length - 1)
        if back:
            client.send("rewind", count=back)
            client.expect("rewound")
            shown = client.frame()
            assert shown["n"] == length - back and np.array_equal(shown["dream"], pictures[length - back - 1])
            assert client.step(1)[0]["n"] == length - back + 1


def test_steps_and_temperature_change_from_the_next_frame_on(client, root, url):
    prompt = client.start(world=world_id(url, LATENT), seed=3)["frame"]["dream"]
    greedy = client.step(2, 3)
    assert same(greedy, dreamed(root, LATENT, prompt, [2] * 3))
    client.send("rewind", count=3)
    assert client.expect("rewound")["n"] == client.frame()["n"] == 0
    client.send("settings", steps=3, temperature=0.5)
    refined = client.step(2, 3)
    sampling = Sampling(steps=3, temperature=0.5, noise=0.5)
    assert same(refined, dreamed(root, LATENT, prompt, [2] * 3, sampling, seed=3))
    assert not same(greedy, [frame["dream"] for frame in refined])


def test_values_beyond_what_the_page_offers_are_refused(client, url):
    client.start(world=world_id(url, GUIDED))
    assert client.refusal("settings", steps=2) == "steps must be a whole number from 1 to 1"
    assert client.refusal("settings", temperature=9) == "temperature must be a number from 0 to 5"
    assert client.refusal("settings", fps=1e9) == "fps must be a number from 0.5 to 1000"
    assert client.refusal("action", action=7) == "action must be a whole number from 0 to 6"
    assert client.refusal("start", prompt="g99").startswith("this picture is not known")
    assert client.refusal("start", world="../../etc").startswith("this world is not in the list")
    assert client.step(6)[0]["n"] == 1, "what was refused changed nothing"


def test_the_true_game_runs_beside_the_dream_from_the_same_first_frame(client, root, url):
    prompt = info(url)["prompts"][2]
    started = client.start(prompt=prompt["id"], reality=True)
    assert started["reality"] and started["level"] == prompt["level"] == 10_002
    level = Level(game_of(read_info(root / "levels", LEVELS)), prompt["level"])
    assert np.array_equal(started["frame"]["truth"], level.frame), "the prompt is the level's first frame"
    assert np.array_equal(started["frame"]["dream"], level.frame) and started["frame"]["psnr"] is None
    frames = client.step(1, 4) + client.step(4, 2)
    for frame in frames:
        level.step(frame["action"])
        assert np.array_equal(frame["truth"], level.frame)
        error = np.mean((frame["truth"].astype(float) - frame["dream"]) ** 2)
        assert frame["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)
    level.close()
    client.send("rewind", count=3)
    client.expect("rewound")
    assert np.array_equal(client.frame()["truth"], frames[2]["truth"])
    again = client.step(1)[0]
    assert np.array_equal(again["truth"], frames[3]["truth"]) and np.array_equal(again["dream"], frames[3]["dream"])


def test_there_is_no_true_game_for_latent_actions_or_a_picture_of_ones_own(client, url):
    assert not client.start(world=world_id(url, LATENT), reality=True)["reality"]
    assert [world["has_reality"] for world in info(url)["worlds"]] == [True, False]
    png = io.BytesIO()
    Image.new("RGB", (9, 5), "red").save(png, "PNG")
    uploaded = httpx.post(f"{url}api/prompts", content=png.getvalue()).json()
    started = client.start(prompt=uploaded["id"], reality=True)
    assert not started["reality"] and started["level"] is None
    assert (started["frame"]["dream"] == (255, 0, 0)).all()


@pytest.mark.parametrize("reality", [False, True])
def test_a_recording_holds_the_frames_that_were_shown(client, url, reality):
    first = client.start(reality=reality)["frame"]
    client.send("record", on=True)
    last = client.step(1, 5)[-1]
    client.send("record", on=False)
    made = client.expect("recording")
    assert made["frames"] == 6
    gif, mp4 = (httpx.get(f"{url.rstrip('/')}{made[kind]}") for kind in ("gif", "mp4"))
    assert gif.headers["content-type"] == "image/gif" and "attachment" in mp4.headers["content-disposition"]
    scale = SHOWN_SIDE // SIZE
    shape = (SHOWN_SIDE, SHOWN_SIDE * 2 + GAP * scale if reality else SHOWN_SIDE, 3)
    image = Image.open(io.BytesIO(gif.content))
    with av.open(io.BytesIO(mp4.content)) as container:
        film = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert image.n_frames == len(film) == 6 and film[0].shape == shape
    for number, shown in ((0, first), (5, last)):
        image.seek(number)
        pictures = np.asarray(image.convert("RGB")), film[number]
        for picture in pictures:
            assert picture.shape == shape
            dream = picture[scale // 2 : SHOWN_SIDE : scale, scale // 2 : SHOWN_SIDE : scale]
            assert np.abs(dream.astype(int) - shown["dream"]).mean() < 12


def test_a_recording_ends_by_itself_when_it_is_full(root):
    with serving(settings_for(root, record_seconds=0.05)) as (url, _), Client(url) as client:
        client.start(fps=100)
        client.send("record", on=True)
        client.step(1, 4)
        assert client.expect("recording")["frames"] == 5
        assert client.refusal("record", on=False) == "nothing is being recorded"
