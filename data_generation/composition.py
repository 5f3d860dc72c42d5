"""From a command line and yaml files to checked values: what the programs of this folder share."""

import difflib
import re
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException


def parse(arguments: list[str], default_config: str) -> tuple[str, dict[str, str]]:
    """The config's name (or --help, --list) and the overrides as text by key; the last of several for a key wins."""
    config, overrides = default_config, {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument in ("--help", "-h", "--list"):
            return "--help" if argument == "-h" else argument, {}
        if argument == "--config":
            if not waiting:
                raise ValueError(f"--config needs a name, as in --config={default_config}")
            config = waiting.pop(0)
            continue
        key, equals, value = argument.removeprefix("--").partition("=")
        if not equals or not argument.startswith("--"):
            raise ValueError(f"{argument} is not of the form --key=value")
        if key == "config":
            config = value
        else:
            overrides[key] = value
    return config, overrides


def read_values(
    folder: Path, config: str, overrides: dict[str, str], known: list[str], *, base: str, other_names: dict[str, str]
) -> dict[str, Any]:
    """Compose a config of `folder` (by name, file name or path) with its overrides; every mistake is a ValueError.

    known: the keys that there are, all of which the config must have. base: the config that has them all.
    other_names: further names of configs.
    """
    where = _find_config(folder, config, other_names)
    values = _compose(folder, where, [])
    for key in [*values, *overrides]:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]}?" if nearest else f"; known: {', '.join(known)}"
            raise ValueError(f"unknown key {key}{hint}")
    missing = [key for key in known if key not in values]
    if missing:
        raise ValueError(f"config {config} lacks {', '.join(missing)}; start it with `defaults: [{base}, _self_]`")
    return _compose(folder, where, [f"{key}={_quoted(value)}" for key, value in overrides.items()])


def _quoted(value: str) -> str:
    """The value in Hydra's grammar: lists, numbers and plain words as they are, anything else as a quoted string."""
    if re.fullmatch(r"[\w./:+-]+|\[[\d\s.,+e-]*\]", value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _compose(folder: Path, where: Path, overrides: list[str]) -> dict[str, Any]:
    searchpath = [] if where.parent == folder else [f"hydra.searchpath=[file://{folder}]"]
    try:
        with initialize_config_dir(str(where.parent), version_base="1.3"):
            return OmegaConf.to_container(compose(where.stem, overrides=overrides + searchpath), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"config {where.stem}: {str(error).splitlines()[0]}") from None
    except Exception as error:  # the yaml parser has exceptions of its own, without a common parent worth naming
        raise ValueError(f"config {where.stem} cannot be read: {' '.join(str(error).split())}") from None


def _find_config(folder: Path, config: str, other_names: dict[str, str]) -> Path:
    """The yaml of a config: one of ours by name or file name, or a file of the user's own."""
    path = Path(config)
    names = sorted(fpath.stem for fpath in folder.glob("*.yaml"))
    if path.suffix == ".yaml" and path.is_file():
        return path.resolve()
    stem = path.stem if path.suffix in (".yaml", ".json") else path.name
    stem = other_names.get(stem, stem)
    if stem in names:
        return folder / f"{stem}.yaml"
    nearest = difflib.get_close_matches(stem, names, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise ValueError(f"no config {config}; {hint}known: {', '.join(names)}, or a path to a .yaml file")
