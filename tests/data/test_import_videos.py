import json
import shlex
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from data.clips import ClipDataset
from data.episodes import END_REASONS, Episodes
from data.import_videos import choose, main
from data.video_files import Shown, at_rate
from models import pretrained
from tests.data.films import greys, numbers, write_video
from training import main as commands

ROOT = Path(__file__).resolve().parents[2]
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def run(source: Path, root: Path, *words: str, name: str = "films", size: str = "32") -> int:
    return main(["--input", str(source), "--root", str(root), "--name", name, "--image_size", size, *words])


def imported(source: Path, *words: str, size: str = "32", split: str = "train") -> Episodes:
    """The dataset made of a folder, all of it in one split unless `words` say otherwise."""
    words = words or ("--validation_share", "0")
    if "--validation_share" not in words:
        words = (*words, "--validation_share", "0")
    root = source.parent / "datasets"
    assert run(source, root, *words, size=size) == 0
    return Episodes(root, "films", split)


def whole(read: Episodes, number: int = 0) -> np.ndarray:
    return read.frames(number, 0, int(read.lengths[number]))


def info_of(root: Path, name: str = "films") -> dict:
    return json.loads((root / name / "info.json").read_text())


def write_images(folder: Path, arrays: list[np.ndarray], name: str = "frame{}.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / name.format(number))
    return folder


def quarters(height: int = 32, width: int = 32) -> np.ndarray:
    """Red and green above blue and white."""
    picture = np.empty((height, width, 3), np.uint8)
    above, left = slice(height // 2), slice(width // 2)
    below, right = slice(height // 2, None), slice(width // 2, None)
    picture[above, left], picture[above, right], picture[below, left], picture[below, right] = RED, GREEN, BLUE, WHITE
    return picture


def corners(frame: np.ndarray) -> list[tuple[int, ...]]:
    """The colours above left, above right, below left and below right, each channel 0 or 255."""
    height, width = frame.shape[:2]
    places = [
        (height // 4, width // 4),
        (height // 4, -width // 4),
        (-height // 4, width // 4),
        (-height // 4, -width // 4),
    ]
    return [tuple(int(value > 127) * 255 for value in frame[place]) for place in places]


# ---------------------------------------------------------------------------------------------------- what is imported


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".gif"])
def test_every_frame_of_a_video_comes_once_and_in_order(tmp_path, suffix):
    write_video(tmp_path / "in" / f"film{suffix}", greys(20))
    read = imported(tmp_path / "in")
    assert read.num_episodes == 1 and numbers(whole(read)) == list(range(20))
    assert not read.has_actions and END_REASONS[read.end_reasons[0]] == "end_of_recording"


@pytest.mark.parametrize("suffix, layout", [(".mp4", None), (".webm", None), (".avi", None), (".gif", "rgb8")])
def test_colours_are_red_green_blue_in_that_order(tmp_path, suffix, layout):
    write_video(tmp_path / "in" / f"film{suffix}", [quarters()] * 3, pixel_format=layout)
    assert corners(whole(imported(tmp_path / "in"))[1]) == [RED, GREEN, BLUE, WHITE]


def test_colours_follow_the_matrix_that_the_file_names(tmp_path):
    colour = (0, 200, 40)
    fpath = tmp_path / "in" / "film.mp4"
    fpath.parent.mkdir()
    with av.open(str(fpath), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv444p"
        stream.codec_context.colorspace = 1  # BT.709
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), colour, np.uint8), "rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv444p", dst_colorspace=1)))
        container.mux(stream.encode())
    np.testing.assert_allclose(whole(imported(tmp_path / "in"))[1, 5, 5], colour, atol=3)


def test_images_are_one_sequence_per_folder_in_the_order_of_their_numbers(tmp_path):
    write_images(tmp_path / "in" / "b" / "run", greys(12))
    write_images(tmp_path / "in" / "a", greys(3), "{}.jpg")
    read = imported(tmp_path / "in")
    assert read.lengths.tolist() == [3, 12] and read.level_seeds.tolist() == [0, 1]
    assert info_of(tmp_path / "datasets")["files"] == ["a", "b/run"]
    np.testing.assert_array_equal(whole(read, 1), np.stack(greys(12)))


def test_hidden_files_and_other_kinds_are_left_out(tmp_path):
    write_video(tmp_path / "in" / "film.MP4".lower(), greys(3))
    (tmp_path / "in" / "._film.mp4").write_bytes(b"what another system keeps beside it")
    (tmp_path / "in" / "notes.txt").write_text("not a film")
    write_images(tmp_path / "in" / ".thumbnails", greys(3))
    imported(tmp_path / "in")
    info = info_of(tmp_path / "datasets")
    assert info["files"] == ["film.mp4"] and info["skipped"] == []


def test_a_single_file_can_be_the_input(tmp_path):
    fpath = write_video(tmp_path / "in" / "film.mp4", greys(5))
    assert imported(fpath).lengths.tolist() == [5]


def test_grey_and_transparent_pictures_become_rgb(tmp_path):
    def save(folder, *images):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for number, image in enumerate(images):
            image.save(tmp_path / "in" / folder / f"{number}.png")

    grey = Image.new("L", (8, 8), 100)
    deep = Image.fromarray(np.full((8, 8), 100 * 256, np.uint16))
    clear = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    half = Image.new("RGBA", (8, 8), (200, 0, 0, 128))
    save("a", grey, deep)
    save("b", clear, half)
    read = imported(tmp_path / "in", "--background", "0,0,100", size="8")
    assert (whole(read, 0) == 100).all()
    assert whole(read, 1)[0, 4, 4].tolist() == [0, 0, 100]
    np.testing.assert_allclose(whole(read, 1)[1, 4, 4], [100, 0, 50], atol=1)


def test_transparent_parts_of_a_gif_show_the_background(tmp_path):
    pictures = []
    for number in range(3):
        picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
        picture.paste((255, 0, 0, 255), (8 * number, 0, 8 * number + 8, 32))
        pictures.append(picture)
    (tmp_path / "in").mkdir()
    pictures[0].save(tmp_path / "in" / "a.gif", save_all=True, append_images=pictures[1:], duration=50, disposal=2)
    frames = whole(imported(tmp_path / "in", "--background", "0,0,255"))
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(np.flatnonzero((frame[4] == (255, 0, 0)).all(-1)) // 8, [number] * 8)
        assert (frame[4, 28] == (0, 0, 255)).all()


# ----------------------------------------------------------------------------------------------------------- the clock


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi", ".gif"])
@pytest.mark.parametrize("fps, expected", [("15", range(0, 30, 2)), ("10", range(0, 30, 3)), ("30", range(30))])
def test_a_lower_rate_takes_the_frames_that_are_on_screen_then(tmp_path, suffix, fps, expected):
    # WebM keeps milliseconds, GIF hundredths: 33, 67, 100 and 3, 7, 10. They must not lead to other frames.
    write_video(tmp_path / "in" / f"film{suffix}", greys(30))
    assert numbers(whole(imported(tmp_path / "in", "--fps", fps))) == list(expected)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_frames_of_a_variable_rate_are_taken_by_their_times(tmp_path, suffix):
    times = [0, 100, 300, 350, 360, 700]
    write_video(tmp_path / "in" / f"film{suffix}", greys(6), times_ms=times)
    kept = numbers(whole(imported(tmp_path / "in", "--fps", "10")))
    assert kept[:8] == [0, 1, 1, 2, 4, 4, 4, 5] and set(kept[8:]) <= {5}


def test_without_a_rate_every_frame_is_kept_whatever_its_time(tmp_path):
    write_video(tmp_path / "in" / "film.mp4", greys(6), times_ms=[0, 100, 300, 350, 360, 700])
    assert numbers(whole(imported(tmp_path / "in"))) == list(range(6))


def test_a_higher_rate_repeats_frames(tmp_path):
    write_video(tmp_path / "in" / "film.mp4", greys(5), fps=10)
    assert numbers(whole(imported(tmp_path / "in", "--fps", "20"))) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_image_sequences_need_their_rate_to_be_resampled(tmp_path, capsys):
    write_images(tmp_path / "in" / "run", greys(12))
    assert run(tmp_path / "in", tmp_path / "datasets", "--fps", "10") == 2
    assert "--fps needs --images_fps too" in capsys.readouterr().err
    assert numbers(whole(imported(tmp_path / "in", "--fps", "10", "--images_fps", "30"))) == [0, 3, 6, 9]


def test_rates_that_do_not_divide_keep_the_length_in_seconds():
    film = [Shown(number, Fraction(number, 30), Fraction(number + 1, 30)) for number in range(300)]
    for fps in (Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(7), Fraction(60)):
        kept = list(at_rate(film, fps, Fraction(1, 2000)))
        assert kept == sorted(kept) and abs(len(kept) - 10 * fps) < 1
        assert all(abs(number - tick * 30 / fps) <= 1 for tick, number in enumerate(kept))


# --------------------------------------------------------------------------------------------------------- the geometry


def thirds() -> np.ndarray:
    """(16, 48): red, green, blue."""
    return np.stack([RED, GREEN, BLUE]).astype(np.uint8).repeat(16, axis=0)[None].repeat(16, axis=0)


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path):
    noise = [np.random.default_rng(number).integers(0, 256, (16, 24, 3), np.uint8) for number in range(3)]
    write_images(tmp_path / "in" / "a", noise)
    for fit in ("crop", "pad", "stretch"):
        (tmp_path / fit).mkdir()
        assert run(tmp_path / "in", tmp_path / fit, "--fit", fit, "--validation_share", "0", size="16x24") == 0
        np.testing.assert_array_equal(whole(Episodes(tmp_path / fit, "films", "train")), np.stack(noise))


def test_crop_keeps_the_middle(tmp_path):
    write_images(tmp_path / "in" / "a", [thirds()] * 2)
    frame = whole(imported(tmp_path / "in", "--fit", "crop", size="8"))[0]
    assert frame.shape == (8, 8, 3) and (abs(frame[:, 1:-1].astype(int) - GREEN) < 30).all()


def test_pad_keeps_all_and_centres_it_on_the_background(tmp_path):
    write_images(tmp_path / "in" / "a", [thirds()] * 2)
    frame = whole(imported(tmp_path / "in", "--fit", "pad", "--background", "9,8,7", size="24"))[0]
    assert (frame[:8] == (9, 8, 7)).all() and (frame[16:] == (9, 8, 7)).all()
    for place, colour in zip((3, 12, 20), (RED, GREEN, BLUE), strict=True):
        np.testing.assert_allclose(frame[8:16, place], np.tile(colour, (8, 1)), atol=12)


def test_stretch_distorts(tmp_path):
    write_images(tmp_path / "in" / "a", [thirds()] * 2)
    frame = whole(imported(tmp_path / "in", "--fit", "stretch", size="24"))[0]
    for place, colour in zip((3, 12, 20), (RED, GREEN, BLUE), strict=True):
        np.testing.assert_allclose(frame[:, place], np.tile(colour, (24, 1)), atol=12)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_large_video_is_scaled_down_without_aliasing(tmp_path, fit):
    lines = np.zeros((480, 640, 3), np.uint8)
    lines[::2] = 255
    write_video(tmp_path / "in" / "film.mp4", [lines] * 2, pixel_format="yuv444p")
    frame = whole(imported(tmp_path / "in", "--fit", fit, size="32x48"))[0]
    assert frame.shape == (32, 48, 3) and abs(frame.astype(int) - 127).max() < 12


def test_a_video_that_is_marked_as_turned_is_shown_upright(tmp_path):
    # A mark of 90 says "turn counterclockwise to show": what was right is above then.
    write_video(tmp_path / "in" / "film.mp4", [quarters(32, 64)] * 2, rotation=90)
    frame = whole(imported(tmp_path / "in", size="64x32"))[0]
    assert corners(frame) == [GREEN, WHITE, RED, BLUE]


def test_pixels_that_are_not_square_are_shown_in_their_shape(tmp_path):
    white = np.full((32, 32, 3), 255, np.uint8)
    write_video(tmp_path / "in" / "film.mp4", [white] * 2, pixel_aspect=Fraction(2))
    frame = whole(imported(tmp_path / "in", "--fit", "pad", size="32"))[0]
    bright = np.flatnonzero(frame.mean(axis=(1, 2)) > 127)
    assert (bright.min(), bright.max()) == (8, 23)


# ------------------------------------------------------------------------------------------------- episodes and splits


def test_a_long_video_becomes_several_episodes_that_together_are_all_of_it(tmp_path):
    write_video(tmp_path / "in" / "a.mp4", greys(20))
    write_video(tmp_path / "in" / "b.mp4", greys(8))
    read = imported(tmp_path / "in", "--max_frames", "8", "--frames_per_shard", "16")
    assert read.lengths.tolist() == [8, 8, 4, 8] and read.level_seeds.tolist() == [0, 0, 0, 1]
    joined = np.concatenate([whole(read, number) for number in range(3)])
    assert numbers(joined) == list(range(20))
    reasons = [END_REASONS[reason] for reason in read.end_reasons]
    assert reasons == ["time_limit", "time_limit", "end_of_recording", "end_of_recording"]
    shards = info_of(tmp_path / "datasets")["splits"]["train"]["shards"]
    assert [shard["frames"] for shard in shards] == [16, 12]


def test_compressed_frames_are_the_same_frames(tmp_path):
    write_video(tmp_path / "in" / "a.mp4", greys(20))
    read = imported(tmp_path / "in", "--compression", "blosc")
    assert numbers(whole(read)) == list(range(20)) and read.fpaths[0].stat().st_size < 20 * 32 * 32 * 3


def test_files_are_held_out_whole_and_by_the_seed(tmp_path):
    for number in range(5):
        write_video(tmp_path / "in" / f"{number}.mp4", greys(3 + number))
    assert run(tmp_path / "in", tmp_path / "d", "--max_frames", "2", "--validation_share", "0.4") == 0
    held = {split: set(Episodes(tmp_path / "d", "films", split).level_seeds) for split in ("train", "validation")}
    assert len(held["validation"]) == 2 and held["train"] | held["validation"] == set(range(5))
    assert not held["train"] & held["validation"]

    names = [str(number) for number in range(100)]
    assert choose(names, 0.1, 0) == choose(names[::-1], 0.1, 0) != choose(names, 0.1, 1)
    assert len(choose(names, 0.1, 0)) == 10 and choose(names, 0, 0) == set()
    assert len(choose(names[:2], 0.01, 0)) == 1 and len(choose(names[:2], 0.99, 0)) == 1


@pytest.mark.parametrize("words, expected", [((), 20), (("--fps", "15"), 10)])
def test_of_a_single_file_the_end_is_held_out(tmp_path, words, expected):
    write_video(tmp_path / "in" / "film.webm", greys(20))
    assert run(tmp_path / "in", tmp_path / "d", "--validation_share", "0.3", *words) == 0
    parts = [numbers(whole(Episodes(tmp_path / "d", "films", split))) for split in ("train", "validation")]
    assert parts[0] + parts[1] == list(range(0, 20, 20 // expected)) and len(parts[1]) == expected * 3 // 10


@pytest.mark.parametrize(
    "length, words, expected",
    [
        (2, (), {"train": [2]}),
        (3, (), {"train": [3]}),
        (4, (), {"train": [2], "validation": [2]}),
        (5, ("--validation_share", "0.9"), {"train": [2], "validation": [3]}),
        (30, ("--fps", "3"), {"train": [3]}),
    ],
)
def test_a_single_short_file_is_for_training_unless_both_splits_get_two_frames(
    tmp_path, capsys, length, words, expected
):
    write_video(tmp_path / "in" / "film.mp4", greys(length))
    assert run(tmp_path / "in", tmp_path / "d", *words) == 0
    splits = info_of(tmp_path / "d")["splits"]
    assert {split: Episodes(tmp_path / "d", "films", split).lengths.tolist() for split in splits} == expected
    printed = capsys.readouterr().out
    assert "skipped" not in printed and ("no split validation" in printed) == ("validation" not in expected)


def test_a_single_file_of_one_frame_at_the_rate_asked_for_is_one_line(tmp_path, capsys):
    write_video(tmp_path / "in" / "film.mp4", greys(30))
    assert run(tmp_path / "in", tmp_path / "d", "--fps", "1") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == "error: none of 1 recordings has two readable frames (film.mp4: it has one frame only)"


def test_a_link_to_nothing_is_listed_and_skipped(tmp_path, capsys):
    write_video(tmp_path / "in" / "film.mp4", greys(6))
    (tmp_path / "in" / "gone.mp4").symlink_to(tmp_path / "nothing")
    assert run(tmp_path / "in", tmp_path / "d") == 0
    assert "1 skipped" in capsys.readouterr().out
    assert [entry["file"] for entry in info_of(tmp_path / "d")["skipped"]] == ["gone.mp4"]


def test_clips_of_an_import_have_frames_and_no_actions(tmp_path):
    write_video(tmp_path / "in" / "a.mp4", greys(12))
    write_video(tmp_path / "in" / "b.mp4", greys(12))
    assert run(tmp_path / "in", tmp_path / "d", size="16x24") == 0
    dataset = ClipDataset(tmp_path / "d", "films", "train", 4)
    clip = dataset.batch(np.array([0, 5]))
    assert clip.frames.shape == (2, 4, 3, 16, 24) and clip.actions is None and len(dataset) == 9
    assert numbers(clip.frames[1].permute(0, 2, 3, 1).numpy()) == [5, 6, 7, 8]


def test_the_command_that_an_import_names_leads_to_a_world_that_knows_its_held_out_videos(tmp_path, monkeypatch, capfd):
    for number in range(3):
        write_video(tmp_path / "in" / f"{number}.mp4", greys(12, 64, 96))
    assert run(tmp_path / "in", tmp_path / "d", size="16x24") == 0
    [command] = [line for line in capfd.readouterr().out.splitlines() if "bash run.sh" in line]
    small = [f"--output_dpath={tmp_path / 'out'}", "--stage_processes=1"]
    small += [f"--stages.{model}.settings.train.num_train_steps=2" for model in ("tokenizer", "genie_redux")]
    words = [*shlex.split(command[command.index("bash run.sh") :]), *small]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert words[:2] == ["bash", "run.sh"] and commands.main(words[2:]) == 0, capfd.readouterr()
    results = json.loads((tmp_path / "out" / "report" / "metrics.json").read_text())
    assert results["genie_redux"]["num_clips"] == 1 and results["genie_redux"]["delta_psnr"] is not None
    world = tmp_path / "out" / "checkpoints" / "genie_redux" / "genie_redux"
    assert OmegaConf.load(world / "config.yaml").eval.dataset_name == "films"
    assert pretrained.load(world).num_actions == 8


# -------------------------------------------------------------------------------------------------- what cannot be read


@pytest.fixture
def damaged(tmp_path) -> Path:
    """Two good films, and one of every kind of bad file."""
    folder = tmp_path / "in"
    good = write_video(folder / "good.mp4", greys(20)).read_bytes()
    write_video(folder / "good.webm", greys(20))
    (folder / "cut.mp4").write_bytes(good[: len(good) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.webm").write_text("not a film")
    write_video(folder / "one_frame.mp4", greys(1))
    with av.open(str(folder / "zero_frames.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    content = write_video(folder / "cut.mkv", greys(20)).read_bytes()
    (folder / "cut.mkv").write_bytes(content[: len(content) * 2 // 3])
    write_images(folder / "images", greys(6))
    (folder / "images" / "frame4.png").write_bytes(b"not a picture")
    return folder


def test_what_cannot_be_read_is_listed_and_skipped_with_a_count(damaged, tmp_path, capsys):
    read = imported(damaged)
    printed = capsys.readouterr().out
    info = info_of(tmp_path / "datasets")
    skipped = {entry["file"]: entry["reason"] for entry in info["skipped"]}
    assert set(skipped) == {"cut.mp4", "empty.mp4", "text.webm", "one_frame.mp4", "zero_frames.mp4"}
    assert "5 skipped" in printed and all(f"  {name}: {reason}" in printed for name, reason in skipped.items())
    assert "one frame" in skipped["one_frame.mp4"] and "Invalid data" in skipped["text.webm"]

    cut = {entry["file"]: entry["reason"] for entry in info["damaged"]}
    assert set(cut) == {"cut.mkv", "images"} and "2 damaged" in printed
    assert "ends after" in cut["cut.mkv"] and "frame4.png cannot be decoded (not a picture)" in cut["images"]
    frames = {info["files"][seed]: numbers(whole(read, row)) for row, seed in enumerate(read.level_seeds)}
    assert frames["good.mp4"] == frames["good.webm"] == list(range(20)) and frames["images"] == list(range(4))
    assert frames["cut.mkv"] == list(range(len(frames["cut.mkv"]))) and 2 <= len(frames["cut.mkv"]) < 20


def test_a_film_that_has_one_frame_at_the_rate_asked_for_is_skipped(tmp_path, capsys):
    write_video(tmp_path / "in" / "long.mp4", greys(30))
    write_video(tmp_path / "in" / "short.mp4", greys(3))
    assert imported(tmp_path / "in", "--fps", "10").lengths.tolist() == [10]
    assert "1 skipped" in capsys.readouterr().out


def test_where_nothing_can_be_read_one_line_says_so_and_nothing_is_written(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"")
    assert run(tmp_path / "in", tmp_path / "d") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: none of the 1 files") and "a.mp4: Invalid data" in message
    assert not (tmp_path / "d").exists()


def test_a_file_that_names_an_address_is_not_followed(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/b.ts\n")
    assert run(tmp_path / "in", tmp_path / "d") == 2
    assert "a.mp4: Invalid data" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (["--input", "nowhere"], "--input nowhere is not there"),
        (["--input", "tests/data/golden"], "holds no videos or images (only "),
        (["--input", "README.md"], "--input README.md is not a video"),
        (["--image_size", "64,96"], "'64,96' must be a number of pixels or HEIGHTxWIDTH"),
        (["--image_size", "0"], "must be a number of pixels"),
        (["--fps", "0"], "'0' must be frames per second"),
        (["--fit", "squeeze"], "invalid choice: 'squeeze'"),
        (["--background", "1,2"], "'1,2' must be three numbers"),
        (["--validation_share", "1"], "'1' must be a share"),
        (["--max_frames", "1"], "'1' must be a whole number of at least 2"),
        (
            ["--max_frames", "50", "--frames_per_shard", "20"],
            "--frames_per_shard 20 must hold an episode of --max_frames 50",
        ),
        (["--name", "a/b"], "'a/b' must be the name of a folder"),
        (["--imagesize", "64"], "unrecognized arguments: --imagesize 64"),
    ],
)
def test_wrong_arguments_end_in_one_line_that_names_them(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["--input", str(tmp_path), "--root", str(tmp_path / "d"), "--name", "films", *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed and printed.count("\n") == 1
    assert not (tmp_path / "d").exists()


def test_the_help_shows_commands_to_copy(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0 and "python -m data.import_videos --input" in capsys.readouterr().out
