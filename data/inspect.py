"""Look at a dataset, or check every byte of it: `python -m data.inspect coinrun_v2.0.0 [--verify]`.

Prints what the episodes are like and writes contact_sheet.png, sample.gif and summary.json to the output folder. With
--verify it reads every shard instead, compares hashes, tables and ranges with what was written, and names what is
damaged. Exit code 0: nothing is wrong; 1: something is damaged and was named; 2: wrong usage.
"""

import sys
from pathlib import Path

if sys.path[0] == str(Path(__file__).resolve().parent):  # run as a file: its name would hide the standard library's
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
from typing import Any

import numpy as np
from tqdm import tqdm

from data import contact_sheet, report, summary, verification
from data.command_line import DATASETS_DPATH, ArgumentParser, at_least, run_command
from data.contact_sheet import Excerpt
from data.episodes import read_info, write_json
from data.summary import Scan
from data.verification import Shard

OUTPUTS_DPATH = Path("outputs/inspect")
NUM_SAMPLED = 200  # episodes of a split whose frames are compared; --all takes every one
DAMAGED = 1  # exit status


def main(arguments: list[str] | None = None) -> int:
    return run_command(run, arguments, kept="the dataset is as it was")


def run(arguments: list[str] | None) -> int:
    settings = parse(arguments)
    return verify(settings) if settings.verify else look(settings)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser("data.inspect", __doc__)
    parser.add_argument("name", metavar="NAME", help="dataset: a folder in --root")
    parser.add_argument("--root", type=Path, default=Path(DATASETS_DPATH), help="default: %(default)s")
    parser.add_argument("--output", type=Path, help=f"folder for what is written; default: {OUTPUTS_DPATH}/NAME")
    parser.add_argument("--verify", action="store_true", help="check every shard instead; writes nothing")
    parser.add_argument(
        "--all", action="store_true", help=f"compare all frames, not {NUM_SAMPLED} episodes of each split"
    )
    parser.add_argument("--num_episodes", type=at_least(1), default=8, help="rows of the sheet; default: %(default)s")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the choice of episodes; default: %(default)s")
    settings = parser.parse_args(arguments)
    if "/" in settings.name:  # a path, as the shell completes it
        settings.root, settings.name = Path(settings.name).parent, Path(settings.name).name
    settings.output = settings.output or OUTPUTS_DPATH / settings.name
    return settings


# -------------------------------------------------------------------------------------------------------------- looking


