"""First frames to dream on from: held-out ones of a world's data set, and pictures that players hand in."""

import io
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data.episodes import Episodes, read_info
from data.pictures import Fit
from play.library import Entry
from training.settings import DreamSettings, PlaySettings

GALLERY_SIZE = 24
HELD_OUT = ("test", "validation")  # the first of these splits that a data set has
FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
KEPT_SIDE = 512  # pixels; worlds are smaller
MOST_UPLOADS = 64
UPLOAD_SECONDS = 3600.0
GROUND = (255, 255, 255)  # behind transparent drawings
BLANK = 128  # grey of the one prompt that is left where there is no data set


@dataclass(frozen=True)
class Prompt:
    """One first frame, of a world's size."""

    id: str
    picture: np.ndarray  # (H, W, 3) uint8
    level: int | None = None  # the game's level that starts so


@dataclass(frozen=True)
class Gallery:
    """A world's own prompts, and what is known of the data set they are from."""

    prompts: tuple[Prompt, ...]
    info: dict[str, Any]  # the data set's info.json; empty where there is none
    missing: str | None = None  # why there is no data set


def source_of(entry: Entry, settings: PlaySettings | DreamSettings) -> tuple[str, str] | None:
    """Root and name of the data set whose held-out episodes belong to a world; None where nothing names one."""
    if settings.dataset_name is not None:
        return settings.dataset_root_dpath, settings.dataset_name
    if entry.dataset is None:
        return None
    root, name = entry.dataset
    return (root if (Path(root) / name).is_dir() else settings.dataset_root_dpath), name


def open_held_out(entry: Entry, settings: PlaySettings | DreamSettings) -> Episodes:
    """The held-out episodes that belong to a world. Raises ValueError or FileNotFoundError in one line."""
    source = source_of(entry, settings)
    if source is None:
        raise ValueError(f"{entry.name} does not say what data it is for; set {settings.key('dataset_name')}")
    splits = read_info(*source)["splits"]
    split = next((split for split in HELD_OUT if split in splits), None)
    if split is None:
        raise ValueError(
            f"{source[1]} has no {' or '.join(HELD_OUT)} split; set {settings.key('dataset_name')} to one that has"
        )
    return Episodes(*source, split)


def open_gallery(entry: Entry, settings: PlaySettings) -> Gallery:
    """First frames of episodes spread over the held-out split; one grey picture where there is no data set.

    Of few episodes, such as one imported film, frames from within them fill the gallery up.
    """
    try:
        episodes = open_held_out(entry, settings)
    except (ValueError, OSError) as error:
        grey = np.full((*entry.image_size, 3), BLANK, np.uint8)
        return Gallery((Prompt("blank", grey),), {}, missing=" ".join(str(error).split()))
    has_levels = "generator" in episodes.info
    prompts = [
        Prompt(
            f"g{number}",
            fit(Image.fromarray(np.array(episodes.frames(episode, frame, 1)[0])), entry.image_size),
            int(episodes.level_seeds[episode]) if has_levels and frame == 0 else None,
        )
        for number, (episode, frame) in enumerate(_chosen(episodes))
    ]
    return Gallery(tuple(prompts), episodes.info)


def _chosen(episodes: Episodes) -> list[tuple[int, int]]:
    """Episode and frame of each picture of the gallery, the first frames before all others."""
    count = min(GALLERY_SIZE, episodes.num_episodes)
    spread = [index * episodes.num_episodes // count for index in range(count)]
    of_each = GALLERY_SIZE // count
    lengths = episodes.lengths.tolist()
    return [(episode, part * lengths[episode] // of_each) for part in range(of_each) for episode in spread]


def fit(image: Image.Image, image_size: tuple[int, int]) -> np.ndarray:
    """The middle of a picture, scaled to (H, W): (H, W, 3) uint8. One of that size already stays as it is."""
    return Fit(*image_size, "crop", GROUND)(image)


def decode(data: bytes, most_pixels: int) -> Image.Image:
    """A picture from a stranger: upright RGB, of an animation its first frame, at most KEPT_SIDE pixels wide and high.

    Size and kind are read from the header before anything is decoded. Raises ValueError in one line.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > most_pixels:
                raise _TooLargeError
            image.verify()
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.draft("RGB", (KEPT_SIDE, KEPT_SIDE))  # JPEG: decoded at a fraction of its size
            picture = ImageOps.exif_transpose(image)
            picture.thumbnail((KEPT_SIDE, KEPT_SIDE))
            return Image.fromarray(Fit(picture.height, picture.width, "crop", GROUND)(picture))
    except (_TooLargeError, Image.DecompressionBombError):
        raise ValueError(f"the picture has too many pixels; expected at most {most_pixels} in all") from None
    except Exception as error:  # PIL's decoders raise a dozen kinds for damaged files
        raise ValueError(f"this is not a picture that can be read; expected {', '.join(FORMATS)}") from error


class _TooLargeError(Exception):
    """More pixels than are decoded."""


def to_png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


class Uploads:
    """Pictures that players handed in: a bounded number, each for an hour, known by names that cannot be guessed."""

    def __init__(self):
        self._pictures: OrderedDict[str, tuple[float, Image.Image]] = OrderedDict()

    def add(self, picture: Image.Image) -> str:
        self._forget()
        name = f"u{secrets.token_urlsafe(12)}"
        self._pictures[name] = (time.monotonic(), picture)
        while len(self._pictures) > MOST_UPLOADS:
            self._pictures.popitem(last=False)
        return name

    def get(self, name: str) -> Image.Image | None:
        self._forget()
        found = self._pictures.get(name)
        return None if found is None else found[1]

    def _forget(self) -> None:
        oldest = time.monotonic() - UPLOAD_SECONDS
        while self._pictures and next(iter(self._pictures.values()))[0] < oldest:
            self._pictures.popitem(last=False)


class Prompts:
    """Every prompt of every world, by world and id."""

    def __init__(self, settings: PlaySettings):
        self._settings = settings
        self._galleries: dict[str, Gallery] = {}
        self.uploads = Uploads()

    def gallery(self, entry: Entry) -> Gallery:
        """Reads the disk at the first call for a world."""
        if entry.id not in self._galleries:
            self._galleries[entry.id] = open_gallery(entry, self._settings)
        return self._galleries[entry.id]

    def find(self, entry: Entry, name: Any) -> Prompt:
        """The named prompt at a world's size; the gallery's first for None. Raises ValueError for an unknown name."""
        gallery = self.gallery(entry)
        if name is None:
            return gallery.prompts[0]
        for prompt in gallery.prompts:
            if prompt.id == name:
                return prompt
        picture = self.uploads.get(name) if isinstance(name, str) else None
        if picture is None:
            raise ValueError("this picture is not known, or no more; choose another or hand it in again")
        return Prompt(name, fit(picture, entry.image_size))
