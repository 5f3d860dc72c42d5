"""What a person needs to look at the clips of a step: their file, their episode in it, their first frame."""

import numpy as np

from data.clips import ClipDataset
from data.order import shuffled
from training.state import TrainingState

SHOWN = 8  # clips that are named in a line


def names_of(dataset: ClipDataset, windows: np.ndarray) -> list[str]:
    """`train-00003.h5 episode 17 frame 40` for each window; episodes and frames count from 0 in their file."""
    shards = dataset.episodes.info["splits"][dataset.episodes.split]["shards"]
    stops = np.cumsum([shard["episodes"] for shard in shards])
    names = []
    for window in windows.tolist():
        episode, frame = dataset.locate(window)
        number = int(np.searchsorted(stops, episode, side="right"))
        first = int(stops[number - 1]) if number else 0
        names.append(f"{shards[number]['file']} episode {episode - first} frame {frame}")
    return names


def in_words(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


class StepClips:
    """The clips that this process trains on at a step, found again from the formula that chose them."""

    def __init__(
        self, dataset: ClipDataset, state: TrainingState, *, seed: int, batch_size: int, grad_accum: int, rank: int,
        world_size: int,
    ):  # fmt: skip
        self.dataset, self.state, self.seed = dataset, state, seed
        self.batch_size, self.grad_accum, self.rank, self.world_size = batch_size, grad_accum, rank, world_size

    def names(self, step: int, micro_batch: int | None = None) -> list[str]:
        """Of one micro-batch, or of all of them. step: one of this run, counted from 0, since its last start."""
        per_batch = self.batch_size * self.world_size
        consumed = self.state.clips_consumed - (self.state.step - step) * per_batch * self.grad_accum
        batches = np.arange(self.grad_accum) if micro_batch is None else np.array([micro_batch])
        firsts = consumed + batches * per_batch + self.rank * self.batch_size
        numbers = (firsts[:, None] + np.arange(self.batch_size)).ravel()
        return names_of(self.dataset, shuffled(numbers, len(self.dataset), self.seed))
