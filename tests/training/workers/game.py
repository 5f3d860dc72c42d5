"""A game whose future is known: every action pushes a square by so many pixels to the right, around the edge."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.clips import Clip
from data.episodes import FORMAT, Episode, shard_name, summarise_shard, write_json, write_shard

SIZE, NUM_ACTIONS = 16, 5


def play(start: Tensor, actions: Tensor) -> Tensor:
    """start (B, C, H, W), actions (B, K) -> the K frames that follow, (B, K, C, H, W)."""
    places = actions.cumsum(1)
    rows = [torch.stack([frame.roll(int(n), dims=-1) for n in row]) for frame, row in zip(start, places, strict=True)]
    return torch.stack(rows)


def squares(count: int, num_frames: int, seed: int = 0, size: int = SIZE) -> Clip:
    """Clips of a bright square on dark ground under random actions."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.full((count, 3, size, size), 0.2)
    start[:, :, :4, :4] = 0.8
    places = torch.randint(size, (count, 2), generator=generator)
    start = torch.stack(
        [frame.roll(tuple(place), dims=(-2, -1)) for frame, place in zip(start, places.tolist(), strict=True)]
    )
    actions = torch.randint(NUM_ACTIONS, (count, num_frames - 1), generator=generator)
    frames = torch.cat([start[:, None], play(start, actions)], 1)
    return Clip(frames, actions, seeds=torch.arange(count) * 7919 + 5)


def write_game(root: Path, name: str, size: int = SIZE, **splits: tuple[int, int, int]) -> None:
    """The game as a dataset: each split has so many episodes, of so many frames, from such a level seed on."""
    folder = root / name
    folder.mkdir(parents=True)
    listed = {}
    for number, (split, (count, length, first_level)) in enumerate(splits.items()):
        clips = squares(count, length + 1, seed=number, size=size)
        frames = (clips.frames * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
        episodes = [
            Episode(
                frames=frames[row, :length],
                actions=clips.actions[row].numpy().astype(np.int16),
                rewards=np.zeros(length, np.float32),
                level_seed=first_level + row,
                end_reason="coin",
            )
            for row in range(count)
        ]
        fpath = folder / shard_name(split, 0)
        write_shard(fpath, episodes)
        listed[split] = {"episodes": count, "frames": count * length, "shards": [summarise_shard(fpath)]}
    info = {
        "format": FORMAT,
        "name": name,
        "game": "squares",
        "generator": {"config": {"distribution_mode": "hard"}},
        "image_size": [size, size],
        "action_names": [f"push {n}" for n in range(NUM_ACTIONS)],
        "splits": listed,
    }
    write_json(folder / "info.json", info)
