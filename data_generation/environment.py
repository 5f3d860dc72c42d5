"""Procgen's simulator, one level at a time: `Level` gives frames, takes our action indices and returns rewards."""

import contextlib
import io
from collections.abc import Sequence
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


_idle: dict[Game, list] = {}  # of this process: gym3's objects whose level is over


def simulator_of(game: Game, level: int):
    """A new simulator, showing the level's first frame.

    A simulator per level is exact by construction: with `num_levels=1` Procgen can only draw `start_level`. With
    `num_levels=0` it would ignore it. Making one takes 0.2 ms (its pictures are loaded once per process), gym3's object
    around it 0.4 ms, as much as ten frames: so that stays, and gets a new simulator inside.
    """
    if _idle.get(game):
        simulator = _idle[game].pop()
        _exchange(simulator, level)
        return simulator
    return procgen().ProcgenGym3Env(
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
        render_mode=None if game.image_size == NATIVE_SIZE else "rgb_array",
    )


def _exchange(simulator, level: int) -> None:
    """Close the simulator inside gym3's object and make another, by the calls of gym3's constructor."""
    library, options = simulator._c_lib, simulator._options | {"start_level": level}
    converted, simulator._options_keepalives = simulator._convert_options(simulator._ffi, library, options)
    library.libenv_close(simulator._c_env)
    simulator._c_env = library.libenv_make(simulator.num, converted[0])
    library.libenv_set_buffers(simulator._c_env, simulator._c_buffers)


class Level:
    """One level of a game, from its first frame to the end of its first episode.

    `frame` is the current picture, (H, W, 3) uint8: always the same array, which the next step overwrites.
    """

    def __init__(self, game: Game, level: int):
        self._is_native = game.image_size == NATIVE_SIZE
        self._game = game
        self._simulator = simulator = simulator_of(game, level)
        # The arrays that the simulator itself reads and writes: gym3's `act` and `observe` copy them at every step,
        # which takes a tenth of the time (`reuse_arrays` would spare half of that, but Procgen does not pass it on).
        self._pressed = memoryview(simulator._ac["action"])
        self._reward, self._is_first = memoryview(simulator._rew), memoryview(simulator._first)
        self._buttons = game.buttons.tolist()
        if self._is_native:
            self.frame = simulator._ob["rgb"][0]
        else:
            self.frame = np.empty(game.picture_shape, np.uint8)
            self._scale()

    def play(self, actions: Sequence[int], frames: np.ndarray) -> tuple[list[float], bool]:
        """Take actions one after the other, at most to the end of the episode; frames[i] becomes what i is taken at.

        Returns the reward that follows each action taken, and whether the episode ended. After the end `frame` shows
        the next episode already: Procgen resets by itself and hands the last reward over together with that frame.
        """
        # Nothing is looked up twice in this loop: after the simulator's own work every object has left the processor's
        # fast cache, and a plain method call per step costs 2 % of the frame rate.
        frame, pressed, reward, is_first = self.frame, self._pressed, self._reward, self._is_first
        press, simulator, buttons = self._simulator._c_lib.libenv_act, self._simulator._c_env, self._buttons
        is_native = self._is_native
        rewards: list[float] = []
        keep = rewards.append
        for number, action in enumerate(actions):
            frames[number] = frame
            pressed[0] = buttons[action]
            press(simulator)  # without threads it fills the arrays itself: there is no observing to wait for
            keep(reward[0])
            if not is_native:
                self._scale()
            if is_first[0]:
                return rewards, True
        return rewards, False

    def step(self, action: int) -> tuple[float, bool]:
        """Take one action; the reward that follows it, and whether the episode ended."""
        rewards, has_ended = self.play([action], np.empty((1, *self.frame.shape), np.uint8))
        return rewards[0], has_ended

    def was_completed(self) -> bool:
        """Whether the episode that ended with the last step reached its goal (CoinRun: the coin)."""
        return bool(self._simulator.get_info()[0]["prev_level_complete"])

    def state(self) -> bytes:
        """All that decides how the level goes on, some 40 kB; `restore` leads back to it."""
        return self._simulator.get_state()[0]

    def restore(self, state: bytes) -> None:
        """Go on from where this level, or another simulator of it, was at `state`."""
        self._simulator.set_state([state])
        self._simulator.observe()
        if not self._is_native:
            self._scale()

    def close(self) -> None:
        """Nothing of the level, its `frame` included, is to be used any more."""
        _idle.setdefault(self._game, []).append(self._simulator)

    def _scale(self) -> None:
        picture = Image.fromarray(self._simulator.get_info()[0]["rgb"])
        self.frame[:] = picture.resize(self.frame.shape[1::-1], Image.Resampling.BOX)
