"""Videos and picture folders with recorded actions: each action stays with the frame at which it was taken."""

import json
import shlex
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data.clips import ClipDataset
from data.episodes import Episodes
from data.import_videos import main
from data.pictures import Fit
from data.video_files import VideoFile
from models import pretrained
from tests.data.films import greys, numbers, write_video
from training import main as commands

NAMES = ["NOOP", "LEFT", "RIGHT"]


def write_film(fpath: Path, lines: list[str], num_frames: int, **size: int) -> Path:
    """A film whose frame number n has brightness n, and its file of actions."""
    write_video(fpath, greys(num_frames, **size))
    fpath.with_suffix(".actions.txt").write_text("".join(f"{line}\n" for line in lines))
    return fpath


def write_cut_film(fpath: Path) -> None:
    """Eight pictures, 22 to 29 of a longer film, cut out of it as `ffmpeg -ss … -c copy` does."""
    whole = write_video(fpath.with_name(".whole.mp4"), greys(30), group=10)
    with av.open(str(whole)) as read, av.open(str(fpath), "w") as written:
        [source] = read.streams.video
        stream, first = written.add_stream_from_template(source), None
        for packet in read.demux(source):
            frame = 1 / (source.average_rate * source.time_base)
            if first is None and packet.is_keyframe and packet.pts > 10 * frame:
                first = int(packet.pts + 4 * frame)
            if first is not None and packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - first, packet.dts - first, stream
                written.mux(packet)


def num_packets(fpath: Path) -> int:
    return VideoFile.read(fpath).count(None)


def shown(fpath: Path) -> list[int]:
    film, fit = VideoFile.read(fpath), Fit(32, 32, "crop", (0, 0, 0))
    return numbers(np.stack([film.fitted(each.picture, fit) for each in film.shown()]))


