"""`--mode=dream` as a user runs it: from a picture, a video or an episode to a film."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from data.episodes import Episodes
from models import pretrained
from models.interfaces import Sampling
from play import dream, latent_actions, plans
from play.action_words import parse, recorded_names
from play.latent_actions import LatentActionNames
from play.recording import to_mp4
from tests.training.workers.tiny import SIZE
from training import main
from training.settings import DreamSettings
from training.video import animation

from .stage import GUIDED, LATENT, LEVELS, make_world

NAMES = ["NOOP", "RIGHT", "LEFT", "JUMP", "RIGHT_JUMP", "LEFT_JUMP", "DOWN"]
FPS = 15


@pytest.fixture
def drawn(monkeypatch):
    """What the films of a test show: the `Sample` behind each."""
    samples = []

    def draw(given):
        samples.extend(given)
        return animation(given)

    monkeypatch.setattr(dream, "animation", draw)
    return samples


@pytest.fixture
def run(root, tmp_path, monkeypatch, capsys):
    """Run the mode below a folder of its own; returns the exit code and the last line that was printed."""
    monkeypatch.chdir(tmp_path)

    def run(world=GUIDED, **settings):
        common = {
            "roots": f"[{root / 'outputs'}]",
            "model_fpath": root / "outputs" / world,
            "dataset_root_dpath": root / "levels",
            "num_frames": 5,
            "out": "film.gif",
            "device": "cpu",
        }
        values = (common | settings).items()
        words = [f"--dream.{key}={'null' if value is None else value}" for key, value in values]
        code = main.main(["--mode=dream", *words])
        printed = capsys.readouterr()
        lines = printed.out.splitlines() if code == 0 else [printed.err.splitlines()[-1]]
        assert len(lines) == 1
        return code, lines[0]

    return run


def episode_of(root, number, num_frames):
    episodes = Episodes(root / "levels", LEVELS, "test")
    return np.array(episodes.frames(number, 0, num_frames)), episodes.actions(number, 0, num_frames)


def write_video(fpath, frames, fps=FPS):
    fpath.write_bytes(to_mp4(list(frames), fps))
    return fpath


def read_film(fpath):
    """Frames of a film, (T, H, W, 3) uint8, and its rate."""
    with av.open(str(fpath)) as container:
        rate = container.streams.video[0].average_rate
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), float(rate)


# ---- films


def test_a_film_has_the_given_frame_and_every_dreamed_one_in_both_kinds(run):
    code, line = run(out="[a/film.gif,a/film.mp4]", actions="1,1,4,0")
    assert code == 0 and line.startswith("a/film.gif and a/film.mp4: 5 frames of guided at ") and "frames/s" in line
    with Image.open("a/film.gif") as gif:
        assert gif.n_frames == 6 and gif.info["duration"] == pytest.approx(1000 / FPS, abs=5)
        size = gif.size
    frames, rate = read_film("a/film.mp4")
    assert len(frames) == 6 and rate == FPS
    assert frames.shape[1:3] == (size[1] + size[1] % 2, size[0] + size[0] % 2)


def test_the_film_shows_the_worlds_own_session_under_the_written_actions(run, drawn, root):
    run(actions="RIGHT*2,right_jump,0", prompt="dataset:2", seed=3, temperature=1.0, top_k=8, window=3)
    (sample,) = drawn
    assert sample.actions == ["RIGHT", "RIGHT", "RIGHT_JUMP", "NOOP", "RIGHT"]  # repeated to the end
    assert sample.real is None and sample.num_given == 1
    frames, _ = episode_of(root, 2, 1)
    world = pretrained.load(root / "outputs" / GUIDED)
    session = world.start(
        torch.from_numpy(frames).permute(0, 3, 1, 2)[None] / 255,
        sampling=Sampling(temperature=1.0, top_k=8, noise=1.0),
        seeds=torch.tensor([3]),
        window=3,
    )
    dreamed = [session.step(torch.tensor([action]))[0] for action in (1, 1, 4, 0, 1)]
    expected = (torch.stack(dreamed).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(sample.dream, np.concatenate([frames, expected]))


def test_recorded_actions_show_the_truth_above_the_dream_and_end_with_the_episode(run, drawn, root):
    length = int(Episodes(root / "levels", LEVELS, "test").lengths[1])
    code, line = run(actions="inferred", prompt="dataset:1", num_frames=99)
    frames, actions = episode_of(root, 1, length)
    (sample,) = drawn
    assert code == 0 and line.endswith("; dataset:1 ends there") and f"{length - 1} frames" in line
    assert np.array_equal(sample.real, frames) and len(sample.dream) == length
    assert sample.actions == [NAMES[action] for action in actions]
    assert np.array_equal(sample.dream[0], frames[0]) and not np.array_equal(sample.dream[1:], frames[1:])


def test_a_latent_world_reads_the_actions_off_a_video(run, drawn, root, tmp_path):
    frames, _ = episode_of(root, 0, 8)
    write_video(tmp_path / "film.mp4", frames)
    code, _ = run(LATENT, actions="inferred", prompt="film.mp4", num_first_frames=2)
    (sample,) = drawn
    assert code == 0 and sample.num_given == 2 and sample.real.shape == (7, SIZE, SIZE, 3)
    assert np.abs(sample.real.astype(int) - frames[:7]).mean() < 12  # enlarged, compressed, scaled back
    assert np.array_equal(sample.dream[:2], sample.real[:2])
    world = pretrained.load(root / "outputs" / LATENT)
    expected = plans.infer(world, plans.Footage(sample.real), 4, "this")
    assert sample.actions == [f"action {action}" for action in expected]


def test_actions_are_inferred_within_the_window_that_a_world_was_trained_on(root):
    world = pretrained.load(root / "outputs" / LATENT)
    frames, _ = episode_of(root, 0, 8)
    whole = plans.infer(world, plans.Footage(frames), 4, "this")
    assert len(whole) == 7
    pieces = [plans.infer(world, plans.Footage(frames[start : start + 4]), 4, "this") for start in (0, 3, 6)]
    assert np.array_equal(whole, np.concatenate(pieces))


@pytest.mark.parametrize("world", [GUIDED, LATENT])
def test_the_actions_of_one_clip_lead_another_first_frame_on(run, drawn, root, world):
    code, _ = run(world, prompt="dataset:0", actions_from="dataset:3")
    run(world, actions="inferred", prompt="dataset:3")
    moved, own = drawn
    first, _ = episode_of(root, 0, 1)
    source, _ = episode_of(root, 3, 6)
    assert code == 0 and moved.real_name == "source" and np.array_equal(moved.real, source)
    assert moved.actions == own.actions and np.array_equal(moved.dream[:1], first)
    assert not np.array_equal(moved.dream, own.dream)


def test_a_drawing_of_any_size_begins_a_dream(run, drawn, tmp_path):
    Image.new("RGB", (90, 50), (10, 200, 30)).save(tmp_path / "drawing.png")
    assert run(prompt="drawing.png", actions="1")[0] == 0
    assert (drawn[0].dream[0] == (10, 200, 30)).all()


def test_a_video_is_read_at_the_films_rate(run, drawn, tmp_path):
    greys = np.repeat(np.arange(0, 240, 20, dtype=np.uint8), SIZE * SIZE * 3).reshape(-1, SIZE, SIZE, 3)
    write_video(tmp_path / "fast.mp4", greys, fps=2 * FPS)
    run(LATENT, prompt="fast.mp4", actions="inferred", num_frames=3)
    means = drawn[0].real.mean(axis=(1, 2, 3))
    assert np.abs(means - [0, 40, 80, 120]).max() < 4


def test_random_actions_follow_from_the_seed(run, drawn):
    for seed in (0, 0, 1):
        run(seed=seed, num_frames=12)
    first, again, other = drawn
    assert first.actions == again.actions != other.actions and np.array_equal(first.dream, again.dream)


def test_names_that_people_gave_latent_actions_are_understood(run, drawn, root, tmp_path):
    world = tmp_path / "named"
    shutil.copytree(root / "outputs" / LATENT, world)
    num_actions = pretrained.load(world).num_actions
    names = ["stay", "go, fast", *(f"other {index}" for index in range(2, num_actions))]
    latent_actions.write(world, LatentActionNames(num_actions, names=names))
    run(model_fpath=world, actions="Stay*2,1,other 2", num_frames=4)
    assert drawn[0].actions == ["stay", "stay", "go, fast", "other 2"]


def test_real_actions_steer_a_latent_world_through_its_map(run, drawn, root, tmp_path):
    world = tmp_path / "mapped"
    shutil.copytree(root / "outputs" / LATENT, world)
    known = LatentActionNames(7, real_names=["NOOP", "RIGHT"], latent_of_real=[2, 5], counts=[[1, 1]] * 7)
    latent_actions.write(world, replace(known, names=["a", "b", "c", "d", "e", "f", "g"]))
    run(model_fpath=world, actions="Right*2,NOOP,b", num_frames=4)
    assert drawn[0].actions == ["f", "f", "c", "b"]


def test_a_world_of_skipped_frames_sees_episodes_as_it_was_trained(run, drawn, root, tmp_path):
    make_world(tmp_path, "skipping", "genie_redux_guided", train__frame_skip=2)
    run(model_fpath=tmp_path / "outputs" / "skipping", prompt="dataset:0", actions="inferred", num_frames=3)
    frames, actions = episode_of(root, 0, 8)
    assert np.array_equal(drawn[0].real, frames[:7:2])
    assert drawn[0].actions == [NAMES[action] for action in actions[:6:2]]


def test_without_a_name_every_film_gets_a_new_one_and_the_newest_world_dreams(run, root):
    newest = max(("guided", "latent"), key=lambda name: (root / "outputs" / name / "step-00000007").stat().st_mtime)
    lines = [run(out=None, model_fpath=None, num_frames=2)[1] for _ in range(2)]
    stems = [f"outputs/dreams/{newest}-{number}" for number in (1, 2)]
    for line, stem in zip(lines, stems, strict=True):
        assert line.startswith(f"{stem}.gif and {stem}.mp4: 2 frames")
    assert len(read_film(f"{stems[0]}.mp4")[0]) == len(read_film(f"{stems[1]}.mp4")[0]) == 3


def test_progress_is_shown(root, tmp_path, capsys):
    world = pretrained.load(root / "outputs" / GUIDED)
    plan = plans.Plan(np.zeros((1, SIZE, SIZE, 3), np.uint8), np.zeros(3, np.int64))
    dream.dream(world, plan, sampling=Sampling(), seed=0, window=3)
    shown = capsys.readouterr().err
    assert "dreaming" in shown and "3/3" in shown and "<00:00" in shown


# ---- words


@pytest.mark.parametrize(
    "own, of_data, expected",
    [
        (("a", "b"), ["c", "d"], ["a", "b"]),  # the data set of today may be another
        ((), ["c", "d"], ["c", "d"]),
        ((), None, ["action 0", "action 1"]),
        ((), ["c", "d", "e"], ["action 0", "action 1"]),
    ],
)
def test_a_guided_world_keeps_the_names_of_what_it_was_trained_on(own, of_data, expected):
    world = SimpleNamespace(recorded_names=own, num_actions=2)
    assert recorded_names(world, {} if of_data is None else {"action_names": of_data}) == expected


def test_a_published_world_has_the_names_of_coinrun():
    assert recorded_names(SimpleNamespace(recorded_names=(), num_actions=7), {}) == NAMES


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1,1,4,0", [1, 1, 4, 0]),
        ("1*3,4*2", [1, 1, 1, 4, 4]),
        (" RIGHT * 2 , Left_Jump", [1, 1, 5]),
        ("6", [6]),
    ],
)
def test_actions_are_written_as_numbers_names_and_repetitions(text, expected):
    assert parse(text, NAMES, {}) == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("7", "'7' is not an action of this world; it has 0 NOOP, 1 RIGHT, 2 LEFT"),
        ("FLY*3", "'FLY' is not an action"),
        ("1*0", "'1\\*0' is not ACTION or ACTION\\*COUNT"),
        ("1*x", "'1\\*x' is not ACTION"),
        ("1*99999999999", "is not ACTION"),
        ("1,,2", "'' is not an action"),
    ],
)
def test_words_that_are_no_actions_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text, NAMES, {})


def test_a_list_and_a_single_number_are_actions_too():
    default = OmegaConf.to_container(OmegaConf.load(main.command_line.CONFIGS / "dream" / "default.yaml"))
    written = [DreamSettings.from_config(default | {"actions": actions}).actions for actions in (3, [1, 4], None)]
    assert written == ["3", "1,4", None]


# ---- mistakes


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model_fpath": "nowhere"}, "dream.model_fpath=nowhere: no weights at nowhere"),
        ({"model_fpath": None, "roots": "[nowhere]"}, "no world was found below nowhere; train one"),
        ({"prompt": "missing.png"}, "dream.prompt=missing.png: no such file; set it to a picture"),
        ({"prompt": "broken.png"}, "dream.prompt=broken.png: broken.png cannot be decoded"),
        ({"prompt": "broken.mp4"}, "dream.prompt=broken.mp4: "),
        ({"prompt": "dataset:99"}, "dream.prompt=dataset:99: coinrun_plain_test has 5 episodes in its test split"),
        ({"prompt": "dataset:first"}, "dream.prompt is 'dataset:first', expected the number of an episode"),
        ({"dataset_name": "coinrn"}, "dataset_name=coinrn: no"),
        ({"actions": "1,FLY"}, "dream.actions: 'FLY' is not an action of this world; it has 0 NOOP, 1 RIGHT"),
        ({"actions": "inferred", "prompt": "picture.png"}, "dream.actions=inferred: dream.prompt=picture.png has no"),
        ({"actions": "inferred", "prompt": "film.mp4"}, "dream.prompt=film.mp4 has no recorded actions, and a guided"),
        ({"actions": "random", "actions_from": "film.mp4"}, "dream.actions is 'random', expected inferred or null"),
        ({"actions_from": "picture.png"}, "dream.actions_from=picture.png has one frame"),
        ({"num_first_frames": 2, "prompt": "picture.png"}, "dream.num_first_frames=2: dream.prompt=picture.png has 1"),
        ({"num_first_frames": 40, "prompt": "film.mp4"}, "dream.num_first_frames=40: dream.prompt=film.mp4 has 9"),
        ({"inference_steps": 4}, "dream.inference_steps=4: guided makes one pass a frame"),
        ({"num_frames": 0}, "dream.num_frames is 0, expected a value of at least 1"),
        ({"out": "film.avi"}, "dream.out is ['film.avi'], expected names of films that end in .gif or .mp4"),
        ({"out": "folder.gif"}, "dream.out=folder.gif is a folder"),
        ({"device": "cuda:77"}, "dream.device is 'cuda:77', which this machine does not have"),
    ],
)
def test_mistakes_end_in_one_line_before_anything_is_dreamed(run, root, tmp_path, settings, message):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    (tmp_path / "folder.gif").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "picture.png")
    write_video(tmp_path / "film.mp4", episode_of(root, 0, 9)[0])
    code, line = run(**settings)
    assert code == 2 and line.startswith("error: ") and message in line
    assert not list(tmp_path.rglob("film.gif"))


def test_the_film_of_before_stays_when_a_dream_fails(run, tmp_path):
    (tmp_path / "film.gif").write_bytes(b"before")
    assert run(actions="99")[0] == 2
    assert (tmp_path / "film.gif").read_bytes() == b"before"
    assert run()[0] == 0 and (tmp_path / "film.gif").read_bytes() != b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["film.gif"]
