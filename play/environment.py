"""A world as a Gymnasium environment, registered as `lamp/CoinRunDream-v0` where this module is imported.

    import gymnasium, play.environment
    env = gymnasium.make("lamp/CoinRunDream-v0", model_fpath="outputs/…")
    envs = gymnasium.make_vec("lamp/CoinRunDream-v0", num_envs=16, model_fpath="outputs/…")

Episodes begin with the first frame of a held-out episode, drawn by the seed, and end after `max_steps` (truncated).
Rewards are 0.0 and nothing terminates: no world here predicts rewards or ends. Add your own with a wrapper.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from models.session import Session
from play.gym_world import MAX_STEPS, METADATA, Dreams, check
from play.vector_environment import WorldModelVectorEnv

__all__ = ["ID", "WorldModelEnv", "WorldModelVectorEnv"]
ID = "lamp/CoinRunDream-v0"


class WorldModelEnv(gymnasium.Env):
    """One dream. Observations are (H, W, 3) uint8 frames, actions the world's own, rewards 0.0.

    model_fpath: run folder, step folder or file of a world; None for the newest one. dataset: folder of a data set
    whose held-out first frames begin episodes; None for the one that the world was tested on. max_steps: of an episode.
    settings: those of KEYS, whose values are in `configs/dream/default.yaml`. Raises ValueError or OSError.

    `reset(options={"prompt": picture})` begins with a picture: a file, a PIL image or an (H, W, 3) uint8 array.
    """

    metadata = METADATA

    def __init__(
        self,
        model_fpath: str | None = None,
        dataset: str | None = None,
        *,
        max_steps: int = MAX_STEPS,
        render_mode: str | None = None,
        **settings: Any,
    ):
        check(max_steps, render_mode)
        self._dreams = Dreams(model_fpath, dataset, settings)
        self.observation_space, self.action_space = self._dreams.observation_space, self._dreams.action_space
        self.render_mode = render_mode
        self._max_steps = max_steps
        self._session: Session | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        beginning = self._dreams.beginning(self.np_random, options)
        self._session = self._dreams.begin([beginning])
        self._picture = beginning.picture
        return self._picture.copy(), beginning.info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._session is None:
            raise ResetNeeded("call reset() before step()")
        self._picture = self._dreams.step(self._session, np.array([action]))[0]
        is_over = self._session.num_frames > self._max_steps  # the prompt is a frame, too
        return self._picture.copy(), 0.0, False, is_over, {}

    def render(self) -> np.ndarray | None:
        if self._session is None:
            raise ResetNeeded("call reset() before render()")
        return self._picture.copy() if self.render_mode == "rgb_array" else None


gymnasium.register(
    ID,
    entry_point="play.environment:WorldModelEnv",
    vector_entry_point="play.environment:WorldModelVectorEnv",
)
