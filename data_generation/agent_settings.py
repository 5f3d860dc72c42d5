"""How an agent is trained: the checked form of the yaml files in `configs/agents/`."""

import re
from dataclasses import dataclass, fields

from data_generation.environment import ACTION_SETS, NATIVE_SIZE, Game, game_names
from data_generation.settings import LARGEST_LEVEL, check_choice, check_range, check_type


@dataclass(frozen=True)
class AgentSettings:
    """One training of an agent; the meaning of each key is in `configs/agents/coinrun_small.yaml`."""

    output_fpath: str
    game: str
    distribution_mode: str
    use_backgrounds: bool
    restrict_themes: bool
    paint_vel_info: bool
    action_set: str
    first_level: int
    num_levels: int
    channels: list[int]
    blocks: int
    stem_kernel: int
    stem_stride: int
    num_features: int
    decision_interval: int
    num_decisions: int
    max_minutes: float | None
    num_games: int
    rollout_length: int
    epochs: int
    batch_size: int
    learning_rate: float
    gamma: float
    gae_lambda: float
    clip_range: float
    entropy_coefficient: float
    bf16: bool
    seed: int
    device: str
    num_threads: int | None
    evaluation_levels: int
    evaluation_first_level: int
    evaluation_steps: int
    save_every_minutes: float = 5.0  # agents that were trained before there was this key do not name it

    def __post_init__(self):
        for field in fields(self):
            check_type(field.name, field.type, getattr(self, field.name))
        check_choice("game", self.game, tuple(game_names()))
        check_choice("distribution_mode", self.distribution_mode, ("easy", "hard"))
        check_choice("action_set", self.action_set, tuple(ACTION_SETS))
        check_range("num_levels", self.num_levels, 1, LARGEST_LEVEL)
        check_range("first_level", self.first_level, 0, LARGEST_LEVEL - self.num_levels)
        check_range("evaluation_levels", self.evaluation_levels, 2, 100_000)
        check_range("evaluation_first_level", self.evaluation_first_level, 0, LARGEST_LEVEL - self.evaluation_levels)
        for key in ("blocks", "stem_kernel", "stem_stride", "num_features", "decision_interval", "num_decisions"):
            check_range(key, getattr(self, key), 1, 2**40)
        for key in ("num_games", "rollout_length", "epochs", "batch_size", "evaluation_steps"):
            check_range(key, getattr(self, key), 1, 2**24)
        for key in ("gamma", "gae_lambda", "clip_range", "entropy_coefficient", "learning_rate"):
            check_range(key, getattr(self, key), 0, 1)
        if self.num_threads is not None:
            check_range("num_threads", self.num_threads, 1, 4096)
        check_range("save_every_minutes", self.save_every_minutes, 0, 2**24)
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise ValueError(f"max_minutes={self.max_minutes} must be above 0, or null for no limit")
        if re.fullmatch(r"cpu|cuda(:\d+)?", self.device) is None:
            raise ValueError(f"device={self.device} is not cpu, cuda or cuda:N")
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels={self.channels} must be at least one width of at least 1")
        if self.batch_size > self.num_games * self.rollout_length:
            raise ValueError(
                f"batch_size={self.batch_size} is more than one rollout holds: num_games={self.num_games} × "
                f"rollout_length={self.rollout_length}"
            )
        held_out = range(self.evaluation_first_level, self.evaluation_first_level + self.evaluation_levels)
        if held_out.start < self.first_level + self.num_levels and self.first_level < held_out.stop:
            raise ValueError(
                f"levels {held_out.start} to {held_out.stop - 1} of the evaluation are among the training levels "
                f"({self.first_level} to {self.first_level + self.num_levels - 1}); set evaluation_first_level"
            )

    @property
    def played(self) -> Game:
        return Game(
            game=self.game,
            distribution_mode=self.distribution_mode,
            use_backgrounds=self.use_backgrounds,
            restrict_themes=self.restrict_themes,
            paint_vel_info=self.paint_vel_info,
            action_set=self.action_set,
            image_size=NATIVE_SIZE,
        )
