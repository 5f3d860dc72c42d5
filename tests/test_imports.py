"""The arrows between packages point one way, and data generation never needs torch."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data", "models", "data_generation", "training", "play")
# What a package may import of its siblings: a package, or one module of it.
ALLOWED = {
    "data": (),
    "models": (),
    "data_generation": ("data.episodes", "data.locks"),
    "training": ("data", "models", "play"),
    "play": (
        *("models", "data", "data_generation.environment"),
        *("training.checkpoint", "training.latent_tables", "training.settings", "training.video"),
    ),
}
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
WITHOUT_TORCH = [
    *(
        file
        for file in sorted((ROOT / "data").glob("*.py"))
        if file.stem not in ("clips", "tokens")  # what training reads
    ),
    *(file for file in FILES if file.parts[len(ROOT.parts)] == "data_generation" and "agent" not in file.stem),
    ROOT / "training" / "command_line.py",
    ROOT / "training" / "help.py",
    ROOT / "training" / "main.py",
    ROOT / "training" / "settings.py",
]


def imported(file: Path, *, at_top: bool = False) -> set[str]:
    """Dotted names that a file imports, as written; `from a import b` counts as `a.b`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; write the full name"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_package_imports_only_what_the_picture_allows(file):
    package = file.relative_to(ROOT).parts[0]
    siblings = {name for name in imported(file) if name.split(".")[0] in PACKAGES and not is_within(name, package)}
    forbidden = {name for name in siblings if not any(is_within(name, allowed) for allowed in ALLOWED[package])}
    assert not forbidden, f"{file.relative_to(ROOT)} must not import {sorted(forbidden)}"


@pytest.mark.parametrize("file", sorted((ROOT / "training").rglob("*.py")), ids=lambda file: file.name)
def test_training_imports_play_only_when_that_mode_runs(file):
    assert not [name for name in imported(file, at_top=True) if is_within(name, "play")]


@pytest.mark.parametrize("file", WITHOUT_TORCH, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_that_starts_without_torch_does_not_import_it(file):
    heavy = ("torch", "torchvision", "accelerate", "data.clips", "models", "training.trainer", "training.evaluation")
    assert not [name for name in imported(file, at_top=True) if any(is_within(name, module) for module in heavy)]


def test_the_data_package_itself_is_empty():
    assert (ROOT / "data" / "__init__.py").read_text().strip() == ""


def test_the_rule_sees_a_forbidden_import(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("def late():\n    from training import trainer\n")
    assert imported(file) == {"training.trainer"}
    assert imported(file, at_top=True) == set()
