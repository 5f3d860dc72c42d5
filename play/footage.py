"""Frames to dream on from, or to take actions from: a picture, a video, or a held-out episode of a data set."""

from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.importing import DamagedError
from data.pictures import Fit, open_image
from data.video_files import VideoFile, at_rate
from play.library import Entry
from play.prompts import GROUND, fit, open_held_out
from training.settings import DreamSettings

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Footage(NamedTuple):
    """What was read, at a world's size."""

    frames: np.ndarray  # (T, H, W, 3) uint8
    actions: np.ndarray | None = None  # (T-1,) int64, as recorded
    action_names: list[str] | None = None  # of the recorded actions


def read(settings: DreamSettings, key: str, entry: Entry, num_frames: int) -> Footage:
    """At most `num_frames` frames of what `dream.<key>` names.

    Every `entry.frame_skip`-th frame of an episode, as the world was trained; a video at `dream.fps`. Raises ValueError
    or FileNotFoundError that names the key.
    """
    name = getattr(settings, key)
    if name.startswith(settings.DATASET):
        return _episode(settings, key, int(name.removeprefix(settings.DATASET)), entry, num_frames)
    fpath = Path(name)
    if not fpath.is_file():
        raise FileNotFoundError(f"dream.{key}={name}: no such file; set it to a picture, a video or dataset:INDEX")
    try:
        if fpath.suffix.lower() in PICTURES:
            return Footage(fit(open_image(fpath), entry.image_size)[None])
        return Footage(_video(fpath, Fraction(settings.fps).limit_denominator(1000), entry.image_size, num_frames))
    except DamagedError as error:
        raise ValueError(f"dream.{key}={name}: {error}; set it to another picture or video") from None


def _video(fpath: Path, fps: Fraction, image_size: tuple[int, int], num_frames: int) -> np.ndarray:
    video = VideoFile.read(fpath)
    size = Fit(*image_size, "crop", GROUND)
    pictures = at_rate(video.shown(), fps, video.clock_error)
    return np.stack([video.fitted(picture, size) for picture in islice(pictures, num_frames)])


def _episode(settings: DreamSettings, key: str, number: int, entry: Entry, num_frames: int) -> Footage:
    episodes = open_held_out(entry, settings)
    if number >= episodes.num_episodes:
        raise ValueError(
            f"dream.{key}=dataset:{number}: {episodes.name} has {episodes.num_episodes} episodes in its "
            f"{episodes.split} split, counted from 0"
        )
    if tuple(episodes.image_size) != tuple(entry.image_size):
        raise ValueError(
            f"dream.dataset_name: frames of {episodes.name} are {_size(episodes.image_size)}, "
            f"{entry.name} takes {_size(entry.image_size)}"
        )
    skip = entry.frame_skip
    length = min(num_frames, (int(episodes.lengths[number]) - 1) // skip + 1)
    actions = episodes.actions(number, 0, length, skip)
    return Footage(
        np.array(episodes.frames(number, 0, length, skip)),
        None if actions is None else actions.astype(np.int64),
        episodes.action_names,
    )


def _size(image_size: tuple[int, int]) -> str:
    return "x".join(str(side) for side in image_size)
