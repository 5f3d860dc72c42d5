"""Make a dataset of video files and image sequences. They need no actions: those are for latent actions to find.

  python -m data.import_videos --input ~/gameplay --name gameplay
  python -m data.import_videos --input ~/gameplay --name gameplay_wide --image_size 64x96 --fit pad --fps 15
  bash run.sh --config=videos.yaml --dataset_name=gameplay
  python -m data.import_videos --input ~/gameplay --name recorded --actions NOOP,LEFT,RIGHT

Reads, in --input and all folders below it, every mp4, m4v, mov, webm, mkv, avi, gif, mpg, wmv, flv and ogv file, and
every folder with png or jpg files as one sequence, in the order of the numbers in their names. Writes
<root>/<name>/info.json and HDF5 shards. One file becomes one episode, or several of at most --max_frames; its
`level_seed` is its place in info.json's list `files`. Whole files are held out for validation, drawn by --seed; where
there is one file only, its end is. Transparent parts show --background.

With --actions, recorded actions come along: film.actions.txt beside film.mp4, or actions.txt in a folder of pictures,
has one line per frame with the action taken at it, by name or number. A last frame without a line is left out.

Files that cannot be read are listed and skipped; of a file that is damaged further on, what comes before is used. The
same command goes on after an interruption, and the same files and settings give the same bytes.
"""

import argparse
import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import PIL
from tqdm import tqdm

from data.action_files import Taken, actions_fpath, read_actions
from data.argument_types import action_names, colour, rate, share, size
from data.command_line import ArgumentParser, at_least
from data.import_command import add_place, report, run_importer
from data.importing import DamagedError, Target, import_recordings, shard_frames
from data.pictures import FITS, Fit
from data.video_files import ImageSequence, Source, VideoFile, at_rate

