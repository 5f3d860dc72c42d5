"""Trained players: their network, their file, how they act, and that training one works end to end."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data.episodes import read_info
from data_generation import generate
from data_generation.agent import (
    Agent,
    AgentNetwork,
    AgentPolicy,
    Architecture,
    load_agent,
    save_agent,
    side_by_side,
)
from data_generation.agent_settings import AgentSettings
from data_generation.environment import COINRUN_ACTIONS, Game, Level
from data_generation.recording import record_episodes

ROOT = Path(__file__).resolve().parents[2]
PROVIDED = ROOT / "assets" / "agents" / "coinrun_small.safetensors"
SMALL = Architecture(
    image_size=64, num_actions=7, channels=(4, 8), blocks=1, stem_kernel=5, stem_stride=2, num_features=16
)
GAME = Game("coinrun", "hard", True, False, False, "coinrun7", 64)
NUM_STEPS = 40


@pytest.fixture(scope="module")
def agent() -> Agent:
    torch.manual_seed(0)
    network = AgentNetwork(SMALL).eval().requires_grad_(False)
    return Agent(network, "coinrun", tuple(COINRUN_ACTIONS), 2, {"minutes": 0})


def policy(agent: Agent, **settings) -> AgentPolicy:
    usual = {"seed": 0, "epsilon": 0.0, "sticky": 0.0, "weights": None, "batch_size": 4}
    return AgentPolicy(agent, NUM_STEPS, **usual | settings)


def insistent(agent: Agent, scores: list[float]) -> Agent:
    """An agent with the same scores whatever it sees."""
    network = AgentNetwork(SMALL).eval().requires_grad_(False)
    network.head.weight.zero_()
    network.head.bias.copy_(torch.tensor(scores))
    return agent._replace(network=network)


def actions_of(policy: AgentPolicy, levels: range, num_steps: int = NUM_STEPS) -> np.ndarray:
    """(levels, steps) actions on black pictures."""
    frames, rows = [np.zeros((64, 64, 3), np.uint8)] * policy.batch_size, []
    for first in range(0, len(levels), policy.batch_size):
        group = levels[first : first + policy.batch_size]
        policy.start(group)
        playing = np.ones(len(group), bool)
        steps = [policy.act(frames[: len(group)], playing)[: len(group)].copy() for _ in range(num_steps)]
        rows.append(np.stack(steps, axis=1))
    return np.concatenate(rows)


# ------------------------------------------------------------------------------------------------------------ acting


def test_a_decision_is_held_for_the_interval_that_the_agent_was_trained_with(agent):
    actions = actions_of(policy(agent, epsilon=1.0), range(8))
    np.testing.assert_array_equal(actions[:, ::2], actions[:, 1::2])
    assert (actions[:, 2:] != actions[:, :-2]).any()


def test_actions_are_drawn_with_the_probabilities_of_the_network(agent):
    odds = np.array([1, 2, 4, 8, 4, 2, 1]) / 22
    actions = actions_of(policy(insistent(agent, np.log(odds).tolist())), range(400))[:, ::2]
    np.testing.assert_allclose(np.bincount(actions.ravel(), minlength=7) / actions.size, odds, atol=0.015)


def test_the_greedy_agent_takes_the_most_likely_action(agent):
    assert set(actions_of(policy(insistent(agent, [0, 0, 1, 0, 0, 0.9, 0]), greedy=True), range(4)).ravel()) == {2}


def test_epsilon_is_the_share_of_random_decisions(agent):
    always_two = insistent(agent, [0, 0, 100, 0, 0, 0, 0])
    actions = actions_of(policy(always_two, epsilon=0.3), range(400))[:, ::2]
    assert (actions != 2).mean() == pytest.approx(0.3 * 6 / 7, abs=0.015)
    lean = actions_of(policy(always_two, epsilon=0.3, weights=[0, 0, 0, 0, 0, 1, 0]), range(400))[:, ::2]
    assert set(lean.ravel()) == {2, 5}
    assert (lean == 5).mean() == pytest.approx(0.3, abs=0.015)


def test_sticky_decisions_repeat_the_one_before(agent):
    decisions = actions_of(policy(insistent(agent, [0.0] * 7), sticky=0.5), range(400))[:, ::2]
    assert (decisions[:, 1:] == decisions[:, :-1]).mean() == pytest.approx(0.5 + 0.5 / 7, abs=0.015)
    assert len(np.unique(actions_of(policy(agent, sticky=1.0), range(1)))) == 1


def test_draws_depend_on_seed_and_level_alone(agent):
    blind = insistent(agent, [0.0] * 7)
    together = actions_of(policy(blind), range(8))
    np.testing.assert_array_equal(actions_of(policy(blind, batch_size=3), range(8)), together)
    np.testing.assert_array_equal(actions_of(policy(blind), range(5, 6)), together[5:6])
    assert (actions_of(policy(blind, seed=1), range(8)) != together).any()


def test_the_agent_sees_the_picture_now_and_at_its_last_decision(agent):
    levels = [Level(GAME, level) for level in (3, 4)]
    player = policy(agent, batch_size=2, greedy=True)
    player.start([3, 4])
    before = None
    for step in range(12):
        now = np.stack([level.frame for level in levels])
        actions = player.act(list(now), np.ones(2, bool))
        if step % 2 == 0:
            seen = side_by_side(now, now if before is None else before)
            np.testing.assert_array_equal(actions, agent.network(seen).argmax(1).numpy())
            before = now
        for level, action in zip(levels, actions, strict=True):
            level.step(int(action))


def test_pictures_of_another_size_are_scaled_to_what_the_agent_knows(agent):
    large = Game("coinrun", "hard", True, False, False, "coinrun7", 96)
    episodes = record_episodes(large, policy(agent), [1, 2], 10)
    assert [episode.frames.shape[1:] for episode in episodes] == [(96, 96, 3)] * 2


# ------------------------------------------------------------------------------------------------------------ the file


def test_an_agent_reads_back_as_it_was_saved(agent, tmp_path):
    save_agent(tmp_path / "agent.safetensors", agent)
    loaded = load_agent(tmp_path / "agent.safetensors")
    assert loaded[1:] == agent[1:]
    assert loaded.network.architecture == SMALL
    pictures = torch.randint(256, (3, 6, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(loaded.network(pictures), agent.network(pictures), rtol=0, atol=5e-3)  # half precision
    save_agent(tmp_path / "again.safetensors", loaded)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "agent.safetensors").read_bytes()


def test_other_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"agent_fpath=.*missing.*train_agent"):
        load_agent(tmp_path / "missing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match=r"agent_fpath=.*cannot be read"):
        load_agent(tmp_path / "text")
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no agent of format 1 .*train_agent\.py"):
        load_agent(tmp_path / "model.safetensors")


# ---------------------------------------------------------------------------------------------------- recording with it


def test_an_agent_records_the_same_bytes_whatever_the_number_of_workers(agent, tmp_path, capsys):
    save_agent(tmp_path / "agent.safetensors", agent)
    common = ["--config=coinrun_ppo", f"--agent_fpath={tmp_path / 'agent.safetensors'}", "--n_instances=14"]
    common += ["--n_steps_max=30", "--episodes_per_shard=5", "--agent_batch_size=3", "--validation_share=0.0"]
    for workers in (1, 2):
        words = [*common, f"--n_workers={workers}", f"--root_dpath={tmp_path / str(workers)}"]
        assert generate.main(words) == 0, capsys.readouterr().err
    first, second = (read_info(tmp_path / str(workers), "coinrun_v2.1.0") for workers in (1, 2))
    assert first["splits"] == second["splits"]
    assert first["generator"]["config"]["agent_epsilon"] == 0.25
    assert "agent_fpath" not in first["generator"]["config"]  # it counts by its content: agent_sha256
    assert len(first["generator"]["config"]["agent_sha256"]) == 64


def test_an_agent_for_another_game_is_refused(agent, tmp_path, capsys):
    save_agent(tmp_path / "agent.safetensors", agent)
    words = [f"--agent_fpath={tmp_path / 'agent.safetensors'}", "--game=maze", f"--root_dpath={tmp_path}"]
    assert generate.main(words) == 2
    error = capsys.readouterr().err
    assert "plays coinrun with 7 actions" in error and error.count("\n") == 1
    assert generate.main(["--agent_fpath=nowhere", f"--root_dpath={tmp_path}"]) == 2
    assert "agent_fpath=nowhere does not exist" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- training


def test_training_games_step_as_recorded_levels_do():
    from data_generation.agent_training import Games
    from data_generation.train_agent import read_settings

    overrides = {
        "num_games": "2",
        "batch_size": "2",
        "first_level": "7",
        "num_levels": "1",
        "rollout_length": "256",
        "num_threads": "1",
    }
    overrides |= {"decision_interval": "2"}
    games, levels = Games(read_settings("coinrun_small", overrides)), [Level(GAME, 7) for _ in range(2)]
    seen, before = games.reset(), [level.frame.copy() for level in levels]
    generator, num_ended = np.random.default_rng(0), 0
    for _ in range(150):
        for row, level in enumerate(levels):
            np.testing.assert_array_equal(seen[row], side_by_side(level.frame[None], before[row][None])[0])
        before = [level.frame.copy() for level in levels]
        actions = generator.choice([4, 4, 1, 2], size=2)
        games.step_async(actions)
        seen, rewards, have_ended, _ = games.step_wait()
        for row, level in enumerate(levels):
            outcomes = [level.step(int(actions[row])) for _ in range(2)]
            assert have_ended[row] == any(end for _, end in outcomes)
            assert rewards[row] == sum(reward for reward, _ in outcomes)
            if have_ended[row]:
                num_ended += 1
                before[row] = level.frame.copy()
    games.close()
    assert num_ended > 2


def tiny_training(fpath: Path, **overrides) -> list[str]:
    """The command of one that takes seconds."""
    values = {"num_decisions": 256, "num_games": 4, "rollout_length": 16, "batch_size": 32, "channels": "[4,8]"}
    values |= {"evaluation_levels": 4, "evaluation_steps": 20, "num_threads": 1, "output_fpath": fpath} | overrides
    return [sys.executable, "data_generation/train_agent.py", *(f"--{key}={value}" for key, value in values.items())]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_training_that_is_stopped_leaves_the_agent_as_it_was(number, tmp_path):
    fpath = tmp_path / "agent.safetensors"
    command = tiny_training(fpath, num_decisions=10**9, max_minutes=10, save_every_minutes=0)
    training = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not fpath.exists() and training.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        training.send_signal(number)
        said, complaint = training.communicate(timeout=120)
    finally:
        training.kill()
    history = load_agent(fpath).history
    assert 64 <= history["decisions"] < 10**9
    if number == signal.SIGKILL:
        assert training.returncode == -number
    else:  # saved as it was then, and measured
        assert training.returncode == 0, complaint
        assert "interrupted: keeping the agent" in said + complaint and "levels completed" in said
        assert "scores" in history


def test_a_disk_that_is_full_for_a_while_does_not_end_a_training(tmp_path, capsys):
    from data_generation.agent_training import train_agent
    from data_generation.train_agent import read_settings

    class Disk:
        def __init__(self):
            self.kept = []

        def __call__(self, agent):
            self.kept.append(agent.history["decisions"])
            if len(self.kept) == 1:
                raise OSError("cannot write agent.safetensors (No space left on device); free some space")

    small = {"num_decisions": 192, "num_games": 4, "rollout_length": 16, "batch_size": 32, "channels": "[4,8]"}
    small |= {"num_threads": 1, "save_every_minutes": 0}
    disk = Disk()
    agent = train_agent(read_settings("coinrun_small", {key: str(value) for key, value in small.items()}), disk)
    assert agent.history["decisions"] == 192 and disk.kept == [64, 128]
    assert "No space left on device); free some space; the training goes on" in capsys.readouterr().out


def test_an_agent_that_cannot_be_written_is_one_line_and_leaves_the_one_before(agent, tmp_path):
    fpath = tmp_path / "agent.safetensors"
    save_agent(fpath, agent)
    before = fpath.read_bytes()
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, allowed[1]))  # bytes
    try:
        with pytest.raises(OSError, match=r"cannot write \S*agent.safetensors \(.*\); free some space$"):
            save_agent(fpath, agent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert fpath.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [fpath.name]


def test_a_training_writes_an_agent_that_can_record(tmp_path):
    fpath, scratch = tmp_path / "agent.safetensors", tmp_path / "scratch"
    scratch.mkdir()
    variables = os.environ | {"TMPDIR": str(scratch)}
    done = subprocess.run(tiny_training(fpath), cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert list(scratch.iterdir()) == [], "left behind"
    for expected in ("random actions", "always RIGHT_JUMP", "agent", "levels completed", "mean return"):
        assert expected in done.stdout
    trained = load_agent(fpath)
    assert trained.history["decisions"] == 256
    assert [row["name"] for row in trained.history["scores"]][:2] == ["random actions", "always RIGHT_JUMP"]
    recording = ["--config=coinrun_ppo", f"--agent_fpath={fpath}", "--n_instances=3", "--n_steps_max=9"]
    assert generate.main([*recording, "--n_workers=1", f"--root_dpath={tmp_path}"]) == 0


@pytest.mark.parametrize(
    "override, complaint",
    [
        ("--num_decision=5", "did you mean num_decisions"),
        ("--evaluation_first_level=1000500", "among the training levels"),
        ("--batch_size=100000", "more than one rollout holds"),
        ("--channels=[]", "at least one width"),
        ("--config=coinrun_smal", "did you mean coinrun_small"),
        ("--device=gpu", "device=gpu is not cpu, cuda or cuda:N"),
        ("--device=cuda:99", "device=cuda:99, but torch sees"),
        ("--num_threads=0", "num_threads=0 is outside 1 to"),
        ("--max_minutes=-1", "max_minutes=-1 must be above 0, or null"),
        ("--save_every_minutes=-1", "save_every_minutes=-1 is outside 0 to"),
    ],
)
def test_mistakes_end_in_one_line(override, complaint, capsys, tmp_path):
    from data_generation.train_agent import main

    assert main([f"--output_fpath={tmp_path / 'agent.safetensors'}", override]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1


# ----------------------------------------------------------------------------------------------------- the provided one


def test_the_provided_agent_is_small_and_was_clearly_better_than_random_and_jumping_right():
    assert PROVIDED.stat().st_size < 5e6
    scores = {row["name"]: row for row in load_agent(PROVIDED).history["scores"]}
    for rival in ("random actions", "always RIGHT_JUMP"):
        for measure in ("completed", "returned"):
            assert scores["agent"][measure][1] > scores[rival][measure][2], (rival, measure)


def test_the_provided_agent_completes_most_levels_of_the_test_range():
    trained = load_agent(PROVIDED)
    player = AgentPolicy(trained, 500, seed=0, epsilon=0.0, sticky=0.0, weights=None, batch_size=20)
    episodes = [
        episode
        for first in (10_000, 10_020)
        for episode in record_episodes(GAME, player, range(first, first + 20), 500)
    ]
    assert np.mean([episode.end_reason == "coin" for episode in episodes]) >= 0.65


def test_the_provided_agent_says_how_it_was_trained():
    history = load_agent(PROVIDED).history
    assert history["decisions"] > 100_000 and 0 < history["minutes"] <= 30
    settings = AgentSettings(output_fpath="anywhere", **history["config"])  # enough to train it again
    assert settings.first_level > 11_000  # no level of a dataset
