"""What a world's latent actions do: names that people gave, and the real actions they go together with.

`latent_actions.json` lies in the run folder:
    num_actions      latent actions
    names            one text for each, given by a person, or null
    real_names       names of the real actions that were counted, or null
    real_of_latent   for each latent action the real one that it was read off most often (null: never seen), or null
    latent_of_real   for each real action the latent one that was read off it most often (null: never taken), or null
    counts           [latent][real] transitions of held-out episodes, or null
"""

import json
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.clips import ClipDataset
from data.episodes import Episodes, write_json
from models.genie_redux import WorldModel

FILE = "latent_actions.json"
LONGEST_NAME = 24
NUM_CLIPS = 64  # that are looked at; each gives window - 1 transitions
_writing = threading.Lock()


@dataclass(frozen=True)
class LatentActionNames:
    """The contents of `latent_actions.json`."""

    num_actions: int
    names: list[str] | None = None
    real_names: list[str] | None = None
    real_of_latent: list[int | None] | None = None
    latent_of_real: list[int | None] | None = None
    counts: list[list[int]] | None = None

    def shown(self) -> list[str]:
        """What the page calls the actions: as a person named them, else after the real actions, else by number."""
        return self.names or self.suggested()

    def suggested(self) -> list[str]:
        """Each named after the real action that it stands out with, numbered where several do with the same.

        That is the real action that adds most to what the latent one says about real ones (the mutual information);
        the most frequent one would often only say which action is taken most at all.
        """
        plain = [f"action {index}" for index in range(self.num_actions)]
        if self.counts is None or self.real_names is None:
            return plain
        counts = np.array(self.counts, dtype=float)
        by_chance = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / max(1, counts.sum())
        said = counts * np.log(np.maximum(counts, 1) / np.maximum(by_chance, 1e-9))
        names = [
            self.real_names[told.argmax()] if row.any() else plain[index]
            for index, (row, told) in enumerate(zip(counts, said, strict=True))
        ]
        return [
            f"{name} {names[:index].count(name) + 1}" if names.count(name) > 1 else name
            for index, name in enumerate(names)
        ]

    def neutral(self) -> int:
        """What is taken while no key is held: the latent action that goes with doing nothing."""
        if self.real_names and self.latent_of_real and "NOOP" in self.real_names:
            return self.latent_of_real[self.real_names.index("NOOP")] or 0
        return 0


def read(folder: Path, num_actions: int) -> LatentActionNames:
    """The file of a run folder; nothing known where there is none. Raises ValueError for one that does not fit."""
    fpath = folder / FILE
    if not fpath.is_file():
        return LatentActionNames(num_actions)
    try:
        content = json.loads(fpath.read_text(encoding="utf-8"))
        known = LatentActionNames(**{key: content.get(key) for key in LatentActionNames.__dataclass_fields__})
        fits = known.num_actions == num_actions and all(
            part is None or len(part) == num_actions for part in (known.names, known.real_of_latent, known.counts)
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{fpath} is not readable ({error}); delete it") from None
    if not fits:
        raise ValueError(f"{fpath} is not for {num_actions} latent actions; delete it")
    return known


def write(folder: Path, known: LatentActionNames) -> bool:
    """Write the file atomically; False where the folder cannot be written to."""
    with _writing:
        try:
            write_json(folder / FILE, asdict(known))
        except OSError:
            return False
    return True


def checked_names(names: Any, num_actions: int) -> list[str] | None:
    """Names as a stranger sent them; None or only blanks take them back. Raises ValueError in one line."""
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != num_actions or not all(isinstance(name, str) for name in names):
        raise ValueError(f"names must be a list of {num_actions} texts")
    names = [" ".join(name.split()) for name in names]
    for name in names:
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise ValueError(f"a name must be of at most {LONGEST_NAME} printable characters")
    if not any(names):
        return None
    return [name or f"action {index}" for index, name in enumerate(names)]


@torch.no_grad()
def measure(known: LatentActionNames, world: WorldModel, episodes: Episodes, num_frames: int) -> LatentActionNames:
    """Count which real actions a latent world's action model reads off held-out clips, and as what.

    Raises ValueError where the data set has no actions or other frames.
    """
    if not episodes.has_actions or tuple(episodes.image_size) != tuple(world.image_size):
        raise ValueError(f"{episodes.name} has no actions to compare with, or frames of another size")
    root = episodes.fpaths[0].parent.parent
    dataset = ClipDataset(root, episodes.name, episodes.split, num_frames, seq_step=num_frames)
    chosen = np.linspace(0, len(dataset) - 1, min(NUM_CLIPS, len(dataset))).astype(np.int64)
    device = next(world.parameters()).device
    counts = np.zeros((known.num_actions, episodes.num_actions), np.int64)
    for index in chosen:
        clip = dataset.batch(np.array([index])).to(device)
        np.add.at(counts, (world.infer(clip).flatten().cpu().numpy(), clip.actions.flatten().cpu().numpy()), 1)
    return replace(
        known,
        real_names=list(episodes.action_names),
        real_of_latent=_most(counts),
        latent_of_real=_most(counts.T),
        counts=counts.tolist(),
    )


def _most(counts: np.ndarray) -> list[int | None]:
    """The index of each row's largest count, None for a row of zeros."""
    return [int(row.argmax()) if row.any() else None for row in counts]
