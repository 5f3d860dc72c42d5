"""What takes longest is begun first, so that at the end nobody waits for one file (`run.sh` hands out whole files)."""

from pathlib import Path

import pytest

FIRST = ("e2e", "benchmarks", "training")  # commands and trainings; the rest is arithmetic


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place(item.path))


def place(fpath: Path) -> int:
    folder = fpath.parent.name
    return FIRST.index(folder) if folder in FIRST else len(FIRST)
