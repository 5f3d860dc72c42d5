import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.clips import ClipDataset
from data.episodes import END_REASONS, Episodes
from data.import_genieredux import main

ROOT = Path(__file__).resolve().parents[2]
STEP = 8  # of grey from frame to frame


def action_at(instance: int, frame: int) -> int:
    return (instance + 3 * frame) % 7


def write_session(path: Path, instance: int, num_frames: int, *, base: int = 0) -> None:
    """As GenieRedux stores it: frame 0 comes after the first action, and the last frame has no row of its own.

    Frame t is grey of t * STEP, its left half with `base` more red.
    """
    (path / "frames").mkdir(parents=True)
    for number in range(num_frames):
        picture = np.full((16, 16, 3), number * STEP, np.uint8)
        picture[:, :8, 0] += base
        Image.fromarray(picture).save(path / "frames" / f"{number:06d}.jpg", quality=95, subsampling=0)
    rows = [
        {
            "src_id": number - 1,
            "tgt_id": number,
            "action": action_at(instance, number - 1) if number else 6,
            "extras": {},
        }
        for number in range(num_frames)
    ]
    (path / "actions.json").write_text(json.dumps({"actions": rows}))


def write_layout(folder: Path, lengths: dict[int, int]) -> Path:
    """The published nesting: <name>/<name>/info.json and <instance>/000000; returns the outer folder."""
    inner = folder / folder.name
    for instance, length in lengths.items():
        write_session(inner / f"{instance:06d}" / "000000", instance, length)
    content = {"name": folder.name, "version": "2.0.0", "info": {"action_space": [7], "config": {}}}
    (inner / "info.json").write_text(json.dumps(content))
    return folder


def run(folder: Path, root: Path, *words: str) -> int:
    return main([str(folder), "--root", str(root), *words])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {fpath.name: fpath.read_bytes() for fpath in folder.iterdir() if fpath.name != ".lock"}


def frame_numbers(frames) -> list[int]:
    return [round(float(np.asarray(frame)[..., 1].mean()) / STEP) for frame in frames]


LENGTHS = {instance: 5 + instance % 4 for instance in range(20)}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write_layout(tmp_path_factory.mktemp("published") / "coinrun_v2.0.0", LENGTHS)


@pytest.fixture(scope="module")
def root(published) -> Path:
    root = published.parent / "datasets"
    assert run(published, root, "--frames_per_shard", "30") == 0
    return root


def test_the_action_of_a_row_is_the_one_taken_at_its_source_frame(root):
    read = Episodes(root, "coinrun_v2.0.0", "train")
    for row, instance in enumerate(read.level_seeds.tolist()):
        length = LENGTHS[instance] - 1  # at the last frame no action is known
        assert read.lengths[row] == length
        assert frame_numbers(read.frames(row, 0, length)) == list(range(length))
        assert read.actions(row, 0, length).tolist() == [action_at(instance, frame) for frame in range(length - 1)]
    clip = ClipDataset(root, "coinrun_v2.0.0", "train", 4)[0]
    assert clip.actions.tolist() == [action_at(0, frame) for frame in range(3)]
    assert frame_numbers(clip.frames.permute(0, 2, 3, 1)) == [0, 1, 2, 3]


def test_the_last_action_of_an_episode_is_that_of_the_last_row(root):
    read = Episodes(root, "coinrun_v2.0.0", "train")
    stored = read._rows("actions", 0, 0, int(read.lengths[0]))
    assert stored[-1] == action_at(0, LENGTHS[0] - 2)


def test_windows_are_those_that_the_reference_trains_on(tmp_path):
    # Its last window is skipped: 104 of 105 in an episode of 120 frames, none in one of 16.
    folder = write_layout(tmp_path / "coinrun", {0: 24, 1: 16})
    assert run(folder, tmp_path, "--split", "train", "--name", "set") == 0
    assert len(ClipDataset(tmp_path, "set", "train", 16)) == 24 - 16


def test_colours_are_red_green_blue_in_that_order(tmp_path):
    write_session(tmp_path / "in" / "000000" / "000000", 0, 4, base=200)
    assert run(tmp_path / "in", tmp_path, "--split", "train", "--name", "set") == 0
    frame = Episodes(tmp_path, "set", "train").frames(0, 0, 1)[0]
    np.testing.assert_allclose(frame[8, 2], (200, 0, 0), atol=4)


def test_instances_are_split_90_9_1_in_the_order_of_their_numbers(tmp_path):
    folder = write_layout(tmp_path / "in", dict.fromkeys(range(100), 4))
    assert run(folder, tmp_path, "--name", "set") == 0
    levels = [Episodes(tmp_path, "set", split).level_seeds.tolist() for split in ("train", "validation", "test")]
    assert levels == [list(range(90)), list(range(90, 99)), [99]]


