"""Commands of the pages below docs/ are understood, and links of README and pages lead somewhere.

Those of the README run for real in test_readme.py.
"""

import ast
import re
import shlex
from pathlib import Path

import pytest

from data import import_videos, inspect
from data_generation import generate
from training import command_line, main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OF_LAUNCHERS = tuple(f"--{name}=" for name in command_line.LAUNCHER_OPTIONS if name != "config")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [
        line.split("  #")[0].strip() for page in PAGES for block in blocks(page, "bash") for line in block.split("\n")
    ]
    return sorted({line for line in lines if line})


def check_run_sh(words: list[str]) -> None:
    """What run.sh would do with these words, up to where something is read or written."""
    mode = next((word.partition("=")[2] for word in words if word.startswith("--mode=")), None)
    rest = [word for word in words if not word.startswith(("--mode=", *OF_LAUNCHERS))]
    if mode in ("setup", "test") or {"--list", "--help"} & {*words} or "my_world.yaml" in "".join(words):
        return
    if mode == "import":
        import_videos.parse(rest)
    elif mode == "inspect":
        inspect.parse(rest)
    elif mode == "generate":
        config, overrides = generate.parse(rest, generate.DEFAULT_CONFIG)
        generate.read_settings(config, overrides)
    else:
        main.check(command_line.compose(command_line.parse([*rest, *(f"--mode={mode}" for _ in [mode] if mode)])))


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_pages_is_understood(command):
    words = shlex.split(command)
    if words[:2] == ["bash", "run.sh"]:
        check_run_sh(words[2:])
    elif words[0] == "sbatch":
        script = next(word for word in words if word.endswith(".sbatch"))
        assert (ROOT / script).is_file()
        mode = ["--mode=generate"] if "generate" in script else []
        check_run_sh([*mode, *words[words.index(script) + 1 :]])
    else:
        assert words[:2] == ["python", "-m"] or words[:2] == ["python", "download_models.py"], command
        if words[1] == "-m":
            assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_python_can_be_read(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert not [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    for block in blocks(page, "python"):
        ast.parse(block)
