"""What `--help` and `--list` print, read from run.sh and the yaml files, so that it cannot grow old."""

import re

from omegaconf import DictConfig, OmegaConf

from training.command_line import CONFIGS, all_keys, entries, find_config, groups, header, options

RUN_SH = CONFIGS.parent / "run.sh"


def usage() -> str:
    """The comment that opens run.sh."""
    lines = RUN_SH.read_text(encoding="utf-8").splitlines()[1:]
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line[1:].removeprefix(" ") for line in lines[:end])


def describe(config: str, cfg: DictConfig) -> str:
    """Usage, the entry file's own comment, and every key with its value and meaning."""
    file = find_config(config)
    notes = _notes()
    rows = []
    for key in all_keys(cfg):
        parent, _, name = key.rpartition(".")
        node = (OmegaConf.select(cfg, parent) if parent else cfg)._get_node(name)
        if isinstance(node, DictConfig) and not node._is_interpolation():
            if "." not in key and options(key):
                rows.append((f"\n--{key}=", "|".join(options(key)), "group option"))
            continue
        value = node._value() if node._is_interpolation() else OmegaConf.select(cfg, key)
        rows.append((f"--{key}=", "null" if value is None else _written(value), notes.get(key, "")))
    lines = [f"{key}{value:<{max(1, 48 - len(key.strip()))}} {note}".rstrip() for key, value, note in rows]
    return "\n".join([usage(), "", f"{file.name}:", header(file), "", "Keys and their values now:", *lines])


def overview() -> str:
    """Entry files and group options, each with the first line of its comment."""
    lines = ["Configs (bash run.sh --config=NAME.yaml):"]
    lines += [f"  {name:<28} {_first_line(file)}" for name, file in entries().items()]
    lines += ["", "Group options (--GROUP=OPTION, where the config has the group):"]
    for group in groups():
        for option in options(group):
            lines.append(f"  {f'--{group}={option}':<28} {_first_line(CONFIGS / group / f'{option}.yaml')}")
    return "\n".join(lines)


def _first_line(file) -> str:
    return header(file).split("\n")[0]


def _written(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _notes() -> dict[str, str]:
    """Comments behind the values in the yaml files, by dotted key."""
    notes = {}
    for file in [*CONFIGS.glob("*/*.yaml"), *CONFIGS.glob("*.yaml")]:
        prefix = "" if file.parent == CONFIGS else f"{file.parent.name}."
        for line in file.read_text(encoding="utf-8").splitlines():
            if match := re.match(r"(\w+):.*?\s#\s*(.+)$", line):
                notes.setdefault(f"{prefix}{match[1]}", match[2])
    return notes
