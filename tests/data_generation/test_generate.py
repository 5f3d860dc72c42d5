import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.episodes import MADE_BY, Episodes
from data.locks import claim
from data_generation.generate import CONFIGS_DPATH, main, read_settings
from data_generation.provenance import versions
from data_generation.recording import REVISION
from data_generation.shards import generate, plan

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"n_instances": "10", "n_steps_max": "12", "episodes_per_shard": "4", "n_workers": "1", "name": "toy"}


def settings_for(root, **changes):
    return read_settings("coinrun_quickstart", SMALL | {"root_dpath": str(root)} | changes)


def command_line(root, **changes) -> list[str]:
    keys = SMALL | {"root_dpath": str(root)} | changes
    return ["--config=coinrun_quickstart", *(f"--{key}={value}" for key, value in keys.items())]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {fpath.name: fpath.read_bytes() for fpath in folder.iterdir() if fpath.name != ".lock"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small dataset, and its settings."""
    settings = settings_for(tmp_path_factory.mktemp("made"))
    generate(settings)
    return settings


def test_levels_are_offset_plus_instance_and_the_splits_share_none(made):
    for split, levels in (("train", range(9)), ("validation", range(9, 10))):
        assert Episodes(made.root_dpath, "toy", split).level_seeds.tolist() == list(levels)
    settings = settings_for("x", level_offset="10000", split="test")
    assert settings.levels() == {"test": range(10_000, 10_010)}


def test_the_default_sets_share_no_level():
    for train, test in (("coinrun_random", "coinrun_random_test"), ("coinrun_quickstart", "coinrun_quickstart_test")):
        splits = list(read_settings(train, {}).levels().values()) + list(read_settings(test, {}).levels().values())
        levels = [level for split in splits for level in split]
        assert len(splits) == 3 and len(levels) == len(set(levels))


def test_shards_hold_whole_episodes_with_an_action_and_a_reward_per_frame(made):
    read = Episodes(made.root_dpath, "toy", "train")
    assert read.image_size == (64, 64) and read.num_actions == 7 and (read.lengths <= 12).all()
    assert [len(shard.levels) for shard in plan(made)] == [4, 4, 1, 1]
    shards = read.info["splits"]["train"]["shards"]
    assert sum(shard["frames"] for shard in shards) == read.lengths.sum()


def test_number_of_workers_changes_no_byte_and_neither_does_an_interruption(made, tmp_path):
    settings = settings_for(tmp_path, n_workers="2")
    settings.folder.mkdir()
    finished = "train-00001.h5"
    (settings.folder / finished).write_bytes((made.folder / finished).read_bytes())
    (settings.folder / "unfinished.json").write_text(json.dumps({"revision": REVISION, "config": settings.content}))
    (settings.folder / ".train-00002.h5.tmp").write_bytes(b"half a shard")
    kept_at = (settings.folder / finished).stat().st_mtime_ns
    assert generate(settings).num_shards == 3
    assert (settings.folder / finished).stat().st_mtime_ns == kept_at
    assert bytes_of(settings.folder) == bytes_of(made.folder)


def test_a_finished_dataset_is_left_alone(made, capsys):
    before = bytes_of(made.folder)
    assert main(command_line(made.root_dpath, n_workers="2")) == 0
    assert "nothing to do" in capsys.readouterr().out and bytes_of(made.folder) == before


def test_another_config_on_the_same_name_is_refused_with_the_keys_that_differ(made, capsys):
    before = bytes_of(made.folder)
    assert main(command_line(made.root_dpath, sticky="0.1")) == 2
    message = capsys.readouterr().err
    assert "was made with sticky=0.5, this run asks for sticky=0.1" in message and message.count("\n") == 1
    assert bytes_of(made.folder) == before


def test_a_run_that_cannot_fit_on_the_disk_is_refused_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
    settings = settings_for(tmp_path)
    with pytest.raises(ValueError, match=r"root_dpath=.* has 0.10 MB free, but about .* MB are needed"):
        generate(settings)
    assert not list(settings.folder.glob("*.h5"))
    monkeypatch.undo()
    assert generate(settings_for(tmp_path, n_instances="4")).num_shards == 1  # fewer, as the line says


def test_compression_counts_when_the_disk_is_asked_for_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(ValueError, match=r"has 1.00 MB free, but about 1.47 MB are needed"):
        generate(settings_for(tmp_path))
    assert generate(settings_for(tmp_path, compression="gzip", name="small")).num_shards == 4


def test_a_full_disk_ends_in_one_line_and_finished_shards_are_kept(tmp_path):
    # The system refuses files above a size: 104 frames fit below it, 200 do not.
    arguments = command_line(tmp_path, n_steps_max="200", n_instances="4", episodes_per_shard="1")
    command = shlex.join([sys.executable, "data_generation/generate.py", *arguments])
    limited = subprocess.run(["bash", "-c", f"ulimit -f 1800; {command}"], cwd=ROOT, capture_output=True, text=True)
    errors = [line for line in limited.stderr.splitlines() if line.startswith("error")]
    assert limited.returncode == 2 and len(errors) == 1 and "Traceback" not in limited.stderr
    assert "cannot write" in errors[0] and "train-00001.h5" in errors[0] and "free some space" in errors[0]
    folder = tmp_path / "toy"
    assert set(bytes_of(folder)) == {"train-00000.h5", "unfinished.json"}
    kept = (folder / "train-00000.h5").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (folder / "train-00000.h5").stat().st_mtime_ns == kept and (folder / "info.json").exists()


@pytest.mark.parametrize(
    "damage, is_finished, reason",
    [
        ("lost", True, ""),
        ("truncated", False, "train-00000.h5 is damaged"),
        ("of other levels", True, "train-00000.h5 does not hold levels 0 to 3"),
    ],
)
def test_a_lost_or_damaged_shard_is_restored_by_the_next_run(made, tmp_path, capsys, damage, is_finished, reason):
    settings = settings_for(tmp_path)
    shutil.copytree(made.folder, settings.folder)
    if not is_finished:
        (settings.folder / "info.json").unlink()
        (settings.folder / "unfinished.json").write_text(json.dumps({"revision": REVISION, "config": settings.content}))
    shard = settings.folder / "train-00000.h5"
    if damage == "truncated":
        os.truncate(shard, shard.stat().st_size // 2)
    elif damage == "lost":
        shard.unlink()
    else:
        shutil.copy(settings.folder / "train-00001.h5", shard)
    assert generate(settings).num_shards == 1
    assert bytes_of(settings.folder) == bytes_of(made.folder)
    printed = capsys.readouterr()
    assert reason in printed.out and "3 of 4 shards are there already" in printed.out
    assert "10/10" in printed.err and "4 of 4 shards" in printed.err and "frames/s" in printed.err


def test_shards_of_an_unknown_config_are_not_mixed_with_ours(made, tmp_path):
    settings = settings_for(tmp_path)
    shutil.copytree(made.folder, settings.folder)
    (settings.folder / "info.json").unlink()
    with pytest.raises(ValueError, match=r"holds shards of an unknown config"):
        generate(settings)


def test_a_killed_run_leaves_whole_shards_and_no_worker(tmp_path):
    arguments = SMALL | {"root_dpath": str(tmp_path), "n_workers": "2", "episodes_per_shard": "1", "n_steps_max": "500"}
    arguments |= {"n_instances": "400"}
    command = [sys.executable, "data_generation/generate.py", "--config=coinrun_random"]
    command += [f"--{key}={value}" for key, value in arguments.items()]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "toy"
    while not list(folder.glob("*.h5")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    finished = sorted(fpath.name for fpath in folder.glob("*.h5"))
    time.sleep(0.5)
    assert 0 < len(finished) < 400 and sorted(fpath.name for fpath in folder.glob("*.h5")) == finished
    with claim(folder, range(400), cure=""):
        assert not (folder / "info.json").exists() and (folder / "unfinished.json").exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_far_it_came_and_how_to_go_on(tmp_path, stop):
    command = [sys.executable, "generate.py", "--name=toy", f"--root_dpath={tmp_path}", "--n_workers=1"]
    command += ["--episodes_per_shard=1", "--n_steps_max=20"]
    process = subprocess.Popen(
        command,
        cwd=ROOT / "data_generation",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "toy" / "train-00002.h5").exists() and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, stop)
    message = process.communicate()[1]
    finished = len(list((tmp_path / "toy").glob("*.h5")))
    assert process.returncode == 130 and "Traceback" not in message
    assert f"({finished} of 10000 shards are finished), the same command goes on from there" in message
    assert not list((tmp_path / "toy").glob(".*.tmp"))


@pytest.mark.parametrize("game, is_told", [("starpilot", True), ("maze", False), ("coinrun", False)])
def test_whoever_records_a_game_that_fires_is_told_of_its_button(game, is_told, tmp_path, capsys):
    # A part without shards: nothing is played.
    arguments = [*command_line(tmp_path, game=game, action_weights="null"), "--shard=0/9"]
    assert main(arguments) == 0
    assert ("--action_set=procgen15" in capsys.readouterr().out) == is_told
    assert main([*arguments, "--name=all", "--action_set=procgen15"]) == 0
    assert "note" not in capsys.readouterr().out


@pytest.mark.parametrize("count, is_told", [("4", True), ("10", False)])
def test_too_few_levels_for_a_validation_split_are_told(count, is_told, tmp_path, capsys):
    assert main([*command_line(tmp_path, n_instances=count), "--shard=0/99"]) == 0  # a part without shards
    note = f"note: of {count} levels none is for validation, which training needs; raise --n_instances or"
    assert (note in capsys.readouterr().out) == is_told


def test_levels_that_another_set_tests_on_are_told(made, tmp_path, capsys):
    def told(root, *words) -> str:
        assert main([*command_line(root), *words, "--shard=0/99"]) == 0  # a part without shards: nothing is played
        return capsys.readouterr().out

    assert "note" not in told(tmp_path)
    line = (
        "note: levels 10,000 to 10,999 are those that our _test configs record: scores on them would not be of unseen"
    )
    assert line in told(tmp_path, "--name=big", "--n_instances=20000")
    other = (made.root_dpath, "--name=toy_test", "--split=test")
    assert "note: levels 5 to 9 are also those of toy: scores" in told(*other, "--level_offset=5")
    assert "note" not in told(*other, "--level_offset=10", "--name=beside_test")
    assert "note" not in told(*other, "--level_offset=5", "--distribution_mode=easy", "--root_dpath=" + str(tmp_path))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--n_instance=3"], "unknown key n_instance; did you mean n_instances?"),
        (["--config=coinrun_randm"], "no config coinrun_randm; did you mean coinrun_random?"),
        (["--config"], "--config needs a name"),
        (["n_instances=3"], "n_instances=3 is not of the form --key=value"),
        (["--n_instances=0"], "n_instances=0 is outside 1 to"),
        (["--n_instances=many"], "n_instances='many' must be int"),
        (["--sticky=1.5"], "sticky=1.5 is outside 0 to 1"),
        (["--game=coinrum"], "game=coinrum is not one of"),
        (["--distribution_mode=hrad"], "did you mean hard?"),
        (["--action_weights=[1,2]"], "action_weights=[1, 2] must be 7 numbers >= 0"),
        (["--action_weights=[0,0,0,0,0,0,0]"], "must be 7 numbers >= 0"),
        (["--image_size=8"], "image_size=8 is outside 16 to 512"),
        (["--name=a/b"], "name='a/b' must be the name of a folder"),
        (["--use_backgrounds=maybe"], "use_backgrounds='maybe' must be bool"),
        (["--config=coinrun_ppo", "--game=maze"], "plays coinrun with 7 actions, not game=maze"),
        (["--config=coinrun_ppo", "--agent_fpath=README.md"], "agent_fpath=README.md cannot be read"),
        (["--split=tset"], "split=tset is not one of null, train, validation, test; did you mean test?"),
    ],
)
def test_wrong_arguments_end_in_one_line_that_names_them(arguments, message, capsys, tmp_path):
    assert main([f"--root_dpath={tmp_path}", *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_values_with_signs_of_hydras_grammar_are_taken_as_they_are():
    assert read_settings("coinrun_random", {"root_dpath": "/a b/c=d,(e)"}).root_dpath == "/a b/c=d,(e)"


@pytest.mark.parametrize(
    "spelling", ["coinrun_random_test", "coinrun_random_test.yaml", "configs/data_gen_test_set.json"]
)
def test_configs_are_found_under_our_names_and_those_of_genieredux(spelling):
    assert read_settings(spelling, {}).name == "coinrun_v2.0.0_test"


def test_a_config_file_of_ones_own_can_start_from_ours(tmp_path):
    fpath = tmp_path / "mine.yaml"
    fpath.write_text("defaults: [coinrun_random, _self_]\nname: mine\nsticky: 0.25\n")
    settings = read_settings(str(fpath), {"n_instances": "5"})
    assert (settings.name, settings.sticky, settings.n_instances, settings.n_steps_max) == ("mine", 0.25, 5, 500)
    fpath.write_text("defaults: [coinrun_random, _self_]\nstikcy: 0.25\n")
    with pytest.raises(ValueError, match="unknown key stikcy; did you mean sticky"):
        read_settings(str(fpath), {})
    fpath.write_text("name: mine\n")
    with pytest.raises(ValueError, match="lacks root_dpath"):
        read_settings(str(fpath), {})
    fpath.write_text("name: [mine\n")
    with pytest.raises(ValueError, match="cannot be read"):
        read_settings(str(fpath), {})


def test_the_hint_of_the_reader_names_the_config_that_makes_the_dataset():
    made_by = {read_settings(fpath.stem, {}).name: fpath.stem for fpath in CONFIGS_DPATH.glob("*.yaml")}
    assert made_by == MADE_BY


def test_help_and_list_show_keys_and_configs(capsys):
    assert main(["--help"]) == 0 and "n_steps_max:" in capsys.readouterr().out
    assert main(["--list"]) == 0 and "coinrun_plain_test" in capsys.readouterr().out


def test_info_says_everything_needed_to_make_the_same_bytes(made):
    generator = json.loads((made.folder / "info.json").read_text())["generator"]
    assert generator["procgen"] != "unknown" and generator["config"] == made.content
    assert set(generator["versions"]) == {"h5py"} and all(generator["versions"].values())


@pytest.mark.parametrize(
    "config, changes, expected",
    [
        ("coinrun_random", {"image_size": "84"}, {"h5py", "pillow"}),
        ("coinrun_random", {"compression": "blosc"}, {"h5py", "hdf5plugin"}),
        ("coinrun_ppo", {}, {"h5py", "numpy", "pillow", "torch"}),
    ],
)
def test_versions_are_those_of_the_packages_that_the_bytes_pass_through(config, changes, expected):
    assert set(versions(read_settings(config, changes))) == expected


def test_data_generation_does_not_import_torch():
    program = "import sys, data_generation.generate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
