"""`--mode=play` as a user starts it: a process that says where it is, answers, and ends with Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf

from tests.play.stage import GUIDED, LONG, Client
from training import main
from training.command_line import compose, parse
from training.pipeline import Stage, read_stages

ROOT = Path(__file__).resolve().parents[2]


def test_it_says_what_is_played_and_where_and_ends_with_ctrl_c(root):
    outputs = root / "outputs"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "training.main", "--mode=play", "--play.port=0", "--play.host=0.0.0.0"),
            *(f"--play.roots=[{outputs}]", f"--play.model_fpath={outputs / GUIDED}", "--play.max_sessions=3"),
        ],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if "DISPLAY" not in name},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    while not lines or not lines[-1].startswith("play at "):
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    port = re.search(r":(\d+)/ \(Ctrl-C ends\)", lines[-1])[1]
    assert lines[0] == "2 worlds; first guided, on cpu\n"
    assert re.fullmatch(r"up to 3 players of at most \d+ MB each: \d+ MB\n", lines[1])
    with Client(f"http://127.0.0.1:{port}/") as client:
        client.start()
        assert client.step(1)[0]["n"] == 1
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LONG)
    assert process.returncode == 0
    assert errors == "warning: play.host=0.0.0.0: everybody who reaches this machine can play\n"


def test_mistakes_are_one_line_before_anything_is_loaded(capsys, monkeypatch):
    for words, found in (
        (["--play.max_sessions=0"], "play.max_sessions is 0, expected a value of at least 1"),
        (["--play.host="], "play.host is ''"),
        (["--play.hots=x"], "did you mean play.host"),
        (["--play.inference_steps=30"], "at most play.max_inference_steps = 25"),
    ):
        assert main.main(["--mode=play", "--check", *words]) == 2
        error = capsys.readouterr().err
        assert found in error and error.count("\n") == 1
    monkeypatch.setenv("LAMP_NUM_PROCESSES", "2")
    assert main.main(["--mode=play", "--check"]) == 2 and "one process" in capsys.readouterr().err


def test_every_entry_can_be_played_from():
    for config in ("tokenizer.yaml", "genie_redux.yaml", "genie_redux_guided.yaml", "quickstart.yaml"):
        assert main.main([f"--config={config}", "--mode=play", "--check"]) == 0


def test_other_play_settings_do_not_make_a_quickstart_start_over(monkeypatch):
    stages = read_stages(compose(parse(["--config=quickstart.yaml"])))
    training = next(stage for stage in stages if stage.command == "train")
    before = training.fingerprint()
    for key, value, is_same in (("play.port", 1, True), ("train.seed", 9, False)):
        cfg = training.resolved()
        OmegaConf.update(cfg, key, value)
        with monkeypatch.context() as patch:
            patch.setattr(Stage, "resolved", lambda _, cfg=cfg: cfg)
            assert (training.fingerprint() == before) == is_same
