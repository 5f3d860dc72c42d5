"""What the importers share: recordings, one after the other, become the shards of a dataset.

Which frames a shard holds follows from the recordings and the settings alone. An interrupted import goes on behind its
last shard, and a shard that was deleted is made again with the same bytes (`data/journal.py` knows where each begins).
Memory: one shard and a few frames, however long the recordings are.
"""

import itertools
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from data.episodes import END_REASONS, FORMAT, UNFINISHED, Episode, shard_name, summarise_shard, write_json, write_shard
from data.journal import Journal
from data.locks import claim

SHARD_BYTES = 2**28  # of frames in a shard, and so in memory, unless an episode alone is larger


class DamagedError(ValueError):
    """A recording, or the rest of it, cannot be read; what came before it is good."""


class Recording(Protocol):
    """Something that becomes one episode, or several where it is longer than an episode may be."""

    name: str  # how it is called where something is wrong with it
    split: str
    level_seed: int
    num_frames: int  # expected, for the progress bar; 0 = unknown
    actions: np.ndarray | None  # (T,) int16: the action taken at each frame

    def pictures(self, first: int) -> Iterator[np.ndarray]:
        """Its frames from number `first` on, (H, W, 3) uint8 RGB; raises DamagedError where they cannot be read."""
        ...


@dataclass(frozen=True)
class Target:
    """The dataset that an import writes."""

    folder: Path
    origin: dict[str, Any]  # importer, revision, versions and config: everything needed to make the same bytes again
    image_size: tuple[int, int]
    action_names: list[str] | None
    max_frames: int  # of an episode
    frames_per_shard: int  # at least max_frames
    compression: str | None
    about: dict[str, Any]  # further entries of info.json
    skipped: dict[str, str] = field(default_factory=dict)  # what was found to be unreadable beforehand, and why


class Summary(NamedTuple):
    """What an import did; `info` is None where there was nothing left to do."""

    num_frames: int
    seconds: float
    info: dict[str, Any] | None


