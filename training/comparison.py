"""`--mode=compare`: results of several evaluations in one table, with plots, and with what forbids comparing them."""

import csv
import glob
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from data.episodes import write_json
from training import checkpoint, comparison_page, measured
from training.comparability import Compared, compare
from training.comparison_table import markdown, rows_of, text
from training.measured import Measured
from training.settings import CompareSettings

STEM = "comparison"


def run(cfg: DictConfig) -> None:
    """Compare what `compare.inputs` names and write `comparison.html|json|csv|md` to `compare.out`."""
    settings = CompareSettings.from_config(cfg.compare)
    compared = compare(read_all(settings.inputs))
    folder = Path(settings.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, compared)
    except OSError as error:
        raise ValueError(
            f"cannot write to {folder} ({error.strerror}); set compare.out to a writable folder"
        ) from error
    print(text(compared))
    print(f"written to {folder / STEM}.html, .json, .csv and .md")


# ----------------------------------------------------------------------------------------------------------------- read


def read_all(inputs: Iterable[str]) -> dict[str, Measured]:
    """The models of all files, each under a name of its own. Results that are there twice count once."""
    found: list[tuple[str, Measured]] = []
    for fpath in {fpath.resolve(): fpath for word in inputs for fpath in files_of(word)}.values():
        for name, own in measured.read(fpath).items():
            twin = next((i for i, (n, m) in enumerate(found) if n == name and m.results == own.results), None)
            if twin is None:
                found.append((name, own))
            elif own.by_clip and not found[twin][1].by_clip:  # a report's copy came before the evaluation itself
                found[twin] = (name, own)
    if len(found) < 2:
        there = f"only {found[0][0]} in {found[0][1].folder}" if found else "nothing"
        raise ValueError(f"compare.inputs holds {there}; name at least two evaluations, such as [a/metrics.json,b]")
    return _named(found)


def files_of(word: str) -> list[Path]:
    """The results that an entry of `compare.inputs` means: a file, a folder with all below it, or a pattern."""
    path = Path(word).expanduser()
    if path.is_file():
        return [path]
    found = [path] if path.is_dir() else [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    files = [
        file for match in found for file in ([match] if match.is_file() else sorted(match.rglob(measured.METRICS)))
    ]
    files = [file for file in files if file.name == measured.METRICS]
    if not files:
        raise FileNotFoundError(
            f"compare.inputs: no {measured.METRICS} at {word}; expected such a file, a folder above some, or a pattern"
        )
    return files


def _named(found: Sequence[tuple[str, Measured]]) -> dict[str, Measured]:
    """Names are made different by the run's folder, then by ever more of its path."""
    names = [name for name, _ in found]
    for depth in range(1, max(len(m.folder.resolve().parts) for _, m in found) + 1):
        labels = [_label(name, m, depth) for name, m in found]
        names = [label if names.count(name) > 1 else name for name, label in zip(names, labels, strict=True)]
    return dict(zip(names, (m for _, m in found), strict=True))


def _label(name: str, m: Measured, depth: int) -> str:
    parts = m.folder.resolve().parts[-depth:]
    return name if parts == (name,) else f"{name} ({'/'.join(parts)})"


# ---------------------------------------------------------------------------------------------------------------- write


def write(folder: Path, compared: Compared) -> None:
    rows = list(rows_of(compared))
    write_json(folder / f"{STEM}.json", {"groups": compared.groups, "conflicts": compared.conflicts, "models": rows})
    with open(folder / f"{STEM}.csv", "w", newline="", encoding="utf-8") as file:
        flat = [dict(_flat(row)) for row in rows]
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in flat for key in row)))
        writer.writeheader()
        writer.writerows(flat)
    checkpoint.write_text(folder / f"{STEM}.md", markdown(compared))
    comparison_page.write(folder / f"{STEM}.html", compared)


def _flat(row: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """An interval is two columns of a csv."""
    for key, value in row.items():
        if key.endswith("_ci95"):
            low, high = value or (None, None)
            yield f"{key}_low", low
            yield f"{key}_high", high
        else:
            yield key, value
