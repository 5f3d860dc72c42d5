"""Procgen's simulator, one level at a time: `Level` gives frames, takes our action indices and returns rewards."""

import contextlib
import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

# Procgen's own 15 button combinations, in its order.
PROCGEN_BUTTONS = (
    *("LEFT_DOWN", "LEFT", "LEFT_UP", "DOWN", "NOOP", "UP", "RIGHT_DOWN", "RIGHT", "RIGHT_UP"),
    *("D", "A", "W", "S", "Q", "E"),
)
# CoinRun's seven actions, as the original game numbers them, and the button that does the same in Procgen.
COINRUN_ACTIONS = {
    "NOOP": "NOOP",
    "RIGHT": "RIGHT",
    "LEFT": "LEFT",
    "JUMP": "UP",
    "RIGHT_JUMP": "RIGHT_UP",
    "LEFT_JUMP": "LEFT_UP",
    "DOWN": "DOWN",
}
ACTION_SETS = {"coinrun7": tuple(COINRUN_ACTIONS), "procgen15": PROCGEN_BUTTONS}
NATIVE_SIZE = 64
LARGEST_SIZE = 512  # of Procgen's picture for people, from which every other size is scaled down


@dataclass(frozen=True)
class Game:
    """What is simulated and how it looks; the level comes on top."""

    game: str
    distribution_mode: str
    use_backgrounds: bool
    restrict_themes: bool
    paint_vel_info: bool
    action_set: str
    image_size: int

    @property
    def action_names(self) -> tuple[str, ...]:
        return ACTION_SETS[self.action_set]

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, 3)

    @property
    def buttons(self) -> np.ndarray:
        """Procgen's button combination for each of our action indices."""
        names = COINRUN_ACTIONS.values() if self.action_set == "coinrun7" else PROCGEN_BUTTONS
        return np.array([PROCGEN_BUTTONS.index(name) for name in names], dtype=np.int32)


@cache
def procgen():
    """The package, imported when a simulator is first needed, without the notice that its old `gym` prints."""
    with contextlib.redirect_stderr(io.StringIO()):
        import procgen
    return procgen


def game_names() -> list[str]:
    return list(procgen().env.ENV_NAMES)


class Level:
    """One level of a game, from its first frame to the end of its first episode.

    A new simulator per level costs under a millisecond (its pictures are loaded once per process) and is exact by
    construction: with `num_levels=1` Procgen can only draw `start_level`. With `num_levels=0` it would ignore it.
    `frame` is the current picture, (H, W, 3) uint8.
    """

    def __init__(self, game: Game, level: int):
        self._is_native = game.image_size == NATIVE_SIZE
        self._size = (game.image_size, game.image_size)
        self._buttons = game.buttons
        self._simulator = procgen().ProcgenGym3Env(
            num=1,
            env_name=game.game,
            distribution_mode=game.distribution_mode,
            use_backgrounds=game.use_backgrounds,
            restrict_themes=game.restrict_themes,
            paint_vel_info=game.paint_vel_info,
            num_levels=1,
            start_level=level,
            rand_seed=0,  # draws only among the one level; null would take it from the system
            num_threads=0,  # in this thread: three times as fast for one game as handing over to another
            render_mode=None if self._is_native else "rgb_array",
        )
        self.frame = self._picture(self._simulator.observe()[1])

    def step(self, action: int) -> tuple[float, bool]:
        """Take an action; the reward that follows it, and whether the episode ended.

        After the end `frame` shows the next episode already: Procgen resets by itself and hands the last reward over
        together with that frame.
        """
        self._simulator.act(self._buttons[action : action + 1])
        rewards, observation, is_first = self._simulator.observe()
        self.frame = self._picture(observation)
        return float(rewards[0]), bool(is_first[0])

    def was_completed(self) -> bool:
        """Whether the episode that ended with the last step reached its goal (CoinRun: the coin)."""
        return bool(self._simulator.get_info()[0]["prev_level_complete"])

    def close(self) -> None:
        self._simulator.close()

    def _picture(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        if self._is_native:
            return observation["rgb"][0]
        picture = Image.fromarray(self._simulator.get_info()[0]["rgb"])
        return np.asarray(picture.resize(self._size, Image.Resampling.BOX))
