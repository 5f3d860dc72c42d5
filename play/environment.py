"""A world as a Gymnasium environment, registered as `lamp/CoinRunDream-v0` where this module is imported.

    import gymnasium, play.environment
    env = gymnasium.make("lamp/CoinRunDream-v0", model_fpath="outputs/…")
    envs = gymnasium.make_vec("lamp/CoinRunDream-v0", num_envs=16, model_fpath="outputs/…")

Episodes begin with the first frame of a held-out episode, drawn by the seed, and end after `max_steps` (truncated).
Rewards are 0.0 and nothing terminates: no world here predicts rewards or ends. Add your own with a wrapper.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from omegaconf import OmegaConf
from PIL import Image

from data.pictures import open_image
from models.session import Session
from play import plans
from play.hall import choose_device
from play.library import Library
from play.player import as_trained, to_picture
from play.prompts import fit, open_held_out
from training.settings import DreamSettings

ID = "lamp/CoinRunDream-v0"
DEFAULTS = Path(__file__).resolve().parent.parent / "configs" / "dream" / "default.yaml"
# Keys of that file that an environment takes; the others are about films.
KEYS = ("roots", "tokenizer_fpath", "device", "inference_steps", "temperature", "top_k", "window")
MAX_STEPS = 256  # of an episode; CoinRun's own end after 1,000
FPS = 15
HIGHEST_SEED = 2**31


class Beginning(NamedTuple):
    """How one episode begins."""

    picture: np.ndarray  # (H, W, 3) uint8
    seed: int  # of the dream's noise
    info: dict[str, Any]


class Dreams:
    """What the single and the vector environment share: a world, its prompts, its spaces."""

    def __init__(self, model_fpath: str | None, dataset: str | None, settings: dict[str, Any]):
        self._settings = settings_of(model_fpath, dataset, settings)
        self._device = choose_device(self._settings.device, "device")
        library = Library(self._settings, self._device)
        entry = library.choose()
        self._sampling = plans.sampling_of(self._settings, entry)
        self._episodes = open_held_out(entry, self._settings)
        self._image_size = entry.image_size
        self._world = library.load(entry)
        self._window = plans.window_of(self._settings, entry, self._world)
        self.observation_space = Box(0, 255, (*entry.image_size, 3), np.uint8)
        self.action_space = Discrete(entry.num_actions)

    def beginning(self, generator: np.random.Generator, options: dict[str, Any] | None) -> Beginning:
        """An episode's first frame, drawn by the generator unless `options["prompt"]` is given, and its noise."""
        episode, seed = generator.integers(self._episodes.num_episodes), int(generator.integers(HIGHEST_SEED))
        prompt = (options or {}).get("prompt")
        if prompt is not None:
            return Beginning(fit(_image(prompt), self._image_size), seed, {})
        first = np.array(self._episodes.frames(episode, 0, 1)[0])
        info = {"episode": int(episode), "level": int(self._episodes.level_seeds[episode])}
        return Beginning(fit(Image.fromarray(first), self._image_size), seed, info)

    def begin(self, beginnings: Sequence[Beginning]) -> Session:
        pictures = torch.from_numpy(np.stack([beginning.picture for beginning in beginnings])).to(self._device)
        with as_trained(self._device):
            return self._world.start(
                pictures.permute(0, 3, 1, 2)[:, None].float() / 255,
                sampling=self._sampling,
                seeds=torch.tensor([beginning.seed for beginning in beginnings], device=self._device),
                window=self._window,
            )

    def step(self, session: Session, actions: np.ndarray) -> np.ndarray:
        """actions (N,) → frames (N, H, W, 3) uint8."""
        if not ((actions >= 0) & (actions < self.action_space.n)).all():
            raise InvalidAction(f"actions are {actions.tolist()}, expected 0 to {self.action_space.n - 1}")
        with as_trained(self._device):
            frames = session.step(torch.from_numpy(actions.astype(np.int64)).to(self._device))
        return np.stack([to_picture(frame) for frame in frames])


