"""Small datasets whose pixels say where they come from, written through the public writer."""

from pathlib import Path

import numpy as np

from data.episodes import FORMAT, Episode, shard_name, summarise_shard, write_json, write_shard

HEIGHT, WIDTH = 4, 6


def make_episode(level: int, length: int, *, with_actions: bool = True) -> Episode:
    """Frame t is filled with (level, t, level ^ t); its action is (level + t) % 7 and its reward t / 10."""
    time = np.arange(length)
    colours = np.stack([np.full(length, level), time, level ^ time], axis=1).astype(np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (length, HEIGHT, WIDTH, 3)).copy()
    actions, rewards = ((level + time) % 7).astype(np.int16), (time / 10).astype(np.float32)
    return Episode(frames, actions if with_actions else None, rewards if with_actions else None, level, "death")


def make_dataset(
    root: Path,
    name: str,
    lengths: list[int],
    *,
    episodes_per_shard: int = 3,
    compression: str | None = None,
    with_actions: bool = True,
) -> list[Episode]:
    """A dataset with one split, `train`; level seeds count from 0."""
    folder = root / name
    folder.mkdir(parents=True)
    episodes = [make_episode(level, length, with_actions=with_actions) for level, length in enumerate(lengths)]
    shards = []
    for number, first in enumerate(range(0, len(episodes), episodes_per_shard)):
        fpath = folder / shard_name("train", number)
        write_shard(fpath, episodes[first : first + episodes_per_shard], compression=compression)
        shards.append(summarise_shard(fpath))
    info = {
        "format": FORMAT,
        "name": name,
        "image_size": [HEIGHT, WIDTH],
        "action_names": [f"action{number}" for number in range(7)] if with_actions else None,
        "splits": {"train": {"episodes": len(episodes), "frames": sum(lengths), "shards": shards}},
    }
    write_json(folder / "info.json", info)
    return episodes
