"""Which keys press which action: the arrows that its name asks for."""

import re
from collections.abc import Iterable

# Sides first: a diagonal is "ArrowRight+ArrowUp".
ARROWS = ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown")
WORDS = {"RIGHT": "ArrowRight", "LEFT": "ArrowLeft", "UP": "ArrowUp", "JUMP": "ArrowUp", "DOWN": "ArrowDown"}
AT_REST = "NOOP"  # what CoinRun's and Procgen's action sets call it


def keys_of(name: str) -> str | None:
    """The arrows that are held for an action of this name: "ArrowRight+ArrowUp" for RIGHT_JUMP or "jump right".

    "" for the action at rest, None where a name says something else.
    """
    words = re.findall(r"[^\W\d_]+", name.upper())
    if words == [AT_REST]:
        return ""
    arrows = {WORDS.get(word) for word in words}
    if not arrows or None in arrows:
        return None
    return "+".join(arrow for arrow in ARROWS if arrow in arrows)


def bindings(names: Iterable[str], actions: Iterable[int]) -> dict[str, int]:
    """The action that each combination of arrows presses: of equal ones the first."""
    found: dict[str, int] = {}
    for name, action in zip(names, actions, strict=True):
        if (keys := keys_of(name)) is not None:
            found.setdefault(keys, action)
    return found