REVISION = 2  # goes up when the same input would give other bytes
VIDEOS = {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv"}
IMAGES = {".png", ".jpg", ".jpeg"}


class Found(NamedTuple):
    """A video file, or the picture files of a folder."""

    name: str  # of the file or folder, from the input folder on
    fpaths: list[Path]
    is_video: bool


@dataclass(frozen=True)
class Footage:
    """The pictures of a source from number `start` up to `stop` (None: to its end), as a `Recording`."""

    name: str
    split: str
    level_seed: int
    num_frames: int
    source: Source
    fit: Fit
    fps: Fraction | None
    start: int = 0
    stop: int | None = None
    actions: np.ndarray | None = None

    def pictures(self, first: int) -> Iterator[np.ndarray]:
        shown = self.source.shown()
        if self.fps is None:
            pictures = (picture for picture, _, _ in shown)
        else:
            pictures = at_rate(shown, self.fps, self.source.clock_error)
        last, fitted = None, None
        for picture in islice(pictures, self.start + first, self.stop):
            if picture is not last:
                last, fitted = picture, self.source.fitted(picture, self.fit)
            yield fitted


def main(arguments: list[str]) -> int:
    return run_importer(run, arguments)


def run(arguments: list[str]) -> None:
    """Raises ValueError and OSError with one line where the input or an argument is bad."""
    settings = parse(arguments)
    found = find(settings.input)
    if settings.fps and not settings.images_fps and not all(each.is_video for each in found):
        raise ValueError("--fps needs --images_fps too: image sequences do not say how fast they were recorded")
    sources, skipped = probe(found, settings.images_fps)
    actions = {} if settings.actions is None else take_actions(found, sources, skipped, settings.actions)
    if not sources:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise ValueError(f"none of the {len(found)} files in {settings.input} can be read ({reasons})")
    recordings = arrange(sources, actions, settings)
    target = Target(
        folder=Path(settings.root) / settings.name,
        origin=origin(settings, found, actions),
        image_size=settings.image_size,
        action_names=settings.actions,
        max_frames=settings.max_frames,
        frames_per_shard=settings.frames_per_shard,
        compression=settings.compression,
        about={"version": "1.0.0", "game": None, "files": list(sources)},
        skipped=skipped,
    )
    report(target.folder, import_recordings(target, recordings))


# ---------------------------------------------------------------------------------------------------------- arguments


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = ArgumentParser("data.import_videos", __doc__)
    parser.add_argument("--input", type=Path, required=True, help="folder of videos and image sequences, or one video")
    add_place(parser, "of the new dataset", is_name_required=True)
    parser.add_argument("--image_size", type=size, default=(64, 64), help="64, or HEIGHTxWIDTH as 64x96 (default: 64)")
    parser.add_argument("--fit", choices=FITS, default="crop", help="where the shape differs (default: crop)")
    parser.add_argument("--background", type=colour, default=(0, 0, 0), help="R,G,B of what is padded or transparent")
    parser.add_argument(
        "--fps", type=rate, help="frames per second to keep, by the files' clocks (default: every frame)"
    )
    parser.add_argument(
        "--images_fps", type=rate, help="how many images per second sequences have; only --fps needs it"
    )
    parser.add_argument("--actions", type=action_names, help="of the game, as NOOP,LEFT,RIGHT: read recorded ones")
    parser.add_argument("--validation_share", type=share, default=0.1, help="of the files (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of files for validation (default: 0)")
    parser.add_argument("--max_frames", type=at_least(2), default=2000, help="of an episode (default: 2000)")
    parser.add_argument("--frames_per_shard", type=at_least(2), help="and so in memory (default: 256 MB of them)")
    settings = parser.parse_args(arguments)
    if settings.actions is not None and settings.fps is not None:
        raise ValueError(
            "--fps would leave frames out, and with them what --actions were taken there; leave one of the two out, or "
            "record at that rate"
        )
    settings.frames_per_shard = settings.frames_per_shard or shard_frames(settings.image_size, settings.max_frames)
    if settings.frames_per_shard < settings.max_frames:
        raise ValueError(
            f"--frames_per_shard {settings.frames_per_shard} must hold an episode of --max_frames {settings.max_frames}"
        )
    return settings


def origin(settings: argparse.Namespace, found: list[Found], actions: dict[str, Taken]) -> dict[str, Any]:
    """Where the dataset comes from. Pictures count by name and size: their contents are read only to be decoded."""
    digest = hashlib.sha256()
    for each in found:
        for fpath in each.fpaths:
            size = fpath.stat().st_size if fpath.exists() else "a link to nothing"
            digest.update(f"{each.name}\0".encode() + os.fsencode(fpath.name) + f"\0{size}\0".encode())
    for name, taken in actions.items():
        digest.update(f"{name}\0{len(taken.codes)}\0".encode())
        digest.update(taken.codes)
    keys = ("fit", "validation_share", "seed", "max_frames", "frames_per_shard", "compression")
    return {
        "importer": "data.import_videos",
        "revision": REVISION,
        "versions": {"av": av.__version__, "ffmpeg": av.ffmpeg_version_info, "pillow": PIL.__version__},
        "config": {
            "input": f"{len(found)} files {digest.hexdigest()[:16]}",
            "image_size": list(settings.image_size),
            "background": list(settings.background),
            "fps": settings.fps and str(settings.fps),
            "images_fps": settings.images_fps and str(settings.images_fps),
            **{key: getattr(settings, key) for key in keys},
            **({} if settings.actions is None else {"actions": settings.actions}),
        },
    }


# --------------------------------------------------------------------------------------------------------- the sources


def find(path: Path) -> list[Found]:
    """The video files and image folders below a folder, in the order of their names, numbers in them by size.

    What is hidden is left out. Raises ValueError where there is nothing.
    """
    if path.is_file() and path.suffix.lower() in VIDEOS:
        return [Found(path.name, [path], True)]
    if not path.is_dir():
        raise ValueError(
            f"--input {path} is {'not a video' if path.exists() else 'not there'}; give a folder of videos"
        )
    found, others = [], Counter()
    for folder, subfolders, names in os.walk(path, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        fpaths = [Path(folder) / name for name in sorted(names, key=in_order) if not name.startswith(".")]
        found += [Found(_relative(each, path), [each], True) for each in fpaths if each.suffix.lower() in VIDEOS]
        images = [each for each in fpaths if each.suffix.lower() in IMAGES]
        if images:
            found.append(Found(_relative(Path(folder), path), images, False))
        others.update(each.suffix or each.name for each in fpaths)
    if not found:
        seen = f"only {', '.join(name for name, _ in others.most_common(3))}" if others else "no files at all"
        raise ValueError(
            f"--input {path} holds no videos or images ({seen}); read are {' '.join(sorted(VIDEOS | IMAGES))}"
        )
    return sorted(found, key=lambda each: (in_order(each.name), each.is_video))


def _raise(error: OSError) -> None:
    raise error


def _relative(path: Path, to: Path) -> str:
    """Printable even where the name on the disk is not."""
    return os.fsencode(path.relative_to(to).as_posix()).decode("utf-8", "backslashreplace")


def in_order(name: str) -> tuple[list[str | int], str]:
    """A sorting key: frame2 before frame10."""
    parts = re.split(r"(\d+)", name, flags=re.ASCII)
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], name


def probe(found: list[Found], images_fps: Fraction | None) -> tuple[dict[str, Source], dict[str, str]]:
    """What can be read, and why the rest cannot."""
    sources, skipped = {}, {}
    for each in tqdm(found, "looking", unit="file", mininterval=0.5, leave=False):
        try:
            read = VideoFile.read(each.fpaths[0]) if each.is_video else ImageSequence.read(each.fpaths, images_fps)
            sources[each.name] = read
        except DamagedError as error:
            skipped[each.name] = str(error)
    return sources, skipped


def take_actions(
    found: list[Found], sources: dict[str, Source], skipped: dict[str, str], names: list[str]
) -> dict[str, Taken]:
    """The actions of each source; sources whose actions cannot be used go to `skipped`."""
    actions = {}
    for each in tqdm(found, "actions", unit="file", mininterval=0.5, leave=False):
        if each.name not in sources:
            continue
        try:
            fpath = actions_fpath(each.fpaths[0], each.is_video)
            actions[each.name] = read_actions(fpath, names, sources[each.name])
        except DamagedError as error:
            skipped[each.name] = str(error)
            del sources[each.name]
    return actions


def arrange(sources: dict[str, Source], actions: dict[str, Taken], settings: argparse.Namespace) -> list[Footage]:
    """The recordings, training's first: a source is one, but a single source is two, its first part and its end."""
    fit = Fit(*settings.image_size, settings.fit, settings.background)

    def footage(number: int, name: str, split: str, expected: int, start: int = 0, stop: int | None = None) -> Footage:
        codes = actions[name].codes[start:stop] if name in actions else None
        stop = actions[name].stop if name in actions and stop is None else stop
        return Footage(name, split, number, expected, sources[name], fit, settings.fps, start, stop, codes)

    def length(name: str) -> int | None:
        return len(actions[name].codes) if name in actions else None

    if len(sources) == 1 and settings.validation_share > 0:
        [(name, source)] = sources.items()
        total = length(name) or source.count(settings.fps)
        if total < 4:  # two frames at least for each
            return [footage(0, name, "train", total)]
        middle = total - min(max(2, round(total * settings.validation_share)), total - 2)
        return [
            footage(0, name, "train", middle, 0, middle),
            footage(0, name, "validation", total - middle, middle),
        ]
    held_out = choose(list(sources), settings.validation_share, settings.seed)
    recordings = []
    for number, (name, source) in enumerate(sources.items()):
        split = "validation" if name in held_out else "train"
        recordings.append(footage(number, name, split, length(name) or source.expected(settings.fps)))
    return sorted(recordings, key=lambda each: each.split)


def choose(names: list[str], validation_share: float, seed: int) -> set[str]:
    """The files for validation: at least one and not all of them, unless the share is 0."""
    if validation_share == 0 or len(names) < 2:
        return set()
    count = min(max(1, round(len(names) * validation_share)), len(names) - 1)
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    return set(drawn[:count])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
