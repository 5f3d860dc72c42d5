"""A world behind Gymnasium's interfaces: what the single and the vector environment share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.error import InvalidAction
from gymnasium.spaces import Box, Discrete
from omegaconf import OmegaConf
from PIL import Image

from data.episodes import Episodes, read_info
from data.pictures import open_image
from models.session import Session
from play import plans
from play.hall import choose_device
from play.library import Entry, Library
from play.player import as_trained, to_picture
from play.prompts import fit, open_held_out, source_of
from training.settings import DreamSettings

DEFAULTS = Path(__file__).resolve().parent.parent / "configs" / "dream" / "default.yaml"
# Keys of that file that an environment takes; the others are about films.
KEYS = ("roots", "tokenizer_fpath", "device", "session_graphs", "inference_steps", "temperature", "top_k", "window")
MAX_STEPS = 256  # of an episode; CoinRun's own end after 1,000
FPS = 15
HIGHEST_SEED = 2**31
METADATA = {"render_modes": ["rgb_array"], "render_fps": FPS}


@dataclass(frozen=True)
class Arguments(DreamSettings):
    """The settings of a film as far as an environment takes them, under the names of its arguments."""

    def key(self, name: str) -> str:
        return "dataset" if name == "dataset_name" else name


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
        self._episodes = open_episodes(entry, self._settings)
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


def settings_of(model_fpath: str | None, dataset: str | None, changes: dict[str, Any]) -> Arguments:
    """The settings of `configs/dream/default.yaml` with these in their place. Raises ValueError for unknown ones."""
    for key in changes.keys() - set(KEYS):
        raise ValueError(f"{key} is not a setting of an environment; known are {', '.join(KEYS)}")
    if dataset is not None:
        folder = Path(dataset)
        changes = changes | {"dataset_root_dpath": str(folder.parent), "dataset_name": folder.name}
    settings = Arguments.from_config(OmegaConf.load(DEFAULTS))
    return replace(settings, model_fpath=None if model_fpath is None else str(model_fpath), **changes)


def open_episodes(entry: Entry, settings: Arguments) -> Episodes:
    """The held-out episodes whose first frames begin dreams. Raises ValueError or FileNotFoundError."""
    source = source_of(entry, settings)
    try:
        if source is not None:
            read_info(*source)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"dataset={Path(*source)} is no data set; set dataset to the folder of one, with its info.json"
        ) from None
    return open_held_out(entry, settings)


def check(max_steps: int, render_mode: str | None) -> None:
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
