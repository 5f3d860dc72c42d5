import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from data import contact_sheet, inspect, summary, verification
from data.contact_sheet import GIF_FRAME, LABELS, LINE, MARGIN, SHEET_FRAME
from data.episodes import (
    FORMAT,
    Episode,
    Episodes,
    content_hash,
    open_shard,
    shard_name,
    summarise_shard,
    write_json,
    write_shard,
)
from data_generation.generate import main as generate
from tests.data.recorded import HEIGHT, WIDTH, make_dataset, make_episode

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"n_instances": "10", "n_steps_max": "12", "episodes_per_shard": "4", "n_workers": "1", "name": "toy"}


def generate_into(root, **changes) -> int:
    keys = SMALL | {"root_dpath": str(root)} | changes
    return generate(["--config=coinrun_quickstart", *(f"--{key}={value}" for key, value in keys.items())])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a small dataset of real episodes: three training shards, one for validation."""
    root = tmp_path_factory.mktemp("made")
    assert generate_into(root) == 0
    return root / "toy"


@pytest.fixture
def folder(made, tmp_path):
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "datasets" / "toy"))


def run(folder: Path, *arguments: str) -> int:
    output = f"--output={folder.parent.parent / 'seen'}"
    return inspect.main([folder.name, f"--root={folder.parent}", output, *arguments])


def seen(folder: Path) -> dict:
    return json.loads((folder.parent.parent / "seen" / "summary.json").read_text())


def _read(fpath: Path, name: str) -> np.ndarray:
    with open_shard(fpath) as file:
        return file[name][()]


def write_dataset(folder: Path, splits: dict[str, list[Episode]], **about) -> None:
    """One shard per split."""
    folder.mkdir(parents=True)
    info = {
        "format": FORMAT,
        "name": folder.name,
        "game": "toy",
        "image_size": [HEIGHT, WIDTH],
        "action_names": [f"action{number}" for number in range(7)],
        "splits": {},
    }
    for split, episodes in splits.items():
        fpath = folder / shard_name(split, 0)
        write_shard(fpath, episodes)
        shard = summarise_shard(fpath)
        info["splits"][split] = {"episodes": shard["episodes"], "frames": shard["frames"], "shards": [shard]}
    write_json(folder / "info.json", info | about)


# -------------------------------------------------------------------------------------------------------------- looking


def test_numbers_are_those_of_the_episodes(folder, capsys):
    assert run(folder) == 0
    printed, result = capsys.readouterr().out, seen(folder)
    assert list(result["splits"]) == ["train", "validation"] and result["shared_levels"] == {"train, validation": 0}
    for split, found in result["splits"].items():
        episodes = Episodes(folder.parent, "toy", split)
        fpaths = sorted(folder.glob(f"{split}-*.h5"))
        actions = np.concatenate([_read(fpath, "actions") for fpath in fpaths])
        frames = [episodes.frames(number, 0, int(length)) for number, length in enumerate(episodes.lengths)]
        same = [(one[1:] == one[:-1]).all(axis=(1, 2, 3)) for one in frames]
        assert found["episodes"] == episodes.num_episodes and found["frames"] == len(actions)
        assert found["levels"]["first"] == episodes.level_seeds.min()
        assert found["lengths"]["max"] == episodes.lengths.max()
        assert found["lengths"]["median"] == np.median(episodes.lengths)
        assert list(found["actions"].values()) == np.bincount(actions, minlength=7).tolist()
        assert sum(found["end_reasons"].values()) == episodes.num_episodes
        assert found["static"]["share"] == np.concatenate(same).mean()
        assert found["bytes"] == sum(fpath.stat().st_size for fpath in fpaths)
        assert f"{split}: {found['episodes']} episode" in printed and f"{found['frames']} frames" in printed
    assert "made by random actions, revision" in printed and "sticky=0.5" in printed
    assert "train and validation have no level in common" in printed and "not compressed" in printed


def test_returns_completion_and_static_frames_of_known_episodes(tmp_path):
    folder = tmp_path / "datasets" / "known"
    still = np.zeros((5, HEIGHT, WIDTH, 3), np.uint8)
    still[3:] = 1  # of four steps, the third alone changes the picture
    rewards = np.array([0, 0, 0, 0, 10], np.float32)
    won = [Episode(still, np.full(5, 2, np.int16), rewards, level, "coin") for level in range(3)]
    lost = [Episode(still, np.full(5, 4, np.int16), 0 * rewards, 7, "death")]
    write_dataset(folder, {"train": won + lost})
    assert run(folder) == 0
    found = seen(folder)["splits"]["train"]
    assert found["static"] == {"share": 0.75, "frames": 16, "episodes": 4}
    assert found["return_mean"] == 7.5 and found["completed"] == 0.75
    assert found["actions"] == {f"action{number}": {2: 15, 4: 5}.get(number, 0) for number in range(7)}
    assert found["end_reasons"]["coin"] == 3 and found["levels"] == {"first": 0, "last": 7, "distinct": 4}
    low, high = found["return_ci95"]
    assert 0 <= low < 7.5 < high <= 10


def test_the_interval_of_a_mean_is_that_of_drawing_the_values_again():
    values = np.random.default_rng(0).choice([0.0, 1.0, 5.0], 200, p=[0.7, 0.2, 0.1])
    rng = np.random.default_rng(1)
    drawn = [rng.choice(values, len(values)).mean() for _ in range(4000)]
    assert np.allclose(summary.bootstrap(values), np.percentile(drawn, [2.5, 97.5]), atol=0.03)
    assert summary.bootstrap(np.full(9, 3.0)) == [3, 3]


def test_the_interval_of_a_share_is_that_of_wilson():
    assert np.allclose(summary.wilson(0, 10), [0, 0.2775], atol=1e-4)
    assert np.allclose(summary.wilson(5, 10), [0.2366, 0.7634], atol=1e-4)


def test_a_sample_of_the_frames_is_called_one_and_all_reads_every_one(folder, capsys, monkeypatch):
    monkeypatch.setattr(inspect, "NUM_SAMPLED", 2)
    assert run(folder) == 0
    assert "(2 of 9 episodes read; --all reads every one)" in capsys.readouterr().out
    assert run(folder, "--all") == 0
    assert "2 of 9" not in capsys.readouterr().out and seen(folder)["splits"]["train"]["static"]["episodes"] == 9


def test_levels_that_two_splits_share_are_reported(tmp_path, capsys):
    train, test = ([make_episode(level, 4) for level in levels] for levels in ([1, 2, 3], [3, 4]))
    write_dataset(tmp_path / "datasets" / "toy", {"train": train, "test": test})
    assert run(tmp_path / "datasets" / "toy") == 0
    assert "train and test have 1 level in common" in capsys.readouterr().out


def test_a_test_set_beside_the_dataset_is_compared_with_it(folder, capsys):
    assert generate_into(folder.parent, name="toy_test", split="test", level_offset="8", n_instances="4") == 0
    assert run(folder) == 0
    printed = capsys.readouterr().out
    assert "train and toy_test's test have 1 level in common" in printed
    assert "validation and toy_test's test have 1 level in common" in printed


@pytest.mark.parametrize("compression", ["lzf", "gzip", "blosc"])
def test_compressed_datasets_are_looked_at_and_checked_alike(tmp_path, compression, capsys):
    make_dataset(tmp_path / "datasets", "toy", [40, 30, 20, 50], compression=compression)
    folder = tmp_path / "datasets" / "toy"
    assert run(folder, "--verify") == 0 and run(folder) == 0
    assert f", {compression}, " in capsys.readouterr().out
    with h5py.File(folder / "train-00001.h5") as file:
        chunk = file["frames"].id.get_chunk_info(3)
    _flip(folder / "train-00001.h5", chunk.byte_offset + chunk.size // 2)
    assert run(folder, "--verify") == 1 and "train-00001.h5 is damaged" in capsys.readouterr().out


def test_videos_without_actions_are_looked_at_and_checked(tmp_path, capsys):
    make_dataset(tmp_path / "datasets", "videos", [5, 9, 1], with_actions=False)
    folder = tmp_path / "datasets" / "videos"
    assert run(folder) == 0 and run(folder, "--verify") == 0
    found = seen(folder)["splits"]["train"]
    assert found["actions"] is None and found["return_mean"] is None and found["completed"] is None
    assert "a program that did not say how" in capsys.readouterr().out


def test_episodes_of_a_single_frame_can_be_looked_at(tmp_path, capsys):
    make_dataset(tmp_path / "datasets", "toy", [1, 1])
    assert run(tmp_path / "datasets" / "toy") == 0
    assert "unknown: no episode of more than one frame" in capsys.readouterr().out
    assert seen(tmp_path / "datasets" / "toy")["splits"]["train"]["static"]["share"] is None


def test_imported_videos_are_called_by_the_names_of_their_files(tmp_path, capsys):
    folder = tmp_path / "datasets" / "videos"
    origin = {"importer": "data.import_videos", "revision": 3, "config": {"fps": "10"}}
    skipped = [{"file": "b.mp4", "reason": "empty"}]
    episodes = [make_episode(0, 12, with_actions=False)._replace(end_reason="end_of_recording")]
    about = {"game": None, "action_names": None, "files": ["sub/a.mp4"], "skipped": skipped, "generator": origin}
    write_dataset(folder, {"train": episodes}, **about)
    assert run(folder) == 0
    printed = capsys.readouterr().out
    assert "made by importer data.import_videos, revision 3, fps=10" in printed and "recordings 0 to 0" in printed
    assert "1 file could not be imported" in printed and "return" not in printed
    shard = summary.scan_shard(
        verification.Shard("train", folder / "train-00000.h5"), {"action_names": None, "image_size": None}
    )
    place = summary.Place(shard, 0)
    assert contact_sheet.excerpt(place, about, np.arange(3)).title == "a.mp4"
    _flip_a_pixel(folder / "train-00000.h5", 100)
    assert run(folder, "--verify") == 1
    assert "delete that file and run its import (python -m data.import_videos) again" in capsys.readouterr().out


def test_the_summary_is_the_same_for_the_same_seed(folder):
    def written(seed):
        assert run(folder, f"--seed={seed}", "--num_episodes=3") == 0
        return [fpath.read_bytes() for fpath in sorted((folder.parent.parent / "seen").iterdir())]

    assert written(1) == written(1)
    assert written(1)[0] != written(2)[0]  # the contact sheet


# ------------------------------------------------------------------------------------------------------------- pictures


def test_the_contact_sheet_shows_an_episode_per_row_and_its_time_from_left_to_right(tmp_path):
    make_dataset(tmp_path / "datasets", "toy", [30, 4, 20])
    assert run(tmp_path / "datasets" / "toy") == 0
    image = Image.open(tmp_path / "seen" / "contact_sheet.png").convert("RGB")
    width, height = (side * (SHEET_FRAME // max(HEIGHT, WIDTH)) for side in (WIDTH, HEIGHT))
    row_height = (image.height - 2 * MARGIN - LINE - contact_sheet.GAP) // 3

    def shown(row, column):
        left = MARGIN + LABELS + column * (width + contact_sheet.GAP)
        return image.getpixel((left + width // 2, MARGIN + LINE + contact_sheet.GAP + row * row_height + height // 2))

    for level, length in enumerate([30, 4, 20]):
        for column, time in enumerate(contact_sheet.evenly(length).tolist()):
            assert shown(level, column) == (level, time, level ^ time)
    assert shown(1, 4) == contact_sheet.GROUND


def test_evenly_spaced_times_reach_from_the_first_frame_to_the_last():
    assert contact_sheet.evenly(100).tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert contact_sheet.evenly(3).tolist() == [0, 1, 2] and contact_sheet.evenly(1).tolist() == [0]


def test_the_gif_plays_until_its_last_episode_ends(tmp_path):
    make_dataset(tmp_path / "datasets", "toy", [30, 4])
    assert run(tmp_path / "datasets" / "toy") == 0
    image = Image.open(tmp_path / "seen" / "sample.gif")
    scale = GIF_FRAME // max(HEIGHT, WIDTH)
    column, middle = WIDTH * scale + contact_sheet.GAP, LINE + contact_sheet.GAP + HEIGHT * scale // 2

    def shown(time, episode):
        image.seek(time)
        return image.convert("RGB").getpixel((contact_sheet.GAP + episode * column + 10, middle))

    assert image.n_frames == 30
    assert np.allclose(shown(25, 0), (0, 25, 25), atol=3) and np.allclose(shown(2, 1), (1, 2, 3), atol=3)


def test_frames_larger_than_their_place_are_made_smaller(tmp_path):
    frames = np.full((3, 90, 500, 3), 77, np.uint8)
    folder = tmp_path / "datasets" / "wide"
    write_dataset(folder, {"train": [Episode(frames, None, None, 0, "death")]}, image_size=[90, 500], action_names=None)
    assert run(folder) == 0
    assert Image.open(tmp_path / "seen" / "contact_sheet.png").width < 3 * 500
    assert Image.open(tmp_path / "seen" / "sample.gif").width <= GIF_FRAME + 2 * contact_sheet.GAP


# ------------------------------------------------------------------------------------------------------------- checking


def test_a_dataset_as_it_was_written_is_found_good(folder, capsys):
    before = {fpath: fpath.stat().st_mtime_ns for fpath in folder.iterdir()}
    assert run(folder, "--verify") == 0
    assert "4 shards with" in (printed := capsys.readouterr().out) and "all as they were written" in printed
    assert {fpath: fpath.stat().st_mtime_ns for fpath in folder.iterdir()} == before


def _flip(fpath, offset):
    content = bytearray(fpath.read_bytes())
    content[offset] ^= 1
    fpath.write_bytes(content)


def _flip_a_pixel(fpath, number=12_345):
    with h5py.File(fpath) as file:
        offset = file["frames"].id.get_offset() + number
    _flip(fpath, offset)


def _truncate(fpath):
    fpath.write_bytes(fpath.read_bytes()[:-700])


def _rewrite(name, change):
    def damage(fpath):
        with h5py.File(fpath, "r+") as file:
            content = change(file[name][()])
            del file[name]
            if content is not None:
                file[name] = content

    return damage


def _set(name, index, value, field=None):
    def change(content):
        (content if field is None else content[field])[index] = value
        return content

    return _rewrite(name, change)


def _attribute(name, value):
    def damage(fpath):
        with h5py.File(fpath, "r+") as file:
            file.attrs[name] = value

    return damage


def _group(fpath):
    with h5py.File(fpath, "r+") as file:
        del file["frames"]
        file.create_group("frames")


DAMAGES = {
    "truncated": (_truncate, "truncated"),
    "deleted": (Path.unlink, "is missing"),
    "empty": (lambda fpath: fpath.write_bytes(b""), "is damaged"),
    "a flipped bit in a frame": (_flip_a_pixel, "its contents hash to"),
    "another reward": (_set("rewards", 3, 1), "its contents hash to"),
    "another level": (_set("episodes", 1, 77, "level_seed"), "its episodes are not those that info.json lists"),
    "another hash": (_attribute("hash", "blake3:" + "0" * 64), "but 000000000000… was written"),
    "another format": (_attribute("format", 9), "it has format 9"),
    "an action too large": (_set("actions", 5, 7), "frame 5 has action 7, expected 0 to 6 (1 such in all)"),
    "a negative action": (_set("actions", 5, -1), "frame 5 has action -1"),
    "a reward that is no number": (_set("rewards", 2, np.nan), "frame 2 has reward nan"),
    "float frames": (_rewrite("frames", lambda frames: frames.astype(np.float32)), "expected uint8"),
    "smaller frames": (_rewrite("frames", lambda frames: frames[:, :32]), "64, 64, 3)"),
    "fewer frames": (_rewrite("frames", lambda frames: frames[:-1]), "frames, but info.json says"),
    "no frames": (_rewrite("frames", lambda frames: None), "it has no frames"),
    "a group of frames": (_group, "is damaged"),
    "no table": (_rewrite("episodes", lambda table: None), "it has no episodes"),
    "no actions": (_rewrite("actions", lambda actions: None), "it has no actions"),
    "float actions": (_rewrite("actions", lambda actions: actions.astype(float)), "actions are float64"),
    "fewer actions": (_rewrite("actions", lambda actions: actions[:-1]), "actions are int16"),
    "fewer episodes": (_rewrite("episodes", lambda table: table[:-1]), "it has 3 episodes, but info.json says 4"),
    "overlapping episodes": (_set("episodes", 2, 5, "start"), "episode 2 starts at frame 5, expected"),
    "an episode out of range": (_set("episodes", 3, 10**6, "length"), "episode 3 has length 1000000"),
    "an episode too short": (_set("episodes", 3, 1, "length"), "its episode table covers"),
    "an unknown end": (_set("episodes", 0, 99, "end_reason"), "episode 0 has end reason 99"),
    "another table": (_rewrite("episodes", lambda table: np.arange(4.0)), "its episode table has float64"),
}


@pytest.mark.parametrize("damage, message", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_named_with_the_cure_and_the_others_are_checked(folder, damage, message, capsys):
    damage(folder / "train-00001.h5")
    _flip_a_pixel(folder / "validation-00000.h5")
    assert run(folder, "--verify") == 1
    first, second, last = capsys.readouterr().out.splitlines()
    assert "train-00001.h5" in first and message in first and "run its generator again" in first
    assert "validation-00000.h5 is damaged: its contents hash to" in second and "2 problems" in last


def test_what_the_line_says_repairs_the_dataset(folder, made, capsys):
    _flip_a_pixel(folder / "train-00001.h5")
    assert run(folder, "--verify") == 1
    assert "delete that file and run its generator again" in capsys.readouterr().out
    (folder / "train-00001.h5").unlink()
    assert generate_into(folder.parent) == 0 and run(folder, "--verify") == 0
    assert (folder / "train-00001.h5").read_bytes() == (made / "train-00001.h5").read_bytes()


def test_a_shard_that_was_exchanged_for_another_good_one_is_noticed(folder, capsys):
    fpath = folder / "train-00001.h5"
    _set("rewards", 3, 5)(fpath)
    episodes = Episodes(folder.parent, "toy", "train")
    with h5py.File(fpath, "r+") as file:
        table, frames = file["episodes"][()], file["frames"][()]
        parts = [slice(start, start + length) for start, length in zip(table["start"], table["length"], strict=True)]
        rows = [(frames[part], file["actions"][part], file["rewards"][part]) for part in parts]
        file.attrs["hash"] = content_hash([Episode(*row, 0, "death") for row in rows], table)
    assert episodes.num_episodes == 9 and run(folder, "--verify") == 1
    assert "but info.json says" in capsys.readouterr().out


def test_data_of_format_1_whose_hashes_are_sha256_is_read_and_verified(folder, capsys):
    def as_format_1(entry: dict) -> None:
        with h5py.File(folder / entry["file"], "r+") as file:
            table, said = file["episodes"][()], hashlib.sha256()
            for start, length in zip(table["start"], table["length"], strict=True):
                for name in ("frames", "actions", "rewards"):
                    said.update(file[name][start : start + length].tobytes())
            said.update(table.tobytes())
            file.attrs["format"], file.attrs["sha256"] = 1, said.hexdigest()
            del file.attrs["hash"], entry["hash"]
        entry |= {"sha256": said.hexdigest(), "bytes": (folder / entry["file"]).stat().st_size}

    def change(info: dict) -> None:
        info["format"] = 1
        for split in info["splits"].values():
            for entry in split["shards"]:
                as_format_1(entry)

    _change_info(change)(folder / "info.json")
    assert run(folder, "--verify") == 0 and Episodes(folder.parent, "toy", "train").num_episodes == 9
    _flip_a_pixel(folder / "train-00001.h5")
    assert run(folder, "--verify") == 1 and "its contents hash to" in capsys.readouterr().out


def test_looking_shows_what_is_left_and_names_the_damaged_shard(folder, capsys):
    _truncate(folder / "train-00001.h5")
    assert run(folder) == 1
    said = capsys.readouterr()
    assert "train: 5 episodes" in said.out and seen(folder)["splits"]["train"]["shards"] == 2
    assert "train-00001.h5 is damaged" in said.err and "train-00001.h5" in seen(folder)["damaged"][0]
    for fpath in folder.glob("*.h5"):
        fpath.unlink()
    assert run(folder) == 1 and capsys.readouterr().err.count("is missing") == 4


def test_files_that_do_not_belong_to_a_dataset_are_noted_and_do_no_harm(folder, capsys):
    shutil.copy(folder / "train-00001.h5", folder / "train-00009.h5")
    (folder / ".train-00003.h5.tmp").write_bytes(b"half a shard")
    (folder / "tokens" / "abc-T16").mkdir(parents=True)
    (folder / "tokens" / "abc-T16" / "train-00000.h5").write_bytes(b"of another format")
    assert run(folder, "--verify") == 0
    tmp, extra = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert ".train-00003.h5.tmp was left by an interrupted run" in tmp
    assert "train-00009.h5 is not named by info.json" in extra  # the token cache belongs to a dataset


def test_an_unfinished_dataset_is_not_looked_at_but_its_shards_are_checked(folder, capsys):
    (folder / "info.json").rename(folder / "unfinished.json")
    assert run(folder) == 2
    assert "is unfinished; run its generator again" in capsys.readouterr().err
    _flip_a_pixel(folder / "train-00002.h5")
    assert run(folder, "--verify") == 1
    first, second, last = capsys.readouterr().out.splitlines()
    assert "is unfinished; run its generator again" in first and "train-00002.h5 is damaged" in second
    assert "2 problems" in last


def _change_info(change):
    def damage(fpath):
        info = json.loads(fpath.read_text())
        change(info)
        fpath.write_text(json.dumps(info))

    return damage


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda fpath: fpath.write_text('{"format": 1,'), "info.json is not readable JSON"),
        (Path.unlink, "info.json"),
        (_change_info(lambda info: info.pop("splits")), "info.json has no 'splits'"),
        (_change_info(lambda info: info.update(image_size=64)), "info.json is not built as"),
        (_change_info(lambda info: info["splits"]["train"]["shards"][0].pop("hash")), "info.json has no 'hash'"),
        (_change_info(lambda info: info["splits"]["train"].update(frames=3)), "split train has 3 frames, but"),
        (
            _change_info(lambda info: info["splits"].update(test={"episodes": 0, "frames": 0, "shards": []})),
            "has the split test without episodes; remove it",
        ),
        (
            _change_info(lambda info: info["splits"]["train"]["shards"][1].update(file="../train-00001.h5")),
            "outside its folder",
        ),
        (
            _change_info(lambda info: info["splits"]["train"]["shards"].append(info["splits"]["train"]["shards"][0])),
            "twice",
        ),
    ],
)
def test_an_info_that_is_wrong_is_named_and_the_shards_are_checked_by_themselves(folder, damage, message, capsys):
    damage(folder / "info.json")
    _flip_a_pixel(folder / "train-00001.h5")
    assert run(folder, "--verify") == 1
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert message in first and "train-00001.h5 is damaged: its contents hash" in second


# -------------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: NAME"),
        (["toy", "--num_episodes=0"], "must be a whole number of at least 1"),
        (["toy", "--seed=-1"], "must be a whole number of at least 0"),
        (["toy", "--verfy"], "unrecognized arguments: --verfy"),
        (["nothing"], "nearest existing"),
        (["nothing", "--verify"], "nearest existing"),
        (["toy", "--output=/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_wrong_usage_ends_in_one_line(folder, arguments, message, capsys):
    assert inspect.main([*arguments, f"--root={folder.parent}"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last


def test_the_name_may_be_a_path_as_the_shell_completes_it(folder, tmp_path, capsys):
    assert inspect.main([f"{folder}/", "--verify"]) == 0
    assert "4 shards" in capsys.readouterr().out


@pytest.mark.parametrize("start", [["-m", "data.inspect"], ["data/inspect.py"]], ids=" ".join)
def test_the_command_runs_and_hides_no_module_of_the_standard_library(folder, start):
    command = [sys.executable, *start, "toy", f"--root={folder.parent}", "--verify"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "all as they were written" in done.stdout, done.stderr
