"""What trainings wrote, to be compared: processes that split a model make the update, and the files, of one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

BF16 = {"rtol": 2e-2, "atol": 2e-3}


def lines(run_dpath: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dpath / "logs" / "metrics.jsonl").open()]


def assert_close(found: dict, expected: dict, *, rtol: float = 1e-5, atol: float = 1e-6, but: tuple = ()) -> None:
    """Tensors by name; `but`: names that may differ."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name not in but:
            torch.testing.assert_close(
                found[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: name + text
            )


def assert_same_curves(first: list[dict], second: list[dict], keys: tuple[str, ...], *, rel: float) -> None:
    for line, other in zip(first, second, strict=True):
        for key in keys:
            assert line.get(key) == pytest.approx(other.get(key), rel=rel)


def shapes(tree: Any) -> object:
    """A tree with shapes in place of tensors."""
    if isinstance(tree, torch.Tensor):
        return type(tree), tree.shape, tree.dtype
    if isinstance(tree, dict):
        return {key: shapes(value) for key, value in tree.items()}
    return [shapes(value) for value in tree] if isinstance(tree, (list, tuple)) else type(tree)


def assert_same_files(split: dict, plain: dict, *, but: tuple = ()) -> None:
    """Two trainer states: equally built, and near each other in what AdamW made of equal clips."""
    for key in ("optimizers", "weights"):
        assert shapes(split[key]) == shapes(plain[key])
    assert_close(split["weights"], plain["weights"], rtol=1e-3, atol=1e-3, but=but)
    found, expected = (state["optimizers"]["model"]["state"] for state in (split, plain))
    for number, moment in expected.items():
        assert_close(found[number], moment, rtol=1e-3, atol=1e-5)
