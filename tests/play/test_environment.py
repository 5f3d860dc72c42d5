"""A world as a Gymnasium environment: the API that RL libraries count on, one dream or many in a batch."""

import re
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger

from models.session import Session
from play.environment import ID, WorldModelEnv, WorldModelVectorEnv

from .stage import GUIDED, LATENT, LEVELS

MAX_STEPS = 5
WINDOW = 3


@pytest.fixture(scope="module")
def kwargs(root):
    """What makes an environment of the guided world."""
    return {
        "model_fpath": str(root / "outputs" / GUIDED),
        "dataset": str(root / "levels" / LEVELS),
        "device": "cpu",
        "window": WINDOW,
        "max_steps": MAX_STEPS,
    }


@pytest.fixture(scope="module", params=[GUIDED, LATENT])
def each(request, root, kwargs):
    sampling = {"temperature": 1.0, "top_k": 8} | ({"inference_steps": 2} if request.param == LATENT else {})
    return kwargs | {"model_fpath": str(root / "outputs" / request.param)} | sampling


def episode(env, actions):
    return np.stack([env.step(action)[0] for action in actions])


def test_gymnasiums_checker_has_nothing_to_say(each):
    env = gymnasium.make(ID, **each)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_the_vector_environment_is_what_make_vec_makes(kwargs):
    envs = gymnasium.make_vec(ID, num_envs=3, **kwargs)
    assert isinstance(envs.unwrapped, WorldModelVectorEnv)
    frames, infos = envs.reset(seed=0)
    assert frames in envs.observation_space and frames.shape == (3, 16, 16, 3)
    assert set(infos) == {"episode", "_episode", "level", "_level"} and infos["_level"].all()


def test_ppo_learns_in_a_dream(kwargs):
    env = gymnasium.make(ID, **kwargs)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu", seed=0)
    model.set_logger(Logger(None, []))  # else it leaves a folder behind
    before = [value.clone() for value in model.policy.parameters()]
    model.learn(16)
    assert model.num_timesteps == 16
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    action, _ = model.predict(env.reset(seed=1)[0])
    assert env.action_space.contains(int(action))


def test_an_episode_is_truncated_after_max_steps_with_rewards_of_zero(kwargs):
    env = WorldModelEnv(**kwargs)
    env.reset(seed=0)
    steps = [env.step(1)[1:4] for _ in range(MAX_STEPS)]
    assert steps == [(0.0, False, False)] * (MAX_STEPS - 1) + [(0.0, False, True)]


def test_a_seed_says_which_held_out_level_and_which_dream(each):
    env = WorldModelEnv(**each)
    starts = [env.reset(seed=seed) for seed in range(8)]
    assert len({info["level"] for _, info in starts}) > 1
    again, info = env.reset(seed=3)
    assert info == starts[3][1] and np.array_equal(again, starts[3][0])
    first = episode(env, [1, 4, 1])
    env.reset(seed=3)
    assert np.array_equal(episode(env, [1, 4, 1]), first)
    env.reset(seed=3)
    assert not np.array_equal(episode(env, [0, 2, 5]), first)


