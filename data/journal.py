"""How far an import has come, and which files it could not read.

The journal is written before what it speaks of, atomically, so that a process may be killed at any time: first as part
of `unfinished.json`, at the end as part of `info.json`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.episodes import UNFINISHED, write_json


@dataclass
class Journal:
    """How far the import into `folder` has come, and which files it could not read."""

    folder: Path
    origin: dict[str, Any]  # importer, revision, versions and config: everything needed to make the same bytes again
    # For each shard, where the next one begins: the recording's number within the split, and the frame of it.
    places: dict[str, list[int]] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)  # files that were read up to some frame, and what is there
    skipped: dict[str, str] = field(default_factory=dict)  # files of which nothing is in the dataset, and why

    def recall(self) -> None:
        """Take over what the folder says; ValueError where what it holds was made in another way."""
        finished, unfinished = self.folder / "info.json", self.folder / UNFINISHED
        if finished.exists():
            info = _read(finished)
            _refuse_another_origin(self.folder, info.get("generator", {}), self.origin)
            shards = [shard for split in info["splits"].values() for shard in split["shards"]]
            for shard in shards:
                _remove_truncated(self.folder / shard["file"], shard.get("bytes"))
            self._take_over(info, {shard["file"]: shard["next"] for shard in shards})
        elif unfinished.exists():
            found = _read(unfinished)
            _refuse_another_origin(self.folder, found, self.origin)
            self._take_over(found, found["places"])
        elif any(self.folder.glob("*.h5")):
            raise ValueError(
                f"{self.folder} holds shards of unknown origin (no info.json); set another --name or delete it"
            )

    def _take_over(self, found: dict[str, Any], places: dict[str, list[int]]) -> None:
        self.places = dict(places)
        self.damaged |= {entry["file"]: entry["reason"] for entry in found["damaged"]}
        self.skipped |= {entry["file"]: entry["reason"] for entry in found["skipped"]}

    def write(self) -> None:
        write_json(self.folder / UNFINISHED, self.origin | self.lists() | {"places": self.places})

    def shards(self) -> list[str]:
        """The finished ones, split by split."""
        return sorted(name for name in self.places if (self.folder / name).exists())

    def is_complete(self) -> bool:
        return (self.folder / "info.json").exists() and len(self.shards()) == len(self.places)

    def lists(self) -> dict[str, Any]:
        return {
            key: [{"file": name, "reason": reason} for name, reason in sorted(entries.items())]
            for key, entries in (("skipped", self.skipped), ("damaged", self.damaged))
        }


def _remove_truncated(fpath: Path, num_bytes: int | None) -> None:
    """Remove a shard that is not as long as it was written, so that it is written again; None: that is not known."""
    if num_bytes is not None and fpath.exists() and fpath.stat().st_size != num_bytes:
        print(f"{fpath} has {fpath.stat().st_size:,} bytes, not {num_bytes:,}; it is written again", flush=True)
        fpath.unlink()


def _read(fpath: Path) -> dict[str, Any]:
    try:
        return json.loads(fpath.read_text())
    except ValueError as error:
        raise ValueError(
            f"{fpath} is not readable JSON ({error}); set another --name or delete {fpath.parent}"
        ) from None


def _refuse_another_origin(folder: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    if theirs.get("importer") != ours["importer"]:
        raise ValueError(f"{folder} was not made by this importer; set another --name or delete that folder")
    theirs, ours = ({"revision": origin["revision"], **origin["config"]} for origin in (theirs, ours))
    different = [key for key in theirs | ours if theirs.get(key) != ours.get(key)]
    if different:
        there = ", ".join(f"{key}={theirs.get(key)}" for key in different)
        here = ", ".join(f"{key}={ours.get(key)}" for key in different)
        raise ValueError(f"{folder} was made with {there}, this run asks for {here}; set another --name or delete it")
