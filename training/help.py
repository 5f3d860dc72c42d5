"""What `--help` and `--list` print, read from run.sh and the yaml files, so that it cannot grow old."""

import re

from omegaconf import DictConfig, OmegaConf

from training.command_line import CONFIGS, all_keys, entries, find_config, groups, header, options

RUN_SH = CONFIGS.parent / "run.sh"
WITHOUT_CONFIG = ("play", "dream", "compare")  # modes whose keys are one group of their own


def usage() -> str:
    """The comment that opens run.sh."""
    lines = RUN_SH.read_text(encoding="utf-8").splitlines()[1:]
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line[1:].removeprefix(" ") for line in lines[:end])


def describe(config: str, cfg: DictConfig) -> str:
    """Usage, the entry file's own comment, and every key with its value and meaning.

    Of a mode that needs no config, its own group only.
    """
    if cfg.mode in WITHOUT_CONFIG and cfg.mode in cfg:
        about = header(CONFIGS / cfg.mode / "default.yaml")
        return "\n".join([usage(), "", about, "", "Keys and their values now:", "", *_lines(cfg, f"{cfg.mode}.")])
    file = find_config(config)
    return "\n".join([usage(), "", f"{file.name}:", header(file), "", "Keys and their values now:", *_lines(cfg)])


def _lines(cfg: DictConfig, start: str = "") -> list[str]:
    """One line for each key that begins with `start`: its value and its meaning."""
    notes = _notes()
    rows = []
    for key in all_keys(cfg):
        if not key.startswith(start):
            continue
        parent, _, name = key.rpartition(".")
        node = (OmegaConf.select(cfg, parent) if parent else cfg)._get_node(name)
        if isinstance(node, DictConfig) and not node._is_interpolation():
            if "." not in key and options(key):
                rows.append((f"\n--{key}=", "|".join(options(key)), "group option"))
            continue
        value = node._value() if node._is_interpolation() else OmegaConf.select(cfg, key)
        of_value = notes.get(key, {})
        rows.append((f"--{key}=", _written(value), of_value.get(_written(value), of_value.get(None, ""))))
    return [f"{key}{value:<{max(1, 48 - len(key.strip()))}} {note}".rstrip() for key, value, note in rows]


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
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _notes() -> dict[str, dict[str | None, str]]:
    """Comments behind the values in the yaml files: by dotted key, then by the value that they stand behind.

    That of None is for any value: it is from the file that the group's other options change.
    """
    notes = {}
    for file in sorted([*CONFIGS.glob("*/*.yaml"), *CONFIGS.glob("*.yaml")]):
        text = file.read_text(encoding="utf-8")
        is_entry = file.parent == CONFIGS
        for name, value, note in re.findall(r"^(\w+):[ \t]*(.*?)[ \t]+#[ \t]*(.+)$", text, re.MULTILINE):
            of_value = notes.setdefault(name if is_entry else f"{file.parent.name}.{name}", {})
            of_value.setdefault(_written(OmegaConf.create(f"value: {value}")._get_node("value")._value()), note)
            if is_entry or "\ndefaults:" not in text:
                of_value.setdefault(None, note)
    return notes
