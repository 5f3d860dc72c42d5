"""Make a dataset of one in the layout of GenieRedux, with its actions.

  python -m data.import_genieredux datasets/coinrun_v2.0.0
  python -m data.import_genieredux datasets/coinrun_v2.0.0_test --name coinrun_published_test

Reads <instance>/<session>/frames/<frame>.jpg and actions.json, and info.json where it is there; the folder may contain
another of the same name, as published. Writes <root>/<name>/info.json and HDF5 shards, a session becoming an episode
whose `level_seed` is the instance. Instances are split as GenieRedux does it: the first 90 % train, then 9 %
validation, 1 % test; a dataset whose name ends in _test is all test.

A row of actions.json leads from frame src_id to tgt_id: its action becomes the one taken at frame src_id. The row with
src_id -1 led from the reset, which was not stored, and is dropped. At a session's last frame no action is known, so
that frame is left out; GenieRedux does not train on it either (its last window is skipped). There are no rewards.

Sessions with missing frames or unreadable actions are listed and skipped. The same command goes on after an
interruption, and the same files give the same bytes.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from tqdm import tqdm

from data.command_line import ArgumentParser, at_least, folder_name
from data.import_command import add_place, report, run_importer
from data.importing import DamagedError, Target, import_recordings, shard_frames
from data.pictures import open_image

REVISION = 2  # goes up when the same input would give other bytes
SPLITS = ("train", "validation", "test")
COINRUN_ACTIONS = ["NOOP", "RIGHT", "LEFT", "JUMP", "RIGHT_JUMP", "LEFT_JUMP", "DOWN"]
LARGEST_ACTION = 2**15 - 1  # of an int16


@dataclass(frozen=True)
class Session:
    """A session as a `Recording`: its frames 0 to T-1, those at which an action is known."""

    path: Path
    name: str
    split: str
    level_seed: int
    actions: np.ndarray  # (T,) int16
    image_size: tuple[int, int]

    @property
    def num_frames(self) -> int:
        return len(self.actions)

    def pictures(self, first: int) -> Iterator[np.ndarray]:
        height, width = self.image_size
        for number in range(first, self.num_frames):
            image = open_image(self.path / "frames" / frame_name(number))
            if image.size != (width, height):
                raise DamagedError(f"{frame_name(number)} is {image.height}x{image.width}, not {height}x{width}")
            yield np.asarray(image.convert("RGB"))


class Layout(NamedTuple):
    """What a folder in GenieRedux's layout holds."""

    path: Path
    instances: list[int]
    sessions: dict[str, tuple[int, np.ndarray]]  # instance and actions (T,) int16, by <instance>/<session>
    skipped: dict[str, str]  # sessions that cannot be used, and why
    info: dict[str, Any]  # info.json


def main(arguments: list[str]) -> int:
    return run_importer(run, arguments)


def run(arguments: list[str]) -> None:
    """Raises ValueError and OSError with one line where the input or an argument is bad."""
    parser = ArgumentParser("data.import_genieredux", __doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="of the dataset: it has info.json and 000000/000000/…")
    add_place(parser, "of the new dataset (default: as the folder)", is_name_required=False)
    parser.add_argument("--split", choices=SPLITS, help="put all instances there (default: 90, 9 and 1 %%)")
    parser.add_argument("--frames_per_shard", type=at_least(2), help="and so in memory (default: 256 MB of them)")
    settings = parser.parse_args(arguments)

    layout = read_layout(find_layout(settings.folder))
    names = action_names(layout)
    sizes = image_size(layout)
    name = settings.name or folder_name(layout.path.resolve().name)
    split = settings.split or ("test" if name.endswith("_test") else None)
    recordings = arrange(layout, split, sizes)
    longest = max(recording.num_frames for recording in recordings)
    per_shard = max(longest, settings.frames_per_shard or shard_frames(sizes, longest))
    num_missing = layout.instances[-1] + 1 - len(layout.instances)
    if num_missing:
        print(f"note: {num_missing} instances below {layout.instances[-1]} are not there; splits go by their numbers")
    target = Target(
        folder=Path(settings.root) / name,
        origin=origin(
            layout, image_size=list(sizes), split=split, frames_per_shard=per_shard, compression=settings.compression
        ),
        image_size=sizes,
        action_names=names,
        max_frames=longest,
        frames_per_shard=per_shard,
        compression=settings.compression,
        about={
            "version": layout.info.get("version"),
            "game": "coinrun" if names == COINRUN_ACTIONS else None,
            "missing_instances": num_missing,
        },
        skipped=layout.skipped,
    )
    report(target.folder, import_recordings(target, recordings))


