"""Pictures of recorded episodes: a sheet with an episode per row, and a GIF of a few episodes side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.episodes import END_REASONS, map_dataset
from data.summary import Place
from data.verification import opened

Colour = tuple[int, int, int]

GROUND, TEXT, FAINT, ACCENT = (20, 22, 27), (235, 237, 240), (150, 156, 166), (255, 183, 77)
GAP, MARGIN, LINE = 4, 8, 18  # pixels between frames, around everything, per line of text
LARGEST_TEXT, SMALLEST_TEXT = 13, 9
LABELS = 140  # width of the column that names a row
SHEET_FRAME, GIF_FRAME = 128, 192  # pixels of a frame's longer side, at most
NUM_COLUMNS = 10
GIF_EPISODES, GIF_LENGTH = 4, 100
DARKER = 3  # times, after the end of an episode
PALETTE_PIXELS = 2**16  # from which the GIF's colours are chosen
MILLISECONDS = 70  # per frame: Procgen's 15 frames a second, in the hundredths that GIF knows


class Excerpt(NamedTuple):
    """Some frames of an episode, and what is said about it."""

    split: str
    title: str
    end_reason: str
    length: int  # of the whole episode
    total_reward: float | None
    times: np.ndarray  # (n,) of the frames in the episode
    frames: np.ndarray  # (n, H, W, 3) uint8
    actions: list[str] | None  # pressed at those frames


def evenly(length: int, count: int = NUM_COLUMNS) -> np.ndarray:
    """`count` times from the first frame to the last one, fewer where the episode is shorter."""
    return np.unique(np.linspace(0, length - 1, count).round().astype(int))


def opening(length: int) -> np.ndarray:
    """The times that the GIF shows."""
    return np.arange(min(length, GIF_LENGTH))


def excerpt(place: Place, info: dict[str, Any], times: np.ndarray) -> Excerpt:
    """Read these frames of an episode, times ascending; ValueError of one line where the shard is damaged."""
    scan, row = place
    start, length, level, reason = scan.table[row].tolist()
    files = info.get("files", ())
    with opened(scan.shard, info) as file:
        names = info["action_names"]
        actions = None if names is None else [names[action] for action in file["actions"][start + times].tolist()]
        source = map_dataset(file, "frames")
        frames = np.stack([source[start + time] for time in times.tolist()])
    return Excerpt(
        split=scan.shard.split,
        title=Path(files[level]).name if 0 <= level < len(files) else f"level {level}",
        end_reason=END_REASONS[reason].replace("_", " "),
        length=length,
        total_reward=None if scan.returns is None else float(scan.returns[row]),
        times=times,
        frames=frames,
        actions=actions,
    )


# ------------------------------------------------------------------------------------------------------------ the sheet


def draw_sheet(excerpts: Sequence[Excerpt], title: str) -> Image.Image:
    """A row per episode, its frames from left to right; below each its time and the action pressed there."""
    width, height = _fitted(excerpts[0].frames.shape, SHEET_FRAME)
    row_height = max(height + LINE, 4 * LINE) + GAP
    columns = max(len(one.times) for one in excerpts)
    size = (2 * MARGIN + LABELS + columns * (width + GAP), 2 * MARGIN + LINE + GAP + len(excerpts) * row_height)
    image = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(image)
    write(draw, (MARGIN, MARGIN), title, TEXT, size[0] - 2 * MARGIN)
    for index, one in enumerate(excerpts):
        top = MARGIN + LINE + GAP + index * row_height
        for number, (text, colour) in enumerate(_about(one)):
            write(draw, (MARGIN, top + number * LINE), text, colour, LABELS - GAP)
        for column, (time, frame) in enumerate(zip(one.times, one.frames, strict=True)):
            left = MARGIN + LABELS + column * (width + GAP)
            image.paste(enlarge(frame, (width, height)), (left, top))
            action = "" if one.actions is None else one.actions[column]
            write(draw, (left + 1, top + height), f"{time}  {action}", FAINT, width)
    return image


def _about(one: Excerpt) -> list[tuple[str, Colour]]:
    reward = "" if one.total_reward is None else f", return {one.total_reward:g}"
    return [
        (one.title, TEXT),
        (one.end_reason, ACCENT),
        (f"{one.length} frames{reward}", FAINT),
        (one.split, FAINT),
    ]


# -------------------------------------------------------------------------------------------------------------- the GIF


def write_gif(fpath: Path, excerpts: Sequence[Excerpt]) -> None:
    """Episodes side by side from their first frame, the pressed action below; what has ended stays, darkened."""
    length = max(len(one.times) for one in excerpts)
    palette = _palette(excerpts)
    frames = [_moment(excerpts, time).quantize(palette=palette, dither=Image.Dither.NONE) for time in range(length)]
    durations = [MILLISECONDS] * (length - 1) + [1000]
    frames[0].save(fpath, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False)


def _moment(excerpts: Sequence[Excerpt], time: int) -> Image.Image:
    width, height = _fitted(excerpts[0].frames.shape, GIF_FRAME)
    image = Image.new("RGB", (len(excerpts) * (width + GAP) + GAP, height + 2 * LINE + 2 * GAP), GROUND)
    draw = ImageDraw.Draw(image)
    for column, one in enumerate(excerpts):
        left, shown = GAP + column * (width + GAP), min(time, len(one.times) - 1)
        has_ended = time >= one.length
        frame = one.frames[shown] // DARKER if has_ended else one.frames[shown]
        write(draw, (left + 2, GAP), one.title, TEXT, width - 2)
        image.paste(enlarge(frame, (width, height)), (left, GAP + LINE))
        if has_ended:
            below, colour = one.end_reason, ACCENT
        else:
            below, colour = f"{one.times[shown]}" if one.actions is None else one.actions[shown], TEXT
        write(draw, (left + 2, height + LINE + GAP), below, colour, width - 2)
    return image


def _palette(excerpts: Sequence[Excerpt]) -> Image.Image:
    """One palette for the whole GIF, or still regions would flicker; the colours of text are kept for it."""
    step = -(-sum(one.frames.size // 3 for one in excerpts) // PALETTE_PIXELS)
    shown = [one.frames.reshape(-1, 3)[::step] for one in excerpts]
    darkened = [one.frames[-1].reshape(-1, 3) // DARKER for one in excerpts]
    pixels = np.concatenate(shown + darkened)
    ramps = [np.linspace(GROUND, colour, 8).round() for colour in (TEXT, ACCENT)]
    reserved = np.concatenate(ramps).astype(np.uint8).tobytes()
    chosen = Image.fromarray(pixels[None]).quantize(256 - len(reserved) // 3, method=Image.Quantize.MEDIANCUT, kmeans=1)
    palette = Image.new("P", (1, 1))
    palette.putpalette(reserved + bytes(chosen.getpalette()[: 768 - len(reserved)]))
    return palette


# ------------------------------------------------------------------------------------------------------------- drawing


def _fitted(shape: tuple[int, ...], longest: int) -> tuple[int, int]:
    """Width and height of frames (n, H, W, 3) in a picture: a whole multiple of theirs, or less if they are larger."""
    height, width = shape[1:3]
    scale = longest / max(height, width)
    scale = int(scale) if scale >= 1 else scale
    return max(1, round(width * scale)), max(1, round(height * scale))


def enlarge(frame: np.ndarray, size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(frame))
    return image.resize(size, Image.Resampling.NEAREST if size[0] >= image.width else Image.Resampling.BOX)


def write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: Colour, width: int) -> None:
    """Text at its upper left corner, made smaller where it is wider than `width`, then cut."""
    size = LARGEST_TEXT
    while size > SMALLEST_TEXT and draw.textlength(text, font=ImageFont.load_default(size)) > width:
        size -= 1
    font = ImageFont.load_default(size)
    if draw.textlength(text, font=font) > width:
        while text and draw.textlength(f"{text}…", font=font) > width:
            text = text[:-1]
        text = f"{text}…"
    draw.text(place, text, fill=colour, font=font)
