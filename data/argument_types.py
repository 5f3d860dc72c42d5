"""What words on the importers' command lines mean; argparse turns each function's error into a line."""

import argparse
import re
from fractions import Fraction


def size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text, re.ASCII)
    height, width = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not (1 <= height <= 4096 and 1 <= width <= 4096):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of pixels or HEIGHTxWIDTH, as 64 or 64x96")
    return height, width


def colour(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) < 256 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} must be three numbers from 0 to 255, as 255,255,255")
    red, green, blue = (int(part) for part in parts)
    return red, green, blue


def action_names(text: str) -> list[str]:
    """Names that can be told apart, from numbers, and from the `NAME*COUNT` of a dream's actions."""
    names = [name.strip() for name in text.split(",")]
    are_different = len({name.casefold() for name in names}) == len(names) > 1
    if not are_different or any(not name or name.isdecimal() or "*" in name for name in names):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be two or more different names, none a number or with a *, as NOOP,LEFT,RIGHT"
        )
    return names


def rate(text: str) -> Fraction:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} must be frames per second up to 1000, as 15, 29.97 or 30000/1001")
    return value


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a share from 0 up to, but not including, 1")
    return value
