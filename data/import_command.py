"""The command line of an importer: arguments, errors of one line, and the report at the end."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from data.importing import Summary

DATASETS_DPATH = "data_generation/datasets"
LINES_SHOWN = 20  # of files that could not be read; info.json has all of them


class ArgumentParser(argparse.ArgumentParser):
    """Raises ValueError where argparse would print its usage and exit; `--help` shows the module's text as it is."""

    def __init__(self, module: str, description: str):
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> None:
        raise ValueError(f"{message}; --help shows what there is")


def add_place(parser: ArgumentParser, name_help: str, is_name_required: bool) -> None:
    """The arguments of every importer that say where the dataset goes."""
    parser.add_argument("--name", type=folder_name, required=is_name_required, help=name_help)
    parser.add_argument("--root", default=DATASETS_DPATH, help=f"folder of all datasets (default: {DATASETS_DPATH})")
    parser.add_argument(
        "--compression", choices=["lzf", "gzip", "blosc"], help="store frames compressed (default: as they are)"
    )


def folder_name(text: str) -> str:
    if not text or Path(text).name != text or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text!r} must be the name of a folder in --root, without slashes")
    return text


def at_least(low: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not text.removeprefix("-").isdigit() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least {low}")
        return int(text)

    return integer


def run_command(command: Callable[[list[str]], None], arguments: list[str]) -> int:
    """The command's exit status: 0, 2 after an error line, 130 after Ctrl-C."""
    try:
        command(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; finished shards are kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


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
    size = ",".join(str(length) for length in info["image_size"])
    root = "" if str(folder.parent) == DATASETS_DPATH else f" --train.dataset_root_dpath={folder.parent}"
    print(
        f"train on it: bash run.sh --config=tokenizer.yaml{root} --train.dataset_name={folder.name} "
        f"--data.image_size=[{size}]"
    )
    for split in {"train", "validation"} - set(info["splits"]):
        print(f"note: there is no split {split}, which training needs")


def _list(what: str, entries: list[dict[str, str]], folder: Path) -> None:
    if not entries:
        return
    print(f"{len(entries)} {what}:")
    for entry in entries[:LINES_SHOWN]:
        print(f"  {entry['file']}: {entry['reason']}")
    if len(entries) > LINES_SHOWN:
        print(f"  … and {len(entries) - LINES_SHOWN} more, see {folder / 'info.json'}")
