"""Picture files, and pictures of any kind and size → RGB arrays of one size."""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.importing import DamagedError

FITS = ("crop", "pad", "stretch")
# Beyond this many times the wanted size, a picture is first averaged down: Lanczos over all of it costs ten times more.
REDUCING_GAP = 3.0
BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what PIL raises for pictures


@dataclass(frozen=True)
class Fit:
    """How a picture becomes (height, width): its middle part (crop), or all of it, on a ground (pad) or distorted."""

    height: int
    width: int
    kind: str  # one of FITS
    background: tuple[int, int, int]  # RGB of the ground and of what is transparent

    def __call__(self, image: Image.Image, aspect: Fraction | None = None) -> np.ndarray:
        """(height, width, 3) uint8. aspect: the picture's width over its height, where its pixels are not square."""
        image = flatten(image, self.background)
        aspect = Fraction(image.width, image.height) if aspect is None else aspect
        box, (width, height) = _geometry(self, image.width, image.height, aspect)
        image = image.resize((width, height), Image.Resampling.LANCZOS, box, REDUCING_GAP)
        if (width, height) != (self.width, self.height):
            ground = Image.new("RGB", (self.width, self.height), self.background)
            ground.paste(image, ((self.width - width) // 2, (self.height - height) // 2))
            image = ground
        return np.asarray(image)


@lru_cache
def _geometry(fit: Fit, width: int, height: int, aspect: Fraction) -> tuple[tuple[float, ...], tuple[int, int]]:
    """The part (left, top, right, bottom) of a picture that is shown, and the (width, height) that it is shown in.

    Exact fractions: a picture that has the right size already is left as it is to the last bit.
    """
    horizontal, vertical = fit.width / (height * aspect), Fraction(fit.height, height)
    if fit.kind == "pad":
        scale = min(horizontal, vertical)
        inner = (max(1, round(fit.width * scale / horizontal)), max(1, round(fit.height * scale / vertical)))
        return (0.0, 0.0, float(width), float(height)), inner
    across = down = Fraction(1)
    if fit.kind == "crop":
        scale = max(horizontal, vertical)
        across, down = horizontal / scale, vertical / scale  # shares of the picture
    left, top = width * (1 - across) / 2, height * (1 - down) / 2
    box = (float(left), float(top), float(width - left), float(height - top))
    return box, (fit.width, fit.height)


def flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """RGB of any kind of picture; what is transparent shows the background."""
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    if image.mode.startswith("I"):  # 16-bit grey, which PIL would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def open_image(fpath: Path) -> Image.Image:
    """A picture file, upright and decoded; raises DamagedError where that cannot be done."""
    try:
        with Image.open(fpath) as image:
            return ImageOps.exif_transpose(image)
    except BROKEN as error:
        reason = "not a picture" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise DamagedError(f"{fpath.name} cannot be decoded ({reason})") from None
