"""From `--key.sub=value` words to one checked configuration.

Hydra composes the entry file and its groups. Plain values are then set by us, in the order typed: Hydra's own grammar
would read `=`, `,`, `(` or `#` in a value as syntax, and its `+` and `++` would let a typo pass. A key that the
composed configuration does not have is an error that names the nearest ones.
"""

import copy
import difflib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DEFAULT_CONFIG = "tokenizer.yaml"
MODES = ("train", "eval", "pipeline", "play", "dream", "tokenize", "compare")
MODES_OF_RUN_SH = ("generate", "import", "inspect", "setup", "test")
LAUNCHER_OPTIONS = (  # taken out by run.sh
    "config",
    "num_processes",
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "accelerate_config",
)
RENAMED = {"eval.model_path": "eval.model_fpath"}
WITHOUT_EFFECT = ("lam.max_seq.len", "lam.max_seq_len")


@dataclass(frozen=True)
class CommandLine:
    """What was typed. `overrides` keeps order and spelling; of repeated keys the last one counts."""

    config: str
    overrides: list[tuple[str, str]]
    wants_help: bool = False
    wants_list: bool = False
    only_checks: bool = False


def parse(words: list[str]) -> CommandLine:
    """Read `--config=NAME.yaml --key.sub=value …`, `--help`, `--list` and `--check`; ValueError on anything else."""
    config, overrides, flags = DEFAULT_CONFIG, [], set()
    for position, word in enumerate(words):
        if word in ("--help", "-h", "--list", "--check"):
            flags.add(word)
            continue
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not equals or not key or key[0] in "+~-":
            raise ValueError(_malformed(word, words[position + 1 : position + 2]))
        if key == "config":
            config = value
        else:
            overrides.append((key, value))
    return CommandLine(
        config=config,
        overrides=overrides,
        wants_help=bool(flags & {"--help", "-h"}),
        wants_list="--list" in flags,
        only_checks="--check" in flags,
    )


def compose(command: CommandLine) -> DictConfig:
    """The configuration that the command line asks for; every key typed is one that the entry file has."""
    overrides = list(_known_spellings(command.overrides))
    cfg = _compose_groups(command.config, {})
    chosen = {key: value for key, value in overrides if key in cfg and is_group(key, command.config)}
    for key, value in chosen.items():
        if value not in options(key, command.config):
            raise ValueError(f"{key}={value}: no such option; {_nearest(value, options(key, command.config))}")
    if chosen:
        cfg = _compose_groups(command.config, chosen)
    for key, value in overrides:
        if key not in chosen:
            _set(cfg, key, value)
    _check_interpolations(cfg)
    if cfg.mode not in MODES:
        raise ValueError(f"mode={cfg.mode} is unknown; {_nearest(str(cfg.mode), (*MODES, *MODES_OF_RUN_SH))}")
    return cfg


def entries() -> dict[str, Path]:
    """Names that `--config` takes; an entry file is one whose opening comment holds its own command."""
    files = sorted(CONFIGS.glob("*.yaml"))
    return {file.name: file for file in files if f"--config={file.name}" in header(file)}


def groups() -> list[str]:
    return sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())


def options(group: str, config: str | None = None) -> list[str]:
    """Names of a group's yaml files, those beside a user's own entry file included."""
    folders = [CONFIGS / group]
    if config is not None and (file := find_config(config)).parent != CONFIGS:
        folders.append(file.parent / group)
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})


def is_group(key: str, config: str) -> bool:
    return "." not in key and bool(options(key, config))


def header(file: Path) -> str:
    """The comment that opens a yaml file, without the leading marks."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" "))
    return "\n".join(lines)


def find_config(config: str) -> Path:
    """The entry file meant by a name (`tokenizer.yaml`, `tokenizer`) or by the path of a user's own yaml."""
    names = entries()
    if config in names or f"{config}.yaml" in names:
        return names.get(config) or names[f"{config}.yaml"]
    path = Path(config).expanduser().resolve()
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return path
    nearest = _nearest(path.stem, (Path(name).stem for name in names))
    raise ValueError(f"config {config!r} is neither in configs/ nor the path of a yaml file of yours; {nearest}")