def action_at(frame: int) -> int:
    """Without a period that an offset could hide in."""
    return (frame * frame // 3 + frame) % 3


def run(folder: Path, *words: str, actions: str = ",".join(NAMES), size: str = "32") -> int:
    place = ["--root", str(folder.parent / "datasets"), "--name", "films", "--image_size", size]
    return main(["--input", str(folder), *place, "--actions", actions, *words])


def read(folder: Path, split: str = "train") -> Episodes:
    return Episodes(folder.parent / "datasets", "films", split)


def pairs(episodes: Episodes) -> list[tuple[int, int]]:
    """(number of the frame, action taken at it), over all episodes."""
    found = []
    for row, length in enumerate(episodes.lengths.tolist()):
        actions = episodes.actions(row, 0, length + 1)  # of one frame more, since that leads out of the last
        found += zip(numbers(episodes.frames(row, 0, length)), actions.tolist(), strict=True)
    return found


@pytest.mark.parametrize("words", [[], ["--max_frames", "7"], ["--compression", "lzf"]], ids=["whole", "cut", "lzf"])
@pytest.mark.parametrize("num_lines", [20, 19], ids=["all frames", "all but the last"])
def test_every_frame_comes_with_the_action_taken_at_it(tmp_path, words, num_lines):
    lines = [NAMES[action_at(frame)] if frame % 2 else str(action_at(frame)) for frame in range(num_lines)]
    write_film(tmp_path / "in" / "film.mp4", lines, 20)
    assert run(tmp_path / "in", "--validation_share", "0", *words) == 0
    episodes = read(tmp_path / "in")
    assert episodes.action_names == NAMES
    assert pairs(episodes) == [(frame, action_at(frame)) for frame in range(num_lines)]


def test_the_end_of_a_single_film_that_is_held_out_has_its_own_actions(tmp_path):
    write_film(tmp_path / "in" / "film.mp4", [str(action_at(frame)) for frame in range(19)], 20)
    assert run(tmp_path / "in", "--validation_share", "0.3") == 0
    expected = [(frame, action_at(frame)) for frame in range(19)]
    assert pairs(read(tmp_path / "in")) == expected[:13]
    assert pairs(read(tmp_path / "in", "validation")) == expected[13:]


def test_a_folder_of_pictures_has_its_actions_inside(tmp_path):
    folder = tmp_path / "in" / "level1"
    folder.mkdir(parents=True)
    for number, picture in enumerate(greys(12)):
        Image.fromarray(picture).save(folder / f"{number}.png")
    (folder / "actions.txt").write_text("\r\n".join(str(action_at(frame)) for frame in range(12)) + "\r\n\r\n")
    assert run(tmp_path / "in", "--validation_share", "0") == 0
    assert pairs(read(tmp_path / "in")) == [(frame, action_at(frame)) for frame in range(12)]
    clip = ClipDataset(tmp_path / "datasets", "films", "train", 4).batch(np.array([3]))
    assert clip.actions.tolist() == [[action_at(frame) for frame in (3, 4, 5)]]  # those between the clip's frames


def test_recordings_whose_actions_do_not_fit_are_listed_and_skipped(tmp_path, capsys):
    folder = tmp_path / "in"
    write_film(folder / "good.mp4", ["LEFT"] * 10, 10)
    write_film(folder / "short.mp4", ["LEFT"] * 8, 10)
    write_film(folder / "long.mp4", ["LEFT"] * 11, 10)
    write_film(folder / "typo.mp4", ["LEFT"] * 4 + ["LEFTT"] + ["LEFT"] * 5, 10)
    write_film(folder / "number.mp4", ["3"] * 10, 10)
    write_film(folder / "hole.mp4", ["LEFT"] * 4 + [""] + ["LEFT"] * 5, 10)
    write_film(folder / "binary.mp4", [], 10).with_suffix(".actions.txt").write_bytes(b"\xff\xfe\x00")
    write_video(folder / "none.mp4", greys(10))
    (folder / "broken.mp4").write_text("not a film")
    assert run(folder, "--validation_share", "0") == 0
    info = json.loads((tmp_path / "datasets" / "films" / "info.json").read_text())
    skipped = {entry["file"]: entry["reason"] for entry in info["skipped"]}
    assert info["files"] == ["good.mp4"] and "8 skipped" in capsys.readouterr().out
    assert skipped["short.mp4"] == "short.actions.txt has 8 lines, but there are 10 frames"
    assert skipped["long.mp4"] == "long.actions.txt has 11 lines, but there are 10 frames"
    assert skipped["typo.mp4"] == "typo.actions.txt has 'LEFTT' in line 5, which is none of NOOP, LEFT, RIGHT"
    assert "'3' in line 1" in skipped["number.mp4"] and "'' in line 5" in skipped["hole.mp4"]
    assert "binary.actions.txt cannot be read" in skipped["binary.mp4"]
    assert skipped["none.mp4"] == "none.actions.txt is missing" and "Invalid data" in skipped["broken.mp4"]


def test_pictures_that_are_in_the_file_but_never_shown_have_no_actions(tmp_path, capsys):
    """A film cut without decoding it keeps the pictures that its first ones are predicted from."""
    folder = tmp_path / "in"
    write_cut_film(folder / "right.mp4")
    assert (num_packets(folder / "right.mp4"), *shown(folder / "right.mp4")) == (12, *range(22, 30))
    (folder / "right.actions.txt").write_text("".join(f"{action_at(frame)}\n" for frame in range(22, 30)))
    shutil.copy(folder / "right.mp4", folder / "wrong.mp4")
    (folder / "wrong.actions.txt").write_text("LEFT\n" * 12)
    assert run(folder, "--validation_share", "0") == 0
    assert pairs(read(folder)) == [(frame, action_at(frame)) for frame in range(22, 30)]
    assert "wrong.mp4: wrong.actions.txt has 12 lines, but there are 8 frames" in capsys.readouterr().out


def test_of_a_film_that_breaks_off_the_actions_up_to_there_are_taken(tmp_path, capsys):
    film = write_film(tmp_path / "in" / "film.mkv", [str(action_at(frame)) for frame in range(30)], 30)
    content = film.read_bytes()
    film.write_bytes(content[: len(content) * 2 // 3])
    assert run(tmp_path / "in", "--validation_share", "0") == 0
    assert "1 damaged, read up to there" in capsys.readouterr().out
    found = pairs(read(tmp_path / "in"))
    assert found == [(frame, action_at(frame)) for frame in range(len(found))] and 2 <= len(found) < 30


def test_where_no_actions_fit_one_line_says_so(tmp_path, capsys):
    write_video(tmp_path / "in" / "film.mp4", greys(10))
    assert run(tmp_path / "in") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: none of the 1 files") and "film.actions.txt is missing" in error
    assert not (tmp_path / "datasets").exists()


def test_other_actions_are_another_import(tmp_path, capsys):
    film = write_film(tmp_path / "in" / "film.mp4", ["LEFT"] * 20, 20)
    assert run(tmp_path / "in") == 0 and run(tmp_path / "in") == 0
    assert "nothing to do" in capsys.readouterr().out
    film.with_suffix(".actions.txt").write_text("RIGHT\n" * 20)
    assert run(tmp_path / "in") == 2
    assert "films" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--actions", "LEFT"], "'LEFT' must be two or more different names"),
        (["--actions", "LEFT,LEFT"], "'LEFT,LEFT' must be two or more different names"),
        (["--actions", "LEFT,1"], "'LEFT,1' must be two or more different names"),
        (["--actions", "LEFT,left"], "'LEFT,left' must be two or more different names"),
        (["--actions", "LEFT,JUMP*2"], "'LEFT,JUMP*2' must be two or more different names, none a number or with a *"),
        (["--actions", "LEFT,"], "'LEFT,' must be two or more different names"),
        (["--fps", "10"], "--fps would leave frames out, and with them what --actions were taken there"),
    ],
)
def test_wrong_words_end_in_one_line(words, message, tmp_path, capsys):
    write_film(tmp_path / "in" / "film.mp4", ["LEFT"] * 10, 10)
    assert run(tmp_path / "in", *words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed and printed.count("\n") == 1


def test_a_guided_world_of_videos_without_actions_is_refused_with_what_to_do(tmp_path, capsys):
    write_video(tmp_path / "in" / "film.mp4", greys(10))
    place = [str(tmp_path / "in"), "--name", "films", "--root", str(tmp_path / "datasets"), "--image_size", "32"]
    assert main(["--input", *place]) == 0
    words = ["--config=recordings.yaml", f"--dataset_root_dpath={tmp_path / 'datasets'}", "--dataset_name=films"]
    capsys.readouterr()
    assert commands.main([*words, f"--output_dpath={tmp_path / 'out'}"]) == 2
    error = "error: dataset_name=films has no actions; --config=videos.yaml finds some itself\n"
    assert capsys.readouterr().err == error and not (tmp_path / "out").exists()


def test_the_command_that_an_import_names_leads_to_a_guided_world(tmp_path, monkeypatch, capfd):
    for number in range(3):
        write_film(tmp_path / "in" / f"{number}.mp4", ["LEFT", "2", "NOOP"] * 8, 24, height=64, width=96)
    assert run(tmp_path / "in", size="16x24") == 0
    [command] = [line for line in capfd.readouterr().out.splitlines() if "bash run.sh" in line]
    small = [f"--output_dpath={tmp_path / 'out'}", "--stage_processes=1"]
    small += [f"--stages.{model}.settings.train.num_train_steps=2" for model in ("tokenizer", "genie_redux_guided")]
    words = [*shlex.split(command[command.index("bash run.sh") :]), *small]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert commands.main([*words[2:], "--num_actions=2"]) == 2  # at once, not after the tokenizer
    assert "has 3 actions, but the model 2; set num_actions=3" in capfd.readouterr().err
    assert words[:2] == ["bash", "run.sh"] and commands.main(words[2:]) == 0, capfd.readouterr().err
    results = json.loads((tmp_path / "out" / "report" / "metrics.json").read_text())
    assert set(results) == {"tokenizer", "genie_redux_guided"}
    assert results["genie_redux_guided"]["num_clips"] == 2
    world = tmp_path / "out" / "checkpoints" / "genie_redux_guided" / "genie_redux_guided"
    assert pretrained.load(world).num_actions == len(NAMES)

    shutil.rmtree(tmp_path / "datasets")  # a world knows the names of its actions without its data
    Image.fromarray(greys(5)[4]).save(tmp_path / "first.png")
    film = ["--mode=dream", f"--dream.roots=[{tmp_path / 'out'}]", f"--dream.prompt={tmp_path / 'first.png'}"]
    film += [f"--dream.out={tmp_path / 'film.gif'}", "--dream.device=cpu", "--dream.num_frames=4"]
    assert commands.main([*film, "--dream.actions=RIGHT*3,LEFT"]) == 0, capfd.readouterr().err
    assert commands.main([*film, "--dream.actions=JUMP"]) == 2
    assert "it has 0 NOOP, 1 LEFT, 2 RIGHT;" in capfd.readouterr().err