def test_a_dataset_whose_name_ends_in_test_is_all_test(tmp_path):
    folder = write_layout(tmp_path / "coinrun_v2.0.0_test", dict.fromkeys(range(4), 4))
    assert run(folder, tmp_path / "datasets") == 0
    assert Episodes(tmp_path / "datasets", "coinrun_v2.0.0_test", "test").num_episodes == 4


def test_info_has_names_and_origin(root):
    info = Episodes(root, "coinrun_v2.0.0", "train").info
    assert info["action_names"][4] == "RIGHT_JUMP" and info["game"] == "coinrun" and info["version"] == "2.0.0"
    assert info["image_size"] == [16, 16] and info["skipped"] == [] and info["missing_instances"] == 0
    reasons = Episodes(root, "coinrun_v2.0.0", "train").end_reasons
    assert {END_REASONS[reason] for reason in reasons} == {"end_of_recording"}


@pytest.mark.parametrize("nesting", ["000000/000000", "x/000000/000000", "in/000000/000000", "in/000000/000007"])
def test_the_instances_are_found_directly_or_one_folder_further_in(tmp_path, nesting):
    write_session(tmp_path / "in" / nesting, 0, 5)
    assert run(tmp_path / "in", tmp_path / "datasets", "--name", "set", "--split", "train") == 0
    assert Episodes(tmp_path / "datasets", "set", "train").lengths.tolist() == [4]


def test_sessions_of_an_instance_are_episodes_of_one_level(tmp_path):
    for session in (0, 1):
        write_session(tmp_path / "in" / "000003" / f"{session:06d}", 3, 4 + session)
    assert run(tmp_path / "in", tmp_path, "--name", "set", "--split", "train") == 0
    read = Episodes(tmp_path, "set", "train")
    assert read.level_seeds.tolist() == [3, 3] and read.lengths.tolist() == [3, 4]


def test_without_an_info_the_actions_that_occur_are_counted(tmp_path):
    write_session(tmp_path / "in" / "000000" / "000000", 0, 3)  # takes the actions 0 and 3
    assert run(tmp_path / "in", tmp_path, "--name", "set", "--split", "train") == 0
    assert Episodes(tmp_path, "set", "train").action_names == ["action0", "action1", "action2", "action3"]


def test_missing_instances_are_said_and_move_no_other_into_another_split(tmp_path, capsys):
    kept = [number for number in range(100) if number not in (0, 50)]
    folder = write_layout(tmp_path / "in", dict.fromkeys(kept, 4))
    assert run(folder, tmp_path, "--name", "set") == 0
    assert "note: 2 instances below 99 are not there" in capsys.readouterr().out
    levels = [Episodes(tmp_path, "set", split).level_seeds.tolist() for split in ("train", "validation", "test")]
    assert levels == [kept[:88], list(range(90, 99)), [99]]


# -------------------------------------------------------------------------------------------------- what cannot be read


def _edit_rows(change):
    def damage(session):
        content = json.loads((session / "actions.json").read_text())
        change(content["actions"])
        (session / "actions.json").write_text(json.dumps(content))

    return damage