def all_keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted keys of groups and values; nodes that refer to another node are not entered."""
    for key in node:
        yield f"{prefix}{key}"
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_interpolation() and not child._is_none():
            yield from all_keys(child, f"{prefix}{key}.")


def _compose_groups(config: str, chosen: dict[str, str]) -> DictConfig:
    file = find_config(config)
    overrides = [f"{group}={option}" for group, option in chosen.items()]
    name, composed = file.stem, _composed
    if file.parent != CONFIGS:
        # Stored under a name of its own: a user's file may be called like one of ours, which it extends.
        name = "__user__"
        try:
            ConfigStore.instance().store(name=name, node=OmegaConf.load(file))
        except Exception as error:
            raise ValueError(f"{file} is not readable as yaml: {error}") from error
        folder = str(file.parent).replace("\\", "\\\\").replace("'", "\\'")
        overrides.append(f"hydra.searchpath=['file://{folder}']")
        composed = _composed.__wrapped__  # theirs may change meanwhile
    try:
        return copy.deepcopy(composed(name, tuple(overrides)))
    except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"{file.name} cannot be composed: {error}") from error


@cache
def _composed(name: str, overrides: tuple[str, ...]) -> DictConfig:
    """Kept, for it takes Hydra a tenth of a second, and a pipeline asks several times for the same."""
    with initialize_config_dir(config_dir=str(CONFIGS), version_base=None):
        return hydra_compose(config_name=name, overrides=list(overrides))


def _known_spellings(overrides: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Old spellings become today's, with a warning."""
    for key, value in overrides:
        if key in WITHOUT_EFFECT:
            warn(f"{key} has no effect: the latent action model has no position table")
        elif key in RENAMED:
            warn(f"{key} is called {RENAMED[key]} here")
            yield RENAMED[key], value
        else:
            yield key, value


def _set(cfg: DictConfig, key: str, text: str) -> None:
    if key not in all_keys(cfg):
        raise ValueError(_unknown_key(cfg, key))
    held = _held(cfg, key)
    if isinstance(held, DictConfig) and not text.startswith(("{", "${")):
        inside = ", ".join(f"{key}.{child}" for child in list(held)[:4])
        raise ValueError(f"{key}={text}: {key} is a group of keys, such as {inside}; set one of those")
    try:
        OmegaConf.update(cfg, key, _typed(text, is_text=isinstance(held, str)), merge=False)
    except OmegaConfBaseException as error:
        raise ValueError(f"{key}={text} cannot be read: {str(error).splitlines()[0]}") from error


def _held(cfg: DictConfig, key: str) -> Any:
    """The value that a key has so far, references followed; None where one leads nowhere."""
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None


def _typed(text: str, *, is_text: bool) -> Any:
    """Numbers, true, false, null, lists and dictionaries as such; all else is text exactly as typed.

    is_text: the key holds text now, so `--name=007` stays text.
    """
    try:
        override = _parser().parse_override(f"key={text}")
    except HydraException:
        return text
    if override.is_sweep_override():
        return text
    value = override.value()
    if value is None or isinstance(override._value, QuotedString):
        return value
    return text if is_text or not isinstance(value, bool | int | float | list | dict) else value


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _check_interpolations(cfg: DictConfig) -> None:
    for key in all_keys(cfg):
        try:
            value = OmegaConf.select(cfg, key)
        except OmegaConfBaseException as error:
            raise ValueError(f"{key} cannot be read: {str(error).splitlines()[0]}") from error
        if isinstance(value, ListConfig):
            OmegaConf.to_container(value, resolve=True)


def _unknown_key(cfg: DictConfig, key: str) -> str:
    if key.split(".")[0] == "tokenizer" and "frozen_tokenizer" in cfg:
        return (
            f"{key} is unknown here: {cfg.model} uses a finished tokenizer; "
            "set tokenizer_fpath to it, or train another with --config=tokenizer.yaml"
        )
    keys = [*all_keys(cfg), *LAUNCHER_OPTIONS]
    last = key.rpartition(".")[2]
    close = [known for known in keys if known.rpartition(".")[2] == last]
    close += difflib.get_close_matches(key, keys, n=3, cutoff=0.6)
    if not close:
        return f"{key} is unknown in this config; --help shows the keys that it has"
    return f"{key} is unknown; did you mean {' or '.join(dict.fromkeys(close[:3]))}? (--help shows all)"


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else "known are " + ", ".join(known)


def _malformed(word: str, following: list[str]) -> str:
    if word.startswith("--") and "=" not in word:
        example = f"{word}={following[0]}" if following and not following[0].startswith("-") else f"{word}=value"
        return f"{word} has no value; write {example}"
    key = word.lstrip("+~-")
    return f"{word!r} is not an option; write --{key if '=' in key else 'key=value'}"


def warn(message: str) -> None:
    """One line on the terminal, from the first process only."""
    if rank() == 0:
        print(f"warning: {message}", file=sys.stderr)


def rank() -> int:
    """Number of this process among all that the launcher started."""
    return int(os.environ.get("RANK", 0))