def shard_frames(image_size: tuple[int, int], max_frames: int) -> int:
    """Frames of a shard where nobody asked for another number."""
    return max(max_frames, SHARD_BYTES // (image_size[0] * image_size[1] * 3))


def import_recordings(target: Target, recordings: Sequence[Recording]) -> Summary:
    """Write what is missing of the dataset.

    Raises ValueError where its folder belongs to another import or none of the recordings can be read, OSError where
    the disk is full. Shards that are finished by then stay, and the next call goes on behind them.
    """
    with claim(target.folder, cure="wait for it, or set another --name"):
        journal = Journal(target.folder, target.origin, skipped=dict(target.skipped))
        journal.recall()
        if journal.is_complete():
            return Summary(0, 0.0, None)
        journal.write()
        for leftover in target.folder.glob(".*.tmp"):
            leftover.unlink()
        _announce_size(target, recordings)
        num_frames, seconds = _write_shards(target, recordings, journal)
        if not journal.shards():
            (target.folder / UNFINISHED).unlink()
            raise ValueError(_nothing_readable(recordings, journal))
        info = _info(target, journal)
        write_json(target.folder / "info.json", info)
        (target.folder / UNFINISHED).unlink()
        return Summary(num_frames, seconds, info)


def _nothing_readable(recordings: Sequence[Recording], journal: Journal) -> str:
    reasons = [f"{name}: {reason}" for name, reason in sorted(journal.skipped.items())]
    return f"none of {len(recordings)} recordings has two readable frames ({'; '.join(reasons[:3])})"


def _announce_size(target: Target, recordings: Sequence[Recording]) -> None:
    num_frames = sum(recording.num_frames for recording in recordings)
    num_bytes = num_frames * target.image_size[0] * target.image_size[1] * 3
    free = shutil.disk_usage(target.folder).free
    print(
        f"{target.folder.name}: {len(recordings):,} recordings, about {num_frames:,} frames and "
        f"{num_bytes / 1e9:.2f} GB ({free / 1e9:.0f} GB free) to {target.folder}",
        flush=True,
    )
    if target.compression is None and num_bytes > free:  # not an error: the headers of videos may promise anything
        print(f"warning: that is more than is free in {target.folder}", file=sys.stderr, flush=True)


def _info(target: Target, journal: Journal) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for name in journal.shards():
        summary = summarise_shard(target.folder / name)
        split = splits.setdefault(name.rpartition("-")[0], {"episodes": 0, "frames": 0, "shards": []})
        split["episodes"] += summary["episodes"]
        split["frames"] += summary["frames"]
        split["shards"].append(summary | {"next": journal.places[name]})
    return {
        "format": FORMAT,
        "name": target.folder.name,
        **target.about,
        "image_size": list(target.image_size),
        "action_names": target.action_names,
        "end_reasons": list(END_REASONS),
        "generator": target.origin,
        **journal.lists(),
        "splits": splits,
    }


# -------------------------------------------------------------------------------------------------- writing the shards


def _write_shards(target: Target, recordings: Sequence[Recording], journal: Journal) -> tuple[int, float]:
    """Frames written and seconds needed."""
    there = sum(summarise_shard(target.folder / name)["frames"] for name in journal.shards())
    expected = sum(recording.num_frames for recording in recordings)
    with tqdm(total=max(expected, there) or None, initial=there, unit=" frames", smoothing=0.1, mininterval=0.5) as bar:
        writer = _Writer(target, journal, bar)
        for split in dict.fromkeys(recording.split for recording in recordings):
            writer.write_split(split, [recording for recording in recordings if recording.split == split])
        return bar.n - there, bar.format_dict["elapsed"]


class _Piece(NamedTuple):
    """An episode, and what follows it: a recording's number within the split and a frame of it."""

    episode: Episode
    following: list[int]


class _Writer:
    """Fills shard after shard; `room` is the memory of the one in work, and the episodes are views of it."""

    def __init__(self, target: Target, journal: Journal, bar: tqdm):
        self.target, self.journal, self.bar = target, journal, bar
        self.room = np.empty((target.frames_per_shard, *target.image_size, 3), np.uint8)
        self.used = 0

    def write_split(self, split: str, recordings: Sequence[Recording]) -> None:
        place, pieces = [0, 0], None
        for number in itertools.count():
            fpath = self.target.folder / shard_name(split, number)
            if fpath.exists():
                place, pieces = self.journal.places[fpath.name], None
                continue
            # The stream of pieces goes on from shard to shard, or a long video would be decoded again for each.
            pieces = pieces or self._pieces(recordings, place)
            episodes = []
            self.used = 0
            while self.target.frames_per_shard - self.used >= self.target.max_frames:
                piece = next(pieces, None)
                if piece is None:
                    break
                episodes.append(piece.episode)
                self.used += len(piece.episode.frames)
                place = piece.following
            if not episodes:
                return
            self.journal.places[fpath.name] = place
            self.journal.write()
            write_shard(fpath, episodes, compression=self.target.compression)

    def _pieces(self, recordings: Sequence[Recording], place: list[int]) -> Iterator[_Piece]:
        number, first = place
        for following, recording in enumerate(recordings[number:], number + 1):
            end = first
            for episode in self._episodes(recording, first):
                end += len(episode.frames)
                is_cut = episode.end_reason == "time_limit"
                yield _Piece(episode, [following - 1, end] if is_cut else [following, 0])
            if not end:
                reason = self.journal.damaged.pop(recording.name, "it has one frame only")
                self.journal.skipped[recording.name] = reason
            first = 0

    def _episodes(self, recording: Recording, first: int) -> Iterator[Episode]:
        """The recording from frame `first` on, cut where an episode is full; nothing of one that has a single frame."""
        pictures = self._readable(recording, first)
        waiting = next(pictures, None)
        while waiting is not None:
            frames = self.room[self.used :][: self.target.max_frames]
            length = 0
            while waiting is not None and length < len(frames):
                frames[length] = waiting
                length += 1
                waiting = next(pictures, None)
            if first + length == 1:
                return
            actions = None if recording.actions is None else recording.actions[first : first + length]
            # As in a game that is stopped at a limit of ours: the recording itself goes on.
            end_reason = "end_of_recording" if waiting is None else "time_limit"
            yield Episode(frames[:length], actions, None, recording.level_seed, end_reason)
            first += length
            self.bar.update(length)

    def _readable(self, recording: Recording, first: int) -> Iterator[np.ndarray]:
        """The recording's frames up to the first that cannot be read, which is noted."""
        try:
            yield from recording.pictures(first)
        except DamagedError as error:
            self.journal.damaged[recording.name] = str(error)
