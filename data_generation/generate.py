"""Play a game and store the episodes: `python data_generation/generate.py --config=coinrun_random --n_instances=100`.

Composes `data_generation/configs/<config>.yaml` (or a yaml file of your own) with Hydra, checks it, and writes the
dataset `<root_dpath>/<name>`. `--list` shows the configs, `--help` the keys.
"""

import difflib
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    from hydra import compose, initialize_config_dir
except ModuleNotFoundError:
    sys.exit("error: this Python lacks what requirements.txt lists; run it as bash run.sh --mode=generate --config=…")
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_generation.settings import Settings
from data_generation.shards import generate

CONFIGS_DPATH = Path(__file__).resolve().parent / "configs"
DATASETS_DPATH = Path(__file__).resolve().parent / "datasets"
DEFAULT_CONFIG = "coinrun_random"
# How the same data is called in GenieRedux.
OTHER_NAMES = {"data_gen": "coinrun_random", "data_gen_test_set": "coinrun_random_test"}


def main(arguments: list[str]) -> int:
    try:
        return run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; finished shards are kept, the same command goes on from there", file=sys.stderr)
        return 130


def run(arguments: list[str]) -> int:
    config, overrides = parse(arguments)
    if config in ("--help", "--list"):
        print(usage() if config == "--help" else list_configs())
        return 0
    settings = read_settings(config, overrides)
    summary = generate(settings)
    if summary.num_shards:
        rate = summary.num_frames / max(summary.seconds, 1e-9)
        print(f"wrote {summary.num_frames:,} frames in {summary.seconds:.1f} s ({rate:,.0f}/s) to {settings.folder}")
    else:
        print(f"{settings.folder} is complete and of the same config: nothing to do")
    return 0


def parse(arguments: list[str]) -> tuple[str, dict[str, str]]:
    """The config's name (or --help, --list) and the overrides as text by key; the last of several for a key wins."""
    config, overrides = DEFAULT_CONFIG, {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument in ("--help", "-h", "--list"):
            return "--help" if argument == "-h" else argument, {}
        if argument == "--config":
            if not waiting:
                raise ValueError("--config needs a name, as in --config=coinrun_random")
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


def read_settings(config: str, overrides: dict[str, str]) -> Settings:
    """Compose a config and check it; every mistake is a ValueError of one line."""
    values = OmegaConf.to_container(_compose(config, []), resolve=True)
    known = list(Settings.__dataclass_fields__)
    for key in [*values, *overrides]:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]}?" if nearest else f"; known: {', '.join(known)}"
            raise ValueError(f"unknown key {key}{hint}")
    missing = [key for key in known if key not in values]
    if missing:
        raise ValueError(
            f"config {config} lacks {', '.join(missing)}; start it with `defaults: [{DEFAULT_CONFIG}, _self_]`"
        )
    lines = [f"{key}={_quoted(value)}" for key, value in overrides.items()]
    values = OmegaConf.to_container(_compose(config, lines), resolve=True)
    values["version"] = str(values["version"])
    values["root_dpath"] = str(values["root_dpath"] or DATASETS_DPATH)
    values["n_workers"] = values["n_workers"] or _num_cores()
    return Settings(**values)


def _quoted(value: str) -> str:
    """The value in Hydra's grammar: lists, numbers and plain words as they are, anything else as a quoted string."""
    if re.fullmatch(r"[\w./:+-]+|\[[\d\s.,+e-]*\]", value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _compose(config: str, overrides: list[str]) -> DictConfig:
    folder, name = _find_config(config)
    searchpath = [] if folder == CONFIGS_DPATH else [f"hydra.searchpath=[file://{CONFIGS_DPATH}]"]
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            return compose(name, overrides=overrides + searchpath)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"config {config}: {str(error).splitlines()[0]}") from None
    except Exception as error:  # the yaml parser has exceptions of its own, without a common parent worth naming
        raise ValueError(f"config {config} cannot be read: {' '.join(str(error).split())}") from None


def _find_config(config: str) -> tuple[Path, str]:
    """Folder and stem of a config: one of ours by name or file name, or a path to a yaml file."""
    path = Path(config)
    names = sorted(fpath.stem for fpath in CONFIGS_DPATH.glob("*.yaml"))
    if path.suffix == ".yaml" and path.is_file():
        return path.resolve().parent, path.stem
    stem = path.stem if path.suffix in (".yaml", ".json") else path.name
    stem = OTHER_NAMES.get(stem, stem)
    if stem in names:
        return CONFIGS_DPATH, stem
    nearest = difflib.get_close_matches(stem, names, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise ValueError(f"no config {config}; {hint}known: {', '.join(names)}, or a path to a .yaml file")


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def list_configs() -> str:
    lines = []
    for fpath in sorted(CONFIGS_DPATH.glob("*.yaml")):
        settings = read_settings(fpath.stem, {})
        lines.append(
            f"{fpath.stem:26} {settings.name:20} {settings.n_instances:,} levels from {settings.level_offset:,}, "
            f"at most {settings.n_steps_max} frames each"
        )
    return "\n".join(lines)


def usage() -> str:
    keys = (CONFIGS_DPATH / f"{DEFAULT_CONFIG}.yaml").read_text()
    return f"{__doc__.strip()}\n\nconfigs:\n{list_configs()}\n\nkeys, with their values in {DEFAULT_CONFIG}:\n{keys}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
