"""Play a game and store the episodes: `python data_generation/generate.py --config=coinrun_random --n_instances=100`.

Composes `data_generation/configs/<config>.yaml` (or a yaml file of your own) with Hydra, checks it, and writes the
dataset `<root_dpath>/<name>`. `--list` shows the configs, `--help` the keys. The same command goes on where it was
interrupted. `--shard=i/n`, i from 0 to n-1, does one of n parts, for n jobs or machines that share the folder or whose
files are put together later; the last of them to end, or this command without `--shard`, completes the dataset.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    from data_generation.composition import parse, read_values
except ModuleNotFoundError:
    sys.exit("error: this Python lacks what requirements.txt lists; run it as bash run.sh --mode=generate --config=…")
from data_generation import overlap
from data_generation.settings import Settings
from data_generation.shards import Part, Summary, generate

CHECKOUT_DPATH = Path(__file__).resolve().parent.parent
CONFIGS_DPATH = Path(__file__).resolve().parent / "configs"
DATASETS_DPATH = Path(__file__).resolve().parent / "datasets"
DEFAULT_CONFIG = "coinrun_random"
# How the same data is called in GenieRedux.
OTHER_NAMES = {
    "data_gen": "coinrun_random",
    "data_gen_test_set": "coinrun_random_test",
    "data_gen_ppo": "coinrun_ppo",
    "data_gen_ppo_test_set": "coinrun_ppo_test",
}
# Games in which more than the arrows does something: they fire with it (Procgen's D, in some W, A and S too).
FIRING = ("bossfight", "caveflyer", "dodgeball", "fruitbot", "ninja", "plunder", "starpilot")


def main(arguments: list[str]) -> int:
    try:
        return run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        finished = f" ({error})" if str(error) else ""
        print(
            f"\ninterrupted; finished shards are kept{finished}, the same command goes on from there", file=sys.stderr
        )
        return 130


def run(arguments: list[str]) -> int:
    config, overrides = parse(arguments, DEFAULT_CONFIG)
    if config in ("--help", "--list"):
        print(usage() if config == "--help" else list_configs())
        return 0
    part = Part.parse(overrides.pop("shard", "0/1"))
    settings = read_settings(config, overrides)
    for hint in filter(None, (_hint_on_buttons(settings), _hint_on_splits(settings), overlap.in_words(settings))):
        print(f"note: {hint}", flush=True)
    settings.policy()  # an agent that cannot play this is refused here, before anything is written
    print(_what_happened(settings, part, generate(settings, part)))
    return 0


def _hint_on_splits(settings: Settings) -> str | None:
    if settings.split is None and len(settings.levels()) == 1:
        return (
            f"of {settings.n_instances} levels none is for validation, which training needs; raise --n_instances or "
            "--validation_share"
        )
    return None


def _hint_on_buttons(settings: Settings) -> str | None:
    if settings.game in FIRING and settings.action_set == "coinrun7":
        return f"{settings.game} has a fire button, which coinrun7 lacks; --action_set=procgen15 has all buttons"
    return None


def _what_happened(settings: Settings, part: Part, summary: Summary) -> str:
    folder, (num_frames, seconds, _) = settings.folder, summary.counts
    if summary.was_complete:
        return f"{folder} is complete and of the same config: nothing to do"
    said = f"wrote {num_frames:,} frames in {seconds:.1f} s ({num_frames / max(seconds, 1e-9):,.0f}/s) to {folder}"
    if not summary.num_shards:
        said = f"{folder}: all shards of part {part.index}/{part.count} are there"
    if not summary.num_missing:
        return f"{said}; the dataset is complete"
    return (
        f"{said}; {summary.num_missing} shards of other parts are still missing: the last job to end, or this command "
        "without --shard, completes the dataset"
    )


def read_settings(config: str, overrides: dict[str, str]) -> Settings:
    """Compose a config and check it; every mistake is a ValueError of one line."""
    known = list(Settings.__dataclass_fields__)
    values = read_values(CONFIGS_DPATH, config, overrides, known, base=DEFAULT_CONFIG, other_names=OTHER_NAMES)
    values["version"] = str(values["version"])
    values["root_dpath"] = str(values["root_dpath"] or DATASETS_DPATH)
    values["n_workers"] = values["n_workers"] or _num_cores()
    if values["agent_fpath"] is not None:
        values["agent_fpath"] = _find_agent(str(values["agent_fpath"]))
    return Settings(**values)


def _find_agent(fpath: str) -> str:
    """A relative path counts from here, or from this checkout, where the provided agents lie."""
    ours = CHECKOUT_DPATH / fpath
    return str(ours) if ours.is_file() and not Path(fpath).is_file() else fpath


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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # how a cluster stops a job: as Ctrl-C does
    sys.exit(main(sys.argv[1:]))