def origin(layout: Layout, **config: Any) -> dict[str, Any]:
    """Where the dataset comes from. Of the pictures, the number counts: they are read only to be decoded."""
    digest = hashlib.sha256()
    for name, (_, actions) in layout.sessions.items():
        digest.update(f"{name}\0{len(actions)}\0".encode())
        digest.update(actions)
    return {
        "importer": "data.import_genieredux",
        "revision": REVISION,
        "versions": {"pillow": PIL.__version__},
        "config": {"input": f"{len(layout.sessions)} sessions {digest.hexdigest()[:16]}", **config},
    }


def arrange(layout: Layout, only: str | None, image_size: tuple[int, int]) -> list[Session]:
    """The sessions by split; instances count by their numbers, so that one that is missing moves no other."""
    num_instances = layout.instances[-1] + 1

    def split(instance: int) -> str:
        return only or SPLITS[(instance >= num_instances * 90 // 100) + (instance >= num_instances * 99 // 100)]

    return [
        Session(layout.path / name, name, split(instance), instance, actions, image_size)
        for name, (instance, actions) in layout.sessions.items()
    ]


# ---------------------------------------------------------------------------------------------------------- the layout


def frame_name(number: int) -> str:
    return f"{number:06d}.jpg"


def find_layout(path: Path) -> Path:
    """The folder that holds the instances; ValueError where there is none."""
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; give the one that holds 000000/000000/frames")
    inner = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    for candidate in (path, path / path.resolve().name, *(inner if len(inner) == 1 else [])):
        if any((session / "frames").is_dir() for _, folder in numbered(candidate) for _, session in numbered(folder)):
            return candidate
    raise ValueError(
        f"{path} has no <instance>/<session>/frames, as in 000000/000000/frames; for other pictures and videos there "
        "is python -m data.import_videos"
    )


def numbered(path: Path) -> list[tuple[int, Path]]:
    """The folders that have a number for a name, in its order."""
    if not path.is_dir():
        return []
    folders = [entry for entry in path.iterdir() if entry.name.isascii() and entry.name.isdigit() and entry.is_dir()]
    return sorted((int(folder.name), folder) for folder in folders)


def read_layout(path: Path) -> Layout:
    """All actions, checked; frames are counted, not read. Raises ValueError where no session can be used."""
    info = _read_json(path / "info.json") if (path / "info.json").exists() else {}
    instances = numbered(path)
    sessions, skipped = {}, {}
    for instance, folder in tqdm(instances, "looking", unit=" instances", mininterval=0.5, leave=False):
        for _, session in numbered(folder):
            name = f"{folder.name}/{session.name}"
            try:
                sessions[name] = instance, read_session(session)
            except DamagedError as error:
                skipped[name] = str(error)
    if not sessions:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise ValueError(f"none of the {len(skipped)} sessions in {path} can be used ({reasons})")
    return Layout(path, [instance for instance, _ in instances], sessions, skipped, info)


def read_session(path: Path) -> np.ndarray:
    """The actions at its frames 0 to T-1: (T,) int16. Raises DamagedError where they or their frames are not there."""
    actions = _actions(path / "actions.json")
    frames = path / "frames"
    if not frames.is_dir():
        raise DamagedError(
            "it has frames.mp4, as GenieRedux 2 writes, and no folder frames"
            if (path / "frames.mp4").exists()
            else "it has no folder frames"
        )
    there = set(os.listdir(frames))
    missing = [number for number in range(len(actions)) if frame_name(number) not in there]
    if missing:
        raise DamagedError(f"frames/{frame_name(missing[0])} is missing ({len(missing)} of {len(actions)} are)")
    if frame_name(len(actions) + 1) in there:
        raise DamagedError(f"actions.json ends at frame {len(actions)}, but there are more frames")
    return actions


def _actions(fpath: Path) -> np.ndarray:
    rows = _rows(fpath)
    actions = np.full(len(rows), -1, np.int16)
    for source, target, action in rows:
        if source == -1:  # from the reset, whose frame was not stored
            continue
        if target != source + 1 or not 0 <= source < len(rows):
            raise DamagedError(f"actions.json has a row from frame {source} to {target}")
        if not 0 <= action <= LARGEST_ACTION:
            raise DamagedError(f"actions.json has action {action} at frame {source}")
        if actions[source] >= 0:
            raise DamagedError(f"actions.json has two rows for frame {source}")
        actions[source] = action
    length = sum(source >= 0 for source, _, _ in rows)
    holes = np.flatnonzero(actions[:length] < 0)
    if len(holes):
        raise DamagedError(f"actions.json has no row for frame {holes[0]}")
    if length < 2:
        raise DamagedError("it has fewer than two frames with a known action")
    return actions[:length]


def _rows(fpath: Path) -> list[tuple[int, int, int]]:
    """(src_id, tgt_id, action) of every row."""
    try:
        rows = json.loads(fpath.read_bytes())["actions"]
        rows = [(row["src_id"], row["tgt_id"], row["action"]) for row in rows]
    except FileNotFoundError:
        raise DamagedError("actions.json is missing") from None
    except (KeyError, TypeError):
        raise DamagedError("actions.json is not a list `actions` of rows with src_id, tgt_id and action") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"actions.json is not readable JSON ({error})") from None
    if not all(type(value) is int for row in rows for value in row):
        raise DamagedError("actions.json has a src_id, tgt_id or action that is not a whole number")
    return rows


def _read_json(fpath: Path) -> dict[str, Any]:
    try:
        content = json.loads(fpath.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{fpath} is not readable JSON ({error}); repair or remove it") from None
    if not isinstance(content, dict):
        raise ValueError(f"{fpath} is not a JSON object; repair or remove it")
    return content


def action_names(layout: Layout) -> list[str]:
    """As many as info.json says, or as occur; sessions with other actions go to `skipped`."""
    details = layout.info.get("info")
    space = details.get("action_space") if isinstance(details, dict) else None
    space = space[0] if isinstance(space, list) and len(space) == 1 else space
    if type(space) is not int or not 1 <= space <= LARGEST_ACTION + 1:
        space = max(int(actions.max()) for _, actions in layout.sessions.values()) + 1
    for name, (_, actions) in list(layout.sessions.items()):
        if actions.max() >= space:
            layout.skipped[name] = f"actions.json has action {actions.max()}, info.json allows 0 to {space - 1}"
            del layout.sessions[name]
    if not layout.sessions:
        raise ValueError(f"all sessions in {layout.path} have actions beyond action_space {space}; correct info.json")
    return COINRUN_ACTIONS if space == len(COINRUN_ACTIONS) else [f"action{number}" for number in range(space)]


def image_size(layout: Layout) -> tuple[int, int]:
    """(height, width) of the first frame that can be read."""
    for name in layout.sessions:
        try:
            image = open_image(layout.path / name / "frames" / frame_name(0))
        except DamagedError:
            continue  # it is reported when its turn comes
        return image.height, image.width
    raise ValueError(
        f"none of {len(layout.sessions)} first frames in {layout.path} can be decoded; is it a whole copy?"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
