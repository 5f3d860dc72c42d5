"""What the importers' command lines have in common: where the dataset goes, and the report at the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.command_line import DATASETS_DPATH, ArgumentParser, folder_name, run_command
from data.importing import Summary

LINES_SHOWN = 20  # of files that could not be read; info.json has all of them


def add_place(parser: ArgumentParser, name_help: str, is_name_required: bool) -> None:
    """The arguments of every importer that say where the dataset goes."""
    parser.add_argument("--name", type=folder_name, required=is_name_required, help=name_help)
    parser.add_argument("--root", default=DATASETS_DPATH, help=f"folder of all datasets (default: {DATASETS_DPATH})")
    parser.add_argument(
        "--compression", choices=["lzf", "gzip", "blosc"], help="store frames compressed (default: as they are)"
    )


def run_importer(command: Callable[[list[str] | None], None], arguments: list[str] | None) -> int:
    """The command's exit status, see `run_command`."""
    return run_command(command, arguments, kept="finished shards are kept, the same command goes on from there")


def report(folder: Path, summary: Summary) -> None:
    """What was written, what could not be read, and how to train on it."""
    info = summary.info
    if info is None:
        print(f"{folder} is complete and of the same settings: nothing to do")
        return
    rate = summary.num_frames / max(summary.seconds, 1e-9)
    contents = " and ".join(
        f"{split['episodes']:,} episodes ({split['frames']:,} frames) for {name}"
        for name, split in info["splits"].items()
    )
    print(f"wrote {summary.num_frames:,} frames in {summary.seconds:.1f} s ({rate:,.0f}/s); {folder} has {contents}")
    _list("skipped, nothing of them is in the dataset", info["skipped"], folder)
    _list("damaged, read up to there", info["damaged"], folder)
    print(_next_command(folder, info))


def _next_command(folder: Path, info: dict[str, Any]) -> str:
    """A line that says what can be done with the dataset."""
    place = {"dataset_root_dpath": folder.parent} if str(folder.parent) != DATASETS_DPATH else {}
    keys = place | {"dataset_name": folder.name}

    def under(group: str) -> str:
        return " ".join(f"--{group}{key}={value}" for key, value in keys.items())

    height, width = info["image_size"]
    size = f"image_size='[{height},{width}]'"
    if "train" not in info["splits"]:
        return f"measure on it: bash run.sh --config=tokenizer.yaml --mode=eval {under('eval.')}"
    if "validation" not in info["splits"]:
        return "note: there is no split validation, which training needs"
    if info["action_names"] is None:
        return f"a small world of it, to play: bash run.sh --config=videos.yaml {under('')} --{size}"
    if info["game"] is None:
        return f"a small world of it, to play: bash run.sh --config=recordings.yaml {under('')} --{size}"
    return f"train on it: bash run.sh --config=tokenizer.yaml {under('train.')} --data.{size}"


def _list(what: str, entries: list[dict[str, str]], folder: Path) -> None:
    if not entries:
        return
    print(f"{len(entries)} {what}:")
    for entry in entries[:LINES_SHOWN]:
        print(f"  {entry['file']}: {entry['reason']}")
    if len(entries) > LINES_SHOWN:
        print(f"  … and {len(entries) - LINES_SHOWN} more, see {folder / 'info.json'}")