class WorldModelEnv(gymnasium.Env):
    """One dream. Observations are (H, W, 3) uint8 frames, actions the world's own, rewards 0.0.

    model_fpath: run folder, step folder or file of a world; None for the newest one. dataset: folder of a data set
    whose held-out first frames begin episodes; None for the one that the world was tested on. max_steps: of an episode.
    settings: those of KEYS, whose values are in `configs/dream/default.yaml`. Raises ValueError or OSError.

    `reset(options={"prompt": picture})` begins with a picture: a file, a PIL image or an (H, W, 3) uint8 array.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012 - Gymnasium's own attribute

    def __init__(
        self,
        model_fpath: str | None = None,
        dataset: str | None = None,
        *,
        max_steps: int = MAX_STEPS,
        render_mode: str | None = None,
        **settings: Any,
    ):
        _check(max_steps, render_mode)
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


class _Group(NamedTuple):
    """Rows whose episodes began together: one batch."""

    rows: np.ndarray
    session: Session


class WorldModelVectorEnv(VectorEnv):
    """`num_envs` dreams in one batch: row i is a `WorldModelEnv` seeded with seed + i, at a fraction of its cost.

    Arguments as there; `options["prompt"]` is for all rows that are reset. A row whose episode was over begins the
    next one at the following step, whose action it ignores (AutoresetMode.NEXT_STEP); `options["reset_mask"]` resets
    some rows only. Rows that began together are stepped together.
    """

    def __init__(
        self,
        num_envs: int = 1,
        model_fpath: str | None = None,
        dataset: str | None = None,
        *,
        max_steps: int = MAX_STEPS,
        render_mode: str | None = None,
        **settings: Any,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}, expected at least 1")
        _check(max_steps, render_mode)
        self._dreams = Dreams(model_fpath, dataset, settings)
        self.num_envs, self.render_mode, self._max_steps = num_envs, render_mode, max_steps
        self.metadata = WorldModelEnv.metadata | {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = self._dreams.observation_space
        self.single_action_space = self._dreams.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators = [seeding.np_random()[0] for _ in range(num_envs)]
        self._groups: list[_Group] = []
        self._is_over = np.zeros(num_envs, bool)
        self._pictures = np.zeros(self.observation_space.shape, np.uint8)

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """One generator for each row."""
        return tuple(self._generators)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        seeds = [seed + row for row in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None and len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} values, expected one for each of {self.num_envs} rows")
        rows = self._rows_to_reset(options)
        for row in rows:
            if seeds is not None and seeds[row] is not None:
                self._generators[row] = seeding.np_random(seeds[row])[0]
        infos = self._begin(rows, options)
        return self._pictures.copy(), infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            raise InvalidAction(f"actions have shape {actions.shape}, expected {(self.num_envs,)}")
        if not self._groups:
            raise ResetNeeded("call reset() before step()")
        over = np.flatnonzero(self._is_over)
        going = [group for group in self._groups if not self._is_over[group.rows[0]]]
        infos = self._begin(over, None) if len(over) else {}
        for group in going:
            self._pictures[group.rows] = self._dreams.step(group.session, actions[group.rows])
            self._is_over[group.rows] = group.session.num_frames > self._max_steps
        never = np.zeros(self.num_envs, bool)
        return self._pictures.copy(), np.zeros(self.num_envs), never, self._is_over.copy(), infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        if not self._groups:
            raise ResetNeeded("call reset() before render()")
        return tuple(self._pictures.copy()) if self.render_mode == "rgb_array" else None

    def _rows_to_reset(self, options: dict[str, Any] | None) -> np.ndarray:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return np.arange(self.num_envs)
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ValueError(f"options['reset_mask'] must hold {self.num_envs} booleans of which one is true")
        if not self._groups and not mask.all():
            raise ResetNeeded("call reset() for all rows before resetting some")
        return np.flatnonzero(mask)

    def _begin(self, rows: np.ndarray, options: dict[str, Any] | None) -> dict[str, Any]:
        """Begin these rows' episodes in a batch of their own; the others go on."""
        beginnings = [self._dreams.beginning(self._generators[row], options) for row in rows]
        session = self._dreams.begin(beginnings)
        self._groups = [*(rest for group in self._groups if (rest := _without(group, rows))), _Group(rows, session)]
        self._is_over[rows] = False
        infos: dict[str, Any] = {}
        for row, beginning in zip(rows, beginnings, strict=True):
            self._pictures[row] = beginning.picture
            infos = self._add_info(infos, beginning.info, row)
        return infos


def _without(group: _Group, rows: np.ndarray) -> _Group | None:
    """What is left of a group without these rows."""
    stays = ~np.isin(group.rows, rows)
    if stays.all():
        return group
    if not stays.any():
        return None
    kept = torch.from_numpy(np.flatnonzero(stays)).to(group.session.seeds.device)
    return _Group(group.rows[stays], group.session.select(kept))


def settings_of(model_fpath: str | None, dataset: str | None, changes: dict[str, Any]) -> DreamSettings:
    """The settings of `configs/dream/default.yaml` with these in their place. Raises ValueError for unknown ones."""
    for key in changes.keys() - set(KEYS):
        raise ValueError(f"{key} is not a setting of an environment; known are {', '.join(KEYS)}")
    if dataset is not None:
        folder = Path(dataset)
        changes = changes | {"dataset_root_dpath": str(folder.parent), "dataset_name": folder.name}
    settings = DreamSettings.from_config(OmegaConf.load(DEFAULTS))
    return replace(settings, model_fpath=None if model_fpath is None else str(model_fpath), **changes)


def _check(max_steps: int, render_mode: str | None) -> None:
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}, expected at least 1")
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode is {render_mode!r}, expected rgb_array or None")


def _image(prompt: Any) -> Image.Image:
    if isinstance(prompt, Image.Image):
        return prompt
    if isinstance(prompt, str | Path):
        return open_image(Path(prompt))
    if isinstance(prompt, np.ndarray) and prompt.dtype == np.uint8 and prompt.ndim == 3 and prompt.shape[2] == 3:
        return Image.fromarray(prompt)
    raise ValueError("options['prompt'] must be a picture's file, a PIL image or an (H, W, 3) uint8 array")


gymnasium.register(
    ID,
    entry_point="play.environment:WorldModelEnv",
    vector_entry_point="play.environment:WorldModelVectorEnv",
)