def test_what_is_shown_is_the_worlds_own_session(kwargs):
    env = WorldModelEnv(**kwargs, render_mode="rgb_array")
    first, _ = env.reset(seed=0)
    session: Session = env._session.fork()
    frame = session.step(torch.tensor([4]))[0].clamp(0, 1)
    expected = (frame * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(env.render(), first)
    assert np.array_equal(env.step(4)[0], expected) and np.array_equal(env.render(), expected)


def test_any_picture_can_be_the_first_frame(kwargs, tmp_path):
    env = WorldModelEnv(**kwargs)
    green = np.full((40, 30, 3), (0, 200, 0), np.uint8)
    Image.fromarray(green).save(tmp_path / "green.png")
    for prompt in (green, Image.fromarray(green), tmp_path / "green.png"):
        first, info = env.reset(seed=0, options={"prompt": prompt})
        assert (first == (0, 200, 0)).all() and info == {}
    envs = WorldModelVectorEnv(2, **kwargs)
    assert (envs.reset(options={"prompt": green})[0] == (0, 200, 0)).all()
    with pytest.raises(ValueError, match="must be a picture's file"):
        env.reset(options={"prompt": np.zeros((8, 8))})


@pytest.mark.parametrize("mode", AutoresetMode)
def test_each_row_of_a_vector_is_a_single_environment_with_its_seed_also_after_a_restart(each, mode):
    """In every mode as Gymnasium's own vector of single environments."""
    num_envs, num_steps = 2, 2 * MAX_STEPS + 3
    actions = np.random.default_rng(0).integers(7, size=(num_steps, num_envs))
    envs = WorldModelVectorEnv(num_envs, **each, autoreset_mode=mode.value)
    reference = SyncVectorEnv([lambda: WorldModelEnv(**each)] * num_envs, autoreset_mode=mode)
    assert envs.metadata["autoreset_mode"] == mode
    assert_alike(envs.reset(seed=7), reference.reset(seed=7))
    for action in actions:
        got, expected = envs.step(action), reference.step(action)
        assert_alike(got, expected)
        if mode == AutoresetMode.DISABLED and expected[3].any():
            with pytest.raises(gymnasium.error.ResetNeeded, match=r"rows \[0, 1\] are over"):
                envs.step(action)
            assert_alike(*(env.reset(options={"reset_mask": expected[3].copy()}) for env in (envs, reference)))


def assert_alike(got, expected):
    """Frames, what comes with them, and the infos."""
    assert_same_picture(got[0], expected[0])
    for part, of_reference in zip(got[1:-1], expected[1:-1], strict=True):
        assert part.tolist() == of_reference.tolist()
    assert set(got[-1]) == set(expected[-1])
    for key, values in expected[-1].items():
        if key == "final_obs":
            assert_same_picture(np.stack(got[-1][key]), np.stack(values))
        else:
            assert np.array_equal(got[-1][key], values), key


def assert_same_picture(got, expected):
    """Sums of another order may round a pixel to its neighbour."""
    assert np.abs(got.astype(int) - expected).max() <= 1


def alone(env, seed, actions):
    """A single environment that begins again, as a row of a vector does, at the step after the last one."""
    yield env.reset(seed=seed)
    is_over = False
    for action in actions:
        if is_over:
            picture, info = env.reset()
            result = (picture, 0.0, False, False, info)
        else:
            result = env.step(action)
        is_over = result[3]
        yield result


def test_rows_that_are_reset_leave_the_others_dreams_alone(each):
    num_steps = MAX_STEPS + 3  # the rows end at different times
    actions = np.random.default_rng(1).integers(7, size=(2 + num_steps, 3))
    envs, undisturbed = (WorldModelVectorEnv(3, **each) for _ in range(2))
    for env in (envs, undisturbed):
        env.reset(seed=0)
        for action in actions[:2]:
            env.step(action)
    mask = np.array([False, True, False])
    first, infos = envs.reset(seed=[5, 6, 7], options={"reset_mask": mask})
    assert infos["_level"].tolist() == mask.tolist()
    single = WorldModelEnv(**each)
    expected = list(alone(single, 6, actions[2:, 1]))
    assert np.array_equal(first[1], expected[0][0])
    for action, of_row in zip(actions[2:], expected[1:], strict=True):
        got, others = envs.step(action), undisturbed.step(action)
        assert np.abs(got[0][1].astype(int) - of_row[0]).max() <= 1 and got[3][1] == of_row[3]
        assert np.abs(got[0][[0, 2]].astype(int) - others[0][[0, 2]]).max() <= 1
        assert got[3][[0, 2]].tolist() == others[3][[0, 2]].tolist()


def test_frames_handed_out_are_never_written_to_again(kwargs):
    envs = WorldModelVectorEnv(2, **kwargs, render_mode="rgb_array")
    first = envs.reset(seed=0)[0]
    before, shown = first.copy(), envs.render()
    envs.step(np.array([1, 4]))
    assert np.array_equal(first, before) and np.array_equal(np.stack(shown), before)
    assert len(envs.render()) == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_fpath": "nowhere"}, "model_fpath=nowhere: no weights at nowhere"),
        ({"dataset": "nowhere/levels"}, "dataset=nowhere/levels is no data set; set dataset to the folder of one"),
        ({"temperature": -1}, "temperature is -1.0, expected a value of at least 0"),
        ({"model_fpath": None, "roots": ["nowhere"]}, "or set model_fpath to a run folder"),
        ({"max_steps": 0}, "max_steps is 0, expected at least 1"),
        ({"render_mode": "human"}, "render_mode is 'human', expected rgb_array"),
        ({"windows": 3}, "windows is not a setting of an environment; known are roots"),
        ({"window": 0}, "window is 0, expected a value of at least 1"),
        ({"inference_steps": 4}, "inference_steps=4: guided makes one pass a frame"),
        ({"session_graphs": "true"}, "session_graphs is true, but graphs are recorded on a GPU"),
        ({"device": "cuda:77"}, "device is 'cuda:77'"),
    ],
)
def test_bad_arguments_are_one_line(kwargs, changes, message):
    with pytest.raises((ValueError, OSError)) as caught:
        WorldModelEnv(**kwargs | changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not re.search(r"(dream|play)\.|dataset_name|dpath", str(caught.value)), "its caller has no such key"


def test_an_autoreset_mode_that_gymnasium_does_not_know_is_refused(kwargs):
    with pytest.raises(ValueError, match="autoreset_mode is 'Later', expected one of NextStep, SameStep, Disabled"):
        WorldModelVectorEnv(2, **kwargs, autoreset_mode="Later")


def test_steps_before_a_reset_and_unknown_actions_are_refused(kwargs):
    env, envs = WorldModelEnv(**kwargs), WorldModelVectorEnv(2, **kwargs)
    for early in (lambda: env.step(0), env.render, lambda: envs.step(np.zeros(2, int)), envs.render):
        with pytest.raises(gymnasium.error.ResetNeeded):
            early()
    env.reset(seed=0)
    envs.reset(seed=0)
    with pytest.raises(gymnasium.error.InvalidAction, match="expected 0 to 6"):
        env.step(7)
    with pytest.raises(gymnasium.error.InvalidAction, match="shape"):
        envs.step(np.zeros(3, int))
    with pytest.raises(ValueError, match="must hold 2 booleans"):
        envs.reset(options={"reset_mask": np.array([False, False])})
