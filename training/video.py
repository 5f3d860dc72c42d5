"""Pictures of dreams: real frames above, dreamt ones below, as GIF and as a strip with time from left to right."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from training.metrics import to_bytes

# A dark ground of its own, so that the pictures look the same on light and dark pages.
GROUND, TEXT, FAINT, ACCENT = (20, 22, 27), (235, 237, 240), (140, 146, 156), (255, 183, 77)
OCTREE_ERROR = 255**2 / 10**3.6  # mean squared, in bytes: 36 dB, below what the best models here reach
GAP = 3  # between frames
BLOCK_GAP = 10  # between clips
LINE = 18  # height of a line of text
LABELS = 62  # width of the row labels
MILLISECONDS = 200  # per frame
HOLD = 4  # times as long stays the last one
GIF_FRAME, GIF_WIDTH = 192, 920  # pixels: widest frame, widest row of frames
GIF_COLUMNS = 7  # clips beside each other; more of them go into further rows
STRIP_FRAME, STRIP_WIDTH = 128, 1600
DIFFERENCE = 3  # times as bright as it is, the absolute difference is drawn
DIFFERENCE_ROW = f"diff x{DIFFERENCE}"


class Sample(NamedTuple):
    """One clip and what a model made of it."""

    number: int  # of the clip in the evaluation set
    real: np.ndarray | None  # (T, H, W, 3) uint8; None where there is no truth to compare with
    dream: np.ndarray  # (T, H, W, 3) uint8, the given frames included
    num_given: int  # 0 for a reconstruction
    actions: list[str] | None = None  # T-1 names; names[t] leads from frame t to t+1
    title: str = ""
    has_difference: bool = False  # whether the difference of truth and dream is a row of its own
    real_name: str = "real"  # what the row of `real` is called


def to_pictures(frames: Tensor) -> np.ndarray:
    """(T, C, H, W) float in [0, 1] -> (T, H, W, 3) uint8."""
    return to_bytes(frames).permute(0, 2, 3, 1).cpu().numpy()


def write_gif(fpath: Path, images: Sequence[Image.Image]) -> None:
    """An endless GIF. One palette serves all frames, or still regions would flicker."""
    sheet = Image.new("RGB", (images[0].width, images[0].height * len(images)))
    for index, image in enumerate(images):
        sheet.paste(image, (0, index * images[0].height))
    sheet = few_colours(sheet)
    frames = [
        sheet.crop((0, index * image.height, image.width, (index + 1) * image.height))
        for index, image in enumerate(images)
    ]
    durations = [MILLISECONDS] * (len(frames) - 1) + [MILLISECONDS * HOLD]
    fpath.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(fpath, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False)


def few_colours(image: Image.Image) -> Image.Image:
    """256 colours: those of an octree, whose GIFs are a quarter as large, where they are near enough to the given."""
    few = image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    difference = np.asarray(image, dtype=np.int16) - np.asarray(few.convert("RGB"))
    if np.square(difference, dtype=np.float32).mean() <= OCTREE_ERROR:
        return few
    return image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def write_dream_vs_real(folder: Path, samples: Sequence[Sample], stem: str = "dream_vs_real") -> list[Path]:
    """`<stem>.gif` with the clips side by side and `<stem>.png` with one strip below the other."""
    gif, png = folder / f"{stem}.gif", folder / f"{stem}.png"
    write_gif(gif, animation(samples))
    strip(samples).save(png)
    return [gif, png]


def animation(samples: Sequence[Sample]) -> list[Image.Image]:
    """One picture per frame: a column for every clip, a row for the truth and one for the dream."""
    rows = _rows(samples[0])
    length, height, width = samples[0].dream.shape[:3]
    num_blocks = -(-len(samples) // GIF_COLUMNS)
    num_columns = -(-len(samples) // num_blocks)
    scale = max(1, min(GIF_FRAME // width, GIF_WIDTH // (width * min(len(samples), GIF_COLUMNS))))
    width, height = width * scale, height * scale
    left, top = LABELS, LINE + 4
    has_actions = any(sample.actions for sample in samples)
    titled = any(sample.title for sample in samples)
    block = titled * LINE + len(rows) * (height + GAP) + has_actions * LINE + GAP
    size = (left + num_columns * (width + GAP) + GAP, top + num_blocks * block)
    images = []
    for time in range(length):
        image = Image.new("RGB", size, GROUND)
        draw = ImageDraw.Draw(image)
        _write(draw, (left, 3), *_moment(time, samples[0].num_given, long=True))
        for number in range(num_blocks):
            for index, name in enumerate(rows):
                y = top + number * block + titled * LINE + index * (height + GAP) + height // 2 - LINE // 2
                _write(draw, (8, y), samples[0].real_name if name == "real" else name, TEXT, LABELS - 10)
        for index, sample in enumerate(samples):
            x, y = left + index % num_columns * (width + GAP), top + index // num_columns * block
            if titled:
                _write(draw, (x + 2, y), sample.title, TEXT, width)
                y += LINE
            for name in rows:
                image.paste(_enlarge(_frames(sample, name)[time], scale), (x, y))
                y += height + GAP
            if sample.actions and time > 0:
                _write(draw, (x + 2, y), sample.actions[time - 1], FAINT, width)
        images.append(image)
    return images


def strip(samples: Sequence[Sample]) -> Image.Image:
    """All frames at once: time to the right, the horizon above, the action that led to each frame below it."""
    length, height, width = samples[0].dream.shape[:3]
    scale = max(1, min(STRIP_FRAME // width, STRIP_WIDTH // (width * length)))
    width, height = width * scale, height * scale
    has_actions = any(sample.actions for sample in samples)
    block = sum(len(_rows(sample)) * (height + GAP) + has_actions * LINE + BLOCK_GAP for sample in samples)
    image = Image.new("RGB", (LABELS + length * (width + GAP) + GAP, LINE + 4 + block), GROUND)
    draw = ImageDraw.Draw(image)
    for time in range(length):
        x = LABELS + time * (width + GAP)
        _write(draw, (x + 2, 3), *_moment(time, samples[0].num_given, long=False), width)
    y = LINE + 4
    for sample in samples:
        for name in _rows(sample):
            _write(draw, (8, y + height // 2 - LINE // 2), sample.title or name, TEXT, LABELS - 8)
            for time, frame in enumerate(_frames(sample, name)):
                image.paste(_enlarge(frame, scale), (LABELS + time * (width + GAP), y))
            y += height + GAP
        for time, name in enumerate(sample.actions or ()):
            _write(draw, (LABELS + (time + 1) * (width + GAP) + 2, y), name, FAINT, width)
        y += has_actions * LINE + BLOCK_GAP
    return image


def _rows(sample: Sample) -> list[str]:
    below = "dream" if sample.num_given else "model"
    if sample.real is None:
        return [below]
    return ["real", below, *([DIFFERENCE_ROW] if sample.has_difference else [])]


def _frames(sample: Sample, row: str) -> np.ndarray:
    if row != DIFFERENCE_ROW:
        return sample.real if row == "real" else sample.dream
    difference = np.abs(sample.real.astype(np.int16) - sample.dream)
    return np.minimum(DIFFERENCE * difference, 255).astype(np.uint8)


def _moment(time: int, num_given: int, *, long: bool) -> tuple[str, tuple[int, int, int]]:
    """What is written over frame `time`, and its colour."""
    if not num_given:
        return f"frame {time}" if long else str(time), FAINT
    if time < num_given:
        return "given frame" if long else "given", FAINT
    horizon = time - num_given + 1
    return f"predicted frame {horizon}" if long else f"+{horizon}", ACCENT


def _enlarge(frame: np.ndarray, scale: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(frame))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour, width: int | None = None) -> None:
    """Text at its upper left corner, made smaller until it fits into `width`."""
    size = 13
    while size > 7 and width is not None and draw.textlength(text, font=ImageFont.load_default(size)) > width - 2:
        size -= 1
    draw.text(place, text, fill=colour, font=ImageFont.load_default(size))
