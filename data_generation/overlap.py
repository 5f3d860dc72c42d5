"""Whether a dataset holds levels of the one that it is tested on, or tests: scores would not be of unseen levels."""

import json
from pathlib import Path
from typing import Any

from data.episodes import UNFINISHED
from data_generation.settings import Settings

TEST = "_test"  # at the end of the name of a dataset that tests another
TEST_LEVELS = range(10_000, 11_000)  # what our configs test on
DECIDE_LEVELS = ("game", "distribution_mode")  # beside its seed


def in_words(settings: Settings) -> str | None:
    """One line where levels are shared with the dataset beside it, or with our test sets where there is none yet."""
    if settings.name.endswith(TEST):
        name, others = settings.name.removesuffix(TEST), range(0)
    else:
        name, others = settings.name + TEST, TEST_LEVELS if settings.split != "test" else range(0)
    config = _config_of(Path(settings.root_dpath) / name)
    if config is not None:
        is_same_game = all(config.get(key) == getattr(settings, key) for key in DECIDE_LEVELS)
        others = _levels(config["level_offset"], config["n_instances"]) if is_same_game else range(0)
    ours = _levels(settings.level_offset, settings.n_instances)
    shared = range(max(ours.start, others.start), min(ours.stop, others.stop))
    if not shared:
        return None
    whose = f"also those of {name}" if config is not None else "those that our _test configs record"
    return (
        f"levels {shared.start:,} to {shared.stop - 1:,} are {whose}: scores on them would not be of unseen levels; "
        "set --n_instances or --level_offset"
    )


def _levels(first: int, count: int) -> range:
    return range(first, first + count)


def _config_of(folder: Path) -> dict[str, Any] | None:
    """The generator's config of a dataset that is finished or under way; None where there is none."""
    for name in ("info.json", UNFINISHED):
        try:
            found = json.loads((folder / name).read_text())
            config = found.get("generator", found)["config"]
            return config if config["level_offset"] + config["n_instances"] >= 0 else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # it is not what was asked about
            continue
    return None
