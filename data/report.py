"""What `data.inspect` prints of a dataset."""

import textwrap
from collections.abc import Mapping
from typing import Any

WIDTH = 110
NO_BREAK = "\N{NO-BREAK SPACE}"  # keeps a name and its share on one line
# Of a generator's config: what the heading says already, and what says how the work was done.
NOT_SHOWN = ("name", "version", "game", "image_size", "compression", "episodes_per_shard")


def lines(result: Mapping[str, Any]) -> list[str]:
    """The numbers of `data.summary.overview` for people, with each split's `static` share added."""
    splits = result["splits"]
    height, width = result["image_size"]
    frames, num_bytes = (sum(split[key] for split in splits.values()) for key in ("frames", "bytes"))
    what, unit = (result["game"], "level") if result["game"] else ("videos", "recording")
    head = [
        f"{result['name']}: {what}, {width}×{height} pixels, {frames:,} frames, {_size(num_bytes)}",
        f"made by {origin(result['generator'])}",
        *(_in_common(pair, shared, unit) for pair, shared in result["shared_levels"].items()),
    ]
    if result["skipped_files"] or result["damaged_files"]:
        head.append(
            f"{_counted(result['skipped_files'], 'file')} could not be imported, {result['damaged_files']:,} only in "
            "part; info.json lists them"
        )
    return head + [line for name, split in splits.items() for line in ["", *_split(name, split, unit)]]


def _in_common(pair: str, shared: int, unit: str) -> str:
    first, second = pair.split(", ")
    if not shared:
        return f"{first} and {second} have no {unit} in common"
    return f"{first} and {second} have {_counted(shared, unit)} in common: scores on them are not of unseen {unit}s"


def origin(generator: Mapping[str, Any] | None) -> str:
    """One line on how the data came about."""
    if not generator:
        return "a program that did not say how"
    config = dict(generator.get("config") or {})
    parts = []
    if "agent_sha256" in config:
        parts.append(f"trained agent {config.pop('agent_sha256')[:8]}")
    elif "game" in config:
        parts.append("random actions")
    for key, value in generator.items():
        if isinstance(value, Mapping):
            parts += [f"{name} {version}" for name, version in value.items() if key != "config"]
        else:
            parts.append(f"{key} {value}")
    parts += [f"{key}={value}" for key, value in config.items() if value is not None and key not in NOT_SHOWN]
    return ", ".join(parts)


def _split(name: str, split: Mapping[str, Any], unit: str) -> list[str]:
    levels, lengths, episodes = split["levels"], split["lengths"], split["episodes"]
    heading = f"{name}: {_counted(episodes, 'episode')}, {_counted(split['frames'], 'frame')}, "
    heading += f"{unit}s {levels['first']} to {levels['last']}"
    if levels["distinct"] != episodes:
        heading += f" ({levels['distinct']:,} distinct)"
    rows = [
        ("lengths", "  ".join(f"{key} {value:,.1f}".removesuffix(".0") for key, value in lengths.items())),
        ("ended by", _shares(split["end_reasons"])),
    ]
    if split["actions"] is not None:
        rows.append(("actions", _shares(split["actions"])))
    if split["return_mean"] is not None:
        low, high = split["return_ci95"]
        rows.append(("return", f"mean {split['return_mean']:.4g} [{low:.4g}, {high:.4g}]"))
        low, high = (100 * bound for bound in split["completed_ci95"])
        rows.append(("completed", f"{100 * split['completed']:.1f} % of episodes [{low:.1f}, {high:.1f}]"))
    rows.append(("static", _static(split["static"], episodes)))
    rows.append(("on disk", _storage(split)))
    found = [heading]
    for label, text in rows:
        found += textwrap.wrap(text, WIDTH, initial_indent=f"  {label:<11}", subsequent_indent=" " * 13)
    return found


def _shares(counts: Mapping[str, int]) -> str:
    """Names with their shares; what never happened is left out."""
    total = max(1, sum(counts.values()))
    shares = [f"{name} {100 * count / total:.1f} %" for name, count in counts.items() if count]
    return "  ".join(share.replace(" ", NO_BREAK) for share in shares)


def _static(static: Mapping[str, Any], episodes: int) -> str:
    read = "all" if static["episodes"] == episodes else f"{static['episodes']:,} of {episodes:,}"
    hint = "" if static["episodes"] == episodes else "; --all reads every one"
    if static["share"] is None:
        return f"unknown: no episode of more than one frame ({read} episodes read{hint})"
    return f"{100 * static['share']:.2f} % of frames equal the one before ({read} episodes read{hint})"


def _storage(split: Mapping[str, Any]) -> str:
    size = f"{_size(split['bytes'])} in {_counted(split['shards'], 'shard')}"
    if split["compression"] == "none":
        return f"{size}, not compressed"
    return f"{size}, {split['compression']}, {split['frame_bytes'] / split['bytes']:.2f} times smaller than its frames"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2f} MB"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
