"""What players send, checked: it comes from strangers, and every mistake is one line. And frames, packed for them."""

import json
import math
import struct
from collections.abc import Iterable
from typing import Any

from play.player import Shown

LONGEST_SHOWN = 40  # characters of a stranger's text that an answer repeats
LARGEST_SEED = 2**53 - 1  # that a page's numbers hold exactly


def parse(text: str) -> dict[str, Any]:
    """A message: a JSON object with a type. Raises ValueError."""
    message = parse_object(text)
    if not isinstance(message.get("type"), str):
        raise ValueError("a message must be a JSON object with a type")
    return message


def parse_object(text: str | bytes) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: a thousand brackets
        raise ValueError("a message must be a JSON object") from None
    if not isinstance(message, dict):
        raise ValueError("a message must be a JSON object")
    return message


def whole(message: dict[str, Any], key: str, default: int | None, low: int, high: int) -> int:
    """A whole number between two bounds; `default` where it is left out."""
    value = message.get(key, default)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{key} must be a whole number from {low} to {high}")
    return value


def number(message: dict[str, Any], key: str, default: float, low: float, high: float) -> float:
    """A finite number between two bounds; `default` where it is left out."""
    value = message.get(key, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{key} must be a number from {low:g} to {high:g}")
    return float(value)


def yes(message: dict[str, Any], key: str, default: bool) -> bool:
    value = message.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false")
    return value


def unknown(kind: str, known: Iterable[str]) -> ValueError:
    return ValueError(f"unknown message {kind[:LONGEST_SHOWN]!r}; known are {', '.join(known)}")


def pack(shown: Shown, fps: float | None, num_rewindable: int) -> bytes:
    """A frame on its way: a header's length (uint32, little-endian), the header in JSON, rows of RGB.

    Those of the dream, and after them those of the true game where it runs. fps: as measured so far.
    """
    height, width = shown.dream.shape[:2]
    quality = shown.psnr
    header = {
        "n": shown.number,
        "action": shown.action,
        "ms": round(shown.milliseconds, 2),
        "fps": fps,
        "h": height,
        "w": width,
        "reality": shown.truth is not None,
        "psnr": None if quality is None else round(quality, 2),
        "real_done": shown.is_over,
        "rewindable": num_rewindable,
    }
    words = json.dumps(header).encode()
    truth = b"" if shown.truth is None else shown.truth.tobytes()
    return struct.pack("<I", len(words)) + words + shown.dream.tobytes() + truth
