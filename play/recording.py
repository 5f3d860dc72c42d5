"""Frames of a dream, with the true game beside them where there was one, as GIF and MP4."""

import io
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

SHOWN_SIDE = 256  # pixels: small frames are enlarged, each pixel to a square, up to about this
GIF_PIXELS = 32_000_000  # of all frames together: a GIF is made in memory, so that long ones are shown smaller
GAP = 4  # pixels between dream and truth, before enlarging
PALETTE_FRAMES = 32  # that a GIF's colours are chosen from
GIF_SECOND = 100  # a GIF counts time in hundredths; browsers show less than 2 of them as 10
MOST_BYTES = 64_000_000  # of all recordings that wait to be fetched
KEPT_SECONDS = 900.0


class Film(NamedTuple):
    """One finished recording."""

    gif: bytes
    mp4: bytes
    num_frames: int


def encode(frames: Sequence[np.ndarray], fps: float) -> Film:
    """frames: (H, W, 3) uint8 each, all of one size."""
    return Film(to_gif(frames, fps), to_mp4(frames, fps), len(frames))


def beside(dream: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
    """(H, W, 3), or with the truth to the right of the dream (H, 2W + GAP, 3)."""
    if truth is None:
        return dream
    gap = np.zeros((dream.shape[0], GAP, 3), np.uint8)
    return np.concatenate([dream, gap, truth], axis=1)


def to_gif(frames: Sequence[np.ndarray], fps: float) -> bytes:
    """An endless GIF. One palette, chosen from frames of the whole film, or still regions would flicker."""
    sample = frames[:: max(1, len(frames) // PALETTE_FRAMES)]
    palette = Image.fromarray(np.concatenate(sample)).quantize(256, Image.Quantize.MEDIANCUT, dither=0)
    most = math.isqrt(max(1, GIF_PIXELS // (len(frames) * frames[0][..., 0].size)))
    images = [Image.fromarray(enlarge(frame, most)).quantize(palette=palette, dither=0) for frame in frames]
    hundredths = max(2, round(GIF_SECOND / fps))
    file = io.BytesIO()
    images[0].save(
        file, "GIF", save_all=True, append_images=images[1:], duration=hundredths * 10, loop=0, optimize=False
    )
    return file.getvalue()


def to_mp4(frames: Sequence[np.ndarray], fps: float) -> bytes:
    """H.264, which every browser plays."""
    first = even(enlarge(frames[0]))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=max(1, round(fps)), options={"crf": "18", "preset": "veryfast"})
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even(enlarge(frame)), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def enlarge(frame: np.ndarray, most: int = SHOWN_SIDE) -> np.ndarray:
    """Every pixel as a square, of at most `most` pixels' side."""
    scale = max(1, min(most, SHOWN_SIDE // frame.shape[0]))
    return frame.repeat(scale, axis=0).repeat(scale, axis=1)


def even(frame: np.ndarray) -> np.ndarray:
    """H.264 halves the resolution of colour, so that height and width are even."""
    return np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")


class Recordings:
    """Finished recordings until they are fetched: for a quarter of an hour, and within bounded memory."""

    def __init__(self):
        self._films: OrderedDict[str, tuple[float, Film]] = OrderedDict()

    def add(self, film: Film) -> str:
        name = secrets.token_urlsafe(12)
        self._films[name] = (time.monotonic(), film)
        oldest = time.monotonic() - KEPT_SECONDS
        while len(self._films) > 1 and (self.num_bytes() > MOST_BYTES or next(iter(self._films.values()))[0] < oldest):
            self._films.popitem(last=False)
        return name

    def get(self, name: str) -> Film | None:
        found = self._films.get(name)
        return None if found is None else found[1]

    def num_bytes(self) -> int:
        return sum(len(film.gif) + len(film.mp4) for _, film in self._films.values())
