"""What the command lines of this package have in common: arguments, and errors of one line."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

DATASETS_DPATH = "data_generation/datasets"
FAILED, INTERRUPTED = 2, 130  # exit statuses


class ArgumentParser(argparse.ArgumentParser):
    """Raises ValueError where argparse would print its usage and exit; `--help` shows the module's text as it is."""

    def __init__(self, module: str, description: str):
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> None:
        raise ValueError(f"{message}; --help shows what there is")


def folder_name(text: str) -> str:
    if not text or Path(text).name != text or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text!r} must be the name of a folder in --root, without slashes")
    return text


def at_least(low: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not text.removeprefix("-").isdigit() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least {low}")
        return int(text)

    return integer


def run_command(command: Callable[[list[str] | None], int | None], arguments: list[str] | None, kept: str) -> int:
    """The exit status of the command: its own, 2 after an error line, 130 after Ctrl-C, when what is `kept` is said."""
    try:
        return command(arguments) or 0
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"\ninterrupted; {kept}", file=sys.stderr)
        return INTERRUPTED
