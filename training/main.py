"""The one place that wires: from the command line to the mode that does the work.

Nothing heavy is imported before the configuration is known to be good, so mistakes, `--help` and `--list` answer at
once. An error that the user can mend ends in one line and exit code 2; LAMP_TRACEBACK=1 shows where it came from.
"""

import importlib
import os
import signal
import sys
import time
from pathlib import Path

from hydra.errors import InstantiationException
from omegaconf import DictConfig

from training import accelerate_config, command_line, deepspeed_config, plausible
from training.settings import (
    CompareSettings,
    DreamSettings,
    EvalSettings,
    PlaySettings,
    ScheduleSettings,
    TokenizeSettings,
    TrainSettings,
)

# mode -> the function that does it, given the composed configuration
WORK = {
    "train": "training.trainer:train",
    "eval": "training.evaluation:run",
    "pipeline": "training.pipeline:run",
    "tokenize": "training.tokenization:run",
    "compare": "training.comparison:run",
    "play": "play.server:run",
    "dream": "play.dream:run",
}
USER_ERRORS = (ValueError, OSError)
SECONDS_FOR_FIRST_PROCESS = 3.0  # the launcher ends all others as soon as one has failed
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(words: list[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        run(words)
    except KeyboardInterrupt:
        _tell("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `… --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (*USER_ERRORS, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if os.environ.get("LAMP_TRACEBACK") or not isinstance(cause, (*USER_ERRORS, TypeError, InstantiationException)):
            raise
        _tell("error: " + " ".join(str(cause).split()))
        return EXIT_USER_ERROR
    return 0


def run(words: list[str]) -> None:
    command = command_line.parse(words)
    if command.wants_list:
        from training import help

        print(help.overview())
        return
    cfg = command_line.compose(command)
    if command.wants_help:
        from training import help

        print(help.describe(command.config, cfg))
        return
    check(cfg)
    if command.only_checks:
        return
    check_world_size()
    deepspeed_config.overrule_launcher()
    if cfg.mode != "train":  # scripts/launch.py blocks what a training listens to later
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    if cfg.mode in ("train", "tokenize"):
        use_default_tokenizer(cfg)
    module, function = WORK[cfg.mode].split(":")
    getattr(importlib.import_module(module), function)(cfg)


def check(cfg: DictConfig) -> None:
    """Raise ValueError for a value out of range or a mode that cannot be run, before any device is touched."""
    if cfg.mode not in WORK:
        raise ValueError(f"mode={cfg.mode} is not available yet; available are {', '.join(WORK)}, test")
    if not isinstance(cfg.get("name"), str) or not cfg.name:
        raise ValueError(f"name is {cfg.get('name')!r}, expected a text: it names the run folder")
    if Path(cfg.name).is_absolute() or ".." in Path(cfg.name).parts:
        raise ValueError(
            f"name is {cfg.name!r}, expected the name of a folder in <save_root_dpath>/<model>; "
            "train.save_root_dpath says where runs lie"
        )
    if cfg.mode == "pipeline" and int(os.environ.get("LAMP_NUM_PROCESSES", 1)) > 1:
        raise ValueError("a pipeline starts its stages itself: leave --num_processes out and set --stage_processes=N")
    if cfg.mode in ("train", "eval"):
        for group in ("train", "eval", "optimizer", "model", "network"):
            if group not in cfg:
                raise ValueError(
                    f"the config has no {group}; start it with defaults: [genie_redux, _self_] or another entry"
                )
        settings = TrainSettings.from_config(cfg.train)
        accelerate_config.check(settings)
        EvalSettings.from_config(cfg.eval)
        schedule, optimizer = ScheduleSettings.from_optimizer(cfg.optimizer)
        plausible.check_optimizer(cfg.optimizer)
        plausible.check_model(cfg)
        deepspeed_config.check(cfg.mode, settings, schedule, optimizer["_target_"])
    if cfg.mode == "tokenize":
        if "tokenize" not in cfg or "frozen_tokenizer" not in cfg:
            raise ValueError("mode=tokenize needs the config of a world, such as --config=genie_redux_guided.yaml")
        TrainSettings.from_config(cfg.train)
        TokenizeSettings.from_config(cfg.tokenize)
    if cfg.mode == "compare":
        check_comparison(cfg)
    if cfg.mode == "play":
        if "play" not in cfg:
            raise ValueError("the config has no play; leave --config out: the page finds the worlds itself")
        if int(os.environ.get("LAMP_NUM_PROCESSES", 1)) > 1:
            raise ValueError("mode=play is one process that serves all players: leave --num_processes out")
        PlaySettings.from_config(cfg.play)
    if cfg.mode == "dream":
        check_dream(cfg)


def check_comparison(cfg: DictConfig) -> None:
    if "compare" not in cfg:
        raise ValueError("the config has no group compare; --mode=compare needs no --config, leave it out")
    if int(os.environ.get("LAMP_NUM_PROCESSES", 1)) > 1:
        raise ValueError("a comparison is the work of one process: leave --num_processes out")
    CompareSettings.from_config(cfg.compare)


def check_dream(cfg: DictConfig) -> None:
    if "dream" not in cfg:
        raise ValueError("the config has no dream; leave --config out: a dream finds its world itself")
    if int(os.environ.get("LAMP_NUM_PROCESSES", 1)) > 1:
        raise ValueError("a dream is the work of one process: leave --num_processes out")
    DreamSettings.from_config(cfg.dream)


def check_world_size() -> None:
    """Raise ValueError where the launcher started another number of processes than was asked for."""
    asked, started = os.environ.get("LAMP_NUM_PROCESSES"), int(os.environ.get("WORLD_SIZE", 1))
    in_file = accelerate_config.num_processes()
    if asked is None and in_file not in (None, started):
        raise ValueError(
            f"--accelerate_config={accelerate_config.read()[0]} says num_processes: {in_file}, but {started} started "
            "(accelerate starts several on GPUs only); on a CPU leave it out and set --num_processes=N"
        )
    if asked is not None and int(asked) != started:
        raise ValueError(f"--num_processes={asked} was asked for, but {started} started; see scripts/environment.sh")


def use_default_tokenizer(cfg: DictConfig) -> None:
    """Point a world at the tokenizer that `--config=tokenizer.yaml` leaves behind, unless told otherwise."""
    if "frozen_tokenizer" not in cfg or cfg.tokenizer_fpath is not None:
        return
    default = Path(cfg.train.save_root_dpath) / "tokenizer" / "tokenizer"
    if not default.exists():
        raise FileNotFoundError(
            f"tokenizer_fpath is null and {default} does not exist; set --tokenizer_fpath=<run folder>, "
            "or train a tokenizer with bash run.sh --config=tokenizer.yaml"
        )
    cfg.tokenizer_fpath = str(default)


def _tell(message: str) -> None:
    """Print a last line once: the first process at once; others only if it did not end the run for the same reason."""
    if command_line.rank() > 0:
        time.sleep(SECONDS_FOR_FIRST_PROCESS)
        message = f"process {command_line.rank()}: {message}"
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