def look(settings: argparse.Namespace) -> int:
    """Print the numbers and write the pictures of all shards that can be read; name the others."""
    info = read_info(settings.root, settings.name)
    folder = settings.root / settings.name
    shards = verification.named_shards(folder, info)
    problems = verification.check_totals(folder, info, shards)
    scans = _scan(shards, info, problems)
    result = summary.overview(scans, info, folder)
    for split, share in _static_shares(scans, info, settings, problems).items():
        result["splits"][split]["static"] = share
    excerpts, moving = _excerpts(scans, info, settings, problems)
    result["damaged"] = problems = list(dict.fromkeys(problems))

    written = ["summary.json"]
    settings.output.mkdir(parents=True, exist_ok=True)
    write_json(settings.output / "summary.json", result)
    if excerpts and moving:
        title = f"{settings.name}: {len(excerpts)} episodes drawn at random (seed {settings.seed})"
        contact_sheet.draw_sheet(excerpts, title).save(settings.output / "contact_sheet.png")
        contact_sheet.write_gif(settings.output / "sample.gif", moving)
        written += ["contact_sheet.png", "sample.gif"]
    print("\n".join(report.lines(result)))
    print(f"\nwritten to {settings.output}: {', '.join(written)}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return DAMAGED if problems else 0


def _scan(shards: list[Shard], info: dict[str, Any], problems: list[str]) -> dict[str, list[Scan]]:
    scans: dict[str, list[Scan]] = {}
    for shard in tqdm(shards, "reading tables", unit="shard", mininterval=0.5, leave=False):
        try:
            scans.setdefault(shard.split, []).append(summary.scan_shard(shard, info))
        except (ValueError, OSError) as error:  # the other shards are worth looking at
            problems.append(str(error))
    return {split: own for split, own in scans.items() if own}


def _static_shares(
    scans: dict[str, list[Scan]], info: dict[str, Any], settings: argparse.Namespace, problems: list[str]
) -> dict[str, dict[str, Any]]:
    rng, shares = np.random.default_rng([settings.seed, 0]), {}
    chosen = {
        split: summary.draw(own, sys.maxsize if settings.all else NUM_SAMPLED, rng) for split, own in scans.items()
    }
    total = sum(len(places) for places in chosen.values())
    with tqdm(total=total, desc="reading frames", unit="episode", mininterval=0.5, leave=False) as bar:
        for split, places in chosen.items():
            counts = np.zeros(3, np.int64)
            for scan, rows in summary.by_shard(places):
                try:
                    counts += (*summary.count_static(scan, rows, info, bar.update), len(rows))
                except (ValueError, OSError) as error:
                    problems.append(str(error))
            static, pairs, episodes = counts.tolist()
            shares[split] = {"share": static / pairs if pairs else None, "frames": pairs, "episodes": episodes}
    return shares


def _excerpts(
    scans: dict[str, list[Scan]], info: dict[str, Any], settings: argparse.Namespace, problems: list[str]
) -> tuple[list[Excerpt], list[Excerpt]]:
    """Episodes for the sheet, every split among them, and for the GIF the first few of them."""
    rng = np.random.default_rng([settings.seed, 1])
    total = sum(len(scan.table) for own in scans.values() for scan in own)
    excerpts, moving = [], []
    for own in scans.values():
        share = sum(len(scan.table) for scan in own) / total
        for place in summary.draw(own, max(1, round(settings.num_episodes * share)), rng):
            try:
                excerpts.append(contact_sheet.excerpt(place, info, contact_sheet.evenly(place.length)))
                if len(moving) < contact_sheet.GIF_EPISODES:
                    moving.append(contact_sheet.excerpt(place, info, contact_sheet.opening(place.length)))
            except (ValueError, OSError) as error:
                problems.append(str(error))
    return excerpts, moving


# ------------------------------------------------------------------------------------------------------------- checking


def verify(settings: argparse.Namespace) -> int:
    """Read every byte of every shard and say which are not as they were written."""
    folder = settings.root / settings.name
    info, shards, problems = _named(settings, folder)
    num_damaged = len(problems)
    for problem in problems:
        print(problem, flush=True)
    total = sum(shard.num_frames or 0 for shard in shards) or None
    with tqdm(total=total, unit=" frames", unit_scale=True, mininterval=0.5) as bar:
        expected = 0
        for shard in shards:
            bar.set_postfix_str(shard.fpath.name, refresh=False)
            try:
                verification.check_shard(shard, info, bar.update)
            except (ValueError, OSError) as error:  # every damaged shard is to be named
                num_damaged += 1
                bar.write(str(error))
            expected += shard.num_frames or 0
            bar.update(max(0, expected - bar.n))  # what a damaged shard did not let us read
    for line in verification.unknown_files(folder, shards):
        print(f"note: {line}")
    if num_damaged:
        print(f"{folder}: {num_damaged} {'problem' if num_damaged == 1 else 'problems'}, see above")
        return DAMAGED
    print(f"{folder}: {len(shards)} shards with {int(bar.n):,} frames, all as they were written")
    return 0


def _named(settings: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[Shard], list[str]]:
    """The info, the shards to check, and what is wrong with the info. Without one, shards are checked by themselves."""
    try:
        info = read_info(settings.root, settings.name)
        shards = verification.named_shards(folder, info)
        return info, shards, verification.check_totals(folder, info, shards)
    except (ValueError, OSError) as error:
        shards = verification.unnamed_shards(folder)
        if not shards and isinstance(error, FileNotFoundError):
            raise
        return {"name": settings.name, "image_size": None, "action_names": None}, shards, [str(error)]


if __name__ == "__main__":
    sys.exit(main())