DAMAGES = {
    "actions.json is not readable JSON": lambda session: (session / "actions.json").write_text('{"actions": [{"src'),
    "actions.json is missing": lambda session: (session / "actions.json").unlink(),
    "actions.json is not a list `actions` of rows": lambda session: (session / "actions.json").write_text("[1, 2]"),
    "that is not a whole number": _edit_rows(lambda rows: rows[2].update(action="JUMP")),
    "actions.json has no row for frame 1": _edit_rows(lambda rows: rows.pop(2)),
    "actions.json has two rows for frame 1": _edit_rows(lambda rows: rows.append(rows[2])),
    "actions.json has a row from frame 1 to 4": _edit_rows(lambda rows: rows[2].update(tgt_id=4)),
    "actions.json has action -2 at frame 1": _edit_rows(lambda rows: rows[2].update(action=-2)),
    "actions.json has action 9, info.json allows 0 to 6": _edit_rows(lambda rows: rows[2].update(action=9)),
    "actions.json ends at frame 3, but there are more": _edit_rows(lambda rows: rows.__delitem__(slice(4, None))),
    "frames/000002.jpg is missing (1 of 5 are)": lambda session: (session / "frames" / "000002.jpg").unlink(),
    "it has no folder frames": lambda session: shutil.rmtree(session / "frames"),
    "000000.jpg cannot be decoded": lambda session: (session / "frames" / "000000.jpg").write_bytes(b""),
    "fewer than two frames": _edit_rows(lambda rows: rows.__delitem__(slice(2, None))),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_bad_session_is_listed_and_skipped_with_a_count(tmp_path, capsys, reason):
    folder = write_layout(tmp_path / "in", dict.fromkeys(range(3), 6))
    DAMAGES[reason](folder / "in" / "000001" / "000000")
    assert run(folder, tmp_path, "--name", "set", "--split", "train") == 0
    assert "1 skipped" in capsys.readouterr().out
    read = Episodes(tmp_path, "set", "train")
    assert read.level_seeds.tolist() == [0, 2]
    [entry] = read.info["skipped"]
    assert entry["file"] == "000001/000000" and reason in entry["reason"]


@pytest.mark.parametrize("is_other_size", [False, True])
def test_of_a_session_with_a_broken_frame_the_frames_before_are_used(tmp_path, capsys, is_other_size):
    folder = write_layout(tmp_path / "in", dict.fromkeys(range(3), 8))
    frame = folder / "in" / "000001" / "000000" / "frames" / "000004.jpg"
    if is_other_size:
        Image.new("RGB", (8, 8)).save(frame)
    else:
        frame.write_bytes(frame.read_bytes()[:300])
    assert run(folder, tmp_path, "--name", "set", "--split", "train") == 0
    assert "1 damaged" in capsys.readouterr().out
    read = Episodes(tmp_path, "set", "train")
    assert read.lengths.tolist() == [7, 4, 7]
    assert read._rows("actions", 1, 0, 4).tolist() == [action_at(1, number) for number in range(4)]
    assert "000004.jpg" in read.info["damaged"][0]["reason"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("levels", "train on it: bash run.sh --config=tokenizer.yaml --train.dataset_root_dpath={root} "
         "--train.dataset_name=levels --data.image_size='[16,16]'"),
        ("levels_test", "measure on it: bash run.sh --config=tokenizer.yaml --mode=eval "
         "--eval.dataset_root_dpath={root} --eval.dataset_name=levels_test"),
    ],
)  # fmt: skip
def test_the_last_line_is_a_command_that_fits_what_was_imported(tmp_path, capsys, name, line):
    folder = write_layout(tmp_path / name, dict.fromkeys(range(100), 4))
    assert run(folder, tmp_path / "d") == 0
    assert capsys.readouterr().out.splitlines()[-1] == line.format(root=tmp_path / "d")


def test_where_no_session_can_be_used_one_line_says_so_and_nothing_is_written(tmp_path, capsys):
    write_session(tmp_path / "in" / "000000" / "000000", 0, 5)
    (tmp_path / "in" / "000000" / "000000" / "actions.json").write_text("")
    assert run(tmp_path / "in", tmp_path / "d", "--name", "set") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: none of the 1 sessions") and "not readable JSON" in message
    assert not (tmp_path / "d").exists()


def test_other_folders_are_refused_with_what_was_expected(tmp_path, capsys):
    assert run(tmp_path / "nowhere", tmp_path) == 2
    assert "is not a folder; give the one that holds 000000/000000/frames" in capsys.readouterr().err
    (tmp_path / "videos").mkdir()
    assert run(tmp_path / "videos", tmp_path) == 2
    message = capsys.readouterr().err
    assert "has no <instance>/<session>/frames" in message and "data.import_videos" in message
    assert message.count("\n") == 1


def test_a_broken_info_is_named(published, tmp_path, capsys):
    shutil.copytree(published, tmp_path / "in" / "coinrun_v2.0.0")
    (tmp_path / "in" / "coinrun_v2.0.0" / "coinrun_v2.0.0" / "info.json").write_text("{")
    assert run(tmp_path / "in" / "coinrun_v2.0.0", tmp_path) == 2
    assert "info.json is not readable JSON" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- interruptions, folders

KILLED = """
import os, signal, sys
from data.import_genieredux import main
replace = os.replace
def strike(source, target):
    if str(target).endswith("-00001.h5"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = strike
main(sys.argv[1:])
"""


def test_a_killed_import_goes_on_and_gives_the_same_bytes(published, root, tmp_path):
    words = [str(published), "--root", str(tmp_path), "--frames_per_shard", "30"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=ROOT, capture_output=True, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert [fpath.name for fpath in (tmp_path / "coinrun_v2.0.0").glob("*.h5")] == ["train-00000.h5"]
    assert main(words) == 0
    assert bytes_of(tmp_path / "coinrun_v2.0.0") == bytes_of(root / "coinrun_v2.0.0")


def test_changed_actions_are_another_import(published, root, tmp_path, capsys):
    shutil.copytree(published, tmp_path / "coinrun_v2.0.0")
    _edit_rows(lambda rows: rows[2].update(action=5))(tmp_path / "coinrun_v2.0.0" / "coinrun_v2.0.0/000000/000000")
    before = bytes_of(root / "coinrun_v2.0.0")
    assert run(tmp_path / "coinrun_v2.0.0", root, "--frames_per_shard", "30") == 2
    assert "was made with input=20 sessions" in capsys.readouterr().err and bytes_of(root / "coinrun_v2.0.0") == before
