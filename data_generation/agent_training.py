"""Trains an agent with PPO (Schulman et al., 2017) from stable-baselines3, and measures it on levels it never saw."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize
from torch import Tensor
from tqdm import tqdm

from data_generation.agent import NUM_LOOKS, Agent, AgentNetwork, AgentPolicy, Architecture, Eyes
from data_generation.agent_settings import AgentSettings
from data_generation.environment import Game, procgen
from data_generation.policy import Policy, RandomPolicy
from data_generation.recording import record_episodes

EVALUATION_BATCH = 50
NUM_RESAMPLES = 10_000


def train_agent(settings: AgentSettings, keep: Callable[[Agent], Any]) -> Agent:
    """Train until `num_decisions` or `max_minutes`, whichever comes first; Ctrl-C keeps what was learned so far.

    keep: is given the agent as it is every `save_every_minutes`, so that no accident takes more than that.
    """
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.num_threads or os.cpu_count() or 1)
    games = VecNormalize(VecMonitor(Games(settings)), norm_obs=False, gamma=settings.gamma)
    progress = Progress(settings, keep)
    learner = PPO(
        "CnnPolicy",
        games,
        learning_rate=lambda _: settings.learning_rate * max(progress.remaining(), 0.01),
        n_steps=settings.rollout_length,
        batch_size=settings.batch_size,
        n_epochs=settings.epochs,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip_range,
        ent_coef=settings.entropy_coefficient,
        policy_kwargs={
            "features_extractor_class": TrainedEyes,
            "features_extractor_kwargs": {"architecture": architecture(settings), "bf16": settings.bf16},
            "net_arch": [],
            "normalize_images": False,
        },
        stats_window_size=1000,
        device=settings.device,
        seed=settings.seed,
    )
    learner.set_logger(Logger(None, []))  # its own would leave an empty folder behind for every training
    with progress:
        try:
            learner.learn(settings.num_decisions, callback=progress)
        except KeyboardInterrupt:
            tqdm.write("interrupted: keeping the agent as it is now")
    games.close()
    return trained_so_far(settings, learner, progress.seconds())


def trained_so_far(settings: AgentSettings, learner: PPO, seconds: float) -> Agent:
    """A copy of what the learner would play as now."""
    network = AgentNetwork(architecture(settings))
    network.eyes.load_state_dict(learner.policy.features_extractor.eyes.state_dict())
    network.head.load_state_dict(learner.policy.action_net.state_dict())
    history = {
        "config": {key: value for key, value in vars(settings).items() if key != "output_fpath"},
        "decisions": learner.num_timesteps,
        "minutes": round(seconds / 60, 1),
    }
    return Agent(
        network.eval().requires_grad_(False),
        settings.game,
        settings.played.action_names,
        settings.decision_interval,
        history,
    )


def check_device(device: str) -> None:
    """Raise ValueError where torch does not see it: the library would train on the CPU and say nothing."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device != "cpu" and int(device.partition(":")[2] or 0) >= count:
        raise ValueError(
            f"device={device}, but torch sees {count} GPUs here; set --device=cpu, or install a torch for it"
        )


def architecture(settings: AgentSettings) -> Architecture:
    return Architecture(
        image_size=settings.played.image_size,
        num_actions=len(settings.played.action_names),
        channels=tuple(settings.channels),
        blocks=settings.blocks,
        stem_kernel=settings.stem_kernel,
        stem_stride=settings.stem_stride,
        num_features=settings.num_features,
    )


class TrainedEyes(BaseFeaturesExtractor):
    """The agent's `Eyes` as the library wants them, in bf16 while they learn."""

    def __init__(self, observation_space: spaces.Box, architecture: Architecture, bf16: bool):
        super().__init__(observation_space, architecture.num_features)
        self.eyes, self.bf16 = Eyes(architecture), bf16

    def forward(self, pictures: Tensor) -> Tensor:
        with torch.autocast(pictures.device.type, torch.bfloat16, enabled=self.bf16):
            return self.eyes(pictures).float()


class Games(VecEnv):
    """Many Procgen games side by side, as the library steps them: one step is one decision, held for its frames.

    Observations are (2·3, H, W) uint8: the picture now, and the one at the previous decision.
    """

    def __init__(self, settings: AgentSettings):
        game = settings.played
        self._buttons, self._interval = game.buttons, settings.decision_interval
        self._simulator = procgen().ProcgenGym3Env(
            num=settings.num_games,
            env_name=game.game,
            distribution_mode=game.distribution_mode,
            use_backgrounds=game.use_backgrounds,
            restrict_themes=game.restrict_themes,
            paint_vel_info=game.paint_vel_info,
            num_levels=settings.num_levels,
            start_level=settings.first_level,
            rand_seed=settings.seed,
            num_threads=settings.num_threads or os.cpu_count() or 1,
        )
        size = game.image_size
        self._before = np.zeros((settings.num_games, 3, size, size), np.uint8)
        picture = spaces.Box(0, 255, (3 * NUM_LOOKS, size, size), np.uint8)
        super().__init__(settings.num_games, picture, spaces.Discrete(len(game.action_names)))

    def reset(self) -> np.ndarray:
        return self._look(np.ones(self.num_envs, bool))

    def step_async(self, actions: np.ndarray) -> None:
        self._pressed = self._buttons[actions]

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        rewards, have_ended = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        for _ in range(self._interval):
            self._simulator.act(self._pressed)
            received, _, is_first = self._simulator.observe()
            rewards += np.where(have_ended, 0, received)  # what comes after the end belongs to the next episode
            have_ended |= is_first
        return self._look(have_ended), rewards, have_ended, [{} for _ in range(self.num_envs)]

    def _look(self, is_new: np.ndarray) -> np.ndarray:
        now = self._simulator.observe()[1]["rgb"].transpose(0, 3, 1, 2)
        seen = np.concatenate([now, np.where(is_new[:, None, None, None], now, self._before)], axis=1)
        self._before = seen[:, :3]
        return seen

    def close(self) -> None:
        self._simulator.close()

    # The library asks its environments for attributes; these games have none of their own.
    def get_attr(self, attr_name: str, indices=None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices=None) -> None:
        raise AttributeError(f"these games have no {attr_name} to set")

    def env_method(self, method_name: str, *args, indices=None, **kwargs) -> list[Any]:
        raise AttributeError(f"these games have no method {method_name}")

    def env_is_wrapped(self, wrapper_class, indices=None) -> list[bool]:
        return [False] * self.num_envs


