"""Text files with the actions of a recording: one line per frame, the action taken at it, by name or number."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.importing import DamagedError
from data.video_files import Source

ENDING = "actions.txt"  # film.actions.txt beside film.mp4, actions.txt in a folder of pictures


def actions_fpath(fpath: Path, is_video: bool) -> Path:
    """Where the actions of a video file, or of the folder of a picture, lie."""
    return fpath.with_suffix(f".{ENDING}") if is_video else fpath.with_name(ENDING)


class Taken(NamedTuple):
    """The actions of a recording."""

    codes: np.ndarray  # (T,) int16: those at frames 0 to T-1, as places in the list of names
    stop: int | None  # T where the recording has one frame more, whose action is not known; else None


def read_actions(fpath: Path, names: Sequence[str], source: Source) -> Taken:
    """The actions of a source, which is read through: headers and packets also count pictures that are never shown.

    A recording's last frame may be without a line. Of a recording that cannot be read to its end, further lines are
    left out. Raises DamagedError with the reason where the file is not there, has another number of lines than the
    source has pictures, or an action that is none of `names`.
    """
    try:
        lines = [line.strip() for line in fpath.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except FileNotFoundError:
        raise DamagedError(f"{fpath.name} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{fpath.name} cannot be read ({error})") from None
    codes = {name: code for code, name in enumerate(names)} | {str(code): code for code in range(len(names))}
    for number, line in enumerate(lines, start=1):
        if line not in codes:
            raise DamagedError(f"{fpath.name} has {line[:40]!r} in line {number}, which is none of {', '.join(names)}")
    num_frames, is_whole = _num_shown(source)
    fits = num_frames - 1 <= len(lines) <= num_frames if is_whole else len(lines) >= num_frames
    if not fits:
        raise DamagedError(f"{fpath.name} has {len(lines)} lines, but there are {num_frames} frames")
    lines = lines[:num_frames]
    if len(lines) < 2:
        raise DamagedError(f"{fpath.name} has one action only")
    return Taken(np.array([codes[line] for line in lines], np.int16), None if len(lines) == num_frames else len(lines))


def _num_shown(source: Source) -> tuple[int, bool]:
    """How many pictures can be read, and whether they are all."""
    count = 0
    try:
        for _ in source.shown():
            count += 1
    except DamagedError:
        return count, False
    return count, True
