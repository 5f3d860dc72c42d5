"""One hash of all that a shard says, however it is stored: each episode's frames, actions and rewards, then the table.

It is BLAKE3 since format 2 of the data. SHA-256, that of format 1, took a seventh of the time in which data is
generated, three and a half times as long as this, though processors have instructions for it; neither lets anybody
make other data of the same hash.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import blake3
import numpy as np

PREFIX = "blake3:"  # of a hash as text; one without is SHA-256


class ContentHash:
    """Takes a shard's episodes one after the other. `as_before`: a hash as text, whose function is to be used."""

    def __init__(self, as_before: str = PREFIX):
        self._prefix = PREFIX if as_before.startswith(PREFIX) else ""
        self._digest = blake3.blake3() if self._prefix else hashlib.sha256()

    def add_frames(self, frames: np.ndarray) -> None:
        """frames: (T, H, W, 3) uint8, an episode's or the next of them."""
        self._digest.update(np.ascontiguousarray(frames))

    def add_columns(self, actions: np.ndarray | None, rewards: np.ndarray | None) -> None:
        """The rest of an episode: actions (T,) integers, rewards (T,) floats; None where the shard has none."""
        if actions is not None:
            self._digest.update(np.ascontiguousarray(actions, dtype="<i2").tobytes())
        if rewards is not None:
            self._digest.update(np.ascontiguousarray(rewards, dtype="<f4").tobytes())

    def finish(self, table: np.ndarray) -> str:
        """The hash as text, when all episodes were added; table: (E,) of `data.shard_writing.TABLE`."""
        self._digest.update(table.tobytes())
        return self._prefix + self._digest.hexdigest()


def stored_hash(said: Mapping[str, Any]) -> str:
    """What a shard's attributes, or its entry in `info.json`, give as its hash; KeyError where they give none."""
    return str(said["sha256"] if "sha256" in said else said["hash"])


def shown_hash(text: str) -> str:
    """The first digits, for people."""
    return text.removeprefix(PREFIX)[:12] + "…"