class Progress(BaseCallback):
    """Shows how training goes, hands out the agent now and then, ends it at the time limit, knows how much remains."""

    def __init__(self, settings: AgentSettings, keep: Callable[[Agent], Any]):
        super().__init__()
        self._settings, self._keep = settings, keep
        self._num_decisions, self._minutes = settings.num_decisions, settings.max_minutes
        self._entropy_coefficient = settings.entropy_coefficient
        self._started = self._kept = time.monotonic()

    def __enter__(self) -> "Progress":
        self._bar = tqdm(total=self._num_decisions, unit="decision", unit_scale=True, mininterval=1)
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def remaining(self) -> float:
        """Share of the training that is still to come, by decisions or by the clock, whichever is less."""
        by_count = 1 - self.num_timesteps / self._num_decisions
        by_clock = 1.0 if self._minutes is None else 1 - self.seconds() / (60 * self._minutes)
        return min(by_count, by_clock)

    def _on_step(self) -> bool:
        self._bar.update(self.num_timesteps - self._bar.n)
        return self.remaining() > 0

    def _on_rollout_end(self) -> None:
        self.model.ent_coef = self._entropy_coefficient * max(self.remaining(), 0)
        episodes = self.model.ep_info_buffer
        if episodes:
            mean_return = np.mean([episode["r"] for episode in episodes])
            left = "" if self._minutes is None else f", at most {self._minutes - self.seconds() / 60:.0f} min left"
            self._bar.set_postfix_str(f"return {mean_return:.2f}{left}", refresh=False)
        if time.monotonic() - self._kept >= 60 * self._settings.save_every_minutes:
            self._kept = time.monotonic()
            try:
                self._keep(trained_so_far(self._settings, self.model, self.seconds()))
            except OSError as error:  # a disk may be full for a while: that must not cost the training itself
                tqdm.write(f"{error}; the training goes on, next try in {self._settings.save_every_minutes:g} min")


# ------------------------------------------------------------------------------------------------------- how good it is


class Score(NamedTuple):
    """Of one player on a set of levels: means with 95 % bootstrap intervals over levels."""

    name: str
    completed: tuple[float, float, float]  # share of levels, in [0, 1]: mean, low, high
    returned: tuple[float, float, float]  # sum of an episode's rewards
    num_frames: float  # mean length of an episode


def evaluate_players(settings: AgentSettings, agent: Agent) -> list[Score]:
    """The agent, random actions and, where there is such an action, jumping right all the time, on the same levels."""
    steps, num_actions = settings.evaluation_steps, len(agent.action_names)
    common = {"seed": settings.seed, "sticky": 0.0, "weights": None}
    players: dict[str, Policy] = {"random actions": RandomPolicy(num_actions, steps, **common)}
    if "RIGHT_JUMP" in agent.action_names:
        only = [float(name == "RIGHT_JUMP") for name in agent.action_names]
        players["always RIGHT_JUMP"] = RandomPolicy(num_actions, steps, **common | {"weights": only})
    for name, epsilon, greedy in (("agent", 0.0, False), ("agent, most likely action", 0.0, True)):
        players[name] = AgentPolicy(agent, steps, epsilon=epsilon, greedy=greedy, batch_size=EVALUATION_BATCH, **common)
    levels = range(settings.evaluation_first_level, settings.evaluation_first_level + settings.evaluation_levels)
    with tqdm(total=len(players) * len(levels), unit="level") as bar:
        return [score(name, settings.played, policy, levels, steps, bar.update) for name, policy in players.items()]


def score(
    name: str, game: Game, policy: Policy, levels: range, num_steps: int, tell: Callable[[int], Any] = lambda _: None
) -> Score:
    """Play every level once and summarise."""
    completed, returned, lengths = [], [], []
    for first in range(0, len(levels), policy.batch_size):
        group = levels[first : first + policy.batch_size]
        for episode in record_episodes(game, policy, group, num_steps):
            completed.append(episode.end_reason == "coin")
            returned.append(float(episode.rewards.sum()))
            lengths.append(len(episode.frames))
        tell(len(group))
    return Score(name, _interval(completed), _interval(returned), float(np.mean(lengths)))


def _interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and its 95 % bootstrap interval (Efron, 1979)."""
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(0).integers(len(array), size=(NUM_RESAMPLES, len(array)), dtype=np.int32)
    low, high = np.quantile(array[picks].mean(axis=1), [0.025, 0.975])
    return float(array.mean()), float(low), float(high)
