"""Text files with the actions of a recording: one line per frame, the action taken at it, by name or number."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.importing import DamagedError

ENDING = "actions.txt"  # film.actions.txt beside film.mp4, actions.txt in a folder of pictures


def actions_fpath(fpath: Path, is_video: bool) -> Path:
    """Where the actions of a video file, or of the folder of a picture, lie."""
    return fpath.with_suffix(f".{ENDING}") if is_video else fpath.with_name(ENDING)


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError where names could not be told apart, or from numbers."""
    if len(names) < 2 or len(set(names)) < len(names) or not all(names) or any(name.isdecimal() for name in names):
        raise ValueError(f"{','.join(names)!r} must be two or more different names, as NOOP,LEFT,RIGHT")


def read_actions(fpath: Path, names: Sequence[str], num_frames: int) -> np.ndarray:
    """(T,) int16: the actions at frames 0 to T-1, as places in `names`.

    T is `num_frames`, or one less: at a recording's last frame the action is often not known. Raises DamagedError with
    the reason where the file is not there, has another number of lines or names an action that is none of `names`.
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
    if len(lines) not in (num_frames, num_frames - 1):
        raise DamagedError(f"{fpath.name} has {len(lines)} lines, but there are {num_frames} frames")
    if len(lines) < 2:
        raise DamagedError(f"{fpath.name} has one action only")
    return np.array([codes[line] for line in lines], np.int16)
