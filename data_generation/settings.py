"""What a dataset is made from: the checked form of the yaml files in `configs/`."""

import difflib
import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from data_generation.environment import ACTION_SETS, LARGEST_SIZE, Game, game_names
from data_generation.policy import Policy, RandomPolicy

# These say where and how the work is done; everything else decides which bytes come out.
NOT_OF_THE_CONTENT = ("root_dpath", "n_workers")
LARGEST_LEVEL = 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """One generator config; the meaning of each key is in `configs/coinrun_random.yaml`."""

    root_dpath: str
    name: str
    version: str
    game: str
    distribution_mode: str
    use_backgrounds: bool
    restrict_themes: bool
    paint_vel_info: bool
    action_set: str
    image_size: int
    n_instances: int
    n_steps_max: int
    level_offset: int
    split: str | None
    validation_share: float
    seed: int
    sticky: float
    action_weights: list[float] | None
    agent_fpath: str | None
    agent_epsilon: float
    agent_batch_size: int
    episodes_per_shard: int
    compression: str | None
    n_workers: int

    def __post_init__(self):
        for field in fields(self):
            check_type(field.name, field.type, getattr(self, field.name))
        check_choice("distribution_mode", self.distribution_mode, ("easy", "hard"))
        check_choice("action_set", self.action_set, tuple(ACTION_SETS))
        check_choice("compression", self.compression, (None, "lzf", "gzip", "blosc"))
        check_choice("split", self.split, (None, "train", "validation", "test"))
        check_choice("game", self.game, tuple(game_names()))
        check_range("image_size", self.image_size, 16, LARGEST_SIZE)
        check_range("n_instances", self.n_instances, 1, LARGEST_LEVEL)
        check_range("n_steps_max", self.n_steps_max, 2, 100_000)
        check_range("level_offset", self.level_offset, 0, LARGEST_LEVEL - self.n_instances)
        check_range("validation_share", self.validation_share, 0, 1)
        check_range("seed", self.seed, 0, LARGEST_LEVEL)
        check_range("sticky", self.sticky, 0, 1)
        check_range("agent_epsilon", self.agent_epsilon, 0, 1)
        check_range("agent_batch_size", self.agent_batch_size, 1, 4096)
        check_range("episodes_per_shard", self.episodes_per_shard, 1, 100_000)
        check_range("n_workers", self.n_workers, 1, 1024)
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise ValueError(f"name={self.name!r} must be the name of a folder in root_dpath, without slashes")
        names = ACTION_SETS[self.action_set]
        weights = self.action_weights
        if weights is not None and (len(weights) != len(names) or min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(f"action_weights={weights} must be {len(names)} numbers >= 0, for {' '.join(names)}")
        if self.agent_fpath is not None and not Path(self.agent_fpath).is_file():
            raise ValueError(
                f"agent_fpath={self.agent_fpath} does not exist; set it to a file of data_generation/train_agent.py, "
                "or to null for random actions"
            )

    @property
    def folder(self) -> Path:
        return Path(self.root_dpath) / self.name

    @property
    def simulated(self) -> Game:
        return Game(**{field.name: getattr(self, field.name) for field in fields(Game)})

    @property
    def content(self) -> dict[str, Any]:
        """The settings that decide which bytes come out; an agent counts by what its file holds."""
        content = {key: value for key, value in asdict(self).items() if key not in NOT_OF_THE_CONTENT}
        if self.agent_fpath is None:
            return {key: value for key, value in content.items() if not key.startswith("agent_")}
        del content["agent_fpath"]
        return content | {"agent_sha256": hashlib.sha256(Path(self.agent_fpath).read_bytes()).hexdigest()}

    def policy(self) -> Policy:
        """Who plays: the agent where one is named, else random actions."""
        common = {"seed": self.seed, "sticky": self.sticky, "weights": self.action_weights}
        if self.agent_fpath is None:
            return RandomPolicy(len(ACTION_SETS[self.action_set]), self.n_steps_max, **common)
        from data_generation.agent import AgentPolicy, load_agent  # torch, for agents alone

        agent = load_agent(self.agent_fpath)
        if (agent.game, agent.action_names) != (self.game, ACTION_SETS[self.action_set]):
            raise ValueError(
                f"agent_fpath={self.agent_fpath} plays {agent.game} with {len(agent.action_names)} actions, not "
                f"game={self.game} with action_set={self.action_set}; set another agent or game"
            )
        return AgentPolicy(
            agent, self.n_steps_max, epsilon=self.agent_epsilon, batch_size=self.agent_batch_size, **common
        )

    def levels(self) -> dict[str, range]:
        """The levels of each split: the last share of the range is for validation, unless all are of one split."""
        first, end = self.level_offset, self.level_offset + self.n_instances
        if self.split is not None:
            return {self.split: range(first, end)}
        middle = end - round(self.n_instances * self.validation_share)
        splits = {"train": range(first, middle), "validation": range(middle, end)}
        return {split: levels for split, levels in splits.items() if len(levels)}


def check_type(key: str, expected: Any, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        str: isinstance(value, str),
        bool: isinstance(value, bool),
        int: is_number and isinstance(value, int),
        float: is_number,
        str | None: value is None or isinstance(value, str),
        int | None: value is None or (is_number and isinstance(value, int)),
        float | None: value is None or is_number,
        list[int]: isinstance(value, list) and all(isinstance(item, int) for item in value),
        list[float] | None: value is None
        or (isinstance(value, list) and all(isinstance(item, int | float) for item in value)),
    }[expected]
    if not fits:
        raise ValueError(f"{key}={value!r} must be {getattr(expected, '__name__', expected)}")


def check_choice(key: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        nearest = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"{key}={value} is not one of {', '.join(str(choice or 'null') for choice in choices)}{hint}")


def check_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{key}={value} is outside {low} to {high}")
