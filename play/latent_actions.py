"""What a world's latent actions do: names that people gave, and the real actions they go together with.

`latent_actions.json` lies in the run folder. Evaluations write it, too (`training/latent_tables.py` has the map):
    num_actions      latent actions
    names            one text for each, given by a person, "" where none was; or null
    keys             the latent action that real keys press, {"ArrowRight": 5, ..., "": 2}, "" for no key; or null
    real_names       names of the real actions that were counted, or null
    real_of_latent   for each latent action the real one that it stands for, or null
    latent_of_real   for each real action the latent one that stands for it most purely, or null
    counts           [latent][real] transitions of held-out episodes, or null
    num_labelled     of these, from which real_of_latent and latent_of_real were learned: at most 200; or null
    step             training steps of the weights that were looked at, or null
Of a run that was trained on all but the names is found out anew.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.clips import ClipDataset
from data.episodes import Episodes, write_json
from models.genie_redux import WorldModel
from play import arrows
from training import latent_tables

FILE = latent_tables.FILE
LONGEST_NAME = 24
NUM_CLIPS = 64  # that are looked at; each gives window - 1 transitions
CLIPS_AT_ONCE = 16
_writing = threading.Lock()


@dataclass(frozen=True)
class LatentActionNames:
    """The contents of `latent_actions.json`."""

    num_actions: int
    names: list[str] | None = None
    keys: dict[str, int] | None = None
    real_names: list[str] | None = None
    real_of_latent: list[int] | None = None
    latent_of_real: list[int] | None = None
    counts: list[list[int]] | None = None
    num_labelled: int | None = None
    step: int | None = None

    def is_of(self, step: int) -> bool:
        """Whether the table is there, and of weights that were trained for so many steps."""
        return self.counts is not None and (self.step or 0) == step

    def shown(self) -> list[str]:
        """What the page calls the actions: as a person named them, else after the real actions, else by number."""
        given = self.names or [""] * self.num_actions
        return [name or suggested for name, suggested in zip(given, self.suggested(), strict=True)]

    def suggested(self) -> list[str]:
        """Each named after the real action whose keys press it, else after the one that it stands out with.

        Numbered where several have the same. What it stands out with is the real action that adds most to what the
        latent one says about real ones (the mutual information); the most frequent one would often only say which
        action is taken most at all.
        """
        names = [f"action {index}" for index in range(self.num_actions)]
        if self.counts is None or self.real_names is None:
            return names
        counts = np.array(self.counts, dtype=float)
        by_chance = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / max(1, counts.sum())
        said = counts * np.log(np.maximum(counts, 1) / np.maximum(by_chance, 1e-9))
        for index in np.flatnonzero(counts.any(axis=1)):
            names[index] = self.real_names[said[index].argmax()]
        for name, latent in reversed(self.mapped().items()):  # of several that press it the first one names it
            names[latent] = name
        return [
            f"{name} {names[:index].count(name) + 1}" if names.count(name) > 1 else name
            for index, name in enumerate(names)
        ]

    def pressed(self) -> dict[str, int]:
        """The latent action of each combination of arrows, "" for none: as people named them, else as the map says."""
        found = self.found_keys() if self.keys is None else self.keys
        return found | arrows.bindings(self.names or [], range(len(self.names or [])))

    def found_keys(self) -> dict[str, int]:
        """What the map says of the real actions that arrows stand for."""
        return arrows.bindings(self.mapped(), self.mapped().values())

    def agreement(self) -> tuple[float, float] | None:
        """Shares of the counted transitions: whose real action is the one that their latent one stands for, and whose
        is the most frequent of all. Where both are alike, arrows say little about what will be seen."""
        if self.counts is None or self.real_of_latent is None or not np.any(self.counts):
            return None
        counts = np.array(self.counts)
        stands_for = [(latent, real) for latent, real in enumerate(self.real_of_latent) if real is not None]
        right = sum(counts[pair] for pair in stands_for)
        return float(right / counts.sum()), float(counts.sum(axis=0).max() / counts.sum())

    def mapped(self) -> dict[str, int]:
        """The latent action for each real one that was seen at all."""
        if self.real_names is None or self.latent_of_real is None or self.counts is None:
            return {}
        is_seen = np.array(self.counts).any(axis=0)
        pairs = zip(self.real_names, self.latent_of_real, is_seen, strict=True)
        return {name: latent for name, latent, seen in pairs if seen and latent is not None}


def read(folder: Path, num_actions: int) -> LatentActionNames:
    """The file of a run folder; nothing known where there is none. Raises ValueError for one that does not fit."""
    fpath = folder / FILE
    if not fpath.is_file():
        return LatentActionNames(num_actions)
    try:
        content = json.loads(fpath.read_text(encoding="utf-8"))
        known = LatentActionNames(**{field.name: content.get(field.name) for field in fields(LatentActionNames)})
        if isinstance(known.names, dict):  # evaluations once wrote the real actions there; no person gave these
            known = replace(known, names=None)
        fits = known.num_actions == num_actions and all(_fits(known))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{fpath} is not readable ({error}); delete it") from None
    if not fits:
        raise ValueError(f"{fpath} is not for {num_actions} latent actions; delete it")
    return known


def _fits(known: LatentActionNames) -> Iterator[bool]:
    """Whether the parts that are there belong to so many latent actions, and to each other."""
    num_latent, num_real = known.num_actions, len(known.real_names or [])
    if known.names is not None:
        yield len(known.names) == num_latent and all(isinstance(name, str) for name in known.names)
    if known.keys is not None:
        yield all(0 <= action < num_latent for action in known.keys.values())
    if known.real_of_latent is not None:
        yield len(known.real_of_latent) == num_latent
    if known.latent_of_real is not None:
        yield len(known.latent_of_real) == num_real
        yield all(latent is None or 0 <= latent < num_latent for latent in known.latent_of_real)
    if known.counts is not None:
        yield np.shape(known.counts) == (num_latent, num_real)


def write(folder: Path, known: LatentActionNames) -> bool:
    """Write the file atomically; False where the folder cannot be written to."""
    with _writing:
        try:
            write_json(folder / FILE, asdict(known))
        except OSError:
            return False
    return True


def checked_names(names: Any, num_actions: int) -> list[str] | None:
    """Names as a stranger sent them, "" for none; only blanks take them all back. Raises ValueError in one line."""
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != num_actions or not all(isinstance(name, str) for name in names):
        raise ValueError(f"names must be a list of {num_actions} texts")
    names = [" ".join(name.split()) for name in names]
    for name in names:
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise ValueError(f"a name must be of at most {LONGEST_NAME} printable characters")
    return names if any(names) else None


@torch.no_grad()
def measure(
    known: LatentActionNames,
    world: WorldModel,
    episodes: Episodes,
    num_frames: int,
    *,
    frame_skip: int,
    step: int,
) -> LatentActionNames:
    """Count which real actions a latent world's action model reads off held-out clips, and as what.

    frame_skip: the world sees every how-manieth frame; the action at the first of those it skips counts. step: of its
    training. Raises ValueError where the data set has no actions, other frames, or no episode that is long enough.
    """
    if not episodes.has_actions or tuple(episodes.image_size) != tuple(world.image_size):
        raise ValueError(f"{episodes.name} has no actions to compare with, or frames of another size")
    root = episodes.fpaths[0].parent.parent
    sizes = {"frame_skip": frame_skip, "seq_step": (num_frames - 1) * frame_skip + 1}
    dataset = ClipDataset(root, episodes.name, episodes.split, num_frames, **sizes)
    chosen = latent_tables.spread(len(dataset), NUM_CLIPS)
    device = next(world.parameters()).device
    codes, actions = [], []
    for start in range(0, len(chosen), CLIPS_AT_ONCE):
        clip = dataset.batch(np.array(chosen[start : start + CLIPS_AT_ONCE])).to(device)
        codes.append(world.infer(clip).cpu().numpy())
        actions.append(clip.actions.cpu().numpy())
    table = latent_tables.tables(
        np.concatenate(codes), np.concatenate(actions), known.num_actions, episodes.num_actions
    )
    parts = {key: table[key] for key in ("real_of_latent", "latent_of_real", "counts", "num_labelled")}
    found = replace(known, real_names=list(episodes.action_names), **parts, step=step)
    return replace(found, keys=found.found_keys())
