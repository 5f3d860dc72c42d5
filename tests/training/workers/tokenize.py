"""Started by tests in processes of their own: `main(ROOT, [key__sub=value …])`.

Writes the tokens of the sharded dataset. `slow=SECONDS` waits before every batch, so that a test can strike meanwhile.
"""

import time
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from data.episodes import FORMAT, Episode, shard_name, summarise_shard, write_json, write_shard
from models.tokenizer import STViViT
from tests.training.workers import tiny
from training import tokenization

LENGTHS = {"train": (9, 12, 7, 3, 8, 10, 2, 3), "validation": (8, 6)}  # too short for a clip of 4: the last shard's


def write_data(root: Path, seed: int = 0) -> None:
    """The dataset `noise` as in `tiny`, with two episodes a shard."""
    generator = np.random.default_rng(seed)
    folder = root / "data" / "noise"
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, lengths in LENGTHS.items():
        shards = []
        for number, first in enumerate(range(0, len(lengths), 2)):
            episodes = [_episode(generator, length, level) for level, length in enumerate(lengths)][first : first + 2]
            fpath = folder / shard_name(split, number)
            write_shard(fpath, episodes)
            shards.append(summarise_shard(fpath))
        splits[split] = {"episodes": len(lengths), "frames": sum(lengths), "shards": shards}
    info = {"format": FORMAT, "name": "noise", "image_size": [tiny.SIZE] * 2, "action_names": list("abc")}
    write_json(folder / "info.json", info | {"splits": splits})


def _episode(generator: np.random.Generator, length: int, level: int) -> Episode:
    frames = generator.integers(0, 256, (length, tiny.SIZE, tiny.SIZE, 3), dtype=np.uint8)
    actions = generator.integers(0, 3, length).astype(np.int16)
    return Episode(frames, actions, np.zeros(length, np.float32), level, "coin")


def configure(root: Path, kind: str = "genie_redux_guided", **settings: object) -> DictConfig:
    if not (root / "data").exists():
        write_data(root)
    return tiny.configure(kind, root, **settings)


def slow_down(seconds: float) -> None:
    encode = STViViT.encode

    def slow(self, frames):
        time.sleep(seconds)
        return encode(self, frames)

    STViViT.encode = slow


def main(root: str, *words: str) -> None:
    settings = dict(word.split("=", 1) for word in words)
    slow_down(float(settings.pop("slow", 0)))
    tokenization.run(configure(Path(root), **settings))
